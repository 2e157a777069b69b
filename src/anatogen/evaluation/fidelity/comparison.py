"""Two sets of scans compared so that the numbers can be judged: intervals, and floors at equal n.

A distance alone says nothing: it depends on the number of scans, the grid and the organ. So each row holds
the same number for real scans against other real scans. Real scans are split at random into disjoint halves
of n scans, ten times; measures whose expectation depends on n (all but the unbiased ones) are taken between n
synthetic scans and one half, and their floor between the two halves.
"""

from collections.abc import Sequence

import numpy as np

from anatogen.evaluation.fidelity.distances import Array
from anatogen.evaluation.fidelity.resampling import (
    Estimate,
    Indices,
    Measure,
    Split,
    extrapolated,
    jackknife,
    over_splits,
    random_splits,
    spread,
)
from anatogen.report.rows import Better, Row

# (name, label) of rows
Names = Sequence[tuple[str, str]]

NUM_SPLITS = 10
NUM_NEIGHBOURS = 5
# Scans a side below which rows carry a warning: ten times the neighbours of PRDC, and 800 slices of a plane
# for 192 features.
ENOUGH_SCANS = 50


class Comparison:
    """Real and synthetic scans as one row of indices, and the draws of them.

    Args:
        num_real: Real scans, which have indices 0 to num_real - 1; at least 8.
        num_synthetic: Synthetic scans, whose indices follow; at least 8.
        seed: Of all draws.
    """

    def __init__(self, num_real: int, num_synthetic: int, seed: int) -> None:
        self.seed = seed
        self.splits: list[Split] = random_splits(num_real, num_synthetic, NUM_SPLITS, seed)
        self.real: Indices = np.arange(num_real)
        self.synthetic: Indices = num_real + np.arange(num_synthetic)
        self.n = min(num_real // 2, num_synthetic)
        self.note = too_few(num_real, num_synthetic)

    def at_equal_n(
        self,
        measure: Measure,
        names: Names,
        *,
        better: Better = "lower",
        unit: str = "",
        most: Array | float = np.inf,
    ) -> list[Row]:
        """A row for each number of a measure that depends on n, at n against its floor at n.

        Args:
            measure: Its numbers are never negative.
            names: (name, label) of each number.
            better: As in `Row`.
            unit: As in `Row`.
            most: The largest possible value of each number, (K,), or of all.
        """
        value, floor = (_within(estimate, 0, most) for estimate in over_splits(measure, self.splits))
        return self._rows(names, value, floor, f"{self.n} scans a side", better, unit)

    def unbiased(self, measure: Measure, names: Names) -> list[Row]:
        """A row for each number of a measure that does not depend on n, with all scans."""
        value = jackknife(measure, self.real, self.synthetic, self.seed)
        _, floor = over_splits(measure, self.splits)
        return self._rows(names, value, floor, "")

    def frechet(self, measure: Measure, names: Names) -> list[Row]:
        """A Fréchet distance three ways: at equal n, with all scans, and extrapolated to infinitely many."""
        value = _within(jackknife(measure, self.real, self.synthetic, self.seed), 0, np.inf)
        limit = extrapolated(measure, self.real, self.synthetic, self.seed)
        floors = [extrapolated(measure, s.real, s.other_real, self.seed, num_draws=1) for s in self.splits]
        counts = f"{len(self.real)} real, {len(self.synthetic)} synthetic scans; no floor at these numbers"
        line = "a straight line in 1/n; its floor is 0 but for noise"
        everything = [(f"{name}_all", f"{label}, all scans") for name, label in names]
        endless = [
            (f"{name}_extrapolated", f"{label}, extrapolated to endless scans") for name, label in names
        ]
        return [
            *self.at_equal_n(measure, names),
            *self._rows(everything, value, None, counts),
            *self._rows(endless, Estimate(limit), spread(np.stack(floors)), line),
        ]

    def _rows(
        self,
        names: Names,
        value: Estimate,
        floor: Estimate | None,
        note: str,
        better: Better = "lower",
        unit: str = "",
    ) -> list[Row]:
        return [
            Row(
                group="fidelity",
                name=name,
                label=label,
                value=float(value.value[index]),
                low=_at(value.low, index),
                high=_at(value.high, index),
                reference=None if floor is None else float(floor.value[index]),
                reference_low=None if floor is None else _at(floor.low, index),
                reference_high=None if floor is None else _at(floor.high, index),
                better=better,
                unit=unit,
                note="; ".join(part for part in (note, self.note) if part),
            )
            for index, (name, label) in enumerate(names)
        ]


def too_few(num_real: int, num_synthetic: int) -> str:
    """A warning with the numbers that would do, or nothing if there are enough scans."""
    if num_real >= 2 * ENOUGH_SCANS and num_synthetic >= ENOUGH_SCANS:
        return ""
    return (
        f"few scans ({num_real} real, {num_synthetic} synthetic): at least {2 * ENOUGH_SCANS} real ones, in "
        f"halves, and {ENOUGH_SCANS} synthetic ones would do"
    )


def _within(estimate: Estimate, least: float, most: Array | float) -> Estimate:
    """The estimate with its interval cut to values that can be."""
    assert estimate.low is not None and estimate.high is not None
    return Estimate(estimate.value, np.maximum(estimate.low, least), np.minimum(estimate.high, most))


def _at(values: Array | None, index: int) -> float | None:
    return None if values is None else float(values[index])
