"""Scans known again whatever their windows: nobody may learn from what he is judged by."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from anatogen.dataset.measures import standardised
from anatogen.dataset.scan_sets import ScanSet

# Voxels of a scan whose ranks are compared, about.
_NUM_RANKED = 4096
# Of one scan in two windows: much of it may be clipped in one of them, and hardly any in the other.
_LEAST_RANK_CORRELATION = 0.8
# Of one scan in two windows it is 1 but for rounding to float16.
_LEAST_LINE_CORRELATION = 0.9995


class KnownScans:
    """Scans that are looked for among others.

    A window clips a scan's values and maps the others by a line. So two arrays are of one scan if they lie
    on a line where neither is clipped. In memory are the ranks of a part of the voxels (16 kB a scan), which
    tell which pairs are worth a look.

    Args:
        num_scans: How many there are.
        read: Gives one by its number, float32 (D, H, W).
    """

    def __init__(self, num_scans: int, read: Callable[[int], npt.NDArray[np.float32]]) -> None:
        self._read = read
        self._ranks = np.stack([_ranks(read(number)) for number in range(num_scans)])

    def among(self, scans: ScanSet) -> int:
        """How many of the scans are known ones.

        Args:
            scans: On the same grid; whatever their windows.
        """
        likely = np.stack([_ranks(array) for array in scans.arrays]) @ self._ranks.T > _LEAST_RANK_CORRELATION
        return sum(
            any(_on_a_line(array, self._read(int(known))) for known in np.flatnonzero(row))
            for array, row in zip(scans.arrays, likely, strict=True)
        )


def _ranks(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    step = max(1, array.size // _NUM_RANKED)
    return standardised(rankdata(array.ravel()[::step])).astype(np.float32)


def _on_a_line(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> bool:
    # What is clipped has an array's lowest or highest value, in whatever unit it was clipped.
    inside = np.all([(part > part.min()) & (part < part.max()) for part in (x, y)], axis=0)
    # Scans of background and a single tissue, or with windows that have hardly a value in common.
    if inside.sum() < _NUM_RANKED // 8:
        return bool(np.array_equal(x, y))
    first, second = (standardised(part[inside].astype(np.float64)) for part in (x, y))
    return float(first @ second) > _LEAST_LINE_CORRELATION
