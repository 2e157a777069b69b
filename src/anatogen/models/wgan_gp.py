"""Generator and critic of the WGAN-GP baseline, after Kwon et al. 2019, for grids of any shape.

Kwon, Han and Kim, "Generation of 3D brain MRI using auto-encoding generative adversarial networks", MICCAI
2019; their networks are for 64x64x64, and these are the same there but for the critic's last convolution,
which covers all that is left and gives one value a volume. Other grids keep the number of halvings: an odd
axis is padded on its way down and cropped on its way up, and an axis shorter than 16 is halved less often.
"""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatogen.config.settings import GANSettings
from anatogen.models.blocks import channels_last

Shape = tuple[int, int, int]

_NUM_HALVINGS = 4
_SLOPE = 0.2


def level_shapes(shape: Shape) -> list[Shape]:
    """Shapes of the five levels between which both networks double and halve, finest first.

    An axis is halved, rounding up, until it is one voxel long or was halved four times; thin axes are
    thick slices, so that their few halvings are those of the finest levels.

    Args:
        shape: (D, H, W) of the volumes.
    """
    num_halvings = [min(_NUM_HALVINGS, int(math.log2(side))) for side in shape]
    levels = []
    for level in range(_NUM_HALVINGS + 1):
        d, h, w = (
            math.ceil(side / 2 ** min(level, most)) for side, most in zip(shape, num_halvings, strict=True)
        )
        levels.append((d, h, w))
    return levels


class Generator(nn.Module):
    """Maps a noise vector to a volume: linear to the coarsest level, then four times nearest doubling and a
    3x3x3 convolution, with batch normalisation and ReLU between, and tanh.

    Args:
        settings: Width and length of the noise vector.
        shape: (D, H, W) of the volumes.
    """

    def __init__(self, settings: GANSettings, shape: Shape) -> None:
        super().__init__()
        self.latent_dim = settings.latent_dim
        self._levels = level_shapes(shape)[::-1]
        widths = [settings.width * factor for factor in (8, 4, 2, 1)]
        self.entry = nn.Linear(settings.latent_dim, widths[0] * math.prod(self._levels[0]))
        self.norms = nn.ModuleList(nn.BatchNorm3d(width) for width in widths)
        self._factors = [_strides(finer, coarser) for coarser, finer in pairwise(self._levels)]
        # A batch norm that follows would take a bias away: only the last convolution has one.
        self.convolutions = nn.ModuleList(
            nn.Conv3d(width, next_width, 3, padding=1, bias=next_width == 1)
            for width, next_width in pairwise([*widths, 1])
        )

    def forward(self, z: Tensor) -> Tensor:
        """Volumes float (B, 1, D, H, W) in [-1, 1] of standard normal noise, float (B, latent_dim)."""
        x = self.entry(z).unflatten(1, (-1, *self._levels[0]))
        stages = zip(self.norms, self._factors, self.convolutions, self._levels[1:], strict=True)
        for norm, factors, convolution, shape in stages:
            x = functional.interpolate(functional.relu(norm(x)), scale_factor=factors, mode="nearest")
            x = convolution(x)[:, :, : shape[0], : shape[1], : shape[2]]
        return torch.tanh(x)


class Critic(nn.Module):
    """Gives each volume a value: four halving 4x4x4 convolutions, then one over all that is left.

    Every volume is normalised by itself (over channels and voxels): the gradient penalty is on each
    volume's own gradient, which has no meaning where volumes of a batch act on one another.

    Args:
        settings: Width, and whether batch normalisation is wanted all the same (`kwon_compatible`).
        shape: (D, H, W) of the volumes.
    """

    def __init__(self, settings: GANSettings, shape: Shape) -> None:
        super().__init__()
        levels = level_shapes(shape)
        widths = [1, *(settings.width * factor for factor in (1, 2, 4, 8))]
        self.stages = nn.ModuleList()
        for level, (width, next_width) in enumerate(pairwise(widths)):
            stride = _strides(levels[level], levels[level + 1])
            d, h, w = (4 if step == 2 else 3 for step in stride)
            # An odd axis gets one voxel more, so that halving rounds up.
            more_d, more_h, more_w = (
                1 + (step == 2 and side % 2) for step, side in zip(stride, levels[level], strict=True)
            )
            layers: list[nn.Module] = [
                nn.ConstantPad3d((1, more_w, 1, more_h, 1, more_d), 0.0),
                nn.Conv3d(width, next_width, (d, h, w), stride),
            ]
            if level > 0:
                layers.append(
                    nn.BatchNorm3d(next_width) if settings.kwon_compatible else nn.GroupNorm(1, next_width)
                )
            self.stages.append(nn.Sequential(*layers, nn.LeakyReLU(_SLOPE)))
        self.head = nn.Conv3d(widths[-1], 1, levels[-1])
        channels_last(self)

    def forward(self, x: Tensor) -> Tensor:
        """Values float (B,), high for real, of volumes float (B, 1, D, H, W) in [-1, 1]."""
        for stage in self.stages:
            x = stage(x)
        out: Tensor = self.head(x).flatten()
        return out


def _strides(fine: Shape, coarse: Shape) -> Shape:
    """2 along the axes that are halved between two levels, else 1."""
    d, h, w = (2 if after < before else 1 for before, after in zip(fine, coarse, strict=True))
    return d, h, w
