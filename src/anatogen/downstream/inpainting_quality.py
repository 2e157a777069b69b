"""How well a pre-trained network fills in what is hidden, beside a copy of what lies nearest.

A network that does no better has learned little that a segmenter could use.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import distance_transform_edt
from torch import Tensor, nn

from anatogen.core.files import write_json
from anatogen.core.seeding import derived_generator
from anatogen.downstream.masking import hide, inpainting_losses, random_masks
from anatogen.downstream.patches import Shape, crop, random_corner
from anatogen.downstream.settings import MaskingSettings

INPAINTING_QUALITY_NAME = "inpainting_quality.json"


@dataclass(frozen=True)
class InpaintingQuality:
    """Mean losses of filling in the same hidden voxels of the same scans.

    Attributes:
        network: L1 + (1 - MS-SSIM) of volumes whose hidden voxels the network filled in.
        copying: Of giving each hidden voxel the value of the nearest seen one.
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
        patch_shape: Of the patches; None for whole volumes.
        masking: What is hidden of them.
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
    return InpaintingQuality(by_network, by_copying)


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
    write_json(run / INPAINTING_QUALITY_NAME, asdict(quality))


def load_inpainting_quality(run: Path) -> InpaintingQuality | None:
    """What `save_inpainting_quality` wrote; None where it has not, yet."""
    path = run / INPAINTING_QUALITY_NAME
    if not path.is_file():
        return None
    return InpaintingQuality(**json.loads(path.read_text(encoding="utf-8")))
