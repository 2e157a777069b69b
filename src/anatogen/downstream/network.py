"""Swin UNETR for grids of any size: padded inside to what it takes, cropped on the way out."""

import math
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatogen.downstream.settings import SwinUNETRSettings

if TYPE_CHECKING:
    from monai.networks.nets import SwinUNETR

Shape = tuple[int, int, int]

# The network halves each axis five times.
_MULTIPLE = 32
_BACKGROUND = -1.0


class PaddedSwinUNETR(nn.Module):
    """Swin UNETR (Hatamizadeh et al. 2022), MONAI's, that takes any (D, H, W).

    Args:
        settings: Its size.
        out_channels: 1 for inpainting, the number of classes for segmentation.

    Attributes:
        network: MONAI's; its names of weights are those of the files that this project writes.
    """

    def __init__(self, settings: SwinUNETRSettings, out_channels: int) -> None:
        super().__init__()
        self.network = _swin_unetr(settings.feature_size, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps float (B, 1, D, H, W) in [-1, 1] to float (B, out_channels, D, H, W)."""
        shape: Shape = (x.shape[2], x.shape[3], x.shape[4])
        widths = []
        for before, after in zip(shape, padded_shape(shape), strict=True):
            low = (after - before) // 2
            widths.append((low, after - before - low))
        padding = [width for pair in reversed(widths) for width in pair]
        y = self.network(functional.pad(x, padding, value=_BACKGROUND))
        for axis, (low, _) in enumerate(widths):
            y = y.narrow(2 + axis, low, shape[axis])
        return y


def seeded_network(settings: SwinUNETRSettings, out_channels: int, seed: int) -> PaddedSwinUNETR:
    """A network whose random start is the seed's alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PaddedSwinUNETR(settings, out_channels)


def padded_shape(shape: Shape) -> Shape:
    """The smallest (D, H, W) that Swin UNETR takes and that holds the shape.

    Each side is a multiple of 32. One cell at the coarsest level would be too little for its instance
    normalisation, so the longest side is at least 64.
    """
    sides = [_MULTIPLE * math.ceil(side / _MULTIPLE) for side in shape]
    if math.prod(sides) == _MULTIPLE**3:
        sides[max(range(3), key=lambda axis: shape[axis])] = 2 * _MULTIPLE
    return sides[0], sides[1], sides[2]


def _swin_unetr(feature_size: int, out_channels: int) -> "SwinUNETR":
    # MONAI takes seconds to import.
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(
        in_channels=1, out_channels=out_channels, feature_size=feature_size, use_flash_attention=True
    )
