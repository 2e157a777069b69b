"""Everything that can be set for pre-training and fine-tuning; without torch."""

from typing import Annotated, Literal

from pydantic import Field

from anatogen.config.resolving import Section
from anatogen.config.settings import LoopSettings, OptimiserSettings, Positive, Weight

# Names of the stages: folders in their runs, and beginnings of the sections of their budgets.
PRETRAINING, FINETUNING = "inpainter", "segmenter"

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
        share: Share of the patches that are hidden.
        patch_voxels: Side of a patch.
    """

    share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    patch_voxels: Annotated[int, Field(ge=2)] = 8


class AugmentationSettings(Section):
    """Probabilities of the changes of a labelled scan: the paper's kinds, by TorchIO.

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


class DownstreamLoopSettings(LoopSettings):
    """What both tasks share.

    Attributes:
        flip: Axis that half of the scans are mirrored along: "in_plane", either axis of the slice plane by
            chance (the paper); "vertical" in it, "left_right" of the body, or "none".
    """

    flip: Literal["none", "vertical", "left_right", "in_plane"] = "none"


class PretrainConfig(Section):
    """Self-supervised pre-training by inpainting; the saved `config.yaml` of its run.

    Attributes:
        network: Swin UNETR.
        masking: Share and size of the hidden patches.
        patch_shape: (D, H, W) of the random crops that are learned from; None for whole scans.
        inpainter_training: Budget, batches and AdamW.
        training: Random seed, flips, intervals.
    """

    network: SwinUNETRSettings = SwinUNETRSettings()
    masking: MaskingSettings = MaskingSettings()
    patch_shape: PatchShape | None = None
    inpainter_training: DownstreamOptimiserSettings = DownstreamOptimiserSettings()
    training: DownstreamLoopSettings = DownstreamLoopSettings()


class FinetuneConfig(Section):
    """Segmentation of labelled scans; the saved `config.yaml` of its run.

    Attributes:
        network: Swin UNETR, as large as the pre-trained one if there is one.
        augmentation: Probabilities of the changes of a scan.
        fraction: Fraction of the training patients whose labels are used.
        transfer: Part of a pre-trained network that is taken over: "all" but its last layer, or "encoder".
        patch_shape: (D, H, W) of the random crops that are learned from; None for whole scans.
        validate_every: Steps between validations.
        patience: Validations without a better Dice that end the training; None for its whole budget. The
            best weights are kept in any case.
        segmenter_training: Budget, batches and AdamW.
        training: Random seed (of the patients chosen, too), flips, intervals.
    """

    network: SwinUNETRSettings = SwinUNETRSettings()
    augmentation: AugmentationSettings = AugmentationSettings()
    fraction: Fraction = 1.0
    transfer: Literal["all", "encoder"] = "all"
    patch_shape: PatchShape | None = None
    validate_every: Positive = 100
    patience: Positive | None = 20
    segmenter_training: DownstreamOptimiserSettings = DownstreamOptimiserSettings()
    training: DownstreamLoopSettings = DownstreamLoopSettings()
