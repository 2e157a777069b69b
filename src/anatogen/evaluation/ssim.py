"""SSIM and MS-SSIM of volumes, fast on a CPU; what diversity and reconstructions are measured with.

All volumes are float32 or float64 tensors (B, D, H, W).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from anatogen.io.geometry import triple
from anatogen.report.numbers import times

Triple = tuple[int, int, int]

WINDOW = 11
SIGMA = 1.5
# Importance of the scales, finest first (Wang, Simoncelli and Bovik 2003).
WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)
_MIN_WINDOW = 5
# SciPy's gaussian_filter, which the paper's code calls, ends its kernel at four standard deviations.
REFERENCE_RADIUS = 6


@dataclass(frozen=True)
class Scales:
    """Scales at which an MS-SSIM compares volumes.

    Attributes:
        shapes: (D, H, W) at each scale, finest first.
        window: Voxels per side of the Gaussian window, odd.
        sigma: Its standard deviation in voxels.
        weights: Exponent of each scale; they sum to 1.
    """

    shapes: tuple[Triple, ...]
    window: int
    sigma: float
    weights: tuple[float, ...]

    def __str__(self) -> str:
        sizes = ", ".join(times(shape) for shape in self.shapes)
        weights = ", ".join(f"{weight:.3f}" for weight in self.weights)
        noun = "scale" if len(self.shapes) == 1 else "scales"
        return (
            f"{len(self.shapes)} {noun} ({sizes}), window {self.window}, sigma {self.sigma:.2f}, "
            f"weights {weights}"
        )


def choose_scales(shape: Triple) -> Scales:
    """The scales of the standard MS-SSIM that fit a volume.

    - The window has 11 voxels a side and sigma 1.5. Where the shortest axis is shorter, it is the largest
      odd number that fits, with sigma in proportion.
    - An axis is halved as long as its half, rounded up, still holds the window.
    - There are as many scales as two of the three axes can be halved, at most five. So the few thick slices
      of an anisotropic grid don't limit the scales of the slice plane: 32 x 256 x 256 gives five scales, and
      32 becomes 16 and stays 16. A cube needs more than 160 voxels a side for five.
    - The weights of those that are left are divided by their sum.

    Args:
        shape: (D, H, W).

    Raises:
        ValueError: If an axis has fewer than 5 voxels.
    """
    if min(shape) < _MIN_WINDOW:
        raise ValueError(f"MS-SSIM needs at least {_MIN_WINDOW} voxels along every axis, got {shape}")
    window = min(WINDOW, min(shape) - 1 + min(shape) % 2)
    shapes = [shape]
    while len(shapes) < len(WEIGHTS):
        d, h, w = (math.ceil(size / 2) if math.ceil(size / 2) >= window else size for size in shapes[-1])
        if sum(new < old for new, old in zip((d, h, w), shapes[-1], strict=True)) < 2:
            break
        shapes.append((d, h, w))
    weights = WEIGHTS[: len(shapes)]
    return Scales(
        tuple(shapes), window, SIGMA * window / WINDOW, tuple(weight / sum(weights) for weight in weights)
    )


def ssim(
    x: Tensor,
    y: Tensor,
    data_range: float,
    window: int = WINDOW,
    sigma: float = SIGMA,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean structural similarity (Wang, Bovik, Sheikh and Simoncelli 2004, eq. 13), K = (0.01, 0.03).

    Only windows that lie inside the volume count, as in the authors' code.

    Args:
        x: (B, D, H, W), at least `window` voxels a side.
        y: Same shape.
        data_range: Largest possible value less the smallest; 2 for [-1, 1].
        window: Voxels per side of the Gaussian window, odd.
        sigma: Its standard deviation in voxels.
        mask: (D, H, W), bool or weights from 0 to 1: the mean is over windows by the mask at their centres.

    Returns:
        (B,), at most 1.

    Raises:
        ValueError: If shapes differ, the window doesn't fit, or the mask is 0 wherever it does.
    """
    _check(x, y, window)
    contrast, luminance = _maps(x, y, data_range, gaussian(window, sigma), reflect=False)
    return _mean(contrast.mul_(luminance), None if mask is None else inner(mask, window))


def ms_ssim(
    x: Tensor,
    y: Tensor,
    data_range: float,
    scales: Scales | None = None,
    mask: Tensor | None = None,
    least: float = 0.0,
) -> Tensor:
    """Multi-scale structural similarity (Wang, Simoncelli and Bovik 2003, eq. 7), in 3D.

    Contrast and structure count at every scale, luminance at the coarsest only. A coarser scale is the mean
    of 2 x 2 x 2 voxels, of fewer at the far end of an odd axis. A mean below 0 counts as 0, for it has no
    real power.

    Args:
        x: (B, D, H, W).
        y: Same shape.
        data_range: Largest possible value less the smallest; 2 for [-1, 1].
        scales: Default `choose_scales` of the shape.
        mask: (D, H, W), bool or weights from 0 to 1; averaged to coarser scales like the volumes.
        least: Means below it count as it. Above 0 for a loss, for the power of 0 has no gradient.

    Returns:
        (B,) in [0, 1].

    Raises:
        ValueError: If shapes differ, no scale fits, or the mask is 0 wherever windows fit.
    """
    scales = choose_scales(triple(x.shape[1:])) if scales is None else scales
    _check(x, y, scales.window)
    kernel = gaussian(scales.window, scales.sigma)
    weights = None if mask is None else mask.to(x.dtype)[None]
    result = x.new_ones(len(x))
    for level, (shape, power) in enumerate(zip(scales.shapes, scales.weights, strict=True)):
        if level:
            x, y = halved(x, shape), halved(y, shape)
            weights = None if weights is None else halved(weights, shape)
        contrast, luminance = _maps(x, y, data_range, kernel, reflect=False)
        if level == len(scales.shapes) - 1:
            contrast.mul_(luminance)
        seen = None if weights is None else inner(weights[0], scales.window)
        result = result * _mean(contrast, seen).clamp(min=least) ** power
    return result


def reference_compatible_ms_ssim(x: Tensor, y: Tensor) -> Tensor:
    """What the published code of Khader et al. 2023 calls MS-SSIM: for comparison with the paper's numbers.

    It differs from the standard: the last scale's SSIM stands inside the product over the other scales, and
    so counts to the fourth power; constants are those of a range of 1, though the data span 2; the Gaussian
    (sigma 1.5, cut at 4 sigma) runs over mirrored borders, so that all five scales always "fit"; and odd
    axes lose their last voxel when they are halved. It is taken over whole volumes, without a mask.

    Means below 0, which there give NaN, count as 0. A side below 16 voxels gives fewer than five scales;
    their weights are divided by their sum.

    Args:
        x: (B, D, H, W) in [-1, 1], at least 2 voxels a side.
        y: Same shape.

    Returns:
        (B,) in [0, 1].

    Raises:
        ValueError: If shapes differ or a side has less than 2 voxels.
    """
    _check(x, y, 2)
    num_scales = num_reference_scales(triple(x.shape[1:]))
    kernel = gaussian(2 * REFERENCE_RADIUS + 1, SIGMA)
    contrasts, similarity = [], x.new_ones(len(x))
    for level in range(num_scales):
        if level:
            x, y = (functional.avg_pool3d(volume[:, None], 2)[:, 0] for volume in (x, y))
        contrast, luminance = _maps(x, y, 1.0, kernel, reflect=True)
        contrasts.append(_mean(contrast, None).clamp(min=0))
        similarity = _mean(contrast.mul_(luminance), None).clamp(min=0)
    # The five weights sum to 0.9999, and the published code leaves them so.
    total = 1.0 if num_scales == len(WEIGHTS) else sum(WEIGHTS[:num_scales])
    last = similarity ** (WEIGHTS[num_scales - 1] / total)
    result = torch.ones_like(last)
    for contrast, weight in zip(contrasts[:-1], WEIGHTS, strict=False):
        result = result * contrast ** (weight / total) * last
    return result


def num_reference_scales(shape: Triple) -> int:
    """Scales of `reference_compatible_ms_ssim`: five, or as often as the shortest axis can be halved."""
    return min(len(WEIGHTS), min(shape).bit_length())


def gaussian(window: int, sigma: float) -> list[float]:
    """The window along one axis; sums to 1."""
    values = [math.exp(-((index - (window - 1) / 2) ** 2) / (2 * sigma**2)) for index in range(window)]
    return [value / sum(values) for value in values]


def _maps(
    x: Tensor, y: Tensor, data_range: float, kernel: list[float], reflect: bool
) -> tuple[Tensor, Tensor]:
    """Contrast times structure, and luminance, of every window."""
    c_1, c_2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    # Both variances occur as their sum only, so four moments do for the usual five.
    mean_x, mean_y, mean_xy = (_smooth(volume, kernel, reflect) for volume in (x, y, x * y))
    mean_squares = _smooth((x * x).addcmul_(y, y), kernel, reflect)
    product = mean_x * mean_y
    # Not in place: the gradient of the product needs the means.
    squares = mean_x.square().addcmul_(mean_y, mean_y)
    contrast = (mean_xy.sub_(product).mul_(2).add_(c_2)).div_(mean_squares.sub_(squares).add_(c_2))
    return contrast, product.mul_(2).add_(c_1).div_(squares.add_(c_1))


def _smooth(x: Tensor, kernel: list[float], reflect: bool) -> Tensor:
    """Separable convolution: sums of shifted volumes, faster than convolutions of one channel are."""
    for axis in (1, 2, 3):
        x = smooth_along(x, axis, kernel, reflect)
    return x


def smooth_along(x: Tensor, axis: int, kernel: list[float], reflect: bool) -> Tensor:
    """Sums of neighbours along an axis, weighted by the kernel.

    Args:
        x: Any shape.
        axis: Which.
        kernel: Of odd length.
        reflect: Whether the axis is mirrored at its ends; else there are sums where the kernel fits only.
    """
    if reflect:
        x = x.index_select(axis, _mirrored(x.shape[axis], len(kernel) // 2).to(x.device))
    size = x.shape[axis] - len(kernel) + 1
    total = x.narrow(axis, 0, size) * kernel[0]
    for shift in range(1, len(kernel)):
        total.add_(x.narrow(axis, shift, size), alpha=kernel[shift])
    return total


def _mirrored(size: int, radius: int) -> Tensor:
    """Indices -radius to size + radius - 1, mirrored at the borders: c b a | a b c | c b a."""
    index = torch.arange(-radius, size + radius) % (2 * size)
    return torch.minimum(index, 2 * size - 1 - index)


def halved(x: Tensor, shape: Triple) -> Tensor:
    """Means of neighbouring voxels along the axes that are shorter in `shape`."""
    factors = [2 if old > new else 1 for old, new in zip(triple(x.shape[1:]), shape, strict=True)]
    return functional.avg_pool3d(x[:, None], factors, ceil_mode=True)[:, 0]


def inner(mask: Tensor, window: int) -> Tensor:
    """A mask (D, H, W) at the centres of the windows that fit."""
    d, h, w = (slice(window // 2, size - window // 2) for size in mask.shape)
    return mask[d, h, w]


def _mean(values: Tensor, mask: Tensor | None) -> Tensor:
    flat = values.flatten(1)
    if mask is None:
        return flat.mean(1)
    weights = mask.to(values.dtype).flatten()
    total = weights.sum()
    if total == 0:
        raise ValueError("the mask is empty wherever windows fit: use a larger mask, or none")
    return flat @ weights / total


def _check(x: Tensor, y: Tensor, window: int) -> None:
    if x.shape != y.shape or x.ndim != 4:
        raise ValueError(
            f"volumes must have one shape (B, D, H, W), got {tuple(x.shape)} and {tuple(y.shape)}"
        )
    if min(x.shape[1:]) < window:
        raise ValueError(f"a window of {window} voxels does not fit into {tuple(x.shape[1:])}")
