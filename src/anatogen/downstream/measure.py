"""How well a segmenter does on prepared scans whose masks are known."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from anatogen.core.devices import device_named
from anatogen.core.errors import UserError
from anatogen.dataset.manifest import Case, Manifest, Split
from anatogen.dataset.prepare_config import stored_settings
from anatogen.dataset.volumes import LabelledDataset
from anatogen.downstream.labelled import labels_in
from anatogen.downstream.metrics import CaseMetrics, Mask, case_metrics
from anatogen.downstream.segmenter import Segmenter, SegmenterDescription, load_segmenter


def measure_on_test_split(
    data: Path | str, segmenter: Path | str, *, tolerance_mm: float = 1.0, device: str = "auto"
) -> dict[str, CaseMetrics]:
    """Compares a segmenter's masks with those of a prepared dataset's test split.

    The segmenter may have learned from another dataset: of synthetic scans with masks, say ("train on
    synthetic, test on real").

    The arguments are those of `anatogen.measure_segmenter`, which explains them.

    Raises:
        UserError: If there are no test cases with masks; they differ from what the segmenter learned from in
            grid, modality, window, labels or their names; or there is no such device.
    """
    if not tolerance_mm >= 0:
        raise UserError(f"tolerance_mm is {tolerance_mm:g}: it must be at least 0")
    place = device_named(device)
    found, dataset = load_segmenter(Path(segmenter)), LabelledDataset(Path(data), Split.TEST)
    if not len(dataset):
        raise UserError(f"{data} has no test cases: prepare it with another split.test")
    _check_preparation(Path(data), dataset.manifest, found.description)
    _check_labels(Path(data), dataset, found.description)
    found.network.to(place)
    return {case.id: metrics for case, _, metrics in measure_cases(found, dataset, tolerance_mm)}


def _check_preparation(data: Path, manifest: Manifest, learned: SegmenterDescription) -> None:
    """Refuses scans that were prepared otherwise than those that were learned from."""
    grid, placement = manifest.grid, learned.placement
    intensity, known = manifest.intensity, learned.intensity
    pairs: dict[str, tuple[Any, Any]] = {
        "orientation": ("".join(grid.axis_codes), placement.codes),
        "shape": (grid.shape, placement.shape),
        "modality": (intensity.modality, known.modality),
    }
    if placement.spacing_mm is not None:
        pairs["spacing_mm"] = (grid.spacing_mm, placement.spacing_mm)
    if intensity.modality == "CT":
        pairs["window_hu"] = ((intensity.low, intensity.high), (known.low, known.high))
    else:  # MR scans have a window each.
        pairs["percentiles"] = (stored_settings(manifest.config).percentiles, learned.percentiles)
    for name, (ours, theirs) in pairs.items():
        # Prepared spacings are those of files, which are rounded.
        tolerance = 1e-3 if name == "spacing_mm" else 1e-5
        differs = ours != theirs if isinstance(ours, str) else not np.allclose(ours, theirs, rtol=tolerance)
        if differs:
            raise UserError(
                f"{data} has the {name} {ours}, and the segmenter learned from {theirs}: prepare both alike"
            )


def _check_labels(data: Path, dataset: LabelledDataset, learned: SegmenterDescription) -> None:
    labels, names = learned.labels[1:], dataset.manifest.labels
    for label, case in sorted(labels_in(dataset, range(len(dataset))).items()):
        if label and label not in labels:
            raise UserError(
                f"{data}: the mask of {case} holds the label {label}, which the segmenter did not learn (it "
                f"learned {', '.join(map(str, labels))}): give the masks of both the same labels"
            )
    named = sorted({int(label) for label in names} - {0})
    for label in labels:
        if named and label not in named:
            raise UserError(
                f"{data} does not name the label {label}, which the segmenter learned (it names "
                f"{', '.join(map(str, named))}): give the masks of both the same labels"
            )
        ours, theirs = names.get(str(label), ""), learned.names.get(str(label), "")
        if ours and theirs and ours.casefold() != theirs.casefold():
            raise UserError(
                f"{data} calls the label {label} {ours}, and the segmenter learned it as {theirs}: give the "
                "masks of both the same labels, or the same names if they mean the same"
            )


def measure_cases(
    segmenter: Segmenter, dataset: LabelledDataset, tolerance_mm: float
) -> Iterator[tuple[Case, Mask, CaseMetrics]]:
    """Each case of a split with the segmenter's mask of it, and how well that agrees with the true one.

    Args:
        segmenter: The network.
        dataset: Cases on its grid.
        tolerance_mm: Distance between surfaces that counts as agreement, in mm.

    Yields:
        The case, the mask uint8 (D, H, W), the metrics.
    """
    device = next(segmenter.network.parameters()).device
    labels, spacing_mm = segmenter.description.labels[1:], dataset.manifest.grid.spacing_mm
    for number, case in enumerate(dataset.cases):
        prediction = segmenter.segment(dataset.batch([number]).to(device))[0, 0].numpy()
        truth = dataset.masks([number])[0, 0].numpy()
        yield case, prediction, case_metrics(prediction, truth, labels, spacing_mm, tolerance_mm)
