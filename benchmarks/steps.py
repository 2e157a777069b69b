"""Anatogen's rows: preset `paper` as it trains and samples, and structured the usual way.

`paper_two_passes` is written from a description of how published VQ-GAN code arranges a step, to show what
arrangement alone costs: networks, losses and sizes are those of `paper`.
"""

from collections.abc import Callable, Mapping

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.nn import functional

from anatogen.config.presets import preset_named
from anatogen.config.resolving import parse_overrides, resolve
from anatogen.config.settings import LatentDiffusionSettings
from anatogen.dataset.manifest import Grid, Intensity
from anatogen.diffusion.process import denoising_loss
from anatogen.diffusion.schedule import CosineSchedule
from anatogen.generators.description import LatentDiffusionDescription
from anatogen.generators.latent_diffusion import LatentDiffusionBundle
from anatogen.models.codebook import Codebook
from anatogen.models.convolution import Conv3d
from anatogen.models.denoiser import Denoiser
from anatogen.models.discriminators import Discriminators, PatchOutput, take_slices
from anatogen.models.vqgan import VQGAN
from anatogen.training.autoencoder import (
    VQGANStep,
    discriminator_hinge_loss,
    feature_matching_loss,
    generator_hinge_loss,
)
from anatogen.training.optimisation import ExponentialMovingAverage, adam, take_step
from benchmarks.task import CODE_DIM, COMPRESSION, NUM_CODES, Part, Sizes, Task

_EPSILON = 1e-5


def build(row: str, workload: str, sizes: Sizes) -> Task:
    """The task of one of Anatogen's rows."""
    settings = shared_settings()
    match workload:
        case "vqgan_step" if row == "paper_two_passes":
            return _two_pass_vqgan_step(settings, sizes)
        case "vqgan_step":
            return _vqgan_step(settings, sizes)
        case "denoiser_step":
            return _denoiser_step(settings, sizes)
        case "denoiser_forward":
            return _denoiser_forward(settings, sizes)
        case "sample":
            return _sample(settings, sizes)
        case "decode":
            return _decode(settings, sizes, plain=row == "paper_two_passes")
        case "lookup":
            return _lookup(settings, sizes, one_hot=row == "paper_two_passes")
        case _:
            raise ValueError(f"workload {workload!r} is unknown")


def shared_settings() -> LatentDiffusionSettings:
    """Preset `paper` with the sizes and losses that all rows share."""
    overrides = [
        f"autoencoder.num_codes={NUM_CODES}",
        f"autoencoder.code_dim={CODE_DIM}",
        f"autoencoder.compression={COMPRESSION}",
        "denoiser.width=32",
        "losses.perceptual=0",
        "losses.discriminator_start=0",
        "losses.adversarial_start=0",
    ]
    return resolve(
        LatentDiffusionSettings,
        preset_named("paper"),
        overrides=parse_overrides(overrides, LatentDiffusionSettings),
    )


def count_parameters(module: nn.Module) -> int:
    """Number of the parameters that are trained."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def volumes(sizes: Sizes) -> Tensor:
    """A batch of one volume in [-1, 1]."""
    return torch.rand(1, 1, sizes.volume, sizes.volume, sizes.volume) * 2 - 1


def latents(sizes: Sizes) -> Tensor:
    """A batch of latents for the denoiser, about as large as scaled ones."""
    return torch.rand(sizes.denoiser_batch, CODE_DIM, sizes.latent, sizes.latent, sizes.latent) * 2 - 1


def cells_to_look_up(sizes: Sizes) -> Tensor:
    """One latent for the codebook."""
    return torch.randn(1, CODE_DIM, sizes.lookup, sizes.lookup, sizes.lookup)


def in_inference_mode(call: Callable[[], object]) -> Callable[[], object]:
    """The call without gradients."""

    def run() -> object:
        with torch.inference_mode():
            return call()

    return run


def _vqgan_step(settings: LatentDiffusionSettings, sizes: Sizes) -> Task:
    """The training loop's own step, discriminators active."""
    train = VQGANStep(Fabric(accelerator="cpu", devices=1), settings)
    parameters = {name: count_parameters(network) for name, network in train.networks.items()}
    included = "L1, commitment"
    if "discriminators" in train.networks:
        included += ", slice and volume discriminator, feature matching"
    x = volumes(sizes)
    generator = torch.Generator().manual_seed(0)

    def require_finite(losses: Mapping[str, Tensor]) -> None:
        assert bool(torch.stack(list(losses.values())).isfinite().all())

    def step() -> None:
        slice_index = torch.randint(x.shape[2], (len(x),), generator=generator)
        train(x, 0, slice_index, generator, require_finite)

    return Task((Part(step),), parameters, f"losses: {included}")


class _PlainAutoencoder:
    """A VQGAN of the same weights with plain convolutions and a one-hot codebook."""

    def __init__(self, network: VQGAN) -> None:
        self.network = network
        self.codebook = network.codebook
        use_plain_convolutions(network)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstruction, latent, and quantised latent; learns the codes as a side effect."""
        z = self.network.encoder(x)
        quantised, one_hot = one_hot_lookup(self.codebook, z)
        one_hot_update(self.codebook, z, one_hot)
        decoded: Tensor = self.network.decoder(z + (quantised - z).detach())
        return decoded, z, quantised


def _two_pass_vqgan_step(settings: LatentDiffusionSettings, sizes: Sizes) -> Task:
    """Autoencoder forward for the generator and again for the discriminators, which run for each of them."""
    weights, optimiser_settings = settings.losses, settings.autoencoder_training
    network = VQGAN(settings.autoencoder)
    critics = Discriminators(weights.discriminator_width, True, True)
    use_plain_convolutions(critics)
    autoencoder = _PlainAutoencoder(network)
    optimiser, critic_optimiser = adam(network, optimiser_settings), adam(critics, optimiser_settings)
    parameters = {"autoencoder": count_parameters(network), "discriminators": count_parameters(critics)}
    x = volumes(sizes)
    generator = torch.Generator().manual_seed(0)

    def judge(volume: Tensor, slice_index: Tensor) -> list[PatchOutput]:
        assert critics.slice is not None and critics.volume is not None
        return [critics.slice(take_slices(volume, slice_index)), critics.volume(volume)]

    def step() -> None:
        slice_index = torch.randint(x.shape[2], (len(x),), generator=generator)
        reconstructed, z, codes = autoencoder.forward(x)
        loss = weights.l1 * functional.l1_loss(reconstructed, x)
        loss = loss + weights.commitment * functional.mse_loss(z, codes)
        # Published loops switch off the gradient of the weights that the step at hand doesn't train.
        critics.requires_grad_(False)
        for real, fake in zip(judge(x, slice_index), judge(reconstructed, slice_index), strict=True):
            loss = loss + generator_hinge_loss(fake[0])
            loss = loss + weights.feature_matching * feature_matching_loss(fake[1], real[1])
        plain_step(loss, network, optimiser, optimiser_settings.gradient_clip)
        critics.requires_grad_(True)

        with torch.no_grad():
            reconstructed, _, _ = autoencoder.forward(x)
        critic_loss = torch.zeros(())
        for real, fake in zip(judge(x, slice_index), judge(reconstructed, slice_index), strict=True):
            critic_loss = critic_loss + discriminator_hinge_loss(real[0], fake[0])
        plain_step(critic_loss, critics, critic_optimiser, optimiser_settings.gradient_clip)

    return Task((Part(step),), parameters, "losses and networks of `paper`")


def _denoiser_step(settings: LatentDiffusionSettings, sizes: Sizes) -> Task:
    """The body of the loop in `anatogen.training.diffusion`."""
    fabric = Fabric(accelerator="cpu", devices=1)
    network = _denoiser(settings, sizes)
    parameters = {"denoiser": count_parameters(network)}
    wrapped, learner = fabric.setup(network, adam(network, settings.diffusion_training))
    ema = ExponentialMovingAverage(network, settings.diffusion.ema_decay)
    schedule = CosineSchedule(settings.diffusion.num_train_steps)
    x_0 = latents(sizes)
    generator = torch.Generator().manual_seed(0)

    def step() -> None:
        t = schedule.draw_times(len(x_0), generator)
        eps = torch.randn(x_0.shape, generator=generator)
        loss = denoising_loss(wrapped, x_0, eps, t, schedule)
        take_step(fabric, loss, wrapped, learner, settings.diffusion_training)
        ema.update(network, 1000)

    return Task((Part(step),), parameters)


def _denoiser_forward(settings: LatentDiffusionSettings, sizes: Sizes) -> Task:
    network = _denoiser(settings, sizes).eval()
    x_t, t = latents(sizes), torch.rand(sizes.denoiser_batch)
    return Task((Part(in_inference_mode(lambda: network(x_t, t))),), {"denoiser": count_parameters(network)})


def _sample(settings: LatentDiffusionSettings, sizes: Sizes) -> Task:
    """What `Bundle.generate` does for one volume, its steps apart from the rest."""
    autoencoder, denoiser = VQGAN(settings.autoencoder), _denoiser(settings, sizes)
    parameters = {"autoencoder": count_parameters(autoencoder), "denoiser": count_parameters(denoiser)}
    autoencoder.requires_grad_(False).eval()
    denoiser.requires_grad_(False).eval()
    side, latent = sizes.volume, sizes.latent
    description = LatentDiffusionDescription(
        autoencoder=settings.autoencoder,
        denoiser=settings.denoiser,
        diffusion=settings.diffusion,
        grid=Grid(shape=(side, side, side), spacing_mm=(1, 1, 1), affine=torch.eye(4).tolist()),
        intensity=Intensity(modality="MR", low=0, high=1),
        latent_shape=(latent, latent, latent),
        latent_shift=[0.0] * CODE_DIM,
        latent_scale=[1.0] * CODE_DIM,
    )
    bundle = LatentDiffusionBundle(description, autoencoder, denoiser)
    num_steps = settings.diffusion.sampling_steps
    timed = sizes.steps_to_time(num_steps)
    note = f"{num_steps} steps of {settings.diffusion.sampler}"
    if timed == num_steps:
        return Task((Part(lambda: bundle.generate([0])),), parameters, note)
    start = torch.randn(1, CODE_DIM, latent, latent, latent)

    def decode() -> Tensor:
        quantised = autoencoder.codebook.embed(autoencoder.codebook.lookup(start))
        return autoencoder.decode(quantised, (side, side, side))[:, 0].clamp(-1, 1)

    steps = Part(lambda: bundle.sample_latents([0], steps=timed), num_steps / timed)
    return Task(
        (steps, Part(in_inference_mode(decode))),
        parameters,
        f"{note}: {timed} timed, multiplied; and decoding",
    )


def _decode(settings: LatentDiffusionSettings, sizes: Sizes, plain: bool) -> Task:
    network = VQGAN(settings.autoencoder).eval()
    z = torch.randn(1, CODE_DIM, sizes.latent, sizes.latent, sizes.latent)
    shape = (sizes.volume,) * 3
    if plain:
        use_plain_convolutions(network)
    call = in_inference_mode(lambda: network.decoder(z) if plain else network.decode(z, shape))
    return Task((Part(call),), {"decoder": count_parameters(network.decoder)})


def _lookup(settings: LatentDiffusionSettings, sizes: Sizes, one_hot: bool) -> Task:
    codebook = Codebook(settings.autoencoder.num_codes, settings.autoencoder.code_dim)
    z = cells_to_look_up(sizes)
    call = in_inference_mode(lambda: one_hot_lookup(codebook, z) if one_hot else codebook(z))
    return Task((Part(call),), {})


def _denoiser(settings: LatentDiffusionSettings, sizes: Sizes) -> Denoiser:
    return Denoiser(settings.denoiser, CODE_DIM, (sizes.latent,) * 3)


def plain_step(
    loss: Tensor, network: nn.Module, optimiser: torch.optim.Optimizer, gradient_clip: float | None
) -> None:
    """One optimiser step without Fabric."""
    optimiser.zero_grad(set_to_none=True)
    loss.backward()
    if gradient_clip is not None:
        nn.utils.clip_grad_norm_(network.parameters(), gradient_clip)
    optimiser.step()


def use_plain_convolutions(module: nn.Module) -> None:
    """Gives convolutions PyTorch's own layout and choice of kernels, in place."""
    for parameter in module.parameters():
        parameter.data = parameter.data.contiguous()
    for part in module.modules():
        if isinstance(part, Conv3d):
            part.__class__ = nn.Conv3d  # type: ignore[assignment]


@torch.no_grad()
def one_hot_lookup(codebook: Codebook, z: Tensor) -> tuple[Tensor, Tensor]:
    """The quantised latent (B, C, d, h, w), and the one-hot matrix (cells, codes) of the chosen codes."""
    cells = z.movedim(1, -1).flatten(0, -2)
    codes = codebook.codes
    distances = cells.square().sum(1, keepdim=True) - 2 * cells @ codes.T + codes.square().sum(1)
    indices = distances.argmin(1)
    one_hot = functional.one_hot(indices, len(codes)).to(cells.dtype)
    return codes[indices].reshape(z.shape[0], *z.shape[2:], -1).movedim(-1, 1), one_hot


@torch.no_grad()
def one_hot_update(codebook: Codebook, z: Tensor, one_hot: Tensor) -> None:
    """Moving averages of the codes from the one-hot matrix (van den Oord et al. 2017, appendix A.1)."""
    cells = z.movedim(1, -1).flatten(0, -2)
    codebook.ema_count.lerp_(one_hot.sum(0), 1 - codebook.decay)
    codebook.ema_sum.lerp_(one_hot.T @ cells, 1 - codebook.decay)
    mass = codebook.ema_count.sum()
    smoothed = (codebook.ema_count + _EPSILON) / (mass + len(codebook.codes) * _EPSILON) * mass
    codebook.codes.copy_(codebook.ema_sum / smoothed[:, None])
