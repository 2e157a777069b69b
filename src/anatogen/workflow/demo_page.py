"""The demo's last step: one page that shows what was learned, how long it took and what to type next.

The page is a single HTML file without scripts, links or network access, so it can be mailed or archived.
"""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anatogen.dataset.manifest import Grid
from anatogen.report.figures import curves_figure, planes_figure
from anatogen.report.numbers import duration_text
from anatogen.report.page import data_url, write_page

_MAX_COLUMNS = 8


def write_demo_page(
    folder: Path,
    *,
    real: Sequence[npt.NDArray[Any]],
    reconstructed: Sequence[npt.NDArray[Any]],
    synthetic: Sequence[npt.NDArray[Any]],
    grid: Grid,
    timings: Mapping[str, float],
    histories: Mapping[str, Sequence[Mapping[str, float]]],
    numbers: Mapping[str, str],
    commands: Sequence[str],
    next_steps: Sequence[str],
) -> Path:
    """Writes `index.html` into the folder: pictures, curves, timings, key numbers and commands.

    Args:
        folder: Where the page goes; made if it is missing.
        real: Prepared volumes (D, H, W) in [-1, 1]; the first 8 are shown.
        reconstructed: The same volumes after the autoencoder, in the same order.
        synthetic: New volumes of the same shape and range.
        grid: The voxel grid that all of them share; its affine decides which way up they are shown.
        timings: Seconds for each stage, in the order in which the stages ran.
        histories: For each training stage its records, as `curves_figure` takes them; empty ones are left
            out.
        numbers: Label and value of each key number, units included.
        commands: The lines that were typed; a line that starts with "#" is a remark.
        next_steps: The lines to type for one's own scans, with remarks likewise.

    Returns:
        The path of the page.

    Raises:
        ValueError: If there is no volume, or volumes differ from the grid's shape.
    """
    sources = [
        (f"{name} scans", list(volumes)[:_MAX_COLUMNS])
        for name, volumes in (("Real", real), ("Reconstructed", reconstructed), ("Synthetic", synthetic))
        if len(volumes)
    ]
    shapes = {tuple(np.shape(volume)) for _, volumes in sources for volume in volumes}
    if shapes != {grid.shape}:
        raise ValueError(f"volumes must have the grid's shape {grid.shape}, got {sorted(shapes) or 'none'}")
    with tempfile.TemporaryDirectory() as scratch:
        picture = Path(scratch) / "picture.png"
        planes_figure(
            sources,
            picture,
            spacing_mm=grid.spacing_mm,
            axis_codes=grid.axis_codes,
        )
        planes = data_url(picture)
        curves = {}
        for name, records in histories.items():
            if records:
                curves_figure(records, picture)
                curves[name] = data_url(picture)
    total = sum(timings.values())
    path = folder / "index.html"
    write_page(
        path,
        "demo.html",
        planes=planes,
        sources=[name for name, _ in sources],
        grid=grid,
        curves=curves,
        timings=[
            (name, duration_text(seconds), 100 * seconds / total if total else 0.0)
            for name, seconds in timings.items()
        ],
        total=duration_text(total),
        numbers=numbers,
        commands=commands,
        next_steps=next_steps,
    )
    return path
