"""The paper's two figures of the experiment: Dice against labelled scans, and what was predicted."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anatogen.downstream.experiment.statistics import ArmComparison, MeanEstimate
from anatogen.downstream.experiment.verdict import REAL, SCRATCH, SHAPES, TREATMENT
from anatogen.downstream.experiment.wording import arm_text, fraction_text
from anatogen.downstream.metrics import Mask, dice, mean_over_labels
from anatogen.report.figures import FONT, new_figure, save_figure, style_panel
from anatogen.report.volume_figures import central_slice, display_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours that colour-blind readers tell apart (Okabe and Ito), each with a mark of its own.
_STYLES: Mapping[str, tuple[str, str]] = {
    SCRATCH: ("#4d4d4d", "s"),
    TREATMENT: ("#0072b2", "o"),
    REAL: ("#d55e00", "^"),
    SHAPES: ("#009e73", "D"),
    "synthetic_and_real": ("#cc79a7", "v"),
}
_OTHER_STYLES = (("#e69f00", "P"), ("#56b4e9", "X"), ("#8c564b", "h"), ("#000000", "*"))
_LABEL_COLOURS = ("#56b4e9", "#f0e442", "#cc79a7", "#e69f00", "#0072b2", "#d55e00")
RIGHT, WRONG = "#2fbf71", "#ff2d2d"
_DODGE = 0.09
_FIELD = 1.8  # of the largest true structure: what is shown of a slice


@dataclass(frozen=True)
class PredictionPicture:
    """One test scan and what networks made of it; all arrays (D, H, W) on one grid.

    Attributes:
        case: Its anonymous name.
        image: float32, in [-1, 1].
        truth: uint8, 0 is background.
        predictions: uint8 by arm.
    """

    case: str
    image: npt.NDArray[np.float32]
    truth: Mask
    predictions: Mapping[str, Mask]


def label_colour(label: int) -> str:
    """The colour of a label, 1 or more, where the truth is shown."""
    return _LABEL_COLOURS[(label - 1) % len(_LABEL_COLOURS)]


def fractions_figure(
    estimates: Mapping[tuple[str, float], MeanEstimate],
    comparisons: Sequence[ArmComparison],
    arms: Sequence[str],
    path: Path,
) -> None:
    """Draws mean Dice against the share of labelled scans, and each arm's gain on training from scratch.

    Fractions stand side by side at equal distances. At the left, bars are standard deviations over patients,
    as in the paper's Fig. 4; at the right, 95% intervals of the paired difference over seeds and patients,
    which the verdict rests on. Arms are moved aside a little so that bars don't cover each other.

    Args:
        estimates: Mean Dice by (arm, fraction).
        comparisons: Those with `SCRATCH` as the other arm are drawn.
        arms: In order of the legend; each keeps its colour whichever others there are.
        path: The PNG file.

    Raises:
        ValueError: If there is no estimate.
    """
    fractions = sorted({fraction for _, fraction in estimates})
    if not fractions:
        raise ValueError("there is nothing to draw: no run is finished")
    gains = {(c.arm, c.fraction): c.difference for c in comparisons if c.other == SCRATCH}
    figure = new_figure(9.6 if gains else 5.4, 4.1, "white")
    figure.set_layout_engine("constrained", w_pad=0.1, h_pad=0.06)
    panels = list(figure.subplots(1, 2 if gains else 1, squeeze=False).flat)
    styles = dict(zip(arms, _styles(arms), strict=True))
    bars = {
        key: (found.mean, found.mean - found.deviation, found.mean + found.deviation)
        for key, found in estimates.items()
    }
    _draw_arms(panels[0], bars, fractions, styles)
    style_panel(panels[0], "Dice, mean over labels and patients")
    if gains:
        bars = {
            key: (found.mean, *(found.over_seeds or (found.mean, found.mean))) for key, found in gains.items()
        }
        panels[1].axhline(0, color=styles.get(SCRATCH, ("0.3", ""))[0], linewidth=1.0, zorder=1)
        _draw_arms(panels[1], bars, fractions, styles, joined=False)
        style_panel(panels[1], "Gain of Dice on training from scratch")
        # Two seeds may give an interval so long that nothing else could be seen: its bar leaves the panel.
        reach = max(0.05, 3 * max(abs(bar[0]) for bar in bars.values()))
        low, high = panels[1].get_ylim()
        panels[1].set_ylim(max(low, -reach), min(high, reach))
    for panel in panels:
        panel.set_xticks(range(len(fractions)), [fraction_text(fraction) for fraction in fractions])
        panel.set_xlabel("labelled training scans", fontsize=8, fontfamily=FONT, color="0.35")
        panel.grid(visible=False, axis="x")
        panel.set_xlim(-0.5, len(fractions) - 0.5)
    handles, names = panels[0].get_legend_handles_labels()
    figure.legend(
        handles,
        names,
        loc="outside lower center",
        ncols=min(len(names), 5),
        frameon=False,
        prop={"family": FONT, "size": 8},
    )
    save_figure(figure, path, dpi=160)


def predictions_figure(
    pictures: Sequence[PredictionPicture],
    arms: Sequence[str],
    path: Path,
    *,
    spacing_mm: tuple[float, float, float],
    axis_codes: tuple[str, str, str] | None,
) -> None:
    """Draws a row for each scan: the image, its truth, and each arm's prediction with its mean Dice.

    The slice is the one across the first axis that holds most of the truth, around it. Predictions are green
    where they are right and filled red where they mark what is not there or another label; what they miss
    has a red outline. Planes are shown as radiologists read them, in physical proportions.

    Args:
        pictures: The rows.
        arms: In order of the columns; an arm that a picture lacks leaves its place empty.
        path: The PNG file.
        spacing_mm: Distance between voxels along (D, H, W).
        axis_codes: The patient's direction in which each index increases, such as ("S", "A", "R").

    Raises:
        ValueError: If there is no picture.
    """
    if not pictures:
        raise ValueError("there is no prediction to draw")
    directions, codes = display_axes(axis_codes)
    across, up = (number for number in (0, 1, 2) if directions[number] != 0)

    def shown(volume: npt.NDArray[Any], index: int) -> npt.NDArray[np.float32]:
        one = volume[index : index + 1]
        return central_slice(one, [slice(0, n) for n in one.shape], directions, codes, (across, up))

    indices = [int(picture.truth.astype(bool).sum(axis=(1, 2)).argmax()) for picture in pictures]
    truths = [shown(picture.truth, index) for picture, index in zip(pictures, indices, strict=True)]
    fields = _fields(truths, spacing_mm[directions[up]], spacing_mm[directions[across]])
    num_rows, num_columns = (part.stop - part.start for part in fields[0])
    width, height = num_columns * spacing_mm[directions[across]], num_rows * spacing_mm[directions[up]]
    names = ["image", "truth", *(arm_text(arm) for arm in arms)]
    gap, margin, heading, caption = 0.03 * width, 0.2 * width, 0.24 * width, 0.16 * width
    total_width = margin + len(names) * (width + gap)
    total_height = heading + len(pictures) * (height + caption)
    inches = 1.5 * total_width / width
    figure = new_figure(inches, inches * total_height / total_width, "black")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    text: dict[str, Any] = {"fontfamily": FONT, "va": "center", "ha": "center"}
    for column, name in enumerate(names):
        place = margin + column * (width + gap) + width / 2
        axes.text(place, heading / 2, name, color="white", fontsize=8.5, weight="bold", **text)
    for row, (picture, index, field) in enumerate(zip(pictures, indices, fields, strict=True)):
        top = heading + row * (height + caption)
        name = picture.case.replace("_", " ")
        axes.text(0.35 * margin, top + height / 2, name, color="0.8", fontsize=7, rotation=90, **text)
        if codes:
            side = "R" if across == 0 else "A"
            axes.text(0.8 * margin, top + height / 2, side, color="0.5", fontsize=6.5, **text)
        image, truth = shown(picture.image, index)[field], truths[row][field]
        for column in range(len(names)):
            left = margin + column * (width + gap)
            extent = (left, left + width, top + height, top)
            arm = arms[column - 2] if column >= 2 else None
            if arm is not None and arm not in picture.predictions:
                axes.text(left + width / 2, top + height / 2, "no run yet", color="0.5", fontsize=7, **text)
                continue
            axes.imshow(image, cmap="gray", vmin=-1, vmax=1, interpolation="catrom", extent=extent)
            if column == 1:
                axes.imshow(_truth_layer(truth), interpolation="nearest", extent=extent)
            if arm is not None:
                prediction = picture.predictions[arm]
                _draw_prediction(axes, shown(prediction, index)[field], truth, extent)
                below = top + height + 0.4 * caption
                score = _dice_text(prediction, picture.truth)
                axes.text(left + width / 2, below, score, color="0.75", fontsize=7, **text)
    axes.set_xlim(0, total_width)
    axes.set_ylim(total_height, 0)
    axes.set_aspect("auto")
    save_figure(figure, path, dpi=150)


def _styles(arms: Sequence[str]) -> list[tuple[str, str]]:
    others = iter(_OTHER_STYLES * len(arms))
    return [_STYLES[arm] if arm in _STYLES else next(others) for arm in arms]


def _draw_arms(
    panel: "Axes",
    bars: Mapping[tuple[str, float], tuple[float, float, float]],
    fractions: Sequence[float],
    styles: Mapping[str, tuple[str, str]],
    *,
    joined: bool = True,
) -> None:
    """Draws each arm's (mean, low, high), moved aside from the others at the same fraction."""
    arms = [arm for arm in styles if any(own == arm for own, _ in bars)]
    for number, arm in enumerate(arms):
        colour, mark = styles[arm]
        places = [place for place, fraction in enumerate(fractions) if (arm, fraction) in bars]
        values = np.array([bars[arm, fractions[place]] for place in places])
        x = np.array(places) + _DODGE * (number - (len(arms) - 1) / 2)
        panel.vlines(x, values[:, 1], values[:, 2], color=colour, linewidth=1.3, alpha=0.75)
        line = "-" if joined else "none"
        panel.plot(
            x, values[:, 0], linestyle=line, color=colour, linewidth=1.1, marker=mark, markersize=5.2,
            markeredgecolor="white", markeredgewidth=0.6, label=arm_text(arm),
        )  # fmt: skip


def _fields(
    truths: Sequence[npt.NDArray[np.float32]], row_mm: float, column_mm: float
) -> list[tuple[slice, slice]]:
    """For each slice of truth, the part to show: of one size for all, around it, within the slice."""
    boxes = []
    side_mm = 0.0
    for truth in truths:
        rows, columns = np.nonzero(truth)
        if len(rows):
            a, b, c, d = rows.min(), rows.max() + 1, columns.min(), columns.max() + 1
            side_mm = max(side_mm, _FIELD * (b - a) * row_mm, _FIELD * (d - c) * column_mm)
            boxes.append((a, b, c, d))
        else:
            boxes.append((0, truth.shape[0], 0, truth.shape[1]))
    lengths = [
        min(length, int(np.ceil(side_mm / mm))) if side_mm else length
        for length, mm in zip(truths[0].shape, (row_mm, column_mm), strict=True)
    ]
    fields = []
    for truth, (a, b, c, d) in zip(truths, boxes, strict=True):
        starts = [
            min(max((first + last - length) // 2, 0), whole - length)
            for first, last, length, whole in zip((a, c), (b, d), lengths, truth.shape, strict=True)
        ]
        rows_part, columns_part = (slice(s, s + n) for s, n in zip(starts, lengths, strict=True))
        fields.append((rows_part, columns_part))
    return fields


def _truth_layer(truth: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The labels in colours, as RGBA."""
    from matplotlib.colors import to_rgba

    layer = np.zeros((*truth.shape, 4))
    for label in np.unique(truth[truth > 0]):
        layer[truth == label] = to_rgba(label_colour(int(label)), 0.6)
    return layer


def _draw_prediction(
    axes: "Axes",
    prediction: npt.NDArray[np.float32],
    truth: npt.NDArray[np.float32],
    extent: tuple[float, float, float, float],
) -> None:
    from matplotlib.collections import LineCollection
    from matplotlib.colors import to_rgba

    layer = np.zeros((*truth.shape, 4))
    layer[(prediction > 0) & (prediction == truth)] = to_rgba(RIGHT, 0.45)
    layer[(prediction > 0) & (prediction != truth)] = to_rgba(WRONG, 0.8)
    axes.imshow(layer, interpolation="nearest", extent=extent)
    left, right, bottom, top = extent
    step = np.array([(right - left) / truth.shape[1], (bottom - top) / truth.shape[0]])
    lines = [np.array(line) * step + [left, top] for line in _outline((prediction == 0) & (truth > 0))]
    axes.add_collection(LineCollection(lines, colors=WRONG, linewidths=1.0))


def _outline(mask: npt.NDArray[np.bool_]) -> Iterable[tuple[tuple[int, int], tuple[int, int]]]:
    """The sides of pixels, ((x, y), (x, y)), between those in the mask and those outside."""
    padded = np.pad(mask, 1)
    for y, x in np.argwhere(padded[1:, 1:-1] != padded[:-1, 1:-1]):
        yield (x, y), (x + 1, y)
    for y, x in np.argwhere(padded[1:-1, 1:] != padded[1:-1, :-1]):
        yield (x, y), (x, y + 1)


def _dice_text(prediction: Mask, truth: Mask) -> str:
    labels = [int(label) for label in np.union1d(prediction, truth) if label]
    mean = mean_over_labels({str(label): dice(prediction == label, truth == label) for label in labels})
    return "" if mean is None else f"Dice {mean:.2f}"
