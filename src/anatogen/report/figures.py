"""The look of pictures, loss curves, and how a figure becomes a file. Equal input gives equal bytes.

Draws through matplotlib's object interface, so a notebook's own figures and back end are never touched.
"""

import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anatogen.core.files import atomic_path
from anatogen.report.numbers import duration_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAX_PNG_BYTES = 500_000
FONT = "DejaVu Sans"  # matplotlib carries it, so that pictures look the same on every computer
_BOOKKEEPING = frozenset({"step", "minutes"})
_AXIS_LABEL: dict[str, Any] = {"fontsize": 8, "fontfamily": FONT, "color": "0.35"}


def curves_figure(records: Sequence[Mapping[str, float]], path: Path) -> None:
    """Draws every quantity of a training history against the step, raw values light, smoothed ones dark.

    Args:
        records: One mapping per logged step: "step", optionally "minutes" since the start, and any number of
            quantities; a record may lack some. Values that are not finite are left out. Quantities that
            stay positive and span more than a factor of 10 get a logarithmic axis. "train_x" and "held_out_x"
            share one.
        path: The PNG file, written atomically.

    Raises:
        ValueError: If no record holds a finite quantity.
    """
    names = list(dict.fromkeys(name for record in records for name in record if name not in _BOOKKEEPING))
    series = {name: _series(records, name) for name in names}
    series = {name: values for name, values in series.items() if len(values[0])}
    if not series:
        raise ValueError("there is no curve to draw: no record holds a finite quantity beside its step")
    beside = {name: name.replace("train_", "held_out_", 1) for name in series if name.startswith("train_")}
    shown = [name for name in series if name not in beside.values()]
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure, panels = new_panels(9, 2.2 * lines, lines, columns, sharex=True)
    minutes = max((float(record["minutes"]) for record in records if "minutes" in record), default=None)
    x_label = "training step" if minutes is None else f"training step ({duration_text(60 * minutes)} in all)"
    for number, (panel, name) in enumerate(zip(panels, shown, strict=False)):
        _draw_curve(panel, name, *series[name])
        if beside.get(name) in series:
            panel.lines[-1].set_label("training scans")
            panel.plot(*series[beside[name]], color="#c2571a", linewidth=1.5, label="held-out scans")
            panel.legend(frameon=False, prop={"family": FONT, "size": 7})
        if number + columns >= len(shown):
            panel.tick_params(labelbottom=True)
            panel.set_xlabel(x_label, **_AXIS_LABEL)
    for panel in panels[len(shown) :]:
        panel.set_axis_off()
    save_figure(figure, path, dpi=150)


def new_figure(width: float, height: float, colour: str) -> "Figure":
    """An empty figure, which no back end shows.

    Args:
        width: In inches.
        height: In inches.
        colour: Colour of the background.
    """
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), facecolor=colour)


def new_panels(
    width: float, height: float, lines: int = 1, columns: int = 1, **options: Any
) -> "tuple[Figure, list[Axes]]":
    """A white figure of charts, and their axes line by line.

    Args:
        width: In inches.
        height: In inches.
        lines: Charts one below the other.
        columns: Charts side by side.
        **options: Of matplotlib's `subplots`.
    """
    figure = new_figure(width, height, "white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.1)
    return figure, list(figure.subplots(lines, columns, squeeze=False, **options).flat)


def save_figure(figure: "Figure", path: Path, *, dpi: int) -> None:
    """Writes a figure as a PNG smaller than 500 kB, atomically; equal figures give equal bytes.

    Args:
        figure: What `new_figure` made.
        path: The PNG file.
        dpi: Pixels per inch; fewer where the file would be too big.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    canvas = FigureCanvasAgg(figure)
    while True:
        figure.set_dpi(dpi)
        canvas.draw()
        # Fewer colours: grey pictures need one channel, not four.
        picture = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
        grey = picture.convert("L")
        if np.array_equal(np.asarray(grey.convert("RGB")), np.asarray(picture)):
            picture = grey
        packed = io.BytesIO()
        picture.save(packed, format="PNG", optimize=True)
        if packed.tell() < MAX_PNG_BYTES or dpi <= 40:
            break
        # The size goes with the number of pixels.
        dpi = int(dpi * min(0.85, math.sqrt(MAX_PNG_BYTES / packed.tell())))
    with atomic_path(path) as temporary:
        temporary.write_bytes(packed.getvalue())


def style_panel(panel: "Axes", title: str, x_label: str = "") -> None:
    """Gives axes the project's look: a bold title at the left, a light grid, no frame.

    Args:
        panel: With its data drawn already.
        title: In plain words.
        x_label: Label of the horizontal axis.
    """
    if x_label:
        panel.set_xlabel(x_label, **_AXIS_LABEL)
    panel.set_title(title, fontsize=9, fontfamily=FONT, loc="left", color="0.15", weight="bold")
    panel.tick_params(labelsize=7.5, labelcolor="0.35", color="0.7", which="both", labelfontfamily=FONT)
    panel.grid(visible=True, color="0.92", linewidth=0.7)
    panel.set_axisbelow(True)
    for side, spine in panel.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color("0.7")


def _series(
    records: Sequence[Mapping[str, float]], name: str
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Steps and finite values of one quantity, each float64 (N,)."""
    pairs = [(record["step"], record[name]) for record in records if name in record]
    table = np.array(pairs, dtype=np.float64).reshape(-1, 2)
    table = table[np.isfinite(table).all(axis=1)]
    return table[:, 0], table[:, 1]


def _draw_curve(
    panel: "Axes", name: str, steps: npt.NDArray[np.float64], values: npt.NDArray[np.float64]
) -> None:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    window = len(values) // 25
    if window >= 3:
        panel.plot(steps, values, color="#9db8d9", linewidth=0.6, alpha=0.8)
        panel.plot(steps, _smooth(values, window), color="#1f4e8c", linewidth=1.5)
    else:
        panel.plot(steps, values, color="#1f4e8c", linewidth=1.5, marker="o", markersize=2.5)
    if values.min() > 0 and values.max() > 10 * values.min():
        panel.set_yscale("log")
    else:
        panel.yaxis.set_major_locator(MaxNLocator(5))
    panel.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    panel.xaxis.set_major_formatter(EngFormatter(sep=""))
    style_panel(panel, name.replace("_", " "))
    panel.margins(x=0.01)


def _smooth(values: npt.NDArray[np.float64], window: int) -> npt.NDArray[np.float64]:
    """Mean over `window` values on each side; over fewer at the ends, so that the first value is kept."""
    index = np.arange(len(values))
    start = np.maximum(index - window, 0)
    stop = np.minimum(np.minimum(index + window, 2 * index), len(values) - 1) + 1
    total = np.concatenate([[0.0], np.cumsum(values)])
    return np.asarray((total[stop] - total[start]) / (stop - start))
