"""Pictures of where a training stands: the middle planes of a few scans."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from anatogen.dataset.manifest import Grid
from anatogen.report.figures import planes_figure

NUM_PREVIEWS = 4


def write_preview(rows: Mapping[str, Tensor], path: Path, grid: Grid) -> None:
    """Draws a row of scans for each label.

    Args:
        rows: Scans by label, float (B, D, H, W) or (B, 1, D, H, W) in [-1, 1], on the CPU.
        path: PNG file to write.
        grid: Grid of the scans, for spacing and axes.
    """
    planes_figure(
        [(label, list(scans.flatten(0, -4).numpy())) for label, scans in rows.items()],
        path,
        spacing_mm=grid.spacing_mm,
        axis_codes=grid.axis_codes,
    )
