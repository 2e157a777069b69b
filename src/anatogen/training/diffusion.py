"""Stage two of latent diffusion: trains the denoiser on the latents of the autoencoder of stage one."""

import math
from pathlib import Path

import numpy as np
import torch
from lightning_fabric import Fabric
from torch import Tensor

from anatogen.config.settings import Settings
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import WEIGHTS_NAME, load_weights, save_weights
from anatogen.dataset.manifest import Grid
from anatogen.dataset.volumes import prefetched, shuffled_indices
from anatogen.generators.description import LatentDiffusionDescription
from anatogen.generators.latent_diffusion import LatentDiffusionBundle
from anatogen.models.vqgan import VQGAN, latent_shape
from anatogen.training.denoiser_step import DenoiserStep
from anatogen.training.latent_cache import ENCODED_AT_ONCE
from anatogen.training.loop import Loop, report_trend
from anatogen.training.optimisation import local_slice
from anatogen.training.previews import NUM_PREVIEWS, write_preview
from anatogen.training.stage import DryRun, Stage, accept_losses, made_up_scans

# Few steps whatever the preset samples with: the time counts against the budget.
_PREVIEW_STEPS = 25


def train_diffusion(
    fabric: Fabric,
    latents: Path,
    autoencoder: Path,
    folder: Path,
    settings: Settings,
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
    train_step = DenoiserStep(fabric, settings, description.grid, description.latent_shape)
    decoder = load_weights(VQGAN(settings.autoencoder), autoencoder)
    bundle = LatentDiffusionBundle(description, decoder, train_step.ema.shadow).to(fabric.device)
    scaling = bundle.scaling

    def load(step: int) -> Tensor:
        indices = shuffled_indices(len(cache), seed, step * batch_size, batch_size)
        views = torch.randint(cache.shape[1], (batch_size,), generator=derived_generator(seed, "flip", step))
        chosen = zip(indices[mine], views[mine].tolist(), strict=True)
        return scaling.apply(torch.from_numpy(np.stack([cache[index, view] for index, view in chosen])))

    def preview(path: Path) -> None:
        steps = min(_PREVIEW_STEPS, settings.diffusion.sampling_steps)
        scans = bundle.generate(range(NUM_PREVIEWS), seed=seed, sampler="dpm_solver_pp", steps=steps)
        write_preview({"synthetic": scans}, path, description.grid)

    loop = Loop(
        fabric,
        folder,
        settings.diffusion_training,
        settings.training,
        train_step.state,
        len(cache),
        preview,
    )
    for step, x_0 in prefetched(loop.steps(), load):
        generator = derived_generator(seed, "diffusion", step)
        loop.record(train_step(x_0.to(fabric.device), step, generator, loop.require_finite))

    if fabric.is_global_zero:
        save_weights(train_step.ema.shadow, folder / WEIGHTS_NAME)
        report_trend(folder)
    fabric.barrier()


def _dry_run(fabric: Fabric, settings: Settings, grid: Grid) -> DryRun:
    cells = latent_shape(grid.shape, settings.autoencoder.compression)
    train_step = DenoiserStep(fabric, settings, grid, cells)
    autoencoder = VQGAN(settings.autoencoder).requires_grad_(False).eval()
    fabric.to_device(autoencoder)
    channels = settings.autoencoder.latent_channels
    x_0 = torch.randn(settings.diffusion_training.batch_size, channels, *cells, device=fabric.device)
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


def _work(settings: Settings, grid: Grid) -> float:
    cells = math.prod(latent_shape(grid.shape, settings.autoencoder.compression))
    return cells / settings.denoiser.patch**3 * settings.diffusion_training.batch_size


DIFFUSION = Stage("diffusion", Settings, _dry_run, _work)
