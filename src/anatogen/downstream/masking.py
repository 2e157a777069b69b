"""Inpainting: which voxels are hidden, and how far a guess of them is off."""

import math

import torch
from torch import Tensor, nn

from anatogen.core.errors import UserError
from anatogen.downstream.settings import MaskingSettings
from anatogen.evaluation.fidelity.ssim import choose_scales, ms_ssim

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
