"""Diversity: are synthetic scans as different from one another as real scans are?

MS-SSIM within random pairs of real scans, and within random pairs of synthetic ones (Kwon et al. 2019,
Khader et al. 2023). A set that repeats itself has a higher mean than the real set, noise has a lower one:
what counts is the distance to the real set's own mean.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anatogen.core.devices import one_thread
from anatogen.dataset.scan_sets import ScanSet
from anatogen.evaluation.pairwise_ssim import Moments, PairwiseMsSsim
from anatogen.evaluation.ssim import (
    Scales,
    choose_scales,
    ms_ssim,
    num_reference_scales,
)
from anatogen.report.intervals import Estimate, percentile_interval
from anatogen.report.progress import Progress
from anatogen.report.rows import Row

Floats = npt.NDArray[np.float64]
Pairs = npt.NDArray[np.int64]

DATA_RANGE = 2.0
# A voxel belongs to the foreground where real scans are on average brighter than black by 5% of the range.
_FOREGROUND = -0.9
_NUM_BOOTSTRAPS = 1000
# Of moments of scans that are kept for their next pair.
_BYTES_KEPT = 2**28
# With fewer scans than this the interval is wider than most differences between generators.
_ENOUGH_SCANS = 50
# The rows, but for their numbers and notes.
_PAIRS = Row("diversity", "ms_ssim", "MS-SSIM within pairs", None, better="reference")
_GAP = Row("diversity", "ms_ssim_gap", "|MS-SSIM synthetic − real|", None)
_PUBLISHED = Row(
    "diversity",
    "ms_ssim_reference_compatible",
    "MS-SSIM within pairs, as published (reference_compatible)",
    None,
    better="reference",
)


@dataclass(frozen=True)
class PairValues:
    """A similarity within pairs of one set's scans.

    Attributes:
        values: float64 (P,).
        bootstrapped: float64 (1000,), the mean with scans drawn with replacement.
    """

    values: Floats
    bootstrapped: Floats

    @property
    def mean(self) -> Estimate:
        """Over all pairs."""
        return Estimate(float(self.values.mean()), *percentile_interval(self.bootstrapped))


def measure_diversity(
    real: ScanSet,
    synthetic: ScanSet,
    *,
    seed: int,
    num_pairs: int = 1000,
    published: bool = True,
    progress: Progress,
) -> tuple[list[Row], dict[str, Any]]:
    """MS-SSIM within random pairs of scans, real and synthetic.

    Standard MS-SSIM is taken over the foreground of the real set, whatever the synthetic scans show
    there or elsewhere. Intervals resample scans, not pairs, for pairs share scans. Pairs are compared one at
    a time, and 256 MB of what is known of single scans are kept, so memory does not grow with the sets.

    Args:
        real: The yardstick.
        synthetic: What is measured, on the same grid.
        seed: Random seed of pairs, halves and intervals.
        num_pairs: How many pairs of distinct scans in each set; all pairs where there are fewer. The two
            halves of the real set, whose gap is the floor, take half as many each.
        published: Whether to measure the published variant too.
        progress: Called with (what, done, total).

    Returns:
        Rows "ms_ssim" and "ms_ssim_reference_compatible" (value of the synthetic set, reference of the real
        one) and "ms_ssim_gap" (their distance; its reference is the gap between two halves of the real set).
        And a JSON-ready record: "scales", "foreground" (share of voxels, or None where none was found),
        and "pairs": variant -> {"real": values, "synthetic": values} for a histogram.
    """
    sizes = f"{len(real)} real, {len(synthetic)} synthetic"
    if min(len(real), len(synthetic)) < 2:
        return _unmeasured(f"pairs need 2 scans in each set; there are {sizes}", published), {}
    try:
        scales = choose_scales(real.grid.shape)
    except ValueError as error:
        return _unmeasured(str(error), published), {}
    mask, notes = _usable_foreground(real, scales)
    if min(len(real), len(synthetic)) < _ENOUGH_SCANS:
        notes.append(f"few scans ({sizes}): {_ENOUGH_SCANS} in each set would do")

    standard = PairwiseMsSsim.standard(scales, DATA_RANGE, mask)

    def values(
        what: str, scans: ScanSet, stream: int, measure: PairwiseMsSsim = standard, number: int = num_pairs
    ) -> PairValues:
        return _pair_values(
            scans, measure, number, np.random.default_rng([seed, stream]), lambda *done: progress(what, *done)
        )

    inside_real = values("MS-SSIM of real pairs", real, 1)
    inside_synthetic = values("MS-SSIM of synthetic pairs", synthetic, 2)

    order = np.random.default_rng([seed, 0]).permutation(len(real))
    first, second = order[: len(real) // 2], order[len(real) // 2 :]
    floor = None
    if len(first) >= 2:
        number = max(num_pairs // 2, 1)
        floor = _gap(
            values("MS-SSIM of real halves", real.take(first), 3, number=number),
            values("MS-SSIM of real halves", real.take(second), 4, number=number),
        )
    else:
        notes.append("a floor needs 4 real scans")

    count = f"{len(inside_synthetic.values)} synthetic and {len(inside_real.values)} real pairs"
    rows = [
        _PAIRS.measured(inside_synthetic.mean, inside_real.mean, [f"{count}; {scales}", *notes]),
        _GAP.measured(_gap(inside_synthetic, inside_real), floor, notes),
    ]
    pairs = {"standard": {"real": inside_real.values.tolist(), "synthetic": inside_synthetic.values.tolist()}}
    if published:
        measure = PairwiseMsSsim.published(real.grid.shape)
        published_real = values("published MS-SSIM of real pairs", real, 1, measure)
        published_synthetic = values("published MS-SSIM of synthetic pairs", synthetic, 2, measure)
        how = (
            "as the paper's published code computes it: not a standard MS-SSIM, "
            f"{num_reference_scales(real.grid.shape)} scales"
        )
        rows.append(_PUBLISHED.measured(published_synthetic.mean, published_real.mean, [how, *notes]))
        pairs["reference_compatible"] = {
            "real": published_real.values.tolist(),
            "synthetic": published_synthetic.values.tolist(),
        }
    record = {
        "scales": str(scales),
        "foreground": None if mask is None else float(mask.float().mean()),
        "pairs": pairs,
    }
    return rows, record


def foreground(real: ScanSet) -> Tensor:
    """Bool (D, H, W): where the mean of the real scans is above -0.9, black being -1.

    Real scans alone decide, or a generator could choose where it is compared.
    """
    return torch.from_numpy(real.arrays.mean(axis=0, dtype=np.float64) > _FOREGROUND)


def random_pairs(num_scans: int, num_pairs: int, generator: np.random.Generator) -> Pairs:
    """Different pairs of distinct scans, in random order; all pairs where there are no more than asked for.

    Of twice as many scans as pairs, or more, each is in one pair at most, as in the paper: 2,000 for 1,000.

    Args:
        num_scans: Number of scans, at least 2.
        num_pairs: Number of pairs, at least 1.
        generator: Chooses them.

    Returns:
        int64 (P, 2), the smaller index first; P = min(num_pairs, num_scans (num_scans - 1) / 2).
    """
    if num_scans >= 2 * num_pairs:
        return np.sort(generator.permutation(num_scans)[: 2 * num_pairs].reshape(-1, 2), axis=1)
    total = num_scans * (num_scans - 1) // 2
    # Pair (i, j), i < j, has number j (j - 1) / 2 + i.
    number = generator.choice(total, min(num_pairs, total), replace=False)
    larger = np.floor((1 + np.sqrt(1 + 8 * number.astype(np.float64))) / 2).astype(np.int64)
    return np.stack([number - larger * (larger - 1) // 2, larger], axis=1)


def bootstrap_means(pairs: Pairs, values: Floats, num_scans: int, generator: np.random.Generator) -> Floats:
    """Means over pairs with scans drawn with replacement: a pair counts as often as its scans, multiplied.

    Resampling pairs would take pairs of one scan for independent, and give too narrow an interval; where none
    share a scan, it is pairs that are drawn. Where the draw leaves no pair at all, which takes very few
    scans, the mean over all pairs stands in.

    Args:
        pairs: int64 (P, 2).
        values: float64 (P,).
        num_scans: Number of scans of the set.
        generator: Draws them.

    Returns:
        float64 (1000,).
    """
    if len(np.unique(pairs)) == pairs.size:
        chosen = generator.integers(len(values), size=(_NUM_BOOTSTRAPS, len(values)))
        return np.asarray(values[chosen].mean(axis=1))
    means = np.empty(_NUM_BOOTSTRAPS)
    for draw in range(_NUM_BOOTSTRAPS):
        drawn = generator.integers(num_scans, size=num_scans)
        times = np.bincount(drawn, minlength=num_scans)
        weights = times[pairs[:, 0]] * times[pairs[:, 1]]
        total = weights.sum()
        means[draw] = weights @ values / total if total else values.mean()
    return means


@one_thread()
@torch.inference_mode()
def _pair_values(
    scans: ScanSet,
    measure: PairwiseMsSsim,
    num_pairs: int,
    generator: np.random.Generator,
    progress: Callable[[int, int], None],
) -> PairValues:
    pairs = random_pairs(len(scans), num_pairs, generator)
    values = np.empty(len(pairs))

    @lru_cache(max(2, _BYTES_KEPT // measure.num_bytes))
    def moments(scan: int) -> list[Moments]:
        return measure.moments(torch.from_numpy(scans.arrays[scan]))

    # Pairs of one scan after one another: it is kept even where few are.
    for done, index in enumerate(np.lexsort((pairs[:, 0], pairs[:, 1])), start=1):
        first, second = map(int, pairs[index])
        values[index] = measure.similarity(moments(first), moments(second))
        progress(done, len(pairs))
    return PairValues(values, bootstrap_means(pairs, values, len(scans), generator))


def _usable_foreground(real: ScanSet, scales: Scales) -> tuple[Tensor | None, list[str]]:
    """The foreground, or None with a note where none lies at the centres of windows."""
    mask = foreground(real)
    first = torch.from_numpy(real.arrays[:1])
    try:
        ms_ssim(first, first, DATA_RANGE, scales, mask)
    except ValueError:
        return None, ["the real scans have no foreground where windows fit: taken over whole volumes"]
    return mask, []


def _gap(a: PairValues, b: PairValues) -> Estimate:
    """Distance of the means, with a 95% interval: that of the signed difference, folded at 0."""
    low, high = percentile_interval(a.bootstrapped - b.bootstrapped)
    least, most = sorted((abs(low), abs(high)))
    return Estimate(abs(a.mean.value - b.mean.value), 0.0 if low <= 0 <= high else least, most)


def _unmeasured(why: str, published: bool) -> list[Row]:
    return [row.missing(why) for row in (_PAIRS, _GAP, *([_PUBLISHED] if published else []))]
