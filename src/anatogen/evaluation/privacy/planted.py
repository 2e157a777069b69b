"""Copies planted by the audit among its scans, to show what it is able to see."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.ndimage import gaussian_filter

Array = npt.NDArray[np.float32]

BLUR_SIGMA = 1.0
NOISE_DEVIATION = 0.1
DECODED = "decoded"


def _flipped(array: Array, generator: np.random.Generator) -> Array:
    flips = generator.integers(1, 8)
    return np.ascontiguousarray(np.flip(array, tuple(axis for axis in range(3) if flips >> axis & 1)))


def _blurred(array: Array, generator: np.random.Generator) -> Array:
    return gaussian_filter(array, BLUR_SIGMA).astype(np.float32)


def _noised(array: Array, generator: np.random.Generator) -> Array:
    noise = generator.standard_normal(array.shape, dtype=np.float32)
    return np.clip(array + NOISE_DEVIATION * noise, -1, 1).astype(np.float32)


# Ways to hide a copy.
KINDS: dict[str, Callable[[Array, np.random.Generator], Array]] = {
    "exact": lambda array, generator: array,
    "flipped": _flipped,
    "blurred": _blurred,
    "noised": _noised,
}
# The copies that the audit plants, for people; those of the autoencoder need a bundle that has one.
KIND_TEXTS = {
    "exact": "exact copies",
    "flipped": "copies flipped along a random set of axes",
    "blurred": f"copies blurred (Gaussian, sigma {BLUR_SIGMA:g} voxel)",
    "noised": f"copies with noise ({NOISE_DEVIATION / 2:.0%} of the intensity range)",
    DECODED: "copies out of the bundle's autoencoder",
}


def row_name(kind: str) -> str:
    """Name of the row with the recall of this kind."""
    return f"planted_{kind}"


def plant(kind: str, arrays: Array, seed: int) -> Array:
    """Changed copies of scans, float32 (M, D, H, W) in [-1, 1]; each depends on the seed and its place."""
    changed = [KINDS[kind](array, np.random.default_rng([seed, place])) for place, array in enumerate(arrays)]
    return np.stack(changed)
