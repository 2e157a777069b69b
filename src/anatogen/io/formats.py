"""File formats to `Volume` and back: NIfTI, NRRD, MetaImage, NPY here, DICOM series in
`dicom` and `dicom_writing`.

The first place that touches a user's scan, so everything that can be wrong with one is told here, as a
`ScanError` that names neither file nor patient. Readers keep the file's own axes in the order (k, j, i), so
the fastest axis of the file is W; `prepare` brings them to a common order afterwards.
"""

import gzip
import math
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt

from anatogen.core.errors import ScanError, UserError
from anatogen.core.files import atomic_path
from anatogen.core.reasons import Reason
from anatogen.io.checks import (
    check_dtype,
    check_size,
    checked_volume,
    quiet_libraries,
    quiet_native_code,
    squeezed_shape,
    unreadable,
)
from anatogen.io.dicom.headers import is_dicom, series_files
from anatogen.io.dicom.reading import read_dicom
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.geometry import centred_affine
from anatogen.io.itk_headers import check_data_length, data_files
from anatogen.io.volume import LPS_TO_RAS, Volume

__all__ = [
    "AS_IT_IS",
    "SCAN_ENDINGS",
    "Reading",
    "data_files",
    "ending",
    "read_dicom",
    "read_itk",
    "read_nifti",
    "read_npy",
    "read_scan",
    "write_array",
    "write_dicom",
    "write_nifti",
    "write_npy",
]

SCAN_ENDINGS = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd", ".npy")


def ending(path: Path) -> str:
    """The ending that decides the format, in lower case: ".nii.gz" as a whole, else the last suffix."""
    name = path.name.lower()
    return ".nii.gz" if name.endswith(".nii.gz") else path.suffix.lower()


@dataclass(frozen=True)
class Reading:
    """What files don't tell of themselves, and what is allowed in reading them.

    Attributes:
        npy_spacing_mm: Spacing along (D, H, W) of .npy files.
        npy_orientation: Directions in which (D, H, W) of .npy files grow.
        allow_tilt: Resamples DICOM series with gantry tilt instead of refusing them.
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
        return read_nifti(path)
    if kind in (".nrrd", ".mha", ".mhd"):
        return read_itk(path)
    raise ScanError(Reason.UNKNOWN_FORMAT(ending=kind or "(no ending)", known=", ".join(SCAN_ENDINGS)))


def read_nifti(path: Path) -> Volume:
    """Reads a NIfTI file; scaled values, affine from sform, else qform, else header, as nibabel does.

    Raises:
        ScanError: If it is damaged, has more than 3 dimensions, or its values are no finite scalars.
    """
    with quiet_libraries():
        try:
            image = nib.load(path)
            dtype = image.get_data_dtype()
            shape = squeezed_shape(tuple(image.shape))
            check_dtype(dtype)
            check_size(math.prod(shape) * dtype.itemsize, path)
            array = _whole_nifti(image, path).reshape(shape, order="F")
            affine = np.array(image.affine, dtype=np.float64)
            unit = image.header.get_xyzt_units()[0]
        except (MemoryError, ScanError):
            raise
        except Exception as error:  # damaged headers and streams can raise nearly anything
            raise unreadable(error) from error
    affine[:3] *= {"meter": 1000.0, "micron": 0.001}.get(unit, 1.0)
    return checked_volume(array.T, affine[:, [2, 1, 0, 3]])


def _whole_nifti(image: nib.spatialimages.SpatialImage, path: Path) -> npt.NDArray[np.float32]:
    """The scaled values, after a look at what follows them: a checksum, or voxels that the header denies."""
    with gzip.open(path) if ending(path) == ".nii.gz" else path.open("rb") as file:
        holder = nib.FileHolder(fileobj=file)
        # Not mapped: a file that shrinks while the scan is in use would end the process.
        again = type(image).from_file_map(dict.fromkeys(image.file_map, holder), mmap=False)
        array = np.asanyarray(again.dataobj, dtype=np.float32)
        file.seek(again.dataobj.offset + array.size * again.get_data_dtype().itemsize)
        left = 0
        while chunk := file.read(1 << 20):  # gzip compares its checksum at the end
            left += len(chunk)
    # One voxel fewer along an axis leaves at least this many.
    if left * max(array.shape) >= array.size * again.get_data_dtype().itemsize:
        raise ScanError(Reason.BYTES_LEFT_OVER(num_bytes=left))
    return array


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
            raise ScanError(Reason.SEVERAL_VALUES(num=reader.GetNumberOfComponents()))
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


def read_npy(
    path: Path, spacing_mm: tuple[float, float, float] = (1, 1, 1), orientation: str = "SPL"
) -> Volume:
    """Reads a .npy array as (D, H, W) with its centre at 0: the file has no affine.

    Args:
        path: The file.
        spacing_mm: Along (D, H, W).
        orientation: Directions in which (D, H, W) grow; "SPL" is axial slices.

    Raises:
        ScanError: If it is damaged, holds pickled objects, or is no 3D array of finite real numbers.
    """
    try:
        with path.open("rb") as file:
            array = np.load(file, allow_pickle=False)
            left = path.stat().st_size - file.tell()
    except MemoryError:
        raise
    except Exception as error:
        raise unreadable(error) from error
    if not isinstance(array, np.ndarray):
        raise ScanError(Reason.ARCHIVE_OF_ARRAYS())
    if left:
        raise ScanError(Reason.BYTES_LEFT_OVER(num_bytes=left))
    check_dtype(array.dtype)
    array = array.reshape(squeezed_shape(array.shape))
    return checked_volume(array, centred_affine(orientation, array.shape, spacing_mm))


def write_nifti(volume: Volume, path: Path, dtype: npt.DTypeLike = np.float32) -> None:
    """Writes NIfTI-1 (.nii or .nii.gz), atomically; equal volumes give equal bytes.

    Args:
        volume: (D, H, W); W becomes the file's fastest axis.
        path: Ends in .nii or .nii.gz.
        dtype: Of the file's voxels; values must fit it as they are.

    Raises:
        UserError: If the path has another ending.
    """
    kind = ending(path)
    if kind not in (".nii", ".nii.gz"):
        raise UserError(f"{path} must end in .nii or .nii.gz to be written as NIfTI")
    affine = volume.affine[:, [2, 1, 0, 3]]
    image = nib.Nifti1Image(volume.array.astype(dtype, copy=False).T, affine)
    image.header.set_xyzt_units("mm")
    image.set_sform(affine, code="scanner")
    axes = affine[:3, :3] / np.linalg.norm(affine[:3, :3], axis=0)
    # A qform can't hold shear; readers that prefer it would misplace a sheared scan, so it gets none.
    orthogonal = np.allclose(axes.T @ axes, np.eye(3), atol=1e-5)
    image.set_qform(affine if orthogonal else None, code="scanner" if orthogonal else "unknown")
    content = image.to_bytes()
    if kind == ".nii.gz":
        content = gzip.compress(content, compresslevel=6, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_npy(volume: Volume, path: Path) -> None:
    """Writes the array alone as .npy, (D, H, W) float32, atomically; the format holds no affine."""
    write_array(volume.array.astype(np.float32, copy=False), path)


def write_array(array: npt.NDArray[np.generic], path: Path) -> None:
    """Writes an array of any shape and dtype as .npy, atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
