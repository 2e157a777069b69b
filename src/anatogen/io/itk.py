"""NRRD and MetaImage to `Volume` and back, by SimpleITK.

Where a header is damaged, ITK fills up what is not there and leaves out what is too much without a word, so
what the text of the header says of the voxels, where they lie and how many there are, is checked here.
"""

import math
import re
import zlib
from pathlib import Path

import numpy as np

from anatogen.core.errors import ScanError
from anatogen.core.files import atomic_path
from anatogen.core.reasons import Reason
from anatogen.io.checks import check_size, checked_volume, quiet_native_code, squeezed_shape, unreadable
from anatogen.io.volume import LPS_TO_RAS, Volume

# The line that names the file of the voxels, in headers of MetaImage and NRRD.
_DATA_FILE = re.compile(
    rb"^\s*(?:ElementDataFile\s*[=:]|data ?file:(?!=))[ \t]*(.*?)\s*$", re.MULTILINE | re.I
)
# Where the header ends and voxels of the same file begin.
_META_END = re.compile(rb"^\s*ElementDataFile\s*[=:][^\n]*\n", re.MULTILINE | re.I)
_NRRD_END = re.compile(rb"\r?\n\r?\n")
_ENCODING = re.compile(rb"^encoding:\s*(\w+)", re.MULTILINE | re.I)
_META_COMPRESSED = re.compile(rb"^\s*CompressedData\s*[=:]\s*True", re.MULTILINE | re.I)
# Text, and voxels that begin elsewhere: rare, left to ITK.
_UNUSUAL = re.compile(
    rb"^\s*(?:(?:line|byte) ?skip:|HeaderSize\s*[=:]|BinaryData\s*[=:]\s*F)", re.MULTILINE | re.I
)
# What comes before the voxels is shorter than this.
_HEADER_BYTES = 1 << 16
_CHUNK = 1 << 20
_LONGEST_AXIS = 4096


def read_itk(path: Path) -> Volume:
    """Reads NRRD and MetaImage (.mha, .mhd) with SimpleITK.

    Raises:
        ScanError: If it is damaged, has more than 3 dimensions, or its values are no finite scalars.
    """
    import SimpleITK as sitk

    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    try:
        with quiet_native_code():
            reader.ReadImageInformation()
        size = squeezed_shape(tuple(reader.GetSize()))
        if reader.GetNumberOfComponents() > 1:
            raise ScanError(Reason.COLOUR())
        if reader.GetPixelID() in (sitk.sitkComplexFloat32, sitk.sitkComplexFloat64):
            raise ScanError(Reason.COMPLEX())
        check_size(math.prod(size), path, *data_files(path))
        with quiet_native_code():
            image = reader.Execute()
        check_data_length(path, sitk.GetArrayViewFromImage(image).nbytes)
    except (MemoryError, ScanError):
        raise
    except Exception as error:
        raise unreadable(error) from error
    array = sitk.GetArrayFromImage(image).reshape(size[::-1])
    dimension = image.GetDimension()
    direction = np.array(image.GetDirection()).reshape(dimension, dimension)[:3, :3]
    affine = np.eye(4)
    affine[:3, :3] = direction * np.array(image.GetSpacing())[:3]
    affine[:3, 3] = image.GetOrigin()[:3]
    return checked_volume(array, (LPS_TO_RAS @ affine)[:, [2, 1, 0, 3]])


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
    with atomic_path(path) as temporary:
        sitk.WriteImage(image, str(temporary), useCompression=True)


def data_files(path: Path) -> tuple[Path, ...]:
    """The file beside a MetaImage or NRRD header that holds its voxels; none where the header's file does.

    Args:
        path: A scan of any format.

    Raises:
        ScanError: If the header spreads its voxels over several files or names one that is not there.
    """
    if path.suffix.lower() not in (".mha", ".mhd", ".nrrd"):
        return ()
    found = _DATA_FILE.search(_header(path))
    name = found.group(1).decode(errors="surrogateescape") if found else "LOCAL"
    if name.upper() == "LOCAL":
        return ()
    if name.upper().split(maxsplit=1)[:1] == ["LIST"] or "%" in name:
        raise ScanError(Reason.SEVERAL_DATA_FILES())
    if Path(name).is_absolute() or not (path.parent / name).is_file():
        raise ScanError(Reason.NO_DATA_FILE())
    return (path.parent / name,)


def check_data_length(path: Path, num_bytes: int) -> None:
    """Checks that a file holds the voxels of its header, all and no more, with right checksums.

    Args:
        path: A .mha, .mhd or .nrrd file that ITK could read.
        num_bytes: Of all its voxels, uncompressed.

    Raises:
        ScanError: If there are fewer or more bytes, or damaged ones.
    """
    header = _header(path)
    if _UNUSUAL.search(header):
        return
    encoding = "zlib" if _META_COMPRESSED.search(header) else "raw"
    if found := _ENCODING.search(header):
        encoding = found.group(1).decode().lower()
    beside = data_files(path)
    with (beside[0] if beside else path).open("rb") as file:
        file.seek(0 if beside else len(header))
        if encoding == "raw":
            length = file.seek(0, 2) - (0 if beside else len(header))
            is_whole = True
        elif encoding in ("zlib", "gzip", "gz"):
            # 32 finds out whether it is zlib or gzip.
            unpack = zlib.decompressobj(zlib.MAX_WBITS | 32)
            length = 0
            while not unpack.eof and (chunk := file.read(_CHUNK)):
                length += len(unpack.decompress(chunk))
            is_whole = unpack.eof
        else:
            return
    # Some writers end with a line break; an axis that is told one voxel too short leaves more.
    if not is_whole or length < num_bytes or (length - num_bytes) * _LONGEST_AXIS >= num_bytes:
        raise ScanError(Reason.OTHER_NUMBER_OF_BYTES(announced=num_bytes, found=length))


def _header(path: Path) -> bytes:
    """The text at the file's start, up to the first byte of voxels that lie in the same file."""
    try:
        with path.open("rb") as file:
            start = file.read(_HEADER_BYTES)
    except OSError as error:
        raise ScanError(Reason.NOT_READABLE(why=str(error.strerror))) from error
    end = (_NRRD_END if path.suffix.lower() == ".nrrd" else _META_END).search(start)
    return start[: end.end()] if end else start
