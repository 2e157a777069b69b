"""Label maps that belong to scans: read and checked against their scan, and brought to its prepared grid."""

import numpy as np
import numpy.typing as npt

from anatogen.core.errors import ScanError
from anatogen.core.reasons import Reason
from anatogen.io.geometry import axis_codes, orient
from anatogen.io.volume import Volume

# Corners of the scan and of its mask may lie this far apart: headers of float32 round, as do exporters.
GRID_TOLERANCE_MM = 0.1
# Scaled or interpolated storage leaves whole numbers this far off.
_WHOLE = 1e-3
# Positions between two voxels come to the higher one on every machine, whatever the last bits of an affine.
_TIE = 1e-6


def as_labels(mask: Volume) -> Volume:
    """A mask as it was read, with its values rounded to whole numbers.

    Raises:
        ScanError: If a value is no label: not whole, negative or above 255.
    """
    whole = np.rint(mask.array)
    off = float(np.abs(mask.array - whole).max())
    if off > _WHOLE:
        raise ScanError(Reason.MASK_NOT_WHOLE(off=off))
    low, high = float(whole.min()), float(whole.max())
    if low < 0 or high > 255:
        raise ScanError(Reason.MASK_RANGE(low=low, high=high))
    return Volume(whole, mask.affine)


def check_labels(mask: Volume, known: tuple[int, ...] | None) -> tuple[int, ...]:
    """The labels that a mask holds, in rising order.

    Args:
        mask: Of `as_labels`.
        known: The labels that the source names besides the background, 0; None where it does not tell.

    Raises:
        ScanError: If there is one that is not known.
    """
    labels = tuple(int(value) for value in np.unique(mask.array))
    unknown = sorted(set(labels) - {0, *known}) if known is not None else []
    if unknown:
        named = ", ".join(map(str, known or ()))
        raise ScanError(Reason.UNKNOWN_LABEL(label=unknown[0], known=named))
    return labels


def on_grid_of(scan: Volume, mask: Volume, *, required: bool) -> Volume:
    """A mask whose voxels are the scan's, in whatever order of axes, with the scan's axes and affine.

    Args:
        scan: The scan.
        mask: Of `as_labels`.
        required: Whether the grids must agree; if not, a mask on another grid is returned as it is.

    Raises:
        ScanError: If its shape is another, or its corners lie more than `GRID_TOLERANCE_MM` from the scan's.
    """
    turned = mask
    if mask.array.shape != scan.array.shape or _largest_distance(mask, scan) > GRID_TOLERANCE_MM:
        turned = orient(mask, axis_codes(scan.affine))
    if turned.array.shape != scan.array.shape:
        refusal = Reason.MASK_SHAPE(mask=turned.array.shape, scan=scan.array.shape)
    elif (distance := _largest_distance(turned, scan)) > GRID_TOLERANCE_MM:
        refusal = Reason.MASK_GRID(distance_mm=distance)
    else:
        return Volume(turned.array, scan.affine)
    if required:
        raise ScanError(refusal)
    return mask


def nearest(mask: Volume, grid: Volume) -> npt.NDArray[np.uint8]:
    """The label at each voxel's centre of a grid, and 0 outside the mask: uint8, the grid's (D, H, W).

    Args:
        mask: Of `as_labels`.
        grid: Says where the voxels are; its values do not count.
    """
    to_mask = np.linalg.inv(mask.affine) @ grid.affine
    labels = mask.array.astype(np.uint8)
    limits = np.array(labels.shape)[:, None, None]
    plane = np.indices(grid.array.shape[1:]).astype(float)
    result = np.zeros(grid.array.shape, np.uint8)
    for d in range(grid.array.shape[0]):
        offset = to_mask[:3, 3] + to_mask[:3, 0] * d
        places = np.tensordot(to_mask[:3, 1:3], plane, axes=1) + offset[:, None, None]
        index = np.floor(places + (0.5 + _TIE)).astype(int)
        inside = ((index >= 0) & (index < limits)).all(axis=0)
        result[d][inside] = labels[tuple(index[:, inside])]
    return result


def _largest_distance(first: Volume, second: Volume) -> float:
    corners = np.array(np.meshgrid(*((0, size - 1) for size in first.array.shape), indexing="ij"))
    difference = first.affine - second.affine
    offsets = difference[:3, :3] @ corners.reshape(3, -1) + difference[:3, 3:]
    return float(np.linalg.norm(offsets, axis=0).max())
