"""Stage one: trains the VQ-GAN on prepared volumes."""

from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor

from anatogen.config.settings import Settings
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import WEIGHTS_NAME, save_weights
from anatogen.dataset.manifest import Split
from anatogen.dataset.volumes import VolumeDataset, flip_axis, prefetched, shuffled_indices
from anatogen.report.figures import planes_figure
from anatogen.training.loop import Loop
from anatogen.training.optimisation import local_slice
from anatogen.training.vqgan_step import VQGANStep

NUM_PREVIEWS = 4


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
    grid = dataset.manifest.grid
    axis = flip_axis(settings.training.flip, grid.affine)
    mine = local_slice(fabric, batch_size)
    take_step = VQGANStep(fabric, settings)
    network = take_step.network
    shown = _preview_volumes(data, dataset)

    def preview(path: Path) -> None:
        with torch.no_grad(), fabric.autocast():
            # One by one, so that no preview needs more memory than a step.
            scans = shown.to(fabric.device).split(1)
            reconstructed = torch.cat([network(scan)[0].float().cpu() for scan in scans])
        rows = [("real", list(shown[:, 0].numpy())), ("reconstructed", list(reconstructed[:, 0].numpy()))]
        planes_figure(rows, path, spacing_mm=grid.spacing_mm, axis_codes=grid.axis_codes)

    def load(step: int) -> Tensor:
        indices = shuffled_indices(len(dataset), seed, step * batch_size, batch_size)
        x = dataset.batch(indices[mine])
        if axis is not None:
            flipped = torch.rand(batch_size, generator=derived_generator(seed, "flip", step))[mine] < 0.5
            x[flipped] = x[flipped].flip(axis)
        return x

    loop = Loop(
        fabric,
        folder,
        settings.autoencoder_training,
        settings.training,
        take_step.parts,
        take_step.learners,
        len(dataset),
        preview,
    )
    for step, x in prefetched(loop.steps(), load):
        generator = derived_generator(seed, "autoencoder", step)
        slice_index = torch.randint(x.shape[2], (batch_size,), generator=generator)[mine]
        values: dict[str, Tensor | float] = dict(
            take_step(
                x.to(fabric.device), step, slice_index.to(fabric.device), generator, loop.require_finite
            )
        )
        if (step + 1) * batch_size // len(dataset) > step * batch_size // len(dataset):
            codes_used = network.codebook.fraction_used()
            if codes_used is not None:
                values["codes_used"] = codes_used
            network.codebook.reset_usage()
        loop.record(values)

    if fabric.is_global_zero:
        save_weights(network, folder / WEIGHTS_NAME)
    fabric.barrier()


def _preview_volumes(data: Path, train: VolumeDataset) -> Tensor:
    """The first validation volumes, or training ones where there are none."""
    validation = VolumeDataset(data, Split.VALIDATION)
    shown = validation if len(validation) else train
    return shown.batch(range(min(NUM_PREVIEWS, len(shown))))
