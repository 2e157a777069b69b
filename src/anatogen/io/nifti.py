"""NIfTI (and FreeSurfer's MGH, which nibabel reads too) to `Volume`, and NIfTI back."""

import gzip
import math
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
from nibabel.arrayproxy import ArrayProxy
from nibabel.spatialimages import SpatialImage

from anatogen.core.errors import ScanError, UserError
from anatogen.core.files import atomic_path
from anatogen.core.reasons import Reason
from anatogen.io.checks import (
    check_dtype,
    check_size,
    checked_volume,
    millimetres,
    quiet_libraries,
    squeezed_shape,
    unreadable,
    why_absent,
)
from anatogen.io.volume import Volume

# NIFTI_INTENT_LABEL and NIFTI_INTENT_NEURONAME: values are labels.
_LABEL_INTENTS = (1002, 1003)
# They stand between header and voxels; the first says whether an extension follows.
_EXTENDER_BYTES = 4


def read_nifti(path: Path) -> Volume:
    """Reads NIfTI (.nii, .nii.gz, .hdr beside .img) and MGH (.mgh, .mgz): scaled values.

    The affine of NIfTI comes from the sform, else the qform, else the size of its voxels, as nibabel has it.

    Raises:
        ScanError: If it is damaged, has more than 3 dimensions, or its values are no finite scalars.
    """
    with quiet_libraries():
        try:
            image = nib.load(path)
            if not isinstance(image, nib.Nifti1Pair | nib.MGHImage):
                raise ScanError(Reason.ANALYZE())
            dtype = image.get_data_dtype()
            shape = squeezed_shape(tuple(image.shape))
            check_dtype(dtype)
            voxels = Path(image.file_map["image"].filename)
            check_size(math.prod(shape) * dtype.itemsize, voxels)
            array = _whole(image, voxels).reshape(shape, order="F")
            affine = affine_of(image)
        except (MemoryError, ScanError):
            raise
        except Exception as error:  # damaged headers and streams can raise nearly anything
            raise unreadable(error) from error
    return checked_volume(array.T, affine)


def has_label_intent(path: Path) -> bool:
    """Whether a header says that the values of NIfTI are labels.

    Args:
        path: Of a scan that `read_nifti` reads.
    """
    with quiet_libraries():
        header = nib.load(path).header
    return isinstance(header, nib.Nifti1Header) and int(header["intent_code"]) in _LABEL_INTENTS


def is_pair_header(path: Path) -> bool:
    """Whether an .hdr file is the header of an .img file, by the length that it tells; others have text."""
    with path.open("rb") as file:
        told = file.read(4)
    return any(int.from_bytes(told, order) in (348, 540) for order in ("little", "big"))


def pair_image(header: Path) -> Path:
    """The .img file beside an .hdr file.

    Raises:
        ScanError: If there is none.
    """
    path = header.with_suffix(".IMG" if header.suffix.isupper() else ".img")
    if not path.is_file():
        raise ScanError(why_absent(path) or Reason.NO_DATA_FILE())
    return path


def affine_of(image: SpatialImage) -> npt.NDArray[np.float64]:
    """Affine (4, 4), voxel (d, h, w, 1) to RAS+ mm.

    Raises:
        ScanError: If voxels have no size, or a negative one where nothing else tells their axes' directions.
    """
    if isinstance(image, nib.MGHImage):
        return np.array(image.affine, dtype=np.float64)[:, [2, 1, 0, 3]]
    if image.header["sform_code"] <= 0:
        # nibabel makes 1 of 0 and leaves out the sign, other programs make 1 of a negative size, too.
        with image.file_map.get("header", image.file_map["image"]).get_prepare_fileobj("rb") as file:
            sizes = image.header_class.from_fileobj(file, check=False)["pixdim"][1:4]
        if not (sizes > 0).all():
            smallest, largest = float(sizes.min()), float(sizes.max())
            raise ScanError(Reason.IMPOSSIBLE_SPACING(smallest=smallest, largest=largest))
    affine = np.array(image.affine, dtype=np.float64)
    affine[:3] *= millimetres(image.header.get_xyzt_units()[0])
    return affine[:, [2, 1, 0, 3]]


def _whole(image: SpatialImage, path: Path) -> npt.NDArray[np.float32]:
    """The scaled values, after a look at what follows them: a checksum, or voxels that the header denies."""
    with gzip.open(path) if _is_zipped(path) else path.open("rb") as file:
        holder = nib.FileHolder(fileobj=file)
        # Not mapped: a file that shrinks while the scan is in use would end the process.
        again = type(image).from_file_map({**image.file_map, "image": holder}, mmap=False)
        voxels = again.dataobj
        told = voxels.offset
        # The least offset in a single file, which begins with its header.
        first = image.header.single_vox_offset if isinstance(image, nib.Nifti1Image) else None
        if first and told == 0:
            # Some writers leave the place of the voxels out.
            spec = (voxels.shape, voxels.dtype, first, voxels.slope, voxels.inter)
            voxels = ArrayProxy(file, spec, mmap=False)
        array = np.asanyarray(voxels, dtype=np.float32)
        num_bytes = array.size * voxels.dtype.itemsize
        file.seek(voxels.offset + num_bytes)
        left = 0
        while chunk := file.read(1 << 20):  # gzip compares its checksum at the end
            left += len(chunk)
        is_denied = False
        if first:
            file.seek(first - _EXTENDER_BYTES)
            is_denied = told == 0 or (told == first and file.read(1) != b"\0")
    if isinstance(image, nib.MGHImage):
        return array  # what follows the voxels is of any length
    # One voxel fewer along an axis leaves at least this many. And if the header does not say where the voxels
    # begin, or denies the extension before them, nothing may be left.
    if left * max(array.shape) >= num_bytes or (left and is_denied):
        raise ScanError(Reason.OTHER_NUMBER_OF_BYTES(announced=num_bytes, found=num_bytes + left))
    return array


def write_nifti(volume: Volume, path: Path, dtype: npt.DTypeLike = np.float32) -> None:
    """Writes NIfTI-1 (.nii or .nii.gz), atomically; equal volumes give equal bytes.

    Args:
        volume: (D, H, W); W becomes the file's fastest axis.
        path: Ends in .nii or .nii.gz.
        dtype: Of the file's voxels; values must fit it as they are.

    Raises:
        UserError: If the path has another ending.
    """
    if not path.name.lower().endswith((".nii", ".nii.gz")):
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
    if _is_zipped(path):
        content = gzip.compress(content, compresslevel=6, mtime=0)
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def _is_zipped(path: Path) -> bool:
    return path.name.lower().endswith((".gz", ".mgz"))
