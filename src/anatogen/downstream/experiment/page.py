"""`experiment.html`: the verdict first, then the paper's two figures, comparisons and tables."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anatogen.config.settings import OptimiserSettings
from anatogen.downstream.experiment.figures import (
    PredictionPicture,
    fractions_figure,
    label_colour,
    predictions_figure,
)
from anatogen.downstream.experiment.plan import Arm, ExperimentPlan
from anatogen.downstream.experiment.results import ResultRow
from anatogen.downstream.experiment.statistics import (
    ArmComparison,
    Scores,
    compare,
    estimate,
    finished_trials,
    scores_by_arm,
)
from anatogen.downstream.experiment.trials import Job, Pretraining, Trial, pretrainings, trials
from anatogen.downstream.experiment.verdict import (
    LEAST_GAIN,
    Outcome,
    comparison_pairs,
    outcomes,
    verdict,
)
from anatogen.downstream.experiment.wording import answer, arm_text, controls_text, dice_text, fraction_text
from anatogen.downstream.inpainting import InpaintingQuality, load_inpainting_quality
from anatogen.downstream.labelled import LabelledSplits
from anatogen.downstream.metrics import METRIC_TITLES, METRICS, Metric
from anatogen.downstream.pretrain import NUM_SCANS_NAME
from anatogen.downstream.settings import FINETUNING, PRETRAINING
from anatogen.report.numbers import duration_text, interval_text, p_text
from anatogen.report.page import data_url, write_page
from anatogen.report.verdicts import Tone
from anatogen.training.loop import read_log

PAGE_NAME = "experiment.html"
FRACTIONS_NAME, PREDICTIONS_NAME = "dice_by_fraction.png", "predictions.png"
# Test scans whose predictions are kept, for the page.
NUM_PICTURES = 6

# Each outcome in the comparisons' table, and its colour.
_OUTCOMES: Mapping[Outcome, tuple[str, Tone | None]] = {
    Outcome.BETTER: ("better", Tone.GOOD),
    Outcome.WORSE: ("worse", Tone.BAD),
    Outcome.OPEN: ("can't tell", None),
    Outcome.NO_GAIN: (f"gains less than {LEAST_GAIN:g}", None),
}


def write_experiment_page(
    plan: ExperimentPlan, splits: LabelledSplits, rows: Sequence[ResultRow], out: Path
) -> Path:
    """Writes the page and, beside it, its figures as PNG files, each atomically.

    An experiment that isn't finished has a page, too, which says what is missing.

    Args:
        plan: Plan of the experiment. The verdict knows the arms "scratch", "synthetic", "shapes" and "real"
            by these names; others are shown and compared with "scratch".
        splits: Labelled scans.
        rows: Results of its trials.
        out: Folder of the experiment.

    Returns:
        The page.
    """
    arms, manifest, planned = list(plan.arms), splits.manifest, trials(plan)
    labels = {str(label): manifest.labels.get(str(label), f"label {label}") for label in splits.labels[1:]}
    scores = scores_by_arm(rows, "dice")
    comparisons = compare(scores, comparison_pairs(arms))
    estimates = {key: found for key, own in scores.items() if (found := estimate(np.array([*own.values()])))}
    figures = {"fractions": "", "predictions": ""}
    if estimates:
        fractions_figure(estimates, comparisons, arms, out / FRACTIONS_NAME)
        figures["fractions"] = data_url(out / FRACTIONS_NAME)
    shown_trial = Trial("", min(plan.fractions), plan.seeds[0])
    if pictures := _pictures(plan, splits, out, shown_trial):
        predictions_figure(
            pictures,
            [arm for arm in arms if any(arm in picture.predictions for picture in pictures)],
            out / PREDICTIONS_NAME,
            spacing_mm=manifest.grid.spacing_mm,
            axis_codes=manifest.grid.axis_codes,
        )
        figures["predictions"] = data_url(out / PREDICTIONS_NAME)
    finished = finished_trials(rows).intersection(planned)
    keys = [(arm, fraction) for fraction in sorted(plan.fractions) for arm in arms]
    qualities = {arm: load_inpainting_quality(Pretraining(arm).folder(out)) for arm in arms}
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
        num_training=_training_scans(rows),
        arms={
            arm_text(name): _arm_description(name, arm, qualities[name], out)
            for name, arm in plan.arms.items()
        },
        unlearned=[arm_text(arm) for arm, quality in qualities.items() if quality and not quality.learned],
        figures=figures,
        label_colours={name: label_colour(int(label)) for label, name in labels.items()},
        comparisons=_comparison_rows(comparisons),
        num_comparisons=len(comparisons),
        tables=[_table(rows, metric, labels, keys) for metric in METRICS],
        tolerance_mm=plan.tolerance_mm,
        least_gain=LEAST_GAIN,
        has_all=1 in plan.fractions,
        settings=_settings(plan, splits, shown_trial),
        minutes={name: duration_text(60 * value) for name, value in _minutes(plan, out).items()},
    )
    return out / PAGE_NAME


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
    columns: dict[str, Mapping[tuple[str, float], Scores]] = {
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
    values = np.array([*scores.values()])
    found = estimate(values)
    if found is None:
        return {"value": "undefined", "interval": "", "undefined": ""}
    interval = ""
    if found.over_seeds is not None:
        low, high = max(found.over_seeds[0], 0), min(found.over_seeds[1], most)
        interval = f"{low:.{digits}f} to {high:.{digits}f}"
    return {
        "value": f"{found.mean:.{digits}f} ± {found.deviation:.{digits}f}",
        "interval": interval,
        "undefined": f"{found.num_undefined} of {values.size} undefined" if found.num_undefined else "",
    }


def _training_scans(rows: Sequence[ResultRow]) -> dict[str, str]:
    """Labelled scans by share; seeds draw patients, who may have several scans."""
    found: dict[float, list[int]] = {}
    for row in rows:
        found.setdefault(row.fraction, []).append(row.num_training_scans)
    return {
        fraction_text(fraction): " to ".join(map(str, sorted({min(numbers), max(numbers)})))
        for fraction, numbers in sorted(found.items())
    }


def _arm_description(name: str, arm: Arm, quality: InpaintingQuality | None, out: Path) -> str:
    if not arm.is_pretrained:
        return "random start"
    counts = Pretraining(name).folder(out) / NUM_SCANS_NAME
    if not counts.is_file():
        return "pre-trained"
    number = json.loads(counts.read_text(encoding="utf-8"))["num_scans"]
    parts = [f"{number - arm.shapes} scans"] if arm.scans else []
    if arm.shapes:
        parts.append(f"{arm.shapes} volumes of random shapes")
    text = f"pre-trained on {' and '.join(parts)}"
    return text if quality is None else f"{text}; {quality}"


def _pictures(
    plan: ExperimentPlan, splits: LabelledSplits, out: Path, shown: Trial
) -> list[PredictionPicture]:
    """Test scans with the predictions of every arm that has them, of one fraction and seed."""
    pictures = []
    for number, case in enumerate(splits.test.cases[:NUM_PICTURES]):
        predictions = {}
        for arm in plan.arms:
            trial = replace(shown, arm=arm)
            path = trial.folder(out) / "predictions" / f"{case.id}.npy"
            if trial.is_done(out) and path.is_file():
                predictions[arm] = np.load(path, allow_pickle=False)
        if predictions:
            image = splits.test.batch([number])[0, 0].numpy()
            truth = splits.test.masks([number])[0, 0].numpy()
            pictures.append(PredictionPicture(case.id, image, truth, predictions))
    return pictures


def _settings(plan: ExperimentPlan, splits: LabelledSplits, shown: Trial) -> dict[str, str]:
    pretraining, finetuning = plan.pretraining, plan.finetuning
    training = _training_text(finetuning.segmenter_training, finetuning.patch_shape)
    num_train, num_validation, num_test = map(len, (splits.train, splits.validation, splits.test))
    return {
        "network": f"Swin UNETR, feature size {finetuning.network.feature_size}",
        "scans": f"{num_train} training, {num_validation} validation, {num_test} test",
        "pre-training": _training_text(pretraining.inpainter_training, pretraining.patch_shape),
        "fine-tuning": f"{training}; transfer: {finetuning.transfer}",
        "predictions": f"of seed {shown.seed} with {fraction_text(shown.fraction)} of the labels",
    }


def _training_text(optimiser: OptimiserSettings, patch_shape: tuple[int, int, int] | None) -> str:
    budget = f"{optimiser.minutes:g} minutes" if optimiser.steps is None else f"{optimiser.steps} steps"
    what = "whole scans" if patch_shape is None else "patches of {} x {} x {}".format(*patch_shape)
    return f"{budget}, {optimiser.batch_size} a step, {what}, learning rate {optimiser.learning_rate:g}"


def _minutes(plan: ExperimentPlan, out: Path) -> Mapping[str, float]:
    minutes = {str(job): _minutes_of(job, PRETRAINING, out) for job in pretrainings(plan)}
    minutes["all fine-tunings"] = sum(_minutes_of(trial, FINETUNING, out) for trial in trials(plan))
    return {name: value for name, value in minutes.items() if value}


def _minutes_of(job: Job, stage: str, out: Path) -> float:
    records = read_log(job.folder(out) / stage) if job.is_done(out) else []
    return records[-1]["minutes"] if records else 0.0
