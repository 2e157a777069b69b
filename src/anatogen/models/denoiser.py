"""The denoiser: a 3D U-Net that predicts the noise of a noised latent at its time.

That of Khader et al. 2023, after Ho et al. 2022 ("Video diffusion models"): convolutions in the plane,
spatial and then depth attention, halving of the plane only.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatogen.config.settings import DenoiserSettings
from anatogen.models.blocks import ResidualBlock, TimeEmbedding, channels_last, group_norm
from anatogen.models.convolution import Conv3d

# Distances along the depth beyond this share one position bias.
_MAX_DEPTH_DISTANCE = 32


class Denoiser(nn.Module):
    """A U-Net from (B, channels, d, h, w) and times (B,) in [0, 1] to (B, channels, d, h, w).

    Args:
        settings: The architecture.
        channels: Channels of the latent.
    """

    def __init__(self, settings: DenoiserSettings, channels: int) -> None:
        super().__init__()
        widths = [settings.width * factor for factor in settings.multipliers]
        self.multiple = 2 ** (len(widths) - 1)
        embedding_dim = 4 * settings.width
        self.time_embedding = TimeEmbedding(settings.width, embedding_dim)
        heads = (settings.num_heads, settings.head_dim)

        def block(in_channels: int, out_channels: int) -> nn.Module:
            return ResidualBlock(in_channels, out_channels, (1, 3, 3), embedding_dim)

        def attend(width: int) -> list[nn.Module]:
            return [LinearSpatialAttention(width, *heads), DepthAttention(width, *heads)]

        self.entry = nn.Sequential(
            Conv3d(channels, widths[0], (1, 7, 7), padding=(0, 3, 3)), DepthAttention(widths[0], *heads)
        )
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
            self.down_blocks.append(nn.ModuleList(layers + attend(width)))
            if level < len(widths) - 1:
                self.downsample.append(Conv3d(width, width, (1, 4, 4), (1, 2, 2), (0, 1, 1)))
        self.middle = nn.ModuleList(
            [
                block(current, current),
                SpatialAttention(current, *heads),
                DepthAttention(current, *heads),
                block(current, current),
            ]
        )
        for level in reversed(range(len(widths))):
            width = widths[level]
            layers = []
            for index in range(settings.num_blocks):
                layers.append(block(current + (width if index == 0 else 0), width))
                current = width
            self.up_blocks.append(nn.ModuleList(layers + attend(width)))
            if level > 0:
                self.upsample.append(nn.ConvTranspose3d(width, width, (1, 4, 4), (1, 2, 2), (0, 1, 1)))
        last = Conv3d(current, channels, 1)
        # Starting from 0 lets the first steps learn the mean instead of undoing random output.
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.exit = nn.Sequential(group_norm(current), nn.SiLU(), last)
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
        out: Tensor = self.exit(x)
        return out[:, :, :, :h, :w]


def _apply(layers: nn.Module, x: Tensor, embedding: Tensor) -> Tensor:
    for layer in layers.children():
        x = layer(x, embedding) if isinstance(layer, ResidualBlock) else layer(x)
    return x


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
