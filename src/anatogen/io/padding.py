"""Voxels outside a scanner's field of view that hold a value no tissue has: they become background.

Where a header names the value, readers know it; here are those that none names, as converters leave them.
"""

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from anatogen.io.volume import Volume

AIR_HU = -1000.0
# No tissue and no noise of air lies below or above; what is written with the wrong sign lies above.
_LOWEST_HU = -1500.0
_HIGHEST_HU = 30_000.0
# Fat and the noise around it: CT goes down to here, even where it is cropped to soft tissue; MR hardly ever.
_FAT_HU = -150.0
# Padding is one value, or a few: this share of what is out of range. The others are borders, interpolated.
_MOST_VALUES = 3
_SHARE_OF_THEM = 0.9
# Metal that is clipped, or counted beyond 16 bits, fills less of a scan.
_LEAST_ABOVE = 0.01
# In MR, whose unit is arbitrary: so many times all other values lie apart.
_GAP = 2.0


def without_padding(volume: Volume, is_ct: bool | None = None) -> Volume:
    """The scan with background where it holds padding: air in CT, else the lowest of the other values.

    Args:
        volume: Any scan, in its own unit.
        is_ct: Whether it is CT; None where only values tell.
    """
    array = volume.array
    below, above = array < _LOWEST_HU, array > _HIGHEST_HU
    if not (below.any() or above.any()):
        return volume
    others = array[~(below | above)]
    if others.size == 0 or others.min() == others.max():
        return volume
    lowest, highest = float(others.min()), float(others.max())
    if is_ct or (is_ct is None and lowest <= _FAT_HU):
        outside = np.zeros(array.shape, bool)
        if _is_padding(array[below]):
            outside |= below
        if np.mean(above) >= _LEAST_ABOVE and _is_padding(array[above]):
            outside |= above
        background = min(AIR_HU, lowest)
    else:
        is_apart = lowest - float(array.min()) > _GAP * (highest - lowest)
        outside = below & (is_apart and not above.any() and _is_padding(array[below]))
        background = lowest
    if not outside.any():
        return volume
    return replace(volume, array=np.where(outside, np.float32(background), array))


def _is_padding(values: npt.NDArray[np.float32]) -> bool:
    """Whether nearly all values are one, or a few."""
    if not values.size:
        return False
    counts = np.sort(np.unique(values, return_counts=True)[1])
    return bool(counts[-_MOST_VALUES:].sum() >= _SHARE_OF_THEM * values.size)
