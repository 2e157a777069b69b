"""The velocity network of a level of the wavelet flow: a U-Net that treats a crop of a volume as the whole.

Blocks are a grouped 3 x 3 x 3 convolution and a gated pointwise layer (Xie et al. 2017, ResNeXt; Shazeer
2020, SwiGLU), which on a CPU learn faster than full convolutions. Features are normalised cell by cell:
statistics over a crop would not be those over the volume that is sampled.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatogen.config.settings import FlowNetworkSettings
from anatogen.models.blocks import CellNorm, channels_last
from anatogen.models.convolution import Conv3d
from anatogen.models.pyramid import Triple

# Channels of a group of the convolutions: with these, oneDNN is at its fastest for its work.
_GROUP_WIDTH = 16
_NUM_FREQUENCIES = 16
_HIGHEST_FREQUENCY = 50.0
_HEAD_DIM = 32


class FlowNetwork(nn.Module):
    """Predicts the velocity eps - x_0 of a noised level.

    Args:
        settings: Widths and depth.
        in_channels: Channels of the input: the noised values, then whatever they depend on.
        out_channels: Channels of the velocity.
        num_conditions: Numbers that tell of the whole volume.
        strides: Halvings between the U-Net's levels, one fewer than `settings.multipliers`.
    """

    frequencies: Tensor

    def __init__(
        self,
        settings: FlowNetworkSettings,
        in_channels: int,
        out_channels: int,
        num_conditions: int,
        strides: list[Triple],
    ) -> None:
        super().__init__()
        widths = [settings.width * factor for factor in settings.multipliers]
        dim = 4 * settings.width
        frequencies = torch.exp(torch.linspace(0, math.log(_HIGHEST_FREQUENCY), _NUM_FREQUENCIES))
        self.register_buffer("frequencies", frequencies * math.pi / 2, persistent=False)
        self.embedding = nn.Sequential(
            nn.Linear(2 * _NUM_FREQUENCIES + num_conditions, dim), nn.SiLU(), nn.Linear(dim, dim), nn.SiLU()
        )
        self.multiple = tuple(math.prod(axis) for axis in zip((1, 1, 1), *strides, strict=True))
        self.entry = Conv3d(in_channels, widths[0], 3, padding=1)
        self.down_blocks, self.up_blocks = nn.ModuleList(), nn.ModuleList()
        self.downsample, self.upsample = nn.ModuleList(), nn.ModuleList()
        current = widths[0]
        for level, width in enumerate(widths):
            blocks = nn.ModuleList()
            for _ in range(settings.num_blocks):
                blocks.append(_Block(current, width, dim))
                current = width
            self.down_blocks.append(blocks)
            if level < len(strides):
                self.downsample.append(Conv3d(width, width, strides[level], strides[level]))
        self.middle = nn.ModuleList()
        if strides:
            self.middle.extend(
                [_Block(current, current, dim), _Attention(current), _Block(current, current, dim)]
            )
            for level in reversed(range(len(widths))):
                width = widths[level]
                blocks = nn.ModuleList()
                for index in range(settings.num_blocks):
                    blocks.append(_Block(current + width if index == 0 else width, width, dim))
                    current = width
                self.up_blocks.append(blocks)
                if level > 0:
                    stride = strides[level - 1]
                    self.upsample.append(nn.ConvTranspose3d(width, width, stride, stride))
        self.exit = nn.Sequential(CellNorm(current), nn.SiLU(), Conv3d(current, out_channels, 3, padding=1))
        for parameter in self.exit[2].parameters():
            nn.init.zeros_(parameter)
        channels_last(self)

    def matrix_names(self) -> set[str]:
        """Names of the weights that Muon teaches: matrices from a cell's features to a cell's features."""
        others = {"embedding", "modulation", "entry", "upsample", "exit"}
        return {
            name
            for name, weight in self.named_parameters()
            if weight.ndim > 1 and others.isdisjoint(name.split("."))
        }

    def forward(self, x: Tensor, t: Tensor, conditions: Tensor) -> Tensor:
        """The velocity.

        Args:
            x: float (B, in_channels, d, h, w); padded inside to what the halvings need.
            t: float (B,) in [0, 1], 1 is pure noise.
            conditions: float (B, num_conditions).

        Returns:
            float (B, out_channels, d, h, w).
        """
        d, h, w = x.shape[2:]
        pads = [(-size) % multiple for size, multiple in zip((d, h, w), self.multiple, strict=True)]
        x = functional.pad(x, (0, pads[2], 0, pads[1], 0, pads[0]))
        x = x.contiguous(memory_format=torch.channels_last_3d)
        angles = t[:, None] * self.frequencies
        embedding = self.embedding(torch.cat((angles.sin(), angles.cos(), conditions), dim=1))
        x = self.entry(x)
        skips = []
        for level, blocks in enumerate(self.down_blocks):
            for block in blocks.children():
                x = block(x, embedding)
            skips.append(x)
            if level < len(self.downsample):
                x = self.downsample[level](x)
        for layer in self.middle:
            x = layer(x) if isinstance(layer, _Attention) else layer(x, embedding)
        for level, blocks in enumerate(self.up_blocks):
            x = torch.cat((x, skips.pop()), dim=1)
            for block in blocks.children():
                x = block(x, embedding)
            if level < len(self.upsample):
                x = self.upsample[level](x)
        out: Tensor = self.exit(x)
        return out[:, :, :d, :h, :w]


class _Block(nn.Module):
    """A grouped convolution scaled and shifted by the embedding, a gated pointwise layer, and a skip."""

    def __init__(self, in_channels: int, out_channels: int, embedding_dim: int) -> None:
        super().__init__()
        groups = in_channels // _GROUP_WIDTH if in_channels % _GROUP_WIDTH == 0 else 1
        self.norm_1 = CellNorm(in_channels)
        self.convolution = nn.Conv3d(in_channels, in_channels, 3, padding=1, groups=groups)
        self.norm_2 = CellNorm(in_channels)
        self.modulation = nn.Linear(embedding_dim, 2 * in_channels)
        self.expand = nn.Linear(in_channels, 2 * in_channels)
        self.project = nn.Linear(in_channels, out_channels, bias=False)
        self.skip = nn.Identity() if in_channels == out_channels else Conv3d(in_channels, out_channels, 1)
        # Each block starts as its skip.
        for parameter in (*self.modulation.parameters(), *self.project.parameters()):
            nn.init.zeros_(parameter)

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        scale, shift = self.modulation(embedding)[:, :, None, None, None].chunk(2, dim=1)
        h = self.norm_2(self.convolution(self.norm_1(x))) * (1 + scale) + shift
        value, gate = self.expand(h.movedim(1, -1)).chunk(2, dim=-1)
        return self.skip(x) + self.project(functional.silu(value) * gate).movedim(-1, 1)


class _Attention(nn.Module):
    """Self-attention of all cells, with normalised queries and keys (Henry et al. 2020), and a skip."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.num_heads = channels // _HEAD_DIM if channels % _HEAD_DIM == 0 else 1
        self.norm = CellNorm(channels)
        self.to_qkv = nn.Linear(channels, 3 * channels, bias=False)
        self.to_out = nn.Linear(channels, channels)
        nn.init.zeros_(self.to_out.weight)

    def forward(self, x: Tensor) -> Tensor:
        cells = self.norm(x).movedim(1, -1).flatten(1, 3)
        q, k, v = self.to_qkv(cells).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        q, k = (functional.rms_norm(part, part.shape[-1:]) for part in (q, k))
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.to_out(mixed).movedim(1, -1).reshape(x.shape)
