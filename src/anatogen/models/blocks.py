"""What several networks are built of: the Haar wavelet, normalisations, the layout of weights in memory."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

_SQRT_HALF = math.sqrt(0.5)


def haar(x: Tensor, axes: Sequence[int]) -> Tensor:
    """One level of the orthonormal Haar wavelet along each of the axes.

    Args:
        x: (B, C, D, H, W); even along `axes`.
        axes: Tensor axes to halve, out of 2, 3, 4.

    Returns:
        (B, C * 2**len(axes), ...) with `axes` halved; the C low-pass channels come first.
    """
    for axis in axes:
        even, odd = x.unflatten(axis, (-1, 2)).unbind(axis + 1)
        x = torch.cat((even + odd, even - odd), dim=1) * _SQRT_HALF
    return x


def inverse_haar(x: Tensor, axes: Sequence[int]) -> Tensor:
    """Undoes `haar` with the same axes.

    Args:
        x: (B, C * 2**len(axes), D, H, W).
        axes: Tensor axes to double, as they were given to `haar`.
    """
    for axis in reversed(axes):
        low, high = x.chunk(2, dim=1)
        x = torch.stack((low + high, low - high), dim=axis + 1).flatten(axis, axis + 1) * _SQRT_HALF
    return x


def group_norm(channels: int, groups: int = 8) -> nn.GroupNorm:
    """Group normalisation of the channels, with fewer groups where so many do not divide them."""
    return nn.GroupNorm(math.gcd(groups, channels), channels, eps=1e-6)


def channels_last(module: nn.Module) -> None:
    """Lays out 3D convolution weights so that oneDNN and cuDNN need not reorder volumes, in place."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d | nn.ConvTranspose3d):
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last_3d)


class CellNorm(nn.Module):
    """Layer normalisation over the channels of each cell, scaled by a learned vector.

    Args:
        channels: Their number.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, d, h, w) to the same shape."""
        # With channels last in memory both moves are views.
        normalised = functional.layer_norm(x.movedim(1, -1), (x.shape[1],), self.scale, None, 1e-6)
        return normalised.movedim(-1, 1)
