"""Every transfer syntax gives the voxels of the uncompressed series: signed or not, 8 to 16 bits."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pydicom
import pytest
from jpeg_makers import flat_block_jpeg, lossless_jpeg
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from scan_makers import head

from anatogen.core.errors import ScanError
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.formats import read_scan

LOSSLESS = {
    "implicit": uid.ImplicitVRLittleEndian,
    "explicit": uid.ExplicitVRLittleEndian,
    "big endian": uid.ExplicitVRBigEndian,
    "deflated": uid.DeflatedExplicitVRLittleEndian,
    "RLE": uid.RLELossless,
    "JPEG lossless SV1": uid.JPEGLosslessSV1,
    "JPEG lossless": uid.JPEGLossless,
    "JPEG-LS": uid.JPEGLSLossless,
    "JPEG 2000": uid.JPEG2000Lossless,
}

# Bits allocated, bits stored, signed.
STORED = [(8, 8, False), (16, 16, False), (16, 16, True), (16, 12, False), (16, 12, True), (16, 10, False)]


def encode(dataset: Dataset, syntax: uid.UID, index: int = 0) -> None:
    """Puts a dataset that was read uncompressed into another transfer syntax."""
    pixels = dataset.pixel_array
    if syntax in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        predictor = 1 if syntax == uid.JPEGLosslessSV1 else index % 7 + 1
        dataset.PixelData = encapsulate([lossless_jpeg(pixels, predictor, dataset.BitsStored)])
        dataset["PixelData"].is_undefined_length = True
        dataset["PixelData"].VR = "OB"
    elif syntax.is_encapsulated:
        dataset.compress(syntax, generate_instance_uid=False)
    elif syntax == uid.ExplicitVRBigEndian:
        dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder(">")).tobytes()
        dataset["PixelData"].VR = "OW" if pixels.itemsize > 1 else "OB"
    dataset.file_meta.TransferSyntaxUID = syntax


def save(dataset: Dataset, path: Path) -> None:
    syntax = dataset.file_meta.TransferSyntaxUID
    pydicom.dcmwrite(
        path,
        dataset,
        implicit_vr=syntax.is_implicit_VR,
        little_endian=syntax.is_little_endian,
        force_encoding=True,
    )


def rewrite(folder: Path, change: Callable[[Dataset, int], None]) -> None:
    for index, path in enumerate(sorted(folder.glob("*.dcm"))):
        dataset = pydicom.dcmread(path)
        dataset.decompress() if dataset.file_meta.TransferSyntaxUID.is_compressed else None
        change(dataset, index)
        save(dataset, path)


def stored_series(folder: Path, allocated: int, stored: int, signed: bool) -> np.ndarray:
    """Six slices of noise over the whole range with a slope of each slice; the values they stand for."""
    generator = np.random.default_rng(stored + signed)
    low, high = (-(1 << (stored - 1)), 1 << (stored - 1)) if signed else (0, 1 << stored)
    dtype = np.dtype(f"{'i' if signed else 'u'}{allocated // 8}")
    pixels = generator.integers(low, high, (6, 40, 33)).astype(dtype)
    pixels[:, :8] = np.linspace(low, high - 1, 8 * 33).reshape(8, 33)
    pixels[:, 8:10] = [[low], [high - 1]]
    write_dicom(head(shape=pixels.shape), folder, "MR", uid_from="a")

    def describe(dataset: Dataset, index: int) -> None:
        dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = allocated, stored, stored - 1
        dataset.PixelRepresentation = int(signed)
        dataset.RescaleSlope, dataset.RescaleIntercept = 0.25 + index, -7 * index
        dataset.PixelData = pixels[index].tobytes()
        dataset["PixelData"].VR = "OW" if allocated > 8 else "OB"

    rewrite(folder, describe)
    index = np.arange(6).reshape(6, 1, 1)
    return (pixels * (0.25 + index) - 7 * index).astype(np.float32)


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("stored", STORED, ids=str)
def test_lossless_syntaxes_give_the_stored_values(
    tmp_path: Path, name: str, stored: tuple[int, int, bool]
) -> None:
    expected = stored_series(tmp_path / "series", *stored)
    rewrite(tmp_path / "series", lambda dataset, index: encode(dataset, LOSSLESS[name], index))
    first = pydicom.dcmread(tmp_path / "series" / "slice_0001.dcm")
    assert first.file_meta.TransferSyntaxUID == LOSSLESS[name]
    array = read_scan(tmp_path / "series").array
    assert np.array_equal(array, expected)


@pytest.mark.parametrize("name", LOSSLESS)
@pytest.mark.parametrize("series", ["hippocampus_crop", "t1_pre_axial_oblique"])
def test_real_slices_in_every_syntax(shared_data: Path, tmp_path: Path, name: str, series: str) -> None:
    every = sorted((shared_data / "dicom" / series).iterdir())
    place = {path: pydicom.dcmread(path).ImagePositionPatient[2] for path in every}
    chosen = sorted(every, key=lambda path: place[path])[: 4 if series.startswith("t1") else 12]
    for path in chosen:
        (tmp_path / path.name).write_bytes(path.read_bytes())
    before = read_scan(tmp_path)
    if LOSSLESS[name] in (uid.JPEGLossless, uid.JPEGLosslessSV1):
        rewrite(tmp_path, lambda dataset, _: _centre(dataset))
        before = read_scan(tmp_path)
    rewrite(tmp_path, lambda dataset, index: encode(dataset, LOSSLESS[name], index))
    after = read_scan(tmp_path)
    assert np.array_equal(before.array, after.array)
    assert np.array_equal(before.affine, after.affine)


def _centre(dataset: Dataset) -> None:
    # The test's own encoder of lossless JPEG is slow.
    pixels = dataset.pixel_array[:60, :60]
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.PixelData = pixels.tobytes()


def test_lossy_jpeg_2000_and_jpeg_ls_are_near(tmp_path: Path) -> None:
    write_dicom(head(shape=(6, 40, 33)), tmp_path / "series", "MR", uid_from="a")
    before = read_scan(tmp_path / "series")
    for syntax, options in [(uid.JPEG2000, {"j2k_psnr": [80]}), (uid.JPEGLSNearLossless, {"jls_error": 3})]:
        rewrite(tmp_path / "series", lambda d, _: d.compress(syntax, generate_instance_uid=False, **options))  # noqa: B023
        assert pydicom.dcmread(tmp_path / "series" / "slice_0001.dcm").file_meta.TransferSyntaxUID == syntax
        difference = np.abs(read_scan(tmp_path / "series").array - before.array).max()
        assert 0 < difference < 40
        rewrite(tmp_path / "series", lambda dataset, _: encode(dataset, uid.ExplicitVRLittleEndian))


@pytest.mark.parametrize(("precision", "syntax"), [(8, uid.JPEGBaseline8Bit), (12, uid.JPEGExtended12Bit)])
def test_jpeg_of_the_cosine_transform(tmp_path: Path, precision: int, syntax: uid.UID) -> None:
    blocks = np.random.default_rng(0).integers(0, 1 << precision, (6, 3, 2))
    write_dicom(head(shape=(6, 24, 16)), tmp_path / "series", "MR", uid_from="a")

    def compress(dataset: Dataset, index: int) -> None:
        dataset.BitsAllocated = 8 if precision == 8 else 16
        dataset.BitsStored, dataset.HighBit = precision, precision - 1
        dataset.PixelData = encapsulate([flat_block_jpeg(blocks[index], precision)])
        dataset["PixelData"].is_undefined_length = True
        dataset["PixelData"].VR = "OB"
        dataset.file_meta.TransferSyntaxUID = syntax

    rewrite(tmp_path / "series", compress)
    expected = np.kron(blocks, np.ones((1, 8, 8)))
    assert np.abs(read_scan(tmp_path / "series").array - expected).max() <= 1


@pytest.mark.parametrize("name", [name for name, syntax in LOSSLESS.items() if syntax.is_compressed])
def test_a_stream_that_was_cut_is_refused(tmp_path: Path, name: str) -> None:
    stored_series(tmp_path / "series", 16, 12, False)
    rewrite(tmp_path / "series", lambda dataset, index: encode(dataset, LOSSLESS[name], index))
    path = tmp_path / "series" / "slice_0003.dcm"
    dataset = pydicom.dcmread(path)
    if LOSSLESS[name] == uid.DeflatedExplicitVRLittleEndian:
        path.write_bytes(path.read_bytes()[:-150])
    else:
        frame = next(pydicom.encaps.generate_frames(dataset.PixelData, number_of_frames=1))
        dataset.PixelData = encapsulate([frame[: len(frame) * 2 // 3]])
        dataset["PixelData"].is_undefined_length = True
        save(dataset, path)
    with pytest.raises(ScanError):
        read_scan(tmp_path / "series")


def test_unknown_compression_is_named(tmp_path: Path) -> None:
    write_dicom(head(), tmp_path / "series", "MR", uid_from="a")
    rewrite(tmp_path / "series", lambda dataset, _: encode(dataset, uid.RLELossless))
    for path in (tmp_path / "series").iterdir():
        dataset = pydicom.dcmread(path)
        dataset.file_meta.TransferSyntaxUID = uid.MPEG4HP41
        dataset.save_as(path)
    with pytest.raises(ScanError, match=r"MPEG-4 .*\), which is not supported"):
        read_scan(tmp_path / "series")
