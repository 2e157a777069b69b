"""The synthetic scans most like a training scan, each beside that scan, for people to judge."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anatogen.dataset.manifest import Grid
from anatogen.report.volume_figures import planes_figure

Array = npt.NDArray[np.float32]

FIGURE_NAME = "closest_pairs.png"
WARNING = "REAL PATIENTS: must not leave the institution"


@dataclass(frozen=True)
class Pair:
    """A synthetic scan and its nearest training scan.

    Attributes:
        synthetic: Its number in the synthetic set.
        train: The training scan's number.
        correlation: Correlation of their embeddings.
        flagged: Whether that is above the audit's threshold.
    """

    synthetic: int
    train: int
    correlation: float
    flagged: bool


def registered(moving: Array, fixed: Array, spacing_mm: tuple[float, float, float]) -> Array:
    """A scan in the place of another: flipped as fits best, then moved, turned and scaled (affine).

    Args:
        moving: float32 (D, H, W) in [-1, 1].
        fixed: float32 (D, H, W) in [-1, 1].
        spacing_mm: Distance between voxels along (D, H, W).

    Returns:
        float32 (D, H, W). Where no registration is better than the flip alone, the flip alone.
    """
    import SimpleITK as sitk

    flips = [
        np.ascontiguousarray(np.flip(moving, tuple(axis for axis in range(3) if signs[axis])))
        for signs in product((False, True), repeat=3)
    ]
    flipped = max(flips, key=lambda candidate: _correlation(candidate, fixed))
    images = []
    for array in (flipped, fixed):
        image = sitk.GetImageFromArray(array)
        image.SetSpacing([float(step) for step in reversed(spacing_mm)])
        images.append(image)
    method = sitk.ImageRegistrationMethod()
    # One thread, and every voxel: sums, and so results, are the same on every run.
    method.SetGlobalDefaultNumberOfThreads(1)
    method.SetMetricAsCorrelation()
    method.SetMetricSamplingStrategy(method.NONE)
    method.SetInterpolator(sitk.sitkLinear)
    # Steps of a voxel at most: longer ones push small scans out of each other.
    step_mm = float(min(spacing_mm))
    method.SetOptimizerAsRegularStepGradientDescent(step_mm, 0.01 * step_mm, 60)
    method.SetOptimizerScalesFromPhysicalShift()
    method.SetShrinkFactorsPerLevel([2, 1])
    method.SetSmoothingSigmasPerLevel([1, 0])
    start = sitk.CenteredTransformInitializer(
        images[1], images[0], sitk.AffineTransform(3), sitk.CenteredTransformInitializerFilter.GEOMETRY
    )
    method.SetInitialTransform(start, inPlace=False)
    try:
        transform = method.Execute(images[1], images[0])
    except RuntimeError:  # the scans came not to overlap
        return flipped
    moved = sitk.GetArrayFromImage(sitk.Resample(images[0], images[1], transform, sitk.sitkLinear, -1.0))
    return moved if _correlation(moved, fixed) > _correlation(flipped, fixed) else flipped


def pairs_figure(pairs: Sequence[Pair], synthetic: Array, train: Array, grid: Grid, path: Path) -> None:
    """Draws pairs as columns: the synthetic scan, the training scan registered to it, and their difference.

    Args:
        pairs: Pairs to draw, at least one.
        synthetic: float32 (M, D, H, W) in [-1, 1], which the pairs' numbers count.
        train: float32 (N, D, H, W).
        grid: Grid of both.
        path: The PNG file. It shows patients.
    """
    left = [synthetic[pair.synthetic] for pair in pairs]
    right = [
        registered(train[pair.train], scan, grid.spacing_mm) for pair, scan in zip(pairs, left, strict=True)
    ]
    # Equal voxels are black, those a quarter of the range apart are white.
    difference = [np.clip(4 * np.abs(a - b) - 1, -1, 1) for a, b in zip(left, right, strict=True)]
    planes_figure(
        [
            (f"Synthetic scans {_numbers([pair.synthetic for pair in pairs])}", left),
            (f"{WARNING}. Training scans {_numbers([pair.train for pair in pairs])}, registered", right),
            ("Difference, 0 to a quarter of the intensity range", difference),
        ],
        path,
        spacing_mm=grid.spacing_mm,
        axis_codes=grid.axis_codes,
    )


def _numbers(numbers: Sequence[int]) -> str:
    return ", ".join(map(str, numbers))


def _correlation(a: Array, b: Array) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return 0.0
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])
