"""The paper's augmentations of labelled scans, TorchIO's, each draw a function of its generator alone."""

from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from anatogen.downstream.settings import AugmentationSettings

if TYPE_CHECKING:
    import torchio

# Seeds of PyTorch's global generator, which TorchIO draws from.
_NUM_SEEDS = 2**31


def augmented(
    x: Tensor,
    labels: Tensor,
    spacing_mm: tuple[float, float, float],
    settings: AugmentationSettings,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """A scan and its labels, changed alike where the change is of geometry.

    Flips are not among the changes: which axes may be mirrored is the anatomy's matter (`training.flip`).

    Args:
        x: float32 (1, D, H, W) in [-1, 1].
        labels: uint8 (1, D, H, W).
        spacing_mm: Along (D, H, W): rotations are of the body, not of the voxel grid.
        settings: Probability of each change.
        generator: On the CPU.

    Returns:
        The same shapes, dtypes and range; labels by nearest neighbour, 0 where the scan does not reach.
    """
    import SimpleITK
    import torchio

    # TorchIO resamples by ITK, which would take all cores in each of several processes.
    SimpleITK.ProcessObject.SetGlobalDefaultNumberOfThreads(torch.get_num_threads())
    # TorchIO's gamma and its padding with the least value ask for values from 0 up.
    affine = np.diag([*spacing_mm, 1.0])
    subject = torchio.Subject(
        scan=torchio.ScalarImage(tensor=(x + 1) / 2, affine=affine),
        labels=torchio.LabelMap(tensor=labels, affine=affine),
    )
    seed = int(torch.randint(_NUM_SEEDS, (), generator=generator))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        changed = _transforms(settings)(subject)
    values = changed["scan"].data.float().clamp(0, 1)
    return values * 2 - 1, changed["labels"].data.to(torch.uint8)


@lru_cache(maxsize=8)
def _transforms(settings: AugmentationSettings) -> "torchio.Compose":
    import torchio

    # The paper's list, in an order in which artefacts of the scanner come after the anatomy's changes.
    transforms = [
        torchio.RandomAffine(p=settings.affine, default_pad_value=0),
        torchio.RandomBiasField(p=settings.bias_field),
        torchio.RandomGhosting(p=settings.ghosting),
        torchio.RandomBlur(std=(0, 1), p=settings.blur),
        torchio.RandomNoise(std=(0, 0.1), p=settings.noise),
        torchio.RandomGamma(p=settings.gamma),
    ]
    return torchio.Compose(transforms)
