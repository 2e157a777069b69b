"""Which scans of a folder are the same picture, though their voxels differ: `doctor` asks.

Each scan is described by its whole field of view on a small cube: ranks instead of values, so that windows,
units and gamma do not matter, without the slow part that all scans of one organ share. A coarse description
of every scan is compared with every other; the likeliest pairs are then compared in a finer one, allowing
for a shift.

On 216 hippocampi of different patients (one organ, cropped and aligned: as alike as patients get) the
likest pair reaches 0.83; copies with noise, another window or gamma, resampled or shifted by a voxel in
three axes at least 0.89 (`tests/dataset/test_near_duplicates.py`).
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import rankdata

from anatogen.dataset.measures import thumbnail
from anatogen.io.volume import Volume

Cube = npt.NDArray[np.float32]

COARSE_SIZE, FINE_SIZE = 12, 24
# Above it two scans are the same picture; see the module's docstring.
THRESHOLD = 0.86
# Of a coarse description of a copy with a shift; patients of one organ stay below it in 99 of 100 pairs.
_WORTH_A_LOOK = 0.7
# Scans that are compared in the fine description with each scan, at most.
_MAX_CANDIDATES = 4
# In voxels of the fine cube; a scan of 48 voxels may be shifted by 4.
_MAX_SHIFT = 2
_CHUNK = 256
# Of a mirrored scan over the scan as it is, or it is taken as it is.
_LEAST_GAIN = 0.05
# Standard deviation, in voxels of the cube, of what is slow: (coarse, fine).
_SLOW = {COARSE_SIZE: 1.5, FINE_SIZE: 2.5}
_FLIPS = tuple(
    tuple(axis for axis, turned in enumerate(flips) if turned) for flips in product((0, 1), repeat=3)
)


def describe(volume: Volume, size: int) -> Cube:
    """Ranks of the scan's values on a cube of its whole field of view, without what is slow.

    Args:
        volume: Any scan, or its `thumbnail`, which gives the same.
        size: `COARSE_SIZE` or `FINE_SIZE`.

    Returns:
        float32, (size, size, size) along "SPL", mean 0 and norm 1.
    """
    array = thumbnail(volume).array
    sigma = [0.5 * max(length / size, 1) for length in array.shape]
    smooth = ndimage.gaussian_filter(array, sigma, mode="nearest")
    places = [(np.arange(size) + 0.5) * length / size - 0.5 for length in array.shape]
    grid = np.meshgrid(*places, indexing="ij")
    cube = ndimage.map_coordinates(smooth, grid, order=1, mode="nearest")
    ranks = (rankdata(cube.ravel()) / cube.size).reshape(cube.shape).astype(np.float32)
    return _standardised(ranks - ndimage.gaussian_filter(ranks, _SLOW[size], mode="nearest"))


def _standardised(cube: Cube) -> Cube:
    centred = cube - cube.mean()
    norm = float(np.linalg.norm(centred))
    return np.asarray(centred / norm if norm > 0 else centred, dtype=np.float32)


def likely_pairs(coarse: npt.NDArray[np.float16]) -> list[tuple[int, int, tuple[int, ...]]]:
    """Pairs that may be the same picture, with the axes along which the second is mirrored.

    Compares all with all, in blocks: memory grows with the number of scans, not with its square.

    Args:
        coarse: (N, 12, 12, 12), of `describe`.
    """
    number = len(coarse)
    pairs: dict[tuple[int, int], tuple[float, tuple[int, ...]]] = {}
    for start in range(0, number, _CHUNK):
        rows = coarse[start : start + _CHUNK].astype(np.float32).reshape(-1, COARSE_SIZE**3)
        best: list[list[tuple[float, int, tuple[int, ...]]]] = [[] for _ in rows]
        for other in range(start, number, _CHUNK):
            block = coarse[other : other + _CHUNK].astype(np.float32)
            for flips in _FLIPS:
                mirrored = np.flip(block, tuple(axis + 1 for axis in flips)).reshape(len(block), -1)
                # What is symmetric is not called mirrored.
                handicap = _LEAST_GAIN if flips else 0.0
                # Each pair once.
                table = np.triu(rows @ mirrored.T, start - other + 1)
                likeliest = np.argsort(-table, axis=1)[:, :_MAX_CANDIDATES]
                for row, columns in enumerate(likeliest):
                    best[row] += [
                        (float(table[row, column]) - handicap, other + int(column), flips)
                        for column in columns
                        if table[row, column] > _WORTH_A_LOOK
                    ]
        for row, found in enumerate(best):
            for correlation, column, flips in sorted(found, reverse=True)[:_MAX_CANDIDATES]:
                pair = (start + row, column)
                if correlation > pairs.get(pair, (0.0, ()))[0]:
                    pairs[pair] = (correlation, flips)
    return [(first, second, flips) for (first, second), (_, flips) in sorted(pairs.items())]


def similarity(first: Cube, second: Cube) -> float:
    """The largest correlation of two fine descriptions over small shifts, in [-1, 1].

    Args:
        first: (24, 24, 24), of `describe`.
        second: The same of the other scan.
    """
    size, most = first.shape[0], _MAX_SHIFT
    middle = _standardised(first[most:-most, most:-most, most:-most]).ravel()
    length = size - 2 * most
    windows = np.lib.stride_tricks.sliding_window_view(second, (length,) * 3)
    best = -1.0
    for shift in product(range(2 * most + 1), repeat=3):
        part = windows[shift].ravel()
        spread = float(np.sqrt(len(part)) * part.std())
        if spread > 0:
            # The middle has mean 0, so the part's own mean does not count.
            best = max(best, float(middle @ part) / spread)
    return best


@dataclass(frozen=True)
class PairTask:
    """Two scans for `compare_pair`: the files of their fine descriptions, and how the second is mirrored."""

    first: Path
    second: Path
    flips: tuple[int, ...]


def compare_pair(task: PairTask) -> float:
    """`similarity` of two scans whose fine descriptions are on disk."""
    first, second = (
        np.load(path, allow_pickle=False).astype(np.float32) for path in (task.first, task.second)
    )
    return similarity(first, np.flip(second, task.flips))
