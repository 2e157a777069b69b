"""How well a predicted mask agrees with the true one: overlap, surface, and largest error, per label.

| truth     | prediction | Dice      | surface Dice | 95% Hausdorff |
|-----------|------------|-----------|--------------|---------------|
| label     | label      | value     | value        | value         |
| label     | none       | 0         | 0            | undefined     |
| none      | label      | 0         | 0            | undefined     |
| none      | none       | undefined | undefined    | undefined     |

Undefined is None, never 0 or 1: nothing was there to be found, or no distance to a missing surface exists.
Whoever averages must say how many were undefined, since a network that misses a structure altogether has no
Hausdorff distance to be ashamed of.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import numpy.typing as npt

Metric = Literal["dice", "surface_dice", "hausdorff95_mm"]
METRICS: tuple[Metric, ...] = get_args(Metric)
METRIC_TITLES: Mapping[Metric, str] = {
    "dice": "Dice",
    "surface_dice": "Surface Dice",
    "hausdorff95_mm": "95% Hausdorff distance (mm)",
}
Mask = npt.NDArray[np.uint8]

_DIGITS = 6


@dataclass(frozen=True)
class CaseMetrics:
    """The metrics of one case by label, the label's number as a string; None where undefined.

    Attributes:
        dice: Dice, see `dice`, 0 to 1.
        surface_dice: Share of both surfaces, by area, that lies within the tolerance of the other, 0 to 1.
        hausdorff95_mm: The larger of the two 95th percentiles of distances from one surface to the other.
    """

    dice: dict[str, float | None]
    surface_dice: dict[str, float | None]
    hausdorff95_mm: dict[str, float | None]

    def mean(self, metric: Metric) -> float | None:
        """The metric's mean over the labels for which it is defined; None where it is for none."""
        return mean_over_labels(getattr(self, metric))


def mean_over_labels(values: Mapping[str, float | None]) -> float | None:
    """The mean of the labels whose value is defined; None where none is."""
    defined = [value for value in values.values() if value is not None]
    return sum(defined) / len(defined) if defined else None


def dice(predicted: npt.NDArray[np.bool_], true: npt.NDArray[np.bool_]) -> float | None:
    """Twice the common voxels of two structures through the sum of both, 0 to 1; None if both are empty."""
    total = int(predicted.sum()) + int(true.sum())
    return 2 * int((predicted & true).sum()) / total if total else None


def case_metrics(
    prediction: Mask,
    truth: Mask,
    labels: Sequence[int],
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float,
) -> CaseMetrics:
    """Compares a predicted with a true mask by MONAI's metrics; the module says what is undefined.

    Surface Dice (Nikolov et al. 2021, "normalised surface distance" of the Medical Segmentation Decathlon)
    runs the surface between voxels and weighs it by area, so that thick slices count by their height. The
    Hausdorff distance is taken between centres of border voxels: those with one of six neighbours outside.

    Args:
        prediction: uint8 (D, H, W), 0 is background.
        truth: uint8 (D, H, W), on the same grid. Only the named labels are looked at in both.
        labels: Numbers of the labels, 1 to 255.
        spacing_mm: Distance between voxels along (D, H, W), in mm.
        tolerance_mm: Distance between surfaces that counts as agreement, in mm.

    Raises:
        ValueError: If shapes differ or are not (D, H, W), or the tolerance is negative.
    """
    if prediction.shape != truth.shape or truth.ndim != 3:
        raise ValueError(
            f"masks must share one shape (D, H, W), got prediction {prediction.shape} and truth {truth.shape}"
        )
    if not tolerance_mm >= 0:
        raise ValueError(f"the tolerance must not be negative, got {tolerance_mm} mm")
    metrics = CaseMetrics({}, {}, {})
    for label in labels:
        predicted, true = prediction == label, truth == label
        overlap = dice(predicted, true)
        surface_dice = hausdorff = None
        if predicted.any() and true.any():
            surface_dice, hausdorff = _surface_metrics(predicted, true, spacing_mm, tolerance_mm)
        elif overlap is not None:
            surface_dice = 0.0
        metrics.dice[str(label)] = None if overlap is None else round(overlap, _DIGITS)
        metrics.surface_dice[str(label)] = surface_dice
        metrics.hausdorff95_mm[str(label)] = hausdorff
    return metrics


def _surface_metrics(
    predicted: npt.NDArray[np.bool_],
    true: npt.NDArray[np.bool_],
    spacing_mm: tuple[float, float, float],
    tolerance_mm: float,
) -> tuple[float, float]:
    """Surface Dice and 95% Hausdorff distance of two structures that are not empty."""
    import torch
    from monai.metrics import compute_hausdorff_distance, compute_surface_dice

    spacing = tuple(float(length) for length in spacing_mm)
    # Beyond both nothing is measured; the margin keeps a structure's surface where it touches the border.
    inside = np.nonzero(predicted | true)
    box = tuple(slice(indices.min(), indices.max() + 1) for indices in inside)
    pair = [torch.from_numpy(np.pad(mask[box], 1))[None, None] for mask in (predicted, true)]
    with warnings.catch_warnings():
        # MONAI warns of an argument that it passes to itself.
        warnings.simplefilter("ignore", FutureWarning)
        surface_dice = compute_surface_dice(
            *pair, [tolerance_mm], include_background=True, spacing=spacing, use_subvoxels=True
        )
        hausdorff = compute_hausdorff_distance(*pair, include_background=True, percentile=95, spacing=spacing)
    return round(float(surface_dice), _DIGITS), round(float(hausdorff), _DIGITS)
