"""Two sets of scans compared so that the numbers can be judged: intervals, and floors at equal n.

A distance alone says nothing: it depends on the number of scans, the grid and the organ. So each row holds
the same number for real scans against other real scans. Real scans are split at random into disjoint halves
of n scans, ten times; measures whose expectation depends on n (all but the unbiased ones) are taken between n
synthetic scans and one half, and their floor between the two halves.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from anatogen.evaluation.fidelity.resampling import (
    Halves,
    Indices,
    Measure,
    extrapolated,
    jackknife,
    over_splits,
    random_splits,
    spread,
)
from anatogen.report.intervals import Estimate
from anatogen.report.rows import Row

NUM_SPLITS = 10
NUM_NEIGHBOURS = 5
# Scans a side below which rows carry a warning: ten times the neighbours of PRDC, and 800 slices of a plane
# for 192 features.
ENOUGH_SCANS = 50


class SetComparison:
    """Real and synthetic scans as one row of indices, and the draws of them.

    Args:
        num_real: Real scans, which have indices 0 to num_real - 1; at least 8.
        num_synthetic: Synthetic scans, whose indices follow; at least 8.
        seed: Random seed of all draws.
    """

    def __init__(self, num_real: int, num_synthetic: int, seed: int) -> None:
        self.seed = seed
        self.splits: list[Halves] = random_splits(num_real, num_synthetic, NUM_SPLITS, seed)
        self.real: Indices = np.arange(num_real)
        self.synthetic: Indices = num_real + np.arange(num_synthetic)
        self.n = min(num_real // 2, num_synthetic)
        self.notes = too_few(num_real, num_synthetic)

    def at_equal_n(
        self, measure: Measure, rows: Sequence[Row], most: Sequence[float] | None = None
    ) -> list[Row]:
        """The rows of a measure that depends on n, at n against its floor at n.

        Args:
            measure: Its K numbers are never negative.
            rows: Rows of these numbers, to be filled in.
            most: The largest possible value of each number.
        """
        value, floor = (_possible(estimates, most) for estimates in over_splits(measure, self.splits))
        return self._measured(rows, value, floor, f"{self.n} scans a side")

    def unbiased(self, measure: Measure, rows: Sequence[Row]) -> list[Row]:
        """The rows of a measure that does not depend on n, with all scans."""
        value = jackknife(measure, self.real, self.synthetic, self.seed)
        _, floor = over_splits(measure, self.splits)
        return self._measured(rows, value, floor)

    def frechet(self, measure: Measure, rows: Sequence[Row]) -> list[Row]:
        """A Fréchet distance three ways: at equal n, with all scans, and extrapolated to infinitely many."""
        value = _possible(jackknife(measure, self.real, self.synthetic, self.seed))
        limit = extrapolated(measure, self.real, self.synthetic, self.seed)
        floors = [extrapolated(measure, s.real, s.other_real, self.seed, num_draws=1) for s in self.splits]
        counts = f"{len(self.real)} real, {len(self.synthetic)} synthetic scans; no floor at these numbers"
        line = "a straight line in 1/n; its floor is 0 but for noise"
        everything, endless = (
            [
                replace(row, name=f"{row.name}_{suffix}", label=f"{row.label}, {how}", is_detail=True)
                for row in rows
            ]
            for suffix, how in (("all", "all scans"), ("extrapolated", "extrapolated to endless scans"))
        )
        return [
            *self.at_equal_n(measure, rows),
            *self._measured(everything, value, [None] * len(rows), counts),
            *self._measured(endless, limit.tolist(), spread(np.stack(floors)), line),
        ]

    def _measured(
        self,
        rows: Sequence[Row],
        values: Sequence[Estimate | float],
        floors: Sequence[Estimate | None],
        *notes: str,
    ) -> list[Row]:
        return [
            row.measured(value, floor, (*notes, *self.notes))
            for row, value, floor in zip(rows, values, floors, strict=True)
        ]


def too_few(num_real: int, num_synthetic: int) -> tuple[str, ...]:
    """A warning with the numbers that would do, or nothing if there are enough scans."""
    if num_real >= 2 * ENOUGH_SCANS and num_synthetic >= ENOUGH_SCANS:
        return ()
    warning = (
        f"few scans ({num_real} real, {num_synthetic} synthetic): at least {2 * ENOUGH_SCANS} real ones, in "
        f"halves, and {ENOUGH_SCANS} synthetic ones would do"
    )
    return (warning,)


def _possible(estimates: list[Estimate], most: Sequence[float] | None = None) -> list[Estimate]:
    """The estimates with their intervals cut to values that can be, from 0."""
    ends = most or [np.inf] * len(estimates)
    return [
        Estimate(value, max(low, 0.0), min(high, end))
        for (value, low, high), end in zip(estimates, ends, strict=True)
    ]
