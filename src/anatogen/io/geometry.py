"""Geometry of a scan: reorient, resample, crop and pad, each with the affine that keeps every voxel in place.

All functions take a `Volume` and return a new one; `prepare` chains them to bring scans to one grid.
"""

from collections.abc import Iterable
from typing import Literal, TypeVar

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage

from anatogen.core.errors import UserError
from anatogen.io.volume import Volume

Interpolation = Literal["linear", "cubic"]

Number = TypeVar("Number", int, float)

# First voxel (d, h, w) and shape (D, H, W) of a part of a scan.
Box = tuple[tuple[int, int, int], tuple[int, int, int]]

# Index directions of (D, H, W) that show a slice the way radiologists read it and make a right-handed system.
CONVENTIONAL_CODES = {"S": "SPL", "R": "RIP", "A": "PIL"}

# Separates a body from the air around it in CT.
BODY_HU = -500.0

_OPPOSITE = {"R": "L", "L": "R", "A": "P", "P": "A", "S": "I", "I": "S"}


def triple(values: Iterable[Number]) -> tuple[Number, Number, Number]:
    """Three numbers, as of an array's `tolist()`, as a tuple that type checkers know the length of."""
    d, h, w = values
    return d, h, w


def axis_codes(affine: npt.NDArray[np.float64]) -> str:
    """Anatomical direction in which each index grows, nearest axis, e.g. "SPL" for (D, H, W).

    Args:
        affine: float64, (4, 4), voxel (d, h, w, 1) to RAS+ mm.
    """
    return "".join(nib.orientations.aff2axcodes(affine))


def body_axes(affine: npt.NDArray[np.float64]) -> tuple[int, int, int]:
    """The body axis nearest to each of (D, H, W): 0 left-right, 1 anterior-posterior, 2 inferior-superior.

    Args:
        affine: float64, (4, 4), voxel (d, h, w, 1) to RAS+ mm.
    """
    d, h, w = nib.orientations.io_orientation(affine)[:, 0]
    return int(d), int(h), int(w)


def check_codes(codes: str) -> str:
    """Returns the codes if they name each of the three body axes once.

    Raises:
        UserError: If they do not, e.g. "SPP" or "XYZ".
    """
    axes = {frozenset((code, _OPPOSITE.get(code, code))) for code in codes}
    if len(codes) != 3 or not set(codes) <= set(_OPPOSITE) or len(axes) != 3:
        raise UserError(
            f"orientation {codes!r} is not one letter of each pair S/I, A/P, L/R: e.g. SPL for axial slices"
        )
    return codes


def orient(volume: Volume, codes: str) -> Volume:
    """Permutes and flips the axes so that (D, H, W) grow towards the given directions; no interpolation.

    Oblique scans get the nearest order and stay oblique. Undone by `orient` with the codes of before.

    Args:
        volume: Any scan.
        codes: Three letters for D, H, W, e.g. "SPL": slices towards superior, rows towards posterior,
            columns towards left.

    Raises:
        UserError: If the codes do not name each body axis once.
    """
    array = nib.orientations.apply_orientation(volume.array, _change(volume.affine, codes))
    affine = oriented_grid(volume.array.shape, volume.affine, codes)[1]
    return Volume(np.ascontiguousarray(array), affine)


def oriented_grid(
    shape: tuple[int, ...], affine: npt.NDArray[np.float64], codes: str
) -> tuple[tuple[int, ...], npt.NDArray[np.float64]]:
    """Shape and affine that `orient` gives a scan, without its voxels.

    Args:
        shape: (D, H, W).
        affine: float64, (4, 4), voxel (d, h, w, 1) to RAS+ mm.
        codes: As `orient` takes them.
    """
    change = _change(affine, codes)
    order = np.argsort(change[:, 0])
    return tuple(shape[axis] for axis in order), affine @ nib.orientations.inv_ornt_aff(change, shape)


def _change(affine: npt.NDArray[np.float64], codes: str) -> npt.NDArray[np.float64]:
    target = nib.orientations.axcodes2ornt(tuple(check_codes(codes)))
    return nib.orientations.ornt_transform(nib.orientations.io_orientation(affine), target)


def slice_plane(volume_affine: npt.NDArray[np.float64]) -> str:
    """The conventional codes for a scan: "SPL" (axial), "RIP" (sagittal) or "PIL" (coronal).

    The slice axis is the axis with the largest spacing where that is at least 1.5 times the next one;
    nearly isotropic scans are read as axial.

    Args:
        volume_affine: float64, (4, 4), voxel to RAS+ mm.
    """
    spacing = np.linalg.norm(volume_affine[:3, :3], axis=0)
    largest = int(np.argmax(spacing))
    if spacing[largest] < 1.5 * np.sort(spacing)[1]:
        return CONVENTIONAL_CODES["S"]
    code = axis_codes(volume_affine)[largest]
    return CONVENTIONAL_CODES[code if code in CONVENTIONAL_CODES else _OPPOSITE[code]]


def resample(
    volume: Volume,
    *,
    spacing_mm: tuple[float, float, float] | None = None,
    shape: tuple[int, int, int] | None = None,
    interpolation: Interpolation = "linear",
    box: Box | None = None,
    background: float = 0.0,
) -> Volume:
    """Interpolates onto a grid of another spacing, or another shape over the same field of view.

    The centre of the grid stays where it is, or comes to that of the box. Axes that get coarser are smoothed
    first with a Gaussian whose width takes the old point spread to the new one (Cardoso et al., MICCAI 2015),
    so that nothing aliases.

    Args:
        volume: Any scan.
        spacing_mm: Wanted distance of voxels along (D, H, W); the shape is the field of view divided by
            it, rounded, at least 1.
        shape: Wanted (D, H, W); the spacing follows from the field of view. Give one of the two.
        interpolation: "linear" never overshoots, "cubic" (spline) is sharper.
        box: The part of the scan that is the field of view, which may reach beyond it; default all of it.
        background: Value of voxels whose centre lies outside the scan, in its own unit.

    Raises:
        UserError: If not exactly one of spacing and shape is given, or one is not positive.
    """
    start, old_shape = (np.array(part) for part in box or ((0, 0, 0), volume.array.shape))
    old_spacing = np.array(volume.spacing_mm)
    if (spacing_mm is None) == (shape is None):
        raise UserError("resample takes either spacing_mm or shape")
    wanted = np.asarray(spacing_mm if shape is None else shape, dtype=float)
    if wanted.shape != (3,) or not (wanted > 0).all():
        raise UserError(f"resample needs three positive numbers, not {spacing_mm or shape}")
    if shape is None:
        new_spacing = wanted
        new_shape = np.maximum(1, np.rint(old_shape * old_spacing / new_spacing)).astype(int)
    else:
        new_shape = wanted.astype(int)
        new_spacing = old_shape * old_spacing / new_shape
    step = new_spacing / old_spacing
    offset = start + ((old_shape - 1) / 2 - step * (new_shape - 1) / 2)
    array = volume.array
    sigma = np.sqrt(np.maximum(step**2 - 1, 0)) / (2 * np.sqrt(2 * np.log(2)))
    # Below 1 % of a voxel the kernel is a single tap, and the filter only costs time.
    sigma[step < 1.01] = 0
    if sigma.any():
        array = ndimage.gaussian_filter(array, sigma, mode="nearest")
    if not (np.allclose(step, 1) and np.allclose(offset, 0) and np.array_equal(new_shape, array.shape)):
        order = 1 if interpolation == "linear" else 3
        array = ndimage.affine_transform(
            array, step, offset, tuple(new_shape), order=order, mode="nearest", output=np.float32
        )
    for axis, size in enumerate(volume.array.shape):
        places = offset[axis] + step[axis] * np.arange(new_shape[axis])
        outside = (places < -0.5) | (places > size - 0.5)
        if outside.any():
            np.moveaxis(array, axis, 0)[outside] = background
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ offset
    affine[:3, :3] *= step
    return Volume(np.ascontiguousarray(array, dtype=np.float32), affine)


def crop_or_pad(
    volume: Volume,
    shape: tuple[int, int, int],
    background: float,
    center: tuple[float, float, float] | None = None,
) -> Volume:
    """Cuts or extends each axis to the shape, around the grid's centre or a given voxel.

    Args:
        volume: Any scan.
        shape: Wanted (D, H, W).
        background: Value of the voxels that are added, in the scan's own unit.
        center: Voxel coordinates (d, h, w) that come to the new grid's centre, to half a voxel; default
            the centre of the grid.
    """
    old = volume.array.shape
    middle = center if center is not None else tuple((size - 1) / 2 for size in old)
    # Towards zero, so that a pad is undone by the crop back.
    start = [int(np.trunc(m - (size - 1) / 2)) for m, size in zip(middle, shape, strict=True)]
    array = np.full(shape, background, dtype=np.float32)
    source, target = [], []
    for first, before, after in zip(start, old, shape, strict=True):
        low, high = max(first, 0), min(first + after, before)
        source.append(slice(low, max(low, high)))
        target.append(slice(low - first, max(low, high) - first))
    if all(part.stop > part.start for part in source):
        array[tuple(target)] = volume.array[tuple(source)]
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ np.array(start, dtype=float)
    return Volume(array, affine)


def cut(volume: Volume, box: Box) -> Volume:
    """A part of a scan, each voxel where it was."""
    start, shape = box
    part = tuple(slice(a, a + size) for a, size in zip(start, shape, strict=True))
    affine = volume.affine.copy()
    affine[:3, 3] += affine[:3, :3] @ start
    return Volume(np.ascontiguousarray(volume.array[part]), affine)


def box_after_orient(box: Box, before: Volume, after: Volume) -> Box:
    """A box in the voxels that a scan has in another order of axes.

    Args:
        box: In the voxels of `before`; may reach beyond them.
        before: The scan.
        after: What `orient` made of it, or what it was made of.
    """
    start, shape = np.array(box)
    ends = np.array([[*start, 1], [*(start + shape - 1), 1]])
    ends = np.rint(ends @ np.linalg.solve(after.affine, before.affine).T).astype(int)
    low, high = np.sort(ends[:, :3], axis=0)
    return triple(low.tolist()), triple((high - low + 1).tolist())


def otsu_threshold(array: npt.NDArray[np.float32]) -> float:
    """The value that best separates dark background from tissue (Otsu 1979), after clipping bright outliers.

    Args:
        array: float32, any shape, not constant.
    """
    # SimpleITK takes half a second to load, and is not needed for every use of this module.
    import SimpleITK as sitk

    clipped = np.minimum(array, np.percentile(array, 99.9).astype(np.float32))
    if clipped.min() == clipped.max():
        return float(clipped.max())
    otsu = sitk.OtsuThresholdImageFilter()
    otsu.SetNumberOfHistogramBins(256)
    otsu.Execute(sitk.GetImageFromArray(clipped))
    return float(otsu.GetThreshold())


def foreground_threshold(array: npt.NDArray[np.float32], modality: str) -> float:
    """The value above which a voxel is not air: fixed for "CT", Otsu's for "MR"."""
    return BODY_HU if modality == "CT" else otsu_threshold(array)


def foreground_box(volume: Volume, threshold: float) -> tuple[slice, slice, slice] | None:
    """The bounding box (d, h, w) in voxels of the largest connected part above the threshold, if any is.

    Args:
        volume: Any scan.
        threshold: Value in the scan's unit, e.g. of `foreground_threshold`.
    """
    labels, count = ndimage.label(volume.array > threshold)
    if count == 0:
        return None
    sizes = np.bincount(labels.ravel())
    largest = int(np.argmax(sizes[1:])) + 1
    d, h, w = ndimage.find_objects(labels, max_label=largest)[largest - 1]
    return d, h, w


def foreground_center(volume: Volume, threshold: float) -> tuple[float, float, float]:
    """Centre (d, h, w) in voxels of `foreground_box`, or of the scan where there is none."""
    box = foreground_box(volume, threshold) or tuple(slice(0, size) for size in volume.array.shape)
    d, h, w = ((part.start + part.stop - 1) / 2 for part in box)
    return d, h, w


def centred_affine(
    codes: str, shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]
) -> npt.NDArray[np.float64]:
    """Affine (4, 4), voxel (d, h, w, 1) to RAS+ mm, of a grid along the body axes with its centre at 0.

    Args:
        codes: Directions in which (D, H, W) grow, e.g. "SPL".
        shape: (D, H, W) in voxels.
        spacing_mm: Along (D, H, W).
    """
    affine = np.zeros((4, 4))
    for axis, code in enumerate(check_codes(codes)):
        row = {"R": 0, "L": 0, "A": 1, "P": 1, "S": 2, "I": 2}[code]
        affine[row, axis] = spacing_mm[axis] * (1 if code in "RAS" else -1)
    affine[:3, 3] = -affine[:3, :3] @ ((np.array(shape) - 1) / 2)
    affine[3, 3] = 1
    return affine
