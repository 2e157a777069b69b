"""What each stage does, on made-up scans: for `memory` to count its bytes and for `probe` to time it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from anatogen.config.settings import GANConfig, Settings
from anatogen.dataset.manifest import Grid
from anatogen.models.vqgan import VQGAN, latent_shape
from anatogen.training.denoiser_step import DenoiserStep
from anatogen.training.latent_cache import ENCODED_AT_ONCE
from anatogen.training.previews import NUM_PREVIEWS
from anatogen.training.vqgan_step import VQGANStep
from anatogen.training.wgan_gp_step import WGANGPStep


@dataclass(frozen=True)
class DryRun:
    """A stage, ready to be tried.

    Attributes:
        networks: What is trained, by name.
        step: One training step with all that the stage ever does in one, given its number.
        others: What else the stage does with its networks by name, one call each: "preview" of some scans,
            "encode" of a batch, one "denoise" step and "decode" of a sample.
    """

    networks: dict[str, nn.Module]
    step: Callable[[int], object]
    others: Mapping[str, Callable[[], object]] = field(default_factory=dict)

    @property
    def num_parameters(self) -> dict[str, int]:
        """Trained parameters by network."""
        return {
            name: sum(parameter.numel() for parameter in network.parameters())
            for name, network in self.networks.items()
        }


def dry_run(fabric: Fabric, stage: str, settings: Settings | GANConfig, grid: Grid) -> DryRun:
    """Builds a stage with the code that trains it; one process has the whole batch.

    Args:
        fabric: One device.
        stage: "autoencoder", "diffusion" or "gan".
        settings: The whole configuration; of a GAN for "gan".
        grid: Of the scans.
    """
    if isinstance(settings, GANConfig):
        return _gan(fabric, settings, grid)
    return (
        _autoencoder(fabric, settings, grid) if stage == "autoencoder" else _diffusion(fabric, settings, grid)
    )


def _autoencoder(fabric: Fabric, settings: Settings, grid: Grid) -> DryRun:
    losses, budget = settings.losses, settings.autoencoder_training
    if budget.steps is None or losses.adversarial_start < budget.steps:
        start = {"discriminator_start": 0, "adversarial_start": 0}
        losses = losses.model_copy(update=start)
    elif losses.discriminator_start >= budget.steps:
        losses = losses.model_copy(update={"adversarial_slice": 0.0, "adversarial_volume": 0.0})
    take_step = VQGANStep(fabric, settings.model_copy(update={"losses": losses}))
    batch = budget.batch_size
    x = _volumes(batch, grid, fabric)
    generator = torch.Generator().manual_seed(0)

    def step(number: int) -> object:
        slices = torch.zeros(batch, dtype=torch.int64, device=x.device)
        return take_step(x, number, slices, generator, _accept)

    @torch.no_grad()
    def preview() -> object:
        with fabric.autocast():
            return take_step.network(_volumes(1, grid, fabric))

    return DryRun(take_step.networks, step, {"preview": preview})


def _diffusion(fabric: Fabric, settings: Settings, grid: Grid) -> DryRun:
    cells = latent_shape(grid.shape, settings.autoencoder.compression)
    take_step = DenoiserStep(fabric, settings, grid, cells)
    autoencoder = fabric.to_device(VQGAN(settings.autoencoder).requires_grad_(False).eval())
    assert isinstance(autoencoder, VQGAN)
    channels = settings.autoencoder.latent_channels
    x_0 = torch.randn(settings.diffusion_training.batch_size, channels, *cells, device=fabric.device)
    generator = torch.Generator().manual_seed(0)

    @torch.no_grad()
    def encode() -> object:
        return autoencoder.encode(_volumes(ENCODED_AT_ONCE, grid, fabric))

    # As `Bundle.generate` makes previews: one by one on a CPU.
    z = x_0.new_zeros(1 if fabric.device.type == "cpu" else NUM_PREVIEWS, *x_0.shape[1:])

    @torch.no_grad()
    def denoise() -> object:
        return take_step.ema.shadow(z, torch.ones(len(z), device=z.device))

    @torch.no_grad()
    def decode() -> object:
        return autoencoder.decode(autoencoder.codebook.quantise(z), grid.shape)

    return DryRun(
        take_step.networks,
        lambda number: take_step(x_0, number, generator, _accept),
        {"encode": encode, "denoise": denoise, "decode": decode},
    )


def _gan(fabric: Fabric, config: GANConfig, grid: Grid) -> DryRun:
    take_step = WGANGPStep(fabric, config, grid.shape)
    batch = config.gan_training.batch_size
    x, epsilon = _volumes(batch, grid, fabric), torch.full((batch,), 0.5, device=fabric.device)
    z = torch.randn(batch, config.gan.latent_dim, device=fabric.device)
    num_critic, num_generator = config.gan.updates

    def step(number: int) -> object:
        for _ in range(num_critic):
            take_step.update_critic(x, z, epsilon, _accept)
        for _ in range(num_generator):
            take_step.update_generator(z, _accept)
        return None

    return DryRun(take_step.networks, step)


def _volumes(number: int, grid: Grid, fabric: Fabric) -> Tensor:
    return torch.rand(number, 1, *grid.shape, device=fabric.device) * 2 - 1


def _accept(losses: Mapping[str, Tensor]) -> None:
    """Made-up scans may give any loss."""
