"""Slices of a series in order: copies, localisers, tilt, padding, and files that went astray."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from pydicom import uid
from pydicom.dataset import Dataset
from scan_makers import ct_head, head, oblique_affine, pattern, same_place, voxels_at, world

from anatogen.core.errors import ScanError
from anatogen.core.reasons import Reason
from anatogen.dataset.discover import LeftOut, Source, discover
from anatogen.dataset.prepare import PrepareConfig, prepare
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.formats import Reading, read_scan
from anatogen.io.shear import straightened
from anatogen.io.volume import Volume


def edit(folder: Path, change: Callable[[Dataset, int], None], only: int | None = None) -> None:
    for index, path in enumerate(sorted(folder.iterdir())):
        if only is None or index == only:
            dataset = pydicom.dcmread(path)
            change(dataset, index)
            dataset.save_as(path)


def look(folder: Path) -> tuple[list[Source], list[LeftOut]]:
    sources, left_out, _ = discover(folder)
    return sources, left_out


def shifted(dataset: Dataset, millimetres: tuple[float, float, float]) -> None:
    dataset.ImagePositionPatient = list(np.array(dataset.ImagePositionPatient, float) + millimetres)


@pytest.fixture
def series(tmp_path: Path) -> Path:
    write_dicom(head(), tmp_path / "scans" / "series", "MR", uid_from="a scan")
    return tmp_path / "scans" / "series"


@pytest.fixture
def ct(tmp_path: Path) -> Path:
    write_dicom(ct_head(), tmp_path / "scans" / "ct", "CT", uid_from="a scan")
    return tmp_path / "scans" / "ct"


def test_copies_of_slices_are_taken_once(series: Path) -> None:
    before = read_scan(series)
    shutil.copy(series / "slice_0007.dcm", series / "copy.dcm")
    for number in (3, 20):
        dataset = pydicom.dcmread(series / f"slice_{number:04d}.dcm")
        dataset.SOPInstanceUID = uid.generate_uid()
        dataset.compress(uid.RLELossless)
        dataset.save_as(series / f"packed_{number}.dcm")
    after = read_scan(series)
    assert np.array_equal(before.array, after.array)
    assert np.array_equal(before.affine, after.affine)


def test_a_series_in_two_folders_with_some_slices_in_both(series: Path) -> None:
    before = read_scan(series)
    second = series.parent / "second"
    second.mkdir()
    for path in sorted(series.iterdir())[8:]:
        (path.replace if path.stem > "slice_0012" else lambda target, path=path: shutil.copy(path, target))(
            second / path.name
        )
    sources, left_out = look(series.parent)
    assert len(sources) == 1
    assert not left_out
    from anatogen.dataset.reading import read_source

    assert np.array_equal(read_source(sources[0]).array, before.array)


def _second_patient(series: Path, keyword: str) -> Path:
    """The series of another patient, above the first one, under the identifiers of the first."""
    second = series.parent / "second"
    write_dicom(head(1), second, "MR", uid_from="a scan")

    def change(dataset: Dataset, index: int) -> None:
        setattr(dataset, keyword, "1.2.3" if keyword.endswith("UID") else "another")
        dataset.SOPInstanceUID = f"1.2.3.{index + 1}"
        shifted(dataset, (0, 0, len(list(series.iterdir())) * 1.0))

    edit(second, change)
    return second


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID"])
def test_patients_under_one_series_identifier_are_parted_by_their_folders(series: Path, keyword: str) -> None:
    before = read_scan(series)
    second = _second_patient(series, keyword)
    sources, left_out = look(series.parent)
    assert [source.name for source in sources] == ["second", "series"] and not left_out
    assert np.array_equal(read_scan(series).array, before.array)
    assert read_scan(second).array.shape == before.array.shape
    assert len({source.patient for source in sources}) == (2 if keyword == "PatientID" else 1)


@pytest.mark.parametrize("keyword", ["PatientID", "StudyInstanceUID"])
def test_patients_under_one_series_identifier_in_one_folder_are_refused(series: Path, keyword: str) -> None:
    second = _second_patient(series, keyword)
    for path in second.iterdir():
        path.rename(series / f"other_{path.name}")
    second.rmdir()
    sources, left_out = look(series.parent)
    assert not sources
    assert [scan.refusal for scan in left_out] == [Reason.SEVERAL_PATIENTS(num=2)]
    with pytest.raises(ScanError, match="2 patients or studies under one series"):
        read_scan(series)


@pytest.mark.parametrize("index", [0, 10, 19])
def test_a_slice_with_a_damaged_patient_does_not_leave_its_stack_unnoticed(series: Path, index: int) -> None:
    edit(series, lambda dataset, _: setattr(dataset, "PatientID", "another"), only=index)
    own = series.parent / "own"
    own.mkdir()
    path = sorted(series.iterdir())[index]
    path.rename(own / path.name)
    sources, left_out = look(series.parent)
    assert not sources and [scan.refusal for scan in left_out] == [Reason.SEVERAL_PATIENTS(num=2)]


@pytest.mark.parametrize(
    ("keyword", "first", "second"),
    [("EchoTime", 10, 80), ("DiffusionBValue", 0.0, 800.0), ("AcquisitionNumber", 1, 2)],
)
def test_what_tells_images_at_one_position_apart_is_told(
    series: Path, keyword: str, first: float, second: float
) -> None:
    edit(series, lambda dataset, _: setattr(dataset, keyword, first))
    for path in sorted(series.iterdir()):
        dataset = pydicom.dcmread(path)
        dataset.PixelData = dataset.pixel_array[::-1].tobytes()
        setattr(dataset, keyword, second)
        dataset.save_as(series / f"second_{path.name}")
    with pytest.raises(ScanError, match=f"20 slices lie where another one is.*they differ in {keyword}"):
        read_scan(series)


def test_localisers(series: Path) -> None:
    before = read_scan(series)
    for index in range(2):  # a scout among the slices, as some CT series have it
        dataset = pydicom.dcmread(series / "slice_0001.dcm")
        dataset.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        dataset.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
        dataset.Rows = 12
        dataset.PixelData = dataset.PixelData[: 12 * dataset.Columns * 2]
        dataset.save_as(series / f"scout_{index}.dcm")
    assert np.array_equal(read_scan(series).array, before.array)
    edit(series, lambda dataset, _: setattr(dataset, "ImageType", ["ORIGINAL", "PRIMARY", "LOCALIZER"]))
    with pytest.raises(ScanError, match="it is a localiser"):
        read_scan(series)


def test_three_planes_are_called_a_localiser(series: Path) -> None:
    planes = [[1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1]]
    edit(series, lambda dataset, i: setattr(dataset, "ImageOrientationPatient", planes[i % 3]))
    with pytest.raises(ScanError, match="of 3 planes, as a localiser's"):
        read_scan(series)


def test_a_slice_aside_is_refused(series: Path) -> None:
    edit(series, lambda dataset, _: shifted(dataset, (0, 0.3, 0)), only=9)
    with pytest.raises(ScanError, match=r"do not lie in line: one is 0.30 mm aside"):
        read_scan(series)


ALIKE: dict[str, tuple[Callable[[Dataset], None], str]] = {
    "bits stored": (lambda d: setattr(d, "BitsStored", 12), "differ in BitsStored"),
    "sign": (lambda d: setattr(d, "PixelRepresentation", 1), "differ in PixelRepresentation"),
    "inverted": (lambda d: setattr(d, "PhotometricInterpretation", "MONOCHROME1"), "differ in Photometric"),
    "padding": (lambda d: d.add_new("PixelPaddingValue", "US", 40), "differ in PixelPaddingValue"),
    "no rescale": (
        lambda d: (d.pop("RescaleSlope"), d.pop("RescaleIntercept"))[0], "others have none",
    ),
    "no slope": (lambda d: d.pop("RescaleSlope"), "some of its slices have a RescaleSlope and others"),
    "no intercept": (lambda d: d.pop("RescaleIntercept"), "have a RescaleIntercept and others have none"),
    "too long": (lambda d: setattr(d, "PixelData", d.PixelData + bytes(4)), "can't be read.*their header"),
    "slope 0": (lambda d: setattr(d, "RescaleSlope", 0), "can't be right"),
    "spacing": (lambda d: setattr(d, "PixelSpacing", [1, 1.01]), "differ in PixelSpacing"),
    "spacing of 0": (lambda d: setattr(d, "PixelSpacing", [1, 0]), "PixelSpacing is damaged"),
    "orientation": (
        lambda d: setattr(d, "ImageOrientationPatient", [1, 0, 0, 0, 3, 0]), "OrientationPatient is damaged",
    ),
    "position": (lambda d: setattr(d, "ImagePositionPatient", [1, 2]), "ImagePositionPatient is damaged"),
    "lookup": (lambda d: setattr(d, "ModalityLUTSequence", [Dataset()]), "lookup table"),
}  # fmt: skip


@pytest.mark.parametrize("case", ALIKE)
def test_one_slice_that_is_described_otherwise_is_refused(series: Path, case: str) -> None:
    change, reason = ALIKE[case]
    edit(series, lambda dataset, _: change(dataset), only=11)
    with pytest.raises(ScanError, match=reason):
        read_scan(series)


def test_values_in_high_bits_are_refused(series: Path) -> None:
    edit(series, lambda dataset, _: setattr(dataset, "BitsStored", 12))
    with pytest.raises(ScanError, match="HighBit 15 with 12 stored"):
        read_scan(series)


# --- padding outside the field of view


def _circle(ct: Path, hounsfield: float, explicit: bool = True) -> np.ndarray:
    """Puts padding around a circle; where it is."""
    outside = np.hypot(*np.indices((24, 18)) - np.reshape([11.5, 8.5], (2, 1, 1))) > 9
    stored = round(hounsfield + 1024)

    def pad(dataset: Dataset, _: int) -> None:
        pixels = dataset.pixel_array.copy()
        pixels[outside] = stored
        dataset.PixelData = pixels.tobytes()
        if explicit:
            dataset.add_new("PixelPaddingValue", "SS", stored)

    edit(ct, pad)
    return outside


@pytest.mark.parametrize("hounsfield", [-2000, 0, 3000, -1024])
def test_padding_becomes_the_air_of_the_scan(ct: Path, hounsfield: float) -> None:
    before = read_scan(ct).array
    outside = _circle(ct, hounsfield)
    after = read_scan(ct).array
    air = before[:, ~outside].min()
    assert air == -1000
    inside = before[:, ~outside] != hounsfield  # values that happen to be the padding's are padding too
    assert np.array_equal(after[:, ~outside][inside], before[:, ~outside][inside])
    assert (after[:, outside] == air).all()


def test_padding_written_as_an_unsigned_number(ct: Path) -> None:
    outside = _circle(ct, -2000, explicit=False)
    edit(ct, lambda dataset, _: dataset.add_new("PixelPaddingValue", "US", (-2000 + 1024) % 65536))
    assert (read_scan(ct).array[:, outside] > -1024).all()


def test_padding_range(ct: Path) -> None:
    outside = _circle(ct, -1500)

    def widen(dataset: Dataset, _: int) -> None:
        dataset.add_new("PixelPaddingValue", "SS", -2000 + 1024)
        dataset.add_new("PixelPaddingRangeLimit", "SS", -1400 + 1024)

    edit(ct, widen)
    assert (read_scan(ct).array[:, outside] > -1024).all()


def test_padding_of_a_ct_without_air_is_air(ct: Path) -> None:
    edit(ct, lambda d, _: setattr(d, "PixelData", np.maximum(d.pixel_array, 1000).tobytes()))
    outside = _circle(ct, -2000)
    array = read_scan(ct).array
    assert (array[:, outside] == -1000).all()
    assert array[:, ~outside].min() == -24


@pytest.mark.parametrize(("padding", "becomes"), [(0, 0), (4000, 300)])
def test_padding_of_mr(series: Path, padding: int, becomes: int) -> None:
    outside = np.arange(18) < 4

    def pad(dataset: Dataset, _: int) -> None:
        pixels = np.maximum(dataset.pixel_array, 300)
        pixels[:, outside] = padding
        dataset.PixelData = pixels.tobytes()
        dataset.add_new("PixelPaddingValue", "US", padding)

    edit(series, pad)
    array = read_scan(series).array
    assert (array[..., outside] == becomes).all()
    assert array[..., ~outside].min() == 300


# --- gantry tilt


def _rounded(folder: Path, decimals: int, spacing: float, off: float = 0.0) -> list[float]:
    """Places slices at even distances, rounds their positions, and moves the ninth by `off` mm."""
    positions = [round(30 + spacing * k + off * (k == 8), decimals) for k in range(20)]

    def place(dataset: Dataset, index: int) -> None:
        dataset.ImagePositionPatient = [1, 2, positions[index]]
        dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]

    edit(folder, place)
    return positions


@pytest.mark.parametrize(
    ("decimals", "spacing"), [(1, 0.625), (1, 1.25), (1, 0.9375), (1, 0.14), (2, 0.3125), (2, 0.625), (1, 3)]
)
def test_rounded_positions_are_even(series: Path, decimals: int, spacing: float) -> None:
    positions = _rounded(series, decimals, spacing)
    volume = read_scan(series)
    assert volume.array.shape[0] == 20
    assert volume.spacing_mm[0] == pytest.approx((positions[-1] - 30) / 19, abs=1e-6)
    assert volume.spacing_mm[0] == pytest.approx(spacing, abs=10.0**-decimals / 19)
    is_uneven = np.ptp(np.diff(positions)) > 0.02 * spacing + 1e-3
    assert volume.rounded_mm == pytest.approx(10.0**-decimals if is_uneven else 0)


def test_rounded_positions_of_an_oblique_stack_are_even(series: Path) -> None:
    before = read_scan(series).affine
    turned, step = np.linalg.qr(np.array([[9, 2, 1], [-1, 8, 3], [0.5, 1, 7]]))[0], 1.27

    def place(dataset: Dataset, index: int) -> None:
        dataset.ImageOrientationPatient = [*turned[:, 0].round(6), *turned[:, 1].round(6)]
        normal = np.cross(turned[:, 0], turned[:, 1])
        dataset.ImagePositionPatient = [*(10 + index * step * normal).round(1)]

    edit(series, place)
    volume = read_scan(series)
    assert volume.rounded_mm == 0.1 and volume.affine.shape == before.shape
    assert volume.spacing_mm[0] == pytest.approx(step, abs=0.2 / 19)


@pytest.mark.parametrize(
    ("decimals", "spacing", "off"), [(1, 0.625, 0.2), (1, 1.25, 0.3), (2, 0.625, 0.05), (3, 0.625, 0.05)]
)
def test_a_slice_that_is_off_by_more_than_rounding_is_refused(
    series: Path, decimals: int, spacing: float, off: float
) -> None:
    _rounded(series, decimals, spacing, off)
    with pytest.raises(ScanError, match="unevenly spaced"):
        read_scan(series)


@pytest.mark.parametrize("spacing", [0.625, 1.25, 0.14])
def test_a_slice_that_is_missing_among_rounded_positions_is_missed(series: Path, spacing: float) -> None:
    _rounded(series, 1, spacing)
    (series / "slice_0010.dcm").unlink()
    with pytest.raises(ScanError, match=r"missing|uneven"):
        read_scan(series)


def test_prepare_tells_the_spacing_taken_of_rounded_positions(series: Path, tmp_path: Path) -> None:
    _rounded(series, 1, 0.625)
    config = PrepareConfig(shape=(16, 16, 16), split={"validation": 0, "test": 0})
    summary = prepare(series.parent, tmp_path / "out", config, workers=1, progress=False)
    (told,) = (note for note in summary.decisions if "rounded" in note)
    assert told.endswith("rounded to 0.1 mm in 1 scan: their mean distance is taken, 0.6263 mm")


def _tilted(ct: Path, millimetres: float = 0.3) -> None:
    edit(ct, lambda dataset, index: shifted(dataset, (0, millimetres * index, 0)))


def test_tilt_is_refused_unless_allowed(ct: Path) -> None:
    before = read_scan(ct)
    _tilted(ct)
    with pytest.raises(ScanError, match=r"sheared by 16.7 degrees \(gantry tilt\): set allow_tilt"):
        read_scan(ct)
    straight = read_scan(ct, Reading(allow_tilt=True))
    axes = straight.affine[:3, :3] / np.array(straight.spacing_mm)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    np.testing.assert_allclose(straight.spacing_mm, before.spacing_mm)
    # 19 steps of 0.3 mm: the field of view grows by 6 voxels of 1 mm.
    assert straight.array.shape == (20, 30, 18)


@pytest.mark.parametrize("seed", range(4))
def test_a_straightened_stack_is_in_its_place(seed: int) -> None:
    generator = np.random.default_rng(seed)
    affine = oblique_affine(seed)
    affine[:3, 0] += affine[:3, 1:3] @ generator.uniform(-1.5, 1.5, 2)
    shape = (14, 40, 36)
    sheared = Volume(pattern(world(affine, shape)), affine)
    straight = straightened(sheared)
    axes = straight.affine[:3, :3] / np.array(straight.spacing_mm)
    np.testing.assert_allclose(axes.T @ axes, np.eye(3), atol=1e-9)
    places = world(straight.affine, straight.array.shape)
    # What the slices cover, one voxel from their rim.
    index = voxels_at(affine, places)
    limits = np.reshape(shape, (3, 1, 1, 1)) - 1
    covered = (index > -1e-6).all(axis=0) & (index < limits + 1e-6).all(axis=0)
    assert covered.sum() > 0.9 * sheared.array[:, 1:-1, 1:-1].size
    assert np.abs(straight.array - pattern(places))[covered].max() < 2e-3
    assert (straight.array[~covered] == sheared.array.min()).all()


def test_prepare_with_tilt(ct: Path, tmp_path: Path) -> None:
    _tilted(ct)
    write_dicom(ct_head(1), ct.parent / "straight", "CT", uid_from="b")
    summary = prepare(ct.parent, tmp_path / "out", PrepareConfig(), workers=1, progress=False)
    assert ["gantry tilt" in scan.reason for scan in summary.left_out] == [True]
    config = PrepareConfig(allow_tilt=True)
    summary = prepare(ct.parent, tmp_path / "out", config, workers=1, progress=False)
    assert not summary.left_out
    assert len(summary.manifest.cases) == 2


# --- files that went astray


@pytest.mark.parametrize("content", [b"", b"cut", bytes(5000)])
@pytest.mark.parametrize("name", ["IM_{:04d}", "{}", "{:03d}.jpg"])
def test_a_file_named_as_the_slices_is_a_damaged_slice(series: Path, name: str, content: bytes) -> None:
    for index, path in enumerate(sorted(series.iterdir())):
        path.rename(series / name.format(index))
    read_scan(series)
    (series / name.format(19)).write_bytes(content)
    with pytest.raises(ScanError, match="damaged: it is no DICOM, though it is named like"):
        read_scan(series)
    sources, left_out = look(series.parent)
    assert not sources
    assert [scan.name for scan in left_out] == ["series/" + name.format(19), "series"]


def test_other_files_beside_a_series_are_no_damage(series: Path) -> None:
    (series / "LICENSE").write_text("free")
    (series / "slice_0001.png").write_bytes(b"a preview")
    report = pydicom.dcmread(series / "slice_0001.dcm")
    report.SOPClassUID = report.file_meta.MediaStorageSOPClassUID = uid.BasicTextSRStorage
    del report.PixelData, report.Rows
    report.save_as(series / "slice_0021.dcm")
    read_scan(series)
    sources, left_out = look(series.parent)
    assert [source.name for source in sources] == ["series"]
    assert not left_out


def test_a_last_slice_with_a_damaged_series_uid_is_missed(series: Path) -> None:
    edit(series, lambda d, _: setattr(d, "SeriesInstanceUID", d.SeriesInstanceUID[:-1] + "7"), only=19)
    with pytest.raises(ScanError, match="2 DICOM series"):
        read_scan(series)
    sources, left_out = look(series.parent)
    assert [source.name for source in sources] == ["series/slice_0020.dcm"]  # refused later: one slice
    assert left_out == [LeftOut("series/slice_0001.dcm", Reason.DAMAGED_BESIDE(what="series/slice_0020.dcm"))]


@pytest.mark.parametrize(("series_number", "is_lost"), [(1, True), (2, False)])
def test_a_slice_with_the_series_number_of_a_stack_is_of_it(
    series: Path, series_number: int, is_lost: bool
) -> None:
    dataset = pydicom.dcmread(series / "slice_0020.dcm")
    dataset.SeriesInstanceUID, dataset.SOPInstanceUID = "1.2.3", "1.2.3.4"
    dataset.SeriesNumber = series_number
    dataset.save_as(series / "slice_0021.dcm")
    _, left_out = look(series.parent)
    assert len(left_out) == is_lost


@pytest.mark.parametrize("keyword", ["Rows", "Columns", "SeriesInstanceUID"])
def test_an_image_without_what_every_image_has_is_damaged(series: Path, keyword: str) -> None:
    edit(series, lambda d, _: delattr(d, keyword), only=19)
    with pytest.raises(ScanError, match=f"it has no {keyword}"):
        read_scan(series)
    sources, left_out = look(series.parent)
    assert not sources
    assert len(left_out) == 2


def test_two_series_in_one_folder_are_two_scans(series: Path) -> None:
    before = read_scan(series)
    write_dicom(head(1), series.parent / "other", "MR", uid_from="another")
    for path in (series.parent / "other").iterdir():
        path.rename(series / f"other_{path.name}")
    (series.parent / "other").rmdir()
    sources, left_out = look(series.parent)
    assert [source.name for source in sources] == [
        "series/other_slice_0001.dcm", "series/slice_0001.dcm",
    ]  # fmt: skip
    assert not left_out
    assert same_place(read_scan(sources[1].files[0]), before) == 0


def test_a_localiser_with_the_size_of_a_stack_is_no_damage(series: Path) -> None:
    for index, orientation in enumerate(([1, 0, 0, 0, 1, 0], [1, 0, 0, 0, 0, -1], [0, 1, 0, 0, 0, -1])):
        dataset = pydicom.dcmread(series / "slice_0001.dcm")
        dataset.SeriesInstanceUID, dataset.SeriesNumber = "1.2.3", 2
        dataset.SOPInstanceUID = f"1.2.3.{index}"
        dataset.ImageOrientationPatient = orientation
        dataset.ImagePositionPatient = [3.0, -40.0, 57.0]
        dataset.save_as(series / f"slice_{index + 30:04d}.dcm")
    sources, left_out = look(series.parent)
    assert [len(source.files) for source in sources] == [20, 3]
    assert not left_out
