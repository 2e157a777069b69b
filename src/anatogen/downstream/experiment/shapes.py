"""Volumes of random geometric shapes: the control that tells whether pre-training needs anatomy at all.

Networks that learned from drawings without any anatomy have transferred as well as from real images
(Kataoka et al., "Pre-training without natural images", ACCV 2020). A gain that shapes give too is not due
to what synthetic scans show.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

_MIN_SHAPES, _MAX_SHAPES = 4, 12


def random_shapes(shape: tuple[int, int, int], seed: int, number: int) -> npt.NDArray[np.float32]:
    """One volume of overlapping ellipsoids and boxes of random place, size, turn and brightness.

    Args:
        shape: (D, H, W).
        seed: Random seed of the set.
        number: Number of the volume in the set.

    Returns:
        float32 (D, H, W) in [-1, 1], on a background of -1, with a little blur and noise.
    """
    random = np.random.default_rng([seed, number])
    places = np.stack(np.meshgrid(*(np.arange(side) for side in shape), indexing="ij"), axis=-1)
    volume = np.full(shape, -1.0)
    for _ in range(random.integers(_MIN_SHAPES, _MAX_SHAPES + 1)):
        center = random.uniform(0.1, 0.9, 3) * shape
        radii = random.uniform(0.08, 0.4, 3) * min(shape)
        turn, _ = np.linalg.qr(random.normal(size=(3, 3)))
        local = np.abs((places - center) @ turn) / radii
        is_round = random.random() < 0.5
        inside = (local**2).sum(axis=-1) < 1 if is_round else local.max(axis=-1) < 1
        volume[inside] = random.uniform(-0.8, 1.0)
    volume = ndimage.gaussian_filter(volume, random.uniform(0.3, 0.9))
    volume += random.normal(scale=random.uniform(0.0, 0.05), size=shape)
    return np.clip(volume, -1, 1).astype(np.float32)
