"""Label maps that belong to scans: read and checked against their scan, and brought to its prepared grid."""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

from anatogen.core.errors import ScanError
from anatogen.core.reasons import Reason, Refusal
from anatogen.io.geometry import axis_codes, orient, oriented_grid
from anatogen.io.volume import Volume

# Shape (D, H, W), and affine (4, 4), voxel (d, h, w, 1) to RAS+ mm.
Grid = tuple[tuple[int, ...], npt.NDArray[np.float64]]

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
    wrong = (np.abs(mask.array - whole) > _WHOLE) | (whole < 0) | (whole > 255)
    if wrong.any():
        raise ScanError(Reason.MASK_VALUES(value=float(mask.array[wrong][0])))
    return Volume(whole, mask.affine)


def label_refusal(labels: Iterable[int], known: Iterable[int]) -> Refusal | None:
    """Why the labels of a mask can't be right; None where all are known.

    Args:
        labels: That the mask holds.
        known: That the source names besides the background, 0.
    """
    unknown = sorted(set(labels) - {0, *known})
    if not unknown:
        return None
    return Reason.UNKNOWN_LABEL(label=unknown[0], known=", ".join(map(str, sorted(known))))


def grid_refusal(scan: Grid, mask: Grid) -> Refusal | None:
    """Why a mask's voxels are not those of its scan, in whatever order of axes; None where they are.

    Args:
        scan: Grid of the scan as read.
        mask: Grid of the mask as read.
    """
    if not _same_grid(scan, mask):
        mask = oriented_grid(*mask, axis_codes(scan[1]))
    if mask[0] != scan[0]:
        return Reason.MASK_SHAPE(mask=mask[0], scan=scan[0])
    distance = _largest_distance(scan, mask)
    return Reason.MASK_GRID(distance_mm=distance) if distance > GRID_TOLERANCE_MM else None


def on_grid_of(scan: Volume, mask: Volume) -> Volume:
    """A mask whose voxels are the scan's, in whatever order of axes, with the scan's axes and affine.

    Args:
        scan: The scan.
        mask: Of `as_labels`; on another grid it is returned as it is.
    """
    grids = (scan.array.shape, scan.affine), (mask.array.shape, mask.affine)
    if grid_refusal(*grids) is not None:
        return mask
    turned = mask if _same_grid(*grids) else orient(mask, axis_codes(scan.affine))
    return Volume(turned.array, scan.affine)


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


def _same_grid(scan: Grid, mask: Grid) -> bool:
    return scan[0] == mask[0] and _largest_distance(scan, mask) <= GRID_TOLERANCE_MM


def _largest_distance(scan: Grid, mask: Grid) -> float:
    """Largest distance in mm between the corners of two grids of one shape."""
    corners = np.array(np.meshgrid(*((0, size - 1) for size in scan[0]), indexing="ij"))
    difference = scan[1] - mask[1]
    offsets = difference[:3, :3] @ corners.reshape(3, -1) + difference[:3, 3:]
    return float(np.linalg.norm(offsets, axis=0).max())
