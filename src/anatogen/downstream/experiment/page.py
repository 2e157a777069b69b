"""`experiment.html`: the verdict first, then the paper's two figures, comparisons and tables."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from anatogen.downstream.experiment.figures import (
    PredictionPicture,
    fractions_figure,
    label_colour,
    predictions_figure,
)
from anatogen.downstream.experiment.results import ResultRow
from anatogen.downstream.experiment.statistics import (
    ArmComparison,
    Scores,
    compare,
    estimate,
    finished_trials,
    scores_by_arm,
)
from anatogen.downstream.experiment.trials import Trial
from anatogen.downstream.experiment.verdict import (
    LEAST_GAIN,
    Outcome,
    comparison_pairs,
    outcomes,
    verdict,
)
from anatogen.downstream.experiment.wording import answer, arm_text, controls_text, dice_text, fraction_text
from anatogen.downstream.metrics import METRIC_TITLES, METRICS, Metric
from anatogen.report.numbers import duration_text, interval_text, p_text
from anatogen.report.page import data_url, write_page
from anatogen.report.verdicts import Tone

PAGE_NAME = "experiment.html"
FRACTIONS_NAME, PREDICTIONS_NAME = "dice_by_fraction.png", "predictions.png"

# Each outcome in the comparisons' table, and its colour.
_OUTCOMES: Mapping[Outcome, tuple[str, Tone | None]] = {
    Outcome.BETTER: ("better", Tone.GOOD),
    Outcome.WORSE: ("worse", Tone.BAD),
    Outcome.OPEN: ("can't tell", None),
    Outcome.NO_GAIN: (f"gains less than {LEAST_GAIN:g}", None),
}


def write_experiment_page(
    out: Path,
    rows: Sequence[ResultRow],
    *,
    arms: Mapping[str, str],
    labels: Mapping[str, str],
    planned: Sequence[Trial],
    tolerance_mm: float,
    pictures: Sequence[PredictionPicture] = (),
    spacing_mm: tuple[float, float, float] = (1, 1, 1),
    axis_codes: tuple[str, str, str] | None = None,
    settings: Mapping[str, str],
    minutes: Mapping[str, float],
    unlearned: Sequence[str] = (),
) -> Path:
    """Writes the page and, beside it, its figures as PNG files, each atomically.

    An experiment that isn't finished has a page, too, which says what is missing.

    Args:
        out: Folder of the experiment.
        rows: Results of the trials.
        arms: Description of each arm, in order. The verdict knows "scratch", "synthetic", "shapes" and
            "real" by these names; others are shown and compared with "scratch".
        labels: Names of the labels by number.
        planned: All trials of the plan.
        tolerance_mm: Tolerance of the normalised surface distance.
        pictures: Test scans with predictions; say in `settings` of which seed and fraction.
        spacing_mm: Distance between voxels of their grid, along (D, H, W).
        axis_codes: Axis codes of their grid, such as ("S", "A", "R").
        settings: Texts of the settings by name, for the page's end.
        minutes: Minutes that were spent, by what they were spent on.
        unlearned: Arms whose network fills in what is hidden of the target's scans no better than copying.

    Returns:
        The page.
    """
    scores = scores_by_arm(rows, "dice")
    comparisons = compare(scores, comparison_pairs(list(arms)))
    found = {key: value for key, own in scores.items() if (value := estimate(own.values))}
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
    finished = finished_trials(rows).intersection(planned)
    keys = [(arm, fraction) for fraction in sorted({trial.fraction for trial in planned}) for arm in arms]
    found_verdict = verdict(comparisons)
    write_page(
        out / PAGE_NAME,
        "experiment.html",
        answer=answer(found_verdict),
        controls=controls_text(found_verdict),
        num_done=len(finished),
        num_planned=len(planned),
        missing=_missing(keys, finished, planned),
        num_patients=len({row.patient for row in rows}),
        num_cases=len({row.case for row in rows}),
        num_seeds=len({trial.seed for trial in finished}),
        num_training={fraction_text(row.fraction): row.num_training_scans for row in _by_fraction(rows)},
        arms={arm_text(arm): text for arm, text in arms.items()},
        unlearned=[arm_text(arm) for arm in unlearned],
        figures=figures,
        label_colours={name: label_colour(int(label)) for label, name in labels.items()},
        comparisons=_comparison_rows(comparisons),
        num_comparisons=len(comparisons),
        tables=[_table(rows, metric, labels, keys) for metric in METRICS],
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


def _missing(keys: Sequence[tuple[str, float]], finished: set[Trial], planned: Sequence[Trial]) -> list[str]:
    """What is not done yet: "real at 10% (2 of 3 seeds)"."""
    texts = []
    for arm, fraction in keys:
        own = [trial for trial in planned if (trial.arm, trial.fraction) == (arm, fraction)]
        if left := len(set(own) - finished):
            texts.append(f"{arm_text(arm)} at {fraction_text(fraction)} ({left} of {len(own)} seeds)")
    return texts


def _comparison_rows(comparisons: Sequence[ArmComparison]) -> dict[str, list[dict[str, str]]]:
    """The rows of the comparisons' table by pair of arms."""
    rows: dict[str, list[dict[str, str]]] = {}
    for comparison, outcome in zip(comparisons, outcomes(comparisons), strict=True):
        found = comparison.difference
        text, tone = _OUTCOMES[outcome]
        pair = f"{arm_text(comparison.arm)} − {arm_text(comparison.other)}"
        rows.setdefault(pair, []).append(
            {
                "fraction": fraction_text(comparison.fraction),
                "difference": dice_text(found.mean),
                "over_seeds": interval_text(*found.over_seeds, dice_text) if found.over_seeds else "none",
                "over_patients": interval_text(*found.over_patients, dice_text),
                "p": p_text(comparison.p_corrected),
                "outcome": text,
                "tone": tone or "",
                "counts": f"{found.num_seeds} × {found.num_patients}",
            }
        )
    return rows


def _table(
    rows: Sequence[ResultRow],
    metric: Metric,
    labels: Mapping[str, str],
    keys: Sequence[tuple[str, float]],
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
        cells = [_cell(column.get((arm, fraction)), digits, most) for column in columns.values()]
        if any(cells):
            lines.setdefault(fraction_text(fraction), []).append({"arm": arm_text(arm), "cells": cells})
    return {"title": METRIC_TITLES[metric], "metric": metric, "columns": list(columns), "lines": lines}


def _cell(scores: Scores | None, digits: int, most: float) -> dict[str, str] | None:
    if scores is None:
        return None
    found = estimate(scores.values)
    if found is None:
        return {"value": "undefined", "interval": "", "undefined": ""}
    interval = ""
    if found.over_seeds is not None:
        low, high = max(found.over_seeds[0], 0), min(found.over_seeds[1], most)
        interval = f"{low:.{digits}f} to {high:.{digits}f}"
    return {
        "value": f"{found.mean:.{digits}f} ± {found.deviation:.{digits}f}",
        "interval": interval,
        "undefined": f"{found.num_undefined} of {scores.values.size} undefined"
        if found.num_undefined
        else "",
    }
