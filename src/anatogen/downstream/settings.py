"""Everything that can be set for pre-training, fine-tuning and the experiment; without torch."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from anatogen.config.resolving import Section
from anatogen.config.settings import LoopSettings, OptimiserSettings, Positive, Weight

Probability = Annotated[float, Field(ge=0, le=1)]
Fraction = Annotated[float, Field(gt=0, le=1)]
PatchShape = tuple[Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)], Annotated[int, Field(ge=16)]]


class SwinUNETRSettings(Section):
    """The network of both tasks (Hatamizadeh et al. 2022), MONAI's.

    Attributes:
        feature_size: Channels at full resolution.
    """

    feature_size: Literal[12, 24, 48] = 24


class MaskingSettings(Section):
    """What is hidden from the network that learns to inpaint.

    Attributes:
        share: Of the patches that are hidden.
        patch_voxels: Side of a patch.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    patch_voxels: Annotated[int, Field(ge=2)] = 8


class AugmentationSettings(Section):
    """How probable each change of a labelled scan is: the paper's kinds, by TorchIO.

    Ranges are TorchIO's but for noise and blur, which are half of them or less: on small structures they
    would hide what the labels say.

    Attributes:
        affine: Rotation by up to 10 degrees, scaling by up to 10%.
        ghosting: MR artefact of periodic movement.
        noise: Gaussian noise with a standard deviation of up to 10% of the window.
        blur: Gaussian blur of up to 1 mm.
        bias_field: Slow change of brightness over the field of view.
        gamma: Change of contrast.
    """

    affine: Probability = 0.5
    ghosting: Probability = 0.1
    noise: Probability = 0.2
    blur: Probability = 0.2
    bias_field: Probability = 0.2
    gamma: Probability = 0.3


class DownstreamOptimiserSettings(OptimiserSettings):
    """Budget, batches and AdamW of both tasks: the paper's learning rate and weight decay."""

    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    weight_decay: Weight = 0.01
    steps: Positive | None = 10_000


class PretrainConfig(Section):
    """Self-supervised pre-training by inpainting; the saved `config.yaml` of its run.

    Attributes:
        network: Swin UNETR.
        masking: What is hidden.
        patch_shape: (D, H, W) of the random crops that it learns from; None for whole scans.
        inpainter_training: Budget, batches and AdamW.
        training: Seed, flips, intervals.
    """

    network: SwinUNETRSettings = SwinUNETRSettings()
    masking: MaskingSettings = MaskingSettings()
    patch_shape: PatchShape | None = None
    inpainter_training: DownstreamOptimiserSettings = DownstreamOptimiserSettings()
    training: LoopSettings = LoopSettings()


class FinetuneConfig(Section):
    """Segmentation of labelled scans; the saved `config.yaml` of its run.

    Attributes:
        network: Swin UNETR; of the size that was pre-trained, where one was.
        augmentation: How probable each change of a scan is.
        fraction: Of the training patients whose labels are used.
        transfer: What a pre-trained network hands on: "all" but its last layer, or the "encoder" alone.
        patch_shape: (D, H, W) of the random crops that it learns from; None for whole scans.
        validate_every: Steps between looks at the validation scans.
        patience: Looks without a better Dice that end the training; None for its whole budget. The best
            weights are kept in any case.
        segmenter_training: Budget, batches and AdamW.
        training: Seed (also of which patients are the fraction), flips, intervals.
    """

    network: SwinUNETRSettings = SwinUNETRSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    fraction: Fraction = 1.0
    transfer: Literal["all", "encoder"] = "all"
    patch_shape: PatchShape | None = None
    validate_every: Positive = 100
    patience: Positive | None = 20
    segmenter_training: DownstreamOptimiserSettings = DownstreamOptimiserSettings()
    training: LoopSettings = LoopSettings()


class Arm(Section):
    """One way to begin: what the network was pre-trained on; nothing at all is the start from scratch.

    Attributes:
        scans: Folders of scans, or prepared datasets ("DATASET:train" for one split).
        shapes: How many volumes of random geometric shapes are added.
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
        arms: By name; one without scans and shapes is the start from scratch. The verdict knows what
            "scratch", "synthetic", "real" and "shapes" are by these names.
        fractions: Of the training patients whose labels are used, e.g. 0.05.
        seeds: Each draws its own patients (the same for all arms, smaller fractions within larger ones) and
            its own batches.
        tolerance_mm: Of the normalised surface distance.
        pretraining: Settings of every pre-training.
        finetuning: Settings of every fine-tuning; its fraction and seed are the plan's.
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
