"""Building blocks of the autoencoder and the denoiser."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatogen.models.convolution import Conv3d

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


def group_norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with the largest number of groups up to 8 that divides the channels."""
    return nn.GroupNorm(math.gcd(8, channels), channels, eps=1e-6)


def channels_last(module: nn.Module) -> None:
    """Lays out 3D convolution weights so that oneDNN and cuDNN need not reorder volumes, in place."""
    for part in module.modules():
        if isinstance(part, nn.Conv3d | nn.ConvTranspose3d):
            part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last_3d)


class ResidualBlock(nn.Module):
    """Two 3D convolutions with pre-activation and a skip; optionally scaled and shifted by an embedding.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        kernel: Kernel along (D, H, W), odd.
        embedding_dim: Length of the conditioning vector, or None for an unconditional block.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel: tuple[int, int, int] = (3, 3, 3),
        embedding_dim: int | None = None,
    ) -> None:
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)
        self.norm_1 = group_norm(in_channels)
        self.conv_1 = Conv3d(in_channels, out_channels, kernel, padding=padding)
        self.norm_2 = group_norm(out_channels)
        self.conv_2 = Conv3d(out_channels, out_channels, kernel, padding=padding)
        self.modulation = None if embedding_dim is None else nn.Linear(embedding_dim, 2 * out_channels)
        self.skip = nn.Identity() if in_channels == out_channels else Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Maps (B, in_channels, D, H, W) to (B, out_channels, D, H, W); embedding is (B, embedding_dim)."""
        h = self.norm_2(self.conv_1(functional.silu(self.norm_1(x))))
        if self.modulation is not None:
            assert embedding is not None
            scale, shift = self.modulation(functional.silu(embedding))[:, :, None, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        return self.skip(x) + self.conv_2(functional.silu(h))


class TimeEmbedding(nn.Module):
    """Sinusoidal features of the diffusion time through a small perceptron (Vaswani et al. 2017).

    Args:
        num_features: Number of sinusoidal features, even.
        embedding_dim: Length of the result.
    """

    frequencies: Tensor

    def __init__(self, num_features: int, embedding_dim: int) -> None:
        super().__init__()
        half = num_features // 2
        self.register_buffer(
            "frequencies", 1000 * torch.exp(-math.log(10_000) * torch.arange(half) / half), persistent=False
        )
        self.perceptron = nn.Sequential(
            nn.Linear(2 * half, embedding_dim), nn.SiLU(), nn.Linear(embedding_dim, embedding_dim)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Maps times (B,) in [0, 1] to (B, embedding_dim)."""
        angles = t[:, None] * self.frequencies
        embedded: Tensor = self.perceptron(torch.cat((angles.sin(), angles.cos()), dim=1))
        return embedded
