"""Stage two: trains the denoiser on the latents of the autoencoder of stage one."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from anatogen.config.settings import Settings
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import WEIGHTS_NAME, save_weights
from anatogen.dataset.manifest import Grid
from anatogen.dataset.volumes import prefetched, shuffled_indices
from anatogen.diffusion.latents import LatentScaling
from anatogen.training.denoiser_step import DenoiserStep
from anatogen.training.loop import Loop
from anatogen.training.optimisation import local_slice


def train_diffusion(
    fabric: Fabric,
    latents: Path,
    scaling: LatentScaling,
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
    take_step = DenoiserStep(fabric, settings, grid, cache.shape[3:])
    loop = Loop(
        fabric,
        folder,
        settings.diffusion_training,
        settings.training,
        take_step.parts,
        take_step.learners,
        len(cache),
        lambda path: draw_preview(take_step.ema.shadow, path),
    )
    mine = local_slice(fabric, batch_size)

    def load(step: int) -> Tensor:
        indices = shuffled_indices(len(cache), seed, step * batch_size, batch_size)
        views = torch.randint(cache.shape[1], (batch_size,), generator=derived_generator(seed, "flip", step))
        chosen = zip(indices[mine], views[mine].tolist(), strict=True)
        return scaling.apply(torch.from_numpy(np.stack([cache[index, view] for index, view in chosen])))

    for step, x_0 in prefetched(loop.steps(), load):
        generator = derived_generator(seed, "diffusion", step)
        loop.record(take_step(x_0.to(fabric.device), step, generator, loop.require_finite))

    if fabric.is_global_zero:
        save_weights(take_step.ema.shadow, folder / WEIGHTS_NAME)
    fabric.barrier()
