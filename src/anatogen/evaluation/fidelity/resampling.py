"""How sure a distance between two sets of scans is: intervals, real-against-real floors, infinite N.

A `Measure` takes the indices of two groups of scans, so everything here draws whole scans, never slices.
Draws are without replacement: a bootstrap's duplicates look like a collapsed set to most distances (they
shrink neighbourhoods and add pairs at distance zero), and would bias its intervals upwards.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from anatogen.report.intervals import Estimate

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
# (real scans, other scans) -> K numbers
Measure = Callable[[Indices, Indices], Array]

_NORMAL_95 = 1.96
_NUM_SIZES = 6


class Halves(NamedTuple):
    """One random draw of disjoint halves of the real scans, and of as many synthetic ones."""

    real: Indices
    other_real: Indices
    synthetic: Indices


def random_splits(num_real: int, num_synthetic: int, num_splits: int, seed: int) -> list[Halves]:
    """Draws n real scans, n other real ones, and n synthetic ones; n as large as can be.

    Args:
        num_real: Real scans, which have indices 0 to num_real - 1.
        num_synthetic: Synthetic scans, whose indices follow.
        num_splits: How often.
        seed: Random seed of the draws.
    """
    n = min(num_real // 2, num_synthetic)
    splits = []
    for number in range(num_splits):
        generator = np.random.default_rng([seed, number])
        real = generator.permutation(num_real)
        synthetic = num_real + generator.permutation(num_synthetic)
        splits.append(Halves(real[:n], real[n : 2 * n], synthetic[:n]))
    return splits


def over_splits(measure: Measure, splits: Sequence[Halves]) -> tuple[list[Estimate], list[Estimate]]:
    """Synthetic against real, and real against other real scans, both at the same n.

    Returns:
        The K means over the splits, each with the interval in which 95% of single splits fall (mean plus and
        minus 1.96 standard deviations).
    """
    values = np.stack([measure(split.real, split.synthetic) for split in splits])
    floors = np.stack([measure(split.real, split.other_real) for split in splits])
    return spread(values), spread(floors)


def spread(draws: Array) -> list[Estimate]:
    """The K means of draws (R, K), with the intervals in which 95% of single draws fall.

    Args:
        draws: R of them, taken as normal; with one draw alone the interval is that value.
    """
    mean = draws.mean(axis=0)
    reach = _NORMAL_95 * (draws.std(axis=0, ddof=1) if len(draws) > 1 else np.zeros_like(mean))
    return _around(mean, reach)


def _around(values: Array, reach: Array) -> list[Estimate]:
    return [Estimate(*map(float, ends)) for ends in zip(values, values - reach, values + reach, strict=True)]


def jackknife(
    measure: Measure, real: Indices, other: Indices, seed: int, num_groups: int = 20
) -> list[Estimate]:
    """A measure's K numbers with their 95% confidence intervals, by leaving out a group of scans at a time.

    Delete-a-group jackknife (Shao and Wu 1989) of each set in turn: with G groups and theta_g the value
    without group g, the variance is (G - 1) / G sum_g (theta_g - mean)^2, and both sets' variances add up.
    The interval is normal about the value with all scans.

    Args:
        measure: Measure of two groups of scans.
        real: Indices of one set, at least 3.
        other: Indices of the other, at least 3.
        seed: Decides the groups.
        num_groups: G; fewer where there are fewer scans.
    """
    value = measure(real, other)
    variance = np.zeros_like(value)
    for side, members in enumerate((real, other)):
        shuffled = np.random.default_rng([seed, side]).permutation(members)
        groups = np.array_split(shuffled, min(num_groups, len(members)))
        thetas = []
        for group in groups:
            kept = np.setdiff1d(members, group)
            thetas.append(measure(kept, other) if side == 0 else measure(real, kept))
        deviations = np.stack(thetas) - np.mean(thetas, axis=0)
        variance += (len(groups) - 1) / len(groups) * np.square(deviations).sum(axis=0)
    reach = _NORMAL_95 * np.sqrt(variance)
    return _around(value, reach)


def extrapolated(measure: Measure, real: Indices, other: Indices, seed: int, num_draws: int = 8) -> Array:
    """What the measure tends to as both sets grow without end (Chong and Forsyth 2020, "FID-infinity").

    The expectation of a Fréchet distance at n scans is its limit plus about c / n. So it is measured at six
    sizes from half to all of the smaller set, evenly spaced in 1 / n, and a straight line is fitted in 1 / n.

    Args:
        measure: Measure of two groups of scans.
        real: Indices of one set, at least 4.
        other: Indices of the other, at least 4.
        seed: Random seed of the draws.
        num_draws: Number of draws at each size.

    Returns:
        The line's value at 1 / n = 0; (K,). May be slightly negative.
    """
    largest = min(len(real), len(other))
    sizes = np.unique(np.rint(1 / np.linspace(2 / largest, 1 / largest, _NUM_SIZES)).astype(int))
    means = []
    for size in sizes:
        draws = []
        for draw in range(num_draws):
            generator = np.random.default_rng([seed, int(size), draw])
            draws.append(measure(generator.permutation(real)[:size], generator.permutation(other)[:size]))
        means.append(np.mean(draws, axis=0))
    lines = np.polynomial.polynomial.polyfit(1 / sizes, np.stack(means), 1)
    return np.asarray(lines[0], np.float64)
