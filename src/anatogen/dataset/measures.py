"""What is measured of the voxels of one scan: values, foreground, thumbnails."""

import hashlib
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from anatogen.core.errors import ScanError
from anatogen.core.reasons import Reason, Refusal
from anatogen.io.geometry import foreground_box, foreground_threshold, orient, otsu_threshold, slice_plane
from anatogen.io.label_values import ValueKind, Values
from anatogen.io.volume import Volume

Triple = tuple[float, float, float]
FloatT = TypeVar("FloatT", bound=np.floating[Any])

# What bone has at least in CT whose water is at 1024.
_SHIFTED_BONE = 1200
# Voxels along an axis that the body is looked for with, at most; a thumbnail has fewer than twice as many as
# its own; and voxels of the cube that mirrors are told by.
_COARSE = 96
_THUMBNAIL_SIZE = 48
POSTURE_SIZE = 12
# Longest side of a picture, in pixels, is below twice this.
_PICTURE_SIZE = 192


def looks_like_ct(minimum: float, maximum: float) -> bool:
    """Whether a scan's lowest and highest value can be Hounsfield units of a scan with air in it."""
    return -4096 <= minimum <= -500 and maximum <= 32767


def may_lack_intercept(minimum: float, maximum: float) -> bool:
    """Whether values can be those of CT that has lost its rescale intercept: air at 0, water at 1024."""
    return minimum >= 0 and maximum >= _SHIFTED_BONE


def own_window(array: npt.NDArray[np.float32], percentiles: tuple[float, float]) -> tuple[float, float]:
    """The values of an MR scan that become -1 and +1.

    Args:
        array: float32, any shape, not constant.
        percentiles: The lower one over all voxels, the upper one over those of tissue (above the Otsu
            threshold), so that it does not depend on how much air the field of view holds.
    """
    low = float(np.percentile(array, percentiles[0]))
    tissue = array[array > otsu_threshold(array)]
    return low, float(np.percentile(tissue if tissue.size else array, percentiles[1]))


def scan_window(array: npt.NDArray[np.float32], percentiles: tuple[float, float]) -> tuple[float, float]:
    """`own_window` of the same arguments.

    Raises:
        ScanError: If it is empty: the scan is nearly constant.
    """
    low, high = own_window(array, percentiles)
    if not high > low:
        raise ScanError(Reason.NEARLY_CONSTANT(lower=percentiles[0], upper=percentiles[1], value=low))
    return low, high


def map_refusal(values: Values) -> Refusal | None:
    """Why values are no scan's, if they are those of a label or probability map for certain."""
    if values.kind is ValueKind.LABELS:
        return Reason.LABEL_MAP(num=values.num_labels)
    return Reason.PROBABILITY_MAP() if values.kind is ValueKind.PROBABILITIES else None


def content_sha256(volume: Volume) -> str:
    """Hash of the voxel values in one fixed order of axes, so that copies in other formats agree."""
    return hashlib.sha256(orient(volume, "SPL").array.data).hexdigest()


def standardised(values: npt.NDArray[FloatT]) -> npt.NDArray[FloatT]:
    """Values with mean 0 and norm 1, so that their products are correlations; 0 where all are equal.

    Args:
        values: Any shape, of the precision that is to be computed in.
    """
    centred = values - values.mean()
    norm = float(np.linalg.norm(centred))
    return np.asarray(centred / norm if norm > 0 else centred, dtype=values.dtype)


def thumbnail(volume: Volume) -> Volume:
    """Means of blocks of voxels, so that filters do not run over millions of them.

    Args:
        volume: Any scan; one that is small enough, or a thumbnail, keeps its values.

    Returns:
        The whole field of view along "SPL", of fewer than 96 voxels along each axis.
    """
    upright = orient(volume, "SPL")
    array, affine = upright.array, upright.affine.copy()
    for axis, length in enumerate(upright.array.shape):
        block = max(1, length // _THUMBNAIL_SIZE)
        if block > 1:
            starts = np.arange(0, length, block)
            shape = [1, 1, 1]
            shape[axis] = len(starts)
            sizes = np.diff(np.append(starts, length)).astype(np.float32).reshape(shape)
            array = np.asarray(np.add.reduceat(array, starts, axis=axis) / sizes, np.float32)
            affine[:3, 3] += (block - 1) / 2 * affine[:3, axis]
            affine[:3, axis] *= block
    return Volume(array, affine)


def measure_body(volume: Volume) -> dict[str, Triple]:
    """How large the body is in a scan.

    Args:
        volume: Any scan.

    Returns:
        By modality, which decides what is air: the bounding box in mm of what is not air, along (R-L, A-P,
        I-S), or that of the scan where all is.
    """
    upright = orient(volume, "RAS")
    shape = upright.array.shape
    steps = [-(-size // _COARSE) for size in shape]
    coarse = np.ascontiguousarray(upright.array[tuple(slice(step // 2, None, step) for step in steps)])
    sizes = {}
    for modality in ("CT", "MR"):
        box = foreground_box(Volume(coarse, upright.affine), foreground_threshold(coarse, modality))
        extent = coarse.shape if box is None else [part.stop - part.start for part in box]
        x, y, z = np.minimum(np.array(extent) * steps, shape) * np.array(upright.spacing_mm)
        sizes[modality] = (float(x), float(y), float(z))
    return sizes


def measure_posture(volume: Volume) -> npt.NDArray[np.float16]:
    """How the body lies in a scan: what left and right are told by.

    Args:
        volume: `thumbnail` of a scan.

    Returns:
        float16, (12, 12, 12) along (R-L, A-P, I-S), mean 0 and length 1.
    """
    array = orient(volume, "RAS").array
    clipped = np.clip(array, *np.percentile(array, (0.5, 99.5)))
    factors = [POSTURE_SIZE / size for size in clipped.shape]
    blurred = ndimage.gaussian_filter(clipped, [0.4 / factor if factor < 1 else 0 for factor in factors])
    small = ndimage.zoom(blurred, factors, order=1, mode="nearest").astype(np.float64)
    centred = small - small.mean()
    return (centred / max(float(np.linalg.norm(centred)), 1e-12)).astype(np.float16)


def middle_slice(volume: Volume, window: tuple[float, float]) -> npt.NDArray[np.uint8]:
    """The middle slice of a scan's own plane, the way radiologists look at it, thinned out.

    Args:
        volume: Any scan.
        window: Values that become black and white.

    Returns:
        uint8, (H, W) of a few hundred pixels at most.
    """
    # Of its own plane: the middle of a thick stack's other planes shows little.
    upright = orient(volume, slice_plane(volume.affine)).array
    middle = upright[upright.shape[0] // 2]
    step = max(1, max(middle.shape) // _PICTURE_SIZE)
    low, high = window
    return np.rint(255 * np.clip((middle[::step, ::step] - low) / (high - low), 0, 1)).astype(np.uint8)
