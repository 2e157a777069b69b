"""What an experiment is made of: pre-trainings, and fine-tunings with their tests; each a folder."""

from dataclasses import dataclass
from pathlib import Path

from anatogen.core.weights import WEIGHTS_NAME
from anatogen.downstream.experiment.plan import ExperimentPlan
from anatogen.downstream.experiment.results import ResultRow, read_results
from anatogen.downstream.pretrain import STAGE as PRETRAINING

RESULTS_NAME = "results.jsonl"


@dataclass(frozen=True)
class Trial:
    """A pre-training, or a fine-tuning with its test.

    Attributes:
        arm: Its arm.
        fraction: Of the labelled patients; None for a pre-training.
        seed: Of the patients and batches; None for a pre-training.
    """

    arm: str
    fraction: float | None = None
    seed: int | None = None

    def folder(self, out: Path) -> Path:
        """Where it lies in the experiment's folder."""
        if self.fraction is None:
            return out / "pretraining" / self.arm
        return out / "finetuning" / self.arm / f"fraction_{self.fraction}" / f"seed_{self.seed}"

    def is_done(self, out: Path) -> bool:
        """Whether its last file is there."""
        last = f"{PRETRAINING}/{WEIGHTS_NAME}" if self.fraction is None else RESULTS_NAME
        return (self.folder(out) / last).is_file()

    def __str__(self) -> str:
        if self.fraction is None:
            return f"pre-training {self.arm}"
        return f"{self.arm}, {100 * self.fraction:g}% of the labels, seed {self.seed}"


def planned_trials(plan: ExperimentPlan) -> list[Trial]:
    """All trials in the order in which they are made: small fractions first, their arms side by side."""
    first = [Trial(name) for name, arm in plan.arms.items() if arm.is_pretrained]
    then = [
        Trial(arm, fraction, seed) for fraction in plan.fractions for seed in plan.seeds for arm in plan.arms
    ]
    return first + then


def collect_results(plan: ExperimentPlan, out: Path) -> list[ResultRow]:
    """The rows of all finished trials of a plan."""
    rows: list[ResultRow] = []
    for trial in planned_trials(plan):
        if trial.fraction is not None and trial.is_done(out):
            rows += read_results(trial.folder(out) / RESULTS_NAME)
    return rows
