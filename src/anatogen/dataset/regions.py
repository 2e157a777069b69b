"""The part of a scan that is brought to the grid: all of it, its foreground, or each breast by itself."""

from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from anatogen.core.errors import ScanError
from anatogen.core.reasons import Reason
from anatogen.dataset.breasts import breast_boxes
from anatogen.io.checks import MIN_VOXELS
from anatogen.io.geometry import Box, box_after_orient, foreground_box, foreground_threshold, triple
from anatogen.io.volume import Volume

RegionKind = Literal["scan", "foreground", "breasts", "breasts_by_mask"]

# Share of a scan's outermost voxels that are exactly 0 where a program has cut everything else away: scanners
# leave noise there.
_CUT_OUT = 0.9
# Specks that a skull stripper left beside the brain are smaller than this share of it.
_SPECK = 0.01


class Region(BaseModel):
    """A box of voxels of a scan.

    Attributes:
        side: "left" or "right" where a scan gives two of them, else None.
        start: First voxel (d, h, w).
        shape: (D, H, W).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    side: Literal["left", "right"] | None = None
    start: tuple[int, int, int]
    shape: tuple[int, int, int]


def find_regions(volume: Volume, kind: RegionKind, modality: str, mask: Volume | None) -> list[Region]:
    """The boxes of a scan that become a case each.

    Args:
        volume: Any scan.
        kind: "scan": all of it. "foreground": the box around the largest bright object, or where all but an
            object was set to 0 (a skull-stripped brain), around what is not 0. "breasts": the left and the
            right half of the breast region, by the body's outline; "breasts_by_mask": by a mask where there
            is one.
        modality: "CT" or "MR": by it, what is bright is told from air.
        mask: Of the breasts, for "breasts_by_mask".

    Raises:
        ScanError: If there is no such region, or it is thinner than a volume may be.
    """
    if kind in ("breasts", "breasts_by_mask"):
        left, right = breast_boxes(volume, mask if kind == "breasts_by_mask" else None)
        regions = [Region(side="left", start=left[0], shape=left[1])]
        regions.append(Region(side="right", start=right[0], shape=right[1]))
    elif kind == "foreground":
        box = _cut_out_box(volume.array)
        if box is None:
            box = foreground_box(volume, foreground_threshold(volume.array, modality))
        if box is None:
            raise ScanError(Reason.NO_FOREGROUND())
        sizes = triple(part.stop - part.start for part in box)
        regions = [Region(start=triple(part.start for part in box), shape=sizes)]
    else:
        regions = [Region(start=(0, 0, 0), shape=triple(volume.array.shape))]
    for region in regions:
        if min(region.shape) < MIN_VOXELS:
            raise ScanError(Reason.SMALL_REGION(region=region.side or "foreground", shape=region.shape))
    return regions


def window_voxels(array: npt.NDArray[np.float32], region: Region) -> npt.NDArray[np.float32]:
    """The voxels whose values decide a region's window: its own where a scan gives two, else the scan's.

    Args:
        array: float32 (D, H, W), the scan's.
        region: One of its regions.
    """
    if region.side is None:
        return array
    stop = (first + size for first, size in zip(region.start, region.shape, strict=True))
    return array[tuple(slice(first, last) for first, last in zip(region.start, stop, strict=True))]


def cube_shape(shape: tuple[int, int, int], spacing_mm: tuple[float, float, float]) -> tuple[int, int, int]:
    """Voxels (D, H, W) of the cube around a box: equally many millimetres each way, to less than a voxel."""
    lengths = np.array(shape) * spacing_mm
    return triple(int(np.ceil(round(lengths.max() / size, 3))) for size in spacing_mm)


def oriented_box(region: Region, scan: Volume, oriented: Volume, *, cube: bool) -> Box:
    """A region in the voxels of its scan after `orient`, as it is or in the middle of the cube around it.

    Args:
        region: In the voxels of the scan.
        scan: As it was read.
        oriented: What `orient` made of it.
        cube: Whether the cube is wanted. It may reach beyond the scan: its first voxel may be negative.
    """
    box = region.start, region.shape
    if cube:
        wide = cube_shape(region.shape, scan.spacing_mm)
        first = np.array(region.start) - (np.array(wide) - region.shape) // 2
        box = triple(first.tolist()), wide
    return box_after_orient(box, scan, oriented)


def _cut_out_box(array: npt.NDArray[np.float32]) -> tuple[slice, slice, slice] | None:
    """The box around what is not exactly 0, where nearly all of the outermost voxels are."""
    outer = np.ones(array.shape, bool)
    outer[1:-1, 1:-1, 1:-1] = False
    if np.mean(array[outer] == 0) < _CUT_OUT:
        return None
    labels, _ = ndimage.label(array != 0)
    sizes = np.bincount(labels.ravel())
    sizes[0] = 0
    kept = sizes > _SPECK * sizes.max()
    d, h, w = ndimage.find_objects(kept[labels].astype(np.uint8))[0]
    return d, h, w
