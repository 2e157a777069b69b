"""Whole preparations by recipe: geometry against SimpleITK and nibabel, sides, Hounsfield units, patients."""

import json
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk
from download_makers import (
    PROCESSED,
    adni_dicom,
    adni_nifti,
    brain,
    chest_ct,
    duke_download,
    duke_series,
    lidc_series,
    millimetres,
    torso,
)

from anatogen.config.resolving import parse_overrides
from anatogen.core.errors import UserError
from anatogen.dataset.breasts import breast_boxes
from anatogen.dataset.manifest import Case, load_manifest
from anatogen.dataset.prepare import PrepareSummary, prepare
from anatogen.dataset.prepare_config import PrepareConfig, prepare_settings
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.formats import read_scan
from anatogen.io.geometry import cut, orient
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume

# For tests of what does not depend on the grid.
SMALL = {
    "adni": ["where.diagnosis=null", "shape=[32, 32, 32]"],
    "duke": ["shape=[24, 64, 64]"],
    "lidc": ["shape=[64, 64, 64]", "spacing_mm=5"],
}
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])


def run(download: Path, out: Path, recipe: str, *overrides: str) -> PrepareSummary:
    settings = prepare_settings(parse_overrides(overrides, PrepareConfig), recipe=recipe)
    return prepare(download, out, settings, workers=1, progress=False)


def image_of(path: Path) -> sitk.Image:
    """A scan as SimpleITK and nibabel read it; slices ordered by position, not by name."""
    if path.is_dir():
        reader = sitk.ImageSeriesReader()
        reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(path)))
        return sitk.Cast(reader.Execute(), sitk.sitkFloat64)
    loaded = nib.load(path)
    image = sitk.GetImageFromArray(np.asarray(loaded.dataobj, dtype=np.float64).T)
    return placed(image, loaded.affine)


def placed(image: sitk.Image, affine: np.ndarray) -> sitk.Image:
    """The image with a geometry: affine of (i, j, k) to RAS+ mm."""
    affine = LPS @ affine
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    image.SetOrigin(affine[:3, 3].tolist())
    return image


def resampled(image: sitk.Image, case: Case, shape: tuple[int, ...], background: float) -> np.ndarray:
    """The image at the voxels of a prepared case, (D, H, W), normalised; smoothed where it gets coarser."""
    affine = np.array(case.affine)[:, [2, 1, 0, 3]]
    grid = placed(sitk.Image([int(size) for size in shape[::-1]], sitk.sitkFloat64), affine)
    # Which axis of the scan is nearest to each axis of the grid, and how much coarser that is.
    turn = np.reshape(grid.GetDirection(), (3, 3)).T @ np.reshape(image.GetDirection(), (3, 3))
    step = np.array(grid.GetSpacing())[np.abs(turn).argmax(axis=0)] / np.array(image.GetSpacing())
    sigma = np.sqrt(np.maximum(step**2 - 1, 0)) / 2.354820045 * (step >= 1.01)
    if sigma.any():
        array = sitk.GetArrayFromImage(image)
        for axis, width in enumerate(sigma[::-1]):
            array = blurred(array, axis, width)
        smooth = sitk.GetImageFromArray(array)
        smooth.CopyInformation(image)
        image = smooth
    values = sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, background, sitk.sitkFloat64)
    low, high = case.intensity.low, case.intensity.high
    return np.clip((sitk.GetArrayFromImage(values) - low) / (high - low) * 2 - 1, -1, 1)


def blurred(array: np.ndarray, axis: int, sigma: float) -> np.ndarray:
    """Convolved with a sampled Gaussian; beyond the edges the outermost values go on."""
    reach = int(4 * sigma + 0.5)
    if reach == 0:
        return array
    weights = np.exp(-0.5 * (np.arange(-reach, reach + 1) / sigma) ** 2)
    padding = [(reach, reach) if number == axis else (0, 0) for number in range(3)]
    wide = np.moveaxis(np.pad(array, padding, mode="edge"), axis, 0)
    size = array.shape[axis]
    total = sum(weight * wide[start : start + size] for start, weight in enumerate(weights / weights.sum()))
    return np.moveaxis(total, 0, axis)


def assert_same(expected: np.ndarray, found: np.ndarray, margin: tuple[int, int, int]) -> None:
    """Equal but for float16, inside the margin in which the edge of a region is felt."""
    inside = tuple(slice(width, -width) for width in margin)
    assert np.abs(expected - found)[inside].max() < 2e-3


def prepared(out: Path, case: Case) -> np.ndarray:
    return np.load(out / case.file).astype(np.float64)


def bright_mm(array: np.ndarray, affine: np.ndarray, threshold: float) -> np.ndarray:
    points = millimetres(Volume(array.astype(np.float32), np.array(affine)))
    return points[:, array > threshold].mean(axis=1)


# --- Geometry


def test_adni_is_the_brains_box_in_a_cube_of_64_voxels(tmp_path: Path) -> None:
    date = "2006-04-18_08_20_30.0"
    coronal = orient(brain(3, (60, 64, 60), (3.0, 3.0, 3.0)), "PIL")
    paths = [
        adni_nifti(tmp_path, orient(brain(1), "RIP"), "002_S_0001", PROCESSED, date, 1, 1),
        adni_nifti(tmp_path, brain(2, (70, 90, 80), (2.6, 2.2, 2.0)), "002_S_0002", "MPRAGE", date, 2, 2),
        adni_dicom(tmp_path, coronal, "002_S_0003", "MP-RAGE", date, 3, 3),
    ]
    summary = run(tmp_path, tmp_path.with_name("out"), "adni", "where.diagnosis=null")
    assert summary.manifest.grid.shape == (64, 64, 64)
    assert len(summary.manifest.cases) == 3
    for case, path in zip(summary.manifest.cases, paths, strict=True):
        image = image_of(path)
        array = sitk.GetArrayFromImage(image)
        inside = np.argwhere(array > 0)[:, ::-1]
        start, size = inside.min(axis=0), np.ptp(inside, axis=0) + 1
        spacing = np.array(image.GetSpacing())
        assert_same(resampled(image, case, (64, 64, 64), 0.0), prepared(summary.folder, case), (3, 3, 3))
        # A cube: equally long each way, to less than a voxel of the scan; its middle is the brain's.
        lengths = np.linalg.norm(np.array(case.affine)[:3, :3], axis=0) * 64
        assert np.ptp(lengths) < spacing.max()
        middle = (np.array(case.affine) @ [31.5, 31.5, 31.5, 1])[:3]
        centre = LPS[:3, :3] @ image.TransformContinuousIndexToPhysicalPoint(
            (start + (size - 1) / 2).tolist()
        )
        assert np.abs(middle - centre).max() <= spacing.max() / 2 + 1e-3


def test_duke_halves_are_the_scan_at_their_places(tmp_path: Path) -> None:
    download = tmp_path / "download"
    volumes = [torso(), torso((45, 80, 100), (3.3, 3.4, 3.6), left_mm=45, right_mm=70, seed=2)]
    for number, volume in enumerate(volumes, start=1):
        duke_series(download, number, "3.000000-ax t1-1", volume, "ax t1", shuffled=True)
    summary = run(download, tmp_path / "out", "duke")
    cases = summary.manifest.cases
    assert summary.manifest.grid.shape == (32, 256, 256)
    assert [case.conditions["side"] for case in cases] == ["left", "right"] * 2
    for number, case in enumerate(cases):
        image = image_of(next((download / "Duke-Breast-Cancer-MRI").glob(f"*_{number // 2 + 1:03d}/*/*")))
        volume = volumes[number // 2]
        half = orient(cut(volume, breast_boxes(volume)[number % 2]), "SPL")
        expected = resampled(image, case, (32, 256, 256), case.intensity.low)
        assert_same(expected, prepared(summary.folder, case), (4, 10, 10))
        # The grid covers the half's voxels with their edges, no more.
        covered = np.array([np.array(case.affine) @ [*end, 1] for end in ((-0.5,) * 3, (31.5, 255.5, 255.5))])
        edges = [half.affine @ [*end, 1] for end in ((-0.5,) * 3, np.array(half.array.shape) - 0.5)]
        np.testing.assert_allclose(covered, edges, atol=1e-3)


def test_lidc_is_the_central_320_mm_at_2_5_mm(tmp_path: Path) -> None:
    download = tmp_path / "download"
    shapes = [
        ((36, 60, 64), (7.0, 6.0, 6.5)),  # interpolated, padded above and below
        ((50, 100, 104), (5.0, 4.0, 4.0)),  # larger than the grid: cropped
        ((80, 100, 104), (1.8, 2.0, 2.0)),  # finer: smoothed
    ]
    folders = [
        lidc_series(download, number, "study", f"{number}.000000-NA-1", chest_ct(*shape), shuffled=True)
        for number, shape in enumerate(shapes, start=1)
    ]
    summary = run(download, tmp_path / "out", "lidc")
    for case, folder in zip(summary.manifest.cases, folders, strict=True):
        image = image_of(folder)
        expected = resampled(image, case, (128, 128, 128), -1000.0)
        difference = np.abs(expected - prepared(summary.folder, case))
        # Outermost slices of the scan: half of a voxel there is beyond its last centre.
        assert np.quantile(difference, 0.999) < 2e-3
        assert difference.max() < 0.02
        np.testing.assert_allclose(np.linalg.norm(np.array(case.affine)[:3, :3], axis=0), 2.5)
        middle = (np.array(case.affine) @ [63.5, 63.5, 63.5, 1])[:3]
        centre = image.TransformContinuousIndexToPhysicalPoint(((np.array(image.GetSize()) - 1) / 2).tolist())
        # To half a voxel, where sizes in voxels are odd.
        assert np.abs(middle - LPS[:3, :3] @ centre).max() <= 1.25 + 1e-6


# --- Sides


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
def test_adni_keeps_left_left(tmp_path: Path, kind: str) -> None:
    codes = ("SPL", "RIP", "LAS")
    for number, code in enumerate(codes, start=1):
        volume = orient(brain(number), code)
        subject, date = f"002_S_000{number}", "2006-04-18_08_20_30.0"
        make = adni_nifti if kind == "nifti" else adni_dicom
        make(tmp_path / "in", volume, subject, "MP-RAGE", date, number, number)
    summary = run(tmp_path / "in", tmp_path / "out", "adni", "where.diagnosis=null")
    assert len(summary.manifest.cases) == 3
    for number, case in enumerate(summary.manifest.cases, start=1):
        array = prepared(summary.folder, case)
        place = bright_mm(array, np.array(case.affine), 0.9)
        wanted = bright_mm(brain(number).array, brain(number).affine, 1000)
        np.testing.assert_allclose(place, wanted, atol=2.5)
        assert np.argwhere(array > 0.9)[:, 2].mean() > 36  # columns grow towards the left


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
def test_duke_keeps_left_left(tmp_path: Path, kind: str) -> None:
    download = tmp_path / "in"
    for number, code in enumerate(("SPL", "IAR", "PIL"), start=1):
        volume = orient(torso(seed=number), code)
        if kind == "dicom":
            duke_series(download, number, "3.000000-ax t1-1", volume, "ax t1")
        else:
            folder = download / f"Breast_MRI_{number:03d}"
            folder.mkdir(parents=True)
            write_nifti(volume, folder / "T1_non_fs.nii.gz")
    summary = run(download, tmp_path / "out", "duke", *SMALL["duke"])
    assert len(summary.manifest.cases) == 6
    wanted = bright_mm(torso().array, torso().affine, 1200)
    for case in summary.manifest.cases:
        array = case.intensity.restore(np.load(summary.folder / case.file).astype(np.float32))
        bright = array > 1100
        assert bright.any() == (case.conditions["side"] == "left")
        if bright.any():
            np.testing.assert_allclose(bright_mm(array, np.array(case.affine), 1100), wanted, atol=2)


def test_each_half_of_duke_goes_from_its_own_minimum_to_its_own_maximum(tmp_path: Path) -> None:
    wanted = []
    for number in (1, 2, 3):
        path = tmp_path / "in" / f"Breast_MRI_{number:03d}" / "T1_non_fs.nii.gz"
        path.parent.mkdir(parents=True)
        write_nifti(torso(seed=number), path)
        scan = read_scan(path)
        for start, shape in breast_boxes(scan, None):
            stop = np.add(start, shape)
            half = scan.array[tuple(slice(first, last) for first, last in zip(start, stop, strict=True))]
            wanted.append((float(half.min()), float(half.max())))
    cases = run(tmp_path / "in", tmp_path / "out", "duke", *SMALL["duke"]).manifest.cases
    assert sorted((case.intensity.low, case.intensity.high) for case in cases) == sorted(wanted)
    assert len(set(wanted)) == 6


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
def test_lidc_keeps_left_left_and_hounsfield_units(tmp_path: Path, kind: str) -> None:
    download = tmp_path / "in"
    for number, code in enumerate(("SPL", "IAR", "SAL"), start=1):
        volume = orient(chest_ct((36 + 2 * number, 60, 64)), code)
        if kind == "dicom":
            lidc_series(download, number, "study", f"{number}.000000-NA-1", volume)
        else:
            download.mkdir(exist_ok=True)
            write_nifti(volume, download / f"LIDC-IDRI-{number:04d}.nii.gz")
    summary = run(download, tmp_path / "out", "lidc")
    assert len(summary.manifest.cases) == 3
    for case in summary.manifest.cases:
        assert (case.intensity.modality, case.intensity.low, case.intensity.high) == ("CT", -1000, 1000)
        array = case.intensity.restore(np.load(summary.folder / case.file).astype(np.float32))
        points = millimetres(Volume(array, np.array(case.affine)))
        x, y, z = points
        ball = ((x + 75) / 12) ** 2 + ((y - 10) / 12) ** 2 + ((z - 20) / 12) ** 2 < 1
        mirrored = ((x - 75) / 12) ** 2 + ((y - 10) / 12) ** 2 + ((z - 20) / 12) ** 2 < 1
        # float16 has steps of 0.5 HU around tissue, 1 HU around 700.
        np.testing.assert_allclose(array[ball], 300, atol=0.5)
        np.testing.assert_allclose(array[mirrored], -850, atol=0.5)
        spine = ((x / 8) ** 2 + ((y + 85) / 8) ** 2 < 1) & (np.abs(z) < 100)
        np.testing.assert_allclose(array[spine], 700, atol=0.5)
        assert array.min() == -1000  # the -2000 around the field of view is air
        exported = tmp_path / f"export_{case.id}"
        write_dicom(Volume(array, np.array(case.affine)), exported, "CT", uid_from=case.id)
        # Whole numbers in the file.
        np.testing.assert_allclose(orient(read_scan(exported), "SPL").array, array, atol=0.51)
    assert volume.array.min() == -2000


# --- The fixtures as wholes


@pytest.mark.parametrize("recipe", ["adni", "duke", "lidc"])
def test_patients_are_in_one_split_and_not_named(
    request: pytest.FixtureRequest, tmp_path: Path, recipe: str
) -> None:
    download = request.getfixturevalue(recipe)
    for seed in range(2):
        out = tmp_path / str(seed)
        summary = run(
            download, out, recipe, f"seed={seed}", "split.validation=0.3", "split.test=0.3", *SMALL[recipe]
        )
        splits: dict[str, set[str]] = {}
        for case in summary.manifest.cases:
            splits.setdefault(case.patient, set()).add(case.split)
        assert len(splits) >= 2
        assert all(len(found) == 1 for found in splits.values())
    written = "".join((out / name).read_text() for name in ("dataset.json", "prepare.json"))
    for name in ("002_S_0295", "Breast_MRI_00", "LIDC-IDRI-0", "manifest-16", "ADNI1", "S13408"):
        assert name not in written


def test_adni_takes_the_cognitively_normal_with_their_conditions(adni: Path, tmp_path: Path) -> None:
    summary = run(adni, tmp_path / "out", "adni")
    assert [case.conditions for case in summary.manifest.cases] == [
        {"diagnosis": "CN", "sex": "M", "age": 84},
        {"diagnosis": "CN", "sex": "M", "age": 86},
        {"diagnosis": "CN", "sex": "F", "age": 90},  # 91 tells who it is
    ]
    assert len({case.patient for case in summary.manifest.cases}) == 2


def test_a_table_beside_the_archive_is_found(adni: Path, tmp_path: Path) -> None:
    # As the IDA delivers it.
    archive = Path(shutil.make_archive(str(tmp_path / "collection"), "zip", adni, "ADNI"))
    table = next(adni.glob("*.csv"))
    shutil.copy(table, tmp_path)
    summary = run(archive, tmp_path / "out", "adni", "shape=[16, 16, 16]")
    assert [case.conditions["diagnosis"] for case in summary.manifest.cases] == ["CN"] * 3
    again = run(archive, tmp_path / "out", "adni", "shape=[16, 16, 16]")
    assert again.was_complete
    (tmp_path / table.name).unlink()
    with pytest.raises(UserError, match=r"where\.diagnosis can't be told"):
        run(archive, tmp_path / "out", "adni", "shape=[16, 16, 16]")


def test_adni_without_its_table_says_how_to_go_on(tmp_path: Path) -> None:
    adni_nifti(tmp_path / "in", brain(), "002_S_0001", PROCESSED, "2006-04-18_08_20_30.0", 1, 1)
    with pytest.raises(UserError, match=r"where\.diagnosis=null") as caught:
        run(tmp_path / "in", tmp_path / "out", "adni")
    assert "\n" not in str(caught.value)


def test_duke_fixture_gives_two_patients_and_names_the_third(tmp_path: Path) -> None:
    download = duke_download(tmp_path)
    summary = run(download, tmp_path / "out", "duke", *SMALL["duke"])
    sides = [(case.conditions["side"], case.conditions["tumor_side"]) for case in summary.manifest.cases]
    assert sides == [("left", "left"), ("right", "left"), ("left", "both"), ("right", "both")]
    left_out = json.loads((summary.folder / "left_out.json").read_text())
    assert "Breast_MRI_003" in json.dumps(left_out)


@pytest.mark.parametrize("same_grid", [True, False], ids=["same grid", "grid of another series"])
def test_duke_cuts_to_the_breast_mask(tmp_path: Path, same_grid: bool) -> None:
    volume = torso()
    download = tmp_path / "in"
    duke_series(download, 2, "3.000000-ax t1-1", volume, "ax t1")
    # The masks of the collection are drawn on the fat-saturated series, whose voxels are others.
    drawn_on = volume if same_grid else torso((50, 130, 130), (4.0, 2.0, 2.6))
    points = millimetres(drawn_on)
    inside = (np.abs(points[0] + 4) > 30) & (np.abs(points[0] + 4) < 110) & (np.abs(points[1] - 20) < 30)
    inside &= np.abs(points[2] - 5) < 50
    path = download / "Breast_MRI_002" / "Segmentation_Breast_MRI_002_Breast.seg.nrrd"
    path.parent.mkdir(parents=True)
    image = sitk.GetImageFromArray(inside.astype(np.uint8))
    sitk.WriteImage(placed(image, drawn_on.affine[:, [2, 1, 0, 3]]), str(path))
    summary = run(download, tmp_path / "out", "duke", *SMALL["duke"])
    assert [case.conditions["side"] for case in summary.manifest.cases] == ["left", "right"]
    for case, sign in zip(summary.manifest.cases, (-1, 1), strict=True):
        places = millimetres(Volume(np.zeros(summary.manifest.grid.shape, np.float32), np.array(case.affine)))
        low, high = places.reshape(3, -1).min(axis=1), places.reshape(3, -1).max(axis=1)
        ends = sorted((sign * 30 - 4, sign * 110 - 4))
        np.testing.assert_allclose(low, [ends[0], -10, -45], atol=5.5)
        np.testing.assert_allclose(high, [ends[1], 50, 55], atol=5.5)
        mask = np.load(summary.folder / (case.mask or ""))
        assert mask.dtype == np.uint8
        assert mask.mean() > 0.8


def test_lidc_fixture_leaves_out_the_stack_with_a_hole(lidc: Path, tmp_path: Path) -> None:
    summary = run(lidc, tmp_path / "out", "lidc", *SMALL["lidc"])
    assert len(summary.manifest.cases) == 3
    (left_out,) = summary.left_out
    assert "LIDC-IDRI-0003" in left_out.name
    assert "missing" in left_out.reason
    assert len({case.patient for case in summary.manifest.cases}) == 2


def test_limit_takes_the_first_scans(lidc: Path, tmp_path: Path) -> None:
    assert len(run(lidc, tmp_path / "out", "lidc", "limit=1", *SMALL["lidc"]).manifest.cases) == 1


def test_a_real_series_in_the_layout_of_ida(shared_data: Path, tmp_path: Path) -> None:
    """A whole head of another study under ADNI's names: not stripped, which is said, and cut to the head."""
    date = "2006-04-18_08_20_30.0"
    scan = read_scan(shared_data / "brain" / "patient01_study1_T1W.nii.gz")
    path = adni_nifti(tmp_path / "in", scan, "002_S_0001", "MPRAGE", date, 1, 1)
    summary = run(tmp_path / "in", tmp_path / "out", "adni", "where.diagnosis=null")
    (case,) = summary.manifest.cases
    assert any("not skull-stripped" in line for line in summary.decisions)
    found = prepared(summary.folder, case)
    lengths = np.linalg.norm(np.array(case.affine)[:3, :3], axis=0) * 64
    assert np.ptp(lengths) < 3.1
    assert 150 < lengths[0] < 260
    expected = resampled(image_of(path), case, (64, 64, 64), 0.0)
    # Outside the box there are ears and noise, which the prepared cube does not have.
    assert np.quantile(np.abs(expected - found), 0.9) < 1e-3
    assert np.abs(expected - found)[20:44, 16:48, 18:46].max() < 2e-3
    assert load_manifest(summary.folder).recipe == "adni"
