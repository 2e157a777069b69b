"""DICOM: read right or refused, written without a patient and marked synthetic."""

import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
import SimpleITK as sitk
from pydicom.dataset import Dataset
from scan_makers import ct_head, head, oblique_affine, pattern_volume, same_place

from anatogen.core.errors import ScanError, UserError
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.formats import read_scan
from anatogen.io.geometry import axis_codes, orient
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume

REAL = ["hippocampus_crop", "t1_pre_axial_oblique", "t1_post_axial_oblique"]


def edit(folder: Path, change: Callable[[Dataset, int], None], only: int | None = None) -> None:
    for index, path in enumerate(sorted(folder.glob("*.dcm"))):
        if only is None or index == only:
            dataset = pydicom.dcmread(path)
            change(dataset, index)
            dataset.save_as(path)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    write_dicom(head(), tmp_path / "series", "MR", uid_from="a scan")
    return tmp_path / "series"


@pytest.mark.parametrize("name", REAL)
def test_real_series_agree_with_itk(shared_data: Path, name: str) -> None:
    reader = sitk.ImageSeriesReader()
    reader.SetFileNames(reader.GetGDCMSeriesFileNames(str(shared_data / "dicom" / name)))
    image = reader.Execute()
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * image.GetSpacing()
    lps[:3, 3] = image.GetOrigin()
    affine = (np.diag([-1.0, -1, 1, 1]) @ lps)[:, [2, 1, 0, 3]]
    reference = orient(Volume(sitk.GetArrayFromImage(image).astype(np.float32), affine), "SPL")
    ours = orient(read_scan(shared_data / "dicom" / name), "SPL")
    assert np.array_equal(ours.array, reference.array)
    assert same_place(ours, reference) < 1e-3


@pytest.mark.parametrize("name", REAL)
def test_real_series_survive_other_formats(shared_data: Path, tmp_path: Path, name: str) -> None:
    volume = read_scan(shared_data / "dicom" / name)
    write_nifti(volume, tmp_path / "scan.nii")
    nifti = read_scan(tmp_path / "scan.nii")
    assert np.array_equal(nifti.array, volume.array)
    assert same_place(nifti, volume) < 1e-3
    write_dicom(volume, tmp_path / "series", "MR", uid_from=name)
    dicom = orient(read_scan(tmp_path / "series"), axis_codes(volume.affine))
    assert np.array_equal(dicom.array, volume.array)
    assert same_place(dicom, volume) < 1e-3


@pytest.mark.parametrize("seed", range(4))
def test_oblique_round_trip(tmp_path: Path, seed: int) -> None:
    volume = pattern_volume(oblique_affine(seed), (6, 9, 7))
    write_dicom(volume, tmp_path / "series", "MR", uid_from="a")
    codes = axis_codes(volume.affine)
    back = orient(read_scan(tmp_path / "series"), codes)
    assert same_place(back, volume) < 1e-3
    step = float(np.ptp(volume.array)) / 65535
    assert np.abs(back.array - volume.array).max() < 0.51 * step


def test_ct_is_in_hounsfield_units(tmp_path: Path) -> None:
    volume = ct_head()
    write_dicom(volume, tmp_path / "series", "CT", uid_from="a")
    back = orient(read_scan(tmp_path / "series"), axis_codes(volume.affine))
    assert np.abs(back.array - volume.array).max() <= 0.5
    image = sitk.ReadImage(sorted(map(str, (tmp_path / "series").iterdir()))[0])
    np.testing.assert_allclose(sitk.GetArrayFromImage(image)[0], np.rint(volume.array[0]), atol=0.51)
    header = pydicom.dcmread(next((tmp_path / "series").iterdir()))
    assert header.RescaleType == "HU"
    assert header.SOPClassUID == pydicom.uid.CTImageStorage
    with pytest.raises(UserError, match="16-bit"):
        write_dicom(Volume(volume.array * 100, volume.affine), tmp_path / "big", "CT", uid_from="a")


def test_header_says_synthetic_and_nothing_of_a_patient(tmp_path: Path) -> None:
    write_dicom(head(), tmp_path / "series", "MR", uid_from="a", patient_id="SYN-00001")
    headers = [pydicom.dcmread(path) for path in sorted((tmp_path / "series").iterdir())]
    for number, header in enumerate(headers, 1):
        assert header["SyntheticData"].tag == 0x0008001C
        assert header.SyntheticData == "YES"
        assert (header.PatientName, header.PatientID) == ("SYNTHETIC^ANATOGEN", "SYN-00001")
        assert header.PatientBirthDate == header.PatientSex == ""
        assert header.InstanceNumber == number
        assert header.SOPInstanceUID.is_valid
    assert len({header.SOPInstanceUID for header in headers}) == 20
    assert len({header.SeriesInstanceUID for header in headers}) == 1


# What dciodvfy may say of our files. It is older than SyntheticData, which the standard has since 2023.
KNOWN_REMARKS = (
    "(0x0008,0x001c)",
    "needed to build DICOMDIR - Study",  # a synthetic scan has no date,
    "attribute <Laterality>",  # and no side that is known
    "DS Rescale", "LO Rescale Type", "Non-identity Modality LUT", "this is a Standard Extended SOP Class",
)  # fmt: skip


@pytest.mark.parametrize("case", ["CT", "MR", "oblique"])
def test_an_independent_validator_finds_no_error(tmp_path: Path, case: str) -> None:
    if shutil.which("dciodvfy") is None:
        pytest.skip("dciodvfy (dicom3tools) is not installed")
    volumes = {"CT": ct_head(), "MR": head(), "oblique": pattern_volume(oblique_affine(1), (6, 9, 7))}
    write_dicom(volumes[case], tmp_path / "series", "CT" if case == "CT" else "MR", uid_from="a")
    for path in sorted((tmp_path / "series").iterdir())[:2]:
        run = subprocess.run(["dciodvfy", path], capture_output=True, text=True, check=False)
        remarks = (run.stdout + run.stderr).splitlines()
        assert remarks.pop(next(i for i, line in enumerate(remarks) if line.endswith("Image")))
        assert not [line for line in remarks if not any(known in line for known in KNOWN_REMARKS)]


def test_identifiers_follow_from_the_text(tmp_path: Path) -> None:
    for name, text in [("first", "a"), ("again", "a"), ("other", "b")]:
        write_dicom(head(), tmp_path / name, "MR", uid_from=text)
    first, again, other = (
        [path.read_bytes() for path in sorted((tmp_path / name).iterdir())]
        for name in ("first", "again", "other")
    )
    assert first == again
    uids = [
        {pydicom.dcmread(path).SOPInstanceUID for path in (tmp_path / name).iterdir()}
        for name in ("first", "other")
    ]
    assert not uids[0] & uids[1]
    assert first != other


def test_writing_refuses_what_dicom_can_not_hold(tmp_path: Path) -> None:
    affine = oblique_affine(0)
    affine[:3, 0] += 0.3 * affine[:3, 1]
    with pytest.raises(UserError, match="not perpendicular"):
        write_dicom(Volume(head().array, affine), tmp_path / "series", "MR", uid_from="a")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        write_dicom(head(), tmp_path / "full", "MR", uid_from="a")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_order_and_names_of_files_do_not_matter(series: Path) -> None:
    before = read_scan(series)
    paths = sorted(series.glob("*.dcm"))
    order = np.random.default_rng(0).permutation(len(paths))
    for index, path in zip(order, paths, strict=True):
        path.rename(series / f"x{index}")
    edit(series, lambda dataset, index: setattr(dataset, "InstanceNumber", (7 * index) % 20))
    after = read_scan(series)
    assert np.array_equal(before.array, after.array)
    assert same_place(before, after) == 0


def test_rescale_of_each_slice_counts(series: Path) -> None:
    before = read_scan(series)

    def double(dataset: Dataset, _: int) -> None:
        dataset.RescaleSlope, dataset.RescaleIntercept = 2, 5

    edit(series, double, only=3)
    after = read_scan(series)
    changed = [d for d in range(20) if not np.array_equal(before.array[d], after.array[d])]
    assert len(changed) == 1
    np.testing.assert_allclose(after.array[changed[0]], before.array[changed[0]] * 2 + 5)


def test_values_are_not_inverted_for_display(series: Path) -> None:
    before = read_scan(series)
    edit(series, lambda dataset, _: setattr(dataset, "PhotometricInterpretation", "MONOCHROME1"))
    assert np.array_equal(read_scan(series).array, before.array)


def test_no_frame_of_reference_is_no_obstacle(series: Path) -> None:
    before = read_scan(series)
    edit(series, lambda dataset, _: delattr(dataset, "FrameOfReferenceUID"))
    assert same_place(read_scan(series), before) == 0


def test_files_without_preamble(series: Path) -> None:
    before = read_scan(series)
    for path in series.glob("*.dcm"):
        path.write_bytes(path.read_bytes()[132:])
    assert np.array_equal(read_scan(series).array, before.array)


@pytest.mark.parametrize("compressor", ["JPEG", "JPEG2000", "JPEGLS"])
def test_compressed_series(series: Path, tmp_path: Path, compressor: str) -> None:
    before = read_scan(series)
    for path in series.glob("*.dcm"):
        writer = sitk.ImageFileWriter()
        writer.SetImageIO("GDCMImageIO")
        writer.UseCompressionOn()
        writer.SetCompressor(compressor)
        dataset = pydicom.dcmread(path)
        writer.SetFileName(tmp_path / "slice.dcm")
        writer.Execute(sitk.GetImageFromArray(dataset.pixel_array[None]))
        packed = pydicom.dcmread(tmp_path / "slice.dcm")
        assert packed.file_meta.TransferSyntaxUID.is_compressed
        dataset.file_meta.TransferSyntaxUID = packed.file_meta.TransferSyntaxUID
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.25, -7
        dataset.PixelData = packed.PixelData
        dataset["PixelData"].VR = "OB"
        dataset.save_as(path)
    np.testing.assert_array_equal(read_scan(series).array, before.array * 0.25 - 7)


def _remove(dataset: Dataset, _: int) -> None:
    del dataset.ImagePositionPatient


def _move_onto_next(dataset: Dataset, _: int) -> None:
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, y, float(z) + 1]


def _tilt(dataset: Dataset, index: int) -> None:
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, float(y) + 0.2 * index, z]


def _uneven(dataset: Dataset, index: int) -> None:
    x, y, z = dataset.ImagePositionPatient
    dataset.ImagePositionPatient = [x, y, float(z) + 0.2 * (index % 2)]


def _turn(dataset: Dataset, _: int) -> None:
    dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, 1]


def _colour(dataset: Dataset, _: int) -> None:
    dataset.SamplesPerPixel = 3


def _smaller(dataset: Dataset, _: int) -> None:
    dataset.Rows = dataset.Rows - 2
    dataset.PixelData = dataset.PixelData[: dataset.Rows * dataset.Columns * 2]


def _ct(dataset: Dataset, _: int) -> None:
    dataset.Modality = "CT"
    del dataset.RescaleSlope, dataset.RescaleIntercept


def _frames(dataset: Dataset, _: int) -> None:
    dataset.NumberOfFrames = 5


BAD = {
    "missing slice": (lambda s: (s / "slice_0007.dcm").unlink(), "1 slices are missing"),
    "missing slices": (
        lambda s: [(s / f"slice_{n:04d}.dcm").unlink() for n in (7, 8, 12)], "3 slices are missing",
    ),
    "two images at one position": (
        lambda s: edit(s, _move_onto_next, only=6), "1 slices lie where another one is, with another image",
    ),
    "two slices": (lambda s: [p.unlink() for p in sorted(s.iterdir())[2:]], "only 2 slices"),
    "tilt": (lambda s: edit(s, _tilt), "sheared by 11.3 degrees"),
    "uneven": (lambda s: edit(s, _uneven), "unevenly spaced, 0.800 to 1.200 mm"),
    "mixed orientation": (lambda s: edit(s, _turn, only=2), "mixed orientations"),
    "mixed size": (lambda s: edit(s, _smaller, only=2), "differ in Rows"),
    "no position": (lambda s: edit(s, _remove, only=2), "no ImagePositionPatient"),
    "colour": (lambda s: edit(s, _colour), "colour"),
    "multi-frame": (lambda s: edit(s, _frames), "multi-frame"),
    "CT without rescale": (lambda s: edit(s, _ct), "Hounsfield"),
    "truncated": (
        lambda s: (s / "slice_0003.dcm").write_bytes((s / "slice_0003.dcm").read_bytes()[:-300]),
        "pixels can't be read.*truncated",
    ),
    "no pixels": (
        lambda s: edit(s, lambda dataset, _: delattr(dataset, "PixelData"), only=1), "has no PixelData",
    ),
}  # fmt: skip


def test_a_file_that_can_not_be_opened_is_damage(series: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (series / "slice_0020.dcm").rename(series / "IM0020")
    real = Path.open

    def refuse(path: Path, *args: object, **keywords: object) -> object:
        if path.name == "IM0020":
            raise PermissionError(13, "Permission denied")
        return real(path, *args, **keywords)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ScanError, match=r"damaged.*Permission denied"):
        read_scan(series)


@pytest.mark.parametrize("case", BAD)
def test_bad_series_are_refused_with_their_reason(
    series: Path, case: str, capfd: pytest.CaptureFixture[str]
) -> None:
    spoil, reason = BAD[case]
    spoil(series)
    with pytest.raises(ScanError) as caught:
        read_scan(series)
    assert re.search(reason, str(caught.value)), str(caught.value)
    assert str(series) not in str(caught.value)
    captured = capfd.readouterr()
    assert captured.err == captured.out == ""


def test_a_folder_of_two_series_is_refused(series: Path) -> None:
    write_dicom(head(1), series.parent / "other", "MR", uid_from="another")
    for path in (series.parent / "other").iterdir():
        path.rename(series / f"other_{path.name}")
    with pytest.raises(ScanError, match="2 DICOM series"):
        read_scan(series)
    assert read_scan(series / "other_slice_0001.dcm").array.shape == (20, 24, 18)
