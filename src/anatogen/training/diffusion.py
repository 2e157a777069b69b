"""Stage two: trains the denoiser on the latents of the autoencoder of stage one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from anatogen.bundle import build_denoiser
from anatogen.data.dataset import prefetched, shuffled_indices
from anatogen.data.manifest import Grid
from anatogen.diffusion.latents import LatentScaling
from anatogen.diffusion.process import denoising_loss
from anatogen.diffusion.schedule import Schedule
from anatogen.seeding import derived_generator
from anatogen.settings import Settings
from anatogen.training.ema import ExponentialMovingAverage
from anatogen.training.loop import Loop
from anatogen.training.optimisation import adam, local_slice, take_step
from anatogen.weights import WEIGHTS_NAME, save_weights


def train_diffusion(
    fabric: Fabric,
    latents: Path,
    scaling: LatentScaling,
    schedule: Schedule,
    grid: Grid,
    folder: Path,
    settings: Settings,
    draw_preview: Callable[[nn.Module, Path], None],
) -> None:
    """Trains the denoiser until its budget is used up, from the last checkpoint if there is one.

    Args:
        fabric: Devices and processes; launched.
        latents: The cache, float32 (N, V, C, d, h, w), V views of each scan.
        scaling: Maps latents to the process's range.
        schedule: Of the diffusion process.
        grid: Of the volumes.
        folder: Where checkpoint, logs, previews and at the end `weights.safetensors` (of the moving
            average) go.
        settings: The whole configuration.
        draw_preview: Samples with a denoiser and writes the picture.

    Raises:
        NonFiniteLossError: If the loss is not finite.
    """
    seed, batch_size = settings.training.seed, settings.diffusion_training.batch_size
    cache = np.load(latents, mmap_mode="r")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        network = build_denoiser(settings.denoiser, settings.autoencoder, grid, cache.shape[3:])
    optimiser = adam(network, settings.diffusion_training)
    wrapped, learner = fabric.setup(network, optimiser)
    ema = ExponentialMovingAverage(network, settings.diffusion.ema_decay)
    loop = Loop(
        fabric,
        folder,
        settings.diffusion_training,
        settings.training,
        {"network": network, "optimiser": optimiser, "ema": ema.shadow},
        [optimiser],
        len(cache),
        lambda path: draw_preview(ema.shadow, path),
    )
    mine = local_slice(fabric, batch_size)

    def load(step: int) -> Tensor:
        indices = shuffled_indices(len(cache), seed, step * batch_size, batch_size)
        views = torch.randint(cache.shape[1], (batch_size,), generator=derived_generator(seed, "flip", step))
        chosen = zip(indices[mine], views[mine].tolist(), strict=True)
        return scaling.apply(torch.from_numpy(np.stack([cache[index, view] for index, view in chosen])))

    for step, x_0 in prefetched(loop.steps(), load):
        # Drawn for the whole batch on every process, so that their number changes nothing.
        generator = derived_generator(seed, "diffusion", step)
        t = schedule.draw_times(batch_size, generator)[mine].to(fabric.device)
        eps = torch.randn(batch_size, *x_0.shape[1:], generator=generator)[mine].to(fabric.device)
        loss = denoising_loss(
            wrapped,
            x_0.to(fabric.device),
            eps,
            t,
            schedule,
            settings.diffusion.prediction,
            settings.diffusion.loss,
        )
        loop.require_finite({"loss": loss})
        take_step(fabric, loss, wrapped, learner, settings.diffusion_training)
        ema.update(network, step)
        loop.record({"loss": loss})

    if fabric.is_global_zero:
        save_weights(ema.shadow, folder / WEIGHTS_NAME)
    fabric.barrier()
