"""The jobs of an experiment: a pre-training for each arm, and the trials of the pre-trained networks."""

from dataclasses import dataclass
from pathlib import Path

from anatogen.core.weights import WEIGHTS_NAME
from anatogen.downstream.experiment.plan import ExperimentPlan
from anatogen.downstream.settings import PRETRAINING

RESULTS_NAME = "results.jsonl"


@dataclass(frozen=True)
class Pretraining:
    """The pre-training of an arm.

    Attributes:
        arm: Name of the arm.
    """

    arm: str

    def folder(self, out: Path) -> Path:
        """Its folder in the experiment's."""
        return out / "pretraining" / self.arm

    def is_done(self, out: Path) -> bool:
        """Whether its last file is there."""
        return (self.folder(out) / PRETRAINING / WEIGHTS_NAME).is_file()

    def __str__(self) -> str:
        return f"pre-training {self.arm}"


@dataclass(frozen=True, order=True)
class Trial:
    """A fine-tuning with its test.

    Attributes:
        arm: Name of the arm, whose pre-trained network it begins with.
        fraction: Fraction of the labelled patients.
        seed: Random seed of patients and batches.
    """

    arm: str
    fraction: float
    seed: int

    def folder(self, out: Path) -> Path:
        """Its folder in the experiment's."""
        return out / "finetuning" / self.arm / f"fraction_{self.fraction}" / f"seed_{self.seed}"

    def is_done(self, out: Path) -> bool:
        """Whether its last file is there."""
        return (self.folder(out) / RESULTS_NAME).is_file()

    def __str__(self) -> str:
        return f"{self.arm}, {100 * self.fraction:g}% of the labels, seed {self.seed}"


Job = Pretraining | Trial


def pretrainings(plan: ExperimentPlan) -> list[Pretraining]:
    """The pre-trainings of a plan, in order of its arms."""
    return [Pretraining(name) for name, arm in plan.arms.items() if arm.is_pretrained]


def trials(plan: ExperimentPlan) -> list[Trial]:
    """The trials of a plan: small fractions first, their arms side by side."""
    return [
        Trial(arm, fraction, seed) for fraction in plan.fractions for seed in plan.seeds for arm in plan.arms
    ]
