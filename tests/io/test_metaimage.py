"""MetaImage as other programs write it: the right voxels, or refused."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from anatogen.core.errors import ScanError
from anatogen.dataset.discover import Source
from anatogen.doctor.headers import read_scan_header
from anatogen.io.formats import read_scan

ELEMENTS = {"MET_SHORT": "i2", "MET_UCHAR": "u1", "MET_UINT": "u4", "MET_FLOAT": "f4", "MET_DOUBLE": "f8"}


def voxels(element: str = "MET_SHORT") -> np.ndarray:
    values = np.random.default_rng(0).integers(0, 200, (20, 24, 18))
    return values.astype(ELEMENTS[element])


def write_meta(
    path: Path,
    content: bytes,
    more: str = "",
    element: str = "MET_SHORT",
    spacing: str = "0.7 0.8 2.5",
    compressed: str = "True",
    msb: str = "False",
) -> Path:
    """A header by hand, with its voxels behind it (.mha) or beside it (.mhd)."""
    data = "LOCAL" if path.suffix == ".mha" else f"{path.stem}.zraw"
    header = (
        f"ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = {msb}\n"
        f"CompressedData = {compressed}\n{more}TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = 10 -20 30\n"
        f"ElementSpacing = {spacing}\nDimSize = 18 24 20\nElementType = {element}\nElementDataFile = {data}\n"
    )
    path.write_bytes(header.encode() + (content if data == "LOCAL" else b""))
    if data != "LOCAL":
        (path.parent / data).write_bytes(content)
    return path


@pytest.mark.parametrize("ending", [".mha", ".mhd"])
@pytest.mark.parametrize("line", ["{}", "{half}", "{double}", "0", "-1", None])
@pytest.mark.parametrize("more", ["", "HeaderSize = 0\n", "HeaderSize = -1\n"])
def test_a_wrong_or_missing_compressed_size_changes_no_voxel(
    tmp_path: Path, ending: str, line: str | None, more: str
) -> None:
    """ITK unpacked as many bytes as told: the rest was whatever lay in memory, other at each call."""
    array = voxels()
    content = zlib.compress(array.tobytes())
    if line is not None:
        size = line.format(len(content), half=len(content) // 2, double=2 * len(content))
        more += f"CompressedDataSize = {size}\n"
    path = write_meta(tmp_path / f"scan{ending}", content, more)
    assert np.array_equal(read_scan(path).array, array)


def test_compressed_voxels_that_begin_elsewhere(tmp_path: Path) -> None:
    content = zlib.compress(voxels().tobytes())
    path = write_meta(tmp_path / "scan.mhd", b"12345" + content, "HeaderSize = 5\n")
    assert np.array_equal(read_scan(path).array, voxels())


@pytest.mark.parametrize("compressed", ["True", "true", "T", "1"])
@pytest.mark.parametrize("msb", ["False", "True"])
@pytest.mark.parametrize("element", ELEMENTS)
def test_compressed_voxels_agree_with_itk(tmp_path: Path, element: str, msb: str, compressed: str) -> None:
    array = voxels(element)
    stored = array.astype(array.dtype.newbyteorder(">" if msb == "True" else "<"))
    content = zlib.compress(stored.tobytes())
    more = f"CompressedDataSize = {len(content)}\n"
    path = write_meta(tmp_path / "scan.mha", content, more, element, compressed=compressed, msb=msb)
    itk = sitk.GetArrayFromImage(sitk.ReadImage(path))
    assert np.array_equal(itk, array)
    assert np.array_equal(read_scan(path).array, array)


@pytest.mark.parametrize("more", ["", "HeaderSize = 0\n", "CompressedDataSize = 0\n"])
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
@pytest.mark.parametrize("inside", [False, True], ids=["cut stream", "whole stream of fewer voxels"])
def test_too_few_compressed_voxels_are_refused(tmp_path: Path, more: str, share: float, inside: bool) -> None:
    raw = voxels().tobytes()
    content = zlib.compress(raw[: int(share * len(raw))] if inside else raw)
    content = content if inside else content[: int(share * len(content))]
    path = write_meta(tmp_path / "scan.mha", content, more)
    with pytest.raises(ScanError, match=r"header is damaged: 17280 bytes announced"):
        read_scan(path)


@pytest.mark.parametrize("compressed", ["True", "False"])
@pytest.mark.parametrize("unit, millimetres", [("mm", 1), ("cm", 10), ("um", 1e-3), ("?", 1)])
def test_units_of_lengths(tmp_path: Path, unit: str, millimetres: float, compressed: str) -> None:
    """All were read as millimetres."""
    content = voxels().tobytes()
    content = zlib.compress(content) if compressed == "True" else content
    path = write_meta(tmp_path / "scan.mha", content, f"DistanceUnits = {unit}\n", compressed=compressed)
    scan = read_scan(path)
    np.testing.assert_allclose(scan.spacing_mm, np.array([2.5, 0.8, 0.7]) * millimetres)
    np.testing.assert_allclose(scan.affine[:3, 3], np.array([-10, 20, 30]) * millimetres)
    header = read_scan_header(Source("scan.mha", (path,)))
    np.testing.assert_allclose(header.spacing_mm, scan.spacing_mm)


def test_a_unit_that_is_not_known_is_refused(tmp_path: Path) -> None:
    path = write_meta(tmp_path / "scan.mha", zlib.compress(voxels().tobytes()), "DistanceUnits = inch\n")
    with pytest.raises(ScanError, match="lengths in 'inch': known are m, cm, mm, um and nm"):
        read_scan(path)


@pytest.mark.parametrize("compressed", ["True", "False"])
def test_an_axis_with_negative_spacing_runs_backwards(tmp_path: Path, compressed: str) -> None:
    content = voxels().tobytes()
    content = zlib.compress(content) if compressed == "True" else content
    path = write_meta(tmp_path / "scan.mha", content, spacing="-0.7 0.8 -2.5", compressed=compressed)
    scan = read_scan(path)
    np.testing.assert_allclose(scan.spacing_mm, (2.5, 0.8, 0.7))
    # In LPS: 10 - 0.7 i, -20 + 0.8 j, 30 - 2.5 k.
    for index in [(0, 0, 0), (3, 5, 7)]:
        k, j, i = index
        place = (scan.affine @ [*index, 1])[:3]
        np.testing.assert_allclose(place, [-(10 - 0.7 * i), 20 - 0.8 * j, 30 - 2.5 * k])
    header = read_scan_header(Source("scan.mha", (path,)))
    np.testing.assert_allclose(header.spacing_mm, (2.5, 0.8, 0.7))
