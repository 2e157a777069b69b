"""One survey for doctor, plan and prepare: what one of them decoded, no other decodes again."""

import os
from pathlib import Path

import numpy as np
import pytest
from decodes import count_decodes, count_hashes
from scan_makers import head, tree_bytes

from anatogen.api import scans as api
from anatogen.core.errors import UserError
from anatogen.dataset.discover import Source
from anatogen.dataset.prepare import prepare
from anatogen.dataset.prepare_config import PrepareConfig, prepare_settings
from anatogen.dataset.records import RecordTask, RefusedRecord, ScanRecord, record_scan
from anatogen.doctor.examine import examine
from anatogen.doctor.page import write_doctor_page
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.geometry import Box
from anatogen.io.nifti import write_nifti
from anatogen.io.npy import write_npy
from anatogen.io.volume import Volume
from anatogen.planning.fingerprint import take_fingerprint


def labels(volume: Volume) -> Volume:
    return Volume((volume.array > 400).astype(np.float32), volume.affine)


@pytest.fixture
def scans(tmp_path: Path) -> Path:
    """Three scans in three formats, each with a mask."""
    folder = tmp_path / "scans"
    write_nifti(head(0), folder / "a.nii.gz")
    write_npy(head(1), folder / "b.npy")
    write_dicom(head(2), folder / "c", "MR", uid_from="c", patient_id="c")
    write_nifti(labels(head(0)), folder / "a_seg.nii.gz")
    write_npy(labels(head(1)), folder / "b_seg.npy")
    write_nifti(labels(head(2)), folder / "c_seg.nii.gz")
    return folder


ALL = {"a.nii.gz", "b.npy", "c", "a_seg.nii.gz", "b_seg.npy", "c_seg.nii.gz"}


@pytest.mark.parametrize("recipe", ["folder", "folder_with_masks"])
def test_doctor_decodes_each_scan_and_mask_once_with_its_page(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recipe: str
) -> None:
    decodes = count_decodes(monkeypatch)
    diagnosis = examine(scans, prepare_settings(recipe=recipe), workers=1, progress=False)
    write_doctor_page(diagnosis, tmp_path / "doctor")
    assert len(diagnosis.shown) == 3
    assert decodes == dict.fromkeys(ALL, 1)


def test_prepare_alone_decodes_to_look_and_to_convert(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decodes = count_decodes(monkeypatch)
    config = prepare_settings(recipe="folder_with_masks")
    prepare(scans, tmp_path / "data", config, workers=1, progress=False)
    assert decodes == dict.fromkeys(ALL, 2)
    assert {path.name for path in (tmp_path / "data").iterdir()} == {
        "dataset.json", "left_out.json", "masks", "prepare.json", "volumes",
    }  # fmt: skip


def test_records_of_the_doctor_serve_plan_and_prepare_and_change_no_byte(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, records = prepare_settings(recipe="folder_with_masks"), tmp_path / "records"
    prepare(scans, tmp_path / "alone", config, workers=1, progress=False)
    decodes = count_decodes(monkeypatch)
    examine(scans, config, records=records, workers=1, progress=False)
    assert decodes == dict.fromkeys(ALL, 1)
    found = take_fingerprint(scans, config, records=records, workers=1, progress=False)
    assert decodes == dict.fromkeys(ALL, 1)
    prepare(scans, tmp_path / "data", config, records=records, workers=1, progress=False)
    assert decodes == dict.fromkeys(ALL, 2)
    assert tree_bytes(tmp_path / "data") == tree_bytes(tmp_path / "alone")
    assert take_fingerprint(scans, config, workers=1, progress=False) == found


def test_doctor_and_then_prepare_with_its_records_decode_each_scan_once_each(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("anatogen.dataset.workers.available_cores", lambda: 1)
    recipe = "folder_with_masks"
    decodes = count_decodes(monkeypatch)
    api.doctor(scans, tmp_path / "doctor", recipe=recipe, progress=False)
    assert decodes == dict.fromkeys(ALL, 1)
    examined = tmp_path / "doctor" / ".examined"
    api.prepare(scans, tmp_path / "data", recipe=recipe, records=examined, progress=False)
    assert decodes == dict.fromkeys(ALL, 2)
    # And the other way round.
    api.doctor(scans, recipe=recipe, records=examined, progress=False)
    assert decodes == dict.fromkeys(ALL, 2)


def test_files_are_hashed_once_while_they_stay_as_they_are(
    scans: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, records = prepare_settings(recipe="folder_with_masks"), tmp_path / "records"
    hashes = count_hashes(monkeypatch)
    examine(scans, config, records=records, workers=1, progress=False)
    files = {path.name for path in scans.rglob("*") if path.is_file()}
    assert hashes == dict.fromkeys(files, 1)
    take_fingerprint(scans, config, records=records, workers=1, progress=False)
    prepare(scans, tmp_path / "data", config, records=records, workers=1, progress=False)
    assert hashes == dict.fromkeys(files, 1)
    # Another scan in its place is seen, though size and time of writing are the same.
    before = (scans / "b.npy").stat()
    write_npy(head(7), scans / "b.npy")
    os.utime(scans / "b.npy", ns=(before.st_atime_ns, before.st_mtime_ns))
    assert (scans / "b.npy").stat().st_size == before.st_size
    examine(scans, config, records=records, workers=1, progress=False)
    assert hashes == dict.fromkeys(files, 1) | {"b.npy": 2}


def test_records_may_not_lie_among_the_scans(scans: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="choose another folder for records"):
        examine(scans, records=scans / "records", workers=1, progress=False)
    assert not (scans / "records").exists()


def test_records_tell_no_names(scans: Path, tmp_path: Path) -> None:
    examine(scans, PrepareConfig(), records=tmp_path / "records", workers=1, progress=False)
    for path in (tmp_path / "records").iterdir():
        assert path.name.split(".")[0].isalnum() and len(path.name.split(".")[0]) == 64
        assert not any(word in path.read_bytes() for word in (b".nii", b".npy", b"a_seg"))


def record(scan: Volume | Path, folder: Path, **settings: object) -> ScanRecord | RefusedRecord:
    path = scan if isinstance(scan, Path) else folder / "scan.nii.gz"
    if isinstance(scan, Volume):
        write_nifti(scan, path)
    config = PrepareConfig.model_validate(settings)
    return record_scan(RecordTask(Source(path.name, (path,)), None, config, folder / "records"))[0]


def test_settings_that_measurements_do_not_depend_on_find_the_same_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = record(head(0), tmp_path, region="foreground")
    decodes = count_decodes(monkeypatch)
    path = tmp_path / "scan.nii.gz"
    for settings in (
        {"spacing_mm": 2, "shape": (16, 16, 16), "exclude": ["x"], "seed": 3},
        {"npy_spacing_mm": (3, 1, 1)},
        # What a scan tells of its modality by itself is found again when it is told.
        {"modality": "MR"},
    ):
        assert record(path, tmp_path, region="foreground", **settings) == first
    assert not decodes
    for settings in (
        {"percentiles": (1, 99)},
        {"allow_tilt": True},
        {"region": "scan"},
        {"region": "foreground", "modality": "CT"},
    ):
        other = record(path, tmp_path, **settings)
        assert isinstance(other, ScanRecord | RefusedRecord) and other != first
    assert decodes == {"scan.nii.gz": 4}


def test_a_scan_that_can_not_be_used_is_not_decoded_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = record(labels(head(0)), tmp_path)
    assert isinstance(first, RefusedRecord) and first.num_labels == 2
    decodes = count_decodes(monkeypatch)
    assert record(tmp_path / "scan.nii.gz", tmp_path) == first
    assert not decodes


def test_both_breasts_of_a_scan_are_cut_from_one_decoding(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def halves(volume: Volume, mask: Volume | None) -> tuple[Box, Box]:
        d, h, w = volume.array.shape
        return ((0, 0, w // 2), (d, h, w - w // 2)), ((0, 0, 0), (d, h, w // 2))

    monkeypatch.setattr("anatogen.dataset.regions.breast_boxes", halves)
    write_nifti(head(0), tmp_path / "scans" / "a.nii.gz")
    write_nifti(labels(head(0)), tmp_path / "scans" / "a_seg.nii.gz")
    decodes = count_decodes(monkeypatch)
    config = prepare_settings({"region": "breasts"}, recipe="folder_with_masks")
    summary = prepare(tmp_path / "scans", tmp_path / "data", config, workers=1, progress=False)
    assert len(summary.manifest.cases) == 2
    assert decodes == {"a.nii.gz": 2, "a_seg.nii.gz": 2}
