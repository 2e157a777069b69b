"""Two sets of scans compared so that the numbers can be judged: intervals, and floors at equal n.

A distance alone says nothing: it depends on the number of scans, the grid and the organ. So each row holds
the same number for real scans against other real scans. Real scans are split at random into disjoint halves
of n scans, ten times; measures whose expectation depends on n (all but the unbiased ones) are taken between n
synthetic scans and one half, and their floor between the two halves.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from anatogen.evaluation.fidelity.distances import Array
from anatogen.evaluation.fidelity.resampling import (
    Estimates,
    Halves,
    Indices,
    Measure,
    extrapolated,
    jackknife,
    over_splits,
    random_splits,
    spread,
)
from anatogen.report.rows import Better, Row

NUM_SPLITS = 10
NUM_NEIGHBOURS = 5
# Scans a side below which rows carry a warning: ten times the neighbours of PRDC, and 800 slices of a plane
# for 192 features.
ENOUGH_SCANS = 50


class Quantity(NamedTuple):
    """One of a measure's numbers, with `Row`'s name, label, side that is good, unit and place."""

    name: str
    label: str
    better: Better = "lower"
    unit: str = ""
    is_detail: bool = False


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
        self,
        measure: Measure,
        quantities: Sequence[Quantity],
        *,
        most: Array | float = np.inf,
    ) -> list[Row]:
        """A row for each number of a measure that depends on n, at n against its floor at n.

        Args:
            measure: Its numbers are never negative.
            quantities: Name, label and side of each number.
            most: The largest possible value of each number, (K,), or of all.
        """
        value, floor = (_within(estimate, 0, most) for estimate in over_splits(measure, self.splits))
        return self._rows(quantities, value, floor, (f"{self.n} scans a side",))

    def unbiased(self, measure: Measure, quantities: Sequence[Quantity]) -> list[Row]:
        """A row for each number of a measure that does not depend on n, with all scans."""
        value = jackknife(measure, self.real, self.synthetic, self.seed)
        _, floor = over_splits(measure, self.splits)
        return self._rows(quantities, value, floor, ())

    def frechet(self, measure: Measure, quantities: Sequence[Quantity]) -> list[Row]:
        """A Fréchet distance three ways: at equal n, with all scans, and extrapolated to infinitely many."""
        value = _within(jackknife(measure, self.real, self.synthetic, self.seed), 0, np.inf)
        limit = extrapolated(measure, self.real, self.synthetic, self.seed)
        floors = [extrapolated(measure, s.real, s.other_real, self.seed, num_draws=1) for s in self.splits]
        counts = f"{len(self.real)} real, {len(self.synthetic)} synthetic scans; no floor at these numbers"
        line = "a straight line in 1/n; its floor is 0 but for noise"
        everything, endless = (
            [
                Quantity(f"{quantity.name}_{suffix}", f"{quantity.label}, {how}", is_detail=True)
                for quantity in quantities
            ]
            for suffix, how in (("all", "all scans"), ("extrapolated", "extrapolated to endless scans"))
        )
        return [
            *self.at_equal_n(measure, quantities),
            *self._rows(everything, value, None, (counts,)),
            *self._rows(endless, Estimates(limit), spread(np.stack(floors)), (line,)),
        ]

    def _rows(
        self,
        quantities: Sequence[Quantity],
        value: Estimates,
        floor: Estimates | None,
        notes: tuple[str, ...],
    ) -> list[Row]:
        return [
            Row(
                group="fidelity",
                name=quantity.name,
                label=quantity.label,
                value=float(value.value[index]),
                low=_at(value.low, index),
                high=_at(value.high, index),
                reference=None if floor is None else float(floor.value[index]),
                reference_low=None if floor is None else _at(floor.low, index),
                reference_high=None if floor is None else _at(floor.high, index),
                better=quantity.better,
                unit=quantity.unit,
                notes=(*notes, *self.notes),
                is_detail=quantity.is_detail,
            )
            for index, quantity in enumerate(quantities)
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


def _within(estimate: Estimates, least: float, most: Array | float) -> Estimates:
    """The estimate with its interval cut to values that can be."""
    assert estimate.low is not None and estimate.high is not None
    return Estimates(estimate.value, np.maximum(estimate.low, least), np.minimum(estimate.high, most))


def _at(values: Array | None, index: int) -> float | None:
    return None if values is None else float(values[index])
