"""Numbers with intervals."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

_NUM_BOOTSTRAPS = 1000


class Estimate(NamedTuple):
    """A number with its 95% interval."""

    value: float
    low: float
    high: float


def percentile_interval(
    draws: npt.NDArray[np.floating] | Sequence[float], level: float = 0.95
) -> tuple[float, float]:
    """The ends of the interval that holds the middle of the draws.

    Args:
        draws: (B,), one finite number of each resample.
        level: Share of the draws that lie within.
    """
    low, high = np.quantile(draws, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrapped(
    values: npt.NDArray[np.floating],
    statistic: Callable[..., npt.NDArray[np.floating]],
    generator: np.random.Generator,
) -> Estimate:
    """A statistic of values (N,), with its 95% interval over 1,000 draws of them with replacement.

    Args:
        values: At least one.
        statistic: `np.mean`, `np.median` or another that takes an axis.
        generator: Draws them.
    """
    draws = statistic(generator.choice(values, (_NUM_BOOTSTRAPS, len(values))), axis=1)
    return Estimate(float(statistic(values)), *percentile_interval(draws))
