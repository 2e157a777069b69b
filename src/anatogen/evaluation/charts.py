"""The charts of an evaluation report; colours mean the same in all of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anatogen.report.figures import FONT, new_figure, new_panels, save_figure, style_panel
from anatogen.report.numbers import number_text
from anatogen.report.rows import Row, label_text

Values = npt.NDArray[np.floating]

REAL, SYNTHETIC, MARK = "0.55", "#1f4e8c", "#b3261e"
_TEXT: dict[str, Any] = {"fontfamily": FONT, "fontsize": 8, "va": "center"}


def forest_figure(rows: Sequence[Row], path: Path) -> None:
    """Draws each number with its 95% interval beside that of real scans against real scans.

    Every line has its own scale, which starts at 0 (or at the smallest value, where one is negative), because
    units differ; lengths are to be compared within a line.

    Args:
        rows: At least one; each has a value and a reference.
        path: The PNG file.
    """
    figure = new_figure(8.6, 0.3 * len(rows) + 0.75, "white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, 10)
    axes.set_ylim(len(rows) + 0.1, -2.1)
    left, right = 3.9, 7.6
    for x, name, colour in (
        (left, "real against real", REAL),
        (left + 1.75, "synthetic against real", SYNTHETIC),
    ):
        axes.plot([x], [-1.2], "o", color=colour, markersize=5)
        axes.text(x + 0.12, -1.2, name, color="0.35", **_TEXT)
    for x, name in ((right + 0.3, "synthetic"), (right + 1.35, "real")):
        axes.text(x, -1.2, name, color="0.35", **_TEXT)
    for line, row in enumerate(rows):
        _draw_row(axes, line, row, left, right)
    save_figure(figure, path, dpi=150)


def _draw_row(axes, line: int, row: Row, left: float, right: float) -> None:  # type: ignore[no-untyped-def]
    ends = (row.value, row.low, row.high, row.reference, row.reference_low, row.reference_high)
    known = [end for end in ends if end is not None]
    low, high = min(0.0, *known), max(0.0, *known)

    def place(value: float) -> float:
        return left + (right - left) * (value - low) / ((high - low) or 1.0)

    axes.text(0.15, line, label_text(row), color="0.15", **_TEXT)
    axes.plot([left, right], [line, line], color="0.93", linewidth=0.8, zorder=0)
    if low < 0:
        axes.plot([place(0)] * 2, [line - 0.3, line + 0.3], color="0.8", linewidth=0.8, zorder=0)
    pairs = (
        (row.reference, row.reference_low, row.reference_high, REAL, -0.13),
        (row.value, row.low, row.high, SYNTHETIC, 0.13),
    )
    for value, start, stop, colour, shift in pairs:
        assert value is not None
        if start is not None and stop is not None:
            axes.plot(
                [place(start), place(stop)], [line + shift] * 2, color=colour, linewidth=2.2, alpha=0.45
            )
        axes.plot([place(value)], [line + shift], "o", color=colour, markersize=4.5)
    for x, value in ((right + 0.3, row.value), (right + 1.35, row.reference)):
        assert value is not None
        axes.text(x, line, number_text(value), color="0.15", **_TEXT)


def histogram_figure(
    series: Mapping[str, Values],
    path: Path,
    *,
    title: str,
    label: str,
    threshold: tuple[float, str] | None = None,
) -> None:
    """Draws how values are spread, as densities over the same bins.

    Args:
        series: Finite values (N,), N at least 1, of real and of synthetic scans, by name.
        path: The PNG file.
        title: Above the axes.
        label: Label of the horizontal axis.
        threshold: A value to mark, and its name.
    """
    everything = np.concatenate(list(series.values()))
    low, high = float(everything.min()), float(everything.max())
    if threshold is not None:
        low, high = min(low, threshold[0]), max(high, threshold[0])
    margin = 0.02 * (high - low) or 0.5
    number = int(np.clip(2 * np.sqrt(min(map(len, series.values()))), 10, 40))
    bins = np.linspace(low - margin, high + margin, number + 1).tolist()
    figure, (panel,) = new_panels(8, 2.7)
    for (name, values), colour in zip(series.items(), (REAL, SYNTHETIC), strict=True):
        panel.hist(values, bins, density=True, color=colour, alpha=0.25)
        panel.hist(values, bins, density=True, color=colour, histtype="step", linewidth=1.4, label=name)
    if threshold is not None:
        panel.axvline(threshold[0], color=MARK, linewidth=1.2, linestyle="--", label=threshold[1])
    style_panel(panel, title, label)
    panel.set_yticks([])
    panel.legend(frameon=False, prop={"family": FONT, "size": 8})
    save_figure(figure, path, dpi=150)


def bars_figure(shares: Mapping[str, float], path: Path, *, title: str) -> None:
    """Draws shares between 0 and 1 as horizontal bars with their percentages.

    Args:
        shares: Shares by name, from the top.
        path: The PNG file.
        title: Above the bars.
    """
    figure, (panel,) = new_panels(8, 0.27 * len(shares) + 0.7)
    places = [float(place) for place in range(len(shares))]
    panel.barh(places, [1.0] * len(shares), color="0.95", height=0.6)
    panel.barh(places, list(shares.values()), color=SYNTHETIC, height=0.6)
    for place, share in zip(places, shares.values(), strict=True):
        panel.text(1.01, place, f"{share:.0%}", color="0.15", **_TEXT)
    style_panel(panel, title)
    panel.grid(visible=False)
    panel.set_yticks(places, list(shares))
    panel.set_xlim(0, 1.08)
    panel.set_xticks([])
    panel.invert_yaxis()
    panel.spines[["left", "bottom"]].set_visible(False)
    save_figure(figure, path, dpi=150)


def spectra_figure(
    real: tuple[Values, Values], synthetic: tuple[Values, Values], longest_mm: float, path: Path
) -> None:
    """Draws intensity histograms and radial power spectra of both sets side by side.

    Args:
        real: Shares of voxels in equal bins of [-1, 1], (B,), and power at the frequencies 1, 2, ... (F,).
        synthetic: The same of the synthetic scans.
        longest_mm: The scans' longest side: the length of frequency 1.
        path: The PNG file.
    """
    figure, (intensities, spectra) = new_panels(9, 2.7, columns=2)
    for name, (shares, power), colour in (("real", real, REAL), ("synthetic", synthetic, SYNTHETIC)):
        intensities.stairs(
            shares, np.linspace(-1, 1, len(shares) + 1), color=colour, linewidth=1.5, label=name
        )
        present = np.flatnonzero(power > 0)
        spectra.plot((present + 1) / longest_mm, power[present], color=colour, linewidth=1.5, label=name)
    intensities.set_yscale("symlog", linthresh=1e-4)
    spectra.set_yscale("log")
    style_panel(intensities, "Intensities: share of voxels", "intensity in [-1, 1]")
    style_panel(spectra, "Radial power spectrum", "spatial frequency (1/mm)")
    intensities.legend(frameon=False, prop={"family": FONT, "size": 8})
    save_figure(figure, path, dpi=150)
