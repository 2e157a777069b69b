"""Images with masks: every layout pairs what belongs together, and says what does not."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from scan_makers import head, tree_bytes

from anatogen.config.resolving import parse_overrides
from anatogen.core.errors import UserError
from anatogen.dataset.manifest import Split
from anatogen.dataset.prepare import PrepareSummary, prepare
from anatogen.dataset.prepare_config import PrepareConfig, prepare_settings
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume


def run(scans: Path, out: Path, *overrides: str) -> PrepareSummary:
    settings = prepare_settings(
        parse_overrides(["percentiles=[0,100]", *overrides], PrepareConfig), recipe="folder_with_masks"
    )
    return prepare(scans, out, settings, workers=1, progress=False)


def mask_of(volume: Volume) -> Volume:
    """1 and 2: a scan's tissue, in two steps of its own intensities."""
    return Volume(np.digitize(volume.array, [200.5, 550.5]).astype(np.float32), volume.affine)


def second_channel(seed: int) -> Volume:
    """Another image on the grid of `head(seed)`."""
    return Volume(head(seed + 50).array, head(seed).affine)


def write_pair(image: Path, mask: Path, seed: int) -> None:
    write_nifti(head(seed), image)
    write_nifti(mask_of(head(seed)), mask)


def decathlon(root: Path) -> None:
    for seed in range(4):
        write_pair(
            root / "imagesTr" / f"la_{seed:03d}.nii.gz", root / "labelsTr" / f"la_{seed:03d}.nii.gz", seed
        )
    write_nifti(head(9), root / "imagesTs" / "la_009.nii.gz")
    (root / "imagesTr" / "._la_000.nii.gz").write_bytes(b"\0\5\x16\7")
    labels = {"0": "background", "1": "muscle", "2": "fat"}
    (root / "dataset.json").write_text(json.dumps({"name": "T", "modality": {"0": "MRI"}, "labels": labels}))


def nnunet_1(root: Path) -> None:
    for seed in range(4):
        case = f"la_{seed:03d}"
        write_pair(root / "imagesTr" / f"{case}_0000.nii.gz", root / "labelsTr" / f"{case}.nii.gz", seed)
        write_nifti(second_channel(seed), root / "imagesTr" / f"{case}_0001.nii.gz")
    write_nifti(head(9), root / "imagesTs" / "la_009_0000.nii.gz")
    (root / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "muscle", "2": "fat"}}))


def nnunet_2(root: Path) -> None:
    nnunet_1(root)
    labels = {"background": 0, "muscle": 1, "fat": 2}
    told = {"channel_names": {"0": "T1", "1": "T2"}, "labels": labels, "file_ending": ".nii.gz"}
    (root / "dataset.json").write_text(json.dumps(told))


def bids(root: Path) -> None:
    for seed in range(4):
        stem = f"sub-{seed // 2 + 1:02d}_ses-{seed % 2}"
        place = f"sub-{seed // 2 + 1:02d}/ses-{seed % 2}/anat"
        image = root / place / f"{stem}_T1w.nii.gz"
        write_pair(image, root / "derivatives" / "manual" / place / f"{stem}_desc-x_dseg.nii.gz", seed)
        write_nifti(second_channel(seed), root / place / f"{stem}_T2w.nii.gz")
        # Of other grids and other images.
        for other in ("space-MNI152_dseg", "run-2_dseg", "desc-brain_mask"):
            other_mask = root / "derivatives" / "fmriprep" / place / f"{stem}_{other}.nii.gz"
            write_nifti(mask_of(head(seed + 70)), other_mask)
    (root / "dataset_description.json").write_text("{}")


def plain(root: Path) -> None:
    for seed in range(4):
        write_pair(root / "images" / f"{seed}.nii.gz", root / "labels" / f"{seed}.nii.gz", seed)


def plain_marked(root: Path) -> None:
    for seed in range(4):
        write_pair(root / "a" / "Images" / f"{seed}.nii", root / "a" / "masks" / f"{seed}_mask.nii.gz", seed)


def beside(root: Path) -> None:
    for seed, ending in enumerate(("_seg", "-mask", "_label", "_segmentation")):
        write_pair(root / f"p{seed}" / "t1.nii.gz", root / f"p{seed}" / f"t1{ending}.nii.gz", seed)


def series(root: Path) -> None:
    for seed in range(4):
        write_dicom(head(seed), root / "images" / f"p{seed}", "MR", uid_from=str(seed), patient_id=f"P{seed}")
        write_nifti(mask_of(head(seed)), root / "labels" / f"p{seed}.nii.gz")


LAYOUTS = [decathlon, nnunet_1, nnunet_2, bids, plain, plain_marked, beside, series]


@pytest.mark.parametrize("write", LAYOUTS, ids=lambda write: write.__name__)
def test_each_image_gets_its_own_mask(tmp_path: Path, write: Callable[[Path], None]) -> None:
    write(tmp_path / "scans")
    summary = run(tmp_path / "scans", tmp_path / "out")
    assert not summary.left_out
    assert len(summary.manifest.cases) == 4
    for case in summary.manifest.cases:
        image = case.intensity.restore(np.load(tmp_path / "out" / case.file).astype(np.float32))
        mask = np.load(tmp_path / "out" / str(case.mask))
        # The mask was made of the scan, and its grid needs no interpolation.
        assert np.array_equal(mask > 0, image > 200)
        assert (mask == 2).sum() == pytest.approx((image > 550).sum(), rel=0.01)
        assert set(np.unique(mask)) == {0, 1, 2}
    labels = {"0": "background", "1": "muscle", "2": "fat"}
    assert summary.manifest.labels == (labels if write in (decathlon, nnunet_1, nnunet_2) else {})
    assert len({case.patient for case in summary.manifest.cases}) == (2 if write is bids else 4)


def test_another_channel_is_chosen_by_include(tmp_path: Path) -> None:
    nnunet_2(tmp_path / "scans")
    first = run(tmp_path / "scans", tmp_path / "a")
    assert any("several channels, and the first is used: 0000 of 4 cases" in line for line in first.decisions)
    assert any("1 images of imagesTs have no masks" in line for line in first.decisions)
    second = run(tmp_path / "scans", tmp_path / "b", 'include=["*_0001.*", "labels*"]')
    assert not second.left_out
    expected = [second_channel(seed).array.max() for seed in range(4)]
    assert [case.intensity.high for case in second.manifest.cases] == expected


def test_labels_of_the_test_set_make_it_the_test_split(tmp_path: Path) -> None:
    nnunet_2(tmp_path / "scans")
    write_nifti(mask_of(head(9)), tmp_path / "scans" / "labelsTs" / "la_009.nii.gz")
    cases = run(tmp_path / "scans", tmp_path / "out").manifest.cases
    assert [case.split for case in cases].count(Split.TEST) == 1
    assert cases[-1].split is Split.TEST
    assert [case.split for case in cases].count(Split.VALIDATION) == 1


def test_regions_of_nnunet_name_their_values(tmp_path: Path) -> None:
    nnunet_2(tmp_path / "scans")
    labels = {"background": 0, "whole": [1, 2], "core": [2]}
    (tmp_path / "scans" / "dataset.json").write_text(json.dumps({"labels": labels}))
    manifest = run(tmp_path / "scans", tmp_path / "out").manifest
    assert manifest.labels == {"0": "background", "1": "whole", "2": "whole and core"}


def test_labels_that_the_description_lacks_are_refused(tmp_path: Path) -> None:
    decathlon(tmp_path / "scans")
    (tmp_path / "scans" / "dataset.json").write_text(json.dumps({"labels": {"0": "background", "1": "a"}}))
    with pytest.raises(UserError, match="unknown label 2: known are 0, 1"):
        run(tmp_path / "scans", tmp_path / "out")
    for text in ("{", '["labels"]', '{"labels": {"a": "b"}}'):
        (tmp_path / "scans" / "dataset.json").write_text(text)
        with pytest.raises(UserError, match=r"dataset\.json can't be read as a description of masks"):
            run(tmp_path / "scans", tmp_path / "out")


def test_what_has_no_partner_is_left_out(tmp_path: Path) -> None:
    plain(tmp_path / "scans")
    (tmp_path / "scans" / "labels" / "1.nii.gz").unlink()
    (tmp_path / "scans" / "images" / "2.nii.gz").unlink()
    write_nifti(mask_of(head(3)), tmp_path / "scans" / "masks" / "3.nii.gz")
    summary = run(tmp_path / "scans", tmp_path / "out")
    reasons = {scan.name: scan.reason for scan in summary.left_out}
    assert reasons.pop("images/1.nii.gz") == "it has no mask"
    assert reasons.pop("labels/2.nii.gz") == "there is no image for this mask"
    assert reasons.pop("images/3.nii.gz") == (
        "it is not clear which image and mask belong together: labels/3.nii.gz, masks/3.nii.gz; "
        "set include or exclude"
    )
    assert not reasons
    assert len(summary.manifest.cases) == 1
    assert not run(tmp_path / "scans", tmp_path / "out", 'exclude=["masks/*", "*/1.*", "*/2.*"]').left_out


def test_a_folder_without_masks_is_refused(tmp_path: Path) -> None:
    write_nifti(head(0), tmp_path / "scans" / "a.nii")
    with pytest.raises(UserError, match="holds no images with masks in a layout that is known"):
        run(tmp_path / "scans", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_users_patients_go_before_the_files(tmp_path: Path) -> None:
    plain(tmp_path / "scans")
    summary = run(tmp_path / "scans", tmp_path / "out", r"patient_pattern=images/([01])")
    assert [scan.name for scan in summary.left_out] == ["images/2.nii.gz", "images/3.nii.gz"]
    assert len({case.patient for case in summary.manifest.cases}) == 2


def test_a_changed_mask_alone_is_noticed(tmp_path: Path) -> None:
    plain(tmp_path / "scans")
    run(tmp_path / "scans", tmp_path / "out")
    before = tree_bytes(tmp_path / "out")
    changed = Volume(mask_of(head(0)).array.clip(max=1), head(0).affine)
    write_nifti(changed, tmp_path / "scans" / "labels" / "0.nii.gz")
    assert not run(tmp_path / "scans", tmp_path / "out").was_complete
    after = tree_bytes(tmp_path / "out")
    assert {name for name in after if after[name] != before[name]} == {"masks/case_00000.npy", "prepare.json"}
