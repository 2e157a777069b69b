"""NRRD and MetaImage to `Volume` and back, by SimpleITK.

Where a header is damaged, ITK fills up what is not there and leaves out what is too much without a word, so
what the text of the header says of the voxels, where they lie and how many there are, is checked here.
"""

import math
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from anatogen.core.errors import ScanError
from anatogen.core.files import atomic_path, utf8_name
from anatogen.core.reasons import Reason
from anatogen.io.checks import (
    check_size,
    checked_volume,
    millimetres,
    quiet_native_code,
    squeezed_shape,
    unreadable,
    why_absent,
)
from anatogen.io.volume import LPS_TO_RAS, Volume

if TYPE_CHECKING:
    import SimpleITK as sitk

# The line that names the file of the voxels, in headers of MetaImage and NRRD.
_DATA_FILE = re.compile(
    rb"^\s*(?:ElementDataFile\s*[=:]|data ?file:(?!=))[ \t]*(.*?)\s*$", re.MULTILINE | re.I
)
# Where the header ends and voxels of the same file begin.
_META_END = re.compile(rb"^\s*ElementDataFile\s*[=:][^\n]*\n", re.MULTILINE | re.I)
_NRRD_END = re.compile(rb"\r?\n\r?\n")
_ENCODING = re.compile(rb"^encoding:\s*(\w+)", re.MULTILINE | re.I)
# ITK, too, looks at the first letter of a truth.
_META_COMPRESSED = re.compile(rb"^\s*CompressedData\s*[=:]\s*[T1]", re.MULTILINE | re.I)
_META_BIG_ENDIAN = re.compile(rb"^\s*(?:Binary|Element)\w*ByteOrderMSB\s*[=:]\s*[T1]", re.MULTILINE | re.I)
_META_HEADER_SIZE = re.compile(rb"^\s*HeaderSize\s*[=:]\s*(\d+)", re.MULTILINE | re.I)
# Text, and voxels that begin elsewhere: rare, left to ITK.
_UNUSUAL = re.compile(
    rb"^\s*(?:(?:line|byte) ?skip:|HeaderSize\s*[=:]|BinaryData\s*[=:]\s*F)", re.MULTILINE | re.I
)
# The units of lengths along each axis; MetaImage has one for all, and ITK looks at neither.
_UNITS = re.compile(
    rb"^\s*(?:DistanceUnits\s*[=:]|space units:(?!=)|units:(?!=))[ \t]*(.*?)\s*$", re.MULTILINE | re.I
)
# Of 3D Slicer's segmentations.
_SEGMENT = re.compile(rb"^Segment\d+_ID\s*:=", re.MULTILINE)
# What comes before the voxels is shorter than this.
_HEADER_BYTES = 1 << 16
_CHUNK = 1 << 20
_LONGEST_AXIS = 4096


def read_itk(path: Path) -> Volume:
    """Reads NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd) with SimpleITK.

    Raises:
        ScanError: If it is damaged, has more than 3 dimensions, or its values are no finite scalars.
    """
    import SimpleITK as sitk

    try:
        with _opened(path) as reader:
            affine = _affine(path, reader)
            size = squeezed_shape(tuple(reader.GetSize()))
            if reader.GetNumberOfComponents() > 1:
                raise ScanError(Reason.COLOUR())
            if reader.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
                raise ScanError(Reason.COMPLEX())
            check_size(math.prod(size), path, *data_files(path))
            array = _meta_voxels(path, reader) if _is_compressed_meta(path) else _itk_voxels(path, reader)
    except (MemoryError, ScanError):
        raise
    except Exception as error:
        raise unreadable(error) from error
    return checked_volume(array.reshape(size[::-1]), affine)


def has_segments(path: Path) -> bool:
    """Whether the header of a NRRD file tells of segments, as 3D Slicer writes them."""
    return _SEGMENT.search(_header(path)) is not None


def read_itk_header(path: Path) -> tuple[tuple[int, ...], npt.NDArray[np.float64]]:
    """What the header of a NRRD or MetaImage file tells of its geometry.

    Returns:
        Number of voxels along each axis, the slowest first, and the affine of the last three of them.

    Raises:
        RuntimeError: If it is damaged.
        ScanError: If its unit of lengths is not known.
    """
    with _opened(path) as reader:
        return tuple(reader.GetSize()[::-1]), _affine(path, reader)


@contextmanager
def _opened(path: Path) -> "Iterator[sitk.ImageFileReader]":
    """Yields a reader that knows the header of a file, whatever its name."""
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    with utf8_name(path, *data_files(path)) as name:
        reader.SetFileName(name)
        with quiet_native_code():
            reader.ReadImageInformation()
        yield reader


def _affine(path: Path, reader: "sitk.ImageFileReader") -> npt.NDArray[np.float64]:
    """Affine (4, 4), voxel (d, h, w, 1) to RAS+ mm; an axis with a negative spacing runs backwards."""
    dimension = reader.GetDimension()
    direction = np.array(reader.GetDirection()).reshape(dimension, dimension)[:3, :3]
    affine = np.eye(4)
    affine[: len(direction), : len(direction)] = direction * np.array(reader.GetSpacing())[:3]
    affine[: len(direction), 3] = reader.GetOrigin()[:3]
    affine[:3] *= _millimetres(path)[:, None]
    return (LPS_TO_RAS @ affine)[:, [2, 1, 0, 3]]


def _millimetres(path: Path) -> npt.NDArray[np.float64]:
    """What lengths along each axis of space are to be multiplied with, float64 (3,)."""
    found = _UNITS.search(_header(path))
    if not found:
        return np.ones(3)
    try:
        text = found.group(1).decode()
    except UnicodeDecodeError:
        text = found.group(1).decode("latin-1")
    units = re.findall(r'"([^"]*)"', text) or text.split() or [""]
    # MetaImage has one for all axes; beyond the third are times and the like.
    return np.array([millimetres(unit) for unit in (units * 3)[:3]])


def _itk_voxels(path: Path, reader: "sitk.ImageFileReader") -> npt.NDArray[np.generic]:
    import SimpleITK as sitk

    with quiet_native_code():
        array = sitk.GetArrayFromImage(reader.Execute())
    _check_data_length(path, array.nbytes)
    return array


def _is_compressed_meta(path: Path) -> bool:
    return path.suffix.lower() in (".mha", ".mhd") and _META_COMPRESSED.search(_header(path)) is not None


def _meta_voxels(path: Path, reader: "sitk.ImageFileReader") -> npt.NDArray[np.generic]:
    """The voxels of a compressed MetaImage, of which ITK unpacks as many bytes as the header says.

    Where CompressedDataSize is too low or missing, the rest would be whatever lies in memory.
    """
    import SimpleITK as sitk

    header = _header(path)
    skipped = int(found.group(1)) if (found := _META_HEADER_SIZE.search(header)) else 0
    dtype = sitk.GetArrayViewFromImage(sitk.Image([1, 1, 1], reader.GetPixelID())).dtype
    num_bytes = math.prod(reader.GetSize()) * dtype.itemsize
    file, start = _place_of_data(path, header)
    content, length, is_whole = _inflated(file, skipped or start, num_bytes)
    _check_length(num_bytes, length, is_whole)
    return np.frombuffer(content, dtype.newbyteorder(">" if _META_BIG_ENDIAN.search(header) else "<"))


def write_itk(volume: Volume, path: Path) -> None:
    """Writes NRRD (.nrrd) or MetaImage (.mha), compressed, float32, atomically.

    Args:
        volume: (D, H, W); W becomes the file's fastest axis.
        path: Ends in .nrrd or .mha.
    """
    import SimpleITK as sitk

    affine = LPS_TO_RAS @ volume.affine[:, [2, 1, 0, 3]]
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    image = sitk.GetImageFromArray(volume.array.astype(np.float32, copy=False))
    image.SetOrigin(affine[:3, 3].tolist())
    image.SetSpacing(spacing.tolist())
    image.SetDirection((affine[:3, :3] / spacing).ravel().tolist())
    with atomic_path(path) as temporary, utf8_name(temporary) as name:
        sitk.WriteImage(image, name, useCompression=True)


def data_files(path: Path) -> tuple[Path, ...]:
    """The file beside a MetaImage or NRRD header that holds its voxels; none where the header's file does.

    Args:
        path: A .nrrd, .nhdr, .mha or .mhd file.

    Raises:
        ScanError: If the header spreads its voxels over several files or names one that is not there.
    """
    found = _DATA_FILE.search(_header(path))
    name = found.group(1).decode(errors="surrogateescape") if found else "LOCAL"
    if name.upper() == "LOCAL":
        return ()
    if name.upper().split(maxsplit=1)[:1] == ["LIST"] or "%" in name:
        raise ScanError(Reason.SEVERAL_DATA_FILES())
    if Path(name).is_absolute() or not (path.parent / name).is_file():
        raise ScanError(why_absent(path.parent / name) or Reason.NO_DATA_FILE())
    return (path.parent / name,)


def _check_data_length(path: Path, num_bytes: int) -> None:
    """Checks that a file that ITK could read holds the voxels of its header, all and no more.

    Raises:
        ScanError: If there are fewer or more bytes, or a checksum is wrong.
    """
    header = _header(path)
    if _UNUSUAL.search(header):
        return
    found = _ENCODING.search(header)
    encoding = found.group(1).decode().lower() if found else "raw"
    file, start = _place_of_data(path, header)
    if encoding == "raw":
        _check_length(num_bytes, file.stat().st_size - start, is_whole=True)
    elif encoding in ("gzip", "gz"):
        _, length, is_whole = _inflated(file, start, 0)
        _check_length(num_bytes, length, is_whole)


def _check_length(num_bytes: int, length: int, is_whole: bool) -> None:
    # Some writers end with a line break; an axis that is told one voxel too short leaves more.
    if not is_whole or length < num_bytes or (length - num_bytes) * _LONGEST_AXIS >= num_bytes:
        raise ScanError(Reason.OTHER_NUMBER_OF_BYTES(announced=num_bytes, found=length))


def _place_of_data(path: Path, header: bytes) -> tuple[Path, int]:
    """The file that holds the voxels, and where in it they begin."""
    beside = data_files(path)
    return (beside[0], 0) if beside else (path, len(header))


def _inflated(path: Path, start: int, num_bytes: int) -> tuple[bytearray, int, bool]:
    """The first bytes of a zlib or gzip stream, how many it holds, and whether it ends, with its checksum.

    Args:
        path: The file.
        start: Where in it the stream begins.
        num_bytes: How many bytes are wanted.
    """
    # 32 finds out whether it is zlib or gzip.
    unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
    content, length = bytearray(), 0
    with path.open("rb") as file:
        file.seek(start)
        while not unpack.eof and (chunk := file.read(_CHUNK)):
            part = unpack.decompress(chunk)
            length += len(part)
            content += part[: num_bytes - len(content)]
    return content, length, unpack.eof


def _header(path: Path) -> bytes:
    """The text at the file's start, up to the first byte of voxels that lie in the same file."""
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
    except OSError as error:
        raise ScanError(Reason.NOT_READABLE(why=str(error.strerror))) from error
    end = (_META_END if path.suffix.lower() in (".mha", ".mhd") else _NRRD_END).search(start)
    return start[: end.end()] if end else start
