"""Stage two of latent diffusion: trains the denoiser on the latents of the autoencoder of stage one."""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful

from anatogen.config.settings import LatentDiffusionSettings
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import WEIGHTS_NAME, load_weights, save_weights
from anatogen.dataset.manifest import Grid
from anatogen.dataset.volumes import prefetched, shuffled_indices
from anatogen.diffusion.process import denoising_loss
from anatogen.diffusion.schedule import CosineSchedule
from anatogen.generators.description import LatentDiffusionDescription
from anatogen.generators.latent_diffusion import LatentDiffusionBundle
from anatogen.models.denoiser import Denoiser
from anatogen.models.vqgan import VQGAN, latent_shape
from anatogen.training.latent_cache import ENCODED_AT_ONCE
from anatogen.training.loop import NUM_PREVIEWS, Loop, report_trend
from anatogen.training.optimisation import ExponentialMovingAverage, adam, local_slice, take_step
from anatogen.training.stage import DryRun, Stage, accept_losses, made_up_scans

# Few steps whatever the preset samples with: the time counts against the budget.
_PREVIEW_STEPS = 25


def train_diffusion(
    fabric: Fabric,
    latents: Path,
    autoencoder: Path,
    folder: Path,
    settings: LatentDiffusionSettings,
    description: LatentDiffusionDescription,
) -> None:
    """Trains the denoiser until its budget is used up, from the last checkpoint if there is one.

    Args:
        fabric: Devices and processes; launched.
        latents: The cache, float32 (N, V, C, d, h, w), V views of each scan.
        autoencoder: Weights of the autoencoder, for previews.
        folder: Where checkpoint, logs, previews and at the end `weights.safetensors` (of the moving
            average) go.
        settings: The whole configuration.
        description: Description of the bundle that is trained: grid, latents and their scaling.

    Raises:
        NonFiniteLossError: If the loss is not finite.
    """
    seed, batch_size = settings.training.seed, settings.diffusion_training.batch_size
    cache = np.load(latents, mmap_mode="r")
    mine = local_slice(fabric, batch_size)
    train_step = DenoiserStep(fabric, settings)
    decoder = load_weights(VQGAN(settings.autoencoder), autoencoder)
    bundle = LatentDiffusionBundle(description, decoder, train_step.ema.shadow).to(fabric.device)
    scaling = bundle.scaling

    def load(step: int) -> Tensor:
        indices = shuffled_indices(len(cache), seed, step * batch_size, batch_size)
        views = torch.randint(cache.shape[1], (batch_size,), generator=derived_generator(seed, "flip", step))
        chosen = zip(indices[mine], views[mine].tolist(), strict=True)
        return scaling.apply(torch.from_numpy(np.stack([cache[index, view] for index, view in chosen])))

    def preview() -> dict[str, Tensor]:
        steps = min(_PREVIEW_STEPS, settings.diffusion.sampling_steps)
        return {
            "synthetic": bundle.generate(range(NUM_PREVIEWS), seed=seed, sampler="dpm_solver_pp", steps=steps)
        }

    loop = Loop(
        fabric,
        folder,
        settings.diffusion_training,
        settings.training,
        train_step.state,
        len(cache),
        preview,
        description.grid,
    )
    for step, x_0 in prefetched(loop.steps(), load):
        generator = derived_generator(seed, "diffusion", step)
        loop.record(train_step(x_0.to(fabric.device), step, generator, loop.require_finite))

    if fabric.is_global_zero:
        save_weights(train_step.ema.shadow, folder / WEIGHTS_NAME)
        report_trend(folder)
    fabric.barrier()


class DenoiserStep:
    """The network of stage two with its optimiser and moving average, and what one batch does to them.

    Args:
        fabric: Devices and processes; launched.
        settings: The whole configuration; its seed decides the initial weights.

    Attributes:
        network: The denoiser.
        ema: Its moving average.
        networks: What is trained, by name.
        state: All that a checkpoint holds, by name.
    """

    def __init__(self, fabric: Fabric, settings: LatentDiffusionSettings) -> None:
        self._fabric = fabric
        self._optimisation = settings.diffusion_training
        self._schedule = CosineSchedule(settings.diffusion.num_train_steps)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.training.seed + 1)
            self.network = Denoiser(settings.denoiser, settings.autoencoder.code_dim)
        optimiser = adam(self.network, self._optimisation)
        self._denoiser, self._optimiser = fabric.setup(self.network, optimiser)
        self.networks: dict[str, nn.Module] = {"denoiser": self.network}
        self.ema = ExponentialMovingAverage(self.network, settings.diffusion.ema_decay)
        self.state: dict[str, Stateful] = {
            "network": self.network,
            "optimiser": optimiser,
            "ema": self.ema.shadow,
        }

    def __call__(
        self,
        x_0: Tensor,
        step: int,
        generator: torch.Generator,
        require_finite: Callable[[Mapping[str, Tensor]], None],
    ) -> dict[str, Tensor]:
        """Learns from one batch.

        Args:
            x_0: float32 (B, C, d, h, w), this process's part of a batch of scaled latents, on the device.
            step: Batches before this one.
            generator: Decides times and noise of the whole batch; alike on all ranks.
            require_finite: Raises if the loss is not finite; called before any weight changes.

        Returns:
            The "loss", 0-d.
        """
        # Drawn for the whole batch on every process, so that their number changes nothing.
        batch_size = self._optimisation.batch_size
        mine = local_slice(self._fabric, batch_size)
        t = self._schedule.draw_times(batch_size, generator)[mine].to(x_0.device)
        eps = torch.randn(batch_size, *x_0.shape[1:], generator=generator)[mine].to(x_0.device)
        loss = denoising_loss(self._denoiser, x_0, eps, t, self._schedule)
        require_finite({"loss": loss})
        take_step(self._fabric, loss, self._denoiser, self._optimiser, self._optimisation)
        self.ema.update(self.network, step)
        return {"loss": loss}


def _dry_run(fabric: Fabric, settings: LatentDiffusionSettings, grid: Grid) -> DryRun:
    cells = latent_shape(grid.shape, settings.autoencoder.compression)
    train_step = DenoiserStep(fabric, settings)
    autoencoder = VQGAN(settings.autoencoder).requires_grad_(False).eval()
    fabric.to_device(autoencoder)
    shape = (settings.diffusion_training.batch_size, settings.autoencoder.code_dim, *cells)
    x_0 = torch.randn(shape, device=fabric.device)
    generator = torch.Generator().manual_seed(0)
    # As `Bundle.generate` makes previews: one by one on a CPU.
    z = x_0.new_zeros(1 if fabric.device.type == "cpu" else NUM_PREVIEWS, *x_0.shape[1:])

    def step(number: int) -> object:
        return train_step(x_0, number, generator, accept_losses)

    @torch.no_grad()
    def encode() -> object:
        return autoencoder.encode(made_up_scans(ENCODED_AT_ONCE, grid, fabric))

    @torch.no_grad()
    def denoise() -> object:
        return train_step.ema.shadow(z, torch.ones(len(z), device=z.device))

    @torch.no_grad()
    def decode() -> object:
        return autoencoder.decode(autoencoder.codebook.quantise(z), grid.shape)

    return DryRun(train_step.networks, step, {"encode": encode, "denoise": denoise, "decode": decode})


def _work(settings: LatentDiffusionSettings, grid: Grid) -> float:
    cells = math.prod(latent_shape(grid.shape, settings.autoencoder.compression))
    return cells * settings.diffusion_training.batch_size


DIFFUSION = Stage("diffusion", LatentDiffusionSettings, _dry_run, _work)
