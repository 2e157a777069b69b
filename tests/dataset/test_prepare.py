"""prepare: a messy folder becomes one grid, the same bytes whoever makes them, and no patient in them."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydantic import ValidationError
from scan_makers import ct_head, head, tree_bytes, world

from anatogen.core.errors import ScanError, UserError
from anatogen.dataset.conversion import ConversionTask, Placement, convert_scan
from anatogen.dataset.discover import Source
from anatogen.dataset.manifest import Intensity, Split, load_manifest
from anatogen.dataset.prepare import PrepareConfig, PrepareSummary, SplitConfig, prepare
from anatogen.dataset.regions import Region
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.formats import AS_IT_IS, read_scan
from anatogen.io.geometry import axis_codes, orient
from anatogen.io.nifti import write_nifti
from anatogen.io.npy import write_npy
from anatogen.io.volume import Volume


def run(scans: Path, out: Path, strict: bool = False, workers: int = 1, **config: object) -> PrepareSummary:
    values = PrepareConfig.model_validate(config)
    return prepare(scans, out, values, strict=strict, workers=workers, progress=False)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Six good scans in four formats, nested."""
    folder = tmp_path / "scans"
    for seed in range(3):
        write_nifti(head(seed), folder / "site a" / f"{seed}.nii.gz")
    write_nifti(orient(head(3), "RAS"), folder / "3.nii")
    write_npy(head(4), folder / "deep" / "er" / "4.npy")
    write_dicom(head(5), folder / "dicom" / "5", "MR", uid_from="5", patient_id="P5")
    (folder / "notes.txt").write_text("not a scan")
    (folder / ".DS_Store").write_bytes(b"\0\0\0\1Bud1")
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    return folder


def test_a_folder_of_mixed_scans(scans: Path, tmp_path: Path) -> None:
    summary = run(scans, tmp_path / "out")
    assert not summary.left_out
    assert sum(summary.num_cases.values()) == 6
    assert summary.num_cases["validation"] == 1
    assert summary.num_ignored == 2
    manifest = load_manifest(tmp_path / "out")
    assert manifest == summary.manifest
    assert manifest.grid.shape == (24, 24, 24)
    assert manifest.intensity.modality == "MR"
    assert axis_codes(np.array(manifest.grid.affine)) == "SPL"
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "dataset.json", "left_out.json", "prepare.json", "volumes",
    ]  # fmt: skip
    for case in manifest.cases:
        array = np.load(tmp_path / "out" / case.file)
        assert array.dtype == np.float16
        assert array.shape == (24, 24, 24)
        assert array.min() == -1
        assert 0.9 < array.max() <= 1
        assert array[0, 0, 0] == -1  # padded with air, not with grey
        assert np.linalg.norm(np.array(case.affine)[:3, :3], axis=0) == pytest.approx([1, 1, 1])


def test_case_affine_and_intensity_lead_back_to_the_scan(tmp_path: Path) -> None:
    volume = head(0)
    write_nifti(orient(volume, "LSA"), tmp_path / "scans" / "a.nii")
    summary = run(tmp_path / "scans", tmp_path / "out", percentiles=(0, 100))
    case = summary.manifest.cases[0]
    array = case.intensity.restore(np.load(tmp_path / "out" / case.file).astype(np.float32))
    affine = np.array(case.affine)
    index = np.linalg.inv(volume.affine) @ np.vstack(
        [world(affine, array.shape).reshape(3, -1), np.ones(array.size)]
    )
    index = np.rint(index[:3]).astype(int)
    inside = ((index >= 0) & (index < np.array(volume.array.shape)[:, None])).all(axis=0)
    assert inside.sum() == volume.array.size
    restored = array.ravel()[inside]
    original = volume.array[tuple(index[:, inside])]
    # float16 has 11 bits: half a step of 2 / 2048 of the range at most.
    assert np.abs(restored - original).max() <= 0.51 / 1024 * np.ptp(volume.array)
    assert np.allclose(array.ravel()[~inside], volume.array.min())


def test_bytes_do_not_depend_on_workers(scans: Path, tmp_path: Path) -> None:
    run(scans, tmp_path / "one", workers=1)
    run(scans, tmp_path / "two", workers=2)
    assert tree_bytes(tmp_path / "one") == tree_bytes(tmp_path / "two")


def test_ct_has_the_same_window_for_all(tmp_path: Path) -> None:
    for seed in range(3):
        write_nifti(ct_head(seed), tmp_path / "scans" / f"{seed}.nii.gz")
    write_dicom(ct_head(3), tmp_path / "scans" / "3", "CT", uid_from="3")
    summary = run(tmp_path / "scans", tmp_path / "out", shape=(32, 24, 24), window_hu=(-1000, 500))
    manifest = summary.manifest
    assert manifest.intensity.modality == "CT"
    assert {(case.intensity.low, case.intensity.high) for case in manifest.cases} == {(-1000, 500)}
    array = np.load(tmp_path / "out" / manifest.cases[0].file).astype(np.float32)
    assert (array[0] == -1).all()
    assert np.abs(manifest.intensity.restore(array).max() - ct_head(3).array.max()) < 2


def test_modalities_do_not_mix(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    write_dicom(ct_head(0), folder / "ct", "CT", uid_from="0")
    write_dicom(head(0), folder / "mr", "MR", uid_from="1")
    with pytest.raises(UserError, match=r"mixes CT \(1 scans\) and MR \(1 scans\)"):
        run(folder, tmp_path / "out")
    summary = run(folder, tmp_path / "out", modality="MR")
    assert [(scan.name, scan.reason) for scan in summary.left_out] == [
        ("ct", "its DICOM modality is CT, and the dataset's is MR")
    ]
    shutil.rmtree(folder / "ct")
    write_nifti(ct_head(1), folder / "unsaid.nii")
    summary = run(folder, tmp_path / "out")
    assert "do not look like MR" in summary.left_out[0].reason


def test_bad_scans_and_copies_are_left_out(scans: Path, tmp_path: Path) -> None:
    good = run(scans, tmp_path / "good").manifest
    (scans / "0 truncated.nii.gz").write_bytes((scans / "site a" / "0.nii.gz").read_bytes()[:500])
    write_npy(Volume(np.ones((8, 8, 8), np.float32), np.eye(4)), scans / "constant.npy")
    (scans / "fake.dcm").write_text("hello")
    write_nifti(head(0), scans / "site b" / "same as 0.nii")
    write_nifti(orient(head(1), "PIR"), scans / "site b" / "turned 1.nii")
    shutil.copytree(scans / "dicom" / "5", scans / "dicom" / "copy of 5")
    (scans / "dicom" / "copy of 5" / "slice_0001.dcm").rename(scans / "dicom" / "copy of 5" / "x")
    with pytest.raises(UserError, match=r"strict: 6 scans can't be used:\n  - 0 truncated.nii.gz: "):
        run(scans, tmp_path / "strict", strict=True)
    assert not (tmp_path / "strict" / "dataset.json").exists()
    summary = run(scans, tmp_path / "out")
    entries = json.loads((tmp_path / "out" / "left_out.json").read_text())
    assert entries == [{"file": scan.name, **scan.refusal.as_json()} for scan in summary.left_out]
    reasons = {entry["file"]: entry["reason"] for entry in entries}
    assert list(reasons) == [
        "0 truncated.nii.gz", "constant.npy", "dicom/copy of 5", "fake.dcm",
        "site b/same as 0.nii", "site b/turned 1.nii",
    ]  # fmt: skip
    assert reasons["site b/turned 1.nii"] == "it is the same scan as site a/1.nii.gz"
    assert reasons["dicom/copy of 5"] == "it is the same scan as dicom/5"
    assert summary.manifest == good


def write_detached(volume: Volume, header: Path) -> None:
    """MetaImage as a header, equal for all scans of one grid, and the voxels in `<name>.raw` beside it."""
    header.parent.mkdir(parents=True, exist_ok=True)
    sitk.WriteImage(sitk.GetImageFromArray(volume.array), header)


def test_scans_with_equal_headers_are_told_apart_by_their_data(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    for seed in range(3):
        write_detached(head(seed), scans / f"{seed}" / "scan.mhd")
    assert len({(scans / f"{seed}" / "scan.mhd").read_bytes() for seed in range(3)}) == 1
    first = run(scans, tmp_path / "out")
    assert (len(first.manifest.cases), first.left_out, first.num_ignored) == (3, (), 0)
    assert run(scans, tmp_path / "out").was_complete
    write_detached(head(7), scans / "1" / "scan.mhd")
    changed = run(scans, tmp_path / "out")
    assert not changed.was_complete
    hashes = [[case.source_sha256 for case in summary.manifest.cases] for summary in (first, changed)]
    assert [a == b for a, b in zip(*hashes, strict=True)] == [True, False, True]


@pytest.mark.parametrize(
    ("data_file", "reason"),
    [
        ("../../secret.raw", "below the folder of scans"), ("/etc/hostname", "relative path"),
        ("gone.raw", "names no data file"), ("LIST", "several files"),
        ("slice_%03d.raw 1 20 1", "several files"),
    ],
)  # fmt: skip
def test_data_files_that_are_not_the_scans_own_are_refused(
    tmp_path: Path, data_file: str, reason: str
) -> None:
    scans = tmp_path / "scans"
    write_detached(head(0), scans / "good.mhd")
    write_detached(head(1), scans / "b" / "bad.mhd")
    (scans / "b" / "bad.raw").rename(tmp_path / "secret.raw")
    header = scans / "b" / "bad.mhd"
    header.write_text(header.read_text().replace("bad.raw", data_file))
    summary = run(scans, tmp_path / "out")
    assert [scan.name for scan in summary.left_out] == ["b/bad.mhd"]
    assert reason in summary.left_out[0].reason
    assert len(summary.manifest.cases) == 1


@pytest.mark.parametrize("kept", [0, 60, 150, 175, 395, 700, 1000])
def test_a_damaged_slice_condemns_its_series(tmp_path: Path, kept: int) -> None:
    scans = tmp_path / "scans"
    write_dicom(head(0), scans / "bad", "MR", uid_from="0")
    write_dicom(head(1), scans / "good", "MR", uid_from="1")
    for number in (1, 2):
        path = scans / "bad" / f"slice_{number:04d}.dcm"
        path.write_bytes(path.read_bytes()[:kept])
    summary = run(scans, tmp_path / "out")
    assert len(summary.manifest.cases) == 1
    reasons = {scan.name: scan.reason for scan in summary.left_out}
    assert list(reasons) == ["bad", "bad/slice_0001.dcm", "bad/slice_0002.dcm"]
    assert reasons["bad"] == "a file of it, or beside it, is damaged: bad/slice_0001.dcm"
    with pytest.raises(UserError, match="3 scans can't be used"):
        run(scans, tmp_path / "strict", strict=True)
    with pytest.raises(ScanError, match="damaged"):
        read_scan(scans / "bad")


def test_a_damaged_slice_that_names_its_series_condemns_that_one_only(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    for name in ("a", "b"):
        write_dicom(head(ord(name)), folder / name, "MR", uid_from=name)
    for path in sorted((folder / "b").iterdir()):
        path.rename(folder / "a" / f"b_{path.name}")
    (folder / "b").rmdir()
    broken = folder / "a" / "b_slice_0020.dcm"
    dataset = pydicom.dcmread(broken)
    del dataset.Rows
    dataset.save_as(broken)
    summary = run(folder, tmp_path / "out")
    assert [scan.name for scan in summary.left_out] == ["a/b_slice_0001.dcm", "a/b_slice_0020.dcm"]
    assert summary.left_out[1].reason == "the file is a damaged DICOM image: it has no Rows"
    assert len(summary.manifest.cases) == 1
    assert read_scan(folder / "a" / "slice_0001.dcm").array.shape == (20, 24, 18)
    with pytest.raises(ScanError, match="damaged"):
        read_scan(folder / "a" / "b_slice_0001.dcm")


@pytest.mark.parametrize(
    "sop_class",
    [
        pydicom.uid.EnhancedSRStorage, pydicom.uid.RTStructureSetStorage,
        pydicom.uid.GrayscaleSoftcopyPresentationStateStorage, pydicom.uid.MediaStorageDirectoryStorage,
        "1.3.12.2.1107.5.9.1",
    ],
)  # fmt: skip
def test_dicom_without_images_is_no_damage(tmp_path: Path, sop_class: str) -> None:
    scans = tmp_path / "scans"
    write_dicom(head(0), scans / "a", "MR", uid_from="0")
    dataset = pydicom.dcmread(scans / "a" / "slice_0001.dcm")
    for keyword in ("Rows", "Columns", "PixelData"):
        delattr(dataset, keyword)
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = sop_class
    dataset.save_as(scans / "a" / "other.dcm")
    (scans / "a" / "random").write_bytes(b"\x08\x00" + bytes(300))
    summary = run(scans, tmp_path / "out", strict=True)
    assert (len(summary.manifest.cases), summary.left_out, summary.num_ignored) == (1, (), 2)
    assert read_scan(scans / "a").array.shape == (20, 24, 18)


@pytest.mark.parametrize("dtype", [np.uint8, np.float32])
def test_label_maps_are_left_out(tmp_path: Path, dtype: type) -> None:
    scans = tmp_path / "scans"
    for seed in range(3):
        volume = head(seed)
        write_nifti(volume, scans / "imagesTr" / f"{seed}.nii.gz")
        labels = np.digitize(volume.array, [200, 500, 600]).astype(dtype)
        image = nib.Nifti1Image(labels.T, volume.affine[:, [2, 1, 0, 3]])
        (scans / "labelsTr").mkdir(exist_ok=True)
        nib.save(image, scans / "labelsTr" / f"{seed}.nii.gz")
    summary = run(scans, tmp_path / "out")
    assert len(summary.manifest.cases) == 3
    assert {(scan.name, scan.reason) for scan in summary.left_out} == {
        (f"labelsTr/{seed}.nii.gz", "it looks like a label map (4 distinct whole values)")
        for seed in range(3)
    }
    narrowed = run(scans, tmp_path / "out", strict=True, exclude="labelsTr/*")
    assert (len(narrowed.manifest.cases), narrowed.num_ignored) == (3, 3)


def test_scans_of_few_values_are_no_label_maps(tmp_path: Path) -> None:
    volume = head(0)
    levels = volume.array % 33
    assert len(np.unique(levels)) == 33
    write_nifti(Volume(levels.astype(np.float32), volume.affine), tmp_path / "scans" / "levels.nii")
    write_nifti(
        Volume(np.where(volume.array > 100, 40, -1000).astype(np.float32), volume.affine),
        tmp_path / "scans" / "ct.nii",
    )
    fractions = np.rint(volume.array / 100) / 4
    write_nifti(Volume(fractions.astype(np.float32), volume.affine), tmp_path / "scans" / "fractions.nii")
    summary = run(tmp_path / "scans", tmp_path / "out", modality="MR")
    assert not [scan for scan in summary.left_out if "label" in scan.reason]


def test_include_and_exclude_narrow_the_scans(scans: Path, tmp_path: Path) -> None:
    def cases(out: str, **config: object) -> tuple[int, int]:
        summary = run(scans, tmp_path / out, strict=True, **config)
        return len(summary.manifest.cases), summary.num_ignored

    assert cases("a", include="site*") == (3, 2 + 22)
    assert cases("b", include=["*.nii", "*.nii.gz"], exclude="*/2.nii*") == (3, 2 + 22)
    assert cases("c", include="dicom/*") == (1, 2 + 5)
    (scans / "fake.dcm").write_text("hello")
    assert cases("d", exclude=["*.npy", "fake.dcm"]) == (5, 2 + 2)
    with pytest.raises(UserError, match=r"no scans.*include and exclude"):
        run(scans, tmp_path / "e", include="*FLAIR*")


def test_a_wanted_split_that_stays_empty_is_told(tmp_path: Path) -> None:
    for seed in range(3):
        write_nifti(head(seed), tmp_path / "scans" / "sub-01" / f"{seed}.nii")
    (line,) = [line for line in run(tmp_path / "scans", tmp_path / "out").decisions if "empty" in line]
    assert "validation and test are empty" in line
    assert "1 patient" in line
    assert "patient_pattern or patient_csv" in line
    split = {"validation": 0, "test": 0}
    assert not [x for x in run(tmp_path / "scans", tmp_path / "all", split=split).decisions if "empty" in x]
    (line,) = [
        line
        for line in run(tmp_path / "scans", tmp_path / "two", patient_pattern=r"([0-9])\.nii").decisions
        if "empty" in line
    ]
    assert "test is empty" in line
    assert "split.test" in line


def test_the_dataset_holds_no_trace_of_who_was_who(tmp_path: Path) -> None:
    for seed in range(6):
        write_nifti(head(seed), tmp_path / "scans" / f"miller_{seed // 2}_{seed}.nii")
    config = {"patient_pattern": r"^(miller_\d)_", "include": "miller*", "exclude": ["*smith*"]}
    manifest = run(tmp_path / "scans", tmp_path / "out", **config).manifest
    patients = [case.patient for case in manifest.cases]
    assert patients[::2] == patients[1::2]
    assert sorted(set(patients)) == ["patient_00000", "patient_00001", "patient_00002"]
    for name in ("dataset.json", "prepare.json"):
        text = (tmp_path / "out" / name).read_text()
        assert "miller" not in text
        assert "smith" not in text
    other = run(tmp_path / "scans", tmp_path / "other", **{**config, "patient_pattern": r"^(miller_[0-9])_"})
    assert other.manifest.cases == manifest.cases
    assert other.manifest.config["patient_pattern"] != manifest.config["patient_pattern"]


def test_two_series_in_one_folder(tmp_path: Path) -> None:
    for seed in range(2):
        write_dicom(head(seed), tmp_path / "x", "MR", uid_from=str(seed), patient_id=str(seed))
        for path in (tmp_path / "x").iterdir():
            path.rename(tmp_path / f"{path.stem}_{seed}")
        (tmp_path / "x").rmdir()
    folder = tmp_path / "scans" / "all"
    folder.mkdir(parents=True)
    for number, path in enumerate(sorted(tmp_path.glob("slice_*"))):
        path.rename(folder / f"{number}")
    summary = run(tmp_path / "scans", tmp_path / "out")
    assert len(summary.manifest.cases) == 2
    assert not summary.left_out


def test_a_patient_is_in_one_split(tmp_path: Path) -> None:
    for seed in range(12):
        write_nifti(head(seed), tmp_path / "scans" / f"pat{seed // 3}_visit{seed % 3}.nii")
    config = {"patient_pattern": r"^pat(\d+)_", "split": SplitConfig(validation=0.25, test=0.25)}
    cases = run(tmp_path / "scans", tmp_path / "out", **config).manifest.cases
    of_patient = {}
    for case in cases:
        of_patient.setdefault(case.patient, set()).add(case.split)
    assert len(of_patient) == 4
    assert all(len(splits) == 1 for splits in of_patient.values())
    assert sorted(case.split for case in cases) == sorted(
        [Split.TRAIN] * 6 + [Split.VALIDATION] * 3 + [Split.TEST] * 3
    )


def test_training_cases_decide_the_intensity(scans: Path, tmp_path: Path) -> None:
    manifest = run(scans, tmp_path / "out").manifest
    training = [case.intensity for case in manifest.split(Split.TRAIN)]
    assert manifest.intensity.low == np.median([scan.low for scan in training])
    assert manifest.intensity.high == np.median([scan.high for scan in training])


def test_resize_keeps_the_field_of_view(scans: Path, tmp_path: Path) -> None:
    summary = run(scans, tmp_path / "out", fit="resize", shape=(16, 32, 16))
    assert summary.manifest.grid.shape == (16, 32, 16)
    np.testing.assert_allclose(summary.manifest.grid.spacing_mm, (20 / 16, 24 / 32, 18 / 16))


def test_foreground_comes_to_the_middle(tmp_path: Path) -> None:
    volume = head(0)
    array = np.pad(volume.array, ((0, 0), (0, 30), (12, 0)), constant_values=10)
    array[0, 0, 0] = 0
    write_nifti(Volume(array, volume.affine), tmp_path / "scans" / "a.nii")
    run(tmp_path / "scans", tmp_path / "grid", shape=(24, 24, 24))
    run(tmp_path / "scans", tmp_path / "foreground", shape=(24, 24, 24), center="foreground")
    tissue = {}
    for name in ("grid", "foreground"):
        prepared = np.load(tmp_path / name / "volumes" / "case_00000.npy")
        tissue[name] = int((prepared > -0.5).sum())
    assert tissue["foreground"] > 1.5 * tissue["grid"]
    assert abs(tissue["foreground"] - (volume.array > 200).sum()) < 50


def test_running_again_confirms_and_changes_remake(scans: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = run(scans, out)
    before = tree_bytes(out)
    again = run(scans, out)
    assert again.was_complete
    assert not first.was_complete
    assert (again.manifest, again.left_out, again.decisions) == (
        first.manifest, first.left_out, first.decisions,
    )  # fmt: skip
    assert tree_bytes(out) == before
    changed = run(scans, out, percentiles=(1, 99))
    assert not changed.was_complete
    run(scans, tmp_path / "fresh", percentiles=(1, 99))
    assert tree_bytes(out) == tree_bytes(tmp_path / "fresh")
    (scans / "3.nii").unlink()
    write_nifti(head(7), scans / "site a" / "1.nii.gz")
    run(scans, out)
    run(scans, tmp_path / "fresh")
    assert tree_bytes(out) == tree_bytes(tmp_path / "fresh")
    assert len(list((out / "volumes").iterdir())) == 5


def test_folders_that_are_not_ours_are_left_alone(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "mine" / "volumes").mkdir(parents=True)
    (tmp_path / "mine" / "volumes" / "case_00000.npy").write_text("thesis")
    with pytest.raises(UserError, match=r"not of a prepared dataset \(volumes\)"):
        run(scans, tmp_path / "mine")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "thesis.tex").write_text("mine")
    with pytest.raises(UserError, match=r"thesis\.tex"):
        run(scans, tmp_path / "other")
    with pytest.raises(UserError, match="lies inside"):
        run(scans, scans / "out")
    with pytest.raises(UserError, match="is a file"):
        run(scans, tmp_path / "other" / "thesis.tex")
    with pytest.raises(UserError, match="not a folder"):
        run(tmp_path / "none", tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="holds no scans"):
        run(tmp_path / "empty", tmp_path / "out")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("orientation", "SPP", "one letter of each pair"), ("window_hu", (100, -100), "below the second"),
        ("percentiles", (5, 105), r"\[0, 100\]"), ("patient_pattern", "sub-01", "exactly one"),
        ("patient_pattern", "(", "no regular expression"),
        ("split", {"validation": 0.6, "test": 0.5}, "below 1"),
        ("spacing_mm", 0, "greater than 0"), ("shape", (2, 8, 8), "greater than or equal to 4"),
        ("fitting", "resize", "extra"),
    ],
)  # fmt: skip
def test_wrong_configurations_are_refused(key: str, value: object, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        PrepareConfig.model_validate({key: value})


def test_nothing_of_the_patient_gets_out(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    secrets = {
        "PatientName": "Avasarala^Chrisjen", "PatientID": "MRN-4711-0815", "PatientBirthDate": "19610317",
        "PatientAddress": "Luna Embankment 7", "OtherPatientNames": "Holden^James",
        "InstitutionName": "Tycho General", "AccessionNumber": "ACC99887766", "StudyDate": "20190203",
    }  # fmt: skip
    for seed in range(3):
        folder = tmp_path / "scans" / f"{seed}"
        write_dicom(head(seed), folder, "MR", uid_from=str(seed))
        for path in folder.iterdir():
            dataset = pydicom.dcmread(path)
            for keyword, value in secrets.items():
                setattr(dataset, keyword, value)
            if seed == 2 and path.name == "slice_0003.dcm":
                dataset.ImagePositionPatient = [1, 2, 3]
                dataset.add_new("PatientAge", "LO", "not an age")  # pydicom quotes it in a warning on reading
            dataset.save_as(path)
    summary = run(tmp_path / "scans", tmp_path / "out", workers=2)
    prepare(tmp_path / "scans", tmp_path / "shown", PrepareConfig(), workers=1)
    assert len(summary.left_out) == 1
    captured = capfd.readouterr()
    written = {**tree_bytes(tmp_path / "out"), "screen": (captured.out + captured.err).encode()}
    written["summary"] = repr(summary).encode()
    uid = pydicom.dcmread(tmp_path / "scans" / "0" / "slice_0001.dcm").SeriesInstanceUID
    words = {word for value in secrets.values() for word in value.replace("^", " ").split() if len(word) > 3}
    for name, content in written.items():
        for word in {*words, str(uid)}:
            assert word.encode() not in content, (name, word)
    # Three scans of one PatientID are one patient.
    assert len({case.patient for case in summary.manifest.cases}) == 1
    assert "Warning" not in captured.err


def test_real_patient_names_do_not_get_out(shared_data: Path, tmp_path: Path) -> None:
    summary = run(shared_data / "dicom", tmp_path / "out", workers=2, shape=(24, 64, 64))
    assert len(summary.manifest.cases) == 3
    assert len({case.patient for case in summary.manifest.cases}) == 2
    header = [
        pydicom.dcmread(next(folder.iterdir()), stop_before_pixels=True)
        for folder in (shared_data / "dicom").iterdir()
    ]
    secrets = {str(h.PatientID) for h in header} | {
        part for h in header for part in str(h.PatientName).split("^")
    }
    for name, content in tree_bytes(tmp_path / "out").items():
        for secret in secrets:
            assert secret.encode() not in content, (name, secret)


SLOW = {"spacing_mm": 0.8, "interpolation": "cubic"}


@pytest.fixture(scope="module")
def slow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Scans that take long enough to be interrupted, and what becomes of them with the settings SLOW."""
    folder = tmp_path_factory.mktemp("slow")
    for seed in range(14):
        write_nifti(head(seed, shape=(48, 56, 52)), folder / "scans" / f"{seed:02d}.nii.gz")
    run(folder / "scans", folder / "whole", workers=1, **SLOW)
    return folder


@pytest.mark.parametrize("stage", ["records", "conversions"])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path: Path, slow: Path, stage: str) -> None:
    (tmp_path / "scans").symlink_to(slow / "scans")
    script = (
        "from pathlib import Path\n"
        "from anatogen.dataset.prepare import PrepareConfig, prepare\n"
        "if __name__ == '__main__':\n"
        f"    prepare(Path('scans'), Path('out'), PrepareConfig(**{SLOW!r}), workers=2, progress=False)\n"
    )
    (tmp_path / "script.py").write_text(script)
    process = subprocess.Popen([sys.executable, "script.py"], cwd=tmp_path, start_new_session=True)
    try:
        deadline = time.monotonic() + 60
        while len(list((tmp_path / "out" / ".work" / stage).glob("[!.]*.json"))) < 3:
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (tmp_path / "out" / "dataset.json").exists()
        # Its workers follow it; none may write beside the next run.
        while _group_lives(process.pid):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    finally:
        if _group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    finished = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("case_*.npy")}
    records = {path.stem for path in (tmp_path / "out" / ".work" / "conversions").glob("case_*.json")}
    run(tmp_path / "scans", tmp_path / "out", workers=1, **SLOW)
    for name in records:
        path = tmp_path / "out" / "volumes" / f"{name}.npy"
        assert path.stat().st_mtime_ns == finished[path.name], "finished work was done again"
    assert tree_bytes(tmp_path / "out") == tree_bytes(slow / "whole")


def test_a_record_never_stands_beside_another_tasks_array(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_nifti(head(0), tmp_path / "a.nii")
    tasks = [
        ConversionTask(
            source=Source("a.nii", (tmp_path / "a.nii",)),
            source_sha256="0",
            intensities=(Intensity(modality="MR", low=0, high=high),),
            placement=Placement(
                codes="SPL",
                spacing_mm=(1, 1, 1),
                shape=(16, 16, 16),
                center="grid",
                interpolation="linear",
            ),
            reading=AS_IT_IS,
            regions=(Region(start=(0, 0, 0), shape=(20, 24, 18)),),
            out=tmp_path,
            ids=("case_00000",),
        )
        for high in (500, 900)
    ]
    convert_scan(tasks[0])
    (output,) = tasks[0].outputs("volumes")
    expected = output.read_bytes()

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("anatogen.dataset.conversion.write_text", killed)
        convert_scan(tasks[1])
    assert output.read_bytes() != expected
    convert_scan(tasks[0])
    assert output.read_bytes() == expected


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_prepare_does_not_load_torch() -> None:
    code = "import sys, anatogen.dataset.prepare; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_hippocampus(shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    folder.mkdir()
    for path in sorted((shared_data / "hippocampus" / "images").iterdir())[:24]:
        (folder / path.name).symlink_to(path)
    summary = run(folder, tmp_path / "out", strict=True, workers=2)
    assert summary.num_cases == {"train": 20, "validation": 2, "test": 2}
    arrays = [np.load(tmp_path / "out" / case.file) for case in summary.manifest.cases]
    for array, case in zip(arrays, summary.manifest.cases, strict=True):
        source = orient(read_scan(sorted(folder.iterdir())[int(case.id[-5:])]), "SPL")
        center = np.array(array.shape) // 2
        place = np.array(case.affine) @ [*center, 1]
        index = np.rint(np.linalg.inv(source.affine) @ place)[:3].astype(int)
        expected = case.intensity.normalise(source.array[tuple(index)])
        assert abs(float(array[tuple(center)]) - float(expected)) < 1e-3
