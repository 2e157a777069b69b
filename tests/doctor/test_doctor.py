"""`doctor` finds what was planted, says what to type, and is silent about a clean folder."""

import json
import os
import pickle
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from scan_makers import ct_head, head

from anatogen.api.scans import doctor
from anatogen.config.resolving import parse_overrides, resolve
from anatogen.core.errors import UserError
from anatogen.dataset.discover import Source
from anatogen.dataset.prepare import PrepareConfig, prepare
from anatogen.dataset.records import RecordTask, ScanRecord, record_scan
from anatogen.doctor.diagnosis import Diagnosis, Finding
from anatogen.doctor.examine import as_json, examine
from anatogen.doctor.rules.outliers import far_from_median
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.nifti import write_nifti
from anatogen.io.npy import write_npy
from anatogen.io.volume import Volume

SHAPE = (16, 20, 18)


def scan(seed: int, shape: tuple[int, int, int] = SHAPE, spacing: float = 1.0) -> Volume:
    """A head with blobs of its own in it, so that no two look alike."""
    volume = head(seed, shape, spacing)
    own = np.random.default_rng(seed).normal(0, 300, tuple(-(-length // 4) for length in shape))
    coarse = np.kron(own, np.ones((4, 4, 4)))[: shape[0], : shape[1], : shape[2]]
    array = np.where(volume.array > 100, volume.array + coarse, volume.array)
    return Volume(np.clip(array, 0, None).astype(np.float32), volume.affine)


def labels(volume: Volume) -> Volume:
    return Volume((volume.array > 400).astype(np.float32), volume.affine)


def fill(folder: Path, number: int = 6, pattern: str = "scan{:c}.nii.gz") -> Path:
    for seed in range(number):
        write_nifti(scan(seed), folder / pattern.format(ord("a") + seed))
    return folder


def found(folder: Path, *overrides: str, headers_only: bool = False) -> dict[str, Finding]:
    config = resolve(PrepareConfig, overrides=parse_overrides(overrides, PrepareConfig))
    diagnosis = examine(folder, config, workers=1, progress=False, headers_only=headers_only)
    return {finding.code: finding for finding in diagnosis.findings if finding.code != "few_scans"}


def edit(folder: Path, change: Callable[[pydicom.Dataset, int], None]) -> None:
    for index, path in enumerate(sorted(folder.iterdir())):
        dataset = pydicom.dcmread(path)
        change(dataset, index)
        dataset.save_as(path)


@pytest.mark.parametrize("format_name", ["nii.gz", "mha", "dicom"])
def test_names_that_are_not_utf8_come_through_doctor_and_prepare(tmp_path: Path, format_name: str) -> None:
    scans = fill(tmp_path / "scans")
    latin = os.fsdecode(b"Caf\xe9")
    if format_name == "dicom":
        write_dicom(scan(9), scans / "plain", "MR", uid_from="a scan")
        (scans / "plain").rename(scans / latin)
        name = latin
    else:
        name = f"{latin}.{format_name}"
        scan(9).save(scans / name)
    shutil.copytree(scans / name, scans / f"{name}2") if format_name == "dicom" else shutil.copy(
        scans / name, scans / f"2{name}"
    )
    diagnosis = doctor(scans, tmp_path / "doctor")
    assert len(diagnosis.facts.usable) == 8
    page = (tmp_path / "doctor" / "doctor.html").read_text(encoding="utf-8")
    assert "Caf\\udce9" in page
    told = json.loads((tmp_path / "doctor" / "doctor.json").read_text(encoding="utf-8"))
    assert name in [one["name"] for one in told["scans"]]
    (copies,) = (finding for finding in diagnosis.findings if finding.code == "copies")
    assert "Caf?" in copies.option
    (override,) = shlex.split(copies.option)
    config = resolve(PrepareConfig, overrides=parse_overrides([override], PrepareConfig))
    kept = prepare(scans, tmp_path / "kept", config, workers=2, progress=False)
    assert len(kept.manifest.cases) in (6, 7)
    whole = prepare(scans, tmp_path / latin / "out", PrepareConfig(), workers=2, progress=False)
    assert len(whole.manifest.cases) == 7
    assert "2Caf" in whole.left_out[0].name or "Caf" in whole.left_out[0].reason


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clean") / "scans"
    for seed in range(52):
        write_nifti(scan(seed), folder / f"scan_{seed:03d}.nii.gz")
    return folder


def test_a_clean_folder_has_no_findings(clean: Path) -> None:
    diagnosis = examine(clean, workers=1, progress=False)
    assert diagnosis.findings == ()
    assert diagnosis.outliers == {}
    assert diagnosis.is_usable and len(diagnosis.facts.usable) == 52


def test_a_clean_dicom_folder_has_none_but_the_names_in_its_headers(tmp_path: Path) -> None:
    for seed in range(3):
        write_dicom(scan(seed), tmp_path / f"s{'abc'[seed]}", "MR", uid_from=str(seed), patient_id=f"p{seed}")
    assert set(found(tmp_path)) == {"names_in_headers"}


# Each case: what is planted in a folder of six scans, the finding, how many, and a part of what to type.
def _copy(folder: Path) -> None:
    shutil.copy(folder / "scana.nii.gz", folder / "twin.nii.gz")


def _near_copy(folder: Path) -> None:
    volume = scan(0)
    noise = np.random.default_rng(1).normal(0, 20, SHAPE)
    write_nifti(
        Volume((volume.array**0.8 + noise / 50).astype(np.float32), volume.affine), folder / "z.nii.gz"
    )


def _mirrored(folder: Path) -> None:
    write_nifti(Volume(scan(0).array[:, :, ::-1].copy(), scan(0).affine), folder / "z.nii.gz")


def _truncated(folder: Path) -> None:
    content = (folder / "scana.nii.gz").read_bytes()
    (folder / "bad.nii.gz").write_bytes(content[: len(content) // 2])


def _flat(folder: Path) -> None:
    write_nifti(Volume(scan(0).array[:2], scan(0).affine), folder / "flat.nii.gz")


def _not_a_number(folder: Path) -> None:
    array = scan(7).array.copy()
    array[3, 4, 5] = np.nan
    write_nifti(Volume(array, scan(7).affine), folder / "nan.nii.gz")


def _ct_among_mr(folder: Path) -> None:
    write_nifti(ct_head(9), folder / "ct.nii.gz")


def _coarse(folder: Path) -> None:
    write_nifti(scan(9, spacing=2.0), folder / "coarse.nii.gz")


def _large(folder: Path) -> None:
    write_nifti(scan(9, (16, 20, 40)), folder / "large.nii.gz")


def _bright(folder: Path) -> None:
    write_nifti(Volume(scan(9).array * 1000, scan(9).affine), folder / "bright.nii.gz")


def _label_map(folder: Path) -> None:
    write_nifti(labels(scan(9)), folder / "tumour.nii.gz")


def _identity(folder: Path) -> None:
    write_nifti(Volume(scan(9).array, np.eye(4)[[2, 1, 0, 3]].T), folder / "identity.nii.gz")


def _array(folder: Path) -> None:
    write_npy(scan(9), folder / "array.npy")


def _sequences(folder: Path) -> None:
    write_nifti(scan(9), folder / "x_T1w.nii.gz")
    write_nifti(scan(10), folder / "x_FLAIR.nii.gz")
    write_nifti(scan(11), folder / "y_T1w.nii.gz")


def _dated(folder: Path) -> None:
    write_nifti(scan(9), folder / "MILLER_2014-03-09.nii.gz")


def _sagittal(folder: Path) -> None:
    affine = np.zeros((4, 4))
    affine[[0, 2, 1, 3], [0, 1, 2, 3]] = [4, -1, -1, 1]
    write_nifti(Volume(scan(9, (8, 20, 18)).array, affine), folder / "sagittal.nii.gz")


PLANTED = [
    (_copy, "copies", 1, "'exclude=[\"twin.nii.gz\"]'"),
    (_near_copy, "near_copies", 1, "'exclude=[\"z.nii.gz\"]'"),
    (_mirrored, "near_copies", 1, "'exclude=[\"z.nii.gz\"]'"),
    (_truncated, "unreadable", 1, ""),
    (_not_a_number, "unreadable", 1, ""),
    (_flat, "flat", 1, ""),
    (_ct_among_mr, "modalities", 1, "modality=MR"),
    (_coarse, "spacing_outliers", 1, "'exclude=[\"coarse.nii.gz\"]'"),
    (_large, "size_outliers", 1, "fit=resize"),
    (_bright, "intensity_outliers", 1, "'exclude=[\"bright.nii.gz\"]'"),
    (_label_map, "label_maps", 1, "'exclude=[\"tumour.nii.gz\"]'"),
    (_identity, "no_geometry", 1, ""),
    (_array, "npy", 1, "'npy_spacing_mm=[3,1,1]'"),
    (_sequences, "sequences", 1, "'include=*T1w*'"),
    (_dated, "dates_in_names", 1, ""),
    (_sagittal, "orientations", 1, "orientation=SPL"),
]


@pytest.fixture(scope="module")
def six(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six scans without any finding, and the records of them."""
    folder = tmp_path_factory.mktemp("six")
    fill(folder / "scans")
    diagnosis = examine(folder / "scans", records=folder / "records", workers=1, progress=False)
    assert {finding.code for finding in diagnosis.findings} == {"few_scans"}
    return folder


@pytest.mark.parametrize(
    ("plant", "code", "count", "option"),
    PLANTED,
    ids=lambda value: getattr(value, "__name__", str(value))[:24],
)
def test_what_is_planted_is_found(
    six: Path, tmp_path: Path, plant: Callable[[Path], None], code: str, count: int, option: str
) -> None:
    shutil.copytree(six / "scans", tmp_path / "scans")
    plant(tmp_path / "scans")
    # What is known of the six is not measured again.
    diagnosis = examine(tmp_path / "scans", records=six / "records", workers=1, progress=False)
    (finding,) = (finding for finding in diagnosis.findings if finding.code == code)
    assert (finding.count, finding.option) == (count, option)
    assert finding.title and finding.advice
    for word in shlex.split(option):
        # What it says to type is what `prepare` takes.
        resolve(PrepareConfig, overrides=parse_overrides([word], PrepareConfig))


def test_what_the_user_excludes_stays_excluded(tmp_path: Path) -> None:
    fill(tmp_path)
    _copy(tmp_path)
    _bright(tmp_path)
    findings = found(tmp_path, "exclude=scanf*")
    assert findings["copies"].option == '\'exclude=["scanf*", "twin.nii.gz"]\''
    assert findings["intensity_outliers"].option == '\'exclude=["scanf*", "bright.nii.gz"]\''
    typed = shlex.split(findings["copies"].option)[0]
    assert "copies" not in found(tmp_path, typed)


def test_masks_beside_images(tmp_path: Path) -> None:
    for seed in range(4):
        write_nifti(scan(seed), tmp_path / "imagesTr" / f"liver_{seed:03d}_0000.nii.gz")
        write_nifti(labels(scan(seed)), tmp_path / "labelsTr" / f"liver_{seed:03d}.nii.gz")
    write_nifti(scan(8), tmp_path / "imagesTs" / "liver_008_0000.nii.gz")
    findings = found(tmp_path)
    assert set(findings) == {"masks"}
    assert findings["masks"].option == "--recipe folder_with_masks"
    assert findings["masks"].alternative == "'exclude=[\"labelsTr/*\"]'"
    assert found(tmp_path, "exclude=labelsTr/*") == {}
    assert found(tmp_path, "recipe=folder_with_masks") == {}


def test_masks_that_a_recipe_uses_are_its_own_to_pair(tmp_path: Path) -> None:
    bids, duke = tmp_path / "bids", tmp_path / "duke"
    for seed in range(3):
        place = f"sub-{seed}/anat/sub-{seed}"
        write_nifti(scan(seed), bids / f"{place}_T1w.nii.gz")
        write_nifti(labels(scan(seed)), bids / "derivatives" / "manual" / f"{place}_dseg.nii.gz")
    masks = found(bids)["masks"]
    assert (masks.option, masks.alternative) == (
        "--recipe folder_with_masks",
        "'exclude=[\"*_dseg.nii.gz\"]'",
    )
    assert found(bids, "recipe=folder_with_masks") == {}
    write_dicom(scan(0), duke / "Breast_MRI_001", "MR", uid_from="a", patient_id="Breast_MRI_001")
    edit(duke / "Breast_MRI_001", lambda dataset, _: setattr(dataset, "SeriesDescription", "ax t1"))
    mask = sitk.GetImageFromArray(labels(scan(0)).array.astype(np.uint8))
    sitk.WriteImage(mask, str(duke / "Segmentation_Breast_MRI_001_Breast.seg.nrrd"))
    # Its breast masks may lie on a grid of their own.
    findings = found(duke, "recipe=duke", "region=breasts_by_mask")
    assert set(findings) == {"names_in_headers", "nothing_usable", "unreadable"}
    # As for `prepare`, it has no breasts.
    assert findings["unreadable"].names == ("Breast_MRI_001",)


def test_a_mask_off_the_grid_is_found_with_its_recipe(tmp_path: Path) -> None:
    for seed in range(2):
        write_nifti(scan(seed), tmp_path / f"c{seed}.nii.gz")
        write_nifti(labels(scan(seed)), tmp_path / f"c{seed}_seg.nii.gz")
    write_nifti(Volume(labels(scan(1)).array[1:], scan(1).affine), tmp_path / "c1_seg.nii.gz")
    findings = found(tmp_path, "recipe=folder_with_masks")
    assert set(findings) == {"mask_grid"}
    assert findings["mask_grid"].names == ("c1.nii.gz", "c1_seg.nii.gz")


def test_scans_that_their_masks_make_unusable_are_those_that_prepare_leaves_out(tmp_path: Path) -> None:
    folder = tmp_path / "scans"
    for seed in range(4):
        write_nifti(scan(seed), folder / "imagesTr" / f"{seed}.nii.gz")
        write_nifti(labels(scan(seed)), folder / "labelsTr" / f"{seed}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "organ"}}))
    write_nifti(Volume(3 * labels(scan(1)).array, scan(1).affine), folder / "labelsTr" / "1.nii.gz")
    write_nifti(Volume(labels(scan(2)).array[1:], scan(2).affine), folder / "labelsTr" / "2.nii.gz")
    write_nifti(Volume(labels(scan(3)).array / 2, scan(3).affine), folder / "labelsTr" / "3.nii.gz")
    config = PrepareConfig(recipe="folder_with_masks")
    diagnosis = examine(folder, config, workers=1, progress=False)
    summary = prepare(folder, tmp_path / "data", config, workers=1, progress=False)
    images = [f"imagesTr/{seed}.nii.gz" for seed in range(4)]
    assert [scan.name for scan in diagnosis.facts.usable] == images[:1]
    assert [scan.name for scan in summary.left_out] == images[1:]
    findings = {finding.title: finding.names for finding in diagnosis.findings if finding.code != "few_scans"}
    assert sorted(names[0] for names in findings.values()) == [images[1], images[2], "labelsTr/3.nii.gz"]


def test_what_a_recipe_leaves_out_is_told_with_its_reason(tmp_path: Path) -> None:
    for seed in range(4):
        write_nifti(scan(seed), tmp_path / f"c{seed}.nii.gz")
    for seed in range(2):
        write_nifti(labels(scan(seed)), tmp_path / f"c{seed}_seg.nii.gz")
    finding = found(tmp_path, "recipe=folder_with_masks")["left_out"]
    assert (finding.names, finding.title) == (("c2.nii.gz", "c3.nii.gz"), "2 left out: it has no mask")
    table = tmp_path / "patients.csv"
    table.write_text("file,patient\nc0.nii.gz,a\n")
    config = resolve(PrepareConfig, overrides={"recipe": "folder_with_masks", "patient_csv": table})
    diagnosis = examine(tmp_path, config, workers=1, progress=False)
    told = {finding.title: finding.names for finding in diagnosis.findings if finding.code == "left_out"}
    assert told == {
        "2 left out: it has no mask": ("c2.nii.gz", "c3.nii.gz"),
        "1 left out: patient_csv has no line for it": ("c1.nii.gz",),
    }
    assert as_json(diagnosis)["left_out"][-1]["name"] == "c1.nii.gz"


def test_a_recipe_that_takes_nothing_is_no_empty_folder(tmp_path: Path) -> None:
    for seed in range(2):
        write_nifti(scan(seed), tmp_path / f"c{seed}.nii.gz")
        write_nifti(labels(scan(seed)), tmp_path / f"c{seed}_seg.nii.gz")
    findings = found(tmp_path, "recipe=folder_with_masks", "patient_pattern=(nobody)")
    assert set(findings) == {"nothing_usable", "left_out"}
    assert findings["nothing_usable"].title == "None of 2 scans can be used"
    assert findings["left_out"].names == ("c0.nii.gz", "c1.nii.gz")


def test_masks_that_are_missing_empty_elsewhere_or_no_masks(tmp_path: Path) -> None:
    for seed in range(5):
        write_nifti(scan(seed), tmp_path / f"c{'abcde'[seed]}.nii.gz")
    mask = labels(scan(0))
    shifted = mask.affine.copy()
    shifted[0, 3] += 0.5
    write_nifti(Volume(mask.array, shifted), tmp_path / "ca_seg.nii.gz")
    write_nifti(Volume(mask.array[1:], mask.affine), tmp_path / "cb_seg.nii.gz")
    write_nifti(Volume(mask.array * 0, scan(2).affine), tmp_path / "cc_seg.nii.gz")
    write_nifti(labels(scan(7)), tmp_path / "cx_seg.nii.gz")
    write_nifti(Volume(scan(3).array / 5000, scan(3).affine), tmp_path / "cd_mask.nii.gz")
    findings = found(tmp_path)
    assert findings["mask_grid"].count == 2
    assert findings["mask_grid"].names == ("ca.nii.gz", "ca_seg.nii.gz", "cb.nii.gz", "cb_seg.nii.gz")
    assert findings["empty_masks"].names == ("cc_seg.nii.gz",)
    assert findings["images_without_mask"].names == ("ce.nii.gz",)
    assert findings["masks_without_image"].names == ("cx_seg.nii.gz",)
    assert findings["unreadable"].names == ("cd_mask.nii.gz",)
    assert "by its name (mask)" in findings["unreadable"].title
    assert findings["masks"].alternative == '\'exclude=["*_mask.nii.gz", "*_seg.nii.gz"]\''


def test_several_scans_of_a_patient_by_name_and_as_told(tmp_path: Path) -> None:
    for seed in range(6):
        write_nifti(scan(seed), tmp_path / f"P{seed // 2:02d}_visit{'ab'[seed % 2]}.nii.gz")
    findings = found(tmp_path)
    assert findings["patients_by_name"].count == 3
    option = shlex.split(findings["patients_by_name"].option)[0]
    told = found(tmp_path, option)
    assert set(told) == {"several_scans"} and told["several_scans"].count == 3
    assert found(tmp_path, "patient_pattern=(P0[01])")["unknown_patient"].count == 2


def test_leakage_across_the_providers_split(tmp_path: Path) -> None:
    for seed in range(4):
        write_nifti(scan(seed), tmp_path / "train" / f"sub-{seed:02d}_T1w.nii.gz")
        write_nifti(scan(seed + 10), tmp_path / "test" / f"sub-{seed + 4:02d}_T1w.nii.gz")
    assert found(tmp_path) == {}
    write_nifti(scan(20), tmp_path / "test" / "sub-01_T1w.nii.gz")
    findings = found(tmp_path)
    assert findings["leaking_patients"].names == ("test/sub-01_T1w.nii.gz", "train/sub-01_T1w.nii.gz")
    assert "leaking_copies" not in findings
    shutil.copy(tmp_path / "train" / "sub-00_T1w.nii.gz", tmp_path / "test" / "sub-09_T1w.nii.gz")
    assert found(tmp_path)["leaking_copies"].count == 1


def test_dicom_is_looked_into(tmp_path: Path) -> None:
    for index, name in enumerate(("plain", "burned", "scout", "screen", "gap")):
        write_dicom(scan(index), tmp_path / name, "MR", uid_from=name, patient_id=name)
    edit(tmp_path / "burned", lambda dataset, _: setattr(dataset, "BurnedInAnnotation", "YES"))
    edit(
        tmp_path / "scout",
        lambda dataset, _: setattr(dataset, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]),
    )
    edit(tmp_path / "screen", lambda dataset, _: setattr(dataset, "SOPClassUID", "1.2.840.10008.5.1.4.1.1.7"))
    sorted((tmp_path / "gap").iterdir())[7].unlink()
    write_dicom(scan(5), tmp_path / "two", "CT", uid_from="two", patient_id="two")
    write_dicom(scan(6), tmp_path / "three", "MR", uid_from="three", patient_id="three")
    for path in (tmp_path / "three").iterdir():
        path.rename(tmp_path / "two" / f"x{path.name}")
    findings = found(tmp_path)
    assert findings["burned_in"].names == ("burned",)
    assert findings["localisers"].names == ("scout",)
    assert findings["screen_capture"].names == ("screen",)
    assert findings["several_series"].count == 1
    assert findings["modalities"].option == "modality=MR"
    assert findings["unreadable"].names == ("gap",) and "missing" in findings["unreadable"].title


def test_a_tilted_series_is_told_the_option(tmp_path: Path) -> None:
    write_dicom(scan(0), tmp_path / "tilted", "CT", uid_from="t")

    def tilt(dataset: pydicom.Dataset, index: int) -> None:
        x, y, z = dataset.ImagePositionPatient
        dataset.ImagePositionPatient = [x, float(y) + 0.3 * index, z]

    edit(tmp_path / "tilted", tilt)
    assert found(tmp_path)["unreadable"].option == "allow_tilt=true"


def test_what_no_generator_can_be_made_of(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(b"picture")
    diagnosis = examine(tmp_path, workers=1, progress=False)
    assert not diagnosis.is_usable
    assert [finding.code for finding in diagnosis.findings] == ["nothing_usable"]
    assert "1 pictures" in diagnosis.findings[0].title or "1 picture" in diagnosis.findings[0].title
    _flat(fill(tmp_path, 0))
    diagnosis = examine(tmp_path, workers=1, progress=False)
    assert [finding.code for finding in diagnosis.findings] == ["nothing_usable", "flat"]
    write_nifti(scan(0), tmp_path / "one.nii.gz")
    assert examine(tmp_path, workers=1, progress=False).is_usable


def test_headers_alone(tmp_path: Path) -> None:
    fill(tmp_path)
    _copy(tmp_path)
    _flat(tmp_path)
    diagnosis = examine(tmp_path, workers=1, progress=False, headers_only=True)
    codes = {finding.code for finding in diagnosis.findings}
    assert codes == {"flat", "few_scans"}
    assert diagnosis.facts.scans[0].shape is not None
    assert sorted(diagnosis.facts.scans[-1].spacing_mm or ()) == [1, 1, 1]


def test_usable_is_what_prepare_takes(tmp_path: Path) -> None:
    folder = fill(tmp_path / "scans")
    for plant in (_truncated, _flat, _not_a_number, _label_map):
        plant(folder)
    diagnosis = examine(folder, workers=1, progress=False)
    summary = prepare(folder, tmp_path / "data", PrepareConfig(), workers=1, progress=False)
    assert len(diagnosis.facts.usable) == len(summary.manifest.cases)
    left_out = {scan.name for scan in summary.left_out}
    named = {name for finding in diagnosis.findings for name in finding.names}
    assert left_out <= named


def test_what_a_worker_gives_back_does_not_grow_with_the_scan(tmp_path: Path) -> None:
    sizes = []
    for number, shape in enumerate([(16, 16, 16), (64, 96, 96)]):
        path = tmp_path / f"{number}.nii.gz"
        write_nifti(scan(number, shape), path)
        task = RecordTask(Source(path.name, (path,)), None, PrepareConfig(), tmp_path / "records")
        record, _ = record_scan(task)
        assert isinstance(record, ScanRecord)
        sizes.append(len(pickle.dumps(record)))
    assert max(sizes) < 10_000 and abs(sizes[1] - sizes[0]) < 200


def test_a_second_call_reads_no_voxels_of_known_scans(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(tmp_path / "scans", 3)
    first = examine(tmp_path / "scans", records=tmp_path / "records", workers=1, progress=False)

    def fail(*_: object) -> None:
        raise AssertionError

    monkeypatch.setattr("anatogen.dataset.records.read_source", fail)
    second = examine(tmp_path / "scans", records=tmp_path / "records", workers=1, progress=False)
    assert second == first


def test_the_page_and_the_json_are_written_and_nothing_into_the_scans(tmp_path: Path) -> None:
    folder = fill(tmp_path / "scans")
    _near_copy(folder)
    _bright(folder)
    before = sorted(folder.rglob("*"))
    diagnosis = doctor(folder, tmp_path / "out", progress=False)
    assert isinstance(diagnosis, Diagnosis)
    page = (tmp_path / "out" / "doctor.html").read_text(encoding="utf-8")
    for part in (
        "it stays with you",
        "exclude=",
        "z.nii.gz",
        "outlier: intensity",
        "look-alike",
        "data:image/png",
    ):
        assert part in page
    content = json.loads((tmp_path / "out" / "doctor.json").read_text(encoding="utf-8"))
    assert content["usable"] == 8 and len(content["scans"]) == 8
    assert {entry["code"] for entry in content["findings"]} >= {"near_copies", "intensity_outliers"}
    assert sorted(folder.rglob("*")) == before


def test_folders_that_can_not_be(tmp_path: Path) -> None:
    fill(tmp_path / "scans", 3)
    with pytest.raises(UserError, match="is not a folder"):
        examine(tmp_path / "none", workers=1, progress=False)
    with pytest.raises(UserError, match="lies inside"):
        doctor(tmp_path / "scans", tmp_path / "scans" / "doctor")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="is a file"):
        doctor(tmp_path / "scans", tmp_path / "file")
    prepare(tmp_path / "scans", tmp_path / "data", PrepareConfig(), workers=1, progress=False)
    with pytest.raises(UserError, match="is a prepared dataset"):
        doctor(tmp_path / "data", tmp_path / "out")
    with pytest.raises(UserError, match="did you mean exclude"):
        doctor(tmp_path / "scans", tmp_path / "out", overrides={"exlude": "*T1*"})


def test_far_from_the_median_needs_a_factor_and_rarity() -> None:
    assert far_from_median(np.array([1, 1, 1, 1, 1.4]), 1.5).sum() == 0
    assert far_from_median(np.array([1, 1, 1, 1, 1.6]), 1.5).tolist() == [False] * 4 + [True]
    assert far_from_median(np.array([1, 1, 1, 1, 0.5]), 1.5).tolist() == [False] * 4 + [True]
    assert far_from_median(np.array([1, 2, 3, 4, 5.0]), 1.5).sum() == 0


def test_an_archive_is_looked_into(clean: Path, tmp_path: Path) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "scans"), "gztar", clean))
    diagnosis = doctor(archive, tmp_path / "out", progress=False)
    assert diagnosis.is_usable and not diagnosis.findings
    assert (tmp_path / "out" / "doctor.html").is_file()
