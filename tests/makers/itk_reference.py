"""Resampling by SimpleITK, which shares no code with ours: what prepared arrays are compared with."""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

_LPS = np.diag([-1.0, -1.0, 1.0])


def itk_image(array: np.ndarray, affine: np.ndarray) -> sitk.Image:
    """An array (D, H, W) with its place, voxel (d, h, w, 1) to RAS+ mm."""
    image = sitk.GetImageFromArray(array)
    axes = _LPS @ affine[:3, :3][:, ::-1]
    spacing = np.linalg.norm(axes, axis=0)
    image.SetSpacing(spacing.tolist())
    image.SetDirection((axes / spacing).ravel().tolist())
    image.SetOrigin((_LPS @ affine[:3, 3]).tolist())
    return image


def resampled(source: Path | sitk.Image, shape: tuple[int, ...], affine: object, nearest: bool) -> np.ndarray:
    """The source at each voxel of a grid (D, H, W), and NaN (labels: 0) outside its voxels' centres."""
    image = sitk.ReadImage(source) if isinstance(source, Path) else source
    grid = itk_image(np.zeros(shape, np.uint8), np.asarray(affine))
    if nearest:
        output = sitk.Resample(image, grid, sitk.Transform(), sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
    else:
        image = sitk.Cast(image, sitk.sitkFloat64)
        output = sitk.Resample(image, grid, sitk.Transform(), sitk.sitkLinear, float("nan"), sitk.sitkFloat64)
    return sitk.GetArrayFromImage(output)


def near_tie(source_affine: object, shape: tuple[int, ...], affine: object) -> np.ndarray:
    """bool (D, H, W): voxels of a grid midway between two of the source, where either label is right."""
    index = np.indices(shape).reshape(3, -1)
    to_source = np.linalg.inv(np.asarray(source_affine)) @ np.asarray(affine)
    places = to_source[:3, :3] @ index + to_source[:3, 3:]
    return (np.abs(places - np.floor(places) - 0.5) < 1e-4).any(axis=0).reshape(shape)
