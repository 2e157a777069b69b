"""The pictures of `doctor`: how geometry and values are spread, and the middle slices of some scans."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anatogen.doctor.diagnosis import Diagnosis, Shown
from anatogen.report.figures import FONT, new_figure, new_panels, save_figure, style_panel

_COLOUR = "#1f4e8c"
_COLUMNS = 6


def spread_figure(diagnosis: Diagnosis, path: Path) -> bool:
    """Draws histograms of spacing, size and values of the usable scans.

    Args:
        diagnosis: What was found.
        path: The PNG file.

    Returns:
        Whether there was anything to draw.
    """
    usable = diagnosis.facts.usable
    spacings = [sorted(scan.spacing_mm) for scan in usable if scan.spacing_mm and len(scan.spacing_mm) == 3]
    shapes = [scan.shape for scan in usable if scan.shape is not None and len(scan.shape) == 3]
    if not spacings or not shapes:
        return False
    measured = [record for _, record in diagnosis.facts.measured()]
    panels: list[tuple[str, str, list[float], bool]] = [
        ("Spacing in the plane", "mm, the finer two axes", [s for t in spacings for s in t[:2]], False),
        ("Spacing of slices", "mm, the coarsest axis", [triple[2] for triple in spacings], False),
        ("Size", "voxels along all axes", [float(length) for shape in shapes for length in shape], False),
    ]
    if measured:
        ranges = [record.high - record.low for record in measured]
        is_wide = max(ranges) > 20 * min(ranges)
        panels.append(("Range of values", "of tissue, the scan's unit", ranges, is_wide))
    figure, axes = new_panels(9, 2.2, columns=len(panels))
    for panel, (title, label, values, is_log) in zip(axes, panels, strict=True):
        _draw(panel, values, is_log)
        style_panel(panel, title, label)
    save_figure(figure, path, dpi=150)
    return True


def _draw(panel: Any, values: Sequence[float], is_log: bool) -> None:
    from matplotlib.ticker import MaxNLocator

    low, high = min(values), max(values)
    # All alike: one bar in the middle, not one that fills the panel.
    margin = 0.02 * (high - low) or 0.5 * abs(high) or 0.5
    number = int(np.clip(2 * np.sqrt(len(values)), 9, 40))
    if is_log:
        edges = np.geomspace(low, high, number + 1)
    else:
        edges = np.linspace(low - margin, high + margin, number + 1)
    panel.hist(values, edges.tolist(), color=_COLOUR, alpha=0.75)
    if is_log:
        panel.set_xscale("log")
    else:
        panel.xaxis.set_major_locator(MaxNLocator(4))
    panel.yaxis.set_major_locator(MaxNLocator(4, integer=True))


def sheet_figure(shown: Sequence[Shown], path: Path) -> None:
    """Draws numbered middle slices side by side, each as large as fits; special ones are marked.

    Args:
        shown: The scans, at least one.
        path: The PNG file.
    """
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    cell, heading = 1.0, 0.14
    figure = new_figure(1.5 * columns, 1.5 * rows * (cell + heading), "black")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    for number, scan in enumerate(shown):
        marked = scan.why not in ("", "median")
        left, top = number % columns * cell, number // columns * (cell + heading) + heading
        height, width = (0.92 * side / max(scan.size_mm) for side in scan.size_mm)
        x, y = left + (cell - width) / 2, top + (cell - height) / 2
        extent = (x, x + width, y + height, y)
        axes.imshow(scan.picture, cmap="gray", vmin=0, vmax=255, interpolation="catrom", extent=extent)
        colour = "#ff8a80" if marked else "0.7"
        name = str(number + 1)
        axes.text(left + 0.05, top - 0.04, name, color=colour, fontsize=9, weight="bold", fontfamily=FONT)
        if marked:
            frame = [left + 0.02, left + 0.98, left + 0.98, left + 0.02, left + 0.02]
            sides = [top + 0.02, top + 0.02, top + 0.98, top + 0.98, top + 0.02]
            axes.plot(frame, sides, color="#ff8a80", linewidth=1.2)
    axes.set_xlim(0, columns * cell)
    axes.set_ylim(rows * (cell + heading), 0)
    axes.set_aspect("auto")
    save_figure(figure, path, dpi=140)
