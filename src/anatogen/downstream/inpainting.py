"""Inpainting: which voxels are hidden, how far a guess of them is off, and how good a network's guesses are.

A network that fills in hidden voxels no better than a copy of the nearest seen one has learned little that a
segmenter could use.
"""

import math
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from anatogen.config.resolving import Section
from anatogen.core.errors import UserError
from anatogen.core.files import write_json
from anatogen.core.seeding import derived_generator
from anatogen.downstream.patches import Shape, crop, random_corner
from anatogen.downstream.settings import MaskingSettings
from anatogen.evaluation.ssim import choose_scales, ms_ssim

INPAINTING_QUALITY_NAME = "inpainting_quality.json"
# Halfway between the darkest and the brightest: no tissue and no background of its own.
HIDDEN = 0.0
# Below it a scale of MS-SSIM has no useful gradient: the power of 0 has none at all.
_LEAST_SIMILARITY = 1e-3


def random_masks(
    num: int, shape: tuple[int, int, int], settings: MaskingSettings, generator: torch.Generator
) -> Tensor:
    """Which voxels are hidden: cubes of a grid that lies differently in each volume.

    Args:
        num: B, the number of masks.
        shape: (D, H, W).
        settings: Share and size of the cubes; of the grid's cubes, cut ones too, the share is hidden to half
            a cube.
        generator: On the CPU.

    Returns:
        bool (B, 1, D, H, W), True where hidden.
    """
    side = settings.patch_voxels
    masks = []
    for _ in range(num):
        shifts = torch.randint(side, (3,), generator=generator).tolist()
        counts = [math.ceil((size + shift) / side) for size, shift in zip(shape, shifts, strict=True)]
        number = math.prod(counts)
        hidden = torch.zeros(number, dtype=torch.bool)
        hidden[torch.randperm(number, generator=generator)[: round(settings.share * number)]] = True
        mask = hidden.view(*counts)
        for axis, (size, shift) in enumerate(zip(shape, shifts, strict=True)):
            mask = mask.repeat_interleave(side, axis).narrow(axis, shift, size)
        masks.append(mask)
    return torch.stack(masks)[:, None]


def check_masking(settings: MaskingSettings, shape: tuple[int, int, int]) -> None:
    """Refuses cubes of which too few fit into a volume for a share of them to be hidden and some to be seen.

    Args:
        settings: Share and size of the cubes.
        shape: (D, H, W) of what is learned from.

    Raises:
        UserError: If a cube is longer than half of the shortest side, or none or all of them would be hidden.
    """
    side = settings.patch_voxels
    if 2 * side > min(shape):
        raise UserError(
            f"masking.patch_voxels {side} is more than half of the shortest side of {shape}: use at most "
            f"{min(shape) // 2}"
        )
    number = math.prod(math.ceil(size / side) for size in shape)
    hidden, what = round(settings.share * number), f"masking.share {settings.share:g} of {number} cubes hides"
    if hidden == 0:
        raise UserError(f"{what} none: use more than {0.5 / number:.2g}")
    if hidden == number:
        raise UserError(f"{what} all: use less than {1 - 0.5 / number:.2g}")


def hide(x: Tensor, mask: Tensor) -> Tensor:
    """The volumes as the network sees them.

    Args:
        x: float (B, 1, D, H, W) in [-1, 1].
        mask: bool (B, 1, D, H, W), True where hidden.
    """
    return x.masked_fill(mask, HIDDEN)


def inpaint(network: nn.Module, x: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Losses of what a network makes of the volumes without their hidden voxels.

    Args:
        network: Maps float (B, 1, D, H, W) to the same shape.
        x: float32 (B, 1, D, H, W) in [-1, 1].
        mask: bool (B, 1, D, H, W), True where hidden.

    Returns:
        As `inpainting_losses`.
    """
    return inpainting_losses(network(hide(x, mask)).float(), x)


def inpainting_losses(predicted: Tensor, x: Tensor) -> dict[str, Tensor]:
    """L1 + (1 - MS-SSIM) of the whole volume, hidden voxels and seen ones, as in the paper.

    Args:
        predicted: float32 (B, 1, D, H, W).
        x: float32 (B, 1, D, H, W) in [-1, 1], nothing hidden; at least 5 voxels a side.

    Returns:
        "loss" and its parts "l1" and "ms_ssim"; 0-d.
    """
    l1 = (predicted - x).abs().mean()
    scales = choose_scales((x.shape[2], x.shape[3], x.shape[4]))
    similarity = ms_ssim(predicted[:, 0], x[:, 0], 2.0, scales, least=_LEAST_SIMILARITY).mean()
    return {"loss": l1 + 1 - similarity, "l1": l1, "ms_ssim": similarity}


class InpaintingQuality(Section):
    """Mean losses of filling in the same hidden voxels of the same scans.

    Attributes:
        network: Loss, L1 + (1 - MS-SSIM), of volumes whose hidden voxels the network filled in.
        copying: Loss of giving each hidden voxel the value of the nearest seen one.
    """

    network: float
    copying: float

    @property
    def learned(self) -> bool:
        """Whether the network does better than copying."""
        return self.network < self.copying

    def __str__(self) -> str:
        return (
            f"fills in hidden voxels with a loss of {self.network:.3f} "
            f"(copying the nearest seen voxel: {self.copying:.3f})"
        )


def inpainting_quality(
    network: nn.Module, volumes: Tensor, patch_shape: Shape | None, masking: MaskingSettings
) -> InpaintingQuality:
    """Measures a network on a random patch of each volume, always the same ones.

    Args:
        network: Maps float32 (B, 1, D, H, W) to the same shape, on any device.
        volumes: float32 (N, 1, D, H, W) in [-1, 1], on the CPU.
        patch_shape: (D, H, W) of the patches; None for whole volumes.
        masking: Share and size of the hidden cubes.
    """
    shape: Shape = (volumes.shape[2], volumes.shape[3], volumes.shape[4])
    draws = derived_generator("inpainting quality")
    device = next(network.parameters()).device
    losses = []
    for volume in volumes:
        size = patch_shape or shape
        x = crop(volume, random_corner(shape, size, draws), size)[None]
        mask = random_masks(1, size, masking, draws)
        with torch.no_grad():
            guess = network(hide(x, mask).to(device)).float().cpu()
            # Seen voxels are as seen in both: a network that is off there may still know what is hidden.
            filled = torch.where(mask, guess, x)
            losses.append([inpainting_losses(y, x)["loss"] for y in (filled, copied_from_nearest(x, mask))])
    by_network, by_copying = torch.tensor(losses).mean(0).tolist()
    return InpaintingQuality(network=by_network, copying=by_copying)


def copied_from_nearest(x: Tensor, mask: Tensor) -> Tensor:
    """Each hidden voxel with the value of the nearest seen one, and the seen ones.

    Args:
        x: float (B, 1, D, H, W).
        mask: bool (B, 1, D, H, W), True where hidden, not everywhere.
    """
    filled = []
    for volume, hidden in zip(x[:, 0].numpy(), mask[:, 0].numpy(), strict=True):
        nearest = distance_transform_edt(hidden, return_distances=False, return_indices=True)
        filled.append(volume[tuple(nearest)])
    return torch.from_numpy(np.stack(filled))[:, None]


def save_inpainting_quality(quality: InpaintingQuality, run: Path) -> None:
    """Writes it into the folder of a pre-training."""
    write_json(run / INPAINTING_QUALITY_NAME, quality.model_dump())


def load_inpainting_quality(run: Path) -> InpaintingQuality | None:
    """What `save_inpainting_quality` wrote; None where it has not, yet."""
    path = run / INPAINTING_QUALITY_NAME
    if not path.is_file():
        return None
    return InpaintingQuality.model_validate_json(path.read_text(encoding="utf-8"))
