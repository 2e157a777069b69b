"""MetaImage as other programs write it: the right voxels, or refused."""

import zlib
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk

from anatogen.core.errors import ScanError
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
