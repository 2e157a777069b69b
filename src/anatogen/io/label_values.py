"""Whether the values of a scan are labels or probabilities: the one rule for all who must not mix them up.

Labels fill regions: most neighbours are equal, and where regions meet values jump. A scan of whole numbers
(CT, MR of 8 bits) has noise: few neighbours are equal, and where it is smooth values go up and down by one.
"""

from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

# A scan with so few whole values would be one of 3 bits, or of 5.
_FEW = 8
_MOST = 32
# Maps of signs, and of what counts for nothing, have a label of -1; CT goes far lower.
_LOWEST_LABEL = -1
# Share of equal neighbours: of regions, of what no noise lets be, of noise, and of regions across slices.
_REGIONS = 0.5
_FLAT = 0.95
_NOISE = 0.25
_ACROSS = 0.1
# Jumps between neighbours that differ, in steps from value to value and as a share of all values.
_SMOOTH_STEPS = 3
_WIDE_JUMP = 0.1
# Interpolated maps are whole but at the borders of regions.
_MOSTLY_WHOLE = 0.6
# Of a probability map that its values tell: zeros, and of what is above, values near 1 and in the middle.
_ZEROS = 0.3
_NEAR_ONE = 0.2
_MIDDLE = 0.35
# What is looked at of a scan: values that tell nearly every scan, slices, pairs of neighbours.
_SAMPLE = 4096
_SLICES = 64
_PAIRS = 200_000
# Values up to here are counted one by one, others sorted.
_COUNTABLE = 1 << 20


class ValueKind(StrEnum):
    """What values are: of a scan, labels, probabilities, or not to be told.

    `UNIT` values lie from 0 to 1 and many are exactly 0: those of a probability map, or of a scan without its
    background that was brought to this range. `DOUBTFUL` ones may be labels.
    """

    SCAN = "scan"
    LABELS = "labels"
    PROBABILITIES = "probabilities"
    UNIT = "unit"
    DOUBTFUL = "doubtful"


@dataclass(frozen=True)
class Values:
    """What the values of a scan are.

    Attributes:
        kind: What they are.
        num_labels: How many different ones there are, of labels; else 0.
    """

    kind: ValueKind
    num_labels: int = 0


def values_of(array: npt.NDArray[np.float32]) -> Values:
    """Tells labels and probabilities from scans.

    Args:
        array: float32 (D, H, W), in the unit of its file.
    """
    low, high = float(array.min()), float(array.max())
    if low < _LOWEST_LABEL:
        return Values(ValueKind.SCAN)
    places = np.unique(np.linspace(0, max(0, len(array) - 2), _SLICES).astype(int))
    slices, above = array[places], array[np.minimum(places + 1, len(array) - 1)]
    sample = slices.ravel()[:: max(1, slices.size // _SAMPLE)]
    usual = _usual(sample)
    tissue = sample[sample != usual]
    # A part tells nearly every scan, at no cost.
    is_unit = low >= 0 and high <= 1
    if tissue.size > _FEW and not is_unit and _share_whole(tissue) < _MOSTLY_WHOLE:
        return Values(ValueKind.SCAN)
    is_whole = np.array_equal(array, np.rint(array))
    if is_unit and not is_whole:
        return Values(_of_unit(array))
    equal, steps, num = _neighbours(slices, above, usual)
    if not is_whole:
        tissue = slices[slices != usual]
        is_map = tissue.size > 0 and _share_whole(tissue) >= _MOSTLY_WHOLE and equal >= _REGIONS
        return Values(ValueKind.DOUBTFUL if is_map else ValueKind.SCAN)
    if num <= _MOST:
        num = len(_distinct(array))
    kind = _of_whole(num, equal, steps)
    return Values(kind, num if kind is ValueKind.LABELS else 0)


def _of_unit(array: npt.NDArray[np.float32]) -> ValueKind:
    above = array[array > 0]
    if 1 - above.size / array.size < _ZEROS:
        return ValueKind.SCAN
    near_one, middle = np.mean(above > 0.9), np.mean((above > 0.2) & (above < 0.8))
    is_sure = near_one >= _NEAR_ONE and middle <= _MIDDLE
    return ValueKind.PROBABILITIES if is_sure else ValueKind.UNIT


def _of_whole(num: int, equal: float, steps: float) -> ValueKind:
    if num <= _MOST:
        if num <= _FEW or equal >= _REGIONS:
            return ValueKind.LABELS
        return ValueKind.SCAN if equal < _NOISE else ValueKind.DOUBTFUL
    if equal < _REGIONS:
        return ValueKind.SCAN
    if steps >= _WIDE_JUMP * num:
        return ValueKind.LABELS
    # Labels that are numbered from place to place, or a scan of hardly any noise.
    return ValueKind.DOUBTFUL if steps >= _SMOOTH_STEPS or equal >= _FLAT else ValueKind.SCAN


def _neighbours(
    slices: npt.NDArray[np.float32], above: npt.NDArray[np.float32], usual: float
) -> tuple[float, float, int]:
    """Neighbours of which neither is background and not both are clipped.

    Args:
        slices: Some slices, (N, H, W).
        above: The next slice of each.
        usual: The background's value.

    Returns:
        The share of equal ones (1 where there are none), of rows and columns the lesser; the median number of
        steps from value to value between the others; and the number of different values.
    """
    values = _distinct(slices)
    shares, firsts, seconds = [], [], []
    for one, other in (
        (slices[:, :, :-1], slices[:, :, 1:]),
        (slices[:, :-1], slices[:, 1:]),
        (slices, above),
    ):
        is_tissue = (one != usual) & (other != usual)
        same = one == other
        is_clipped = same & ((one == values[0]) | (one == values[-1]))
        num_equal = int(np.count_nonzero(is_tissue & same & ~is_clipped))
        differing = is_tissue & ~same
        num = num_equal + int(np.count_nonzero(differing))
        shares.append(num_equal / num if num else 1.0)
        firsts.append(one[differing])
        seconds.append(other[differing])
    # Thick slices part regions: across them only hardly any equal ones tell a scan, one smooth within slices.
    equal = min(shares[:2]) if shares[2] >= _ACROSS else shares[2]
    first, second = np.concatenate(firsts[:2]), np.concatenate(seconds[:2])
    part = slice(None, None, max(1, first.size // _PAIRS))
    steps = np.abs(np.searchsorted(values, first[part]) - np.searchsorted(values, second[part]))
    return equal, float(np.median(steps)) if steps.size else 0.0, len(values)


def _distinct(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The different values in rising order."""
    low, high = float(array.min()), float(array.max())
    if high - low < _COUNTABLE and np.array_equal(array, np.rint(array)):
        counts = np.bincount((array - low).astype(np.int64).ravel())
        return np.flatnonzero(counts).astype(np.float64) + low
    return np.unique(array).astype(np.float64)


def _usual(values: npt.NDArray[np.float32]) -> float:
    found, counts = np.unique(values, return_counts=True)
    return float(found[counts.argmax()])


def _share_whole(values: npt.NDArray[np.float32]) -> float:
    return float(np.mean(values == np.rint(values)))
