"""The scans of a training step: a pure function of the step, so that a resumed training sees the same."""

from collections.abc import Sequence

import torch
from torch import Tensor

from anatogen.config.settings import GeneratorLoopSettings
from anatogen.core.seeding import derived_generator
from anatogen.dataset.volumes import VolumeDataset, flip_axis, shuffled_indices


def scans_of_step(
    dataset: VolumeDataset,
    training: GeneratorLoopSettings,
    step: int,
    num_scans: int,
    positions: Sequence[int],
) -> Tensor:
    """Scans of one training step, half of them mirrored if the settings ask for flips.

    Args:
        dataset: Training scans.
        training: Seed, and the axis of the flips.
        step: Steps before this one.
        num_scans: Scans of the step over all processes.
        positions: This process's scans, in [0, num_scans).

    Returns:
        float32 (len(positions), 1, D, H, W) in [-1, 1].
    """
    indices = shuffled_indices(len(dataset), training.seed, step * num_scans, num_scans)
    x = dataset.batch([indices[position] for position in positions])
    axis = flip_axis(training.flip, dataset.manifest.grid.affine)
    if axis is not None:
        # Drawn for all scans on every process, so that the number of processes changes nothing.
        draws = torch.rand(num_scans, generator=derived_generator(training.seed, "flip", step))
        flipped = draws[list(positions)] < 0.5
        x[flipped] = x[flipped].flip(axis)
    return x
