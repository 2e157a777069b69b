"""How well a segmenter does on prepared scans whose masks are known."""

from pathlib import Path

import numpy as np

from anatogen.data.dataset import LabelledDataset
from anatogen.data.manifest import Split
from anatogen.downstream.metrics import CaseMetrics, case_metrics
from anatogen.downstream.segmenter import Segmenter, load_segmenter
from anatogen.errors import UserError
from anatogen.storage import atomic_path


def measure_on_test_split(
    data: Path | str, segmenter: Path | str, *, tolerance_mm: float = 1.0
) -> dict[str, CaseMetrics]:
    """Compares a segmenter's masks with those of a prepared dataset's test split.

    The segmenter may have learned from another dataset: of synthetic scans with masks, say ("train on
    synthetic, test on real").

    Args:
        data: Prepared dataset with masks.
        segmenter: What `finetune` made.
        tolerance_mm: Distance between surfaces that counts as agreement.

    Returns:
        The metrics of each test case, by its id.

    Raises:
        UserError: If there are no test cases with masks, or they are on another grid than the segmenter's.
    """
    found, dataset = load_segmenter(Path(segmenter)), LabelledDataset(Path(data), Split.TEST)
    if not len(dataset):
        raise UserError(f"{data} has no test cases: prepare it with another split.test")
    grid, placement = dataset.manifest.grid, found.description.placement
    codes = "".join(grid.axis_codes)
    if (codes, grid.shape) != (placement.codes, placement.shape) or (
        placement.spacing_mm is not None and not np.allclose(grid.spacing_mm, placement.spacing_mm, rtol=1e-3)
    ):
        raise UserError(
            f"{data} has {codes} scans of {grid.shape} voxels of {grid.spacing_mm} mm, and the segmenter "
            f"learned {placement.codes}, {placement.shape}, {placement.spacing_mm}: prepare both on one grid"
        )
    measured = measure_segmenter(found, dataset, tolerance_mm)
    return {case.id: metrics for case, metrics in zip(dataset.cases, measured, strict=True)}


def measure_segmenter(
    segmenter: Segmenter,
    dataset: LabelledDataset,
    tolerance_mm: float,
    *,
    keep: Path | None = None,
    num_kept: int = 0,
) -> list[CaseMetrics]:
    """Compares a segmenter's masks with those of all cases of a split, in order.

    Args:
        segmenter: The network.
        dataset: Cases on its grid.
        tolerance_mm: Distance between surfaces that counts as agreement.
        keep: Folder where the masks of the first cases are written as `CASE.npy`, uint8 (D, H, W).
        num_kept: How many of them.
    """
    device = next(segmenter.network.parameters()).device
    measured = []
    for number, case in enumerate(dataset.cases):
        prediction = segmenter.segment(dataset.batch([number]).to(device))[0, 0].numpy()
        truth = dataset.masks([number])[0, 0].numpy()
        if keep is not None and number < num_kept:
            with atomic_path(keep / f"{case.id}.npy") as temporary, temporary.open("wb") as file:
                np.save(file, prediction, allow_pickle=False)
        labels, spacing_mm = segmenter.description.labels[1:], dataset.manifest.grid.spacing_mm
        measured.append(case_metrics(prediction, truth, labels, spacing_mm, tolerance_mm))
    return measured
