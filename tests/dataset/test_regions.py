"""Parts of scans: the right box, on the right side, in the right place, whatever the file and its axes."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
from itk_reference import itk_image, resampled
from scan_makers import ct_head, head, tree_bytes, world

from anatogen.core.errors import ScanError
from anatogen.dataset import conversion, regions
from anatogen.dataset.prepare import PrepareConfig, PrepareSummary, prepare
from anatogen.dataset.prepare_config import prepare_settings
from anatogen.dataset.regions import Region, cube_shape, find_regions, oriented_box
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.formats import read_scan
from anatogen.io.geometry import Box, axis_codes, box_after_orient, cut, orient
from anatogen.io.nifti import read_nifti, write_nifti
from anatogen.io.npy import write_npy
from anatogen.io.volume import Volume


def run(scans: Path, out: Path, **config: object) -> PrepareSummary:
    return prepare(scans, out, PrepareConfig.model_validate(config), workers=1, progress=False)


def halves(volume: Volume, mask: Volume | None) -> tuple[Box, Box]:
    """Stands in for the search for breasts: the patient's left and right of the middle column."""
    turned = orient(volume, "SPL")
    d, h, w = turned.array.shape
    left = (0, 0, w // 2), (d, h, w - w // 2)
    right = (0, 0, 0), (d, h, w // 2)
    return box_after_orient(left, turned, volume), box_after_orient(right, turned, volume)


@pytest.fixture
def breast_double(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(regions, "breast_boxes", halves)


def marked_head(seed: int = 0) -> Volume:
    """A head with a bright cube in its left, front and upper part, and a smaller one in its right back."""
    volume = head(seed, shape=(24, 28, 26))
    array = np.minimum(volume.array, 800)
    points = world(volume.affine, array.shape)
    middle = points.reshape(3, -1).mean(axis=1)
    x, y, z = points - middle[:, None, None, None]
    array[(np.abs(x + 5) < 2) & (np.abs(y - 4) < 2) & (np.abs(z - 3) < 2)] = 2000
    array[(np.abs(x - 6) < 1.2) & (np.abs(y + 4) < 1.2) & (np.abs(z + 2) < 1.2)] = 1500
    return Volume(array.astype(np.float32), volume.affine)


def marker(array: np.ndarray, affine: object) -> np.ndarray:
    """RAS+ mm of the middle of the brightest cube."""
    bright = array > 1600
    return world(np.asarray(affine), array.shape)[:, bright].mean(axis=1)


@pytest.mark.parametrize("kind", ["nii", "nii.gz", "nrrd", "mha", "dicom"])
@pytest.mark.parametrize("codes", ["SPL", "RAS", "PIR"])
@pytest.mark.parametrize(
    "config",
    [
        {"orientation": "SPL"},
        {"orientation": "RIP", "spacing_mm": (0.9, 0.8, 1.1), "shape": (40, 40, 40)},
        {"orientation": "SPL", "region": "foreground", "cube": True, "fit": "resize", "shape": (32, 32, 32)},
    ],
    ids=["as is", "resampled", "cube"],
)
def test_left_stays_left_in_every_format(tmp_path: Path, kind: str, codes: str, config: dict) -> None:
    import SimpleITK as sitk

    volume = orient(marked_head(), codes)
    scans = tmp_path / "scans"
    scans.mkdir()
    if kind == "dicom":
        write_dicom(volume, scans / "a", "MR", uid_from="a")
    elif kind.startswith("nii"):
        write_nifti(volume, scans / f"a.{kind}")
    else:
        sitk.WriteImage(itk_image(volume.array, volume.affine), scans / f"a.{kind}")
    (case,) = run(scans, tmp_path / "out", percentiles=(0, 100), **config).manifest.cases
    array = case.intensity.restore(np.load(tmp_path / "out" / case.file).astype(np.float32))
    expected = marker(volume.array, volume.affine)
    assert np.linalg.norm(marker(array, case.affine) - expected) < 0.3
    assert axis_codes(np.array(case.affine)) == config["orientation"]
    # The same without the affine: which way the indices of the grid go from the middle of the head.
    turned = orient(Volume(array, np.array(case.affine)), "LAS").array
    bright, whole = (np.argwhere(turned > level).mean(axis=0) for level in (1600, 200))
    assert (bright > whole + 1).all()


def test_npy_is_turned_as_it_is_told(tmp_path: Path) -> None:
    volume = marked_head()
    for codes in ("SPL", "RIP", "LIP"):
        write_npy(orient(volume, codes), tmp_path / codes / "a.npy")
        run(tmp_path / codes, tmp_path / "out" / codes, npy_orientation=codes, orientation="SPL")
    arrays = [np.load(tmp_path / "out" / c / "volumes" / "case_00000.npy") for c in ("SPL", "RIP", "LIP")]
    assert np.array_equal(arrays[0], arrays[1])
    assert np.array_equal(arrays[0], arrays[2])


@pytest.mark.parametrize("codes", ["SPL", "RAS", "PIR"])
def test_halves_are_cases_of_one_patient_with_their_sides(
    tmp_path: Path, breast_double: None, codes: str
) -> None:
    scans = tmp_path / "scans"
    for seed in range(6):
        write_nifti(orient(marked_head(seed), codes), scans / f"{seed}.nii.gz")
    shape = (24, 32, 16)
    summary = run(scans, tmp_path / "out", region="breasts", fit="resize", shape=shape, orientation="SPL")
    cases = summary.manifest.cases
    assert [case.conditions["side"] for case in cases] == ["left", "right"] * 6
    assert [case.patient for case in cases[::2]] == [case.patient for case in cases[1::2]]
    assert [case.split for case in cases[::2]] == [case.split for case in cases[1::2]]
    assert len({case.patient for case in cases}) == 6
    for number, case in enumerate(cases):
        file = scans / f"{number // 2}.nii.gz"
        array = case.intensity.restore(np.load(tmp_path / "out" / case.file).astype(np.float32))
        middle = world(read_nifti(file).affine, read_nifti(file).array.shape)[0].mean()
        x = world(np.array(case.affine), shape)[0]
        assert (x < middle).all() if case.conditions["side"] == "left" else (x > middle).all()
        expected = resampled(file, shape, case.affine, nearest=False)
        # Clipped as the case's window clips; at the midline with what lies beyond it.
        seen = ~np.isnan(expected)
        difference = array - np.clip(expected, case.intensity.low, case.intensity.high)
        assert seen.mean() > 0.8
        assert np.abs(difference[seen]).max() < 1e-3 * (case.intensity.high - case.intensity.low)


def test_half_the_work_is_not_done_twice(
    tmp_path: Path, breast_double: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans = tmp_path / "scans"
    for seed in range(3):
        volume = marked_head(seed)
        write_nifti(volume, scans / f"{seed}.nii.gz")
        mask = (volume.array > 200) + (volume.array > 1000.0)
        write_nifti(Volume(mask.astype(np.float32), volume.affine), scans / f"{seed}_seg.nii.gz")
    settings = prepare_settings(
        {"region": "breasts", "fit": "resize", "shape": (16, 16, 16)}, recipe="folder_with_masks"
    )
    prepare(scans, tmp_path / "whole", settings, workers=1, progress=False)
    expected = tree_bytes(tmp_path / "whole")
    assert len([name for name in expected if name.startswith("masks/")]) == 6
    out = tmp_path / "out"
    # A scan takes five writes: two volumes, two masks and a record. Killed before each of them in turn.
    for num_writes, num_done in [(0, 0), (1, 0), (2, 0), (3, 0), (4, 0), (5, 1), (6, 2)]:
        with monkeypatch.context() as patch:
            remaining = iter(range(num_writes))

            def write(function, *arguments, remaining=remaining):
                if next(remaining, None) is None:
                    raise KeyboardInterrupt
                function(*arguments)

            for name in ("write_array", "write_text"):
                patch.setattr(conversion, name, partial(write, getattr(conversion, name)))
            with pytest.raises(KeyboardInterrupt):
                prepare(scans, out, settings, workers=1, progress=False)
        assert not (out / "dataset.json").exists()
        done = sorted(path.stem for path in (out / ".work" / "conversions").glob("*.json"))
        assert done == [f"case_{2 * number:05d}" for number in range(num_done)]
    finished = {path: path.stat().st_mtime_ns for path in out.glob("*/case_0000[0-3].npy")}
    assert len(finished) == 8
    prepare(scans, out, settings, workers=1, progress=False)
    assert all(path.stat().st_mtime_ns == time for path, time in finished.items())
    assert tree_bytes(out) == expected


def test_a_changed_region_redoes_what_it_must(tmp_path: Path, breast_double: None) -> None:
    scans = tmp_path / "scans"
    for seed in range(3):
        write_nifti(marked_head(seed), scans / f"{seed}.nii.gz")
    common = {"fit": "resize", "shape": (16, 16, 16)}
    run(scans, tmp_path / "out", region="breasts", **common)
    for config in ({"region": "foreground"}, {"region": "foreground", "cube": True}, {"region": "scan"}):
        assert not run(scans, tmp_path / "out", **common, **config).was_complete
        run(scans, tmp_path / "fresh", **common, **config)
        assert tree_bytes(tmp_path / "out") == tree_bytes(tmp_path / "fresh")
        assert run(scans, tmp_path / "out", **common, **config).was_complete


def test_the_foreground_is_the_object_and_of_stripped_brains_what_is_not_zero() -> None:
    noisy = np.random.default_rng(0).uniform(1, 30, (20, 30, 40)).astype(np.float32)
    noisy[4:15, 7:21, 9:33] += 500
    noisy[1, 1, 1] = 900  # a bright speck is not the object
    (region,) = find_regions(Volume(noisy, np.eye(4)), "foreground", "MR", None)
    assert (region.start, region.shape) == ((4, 7, 9), (11, 14, 24))
    stripped = np.zeros((20, 30, 40), np.float32)
    stripped[4:15, 7:21, 9:33] = 30  # dim tissue around a bright core belongs to it
    stripped[8:10, 10:15, 12:20] = 500
    stripped[1, 1, 1] = 20
    (region,) = find_regions(Volume(stripped, np.eye(4)), "foreground", "MR", None)
    assert (region.start, region.shape) == ((4, 7, 9), (11, 14, 24))
    (region,) = find_regions(ct_head(), "foreground", "CT", None)
    body = np.argwhere(ct_head().array > -500)
    assert region.start == tuple(body.min(axis=0))
    assert region.shape == tuple(np.ptp(body, axis=0) + 1)


def test_a_region_too_thin_is_refused() -> None:
    flat = np.ones((20, 20, 20), np.float32) + np.arange(20, dtype=np.float32)
    flat[5:7] = 900
    with pytest.raises(ScanError, match=r"foreground region is only \(2, 20, 20\) voxels"):
        find_regions(Volume(flat, np.eye(4)), "foreground", "MR", None)


def test_a_cube_has_one_length_around_its_region() -> None:
    assert cube_shape((10, 20, 30), (1.0, 1.0, 1.0)) == (30, 30, 30)
    assert cube_shape((32, 100, 90), (3.0, 0.7, 0.7)) == (32, 138, 138)
    scan = Volume(np.zeros((10, 21, 15), np.float32), np.diag([3, 1, 2, 1.0]))  # RAS
    region = Region(start=(2, 3, 4), shape=(6, 10, 5))
    assert oriented_box(region, scan, scan, cube=False) == ((2, 3, 4), (6, 10, 5))
    assert oriented_box(region, scan, scan, cube=True) == ((2, -1, 2), (6, 18, 9))
    # From the other end of each axis.
    assert oriented_box(region, scan, orient(scan, "IPL"), cube=False) == ((6, 8, 2), (5, 10, 6))
    part = cut(scan, ((2, 3, 4), (6, 10, 5)))
    assert np.allclose(part.affine @ [0, 0, 0, 1], scan.affine @ [2, 3, 4, 1])


def test_a_cubed_brain_is_isotropic_and_whole(tmp_path: Path) -> None:
    volume = head(0, shape=(30, 40, 36))
    stripped = Volume(np.where(volume.array > 200, volume.array, 0).astype(np.float32), volume.affine)
    write_nifti(orient(stripped, "RAS"), tmp_path / "scans" / "a.nii.gz")
    summary = run(
        tmp_path / "scans", tmp_path / "out", region="foreground", cube=True, fit="resize",
        shape=(64, 64, 64), percentiles=(0, 100), orientation="SPL",
    )  # fmt: skip
    (case,) = summary.manifest.cases
    spacing = np.linalg.norm(np.array(case.affine)[:3, :3], axis=0)
    assert np.allclose(spacing, spacing[0])
    assert np.allclose(spacing, summary.manifest.grid.spacing_mm)
    region = find_regions(stripped, "foreground", "MR", None)[0]
    assert spacing[0] == pytest.approx(max(region.shape) / 64)
    array = np.load(tmp_path / "out" / case.file)
    faces = [np.take(array, index, axis=axis).max() for axis in range(3) for index in (0, -1)]
    assert max(faces) > -1  # it fills the cube along its longest axis
    source = itk_image(stripped.array, stripped.affine)
    expected = resampled(source, array.shape, case.affine, nearest=False)
    seen = ~np.isnan(expected)
    restored = case.intensity.restore(array.astype(np.float32))
    assert np.abs(restored[seen] - expected[seen]).max() < 1e-3 * case.intensity.high


WINDOW = (-1000.0, 1000.0)


@pytest.mark.parametrize("written", ["a.nii.gz", "a.nii", "dicom"])
def test_hounsfield_units_come_back_from_prepare_and_export(tmp_path: Path, written: str) -> None:
    """A phantom of blocks of known HU: in at one end, out at the other, at the same place."""
    inserts = [-900.0, -100.0, 0.0, 40.0, 300.0, 950.0]
    array = np.full((26, 40, 48), -1000, np.float32)
    array[2:-2, 4:-4, 4:-4] = 20
    for number, value in enumerate(inserts):
        array[6:20, 8:32, 6 + 6 * number : 11 + 6 * number] = value
    affine = np.array([[0, 0, -0.9, 80], [0, -0.8, 0, 120], [2.0, 0, 0, -700], [0, 0, 0, 1.0]])
    phantom = Volume(array, affine)
    write_dicom(orient(phantom, "IAR"), tmp_path / "scans" / "a", "CT", uid_from="a")
    (case,) = run(
        tmp_path / "scans", tmp_path / "out", window_hu=WINDOW, spacing_mm=(1.7, 0.75, 0.7),
        shape=(32, 48, 64), orientation="SPL",
    ).manifest.cases  # fmt: skip
    prepared = np.load(tmp_path / "out" / case.file).astype(np.float32)
    restored = Volume(case.intensity.restore(prepared), np.array(case.affine))
    if written == "dicom":
        write_dicom(restored, tmp_path / "export", "CT", uid_from="b")
        again = read_scan(tmp_path / "export")
    else:
        write_nifti(restored, tmp_path / written)
        again = read_scan(tmp_path / written)
    for number, value in enumerate(inserts):
        place = phantom.affine @ [12.6, 20.2, 8 + 6 * number, 1]
        index = np.rint(np.linalg.solve(again.affine, place))[:3].astype(int)
        # Half a step of float16 below 1 is 0.25 HU of this window, and DICOM holds whole numbers or steps.
        assert again.array[tuple(index)] == pytest.approx(value, abs=0.8)
    expected = resampled(itk_image(array, affine), prepared.shape, case.affine, nearest=False)
    seen = ~np.isnan(expected)
    turned = orient(again, "SPL")
    assert np.abs(turned.array[seen] - expected[seen]).max() < 0.8
