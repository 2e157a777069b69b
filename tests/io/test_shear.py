"""Scans whose axes lean against one another: in every format refused, or brought to perpendicular axes."""

from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk
from scan_makers import ct_head, oblique_affine, pattern, voxels_at, world

from anatogen.core.errors import ScanError
from anatogen.dataset.prepare import PrepareConfig, prepare
from anatogen.io.formats import Reading, read_scan
from anatogen.io.nifti import write_nifti
from anatogen.io.shear import straightened
from anatogen.io.volume import Volume

ALLOWED = Reading(allow_tilt=True)
SHAPE = (14, 40, 36)


def sheared(seed: int, leans: dict[tuple[int, int], float]) -> np.ndarray:
    """An oblique affine whose axis (first of each pair) leans towards another one, in voxels a step."""
    affine = oblique_affine(seed)
    straight = affine.copy()
    for (axis, towards), lean in leans.items():
        affine[:3, axis] += lean * straight[:3, towards]
    return affine


def save(volume: Volume, path: Path) -> None:
    """As any program would: ITK's matrix of directions may be sheared."""
    if path.name.endswith((".nii", ".nii.gz")):
        write_nifti(volume, path)
        return
    image = sitk.GetImageFromArray(volume.array)
    lps = np.diag([-1.0, -1, 1, 1]) @ volume.affine
    image.SetSpacing(volume.spacing_mm[::-1])
    image.SetDirection((lps[:3, :3] / volume.spacing_mm)[:, ::-1].ravel())
    image.SetOrigin(lps[:3, 3])
    sitk.WriteImage(image, path)


def ball(affine: np.ndarray, shape: tuple[int, int, int], radius_mm: float) -> Volume:
    places = world(affine, shape)
    middle = places.reshape(3, -1).mean(axis=1).reshape(3, 1, 1, 1)
    inside = ((places - middle) ** 2).sum(axis=0) < radius_mm**2
    noise = np.random.default_rng(0).normal(0, 5, shape)
    return Volume((np.where(inside, 50.0, -1000.0) + noise).astype(np.float32), affine)


def covariance_mm(volume: Volume) -> np.ndarray:
    """Of the places of a ball's voxels along (D, H, W), as someone sees it who knows its spacing alone."""
    inside = np.argwhere(volume.array > -500) * volume.spacing_mm
    return np.cov(inside.T)


@pytest.mark.parametrize("ending", [".nii", ".nii.gz", ".nrrd", ".mha", ".mhd"])
def test_gantry_tilt_is_refused_or_straightened_in_every_format(tmp_path: Path, ending: str) -> None:
    """A ball was skewed: 20 degrees were taken for a spacing of 2.66 mm."""
    affine = np.array([[0.0, 0, -1, 20], [0, -1, 0, 30], [2.5, 0, 0, -10], [0, 0, 0, 1]])
    affine[1, 0] = 2.5 * np.tan(np.deg2rad(20))
    save(ball(affine, (20, 60, 48), 18), tmp_path / f"scan{ending}")
    with pytest.raises(ScanError, match=r"axes are sheared by 20.0 degrees \(gantry tilt.*set allow_tilt"):
        read_scan(tmp_path / f"scan{ending}")
    straight = read_scan(tmp_path / f"scan{ending}", ALLOWED)
    np.testing.assert_allclose(straight.spacing_mm, (2.5, 1, 1), atol=1e-5)
    # Of a ball it is a fifth of the squared radius in all directions.
    np.testing.assert_allclose(covariance_mm(straight), 18**2 / 5 * np.eye(3), atol=2)


LEANS = {
    "slices": {(0, 1): 1.1},
    "slices, both ways": {(0, 1): -0.7, (0, 2): 0.9},
    "rows": {(1, 2): 0.3},
    "columns": {(2, 1): -0.2},
    "another slice axis": {(1, 0): 0.1, (1, 2): 0.4},
    "all": {(0, 1): 0.5, (0, 2): -0.6, (1, 2): 0.2},
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("leans", LEANS.values(), ids=LEANS)
def test_a_straightened_scan_is_in_its_place(leans: dict[tuple[int, int], float], seed: int) -> None:
    affine = sheared(seed, leans)
    scan = Volume(pattern(world(affine, SHAPE)), affine)
    straight = straightened(scan)
    axes = straight.affine[:3, :3] / np.array(straight.spacing_mm)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=2e-4)
    places = world(straight.affine, straight.array.shape)
    index = voxels_at(affine, places)
    limits = np.reshape(SHAPE, (3, 1, 1, 1)) - 1
    inside = (index > 1e-6).all(axis=0) & (index < limits - 1e-6).all(axis=0)
    assert inside.sum() > 0.8 * np.prod(np.array(SHAPE) - 2)
    assert np.abs(straight.array - pattern(places))[inside].max() < 5e-3
    outside = (index < -1e-6).any(axis=0) | (index > limits + 1e-6).any(axis=0)
    assert (straight.array[outside] == scan.array.min()).all()


@pytest.mark.parametrize("axis, other", [(0, 1), (0, 2), (1, 2)])
@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd"])
def test_half_a_voxel_over_the_scan_is_rounding(tmp_path: Path, ending: str, axis: int, other: int) -> None:
    for share, is_refused in ((0.45, False), (0.7, True)):
        affine = sheared(1, {(axis, other): share / (SHAPE[axis] - 1)})
        volume = Volume(pattern(world(affine, SHAPE)), affine)
        save(volume, tmp_path / f"scan{ending}")
        if is_refused:
            with pytest.raises(ScanError, match="sheared"):
                read_scan(tmp_path / f"scan{ending}")
        else:
            for reading in (Reading(), ALLOWED):
                assert np.array_equal(read_scan(tmp_path / f"scan{ending}", reading).array, volume.array)


def test_a_straightened_label_map_holds_its_labels_and_no_others(tmp_path: Path) -> None:
    labels = np.zeros(SHAPE, np.float32)
    labels[3:11, 8:30, 8:30] = np.random.default_rng(0).choice([3, 7, 2035, 12175], (8, 22, 22))
    affine = sheared(0, {(0, 1): 1.3})
    write_nifti(Volume(labels, affine), tmp_path / "scan.nii", np.int16)
    straight = read_scan(tmp_path / "scan.nii", ALLOWED)
    assert set(np.unique(straight.array)) == {0, 3, 7, 2035, 12175}
    for value in (3, 7, 2035, 12175):
        assert np.count_nonzero(straight.array == value) == np.count_nonzero(labels == value)


def test_prepare_treats_nifti_with_tilt_as_dicom(tmp_path: Path) -> None:
    """With its mask, which is straightened to the scan's own grid, and with what an earlier call left."""
    pairs = tmp_path / "scans"
    (pairs / "images").mkdir(parents=True)
    (pairs / "labels").mkdir()
    for seed in range(2):
        volume = ct_head(seed)
        affine = volume.affine.copy()
        affine[:3, 0] += 0.3 * seed * affine[:3, 1]
        write_nifti(Volume(volume.array, affine), pairs / "images" / f"{seed}.nii.gz")
        body = (volume.array > -500).astype(np.float32)
        write_nifti(Volume(body, affine), pairs / "labels" / f"{seed}.nii.gz", np.uint8)
    records = tmp_path / "records"

    def prepared(**options: bool) -> tuple[int, list[str]]:
        config = PrepareConfig(recipe="folder_with_masks", **options)
        out = tmp_path / "out"
        summary = prepare(pairs, out, config, records=records, workers=1, progress=False)
        return len(summary.manifest.cases), [scan.reason for scan in summary.left_out]

    num, reasons = prepared()
    assert num == 1 and len(reasons) == 1 and "sheared by 16.7 degrees" in reasons[0]
    assert prepared(allow_tilt=True) == (2, [])
    mask = np.load(tmp_path / "out" / "masks" / "case_00001.npy")
    volume = np.load(tmp_path / "out" / "volumes" / "case_00001.npy")
    assert set(np.unique(mask)) == {0, 1}
    assert volume[mask == 1].mean() > volume[mask == 0].mean() + 0.5
    assert prepared()[0] == 1
