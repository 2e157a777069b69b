"""From the finished trials of an experiment to its results and its page."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from anatogen.config.settings import OptimiserSettings
from anatogen.core.files import write_text
from anatogen.downstream.experiment.figures import PredictionPicture
from anatogen.downstream.experiment.page import write_experiment_page
from anatogen.downstream.experiment.plan import Arm, ExperimentPlan
from anatogen.downstream.experiment.results import ResultRow, collect_results, rows_text
from anatogen.downstream.experiment.trials import RESULTS_NAME, Job, Pretraining, Trial, pretrainings, trials
from anatogen.downstream.experiment.wording import fraction_text
from anatogen.downstream.inpainting import InpaintingQuality, load_inpainting_quality
from anatogen.downstream.labelled import LabelledSplits
from anatogen.downstream.pretrain import NUM_SCANS_NAME
from anatogen.downstream.settings import FINETUNING, PRETRAINING
from anatogen.training.loop import read_log

# Test scans whose predictions are kept, for the page.
NUM_PICTURES = 4


def write_results(plan: ExperimentPlan, out: Path) -> list[ResultRow]:
    """Writes `results.jsonl`, a row for each test scan of each finished trial, and returns the rows."""
    rows = collect_results(plan, out)
    write_text(out / RESULTS_NAME, rows_text(rows))
    return rows


def report_experiment(
    plan: ExperimentPlan, splits: LabelledSplits, rows: Sequence[ResultRow], out: Path
) -> Path:
    """Writes the page.

    Args:
        plan: Plan of the experiment.
        splits: Labelled scans.
        rows: Results, as `write_results` wrote them.
        out: Folder of the experiment.

    Returns:
        The page.
    """
    fraction, seed = min(plan.fractions), plan.seeds[0]
    manifest = splits.manifest
    qualities = {name: load_inpainting_quality(Pretraining(name).folder(out)) for name in plan.arms}
    return write_experiment_page(
        out,
        rows,
        arms={name: _description(name, arm, qualities[name], out) for name, arm in plan.arms.items()},
        unlearned=[name for name, quality in qualities.items() if quality and not quality.learned],
        labels={str(label): manifest.labels.get(str(label), f"label {label}") for label in splits.labels[1:]},
        planned=trials(plan),
        tolerance_mm=plan.tolerance_mm,
        pictures=_pictures(plan, splits, out, fraction, seed),
        spacing_mm=manifest.grid.spacing_mm,
        axis_codes=manifest.grid.axis_codes,
        settings=_settings(plan, splits, fraction, seed),
        minutes=_minutes(plan, out),
    )


def _description(name: str, arm: Arm, quality: InpaintingQuality | None, out: Path) -> str:
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
    plan: ExperimentPlan, splits: LabelledSplits, out: Path, fraction: float, seed: int
) -> list[PredictionPicture]:
    """Test scans with the predictions of every arm that has them, of one fraction and seed."""
    pictures = []
    for number, case in enumerate(splits.test.cases[:NUM_PICTURES]):
        predictions = {}
        for arm in plan.arms:
            trial = Trial(arm, fraction, seed)
            path = trial.folder(out) / "predictions" / f"{case.id}.npy"
            if trial.is_done(out) and path.is_file():
                predictions[arm] = np.load(path, allow_pickle=False)
        if predictions:
            image = splits.test.batch([number])[0, 0].numpy()
            truth = splits.test.masks([number])[0, 0].numpy()
            pictures.append(PredictionPicture(case.id, image, truth, predictions))
    return pictures


def _settings(plan: ExperimentPlan, splits: LabelledSplits, fraction: float, seed: int) -> dict[str, str]:
    pretraining, finetuning = plan.pretraining, plan.finetuning
    training = _training_text(finetuning.segmenter_training, finetuning.patch_shape)
    num_train, num_validation, num_test = map(len, (splits.train, splits.validation, splits.test))
    return {
        "network": f"Swin UNETR, feature size {finetuning.network.feature_size}",
        "scans": f"{num_train} training, {num_validation} validation, {num_test} test",
        "pre-training": _training_text(pretraining.inpainter_training, pretraining.patch_shape),
        "fine-tuning": f"{training}; transfer: {finetuning.transfer}",
        "predictions": f"of seed {seed} with {fraction_text(fraction)} of the labels",
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
