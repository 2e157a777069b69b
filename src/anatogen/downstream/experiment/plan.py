"""The plan of an experiment: what is compared with what; without torch."""

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator, model_validator

from anatogen.config.resolving import Section
from anatogen.downstream.settings import FinetuneConfig, Fraction, PretrainConfig


class Arm(Section):
    """One way to begin: what the network was pre-trained on; nothing at all is the start from scratch.

    Attributes:
        scans: Folders of scans, or prepared datasets ("DATASET:train" for one split).
        shapes: Number of volumes of random geometric shapes that are added.
    """

    scans: tuple[Path, ...] = ()
    shapes: Annotated[int, Field(ge=0)] = 0

    @field_validator("scans", mode="before")
    @classmethod
    def _one_or_several(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value

    def resolved(self) -> "Arm":
        """The same arm with whole paths, so that two ways to write one are equal."""
        return self.model_copy(update={"scans": tuple(path.resolve() for path in self.scans)})

    @property
    def is_pretrained(self) -> bool:
        """Whether there is anything to pre-train on."""
        return bool(self.scans or self.shapes)


class ExperimentPlan(Section):
    """Fractions x arms x seeds, all fine-tuned and tested alike; what `PLAN.yaml` holds.

    Attributes:
        data: Prepared dataset with masks: its training split is drawn from, its validation split stops
            early, its test split is measured.
        arms: Arms by name; one without scans and shapes is the start from scratch. The verdict knows what
            "scratch", "synthetic", "real" and "shapes" are by these names.
        fractions: Fractions of the training patients whose labels are used, e.g. 0.05.
        seeds: Random seeds; each draws its own patients (the same for all arms, smaller fractions within
            larger ones) and its own batches.
        tolerance_mm: Tolerance of the normalised surface distance.
        pretraining: Settings of all pre-trainings.
        finetuning: Settings of all fine-tunings; fraction and seed are the plan's.
    """

    data: Path
    arms: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+$")], Arm]
    fractions: tuple[Fraction, ...] = (0.05, 0.1, 0.2, 0.4, 0.8, 1.0)
    seeds: tuple[int, ...] = (0, 1, 2)
    tolerance_mm: Annotated[float, Field(gt=0)] = 1.0
    pretraining: PretrainConfig = PretrainConfig()
    finetuning: FinetuneConfig = FinetuneConfig()

    @model_validator(mode="before")
    @classmethod
    def _equal_budgets(cls, values: object) -> object:
        """Arms train for equally many steps unless patience is asked for."""
        if isinstance(values, dict) and isinstance(finetuning := values.get("finetuning", {}), dict):
            return values | {"finetuning": {"patience": None} | finetuning}
        return values

    @model_validator(mode="after")
    def _makes_sense(self) -> "ExperimentPlan":
        if not self.arms or not self.fractions or not self.seeds:
            raise ValueError("arms, fractions and seeds must each name at least one")
        for name in ("fractions", "seeds"):
            values = getattr(self, name)
            if len(set(values)) < len(values):
                raise ValueError(f"{name} names one value twice: {list(values)}")
        if self.pretraining.network != self.finetuning.network:
            raise ValueError(
                f"pretraining.network.feature_size {self.pretraining.network.feature_size} differs from "
                f"finetuning.network.feature_size {self.finetuning.network.feature_size}: set them to agree"
            )
        return self
