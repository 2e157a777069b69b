"""Generator and critic of the WGAN-GP baseline, after Kwon et al. 2019, for grids of any shape.

Kwon, Han and Kim, "Generation of 3D brain MRI using auto-encoding generative adversarial networks", MICCAI
2019; their networks are for 64x64x64, and these are the same there but for the critic's last convolution,
which covers all that is left and gives one value a volume. Other grids keep the number of halvings: an odd
axis is padded on its way down and cropped on its way up, and an axis shorter than 16 is halved less often.
"""

import math
from collections.abc import Sequence
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

    An axis is halved, rounding up, until it would be one voxel long or was halved four times; thin axes are
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
    """Makes a volume of a noise vector: linear to the coarsest level, then four times nearest doubling and
    a 3x3x3 convolution, with batch normalisation and ReLU between, and tanh.

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
        self.convolutions = nn.ModuleList()
        for level, (before, after) in enumerate(pairwise(self._levels)):
            width, is_last = widths[level], level == len(widths) - 1
            next_width = 1 if is_last else widths[level + 1]
            # A batch norm that follows would take a bias away.
            self.convolutions.append(DoublingConv3d(width, next_width, _strides(after, before), bias=is_last))

    def forward(self, z: Tensor) -> Tensor:
        """Volumes float (B, 1, D, H, W) in [-1, 1] of standard normal noise, float (B, latent_dim)."""
        x = self.entry(z).unflatten(1, (-1, *self._levels[0]))
        for norm, convolution, shape in zip(self.norms, self.convolutions, self._levels[1:], strict=True):
            x = convolution(functional.relu(norm(x)))[:, :, : shape[0], : shape[1], : shape[2]]
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
            # An odd axis gets one voxel more, so that halving rounds up.
            more_d, more_h, more_w = (
                1 + (step == 2 and side % 2) for step, side in zip(stride, levels[level], strict=True)
            )
            layers: list[nn.Module] = [
                nn.ConstantPad3d((1, more_w, 1, more_h, 1, more_d), 0.0),
                _halving(width, next_width, stride),
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


class DoublingConv3d(nn.Module):
    """Nearest doubling along some axes, then a 3x3x3 convolution: the same up to rounding, but faster.

    Two of the three voxels under the kernel are copies of one. Adding their weights first leaves two taps an
    axis, other ones for even and for odd voxels: a 2x2x2 convolution at the coarse level gives all eight.

    Args:
        in_channels: Channels of the input.
        out_channels: Channels of the output.
        factors: 2 for each of (D, H, W) that is doubled, else 1.
        bias: Whether a bias is added.
    """

    def __init__(self, in_channels: int, out_channels: int, factors: Shape, bias: bool) -> None:
        super().__init__()
        convolution = nn.Conv3d(in_channels, out_channels, 3, bias=bias)
        self.weight, self.bias = convolution.weight, convolution.bias
        self._factors = factors

    def forward(self, x: Tensor) -> Tensor:
        """float (B, in_channels, D, H, W) gives (B, out_channels, ...) with the factors' sizes."""
        doubling = x.new_tensor([[[1, 0, 0], [0, 1, 1]], [[1, 1, 0], [0, 0, 1]]])  # phase, tap, kernel
        plain = torch.eye(3, dtype=x.dtype, device=x.device)[None]
        taps = [doubling if factor == 2 else plain for factor in self._factors]
        weight = torch.einsum("oizyx,adz,bey,cfx->abcoidef", self.weight, *taps)
        num_phases = math.prod(self._factors)
        bias = None if self.bias is None else self.bias.repeat(num_phases)
        x = functional.conv3d(x, weight.flatten(0, 3), bias, padding=1)
        x = x.unflatten(1, (*self._factors, -1))
        for axis, factor in enumerate(self._factors):
            if factor == 1:
                x = x.squeeze(1)
                continue
            dim = x.dim() - 4 + axis
            even, odd = x.unbind(1)
            size = even.shape[dim] - 1
            # Window i holds voxels i - 1 and i, which even voxel i is made of and odd voxel i - 1.
            x = torch.stack((even.narrow(dim, 0, size), odd.narrow(dim, 1, size)), dim + 1)
            x = x.flatten(dim, dim + 1)
        return x


class FewChannelHalvingConv3d(nn.Conv3d):
    """`nn.Conv3d` without padding whose kernel's sides are multiples of its stride; faster for few channels.

    Voxels of one stride become channels first, which is the same: libraries are slow with one channel.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Convolves float (B, in_channels, D, H, W), axes divisible by their strides."""
        return functional.conv3d(self._as_channels(x), self._as_channels(self.weight), self.bias)

    def _as_channels(self, x: Tensor) -> Tensor:
        d, h, w = self.stride
        x = x.unflatten(4, (-1, w)).unflatten(3, (-1, h)).unflatten(2, (-1, d))
        return x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)


def _halving(in_channels: int, out_channels: int, stride: Shape) -> nn.Conv3d:
    """A convolution 4 wide along axes of stride 2, 3 wide along those of stride 1."""
    d, h, w = (4 if step == 2 else 3 for step in stride)
    kind = FewChannelHalvingConv3d if in_channels == 1 else nn.Conv3d
    return kind(in_channels, out_channels, (d, h, w), stride)


def _strides(fine: Shape, coarse: Shape) -> Shape:
    d, h, w = (2 if after < before else 1 for before, after in zip(fine, coarse, strict=True))
    return d, h, w


@torch.no_grad()
def fit_running_statistics(generator: Generator, batches: Sequence[Tensor]) -> None:
    """Sets the running statistics of batch normalisation to the means over batches, and evaluation mode.

    For weights that were never run in training, such as a moving average (Wu and Johnson 2021, "Rethinking
    'Batch' in BatchNorm").

    Args:
        generator: Changed in place.
        batches: Noise, float (B, latent_dim) each, on the generator's device.
    """
    norms = [part for part in generator.modules() if isinstance(part, nn.BatchNorm3d)]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain mean over all batches
    generator.train()
    for z in batches:
        generator(z)
    generator.eval()
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
