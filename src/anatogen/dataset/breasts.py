"""The left and the right half of the breast region of an MR scan, by a breast mask or by the body's outline.

By the outline, without a model: body and air are told apart by a threshold; from the front, the body shows
two hills with a valley between them. The valley's floor is the skin over the sternum, which gives the
midline and, a little behind it, the plane of the chest wall. The region reaches from the tips of the
breasts to that plane, over the slices in which a breast stands out, and sideways as far as the body does.

What it can't do: tell one breast (after mastectomy) or two breasts that touch along the whole midline:
these scans are left out, not guessed at. Tissue of the axilla behind the plane is cut off. Women lie prone,
breasts hanging free, in the scans that it is made for.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from anatogen.core.errors import ScanError
from anatogen.core.reasons import Reason
from anatogen.io.geometry import Box, box_after_orient, orient, triple
from anatogen.io.volume import Volume

# (D, H, W) towards superior, posterior and left: rows from the front of the body, columns from its right.
_CODES = "SPL"
# How far from the skin over the sternum both breasts stand out somewhere, and one in all of the region.
_MIN_DEPTH_MM = 10.0
_EDGE_DEPTH_MM = 5.0
# A chest is wider; the hills beside a nose or between two thighs are not those of breasts.
_MIN_WIDTH_MM = 200.0
# From that skin to the plane that ends the region: skin, fat and the front of the sternum.
_CHEST_WALL_MM = 20.0
# The sternum lies this near to the middle of the body's outline.
_MIDLINE_SEARCH_MM = 60.0
# Evens out noise and folds of the outline.
_OUTLINE_SIGMA_MM = 5.0
# The body is found on voxels of about this size: finer ones only cost time.
_COARSE_MM = 2.0

_Range = tuple[int, int]


def breast_boxes(volume: Volume, mask: Volume | None = None) -> tuple[Box, Box]:
    """The patient's left and right half of the breast region, in voxels of the scan.

    Args:
        volume: float32 (D, H, W), MR of both breasts, in any orientation: sides are told by the affine.
        mask: Non-zero in both breasts, on any grid of the same space; None to go by the body's outline.

    Returns:
        Left and right. By the outline, their sizes differ only from side to side.

    Raises:
        ScanError: If two breasts are not found.
    """
    turned = orient(volume, _CODES)
    left, right = _boxes(turned) if mask is None else _boxes_by_mask(turned, orient(mask, _CODES))
    return box_after_orient(left, turned, volume), box_after_orient(right, turned, volume)


def _boxes(volume: Volume) -> tuple[Box, Box]:
    """Left and right by the body's outline."""
    spacing = np.array(volume.spacing_mm)
    step = np.maximum(1, np.rint(_COARSE_MM / spacing).astype(int))
    body = _body(np.ascontiguousarray(volume.array[:: step[0], :: step[1], :: step[2]]))
    slices, rows, left, right = _outline(body, spacing * step)
    shape = volume.array.shape
    return _box((slices, rows, left), step, shape), _box((slices, rows, right), step, shape)


def _body(array: npt.NDArray[np.float32]) -> npt.NDArray[np.bool_]:
    """The largest part that is not air: bool (D, H, W)."""
    import SimpleITK as sitk

    # Three classes, air, muscle and fat, as in T1 without fat saturation: with two, muscle goes with the air.
    clipped = np.minimum(array, np.percentile(array, 99.5).astype(np.float32))
    if clipped.min() == clipped.max():
        raise ScanError(Reason.NO_FOREGROUND())
    otsu = sitk.OtsuMultipleThresholdsImageFilter()
    otsu.SetNumberOfThresholds(2)
    otsu.Execute(sitk.GetImageFromArray(clipped))
    labels, count = ndimage.label(ndimage.binary_opening(clipped > otsu.GetThresholds()[0]))
    if count == 0:
        raise ScanError(Reason.NO_FOREGROUND())
    return np.asarray(labels == np.argmax(np.bincount(labels.ravel())[1:]) + 1)


def _outline(
    body: npt.NDArray[np.bool_], spacing: npt.NDArray[np.float64]
) -> tuple[_Range, _Range, _Range, _Range]:
    """The breast region in coarse voxels: its slices, rows, and columns on the left and on the right."""
    num_rows = body.shape[1]
    filled = body.any(axis=1)
    # Row at which a ray from the front meets the body; where it does not, the last row.
    front = np.where(filled, body.argmax(axis=1), num_rows - 1).astype(float)
    depth = spacing[1] * ndimage.gaussian_filter(front, _OUTLINE_SIGMA_MM / spacing[[0, 2]], mode="nearest")
    columns = np.flatnonzero(filled.any(axis=0))
    width = columns.size * spacing[2]
    if width < _MIN_WIDTH_MM:
        raise ScanError(Reason.NARROW_BODY(width_mm=float(width)))
    middle = (columns[0] + columns[-1]) / 2
    reach = _MIDLINE_SEARCH_MM / spacing[2]
    search = np.arange(max(1, int(middle - reach)), min(depth.shape[1] - 1, int(middle + reach) + 2))
    # What stands out in a quarter of the slices: breasts do, a fold or a fingertip does not.
    profile = np.quantile(depth, 0.25, axis=0)
    # Of the hills on both sides the lower one: seen from the front, its top is the farther one.
    lower_hill = np.array([max(profile[:column].min(), profile[column + 1 :].min()) for column in search])
    # The middle of the valley at half its depth: its floor is too flat to have a deepest place.
    valley = profile[search] - lower_hill
    first, end = _run_around(int(valley.argmax()), valley >= valley.max() / 2)
    midline = int(np.rint(search[first:end].mean()))
    skin = depth[:, midline]
    heights = [skin - side.min(axis=1) for side in (depth[:, :midline], depth[:, midline + 1 :])]
    both = np.minimum(*heights)
    first, end = _run_around(int(both.argmax()), np.maximum(*heights) >= _EDGE_DEPTH_MM)
    if both.max() < _MIN_DEPTH_MM:
        deepest = [float(height.max()) for height in heights]
        raise ScanError(Reason.FLAT_CHEST(left_mm=deepest[1], right_mm=deepest[0], least_mm=_MIN_DEPTH_MM))
    back = min(num_rows, int(np.ceil((skin[first:end].max() + _CHEST_WALL_MM) / spacing[1])))
    seen = np.asarray(body[first:end, :back].any(axis=0))
    # Rows and columns with body in them, before the chest wall.
    rows, across = np.flatnonzero(seen.any(axis=1)), np.flatnonzero(seen.any(axis=0))
    left, right = (midline, int(across[-1]) + 1), (int(across[0]), midline)
    return (first, end), (int(rows[0]), back), left, right


def _run_around(place: int, wanted: npt.NDArray[np.bool_]) -> _Range:
    """First and end of the unbroken run of wanted places that holds this one."""
    labels, _ = ndimage.label(wanted)
    places = np.flatnonzero(labels == labels[place])
    return int(places[0]), int(places[-1]) + 1


def _box(ranges: tuple[_Range, _Range, _Range], step: npt.NDArray[np.int_], shape: tuple[int, ...]) -> Box:
    """Ranges of coarse voxels as those of fine ones."""
    first, end = np.array(ranges).T * step
    return triple(first.tolist()), triple((np.minimum(end, shape) - first).tolist())


def _boxes_by_mask(volume: Volume, mask: Volume) -> tuple[Box, Box]:
    """Left and right of the mask's emptiest column between its two sides."""
    inside = mask.array > 0
    columns = inside.sum(axis=(0, 1))
    used = np.flatnonzero(columns)
    if used.size < 4:
        raise ScanError(Reason.EMPTY_BREAST_MASK())
    # Breasts lie on either side of the middle half of the mask, even where one is much larger.
    quarter = (used[-1] - used[0]) // 4
    between = np.arange(used[0] + quarter, used[-1] - quarter + 1)
    gap = between[columns[between] == columns[between].min()]
    midline = int(np.rint(gap.mean()))
    if columns[midline] > 0.5 * min(columns[:midline].max(), columns[midline:].max()):
        raise ScanError(Reason.JOINED_BREAST_MASK())
    left, right = inside.copy(), inside
    left[:, :, :midline] = False
    right[:, :, midline:] = False
    return _box_in(volume, mask, left), _box_in(volume, mask, right)


def _box_in(volume: Volume, mask: Volume, inside: npt.NDArray[np.bool_]) -> Box:
    """The box around a part of the mask in voxels of the volume, whose grid may be another one."""
    parts = ndimage.find_objects(inside.astype(np.uint8))[0]
    # Outer edges of the outermost voxels.
    edges = [(part.start - 0.5, part.stop - 0.5) for part in parts]
    corners = np.array(np.meshgrid(*edges, indexing="ij")).reshape(3, -1)
    to_volume = np.linalg.inv(volume.affine) @ mask.affine
    corners = to_volume[:3, :3] @ corners + to_volume[:3, 3:]
    first = np.clip(np.floor(corners.min(axis=1) + 0.5 + 1e-3), 0, None).astype(int)
    end = np.minimum(np.ceil(corners.max(axis=1) + 0.5 - 1e-3), volume.array.shape).astype(int)
    if (end - first < 4).any():
        raise ScanError(Reason.EMPTY_BREAST_MASK())
    return triple(first.tolist()), triple((end - first).tolist())
