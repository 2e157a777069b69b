"""Scans of every format: which reader reads a file, by its ending or, for DICOM, by its content.

The first place that touches a user's scan, so everything that can be wrong with one is told by the readers,
as a `ScanError` that names neither file nor patient. They keep the file's own axes in the order (k, j, i), so
the fastest axis of the file is W; `prepare` brings them to a common order afterwards.
"""

from dataclasses import dataclass
from pathlib import Path

from anatogen.core.errors import ScanError, UserError
from anatogen.core.reasons import Reason
from anatogen.io.dicom.headers import is_dicom
from anatogen.io.dicom.reading import read_dicom
from anatogen.io.dicom.series import series_files
from anatogen.io.itk import read_itk, write_itk
from anatogen.io.nifti import read_nifti, write_nifti
from anatogen.io.npy import read_npy, write_npy
from anatogen.io.shear import upright
from anatogen.io.volume import Volume

SCAN_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".npy")


def ending(path: Path) -> str:
    """The ending that decides the format, in lower case: ".nii.gz" as a whole, else the last suffix."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


@dataclass(frozen=True)
class Reading:
    """Settings for reading: facts that files don't tell of themselves, and what is allowed.

    Attributes:
        npy_spacing_mm: Spacing along (D, H, W) of .npy files.
        npy_orientation: Directions in which (D, H, W) of .npy files grow.
        allow_tilt: Resamples scans whose axes are not perpendicular (gantry tilt) instead of refusing them.
    """

    npy_spacing_mm: tuple[float, float, float] = (1.0, 1.0, 1.0)
    npy_orientation: str = "SPL"
    allow_tilt: bool = False


AS_IT_IS = Reading()


def read_scan(path: Path, reading: Reading = AS_IT_IS) -> Volume:
    """Reads a scan of any known format: a file by its ending, or a folder (or one file) of a DICOM series.

    Args:
        path: A .nii, .nii.gz, .nrrd, .mha, .mhd or .npy file, a DICOM file, or a folder that holds one
            DICOM series.
        reading: What the file does not tell, and what is allowed.

    Returns:
        Array float32 (D, H, W) in the scan's own unit (HU for CT) with its affine.

    Raises:
        ScanError: If it can't be read or can't be right; the message is the reason alone.
    """
    kind = ending(path)
    if path.is_dir() or (path.is_file() and kind not in SCAN_ENDINGS and is_dicom(path)):
        return read_dicom(series_files(path), allow_tilt=reading.allow_tilt)
    if not path.is_file():
        raise ScanError(Reason.NO_SUCH_FILE())
    if kind == ".npy":
        return read_npy(path, reading.npy_spacing_mm, reading.npy_orientation)
    if kind in (".nii", ".nii.gz"):
        return upright(read_nifti(path), allow_tilt=reading.allow_tilt)
    if kind in (".nrrd", ".mha", ".mhd"):
        return upright(read_itk(path), allow_tilt=reading.allow_tilt)
    raise ScanError(Reason.UNKNOWN_FORMAT(ending=kind or "(no ending)", known=", ".join(SCAN_ENDINGS)))


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
