"""Everything that can be set for a generator of any family: networks, process, and their training.

Pure descriptions without torch, so that a configuration is checked before anything heavy is imported.
"""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from anatogen.config.resolving import Section
from anatogen.core.choices import Sampler

Positive = Annotated[int, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]
Weight = Annotated[float, Field(ge=0)]
PowerOfTwo = Literal[1, 2, 4, 8, 16]


class AutoencoderSettings(Section):
    """The VQ-GAN's generator: encoder, codebook, decoder.

    Attributes:
        compression: Voxels per latent cell along (D, H, W).
        base_width: Encoder's channels at the finest convolved resolution; doubled at each halving.
        decoder_width: The decoder's likewise, never above the encoder's widest.
        num_blocks: Encoder's residual blocks after each halving.
        num_decoder_blocks: Decoder's residual blocks after each doubling.
        num_codes: Entries of the codebook.
        code_dim: Length of a code: the channels of a latent cell.
    """

    compression: tuple[PowerOfTwo, PowerOfTwo, PowerOfTwo] = (4, 4, 4)
    base_width: Positive = 16
    decoder_width: Positive = 32
    num_blocks: Annotated[int, Field(ge=0)] = 1
    num_decoder_blocks: Annotated[int, Field(ge=0)] = 2
    num_codes: Annotated[int, Field(ge=2)] = 16_384
    code_dim: Positive = 8

    @model_validator(mode="before")
    @classmethod
    def _one_number_for_all_axes(cls, values: object) -> object:
        if isinstance(values, dict) and isinstance(values.get("compression"), int):
            return values | {"compression": (values["compression"],) * 3}
        return values


class LossSettings(Section):
    """Weights of the VQ-GAN's losses; a weight of 0 leaves its part out (both 0: no discriminators).

    Attributes:
        l1: Mean absolute error of the reconstruction.
        perceptual: Distance of 2D network features of a random slice of each volume: LPIPS where the next two
            are named, else EfficientNet-lite0's, brought to the size of LPIPS.
        vgg_weights: VGG16's weights as torchvision publishes them.
        lpips_weights: LPIPS 0.1's on VGG16; named together with `vgg_weights`.
        commitment: Pull of the encoder towards its codes.
        adversarial_slice: Hinge loss of the 2D discriminator on a random slice of each volume.
        adversarial_volume: Hinge loss of the 3D discriminator.
        feature_matching: L1 distance of the discriminators' features of real and reconstructed scans, summed
            over stages.
        discriminator_width: Channels of the discriminators' first convolution.
        discriminator_start: Batches before the discriminators start to learn.
        adversarial_start: Batches before their loss counts for the generator.
    """

    l1: Weight = 4.0
    perceptual: Weight = 4.0
    vgg_weights: str | None = None
    lpips_weights: str | None = None
    commitment: Weight = 0.25
    adversarial_slice: Weight = 1.0
    adversarial_volume: Weight = 1.0
    feature_matching: Weight = 4.0
    discriminator_width: Positive = 64
    discriminator_start: Annotated[int, Field(ge=0)] = 5_000
    adversarial_start: Annotated[int, Field(ge=0)] = 5_000

    @property
    def adversarial(self) -> bool:
        """Whether any discriminator takes part."""
        return self.adversarial_slice > 0 or self.adversarial_volume > 0

    @model_validator(mode="after")
    def _both_or_neither(self) -> Self:
        if (self.vgg_weights is None) != (self.lpips_weights is None):
            raise ValueError("vgg_weights and lpips_weights are the two files of LPIPS: name both or neither")
        return self

    @model_validator(mode="after")
    def _learns_before_it_counts(self) -> Self:
        if self.adversarial_start < self.discriminator_start:
            raise ValueError(
                f"adversarial_start {self.adversarial_start} is before "
                f"discriminator_start {self.discriminator_start}"
            )
        return self


class OptimiserSettings(Section):
    """Budget, batches and Adam of one stage.

    Attributes:
        batch_size: Scans per step, over all devices.
        learning_rate: Used as it stands; nothing rescales it.
        betas: Adam's decay rates.
        weight_decay: Decoupled (AdamW).
        warmup_steps: Steps of linear rise of the learning rate.
        decay: "none", or "cosine" to 0 at the end of the budget.
        gradient_clip: Largest norm of the gradient; none for no limit.
        steps: Budget in steps; whichever of steps and minutes ends first.
        minutes: Budget in minutes of training, over all resumptions.
    """

    batch_size: Positive = 2
    learning_rate: Annotated[float, Field(gt=0)] = 3e-4
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    weight_decay: Weight = 0.0
    warmup_steps: Annotated[int, Field(ge=0)] = 0
    decay: Literal["none", "cosine"] = "none"
    gradient_clip: Annotated[float, Field(gt=0)] | None = None
    steps: Positive | None = None
    minutes: Annotated[float, Field(gt=0)] | None = None

    @property
    def scans_per_step(self) -> int:
        """Scans that a step learns from, over all devices."""
        return self.batch_size


class AutoencoderOptimiserSettings(OptimiserSettings):
    """Those of the VQ-GAN, for its generator and its discriminators alike."""

    learning_rate: Annotated[float, Field(gt=0)] = 1.9e-5
    betas: tuple[Decay, Decay] = (0.5, 0.9)
    gradient_clip: Annotated[float, Field(gt=0)] | None = 1.0
    steps: Positive | None = 50_000


class DenoiserSettings(Section):
    """The network that the diffusion process asks.

    Attributes:
        width: Channels at the finest level; none: as many as the longer side of the latents' plane has cells,
            to a multiple of 8.
        multipliers: Channels of each level as multiples of `width`.
        num_blocks: Residual blocks of each level, on either side.
        num_heads: Attention heads.
        head_dim: Channels of an attention head.
    """

    width: Positive | None = None
    multipliers: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 4, 8)
    num_blocks: Positive = 2
    num_heads: Positive = 8
    head_dim: Annotated[int, Field(gt=0, multiple_of=2)] = 32


class DiffusionSettings(Section):
    """The process (Ho et al. 2020, noise by the cosine schedule), and how it is sampled.

    Attributes:
        num_train_steps: Noise levels of the process.
        clip_x_0: Bound of |x_0| in sampling: latents are scaled so that codes lie in [-1, 1]. None for none.
        sampler: The sampler used when none is named.
        sampling_steps: Its number of steps.
        ema_decay: Decay of the weights' exponential moving average, per update of it.
        ema_every: Steps from one update to the next.
        ema_start: Steps after which it becomes an average; until then it is a copy of the weights.
    """

    num_train_steps: Positive = 300
    clip_x_0: Annotated[float, Field(gt=0)] | None = 1.0
    sampler: Sampler = "ddpm"
    sampling_steps: Positive = 300
    ema_decay: Decay = 0.995
    ema_every: Positive = 10
    ema_start: Annotated[int, Field(ge=0)] = 2_000

    @model_validator(mode="after")
    def _sampled_in_its_levels(self) -> Self:
        if self.sampling_steps > self.num_train_steps:
            raise ValueError(
                f"sampling_steps {self.sampling_steps} is more than num_train_steps {self.num_train_steps}, "
                "the levels that there are: set it to that at most"
            )
        return self


class DiffusionOptimiserSettings(OptimiserSettings):
    """Those of the denoiser.

    Attributes:
        accumulate: Batches that a step learns from, one after the other, which takes the memory of one.
    """

    batch_size: Positive = 4
    accumulate: Positive = 5
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    steps: Positive | None = 150_000

    @property
    def scans_per_step(self) -> int:
        """Scans that a step learns from, over all devices and batches."""
        return self.batch_size * self.accumulate


class LoopSettings(Section):
    """What all trainings share.

    Attributes:
        seed: Decides initial weights, order, flips and noise.
        checkpoint_minutes: Time between checkpoints; 0 for one after each step.
        preview_minutes: Time between preview pictures.
    """

    seed: int = 0
    checkpoint_minutes: Weight = 2.0
    preview_minutes: Annotated[float, Field(gt=0)] = 5.0


class GeneratorLoopSettings(LoopSettings):
    """What trainings of generators share.

    Attributes:
        flip: Axis that half of the scans are mirrored along: "vertical" in the slice plane (the paper),
            "left_right" of the body, or "none".
    """

    flip: Literal["none", "vertical", "left_right"] = "none"


class TrainingSettings(GeneratorLoopSettings):
    """What both stages share.

    Attributes:
        require_fit_autoencoder: Whether an autoencoder that fails its check stops stage two.
    """

    flip: Literal["none", "vertical", "left_right"] = "vertical"
    require_fit_autoencoder: bool = True


class LatentDiffusionSettings(Section):
    """A latent diffusion model, from voxels to samples; the saved `config.yaml` of its run.

    What is set nowhere is the paper's (Khader et al. 2023) or, where that is silent, of its published code.
    """

    family: Literal["latent_diffusion"] = "latent_diffusion"
    autoencoder: AutoencoderSettings = AutoencoderSettings()
    losses: LossSettings = LossSettings()
    autoencoder_training: AutoencoderOptimiserSettings = AutoencoderOptimiserSettings()
    denoiser: DenoiserSettings = DenoiserSettings()
    diffusion: DiffusionSettings = DiffusionSettings()
    diffusion_training: DiffusionOptimiserSettings = DiffusionOptimiserSettings()
    training: TrainingSettings = TrainingSettings()


# Halvings of a grid, at most.
MOST_LEVELS = 5


class PyramidSettings(Section):
    """How a wavelet flow parts a scan into levels.

    Attributes:
        num_levels: Halvings of the grid's finest axes between its voxels and the coarse image, each with the
            Haar wavelet's details as a level of its own; none: until the coarse image has at most 2,048
            cells, or as many as the grid allows.
        crop: Side, in cells, of the cube that has as many cells as a level of details learns from at once of
            a scan, of thin grids in a box that is wider than high; in the first steps still fewer.
    """

    num_levels: Annotated[int, Field(ge=1, le=MOST_LEVELS)] | None = None
    crop: Annotated[int, Field(ge=4)] = 12


class FlowNetworkSettings(Section):
    """The network of one level of a wavelet flow.

    Attributes:
        width: Channels at the level's own resolution.
        multipliers: Channels of each resolution of its U-Net as multiples of `width`; with one alone it is no
            U-Net, but a chain of blocks that sees `num_blocks` + 2 cells far.
        num_blocks: Blocks at each resolution, on either side.
    """

    width: Positive = 64
    multipliers: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1,)
    num_blocks: Positive = 8


class FlowSettings(Section):
    """The process of a wavelet flow: what levels are told, and how they are sampled.

    Attributes:
        told_noise: Largest standard deviation of the noise on what a level of details is told of the level
            above, as a share of that one's own, in training: sampled levels are not quite like real ones.
        sampled_noise: The same in sampling.
        coarse_shift: How much later the coarse level's times are, as `LinearFlowSchedule.shift`: where an
            organ ends, and how bright a scan is, is decided while there is still much noise.
        deformed: Share of the training scans whose coarse image is that of a deformed copy. The network is
            told which, and is sampled as for those that were not.
        sampler: The sampler used when none is named.
        sampling_steps: Its number of steps at each level.
        ema_decay: Decay of the weights' exponential moving average, per step.
    """

    told_noise: Weight = 0.15
    sampled_noise: Weight = 0.03
    coarse_shift: Annotated[float, Field(gt=0)] = 3.0
    deformed: Annotated[float, Field(ge=0, le=1)] = 0.5
    sampler: Sampler = "dpm_solver_pp"
    sampling_steps: Positive = 16
    ema_decay: Decay = 0.999

    @model_validator(mode="after")
    def _sampled_as_told(self) -> Self:
        if self.sampled_noise > self.told_noise:
            raise ValueError(
                f"sampled_noise {self.sampled_noise:g} is more than told_noise {self.told_noise:g}, the most "
                "that the levels of details learn with: set it to that at most"
            )
        return self


class FlowOptimiserSettings(OptimiserSettings):
    """Budget, batches and Muon of a wavelet flow, for all its levels alike.

    Each level learns from all scans of a batch: the coarse one from them whole, the others from a crop of
    each. `betas` are those of Adam, which teaches all but the matrices that cells go through.
    """

    batch_size: Positive = 4
    learning_rate: Annotated[float, Field(gt=0)] = 5e-3
    betas: tuple[Decay, Decay] = (0.9, 0.99)
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    decay: Literal["none", "cosine"] = "cosine"
    steps: Positive | None = 150_000


class FlowTrainingSettings(GeneratorLoopSettings):
    """What the training of a wavelet flow needs beside its optimiser.

    Attributes:
        stop: "held_out": each level is kept as it was when its loss of held-out scans was lowest, and a
            training whose levels all grow worse ends; "budget": as it is at the end.
        check_steps: Steps between looks at the loss of held-out scans.
    """

    stop: Literal["held_out", "budget"] = "held_out"
    check_steps: Positive = 1_000


class WaveletFlowSettings(Section):
    """A wavelet flow, from scans to samples; the saved `config.yaml` of its run."""

    family: Literal["wavelet_flow"] = "wavelet_flow"
    pyramid: PyramidSettings = PyramidSettings()
    coarse: FlowNetworkSettings = FlowNetworkSettings(multipliers=(1, 2), num_blocks=2)
    details: FlowNetworkSettings = FlowNetworkSettings()
    flow: FlowSettings = FlowSettings()
    flow_training: FlowOptimiserSettings = FlowOptimiserSettings()
    training: FlowTrainingSettings = FlowTrainingSettings()


GeneratorSettings = LatentDiffusionSettings | WaveletFlowSettings


class GANSettings(Section):
    """The WGAN-GP baseline (Gulrajani et al. 2017) with the networks of Kwon et al. 2019.

    Attributes:
        latent_dim: Length of the noise vector that a scan is made of.
        width: Channels of the finest hidden level of generator and critic; 64 in Kwon et al.
        critic_steps: Updates of the critic for each one of the generator.
        gradient_penalty: Weight of the penalty on the critic's gradient.
        ema_decay: Decay of the moving average of the generator's weights, per step; 0 for none.
        kwon_compatible: Trains as the published code of Kwon et al. does, with its faults: `critic_steps`
            updates of the *generator* for each one of the critic, the gradient's norm taken over the
            channels of each voxel, batch normalisation in the critic. Unless they are set, Adam's betas
            are then that code's (0.9, 0.999), and there is no moving average.
    """

    latent_dim: Positive = 1_000
    width: Positive = 64
    critic_steps: Positive = 5
    gradient_penalty: Weight = 10.0
    ema_decay: Decay = 0.999
    # Strict, for `GANConfig` looks at it before it is validated.
    kwon_compatible: Annotated[bool, Field(strict=True)] = False

    @property
    def updates(self) -> tuple[int, int]:
        """Updates of the critic and of the generator in a step."""
        return (1, self.critic_steps) if self.kwon_compatible else (self.critic_steps, 1)


class GANOptimiserSettings(OptimiserSettings):
    """Budget, batches and Adam of the GAN, for generator and critic alike.

    A step is one update of the generator with the updates of the critic that belong to it (the other way
    round if `kwon_compatible`). `batch_size` is that of one update.
    """

    batch_size: Positive = 4
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    betas: tuple[Decay, Decay] = (0.0, 0.9)
    steps: Positive | None = 200_000


class GANConfig(Section):
    """A WGAN-GP, from noise to scans; the saved `config.yaml` of its run."""

    gan: GANSettings = GANSettings()
    gan_training: GANOptimiserSettings = GANOptimiserSettings()
    training: GeneratorLoopSettings = GeneratorLoopSettings()

    @model_validator(mode="before")
    @classmethod
    def _defaults_of_kwon(cls, values: object) -> object:
        if not isinstance(values, dict):
            return values
        gan, optimiser = values.get("gan", {}), values.get("gan_training", {})
        if isinstance(gan, dict) and isinstance(optimiser, dict) and gan.get("kwon_compatible") is True:
            return values | {
                "gan": {"ema_decay": 0.0} | gan,
                "gan_training": {"betas": (0.9, 0.999)} | optimiser,
            }
        return values
