"""Padding becomes air in CT and the lowest value in MR, whatever it is and whether a header names it."""

from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from scan_makers import ct_head, head

from anatogen.core.errors import ScanError, UserError
from anatogen.dataset.prepare import prepare
from anatogen.dataset.prepare_config import PrepareConfig
from anatogen.doctor.examine import examine
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.formats import read_scan
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume


def padded(value: float, *, ct: bool = True, soft: bool = False) -> Volume:
    scan = ct_head(0) if ct else head(0)
    array = np.clip(scan.array, -200, 100) if soft else scan.array.copy()
    array[:, :3] = value
    return Volume(array.astype(np.float32), scan.affine)


def save(volume: Volume, path: Path) -> None:
    if path.name.endswith((".nii", ".nii.gz")):
        write_nifti(volume, path)
    elif path.suffix == ".npy":
        np.save(path, volume.array)
    else:
        sitk.WriteImage(sitk.GetImageFromArray(volume.array), path)


@pytest.mark.parametrize("ending", [".nii.gz", ".nrrd", ".mha", ".npy"])
@pytest.mark.parametrize("value", [-32768, -8192, -4096, -3024, -2000, 63536, 64512])
def test_padding_of_ct_is_air_in_every_format(tmp_path: Path, ending: str, value: float) -> None:
    scan = padded(value)
    save(scan, tmp_path / f"scan{ending}")
    array = read_scan(tmp_path / f"scan{ending}").array
    assert (array[:, :3] == -1000).all()
    assert np.array_equal(array[:, 3:], scan.array[:, 3:])


def test_padding_of_soft_tissue_is_air(tmp_path: Path) -> None:
    save(padded(-32768, soft=True), tmp_path / "scan.nii")
    array = read_scan(tmp_path / "scan.nii").array
    assert (array[:, :3] == -1000).all() and array[:, 3:].min() == -200


def test_borders_of_padding_that_was_interpolated_are_air_too(tmp_path: Path) -> None:
    scan = padded(-32768)
    border = np.random.default_rng(0).uniform(-32000, -1600, scan.array[:, :1].shape)
    wide = np.concatenate([np.full_like(scan.array, -32768), border, scan.array[:, 3:]], axis=1)
    save(Volume(wide.astype(np.float32), scan.affine), tmp_path / "scan.nii")
    assert (read_scan(tmp_path / "scan.nii").array[:, :25] == -1000).all()


def test_what_is_no_padding_stays(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    phase = Volume(generator.integers(-4096, 4096, (20, 24, 18)).astype(np.float32), head(0).affine)
    large = Volume(head(0).array * 1000, head(0).affine)
    metal = ct_head(0)
    metal.array[10, 10:12, 10] = 31743
    for index, scan in enumerate((phase, large, metal)):
        save(scan, tmp_path / f"{index}.nii")
        assert np.array_equal(read_scan(tmp_path / f"{index}.nii").array, scan.array)


def test_padding_of_mr_is_its_lowest_value(tmp_path: Path) -> None:
    scan = padded(-32768, ct=False)
    save(scan, tmp_path / "scan.nii")
    array = read_scan(tmp_path / "scan.nii").array
    assert (array[:, :3] == scan.array[:, 3:].min()).all()


def test_ct_with_padding_is_prepared_as_ct(tmp_path: Path) -> None:
    """It was taken for MR, all tissue within the top 6% of the range."""
    for seed in range(12):
        scan = ct_head(seed)
        scan.array[:, :3] = -32768
        write_nifti(scan, tmp_path / "scans" / f"c{seed}.nii.gz")
    summary = prepare(tmp_path / "scans", tmp_path / "data", PrepareConfig(), workers=1, progress=False)
    intensity = summary.manifest.intensity
    assert (intensity.modality, intensity.low, intensity.high) == ("CT", -1000, 1000)
    assert len(summary.manifest.cases) == 12 and not summary.left_out


# --- DICOM


def change(folder: Path, edit) -> None:
    for path in sorted(folder.glob("*.dcm")):
        dataset = pydicom.dcmread(path)
        edit(dataset)
        dataset.save_as(path)


def unsigned(dataset: Dataset, raw: int) -> None:
    """Stores pixels without sign, with the bits of a negative number in the first rows."""
    hounsfield = dataset.pixel_array * float(dataset.RescaleSlope) + float(dataset.RescaleIntercept)
    pixels = np.rint(hounsfield) + 1024
    pixels[:3] = raw % 65536
    dataset.RescaleSlope, dataset.RescaleIntercept, dataset.PixelRepresentation = 1, -1024, 0
    dataset.PixelData = pixels.astype(np.uint16).tobytes()


@pytest.mark.parametrize("declared", [True, False])
@pytest.mark.parametrize("raw", [-2000, -32768, -1])
def test_padding_whose_sign_contradicts_the_pixels_is_air(tmp_path: Path, raw: int, declared: bool) -> None:
    """63536 for -2000 became +1000 HU."""
    write_dicom(ct_head(0), tmp_path / "ct", "CT", uid_from="0")

    def edit(dataset: Dataset) -> None:
        unsigned(dataset, raw)
        if declared:
            dataset.add_new("PixelPaddingValue", "SS", raw)

    change(tmp_path / "ct", edit)
    array = read_scan(tmp_path / "ct").array
    assert (array[:, :3] == -1000).all()
    assert np.abs(array[:, 3:] - ct_head(0).array[:, 3:]).max() <= 1


@pytest.mark.parametrize(
    ("edit", "told"),
    [
        (lambda d: setattr(d, "RescaleType", "MGML"), "RescaleType MGML"),
        (lambda d: setattr(d, "RescaleType", "Z_EFF"), "RescaleType Z_EFF"),
        (lambda d: setattr(d, "RescaleType", "ED"), "RescaleType ED"),
        (
            lambda d: setattr(d, "ImageType", ["DERIVED", "SECONDARY", "AXIAL", "IODINE_NO_WATER"]),
            "ImageType IODINE_NO_WATER",
        ),
        (
            lambda d: setattr(d, "ImageType", ["DERIVED", "PRIMARY", "AXIAL", "EFF_ATOMIC_NUM"]),
            "ImageType EFF_ATOMIC_NUM",
        ),
    ],
)
def test_ct_that_holds_other_values_than_hounsfield_units_is_refused(tmp_path: Path, edit, told: str) -> None:
    write_dicom(ct_head(0), tmp_path / "ct", "CT", uid_from="0")
    change(tmp_path / "ct", edit)
    with pytest.raises(ScanError, match=f"it is CT whose values are no Hounsfield units \\({told}\\)"):
        read_scan(tmp_path / "ct")


@pytest.mark.parametrize("unit", ["HU", "US", "hu ", "HU_MOD", None])
def test_ct_in_hounsfield_units_is_read(tmp_path: Path, unit: str | None) -> None:
    write_dicom(ct_head(0), tmp_path / "ct", "CT", uid_from="0")

    def edit(dataset: Dataset) -> None:
        if unit is None:
            del dataset.RescaleType
        else:
            dataset.RescaleType = unit

    change(tmp_path / "ct", edit)
    assert read_scan(tmp_path / "ct").array.min() < -900


# --- a lost rescale intercept


def test_ct_that_lost_its_intercept_is_not_advised_to_be_taken_as_it_is(tmp_path: Path) -> None:
    scans = tmp_path / "scans"
    for seed in range(12):
        scan = ct_head(seed)
        scan.array[10:12, 10:12, 8:12] = 900
        if seed == 11:
            scan = Volume(np.clip(scan.array + 1024, 0, None), scan.affine)
        write_nifti(scan, scans / f"{seed:02d}.nii.gz")
    diagnosis = examine(scans, workers=1, progress=False)
    (finding,) = [finding for finding in diagnosis.findings if finding.code == "modalities"]
    assert "lost its rescale intercept" in finding.advice
    assert finding.option == "'exclude=[\"11.nii.gz\"]'"
    (left_out,) = prepare(scans, tmp_path / "data", PrepareConfig(), workers=1, progress=False).left_out
    assert "or has lost its rescale intercept (air at 0)" in left_out.reason
    assert "set modality" not in left_out.reason
    for seed in range(6):
        write_nifti(scan, scans / f"{seed:02d}.nii.gz")
    with pytest.raises(UserError, match="CT whose air is at 0 lacks its rescale intercept"):
        prepare(scans, tmp_path / "data", PrepareConfig(), workers=1, progress=False)
    (finding,) = [f for f in examine(scans, workers=1, progress=False).findings if f.code == "modalities"]
    assert (finding.severity, finding.option) == ("error", "")
