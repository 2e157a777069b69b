"""Numbers with intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


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
