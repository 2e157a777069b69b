"""`experiment.html`: the verdict first, then the paper's two figures, comparisons and tables."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anatogen.downstream.experiment.figures import (
    PredictionPicture,
    arm_text,
    fractions_figure,
    label_colour,
    predictions_figure,
)
from anatogen.downstream.experiment.results import ResultRow
from anatogen.downstream.experiment.statistics import (
    Comparison,
    Estimate,
    Scores,
    compare,
    estimate,
    finished_units,
    scores_by_arm,
)
from anatogen.downstream.experiment.verdict import (
    LEAST_GAIN,
    comparison_pairs,
    outcomes,
    p_text,
    percent_text,
    signed_text,
    verdict,
)
from anatogen.downstream.metrics import METRICS, Metric
from anatogen.report.numbers import duration_text
from anatogen.report.page import data_url, write_page

PAGE_NAME = "experiment.html"
FRACTIONS_NAME, PREDICTIONS_NAME = "dice_by_fraction.png", "predictions.png"

_METRIC_TITLES: Mapping[Metric, str] = {
    "dice": "Dice",
    "surface_dice": "Surface Dice",
    "hausdorff95_mm": "95% Hausdorff distance (mm)",
}
_OUTCOME_TEXTS = {
    "better": "better",
    "worse": "worse",
    "no gain": f"gains less than {LEAST_GAIN:g}",
    "open": "can't tell",
}


@dataclass(frozen=True)
class _Cell:
    value: str
    interval: str
    undefined: str


def write_experiment_page(
    out: Path,
    rows: Sequence[ResultRow],
    *,
    arms: Mapping[str, str],
    labels: Mapping[str, str],
    planned: Iterable[tuple[str, float, int]],
    tolerance_mm: float,
    pictures: Sequence[PredictionPicture] = (),
    spacing_mm: tuple[float, float, float] = (1, 1, 1),
    axis_codes: tuple[str, str, str] | None = None,
    settings: Mapping[str, str],
    minutes: Mapping[str, float],
    unlearned: Sequence[str] = (),
    seed: int = 0,
) -> Path:
    """Writes the page and, beside it, its figures as PNG files, each atomically.

    An experiment that isn't finished has a page, too, which says what is missing.

    Args:
        out: Folder of the experiment.
        rows: What `read_results` gave.
        arms: What each arm is, in order. The verdict knows "scratch", "synthetic", "shapes" and "real" by
            these names; others are shown and compared with "scratch".
        labels: Names of the labels by number.
        planned: The (arm, fraction, seed) of all runs of the plan.
        tolerance_mm: Of the normalised surface distance.
        pictures: Test scans with predictions; say in `settings` of which seed and fraction.
        spacing_mm: Of their grid, along (D, H, W).
        axis_codes: Of their grid, such as ("S", "A", "R").
        settings: What was set, by name, for the page's end.
        minutes: What took how long, by name.
        unlearned: Arms whose network fills in what is hidden of the target's scans no better than copying.
        seed: Of bootstrap and tests.

    Returns:
        The page.
    """
    scores = scores_by_arm(rows, "dice")
    comparisons = compare(scores, comparison_pairs(list(arms)), seed)
    found = {key: value for key, own in scores.items() if (value := estimate(own.values, seed))}
    figures = {"fractions": "", "predictions": ""}
    if found:
        fractions_figure(found, comparisons, list(arms), out / FRACTIONS_NAME)
        figures["fractions"] = data_url(out / FRACTIONS_NAME)
    if pictures:
        shown = [arm for arm in arms if any(arm in picture.predictions for picture in pictures)]
        predictions_figure(
            pictures, shown, out / PREDICTIONS_NAME, spacing_mm=spacing_mm, axis_codes=axis_codes
        )
        figures["predictions"] = data_url(out / PREDICTIONS_NAME)
    planned = set(planned)
    finished = finished_units(rows) & planned
    keys = [(arm, fraction) for fraction in sorted({unit[1] for unit in planned}) for arm in arms]
    write_page(
        out / PAGE_NAME,
        "experiment.html",
        verdict=verdict(comparisons),
        num_done=len(finished),
        num_planned=len(planned),
        missing=_missing(keys, finished, planned),
        num_patients=len({row.patient for row in rows}),
        num_cases=len({row.case for row in rows}),
        num_seeds=len({unit[2] for unit in finished}),
        num_training={percent_text(row.fraction): row.num_training_scans for row in _by_fraction(rows)},
        arms={arm_text(arm): text for arm, text in arms.items()},
        unlearned=[arm_text(arm) for arm in unlearned],
        figures=figures,
        label_colours={name: label_colour(int(label)) for label, name in labels.items()},
        comparisons=_comparison_rows(comparisons),
        num_comparisons=len(comparisons),
        tables=[_table(rows, metric, labels, keys, seed) for metric in METRICS],
        tolerance_mm=tolerance_mm,
        least_gain=LEAST_GAIN,
        has_all=any(fraction == 1 for _, fraction in keys),
        settings=settings,
        minutes={name: duration_text(60 * value) for name, value in minutes.items()},
    )
    return out / PAGE_NAME


def _by_fraction(rows: Sequence[ResultRow]) -> list[ResultRow]:
    """One row of each fraction, the smallest first."""
    first = {row.fraction: row for row in reversed(rows)}
    return [first[fraction] for fraction in sorted(first)]


def _missing(
    keys: Sequence[tuple[str, float]],
    finished: set[tuple[str, float, int]],
    planned: set[tuple[str, float, int]],
) -> list[str]:
    """What is not done yet: "real at 10% (2 of 3 seeds)"."""
    texts = []
    for arm, fraction in keys:
        num_planned, num_done = (
            sum(unit[:2] == (arm, fraction) for unit in units) for units in (planned, finished)
        )
        if num_done < num_planned:
            left = num_planned - num_done
            texts.append(f"{arm_text(arm)} at {percent_text(fraction)} ({left} of {num_planned} seeds)")
    return texts


def _comparison_rows(comparisons: Sequence[Comparison]) -> dict[str, list[dict[str, str]]]:
    """The rows of the comparisons' table by pair of arms."""
    rows: dict[str, list[dict[str, str]]] = {}
    for comparison, outcome in zip(comparisons, outcomes(comparisons), strict=True):
        found = comparison.difference
        pair = f"{arm_text(comparison.arm)} − {arm_text(comparison.other)}"
        rows.setdefault(pair, []).append(
            {
                "fraction": percent_text(comparison.fraction),
                "difference": signed_text(found.mean),
                "wide": _signed_interval(found.wide_low, found.wide_high) or "none",
                "narrow": _signed_interval(found.low, found.high),
                "p": p_text(comparison.p_corrected),
                "outcome": _OUTCOME_TEXTS[outcome],
                "tone": {"better": "good", "worse": "bad"}.get(outcome, ""),
                "counts": f"{found.num_seeds} × {found.num_patients}",
            }
        )
    return rows


def _table(
    rows: Sequence[ResultRow],
    metric: Metric,
    labels: Mapping[str, str],
    keys: Sequence[tuple[str, float]],
    seed: int,
) -> dict[str, Any]:
    """One metric of every arm and fraction, by label and in the mean; the mean alone where there is one."""
    columns: dict[str, dict[tuple[str, float], Scores]] = {
        name: scores_by_arm(rows, metric, label) for label, name in labels.items()
    }
    if len(columns) > 1:
        columns["mean over labels"] = scores_by_arm(rows, metric)
    digits, most = (2, float("inf")) if metric == "hausdorff95_mm" else (3, 1.0)
    lines: dict[str, list[dict[str, Any]]] = {}
    for arm, fraction in keys:
        cells = [_cell(column.get((arm, fraction)), digits, most, seed) for column in columns.values()]
        if any(cells):
            lines.setdefault(percent_text(fraction), []).append({"arm": arm_text(arm), "cells": cells})
    return {"title": _METRIC_TITLES[metric], "metric": metric, "columns": list(columns), "lines": lines}


def _cell(scores: Scores | None, digits: int, most: float, seed: int) -> _Cell | None:
    if scores is None:
        return None
    found: Estimate | None = estimate(scores.values, seed)
    if found is None:
        return _Cell("undefined", "", "")
    interval = ""
    if found.wide_low is not None and found.wide_high is not None:
        low, high = max(found.wide_low, 0), min(found.wide_high, most)
        interval = f"{low:.{digits}f} to {high:.{digits}f}"
    undefined = f"{found.num_undefined} of {scores.values.size} undefined" if found.num_undefined else ""
    return _Cell(f"{found.mean:.{digits}f} ± {found.deviation:.{digits}f}", interval, undefined)


def _signed_interval(low: float | None, high: float | None) -> str:
    return "" if low is None or high is None else f"{signed_text(low)} to {signed_text(high)}"
