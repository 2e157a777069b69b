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
from anatogen.training.loop import Loop, previewed, report_trend
from anatogen.training.optimisation import ExponentialMovingAverage, adam, local_slice, step_along_gradient
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
    seed = settings.training.seed
    cache = np.load(latents, mmap_mode="r")
    train_step = DenoiserStep(fabric, settings, description.latent_shape)
    num_scans, mine = train_step.num_scans, train_step.mine.flatten()
    decoder = load_weights(VQGAN(settings.autoencoder), autoencoder)
    bundle = LatentDiffusionBundle(description, decoder, train_step.ema.shadow).to(fabric.device)
    scaling = bundle.scaling

    def load(step: int) -> Tensor:
        indices = shuffled_indices(len(cache), seed, step * num_scans, num_scans)
        views = torch.randint(cache.shape[1], (num_scans,), generator=derived_generator(seed, "flip", step))
        chosen = zip([indices[scan] for scan in mine], views[mine].tolist(), strict=True)
        return scaling.apply(torch.from_numpy(np.stack([cache[index, view] for index, view in chosen])))

    def preview() -> dict[str, Tensor]:
        steps = min(_PREVIEW_STEPS, settings.diffusion.sampling_steps)
        return {"synthetic": previewed(bundle, seed, sampler="dpm_solver_pp", steps=steps)}

    loop = Loop(
        fabric,
        folder,
        settings.diffusion_training,
        settings.training,
        train_step.state,
        len(cache),
        preview,
        description.grid,
        settings.diffusion_training.accumulate,
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
        latent_shape: (d, h, w) of the latents.

    Attributes:
        num_scans: Scans of a step, over all processes.
        mine: int64 (batches, share), the numbers of this process's scans among them, by batch of the step.
        network: The denoiser.
        ema: Its moving average.
        networks: What is trained, by name.
        state: All that a checkpoint holds, by name.
    """

    def __init__(
        self, fabric: Fabric, settings: LatentDiffusionSettings, latent_shape: tuple[int, ...]
    ) -> None:
        self._fabric = fabric
        self._optimisation = optimisation = settings.diffusion_training
        self.num_scans = optimisation.scans_per_step
        numbers = torch.arange(self.num_scans).unflatten(0, (optimisation.accumulate, -1))
        self.mine = numbers[:, local_slice(fabric, optimisation.batch_size)]
        self._schedule = CosineSchedule(settings.diffusion.num_train_steps)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.training.seed + 1)
            self.network = Denoiser(settings.denoiser, settings.autoencoder.code_dim, latent_shape)
        optimiser = adam(self.network, self._optimisation)
        self._denoiser, self._optimiser = fabric.setup(self.network, optimiser)
        self.networks: dict[str, nn.Module] = {"denoiser": self.network}
        diffusion = settings.diffusion
        self.ema = ExponentialMovingAverage(
            self.network, diffusion.ema_decay, diffusion.ema_every, diffusion.ema_start
        )
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
        """Learns from the batches of one step.

        Args:
            x_0: float32 (B, C, d, h, w), scaled latents of this process's scans, on the device.
            step: Steps before this one.
            generator: Decides times and noise of all scans; alike on all ranks.
            require_finite: Raises if the loss is not finite; called before any weight changes.

        Returns:
            The "loss", 0-d.
        """
        # Drawn for all scans on every process, so that the number of processes changes nothing.
        times = self._schedule.draw_times(self.num_scans, generator)[self.mine].to(x_0.device)
        noise = torch.randn(self.num_scans, *x_0.shape[1:], generator=generator)[self.mine].to(x_0.device)
        batches = x_0.unflatten(0, times.shape)
        self._optimiser.zero_grad(set_to_none=True)
        losses = []
        for number, (batch, t, eps) in enumerate(zip(batches, times, noise, strict=True)):
            is_last = number == len(batches) - 1
            with self._fabric.no_backward_sync(self._denoiser, enabled=not is_last):
                loss = denoising_loss(self._denoiser, batch, eps, t, self._schedule)
                require_finite({"loss": loss})
                self._fabric.backward(loss / len(batches))
            losses.append(loss.detach())
        step_along_gradient(self._fabric, self._denoiser, self._optimiser, self._optimisation)
        self.ema.update(self.network, step)
        return {"loss": torch.stack(losses).mean()}


def _dry_run(fabric: Fabric, settings: LatentDiffusionSettings, grid: Grid) -> DryRun:
    cells = latent_shape(grid.shape, settings.autoencoder.compression)
    train_step = DenoiserStep(fabric, settings, cells)
    autoencoder = VQGAN(settings.autoencoder).requires_grad_(False).eval()
    fabric.to_device(autoencoder)
    x_0 = torch.randn(train_step.num_scans, settings.autoencoder.code_dim, *cells, device=fabric.device)
    generator = torch.Generator().manual_seed(0)
    z = x_0.new_zeros(1, *x_0.shape[1:])

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
    return cells * settings.diffusion_training.scans_per_step


DIFFUSION = Stage(
    "diffusion",
    LatentDiffusionSettings,
    _dry_run,
    _work,
    batches_per_step=lambda settings: settings.diffusion_training.accumulate,
)
