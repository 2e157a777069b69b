"""Bare arrays: .npy to `Volume` and back; the format holds no geometry."""

from pathlib import Path

import numpy as np
import numpy.typing as npt

from anatogen.core.errors import ScanError
from anatogen.core.files import atomic_path
from anatogen.core.reasons import Reason
from anatogen.io.checks import check_dtype, checked_volume, squeezed_shape, unreadable
from anatogen.io.geometry import centred_affine
from anatogen.io.volume import Volume


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
        raise ScanError(Reason.DAMAGED_FILE(error=type(array).__name__))
    if left:
        raise ScanError(Reason.OTHER_NUMBER_OF_BYTES(announced=array.nbytes, found=array.nbytes + left))
    check_dtype(array.dtype)
    array = array.reshape(squeezed_shape(array.shape))
    return checked_volume(array, centred_affine(orientation, array.shape, spacing_mm))


def write_npy(volume: Volume, path: Path) -> None:
    """Writes the array alone as .npy, (D, H, W) float32, atomically; the format holds no affine."""
    write_array(volume.array.astype(np.float32, copy=False), path)


def write_array(array: npt.NDArray[np.generic], path: Path) -> None:
    """Writes an array of any shape and dtype as .npy, atomically."""
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
