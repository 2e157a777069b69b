"""The denoiser: a 3D U-Net that predicts the clean latent, or the noise, of a noised one at its time.

`factorised` is the paper's (Khader et al. 2023, after Ho et al. 2022): convolutions in the plane, spatial
and then depth attention, halving of the plane only. `volumetric` convolves in 3D and halves whatever axes
are finest, so that isotropic grids are treated alike along all axes and thick slices plane first.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatogen.config.settings import DenoiserSettings
from anatogen.models.blocks import ResidualBlock, TimeEmbedding, channels_last, group_norm
from anatogen.models.convolution import Conv3d

Triple = tuple[int, int, int]

# Axes whose spacing is within this factor of the finest are halved together.
_ISOTROPIC = 1.5
# Distances along the depth beyond this share one position bias.
_MAX_DEPTH_DISTANCE = 32


class Denoiser(nn.Module):
    """A U-Net from (B, channels, d, h, w) and times (B,) in [0, 1] to (B, channels, d, h, w).

    Args:
        settings: The architecture.
        channels: Channels of the latent.
        shape: (d, h, w) of the latents, decides the halvings.
        spacing_mm: Millimetres per latent cell along (d, h, w), decides the halvings.
    """

    def __init__(
        self,
        settings: DenoiserSettings,
        channels: int,
        shape: tuple[int, ...],
        spacing_mm: tuple[float, ...],
    ) -> None:
        super().__init__()
        factorised = settings.kind == "factorised"
        widths = [settings.width * factor for factor in settings.multipliers]
        self.patch = settings.patch
        cells = [math.ceil(size / settings.patch) for size in shape]
        strides = (
            [(1, 2, 2)] * (len(widths) - 1)
            if factorised
            else halving_strides(cells, spacing_mm, len(widths) - 1)
        )
        self.multiple = tuple(
            settings.patch * math.prod(axis) for axis in zip((1, 1, 1), *strides, strict=True)
        )
        embedding_dim = 4 * settings.width
        self.time_embedding = TimeEmbedding(settings.width, embedding_dim)
        kernel = (1, 3, 3) if factorised else (3, 3, 3)
        heads = (settings.num_heads, settings.head_dim)

        def block(in_channels: int, out_channels: int) -> nn.Module:
            return ResidualBlock(in_channels, out_channels, kernel, embedding_dim)

        def attend(width: int, coarsest: bool) -> list[nn.Module]:
            if factorised:
                spatial = (
                    SpatialAttention(width, *heads) if coarsest else LinearSpatialAttention(width, *heads)
                )
                return [spatial, DepthAttention(width, *heads)]
            return [VolumeAttention(width, *heads)] if coarsest else []

        patched = channels * settings.patch**3
        entry: nn.Module = Conv3d(patched, widths[0], 3, padding=1)
        if factorised:
            entry = nn.Sequential(
                Conv3d(patched, widths[0], (1, 7, 7), padding=(0, 3, 3)), DepthAttention(widths[0], *heads)
            )
        self.entry = entry
        self.down_blocks = nn.ModuleList()
        self.downsample = nn.ModuleList()
        self.up_blocks = nn.ModuleList()
        self.upsample = nn.ModuleList()
        current = widths[0]
        for level, width in enumerate(widths):
            layers: list[nn.Module] = []
            for _ in range(settings.num_blocks):
                layers.append(block(current, width))
                current = width
            # The factorised U-Net attends at every level, the volumetric one in the middle only.
            self.down_blocks.append(nn.ModuleList(layers + attend(width, False)))
            if level < len(strides):
                kernel_size, padding = _resampling(strides[level])
                self.downsample.append(Conv3d(width, width, kernel_size, strides[level], padding))
        self.middle = nn.ModuleList(
            [block(current, current), *attend(current, True), block(current, current)]
        )
        for level in reversed(range(len(widths))):
            width = widths[level]
            layers = []
            for index in range(settings.num_blocks):
                layers.append(block(current + (width if index == 0 else 0), width))
                current = width
            self.up_blocks.append(nn.ModuleList(layers + attend(width, False)))
            if level > 0:
                stride = strides[level - 1]
                kernel_size, padding = _resampling(stride)
                self.upsample.append(nn.ConvTranspose3d(width, width, kernel_size, stride, padding))
        last = Conv3d(current, patched, 1) if factorised else Conv3d(current, patched, 3, padding=1)
        # Starting from 0 lets the first steps learn the mean instead of undoing random output.
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.exit = nn.Sequential(group_norm(current), nn.SiLU(), last)
        channels_last(self)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        """The network's prediction, of whatever kind it was trained for.

        Args:
            x_t: float (B, channels, d, h, w), the noised latent; padded inside to what the halvings need.
            t: float (B,) in [0, 1], 1 is pure noise.

        Returns:
            float (B, channels, d, h, w).
        """
        shape = x_t.shape[2:]
        pads = [(-size) % multiple for size, multiple in zip(shape, self.multiple, strict=True)]
        x = functional.pad(x_t, (0, pads[2], 0, pads[1], 0, pads[0]))
        x = _gather(x, self.patch).contiguous(memory_format=torch.channels_last_3d)
        embedding = self.time_embedding(t)
        x = self.entry(x)
        skips = []
        for level, layers in enumerate(self.down_blocks):
            x = _apply(layers, x, embedding)
            skips.append(x)
            if level < len(self.downsample):
                x = self.downsample[level](x)
        x = _apply(self.middle, x, embedding)
        for level, layers in enumerate(self.up_blocks):
            x = _apply(layers, torch.cat((x, skips.pop()), dim=1), embedding)
            if level < len(self.upsample):
                x = self.upsample[level](x)
        x = _scatter(self.exit(x), self.patch)
        return x[:, :, : shape[0], : shape[1], : shape[2]]


def halving_strides(shape: Sequence[int], spacing_mm: Sequence[float], number: int) -> list[Triple]:
    """Strides of successive halvings that bring a grid towards isotropic cells.

    Args:
        shape: (d, h, w) in cells; an axis is not halved below 2 cells.
        spacing_mm: Millimetres per cell along (d, h, w).
        number: Number of halvings.

    Returns:
        `number` strides of 1s and 2s; (1, 1, 1) where nothing is left to halve.
    """
    sizes, spacing = list(shape), list(spacing_mm)
    strides = []
    for _ in range(number):
        divisible = [axis for axis in range(3) if sizes[axis] >= 4]
        finest = min((spacing[axis] for axis in divisible), default=0.0)
        stride = [2 if axis in divisible and spacing[axis] < _ISOTROPIC * finest else 1 for axis in range(3)]
        sizes = [math.ceil(size / step) for size, step in zip(sizes, stride, strict=True)]
        spacing = [length * step for length, step in zip(spacing, stride, strict=True)]
        strides.append((stride[0], stride[1], stride[2]))
    return strides


def _resampling(stride: Triple) -> tuple[Triple, Triple]:
    """Kernel and padding of a (transposed) convolution of the stride."""
    d, h, w = stride
    return (3 * d - 2, 3 * h - 2, 3 * w - 2), (d - 1, h - 1, w - 1)


def _apply(layers: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
    for layer in layers.children():
        x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
    return x


def _gather(x: Tensor, patch: int) -> Tensor:
    """Space to depth: (B, C, d, h, w) to (B, C * patch**3, d / patch, h / patch, w / patch)."""
    if patch == 1:
        return x
    b, c, d, h, w = x.shape
    x = x.reshape(b, c, d // patch, patch, h // patch, patch, w // patch, patch)
    return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def _scatter(x: Tensor, patch: int) -> Tensor:
    """Undoes `_gather`."""
    if patch == 1:
        return x
    b, c, d, h, w = x.shape
    x = x.reshape(b, c // patch**3, patch, patch, patch, d, h, w)
    return x.permute(0, 1, 5, 2, 6, 3, 7, 4).reshape(b, -1, d * patch, h * patch, w * patch)


class _Attention(nn.Module):
    """Multi-head self-attention with a skip; subclasses say which cells see one another."""

    def __init__(self, channels: int, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = group_norm(channels)
        self.to_qkv = nn.Linear(channels, 3 * num_heads * head_dim, bias=False)
        self.to_out = nn.Linear(num_heads * head_dim, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, d, h, w) to the same shape."""
        # Channels lie last in memory: linear layers, heads and all below are views of it, nothing is copied.
        qkv = self.to_qkv(self.norm(x).movedim(1, -1)).unflatten(-1, (3, self.num_heads, -1))
        # (3, B, heads, d, h, w, head_dim)
        q, k, v = qkv.permute(4, 0, 5, 1, 2, 3, 6)
        out = self.mix(q, k, v).permute(0, 2, 3, 4, 1, 5).flatten(4)
        return x + self.to_out(out).movedim(-1, 1)

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends within groups; all tensors are (B, heads, d, h, w, head_dim)."""
        raise TypeError(f"{type(self).__name__} must define mix")


class VolumeAttention(_Attention):
    """Every cell sees every cell."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends over all d * h * w cells."""
        flat_q, flat_k, flat_v = (tensor.flatten(2, 4) for tensor in (q, k, v))
        return functional.scaled_dot_product_attention(flat_q, flat_k, flat_v).reshape(v.shape)


class SpatialAttention(_Attention):
    """A cell sees the cells of its slice."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends over h * w cells of each slice."""
        flat_q, flat_k, flat_v = (tensor.flatten(3, 4) for tensor in (q, k, v))
        return functional.scaled_dot_product_attention(flat_q, flat_k, flat_v).reshape(v.shape)


class LinearSpatialAttention(_Attention):
    """A cell sees the cells of its slice, at a cost linear in their number (Shen et al. 2021)."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends over h * w cells of each slice through a head_dim x head_dim summary."""
        shape = v.shape
        q, k, v = (tensor.flatten(3, 4) for tensor in (q, k, v))
        q = q.softmax(-1) * shape[-1] ** -0.5
        summary = k.softmax(-2).transpose(-1, -2) @ v
        return (q @ summary).reshape(shape)


class DepthAttention(_Attention):
    """A cell sees the cells at its place in every slice; a learned bias tells how far apart they are."""

    def __init__(self, channels: int, num_heads: int, head_dim: int) -> None:
        super().__init__(channels, num_heads, head_dim)
        self.bias = nn.Parameter(torch.zeros(num_heads, 2 * _MAX_DEPTH_DISTANCE + 1))

    def mix(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attends over the d cells of each column."""
        depth = q.shape[2]
        index = torch.arange(depth, device=q.device)
        distance = (index[:, None] - index).clamp(-_MAX_DEPTH_DISTANCE, _MAX_DEPTH_DISTANCE)
        bias = self.bias[:, distance + _MAX_DEPTH_DISTANCE]
        # (B, h * w, heads, d, head_dim)
        columns = [tensor.flatten(3, 4).permute(0, 3, 1, 2, 4) for tensor in (q, k, v)]
        out = functional.scaled_dot_product_attention(
            columns[0], columns[1], columns[2], attn_mask=bias.to(q.dtype)
        )
        return out.permute(0, 2, 3, 1, 4).reshape(v.shape)
