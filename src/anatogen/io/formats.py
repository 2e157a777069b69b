"""Scans of every format: which reader reads a file, by its ending or, for DICOM, by its content.

The first place that touches a user's scan, so everything that can be wrong with one is told by the readers,
as a `ScanError` that names neither file nor patient. They keep the file's own axes in the order (k, j, i), so
the fastest axis of the file is W; `prepare` brings them to a common order afterwards.
"""

from dataclasses import dataclass
from pathlib import Path

from anatogen.core.errors import ScanError, UserError
from anatogen.core.reasons import Reason
from anatogen.io.checks import why_absent
from anatogen.io.dicom.headers import is_dicom
from anatogen.io.dicom.reading import read_dicom
from anatogen.io.dicom.series import series_files
from anatogen.io.itk import data_files, has_segments, read_itk, write_itk
from anatogen.io.nifti import has_label_intent, is_pair_header, pair_image, read_nifti, write_nifti
from anatogen.io.npy import read_npy, write_npy
from anatogen.io.padding import without_padding
from anatogen.io.shear import upright
from anatogen.io.volume import Volume

_NIBABEL = (".nii", ".nii.gz", ".hdr", ".mgz", ".mgh")
_ITK = (".nrrd", ".nhdr", ".mha", ".mhd")
SCAN_ENDINGS = (*_NIBABEL, *_ITK, ".npy")
# What holds scans, too, and is not read: left out by name. Of two files the one with the voxels.
OTHER_SCAN_ENDINGS = (
    ".nii.bz2", ".nii.xz", ".nii.zst", ".img.gz", ".mgh.gz", ".nrrd.gz", ".mha.gz", ".npy.gz",
    ".mnc", ".mnc.gz", ".brik", ".brik.gz", ".rec", ".mif", ".mif.gz", ".gipl", ".gipl.gz",
)  # fmt: skip
_COMPRESSED = (".gz", ".bz2", ".xz", ".zst")


def ending(path: Path) -> str:
    """The ending that decides the format, in lower case: ".nii.gz" as a whole, else the last suffix."""
    suffixes = Path(path.name.lower()).suffixes
    return "".join(suffixes[-2:] if suffixes[-1:] and suffixes[-1] in _COMPRESSED else suffixes[-1:])


def is_scan_file(path: Path) -> bool:
    """Whether the file is a scan of a format that can be read, or the header of one, DICOM aside."""
    kind = ending(path)
    try:
        is_other = kind == ".hdr" and not is_pair_header(path) and why_absent(path) is None
    except OSError:  # whatever it holds, it has to be told that it can't be read
        is_other = False
    return kind in SCAN_ENDINGS and not is_other


def says_labels(path: Path) -> bool:
    """Whether the header of a file says that its values are labels.

    Args:
        path: Of a scan that `read_scan` reads.
    """
    kind = ending(path)
    if kind in _NIBABEL:
        return has_label_intent(path)
    return kind in _ITK and has_segments(path)


def files_beside(path: Path) -> tuple[Path, ...]:
    """The files that hold the voxels of a header; none where the header's file does.

    Args:
        path: For which `is_scan_file` holds.

    Raises:
        ScanError: If the header spreads its voxels over several files or names one that is not there.
    """
    if ending(path) == ".hdr":
        return (pair_image(path),)
    return data_files(path) if ending(path) in _ITK else ()


@dataclass(frozen=True)
class Reading:
    """Settings for reading: facts that files don't tell of themselves, and what is allowed.

    Attributes:
        npy_spacing_mm: Spacing along (D, H, W) of .npy files.
        npy_orientation: Directions in which (D, H, W) of .npy files grow.
        allow_tilt: Resamples scans whose axes are not perpendicular (gantry tilt) instead of refusing them.
        is_labels: Whether the file is a label map, whose values are never mixed.
    """

    npy_spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    npy_orientation: str = "SPL"
    allow_tilt: bool = False
    is_labels: bool = False


AS_IT_IS = Reading()


def read_scan(path: Path, reading: Reading = AS_IT_IS) -> Volume:
    """Reads a scan of any known format: a file by its ending, or a folder (or one file) of a DICOM series.

    Args:
        path: A .nii, .nii.gz, .hdr (beside .img), .mgz, .mgh, .nrrd, .nhdr, .mha, .mhd or .npy file, a DICOM
            file, or a folder that holds one DICOM series.
        reading: What the file does not tell, and what is allowed.

    Returns:
        Array float32 (D, H, W) in the scan's own unit (HU for CT) with its affine.

    Raises:
        ScanError: If it can't be read or can't be right; the message is the reason alone.
    """
    kind = ending(path)
    if path.is_dir() or (path.is_file() and kind not in SCAN_ENDINGS and is_dicom(path)):
        return read_dicom(series_files(path), allow_tilt=reading.allow_tilt, is_labels=reading.is_labels)
    if not path.is_file():
        raise ScanError(Reason.NO_SUCH_FILE())
    if kind == ".npy":
        volume = read_npy(path, reading.npy_spacing_mm, reading.npy_orientation)
    elif kind in _NIBABEL:
        volume = read_nifti(path)
    elif kind in _ITK:
        volume = read_itk(path)
    else:
        raise ScanError(Reason.UNKNOWN_FORMAT(ending=kind or "(no ending)", known=", ".join(SCAN_ENDINGS)))
    # Before anything is interpolated.
    volume = volume if reading.is_labels else without_padding(volume)
    if kind == ".npy":
        return volume
    return upright(volume, allow_tilt=reading.allow_tilt, is_labels=reading.is_labels)


def write_scan(volume: Volume, path: Path) -> None:
    """Writes a scan, float32, atomically, in the format of the path's ending.

    Raises:
        UserError: If it is none of .nii, .nii.gz, .nrrd, .mha and .npy.
    """
    kind = ending(path)
    if kind in (".nii", ".nii.gz"):
        write_nifti(volume, path)
    elif kind in (".nrrd", ".mha"):
        write_itk(volume, path)
    elif kind == ".npy":
        write_npy(volume, path)
    else:
        raise UserError(f"{path} must end in .nii, .nii.gz, .nrrd, .mha or .npy to be written")
