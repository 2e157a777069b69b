"""The figures of a study's analysis; colours mean the same in all of them."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import shorten
from typing import TYPE_CHECKING, Any

import numpy as np

from anatogen.report.figures import FONT, new_figure, save_figure, style_panel
from anatogen.study.analysis.analyse import ALL_READERS, Analysis
from anatogen.study.analysis.ratings import Ratings, source_of
from anatogen.study.analysis.statistic import Statistic, pick, pick_one
from anatogen.study.analysis.times import item_seconds
from anatogen.study.analysis.turing import roc_curve, signed_scores
from anatogen.study.spec import Source

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SOURCE_COLOURS: dict[Source, str] = {"real": "#6f7a86", "reconstructed": "#c2872b", "synthetic": "#1f4e8c"}
# From the worst answer to the best; told apart by those who don't see red from green.
_ANSWER_COLOURS = ("#b3423a", "#e8a877", "#a9c3df", "#1f4e8c")
_TEXT: dict[str, Any] = {"fontfamily": FONT, "va": "center"}
# A study's title, its answers to a question, and all of its analysis.
_Answers = tuple[str, Ratings, Analysis]
_WIDTH = 8.6
_ROW = 0.23


def answers_figure(studies: Mapping[str, Analysis], path: Path) -> None:
    """Draws the answers to every ordinal question as stacked bars: the paper's Fig. 2.

    Args:
        studies: Analyses by title, one at least with an ordinal question; of several, each bar says its own.
        path: The PNG file.
    """
    panels: dict[tuple[str, str], list[_Answers]] = {}
    for title, analysis in studies.items():
        for ratings in analysis.ordinal:
            # The same words: a translated question is one of its own.
            key = ratings.protocol, ratings.question.model_dump_json()
            panels.setdefault(key, []).append((title if len(studies) > 1 else "", ratings, analysis))
    heights = [_panel_height(answers) for answers in panels.values()]
    figure = new_figure(_WIDTH, sum(heights) + 0.1, "white")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set_xlim(0, _WIDTH)
    axes.set_ylim(sum(heights) + 0.1, 0)
    top = 0.05
    for answers, height in zip(panels.values(), heights, strict=True):
        _draw_answers(axes, top, answers)
        top += height
    save_figure(figure, path, dpi=150)


def equivalence_figure(analysis: Analysis, path: Path) -> None:
    """Draws the differences between sources with their 90% intervals, inside or outside the margin.

    Args:
        analysis: Analysis with one difference at least.
        path: The PNG file.
    """
    rows = [row for row in pick(analysis.statistics, section="equivalence") if row.value is not None]
    kinds = (
        ("mean_difference", "Mean answer", "points", analysis.margin, 1.0),
        ("best_share_difference", "Share of best answers", "percentage points", analysis.share_margin, 100.0),
    )
    lines = pick(rows, name="mean_difference")
    figure = new_figure(_WIDTH, 0.3 * len(lines) + 0.95, "white")
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06)
    panels = figure.subplots(1, 2, sharey=True)
    for panel, (name, title, unit, margin, factor) in zip(panels, kinds, strict=True):
        panel.axvspan(-margin * factor, margin * factor, color="#1f4e8c", alpha=0.09, linewidth=0)
        panel.axvline(0, color="0.6", linewidth=0.8)
        # Both kinds exist for the same questions and sources, in one order.
        for line, row in enumerate(pick(rows, name=name)):
            assert row.source
            _draw_interval(panel, row, line, SOURCE_COLOURS[row.source], factor)
        style_panel(panel, title)
        panel.set_xlabel(f"difference, {unit}", fontsize=8, fontfamily=FONT, color="0.35")
    labels = [
        f"{shorten(analysis.title(row), 34, placeholder='…')}\n{row.source} − {row.reference}"
        for row in lines
    ]
    panels[0].set_yticks(range(len(lines)), labels)
    panels[0].set_ylim(len(lines) - 0.5, -0.5)
    save_figure(figure, path, dpi=150)


def turing_figure(analysis: Analysis, ratings: Ratings, confidence: Ratings | None, path: Path) -> None:
    """Draws the ROC curves of real against synthetic, and how often each source was called real.

    Args:
        analysis: Analysis to be shown.
        ratings: Answers to the question real or synthetic.
        confidence: Confidence of these answers, if it was asked.
        path: The PNG file.
    """
    figure = new_figure(_WIDTH, max(3.7, 0.5 * len(analysis.readers) + 1.5), "white")
    figure.set_layout_engine("constrained", w_pad=0.12, h_pad=0.08)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.25))
    scores = signed_scores(ratings, confidence)
    real, synthetic = ratings.of("real"), ratings.of("synthetic")
    left.plot([0, 1], [0, 1], color="0.75", linewidth=1, linestyle=(0, (4, 3)))
    for lines, width, colour in [
        *(([line], 1.0, "#8fb0d8") for line in range(len(scores))),
        (list(range(len(scores))), 2.0, "#1f4e8c"),
    ]:
        known = np.isfinite(scores[lines]).any(axis=0)
        if (known & real).any() and (known & synthetic).any():
            left.plot(*roc_curve(scores[lines], real, synthetic), color=colour, linewidth=width)
    style_panel(left, "ROC: readers thin, all together bold")
    left.set_aspect("equal")
    left.set_xlim(-0.02, 1.02)
    left.set_ylim(-0.02, 1.02)
    left.set_xlabel("synthetic scans called real", fontsize=8, fontfamily=FONT, color="0.35")
    left.set_ylabel("real scans called real", fontsize=8, fontfamily=FONT, color="0.35")
    _draw_called_real(right, analysis, ratings)
    save_figure(figure, path, dpi=150)


def times_figure(analysis: Analysis, path: Path) -> None:
    """Draws the seconds spent at each case, by reader and source, with median and quartiles.

    Args:
        analysis: Analysis to be shown.
        path: The PNG file.
    """
    rows = [row for row in analysis.rows if row.repeat_of is None]
    protocols = [each for each in analysis.protocols if any(row.protocol == each.id for row in rows)]
    num_lines = len(analysis.readers)
    figure = new_figure(_WIDTH, (0.52 * num_lines + 0.85) * len(protocols), "white")
    figure.set_layout_engine("constrained", h_pad=0.08)
    generator = np.random.default_rng(0)
    for panel, protocol in zip(
        figure.subplots(len(protocols), 1, squeeze=False)[:, 0], protocols, strict=True
    ):
        for line, reader in enumerate(analysis.readers):
            for shift, (source, colour) in zip((-0.25, 0, 0.25), SOURCE_COLOURS.items(), strict=True):
                mine = [
                    row
                    for row in rows
                    if (row.protocol, row.reader, source_of(row)) == (protocol.id, reader, source)
                ]
                seconds = np.maximum(item_seconds(mine), 0.5)
                if not len(seconds):
                    continue
                heights = line + shift + generator.uniform(-0.07, 0.07, len(seconds))
                panel.plot(seconds, heights, "o", color=colour, markersize=2.2, alpha=0.35, markeredgewidth=0)
                low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75])
                label = source if line == 0 else None
                panel.plot([low, high], [line + shift] * 2, color=colour, linewidth=2.2, label=label)
                panel.plot([median], [line + shift], "o", color="white", markeredgecolor=colour, markersize=5)
        _style_times(panel, protocol.title, analysis.readers)
    save_figure(figure, path, dpi=150)


def _panel_height(answers: Sequence[_Answers]) -> float:
    legend = 0.19 * len(answers[0][1].values) + 0.1
    lines = sum(
        len(ratings.present) * (len(analysis.lines) * _ROW + 0.12) for _, ratings, analysis in answers
    )
    return 0.35 + legend + lines + 0.2


def _draw_answers(axes: "Axes", top: float, answers: Sequence[_Answers]) -> None:
    """One question: its title, what the colours mean, and a bar for each study, source and reader."""
    from matplotlib.colors import LinearSegmentedColormap
    from matplotlib.patches import Rectangle

    first = answers[0][1]
    colours = LinearSegmentedColormap.from_list("answers", list(_ANSWER_COLOURS))
    shade = {value: colours(index / (len(first.values) - 1)) for index, value in enumerate(first.values)}
    text = {option.value: option.text for option in first.question.options}
    axes.text(0.1, top + 0.14, first.question.text, fontsize=10, color="0.1", weight="bold", **_TEXT)
    y = top + 0.4
    for value in reversed(first.values):
        axes.add_patch(Rectangle((0.1, y - 0.06), 0.14, 0.12, facecolor=shade[value], linewidth=0))
        axes.text(0.32, y, shorten(text[value], 110, placeholder="…"), fontsize=8, color="0.3", **_TEXT)
        y += 0.19
    y += 0.1
    for study, ratings, analysis in answers:
        for source in ratings.present:
            label = shorten(f"{study}: {source}" if study else source, 28, placeholder="…")
            axes.text(0.1, y, label, fontsize=9, color=SOURCE_COLOURS[source], weight="bold", **_TEXT)
            for name in analysis.lines:
                _draw_bar(axes, y, name, _shares(analysis, ratings, name, source), shade)
                y += _ROW
            y += 0.12


def _shares(analysis: Analysis, ratings: Ratings, reader: str, source: Source) -> list[Statistic]:
    """How often a reader gave each answer, the worst first."""
    return pick(
        analysis.statistics,
        section="shares",
        name="share",
        protocol=ratings.protocol,
        question=ratings.question.id,
        reader=reader,
        source=source,
    )


def _draw_bar(
    axes: "Axes", y: float, reader: str, shares: Sequence[Statistic], shade: Mapping[int, Sequence[float]]
) -> None:
    """The answers of a reader, or of all, as one bar of as many colours as there are answers."""
    from matplotlib.patches import Rectangle

    left, right = 2.75, _WIDTH - 0.55
    weight = "normal" if reader else "bold"
    name = _short_name(reader)
    axes.text(left - 0.1, y, name, fontsize=8, color="0.3", ha="right", weight=weight, **_TEXT)
    start = left
    for share in shares:
        assert share.option is not None
        width, colour = (right - left) * (share.value or 0.0), shade[share.option]
        axes.add_patch(
            Rectangle((start, y - 0.085), width, 0.17, facecolor=colour, edgecolor="white", linewidth=0.6)
        )
        if width > 0.26 and share.value is not None:
            ink = "white" if np.dot(colour[:3], (0.3, 0.59, 0.11)) < 0.55 else "0.15"
            label = f"{share.value * share.num_answers:.0f}"
            axes.text(start + width / 2, y, label, fontsize=7.5, color=ink, ha="center", **_TEXT)
        start += width
    count = shares[0].num_answers if shares else 0
    axes.text(right + 0.08, y, f"n={count}", fontsize=7.5, color="0.45", **_TEXT)


def _short_name(reader: str) -> str:
    return shorten(reader, 22, placeholder="…") or ALL_READERS


def _draw_interval(
    panel: "Axes", row: Statistic, y: float, colour: str, factor: float, label: str | None = None
) -> None:
    """A number times the factor as a dot, its interval as a bar."""
    assert row.value is not None and row.low is not None and row.high is not None
    panel.plot([row.low * factor, row.high * factor], [y, y], color=colour, linewidth=2.4, alpha=0.5)
    panel.plot([row.value * factor], [y], "o", color=colour, markersize=5, label=label)


def _draw_called_real(panel: "Axes", analysis: Analysis, ratings: Ratings) -> None:
    called = pick(analysis.statistics, section="turing", name="called_real", protocol=ratings.protocol)
    panel.axvline(50, color="0.75", linewidth=1, linestyle=(0, (4, 3)))
    step = 0.8 / len(ratings.present)
    for line, name in enumerate(analysis.lines):
        for index, source in enumerate(ratings.present):
            row = pick_one(called, reader=name, source=source)
            if row is not None and row.value is not None:
                y = line + (index - (len(ratings.present) - 1) / 2) * step
                label = source if line == 0 else None
                _draw_interval(panel, row, y, SOURCE_COLOURS[source], 100.0, label)
    labels = [_short_name(name) for name in analysis.lines]
    panel.set_yticks(range(len(labels)), labels)
    panel.set_ylim(len(labels) - 0.45, -0.55)
    panel.set_xlim(-2, 102)
    style_panel(panel, "Called real, %")
    _legend(panel)


def _style_times(panel: "Axes", title: str, readers: Sequence[str]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    panel.set_xscale("log")
    low, high = panel.get_xlim()
    ticks = [tick for tick in (1, 2, 5, 10, 20, 30, 60, 120, 300, 600, 1800, 3600) if low <= tick <= high]
    panel.xaxis.set_major_locator(FixedLocator(ticks))
    panel.xaxis.set_minor_locator(NullLocator())
    panel.xaxis.set_major_formatter(FuncFormatter(_tick_text))
    panel.set_yticks(range(len(readers)), [_short_name(reader) for reader in readers])
    panel.set_ylim(len(readers) - 0.5, -0.5)
    style_panel(panel, f"{title.rstrip('?')}: time per case")
    _legend(panel)


def _tick_text(seconds: float, _: int) -> str:
    return f"{seconds:g} s" if seconds < 60 else f"{seconds / 60:g} min"


def _legend(panel: "Axes") -> None:
    from matplotlib.transforms import ScaledTranslation

    figure = panel.get_figure(root=True)
    if figure is not None and panel.get_legend_handles_labels()[0]:
        # A third of an inch below the axis, however high the panel is.
        below = panel.transAxes + ScaledTranslation(0, -0.3, figure.dpi_scale_trans)
        panel.legend(
            loc="upper center",
            bbox_to_anchor=(0.5, 0),
            bbox_transform=below,
            ncols=3,
            frameon=False,
            prop={"family": FONT, "size": 8},
            labelcolor="0.3",
        )
