"""MS-SSIM of many pairs out of one set: what depends on one scan alone is computed once, not for each pair.

Values are those of `ms_ssim` and `reference_compatible_ms_ssim` but for rounding. Of the four moments of a
pair one is its own; and a window's sums along an axis are one product with a matrix, as long as axes are
short.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from anatogen.evaluation.ssim import (
    REFERENCE_RADIUS,
    SIGMA,
    WEIGHTS,
    Scales,
    Triple,
    gaussian,
    halved,
    inner,
    num_reference_scales,
    smooth_along,
)

# The work of a product grows with the axis, that of sums of shifted volumes doesn't.
_LONGEST_BY_MATRIX = 128
_BYTES_A_VOXEL = 4


class Moments(NamedTuple):
    """A scan at one scale.

    Attributes:
        voxels: float32 (D, H, W).
        mean: In each window.
        variance: In each window.
    """

    voxels: Tensor
    mean: Tensor
    variance: Tensor


@dataclass(frozen=True)
class _Scale:
    """One scale: its shape, sums along each axis (None where they are made by shifting), where to look."""

    shape: Triple
    kernel: list[float]
    reflect: bool
    sums: tuple[Tensor | None, ...]
    weights: Tensor | None

    def smooth(self, x: Tensor) -> Tensor:
        for axis, matrix in enumerate(self.sums):
            if matrix is None:
                x = smooth_along(x, axis, self.kernel, self.reflect)
            elif axis == 0:
                x = (matrix @ x.flatten(1)).unflatten(1, x.shape[1:])
            else:
                x = matrix @ x if axis == 1 else x @ matrix.T
        return x

    def mean(self, values: Tensor) -> float:
        return float(values.mean() if self.weights is None else values.flatten() @ self.weights)


class PairwiseMsSsim:
    """MS-SSIM of two scans by what `moments` makes of each.

    Args:
        scales: Finest first.
        powers: Of each scale's mean.
        data_range: Largest possible value less the smallest.
    """

    def __init__(self, scales: Sequence[_Scale], powers: Sequence[float], data_range: float) -> None:
        self._scales, self._powers = tuple(scales), tuple(powers)
        self._constants = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    @classmethod
    def standard(cls, scales: Scales, data_range: float, mask: Tensor | None) -> "PairwiseMsSsim":
        """As `ms_ssim` with the same arguments; where windows fit the mask must not be 0 everywhere."""
        kernel = gaussian(scales.window, scales.sigma)
        weights = None if mask is None else mask.float()[None]
        found = []
        for shape in scales.shapes:
            weights = None if weights is None else halved(weights, shape)
            seen = None if weights is None else inner(weights[0], scales.window).flatten()
            found.append(_scale(shape, kernel, False, None if seen is None else seen / seen.sum()))
        return cls(found, scales.weights, data_range)

    @classmethod
    def published(cls, shape: Triple) -> "PairwiseMsSsim":
        """As `reference_compatible_ms_ssim`."""
        kernel = gaussian(2 * REFERENCE_RADIUS + 1, SIGMA)
        number = num_reference_scales(shape)
        found = []
        for _ in range(number):
            found.append(_scale(shape, kernel, True, None))
            shape = shape[0] // 2, shape[1] // 2, shape[2] // 2
        weights = WEIGHTS[:number]
        total = 1.0 if number == len(WEIGHTS) else sum(weights)
        # The last scale stands once beside each of the others.
        powers = [*weights[:-1], (number - 1) * weights[-1]]
        return cls(found, [power / total for power in powers], 1.0)

    @property
    def num_bytes(self) -> int:
        """What the moments of a scan take, about."""
        return len(Moments._fields) * _BYTES_A_VOXEL * sum(math.prod(scale.shape) for scale in self._scales)

    def moments(self, x: Tensor) -> list[Moments]:
        """What depends on one scan alone, float32 (D, H, W), at each scale."""
        found = []
        for scale in self._scales:
            # Without the last voxel of an odd axis where the scale's shape is rounded down.
            d, h, w = (2 * size for size in scale.shape)
            x = halved(x[None, :d, :h, :w], scale.shape)[0]
            mean = scale.smooth(x)
            found.append(Moments(x, mean, scale.smooth(x * x).sub_(mean * mean)))
        return found

    def similarity(self, a: Sequence[Moments], b: Sequence[Moments]) -> float:
        """Of two scans, from 0 to 1."""
        c_1, c_2 = self._constants
        result = 1.0
        for scale, power, x, y in zip(self._scales, self._powers, a, b, strict=True):
            product = x.mean * y.mean
            similar = scale.smooth(x.voxels * y.voxels).sub_(product).mul_(2).add_(c_2)
            similar.div_((x.variance + y.variance).add_(c_2))
            if scale is self._scales[-1]:
                squares = x.mean.square().addcmul_(y.mean, y.mean)
                similar.mul_(product.mul_(2).add_(c_1).div_(squares.add_(c_1)))
            result *= max(scale.mean(similar), 0.0) ** power
        return result


def _scale(shape: Triple, kernel: list[float], reflect: bool, weights: Tensor | None) -> _Scale:
    sums = [
        smooth_along(torch.eye(size), 0, kernel, reflect) if size <= _LONGEST_BY_MATRIX else None
        for size in shape
    ]
    return _Scale(shape, kernel, reflect, tuple(sums), weights)
