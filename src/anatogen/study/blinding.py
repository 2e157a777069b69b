"""Scans of all sources made alike in everything but the picture: grid, unit, clipping, quantisation.

What gives a source away without a look at the anatomy is how its scans were stored: zeros that `prepare`
padded with, grey levels of an 8-bit original, values that a network never quite reaches. So

- scans lose the border that is padding, or what a network makes of it, in any of them: all the same
  voxels;
- grey levels of a coarse MR scan are spread over the gap between them (by less than the eye can see);
- values are clipped: MR at the same percentiles of each scan, CT at the same Hounsfield units; where that is
  not enough, a little above the background, so that nearly black becomes black in all; and where that is not
  enough either, all of the background becomes black;
- what is left is stored in whole numbers: 256 levels for MR, Hounsfield units for CT.

Blur, noise, anatomy and their like are the picture, and stay.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from anatogen.dataset.manifest import Intensity
from anatogen.report.numbers import times

MR_LEVELS = 256
# Share of each MR scan's voxels clipped at either end; more where a scan has more that were clipped before.
_LEAST_CLIPPED = 0.005
_MOST_CLIPPED = 0.02
# Parts of the range that become black too, and whether all of the background does.
_CLEARINGS = ((0.0, False), (0.02, False), (0.05, False), (0.05, True))
# Background lies below this part of the range.
BACKGROUND = 0.1
# A plane may be padding if it is darker than this part of the scan's mean,
_DIM = 0.4
# and is if more than this share of the next plane is brighter than this part of the range.
_ALL_OVER = 0.5
# Part of every axis that a common box must keep.
_LEAST_KEPT = 0.5
# Widest gap between grey levels in [-1, 1] that is filled: wider ones would be seen.
_WIDEST_GAP = 0.05

Box = tuple[slice, slice, slice]


@dataclass(frozen=True)
class Blinding:
    """How scans are made alike.

    Attributes:
        intensity: Modality, and the Hounsfield units of [-1, 1].
        shape: Shape of the whole grid, (D, H, W).
        box: Part of the grid that is kept.
        clipped: Fractions of each MR scan's voxels that become black and white.
        window: Part of [-1, 1] that is kept of CT.
        floor: Part of the range above its lower end that becomes black too.
        clears_background: Whether dark surroundings become black throughout.
    """

    intensity: Intensity
    shape: tuple[int, int, int]
    box: Box
    clipped: tuple[float, float]
    window: tuple[float, float]
    floor: float
    clears_background: bool

    @property
    def kept(self) -> tuple[int, int, int]:
        """Shape of the part that is kept."""
        d, h, w = (part.stop - part.start for part in self.box)
        return d, h, w

    @property
    def at_percentiles(self) -> bool:
        """Whether every scan is clipped at percentiles of its own."""
        return self.intensity.modality == "MR" and self.floor == 0

    @property
    def stored_window(self) -> tuple[int, int]:
        """Stored values between which scans are clipped: Hounsfield units of CT, levels of MR."""
        if self.intensity.modality == "MR":
            return 0, MR_LEVELS - 1
        low, high = (
            self.intensity.low + (end + 1) / 2 * (self.intensity.high - self.intensity.low)
            for end in self.window
        )
        return round(low + self.floor * (high - low)), round(high)

    def __str__(self) -> str:
        kept, whole = times(self.kept), times(self.shape)
        floor = f", made black the lowest {self.floor:.0%} of the range" if self.floor else ""
        cleared = " and all of the dark background" if self.clears_background else ""
        part = f"all {whole}" if kept == whole else f"{kept} of {whole}"
        return f"{part} voxels kept{floor}{cleared}"


def blindings(arrays: npt.NDArray[np.float32], intensity: Intensity) -> Iterator[Blinding]:
    """Ways of making scans alike, the mildest first.

    Args:
        arrays: float32 (N, D, H, W) in [-1, 1], of all sources.
        intensity: Modality, and the Hounsfield units of [-1, 1].
    """
    box = common_box(arrays)
    inside = arrays[(slice(None), *box)].reshape(len(arrays), -1)
    lows, highs = inside.min(axis=1), inside.max(axis=1)
    clipped = [
        float(np.clip((inside == end[:, None]).mean(axis=1).max(), _LEAST_CLIPPED, _MOST_CLIPPED))
        for end in (lows, highs)
    ]
    # Every scan reaches both ends, unless one would take most of the window with it.
    window = float(lows.max()), float(highs.min())
    if window[1] - window[0] < 1:
        window = -1.0, 1.0
    _, d, h, w = arrays.shape
    for floor, clears in _CLEARINGS:
        yield Blinding(intensity, (d, h, w), box, (clipped[0], clipped[1]), window, floor, clears)


def common_box(arrays: npt.NDArray[np.float32]) -> Box:
    """The part of the grid that is padding in no scan; all of the grid where too little would be left.

    Args:
        arrays: float32 (N, D, H, W).
    """
    _, d, h, w = arrays.shape
    starts, stops = np.max([padded_borders(array) for array in arrays], axis=0)
    kept = np.array([d, h, w]) - starts - stops
    if (kept < _LEAST_KEPT * np.array([d, h, w])).any():
        return slice(0, d), slice(0, h), slice(0, w)
    box = [slice(int(a), int(a + size)) for a, size in zip(starts, kept, strict=True)]
    return box[0], box[1], box[2]


def padded_borders(array: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """How many planes at the borders are padding, or what a network makes of padding.

    Those are dark, and tissue begins all over the plane that follows; after planes of air around a body it
    begins in the plane's middle.

    Args:
        array: (D, H, W), in any unit.

    Returns:
        int64 (2, 3): at the start and at the end of each axis.
    """
    low, high = float(array.min()), float(array.max())
    counts = np.zeros((2, 3), dtype=np.int64)
    for axis in range(3):
        others = tuple({0, 1, 2} - {axis})
        means = array.mean(axis=others, dtype=np.float64) - low
        lit = (array > low + BACKGROUND * (high - low)).mean(axis=others)
        bright = np.flatnonzero(means > _DIM * means.mean())
        if len(bright):
            first, last = int(bright[0]), int(bright[-1])
            counts[0, axis] = first if lit[first] > _ALL_OVER else 0
            counts[1, axis] = len(means) - 1 - last if lit[last] > _ALL_OVER else 0
    return counts


def blinded(
    array: npt.NDArray[np.float32], how: Blinding, generator: np.random.Generator
) -> npt.NDArray[np.int16]:
    """One scan, made like the others.

    Args:
        array: float32 (D, H, W) in [-1, 1].
        how: Way in which all scans are made alike.
        generator: Generator of the noise that fills gaps between grey levels of MR.

    Returns:
        int16: 0 to 255 for MR, Hounsfield units for CT.
    """
    if how.intensity.modality == "CT":
        hu = np.rint(how.intensity.restore(array[how.box]))
        return _cleared(np.asarray(np.clip(hu, *how.stored_window), dtype=np.int16), how)
    inside = spread_levels(array[how.box], generator)
    darkest, brightest = np.quantile(inside, (how.clipped[0], 1 - how.clipped[1]))
    darkest += how.floor * (brightest - darkest)
    scaled = (inside - darkest) / max(brightest - darkest, 1e-6)
    # Black and white are what was clipped, and nothing else: their shares don't depend on rounding.
    levels = np.clip(1 + np.floor((MR_LEVELS - 2) * scaled), 1, MR_LEVELS - 2)
    levels[inside <= darkest] = 0
    levels[inside >= brightest] = MR_LEVELS - 1
    return _cleared(np.asarray(levels, dtype=np.int16), how)


def _cleared(array: npt.NDArray[np.int16], how: Blinding) -> npt.NDArray[np.int16]:
    return np.where(background(array), array.min(), array) if how.clears_background else array


def background(array: npt.NDArray[np.int16]) -> npt.NDArray[np.bool_]:
    """Where a blinded scan is dark around the body: what reaches the border, but for the body's own edge.

    Args:
        array: int16 (D, H, W).

    Returns:
        bool (D, H, W).
    """
    low, high = float(array.min()), float(array.max())
    deep = ndimage.binary_erosion(
        array <= low + BACKGROUND * (high - low), np.ones((3, 3, 3)), border_value=1
    )
    labels, _ = ndimage.label(deep)
    faces = [np.take(labels, end, axis).ravel() for axis in range(3) for end in (0, -1)]
    outside = np.unique(np.concatenate(faces))
    return np.asarray(np.isin(labels, outside[outside > 0]))


def spread_levels(array: npt.NDArray[np.float32], generator: np.random.Generator) -> npt.NDArray[np.float32]:
    """Spreads each grey level evenly to half-way to its neighbours, so that its histogram has no teeth.

    Values of scans that are not coarse move by no more than their own rounding, none by more than 1/80 of the
    range. The darkest and the brightest value, which stand for all beyond them, stay.

    Args:
        array: float32, any shape, in [-1, 1], of values that float16 holds.
        generator: Generator of each voxel's place in its gap.
    """
    # A table over all numbers of 16 bits takes a tenth of the time of sorting voxels. Adding 0 makes -0 to 0.
    codes = (array.astype(np.float16) + np.float16(0)).view(np.uint16)
    present = np.flatnonzero(np.bincount(codes.ravel(), minlength=1 << 16)).astype(np.uint16)
    values = present.view(np.float16).astype(np.float32)
    order = np.argsort(values)
    half = np.minimum(np.diff(values[order]), _WIDEST_GAP) / 2
    below, above = np.concatenate([[0], half]), np.concatenate([half, [0]])
    below[[0, -1]] = above[[0, -1]] = 0
    start, width = np.zeros((2, 1 << 16), dtype=np.float32)
    start[present[order]], width[present[order]] = values[order] - below, below + above
    position = generator.random(array.shape, dtype=np.float32)
    return np.asarray(start[codes] + position * width[codes], dtype=np.float32)
