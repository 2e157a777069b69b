"""Which scans of a folder are the same picture, though their voxels differ: `doctor` asks.

Each scan is described by its whole field of view on a small cube: ranks instead of values, so that windows,
units and gamma do not matter, without the slow part that all scans of one organ share. A coarse description
of every scan is compared with every other; the likeliest pairs are then compared in a finer one, allowing
for a shift.

On 216 hippocampi of different patients (one organ, cropped and aligned: as alike as patients get) the
most similar pair reaches 0.83; copies with noise, another window or gamma, resampled or shifted by a voxel in
three axes at least 0.89 (`tests/dataset/test_near_duplicates.py`).
"""

from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.stats import rankdata

from anatogen.dataset.measures import standardised, thumbnail
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
# Scans that are compared with all others at a time.
_CHUNK = 64
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
    return standardised(ranks - ndimage.gaussian_filter(ranks, _SLOW[size], mode="nearest"))


def likely_pairs(coarse: npt.NDArray[np.float16]) -> list[tuple[int, int, tuple[int, ...]]]:
    """Pairs that may be the same picture, with the axes along which the second is mirrored.

    Compares some with all at a time: memory grows with the number of scans, not with its square.

    Args:
        coarse: (N, 12, 12, 12), of `describe`.
    """
    everything = coarse.reshape(len(coarse), -1).astype(np.float32)
    # What is symmetric is not called mirrored.
    handicaps = np.array([_LEAST_GAIN if flips else 0 for flips in _FLIPS], np.float32)[:, None, None]
    pairs = []
    for start in range(0, len(coarse), _CHUNK):
        rows = coarse[start : start + _CHUNK].astype(np.float32)
        mirrored = [
            np.flip(rows, tuple(axis + 1 for axis in flips)).reshape(len(rows), -1) for flips in _FLIPS
        ]
        tables = np.stack([part @ everything.T for part in mirrored])
        tables = np.where(tables > _WORTH_A_LOOK, tables - handicaps, 0)
        flips_of = tables.argmax(axis=0)
        # Each pair once.
        best = np.triu(tables.max(axis=0), start + 1)
        for row, likeliest in enumerate(np.argsort(-best, axis=1)[:, :_MAX_CANDIDATES]):
            pairs += [
                (start + row, int(column), _FLIPS[flips_of[row, column]])
                for column in sorted(likeliest)
                if best[row, column] > 0
            ]
    return pairs


def similarity(first: Cube, second: Cube) -> float:
    """The largest correlation of two fine descriptions over small shifts, in [-1, 1].

    Args:
        first: (24, 24, 24), of `describe`.
        second: The same of the other scan.
    """
    size, most = first.shape[0], _MAX_SHIFT
    middle = standardised(first[most:-most, most:-most, most:-most]).ravel()
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


def compare_pair(pair: tuple[Path, Path, tuple[int, ...]]) -> float:
    """`similarity` of two scans: the files of their fine descriptions, and how the second is mirrored."""
    first, second = (np.load(path, allow_pickle=False).astype(np.float32) for path in pair[:2])
    return similarity(first, np.flip(second, pair[2]))
