"""What a training will take, before it is started: parameters, memory, passes over the data."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from anatogen.bundle import build_denoiser
from anatogen.config import to_yaml
from anatogen.data.manifest import Grid, load_manifest
from anatogen.models.vqgan import VQGAN, latent_shape
from anatogen.models.wgan_gp import Critic, Generator
from anatogen.settings import GANConfig, OptimiserSettings, Settings
from anatogen.training.devices import check_budgets
from anatogen.training.progress import clock
from anatogen.training.run_folder import count_training_scans
from anatogen.training.vqgan_step import build_discriminators
from anatogen.training.wgan_gp import check_statistics, gradient_penalty

_BYTES_PER_WEIGHT = 4
# Weight, gradient and Adam's two moments.
_COPIES_TRAINED = 4


@dataclass(frozen=True)
class StageEstimate:
    """What one stage takes.

    Attributes:
        num_parameters: Trained parameters by network.
        memory_gb: Weights, gradients, optimiser state and saved activations of a step, in 10^9 bytes; the
            library's workspace comes on top.
        seconds_per_step: Of networks and losses, measured on this machine.
        passes: How often the budget sees each training scan.
        seconds: How long the budget lasts.
    """

    num_parameters: dict[str, int]
    memory_gb: float
    seconds_per_step: float
    passes: float
    seconds: float


def describe_plan(data: Path, settings: Settings, stages: tuple[str, ...]) -> str:
    """The resolved settings and what each stage takes, as text.

    Args:
        data: A prepared dataset.
        settings: The whole configuration.
        stages: "autoencoder", "diffusion" or both.

    Raises:
        UserError: If a stage has no budget, or the folder is no prepared dataset or has no training scans.
    """
    manifest = load_manifest(data)
    check_budgets(settings, stages)
    num_scans = count_training_scans(data, manifest)
    lines = [to_yaml(settings), f"{num_scans} training scans of {manifest.grid.shape}"]
    for stage in stages:
        estimate = estimate_autoencoder if stage == "autoencoder" else estimate_diffusion
        found = estimate(settings, manifest.grid, num_scans)
        lines.append(_line(stage, found))
    return "\n".join(lines)


def describe_gan_plan(data: Path, config: GANConfig) -> str:
    """The resolved settings of a WGAN-GP and what it takes, as text.

    Args:
        data: A prepared dataset.
        config: The whole configuration.

    Raises:
        UserError: If there is no budget, the folder is no prepared dataset or has no training scans, or a
            batch is too small.
    """
    manifest = load_manifest(data)
    check_budgets(config, ("gan",))
    num_scans = count_training_scans(data, manifest)
    check_statistics(config.gan_training.batch_size, manifest.grid.shape)
    found = estimate_gan(config, manifest.grid, num_scans)
    return "\n".join(
        [to_yaml(config), f"{num_scans} training scans of {manifest.grid.shape}", _line("gan", found)]
    )


def _line(stage: str, found: StageEstimate) -> str:
    parameters = ", ".join(f"{name} {number:,}" for name, number in found.num_parameters.items())
    return (
        f"{stage}: parameters {parameters}; about {found.memory_gb:.1f} GB for a step; the budget is "
        f"{found.passes:.1f} passes over the training scans, at {found.seconds_per_step:.2f} s a step "
        f"about {clock(found.seconds)}"
    )


def estimate_autoencoder(settings: Settings, grid: Grid, num_scans: int) -> StageEstimate:
    """What stage one takes."""
    batch = settings.autoencoder_training.batch_size
    shape = (batch, 1, *grid.shape)

    def step(device: str) -> tuple[dict[str, nn.Module], Callable[[], Tensor]]:
        with torch.device(device):
            network = VQGAN(settings.autoencoder)
            networks: dict[str, nn.Module] = {"autoencoder": network}
            x = torch.zeros(shape)
            index = torch.zeros(batch, dtype=torch.int64)
            discriminators = build_discriminators(settings.losses)
            if discriminators is not None:
                networks["discriminators"] = discriminators

        def run() -> Tensor:
            # The lookup keeps nothing for the way back, and has no kernels on the meta device.
            reconstructed = network.decode(network.encode(x), x.shape[2:])
            total = (reconstructed - x).abs().mean()
            if discriminators is not None:
                for real, fake in discriminators(x, reconstructed, index).values():
                    total = total + real[0].mean() + fake[0].mean()
            return total

        return networks, run

    return _estimate(step, settings.autoencoder_training, num_scans, num_shadows=0)


def estimate_diffusion(settings: Settings, grid: Grid, num_scans: int) -> StageEstimate:
    """What stage two takes."""
    batch = settings.diffusion_training.batch_size
    cells = latent_shape(grid.shape, settings.autoencoder.compression)

    def step(device: str) -> tuple[dict[str, nn.Module], Callable[[], Tensor]]:
        channels = settings.autoencoder.latent_channels
        with torch.device(device):
            network = build_denoiser(settings.denoiser, settings.autoencoder, grid, cells)
            x, t = torch.zeros(batch, channels, *cells), torch.zeros(batch)
        return {"denoiser": network}, lambda: network(x, t).square().mean()

    return _estimate(step, settings.diffusion_training, num_scans, num_shadows=1)


def estimate_gan(config: GANConfig, grid: Grid, num_scans: int) -> StageEstimate:
    """What a WGAN-GP takes; its memory is that of the larger of the two networks' updates."""
    gan, budget = config.gan, config.gan_training
    batch = budget.batch_size

    def networks(device: str) -> tuple[dict[str, nn.Module], Tensor, Tensor]:
        with torch.device(device):
            made = {"generator": Generator(gan, grid.shape), "critic": Critic(gan, grid.shape)}
            return made, torch.zeros(batch, 1, *grid.shape), torch.zeros(batch, gan.latent_dim)

    def critic_update(device: str) -> tuple[dict[str, nn.Module], Callable[[], Tensor]]:
        made, x, z = networks(device)
        generator, critic = made.values()

        def run() -> Tensor:
            with torch.no_grad():
                fake = generator(z)
            penalty = gradient_penalty(critic, x, fake, z[:, 0], per_voxel=gan.kwon_compatible)
            return critic(fake).mean() - critic(x).mean() + penalty

        return made, run

    def generator_update(device: str) -> tuple[dict[str, nn.Module], Callable[[], Tensor]]:
        made, _, z = networks(device)
        generator, critic = made.values()
        return made, lambda: critic(generator(z)).mean()

    of_critic = _estimate(critic_update, budget, num_scans, num_shadows=1)
    of_generator = _estimate(generator_update, budget, num_scans, num_shadows=1)
    num_critic, num_generator = gan.updates
    seconds = num_critic * of_critic.seconds_per_step + num_generator * of_generator.seconds_per_step
    steps = _num_steps(budget, seconds)
    return StageEstimate(
        of_critic.num_parameters,
        max(of_critic.memory_gb, of_generator.memory_gb),
        seconds,
        steps * num_critic * batch / num_scans,
        steps * seconds,
    )


def _estimate(
    build: Callable[[str], tuple[dict[str, nn.Module], Callable[[], Tensor]]],
    budget: OptimiserSettings,
    num_scans: int,
    num_shadows: int,
) -> StageEstimate:
    networks, run = build("meta")
    saved: dict[int, int] = {}

    def note(tensor: Tensor) -> Tensor:
        # Views of one storage are saved once.
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage().nbytes()
        kept.append(tensor)
        return tensor

    kept: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        run()
    num_parameters = {
        name: sum(p.numel() for p in network.parameters()) for name, network in networks.items()
    }
    weights = sum(num_parameters.values()) * _BYTES_PER_WEIGHT * (_COPIES_TRAINED + num_shadows)
    seconds = _seconds_per_step(build)
    steps = _num_steps(budget, seconds)
    return StageEstimate(
        num_parameters,
        (weights + sum(saved.values())) / 1e9,
        seconds,
        steps * budget.batch_size / num_scans,
        steps * seconds,
    )


def _num_steps(budget: OptimiserSettings, seconds_per_step: float) -> float:
    steps = float(budget.steps) if budget.steps is not None else float("inf")
    return steps if budget.minutes is None else min(steps, 60 * budget.minutes / seconds_per_step)


def _seconds_per_step(build: Callable[[str], tuple[dict[str, nn.Module], Callable[[], Tensor]]]) -> float:
    """Seconds of the second of two passes forth and back; the first one warms up."""
    _, run = build("cuda" if torch.cuda.is_available() else "cpu")
    seconds = 0.0
    for _ in range(2):
        started = time.perf_counter()
        run().backward()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
    return seconds
