"""Scans whose axes are not perpendicular, by gantry tilt or by affine registration: refused or straightened.

Everything after the readers takes axes for perpendicular, and would skew the anatomy of a sheared scan.
"""

import itertools
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from anatogen.core.errors import ScanError
from anatogen.core.reasons import Reason
from anatogen.io.label_values import ValueKind, values_of
from anatogen.io.volume import Volume

# Over the whole scan: less is rounding in the headers, more misplaces anatomy.
MAX_SHIFT_VOXELS = 0.5
# What is left of the headers' decimals; moving voxels by it would cut off those at the rim.
_ROUNDING_VOXELS = 1e-3


@dataclass(frozen=True)
class _Shear:
    """How far the axes of a grid lean.

    Attributes:
        axes: float64 (3, 3), perpendicular axes of a voxel's length each, as columns in the order (D, H, W).
        places: float64 (3, 3), unit diagonal: takes a voxel's index to its index along `axes`.
        back: Its inverse, exactly 0 and 1 where it is, else the first and last slice might be cut off.
        shape: (D, H, W) of the sheared grid.
    """

    axes: npt.NDArray[np.float64]
    places: npt.NDArray[np.float64]
    back: npt.NDArray[np.float64]
    shape: tuple[int, ...]

    @property
    def shift(self) -> float:
        """The largest shift over the whole scan, in voxels."""
        shifts = (self.places - np.eye(3)) * (np.array(self.shape) - 1)
        return float(np.linalg.norm(shifts, axis=0).max())

    @property
    def degrees(self) -> float:
        """The largest angle between an axis and where it is straightened to."""
        aside = np.linalg.norm(self.axes @ (self.places - np.eye(3)), axis=0)
        return float(np.degrees(np.arctan2(aside, np.linalg.norm(self.axes, axis=0))).max())


def upright(volume: Volume, *, allow_tilt: bool, is_labels: bool = False) -> Volume:
    """The scan if its axes are perpendicular to half a voxel, else what `straightened` makes of it.

    Raises:
        ScanError: If they are not, and `allow_tilt` is not set.
    """
    shear = _shear_of(volume)
    if shear.shift > MAX_SHIFT_VOXELS and not allow_tilt:
        raise ScanError(Reason.SHEARED(degrees=shear.degrees))
    return straightened(volume, is_labels=is_labels)


def straightened(volume: Volume, *, is_labels: bool = False) -> Volume:
    """Moves slices within their planes, by linear interpolation, so that the axes are perpendicular.

    The field of view grows by the shift; what is new gets the lowest value of the scan. Label maps take the
    nearest label, and 0 outside. Slices are those along D, or along the axis of the largest spacing where the
    two others lean against one another; where all do, rows are moved within slices, too.

    Args:
        volume: Any scan; one that leans by half a voxel at most is returned as it is.
        is_labels: Whether it is a label map for certain; else its values tell, and what may be one counts.
    """
    shear = _shear_of(volume)
    if shear.shift <= MAX_SHIFT_VOXELS:
        return volume
    corners = np.array(list(itertools.product(*((0, size - 1) for size in shear.shape)))) @ shear.places.T
    start = np.floor(corners.min(axis=0) + _ROUNDING_VOXELS)
    stop = np.ceil(corners.max(axis=0) - _ROUNDING_VOXELS)
    is_label_map = is_labels or values_of(volume.array).kind in (ValueKind.LABELS, ValueKind.DOUBTFUL)
    lowest = float(volume.array.min())
    array = ndimage.affine_transform(
        volume.array,
        shear.back,
        shear.back @ start,
        tuple((stop - start + 1).astype(int).tolist()),
        order=0 if is_label_map else 1,
        mode="constant",
        cval=min(lowest, 0.0) if is_label_map else lowest,
        output=np.float32,
    )
    affine = volume.affine.copy()
    affine[:3, :3] = shear.axes
    affine[:3, 3] += shear.axes @ start
    return replace(volume, array=array, affine=affine)


def _shear_of(volume: Volume) -> _Shear:
    axes, shape = volume.affine[:3, :3], volume.array.shape
    spacing = volume.spacing_mm
    # The slice axis first: D, or else the coarsest, of those whose slices are rectangles; then rows.
    orders = [(0, 1, 2), *sorted([(1, 0, 2), (2, 0, 1)], key=lambda order: -spacing[order[0]])]
    shears = [_along(axes, shape, order) for order in orders]
    is_rectangle = [
        abs(shear.places[column, row]) * (shape[row] - 1) <= MAX_SHIFT_VOXELS
        for shear, (_, row, column) in zip(shears, orders, strict=True)
    ]
    return shears[is_rectangle.index(True) if any(is_rectangle) else 0]


def _along(axes: npt.NDArray[np.float64], shape: tuple[int, ...], order: tuple[int, int, int]) -> _Shear:
    """The shear of slices along the first axis of the order, with rows along the second (Gram-Schmidt)."""
    across, row, column = order
    upright, places, back = axes.copy(), np.eye(3), np.eye(3)
    for axis, others in ((row, (column,)), (across, (column, row))):
        for other in others:
            lean = axes[:, axis] @ upright[:, other] / (upright[:, other] @ upright[:, other])
            if abs(lean) * (shape[axis] - 1) > _ROUNDING_VOXELS:
                places[other, axis] = lean
                upright[:, axis] -= lean * upright[:, other]
    back[row, across], back[column, row] = -places[row, across], -places[column, row]
    back[column, across] = places[column, row] * places[row, across] - places[column, across]
    return _Shear(upright, places, back, shape)
