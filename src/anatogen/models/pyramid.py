"""The wavelet pyramid: a scan as a coarse image and the details of finer levels, its background exact.

A scan comes with its foreground as a second channel. Where there is background the image is continued
smoothly, so that no channel but that one holds the edge between them; putting the background back is exact.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from anatogen.config.settings import MOST_LEVELS, PyramidSettings
from anatogen.models.blocks import haar, inverse_haar

Triple = tuple[int, int, int]

BACKGROUND = -1.0
# The coarse image is learned as a whole, and its coarsest cells attend to one another.
MAX_COARSE_CELLS = 2_048
# Axes whose spacing is within this factor of the finest are halved together.
_ISOTROPIC = 1.5


class WaveletPyramid:
    """Levels of a grid, each with half the cells of the one below along the axes that are halved.

    Level 0 are the voxels, padded to what the halvings need; the last level is the coarse one.

    Args:
        shape: (D, H, W) in voxels.
        spacing_mm: Distance between voxels along (D, H, W); thick slices are halved in their plane first.
        num_levels: Number of halvings.

    Attributes:
        num_levels: Number of halvings.
        shapes: (d, h, w) in cells of each level, `num_levels + 1` of them.
        axes: Tensor axes that are halved from each level to the next.
    """

    def __init__(self, shape: Sequence[int], spacing_mm: Sequence[float], num_levels: int) -> None:
        strides = halving_strides(shape, spacing_mm, num_levels)
        self.num_levels = num_levels
        self.axes = tuple(tuple(2 + axis for axis in range(3) if stride[axis] == 2) for stride in strides)
        total = [math.prod(steps) for steps in zip((1, 1, 1), *strides, strict=True)]
        self._shape = (shape[0], shape[1], shape[2])
        cells = [math.ceil(size / step) * step for size, step in zip(shape, total, strict=True)]
        shapes = [cells]
        for stride in strides:
            cells = [size // step for size, step in zip(cells, stride, strict=True)]
            shapes.append(cells)
        self.shapes: tuple[Triple, ...] = tuple((d, h, w) for d, h, w in shapes)

    @property
    def num_halvings(self) -> int:
        """Levels from which something is halved: fewer than `num_levels` where the grid is too small."""
        return sum(bool(axes) for axes in self.axes)

    def num_bands(self, level: int) -> int:
        """Detail bands of a channel that bring level + 1 to this level."""
        return int(2 ** len(self.axes[level])) - 1

    def stride(self, level: int) -> Triple:
        """Voxels of a cell of this level along (D, H, W)."""
        d, h, w = (full // size for full, size in zip(self.shapes[0], self.shapes[level], strict=True))
        return d, h, w

    def pad(self, x: Tensor) -> Tensor:
        """Volumes (B, C, D, H, W) on level 0, which go on as they end: an edge would outdo all details."""
        d, h, w = (large - size for large, size in zip(self.shapes[0], x.shape[2:], strict=True))
        return functional.pad(x, (0, w, 0, h, 0, d), mode="replicate")

    def crop(self, x: Tensor) -> Tensor:
        """Undoes `pad`."""
        d, h, w = self._shape
        return x[:, :, :d, :h, :w]

    def analyse(self, x: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        """Means over cells, and what they lack.

        Args:
            x: float (B, C, D, H, W) on level 0.

        Returns:
            The volumes at levels 0 to `num_levels`, (B, C, d, h, w); and the bands that bring level k + 1 to
            level k, (B, num_bands(k) * C, ...) on the cells of level k + 1, of unit norm for unit noise.
        """
        images, bands = [x], []
        for axes in self.axes:
            both = haar(images[-1], axes)
            low, high = both[:, : x.shape[1]], both[:, x.shape[1] :]
            images.append(low / _gain(axes))
            bands.append(high)
        return images, bands

    def refine(self, level: int, image: Tensor, bands: Tensor) -> Tensor:
        """The volume at a level, of that at level + 1, (B, C, d, h, w), and its bands."""
        axes = self.axes[level]
        return inverse_haar(torch.cat((image * _gain(axes), bands), dim=1), axes)


def build_pyramid(
    settings: PyramidSettings, shape: Sequence[int], spacing_mm: Sequence[float]
) -> WaveletPyramid:
    """The pyramid of a grid, with as many levels as the settings say or, if they don't, as fit it.

    Args:
        settings: How many halvings, if that is settled.
        shape: (D, H, W) in voxels.
        spacing_mm: Distance between voxels along (D, H, W).
    """
    if settings.num_levels is not None:
        return WaveletPyramid(shape, spacing_mm, settings.num_levels)
    most = max(WaveletPyramid(shape, spacing_mm, MOST_LEVELS).num_halvings, 1)
    for number in range(1, most + 1):
        pyramid = WaveletPyramid(shape, spacing_mm, number)
        if math.prod(pyramid.shapes[-1]) <= MAX_COARSE_CELLS:
            break
    return pyramid


def foreground(x: Tensor) -> Tensor:
    """Where scans are no background: voxels of -1 that fill some block of 2 x 2 x 2 such voxels.

    Single voxels of -1 inside of tissue, such as clipping leaves, are foreground.

    Args:
        x: float (B, 1, D, H, W) in [-1, 1].

    Returns:
        float (B, 1, D, H, W) of 0 and 1.
    """
    empty = functional.pad((x == BACKGROUND).to(torch.uint8), (1,) * 6, mode="replicate")
    # A morphological opening: what an erosion leaves, dilated again; axis by axis, for the block is a box.
    for axis in (2, 3, 4):
        empty = _both(empty, axis, torch.minimum)
    empty = functional.pad(empty, (1,) * 6)
    for axis in (2, 3, 4):
        empty = _both(empty, axis, torch.maximum)
    return (1 - empty[:, :, 1:-1, 1:-1, 1:-1]).to(x.dtype)


def continued(x: Tensor, mask: Tensor) -> Tensor:
    """Images whose background takes the mean of the foreground around it, coarser the further away it is.

    Burt 1988, "Moment images, polynomial fit filters, and the problem of surface interpolation" (push-pull).

    Args:
        x: float (B, 1, D, H, W).
        mask: float (B, 1, D, H, W) in [0, 1], how much of a voxel is foreground; x holds where it is above 0.

    Returns:
        float (B, 1, D, H, W), x where the mask is above 0; 0 everywhere in a scan without foreground.
    """
    if max(x.shape[2:]) == 1:
        return torch.where(mask > 0, x, 0)
    kernel = [min(size, 2) for size in x.shape[2:]]
    padding = [0 if size == 1 else size % 2 for size in x.shape[2:]]
    pads = (0, padding[2], 0, padding[1], 0, padding[0])
    share = functional.avg_pool3d(functional.pad(mask, pads), kernel)
    mean = functional.avg_pool3d(functional.pad(x * mask, pads), kernel) / share.clamp(
        min=torch.finfo(x.dtype).tiny
    )
    around = continued(torch.where(share > 0, mean, 0), share)
    for axis, step in enumerate(kernel):
        around = around.repeat_interleave(step, dim=axis + 2)
    d, h, w = x.shape[2:]
    return torch.where(mask > 0, x, around[:, :, :d, :h, :w])


def with_foreground(x: Tensor) -> Tensor:
    """Scans as two channels, the continued image, and +1 in the foreground, -1 in the background.

    Args:
        x: float (B, 1, D, H, W) in [-1, 1].

    Returns:
        float (B, 2, D, H, W).
    """
    mask = foreground(x)
    return torch.cat((continued(x, mask), 2 * mask - 1), dim=1)


def without_foreground(x: Tensor) -> Tensor:
    """Undoes `with_foreground` of (B, 2, D, H, W): the background is exactly -1 again."""
    image, mask = x.chunk(2, dim=1)
    return torch.where(mask > 0, image.clamp(-1, 1), BACKGROUND)


def _both(x: Tensor, axis: int, join: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Each value of an axis joined with the next: one fewer."""
    number = x.shape[axis] - 1
    return join(x.narrow(axis, 0, number), x.narrow(axis, 1, number))


def _gain(axes: Sequence[int]) -> float:
    """What a constant grows by in the orthonormal low-pass band."""
    return float(2 ** (len(axes) / 2))


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
