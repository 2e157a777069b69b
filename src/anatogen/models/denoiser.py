"""The denoiser: a 3D U-Net that predicts the noise of a noised latent at its time.

That of Khader et al. 2023, after Ho et al. 2022 ("Video diffusion models"): convolutions in the plane,
spatial and then depth attention, halving of the plane only.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatogen.config.settings import DenoiserSettings
from anatogen.models.blocks import CellNorm, channels_last, group_norm
from anatogen.models.convolution import Conv3d

# Widths are multiples of this, for the groups of the normalisation.
_WIDTH_STEP = 8
# Distances of slices with a bias of their own, half of them for either direction, and the largest.
_NUM_DISTANCES = 32
_MAX_DISTANCE = 32


class Denoiser(nn.Module):
    """A U-Net from (B, channels, d, h, w) and times (B,) in [0, 1] to (B, channels, d, h, w).

    Args:
        settings: The architecture.
        channels: Channels of the latent.
        latent_shape: (d, h, w) of the latents, decides the width unless it is set.
    """

    def __init__(self, settings: DenoiserSettings, channels: int, latent_shape: Sequence[int]) -> None:
        super().__init__()
        width = settings.width or width_of(latent_shape)
        widths = [width, *(width * factor for factor in settings.multipliers)]
        heads = (settings.num_heads, settings.head_dim)
        self.multiple = 2 ** (len(settings.multipliers) - 1)
        self.time_embedding = TimeEmbedding(width, 4 * width)
        self.distance_bias = DistanceBias(settings.num_heads)

        def level(in_channels: int, out_channels: int) -> nn.ModuleList:
            inputs = [in_channels, *[out_channels] * (settings.num_blocks - 1)]
            blocks = [ResidualBlock(channels, out_channels, 4 * width) for channels in inputs]
            attention = [LinearSpatialAttention(out_channels, *heads), DepthAttention(out_channels, *heads)]
            return nn.ModuleList([*blocks, *attention])

        self.entry = Conv3d(channels, width, (1, 7, 7), padding=(0, 3, 3))
        self.entry_attention = DepthAttention(width, *heads)
        self.down_blocks, self.downsample = nn.ModuleList(), nn.ModuleList()
        self.up_blocks, self.upsample = nn.ModuleList(), nn.ModuleList()
        for narrow, wide in pairwise(widths):
            self.down_blocks.append(level(narrow, wide))
            self.up_blocks.insert(0, level(2 * wide, narrow))
        for between in widths[1:-1]:
            self.downsample.append(Conv3d(between, between, (1, 4, 4), (1, 2, 2), (0, 1, 1)))
            self.upsample.insert(0, nn.ConvTranspose3d(between, between, (1, 4, 4), (1, 2, 2), (0, 1, 1)))
        coarsest = widths[-1]
        self.middle = nn.ModuleList(
            [
                ResidualBlock(coarsest, coarsest, 4 * width),
                SpatialAttention(coarsest, *heads),
                DepthAttention(coarsest, *heads),
                ResidualBlock(coarsest, coarsest, 4 * width),
            ]
        )
        self.last_block = ResidualBlock(2 * width, width)
        self.exit = Conv3d(width, channels, 1)
        channels_last(self)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The noise that the network sees.

        Args:
            x_t: float (B, channels, d, h, w), the noised latent; padded inside to what the halvings need.
            t: float (B,) in [0, 1], 1 is pure noise.

        Returns:
            float (B, channels, d, h, w).
        """
        h, w = x_t.shape[3:]
        x = functional.pad(x_t, (0, -w % self.multiple, 0, -h % self.multiple))
        x = x.contiguous(memory_format=torch.channels_last_3d)
        embedding, bias = self.time_embedding(t), self.distance_bias(x.shape[2])
        entered = x = self.entry_attention(self.entry(x), bias)
        skips = []
        for level, layers in enumerate(self.down_blocks):
            x = _apply(layers, x, embedding, bias)
            skips.append(x)
            if level < len(self.downsample):
                x = self.downsample[level](x)
        x = _apply(self.middle, x, embedding, bias)
        for level, layers in enumerate(self.up_blocks):
            x = _apply(layers, torch.cat((x, skips.pop()), dim=1), embedding, bias)
            if level < len(self.upsample):
                x = self.upsample[level](x)
        # The entry's features once more: they have the latent as it came.
        out: Tensor = self.exit(self.last_block(torch.cat((x, entered), dim=1)))
        return out[:, :, :, :h, :w]


def width_of(latent_shape: Sequence[int]) -> int:
    """The width for latents (d, h, w): the side of their plane (Khader et al. 2023), to a multiple of 8."""
    return _WIDTH_STEP * math.ceil(max(latent_shape[1:]) / _WIDTH_STEP)


def _apply(layers: nn.Module, x: Tensor, embedding: Tensor, bias: Tensor) -> Tensor:
    for layer in layers.children():
        if isinstance(layer, ResidualBlock):
            x = layer(x, embedding)
        else:
            x = layer(x, bias) if isinstance(layer, DepthAttention) else layer(x)
    return x


class ResidualBlock(nn.Module):
    """Two 1x3x3 convolutions, each normalised and activated after it, and a skip.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        embedding_dim: Length of the vector that scales and shifts the first, or None for none.
    """

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int | None = None) -> None:
        super().__init__()
        self.conv_1 = Conv3d(in_channels, out_channels, (1, 3, 3), padding=(0, 1, 1))
        self.norm_1 = group_norm(out_channels)
        self.conv_2 = Conv3d(out_channels, out_channels, (1, 3, 3), padding=(0, 1, 1))
        self.norm_2 = group_norm(out_channels)
        self.modulation = None if embedding_dim is None else nn.Linear(embedding_dim, 2 * out_channels)
        self.skip = nn.Identity() if in_channels == out_channels else Conv3d(in_channels, out_channels, 1)

    def forward(self, x: Tensor, embedding: Tensor | None = None) -> Tensor:
        """Maps (B, in_channels, d, h, w) to (B, out_channels, d, h, w); embedding is (B, embedding_dim)."""
        h = self.norm_1(self.conv_1(x))
        if self.modulation is not None:
            assert embedding is not None
            scale, shift = self.modulation(functional.silu(embedding))[:, :, None, None, None].chunk(2, dim=1)
            h = h * (1 + scale) + shift
        h = functional.silu(self.norm_2(self.conv_2(functional.silu(h))))
        return self.skip(x) + h


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
        self.register_buffer("frequencies", 1000 * torch.logspace(0, -4, half), persistent=False)
        self.perceptron = nn.Sequential(
            nn.Linear(2 * half, embedding_dim), nn.GELU(), nn.Linear(embedding_dim, embedding_dim)
        )

    def forward(self, t: Tensor) -> Tensor:
        """Maps times (B,) in [0, 1] to (B, embedding_dim)."""
        angles = t[:, None] * self.frequencies
        embedded: Tensor = self.perceptron(torch.cat((angles.sin(), angles.cos()), dim=1))
        return embedded


class DistanceBias(nn.Module):
    """What each head adds for the distance of two slices: one table, of all depth attentions.

    Distances are told apart one by one up to 8, more and more coarsely up to 32 (Raffel et al. 2020, T5).

    Args:
        num_heads: Attention heads.
    """

    def __init__(self, num_heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(num_heads, _NUM_DISTANCES))

    def forward(self, depth: int) -> Tensor:
        """Biases (heads, depth, depth), by slice that looks and slice that is seen."""
        index = torch.arange(depth, device=self.table.device)
        offset = index[:, None] - index
        one_way = _NUM_DISTANCES // 2
        exact = one_way // 2
        distance = offset.abs()
        share = (distance.clamp(min=exact) / exact).log() / math.log(_MAX_DISTANCE / exact)
        coarse = (exact + (share * (one_way - exact)).long()).clamp(max=one_way - 1)
        bucket = torch.where(distance < exact, distance, coarse)
        return self.table[:, bucket + one_way * (offset < 0)]


class _Attention(nn.Module):
    """Multi-head self-attention with a skip; subclasses say which cells see one another.

    Args:
        channels: Channels of the input.
        num_heads: Attention heads.
        head_dim: Channels of a head, even.
        bias: Whether the last layer has one.
    """

    def __init__(self, channels: int, num_heads: int, head_dim: int, *, bias: bool = False) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = CellNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, channels, bias=bias)

    def queries_keys_values(self, x: Tensor) -> Tensor:
        """Of (B, C, d, h, w), float (3, B, heads, d, h, w, head_dim)."""
        # Channels lie last in memory: linear layers, heads and all below are views of it, nothing is copied.
        qkv = self.to_qkv(self.norm(x).movedim(1, -1)).unflatten(-1, (3, self.num_heads, -1))
        return qkv.permute(4, 0, 5, 1, 2, 3, 6)

    def added(self, x: Tensor, seen: Tensor) -> Tensor:
        """x (B, C, d, h, w) with what its cells have seen, (B, heads, d, h, w, head_dim)."""
        return x + self.to_out(seen.permute(0, 2, 3, 4, 1, 5).flatten(4)).movedim(-1, 1)


class SpatialAttention(_Attention):
    """A cell sees the cells of its slice."""

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, d, h, w) to the same shape."""
        q, k, v = self.queries_keys_values(x)
        flat_q, flat_k, flat_v = (tensor.flatten(3, 4) for tensor in (q, k, v))
        return self.added(x, functional.scaled_dot_product_attention(flat_q, flat_k, flat_v).reshape(v.shape))


class LinearSpatialAttention(_Attention):
    """A cell sees the cells of its slice, at a cost linear in their number (Shen et al. 2021)."""

    def __init__(self, channels: int, num_heads: int, head_dim: int) -> None:
        super().__init__(channels, num_heads, head_dim, bias=True)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, d, h, w) to the same shape, through a head_dim x head_dim summary of each slice."""
        qkv = self.queries_keys_values(x)
        q, k, v = (tensor.flatten(3, 4) for tensor in qkv)
        q = q.softmax(-1) * v.shape[-1] ** -0.5
        summary = k.softmax(-2).transpose(-1, -2) @ v
        return self.added(x, (q @ summary).reshape(qkv.shape[1:]))


class DepthAttention(_Attention):
    """A cell sees the cells at its place in every slice, and where they lie."""

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """Maps (B, C, d, h, w) to the same shape; bias is (heads, d, d)."""
        qkv = self.queries_keys_values(x)
        # (B, h * w, heads, d, head_dim)
        q, k, v = (tensor.flatten(3, 4).permute(0, 3, 1, 2, 4) for tensor in qkv)
        seen = functional.scaled_dot_product_attention(turned(q), turned(k), v, attn_mask=bias.to(q.dtype))
        return self.added(x, seen.permute(0, 2, 3, 1, 4).reshape(qkv.shape[1:]))


def turned(x: Tensor) -> Tensor:
    """Rotary positions: pairs of channels turned by angles that grow with the position (Su et al. 2021).

    Args:
        x: float (..., positions, channels), an even number of channels.
    """
    positions, channels = x.shape[-2:]
    frequencies = 10_000 ** (-torch.arange(0, channels, 2, device=x.device) / channels)
    angles = torch.arange(positions, device=x.device)[:, None] * frequencies
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., ::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), dim=-1).flatten(-2)
