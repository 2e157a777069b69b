"""Stage one of latent diffusion: trains the VQ-GAN on prepared volumes."""

import math
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from anatogen.config.settings import Settings
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import WEIGHTS_NAME, save_weights
from anatogen.dataset.manifest import Grid, Split
from anatogen.dataset.volumes import VolumeDataset, prefetched
from anatogen.training.batches import scans_of_step
from anatogen.training.loop import Loop, report_trend
from anatogen.training.optimisation import local_slice
from anatogen.training.previews import NUM_PREVIEWS, write_preview
from anatogen.training.stage import DryRun, Stage, accept_losses, made_up_scans
from anatogen.training.vqgan_step import VQGANStep


def train_autoencoder(fabric: Fabric, data: Path, folder: Path, settings: Settings) -> None:
    """Trains the VQ-GAN until its budget is used up, from the last checkpoint if there is one.

    Args:
        fabric: Devices and processes; launched.
        data: A prepared dataset.
        folder: Where checkpoint, logs, previews and at the end `weights.safetensors` go.
        settings: The whole configuration.

    Raises:
        NonFiniteLossError: If a loss is not finite.
    """
    seed, batch_size = settings.training.seed, settings.autoencoder_training.batch_size
    dataset = VolumeDataset(data, Split.TRAIN)
    mine = local_slice(fabric, batch_size)
    train_step = VQGANStep(fabric, settings)
    codebook = train_step.network.codebook
    preview_scans = _preview_scans(data, dataset)

    def load(step: int) -> Tensor:
        return scans_of_step(dataset, settings.training, step, batch_size, range(batch_size)[mine])

    def preview(path: Path) -> None:
        with torch.no_grad(), fabric.autocast():
            # One by one, so that no preview needs more memory than a step.
            scans = preview_scans.to(fabric.device).split(1)
            reconstructed = torch.cat([train_step.network(scan)[0].float().cpu() for scan in scans])
        write_preview({"real": preview_scans, "reconstructed": reconstructed}, path, dataset.manifest.grid)

    loop = Loop(
        fabric,
        folder,
        settings.autoencoder_training,
        settings.training,
        train_step.state,
        len(dataset),
        preview,
    )
    for step, x in prefetched(loop.steps(), load):
        generator = derived_generator(seed, "autoencoder", step)
        slice_index = torch.randint(x.shape[2], (batch_size,), generator=generator)[mine]
        losses = train_step(
            x.to(fabric.device), step, slice_index.to(fabric.device), generator, loop.require_finite
        )
        values: dict[str, Tensor | float] = {**losses}
        ends_epoch = (step + 1) * batch_size // len(dataset) > step * batch_size // len(dataset)
        if ends_epoch:
            codes_used = codebook.fraction_used()
            if codes_used is not None:
                values["codes_used"] = codes_used
            codebook.reset_usage()
        loop.record(values)

    if fabric.is_global_zero:
        save_weights(train_step.network, folder / WEIGHTS_NAME)
        report_trend(folder)
    fabric.barrier()


def _preview_scans(data: Path, train: VolumeDataset) -> Tensor:
    """The first validation scans, or training ones where there are none."""
    validation = VolumeDataset(data, Split.VALIDATION)
    shown = validation if len(validation) else train
    return shown.batch(range(min(NUM_PREVIEWS, len(shown))))


def _dry_run(fabric: Fabric, settings: Settings, grid: Grid) -> DryRun:
    losses, optimisation = settings.losses, settings.autoencoder_training
    if optimisation.steps is None or losses.adversarial_start < optimisation.steps:
        losses = losses.model_copy(update={"discriminator_start": 0, "adversarial_start": 0})
    elif losses.discriminator_start >= optimisation.steps:
        losses = losses.model_copy(update={"adversarial_slice": 0.0, "adversarial_volume": 0.0})
    train_step = VQGANStep(fabric, settings.model_copy(update={"losses": losses}))
    x = made_up_scans(optimisation.batch_size, grid, fabric)
    generator = torch.Generator().manual_seed(0)

    def step(number: int) -> object:
        slice_index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return train_step(x, number, slice_index, generator, accept_losses)

    @torch.no_grad()
    def preview() -> object:
        with fabric.autocast():
            return train_step.network(made_up_scans(1, grid, fabric))

    return DryRun(train_step.networks, step, {"preview": preview})


def _work(settings: Settings, grid: Grid) -> float:
    return math.prod(grid.shape) * settings.autoencoder_training.batch_size


AUTOENCODER = Stage("autoencoder", Settings, _dry_run, _work)
