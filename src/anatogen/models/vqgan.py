"""The autoencoder: a 3D VQ-GAN's encoder, codebook and decoder.

That of Khader et al. 2023, after Esser et al. 2021: strided 4x4x4 convolutions from full resolution.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatogen.config.settings import AutoencoderSettings
from anatogen.models.blocks import channels_last, group_norm
from anatogen.models.codebook import Codebook
from anatogen.models.convolution import Conv3d

Axes = tuple[int, ...]
Triple = tuple[int, int, int]

_NUM_GROUPS = 32


class VQGAN(nn.Module):
    """Volumes (B, 1, D, H, W) in [-1, 1] to latents (B, C, D/cd, H/ch, W/cw) and back.

    Args:
        settings: The architecture.
    """

    def __init__(self, settings: AutoencoderSettings) -> None:
        super().__init__()
        halvings = _halvings(settings.compression)
        self.compression = settings.compression
        widths = [settings.base_width * 2**level for level in range(len(halvings) + 1)]

        encoder: list[nn.Module] = [_convolution(1, widths[0])]
        for axes, (wide, wider) in zip(halvings, pairwise(widths), strict=True):
            encoder.append(_halving(wide, wider, axes))
            encoder += [ResidualBlock(wider) for _ in range(settings.num_blocks)]
        current = widths[-1]
        encoder += [group_norm(current, _NUM_GROUPS), nn.SiLU(), Conv3d(current, settings.code_dim, 1)]
        self.encoder = nn.Sequential(*encoder)
        self.codebook = Codebook(settings.num_codes, settings.code_dim)
        decoder: list[nn.Module] = [Conv3d(settings.code_dim, current, 1)]
        decoder += [group_norm(current, _NUM_GROUPS), nn.SiLU()]
        for level, axes in reversed(list(enumerate(halvings))):
            width = min(settings.decoder_width * 2**level, widths[-1])
            decoder.append(_doubling(current, width, axes))
            decoder += [ResidualBlock(width) for _ in range(settings.num_decoder_blocks)]
            current = width
        self.decoder = nn.Sequential(*decoder, _convolution(current, 1))
        channels_last(self)

    def encode(self, x: Tensor) -> Tensor:
        """The latent before quantisation.

        Args:
            x: float (B, 1, D, H, W) in [-1, 1], any size; padded at the far ends with -1, the background,
                to multiples of the compression.

        Returns:
            float (B, C, ceil(D/cd), ceil(H/ch), ceil(W/cw)).
        """
        pads = [(-size) % factor for size, factor in zip(x.shape[2:], self.compression, strict=True)]
        x = functional.pad(x, (0, pads[2], 0, pads[1], 0, pads[0]), value=-1.0)
        z: Tensor = self.encoder(x.contiguous(memory_format=torch.channels_last_3d))
        return z

    def decode(self, z: Tensor, shape: tuple[int, ...] | torch.Size) -> Tensor:
        """The volume of a quantised latent.

        Args:
            z: float (B, C, d, h, w).
            shape: (D, H, W) of the volume, at most the latent's times the compression.

        Returns:
            float (B, 1, D, H, W), about [-1, 1], not clipped.
        """
        x: Tensor = self.decoder(z.contiguous(memory_format=torch.channels_last_3d))
        return x[:, :, : shape[0], : shape[1], : shape[2]]

    @torch.inference_mode()
    def reconstruct(self, x: Tensor) -> Tensor:
        """Volumes as they come back: float32 (B, 1, D, H, W) in [-1, 1] on the CPU; x alike, anywhere."""
        z = self.encode(x.to(next(self.parameters()).device))
        return self.decode(self.codebook.quantise(z), x.shape[2:]).float().clamp(-1, 1).cpu()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Reconstructs volumes.

        Args:
            x: float (B, 1, D, H, W) in [-1, 1].

        Returns:
            The reconstruction (B, 1, D, H, W); the latent before quantisation (B, C, d, h, w); the chosen
            codes, int64 (B, d, h, w).
        """
        z = self.encode(x)
        quantised, indices = self.codebook(z)
        return self.decode(quantised, x.shape[2:]), z, indices


def latent_shape(volume_shape: Triple | torch.Size, compression: Triple) -> tuple[int, ...]:
    """(d, h, w) of the latent of a (D, H, W) volume."""
    return tuple(-(-size // factor) for size, factor in zip(volume_shape, compression, strict=True))


def _halvings(compression: Triple) -> list[Axes]:
    """The tensor axes that each halving takes, from the finest: (4, 4, 2) gives [(2, 3, 4), (2, 3)]."""
    levels = max(compression).bit_length() - 1
    return [
        tuple(axis + 2 for axis, factor in enumerate(compression) if factor >= 2 ** (level + 1))
        for level in range(levels)
    ]


def _resampling(axes: Axes) -> tuple[Triple, Triple]:
    """Kernel and stride of a (transposed) convolution that halves (doubles) the axes."""
    d, h, w = (2 if axis in axes else 1 for axis in (2, 3, 4))
    return (d + 2, h + 2, w + 2), (d, h, w)


# Border voxels stand for what is beyond them, as in the origin; zeros would be mid-grey.
def _convolution(in_channels: int, out_channels: int) -> nn.Module:
    return nn.Sequential(nn.ReplicationPad3d(1), Conv3d(in_channels, out_channels, 3))


def _halving(in_channels: int, out_channels: int, axes: Axes) -> nn.Module:
    return nn.Sequential(nn.ReplicationPad3d(1), Conv3d(in_channels, out_channels, *_resampling(axes)))


def _doubling(in_channels: int, out_channels: int, axes: Axes) -> nn.Module:
    kernel, stride = _resampling(axes)
    # What the voxels around the volume give is cut away again.
    cut = (kernel[0] - 1, kernel[1] - 1, kernel[2] - 1)
    return nn.Sequential(
        nn.ReplicationPad3d(1), nn.ConvTranspose3d(in_channels, out_channels, kernel, stride, cut)
    )


class ResidualBlock(nn.Module):
    """Two 3x3x3 convolutions, each normalised and activated before it, and a skip.

    Args:
        channels: Of input and output.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for _ in range(2):
            layers += [group_norm(channels, _NUM_GROUPS), nn.SiLU(), _convolution(channels, channels)]
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        """Maps (B, C, D, H, W) to the same shape."""
        out: Tensor = x + self.layers(x)
        return out
