"""Conversion in `prepare`: brings one scan to the common grid and range, and stores it."""

from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from anatogen.core.errors import ScanError
from anatogen.core.files import sha256_json, write_text
from anatogen.core.reasons import Reason
from anatogen.core.version import __version__
from anatogen.dataset.discover import LeftOut, Source
from anatogen.dataset.manifest import Intensity
from anatogen.dataset.masks import nearest, on_grid_of
from anatogen.dataset.reading import read_mask, read_source
from anatogen.dataset.regions import Region, oriented_box
from anatogen.io.formats import Reading
from anatogen.io.geometry import (
    Interpolation,
    crop_or_pad,
    cut,
    foreground_center,
    foreground_threshold,
    orient,
    resample,
)
from anatogen.io.npy import write_array
from anatogen.io.volume import Volume


class Placement(BaseModel):
    """How scans are brought to the common grid.

    Attributes:
        codes: Directions in which (D, H, W) grow.
        spacing_mm: Of the common grid, or None to stretch the field of view to the shape.
        shape: (D, H, W).
        center: What comes to the middle.
        interpolation: How values between voxels are found.
        cube: Whether the region is padded to a cube first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    codes: str
    spacing_mm: tuple[float, float, float] | None
    shape: tuple[int, int, int]
    center: Literal["grid", "foreground"]
    interpolation: Interpolation
    cube: bool = False


class ConversionTask(BaseModel):
    """One part of a scan for `convert_scan`, and all that decides its bytes.

    Attributes:
        source: The scan.
        source_sha256: Of its bytes, as its record has it.
        intensity: Its map to [-1, 1].
        placement: How it is brought to the grid.
        reading: How the source is read.
        region: The part of the scan.
        mask: Label map of the scan, if there is one.
        mask_sha256: Of its bytes, as its record has it.
        output: The .npy file to write.
        mask_output: The .npy file of the mask, if there is one.
        record: The JSON file that says that the outputs are done.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Source
    source_sha256: str
    intensity: Intensity
    placement: Placement
    reading: Reading
    region: Region
    mask: Source | None = None
    mask_sha256: str | None = None
    output: Path
    mask_output: Path | None = None
    record: Path

    def sha256(self) -> str:
        """Hash of all that decides the outputs' bytes, wherever they lie."""
        places = {"source", "mask", "output", "mask_output", "record"}
        deciding = self.model_dump(mode="json", exclude=places)
        return sha256_json([__version__, deciding])


class Conversion(BaseModel):
    """The record of a finished scan.

    Attributes:
        key: `ConversionTask.sha256` of the task that made it.
        affine: 4 x 4 of the prepared volume, voxel (d, h, w, 1) to RAS+ mm in the patient's space.
        labels: That the prepared mask holds, the background too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    affine: list[list[float]]
    labels: tuple[int, ...] = ()


def convert_scan(tasks: Sequence[ConversionTask]) -> list[Conversion | LeftOut]:
    """Writes the prepared arrays of a scan's parts and of its mask, or finds that an interrupted run did.

    Arrays are float16, (D, H, W), in [-1, 1]; what the scan does not cover is -1. Masks are uint8 on the same
    grid: at each voxel's centre the nearest label, 0 where the scan does not reach.

    Args:
        tasks: The parts, all of one scan, which is decoded once, as is its mask.
    """
    first = tasks[0]
    scan = cache(lambda: read_source(first.source, first.reading))

    @cache
    def mask() -> Volume | None:
        # Breasts may be outlined on another series of the same study: their mask keeps its own grid.
        return None if first.mask is None else on_grid_of(scan(), read_mask(first.mask, first.reading))

    return [_convert_part(task, scan, mask) for task in tasks]


def _convert_part(
    task: ConversionTask, scan: Callable[[], Volume], mask: Callable[[], Volume | None]
) -> Conversion | LeftOut:
    key = task.sha256()
    try:
        record = Conversion.model_validate_json(task.record.read_text(encoding="utf-8"))
        outputs = [path for path in (task.output, task.mask_output) if path is not None]
        if record.key == key and all(path.is_file() for path in outputs):
            return record
    except (OSError, ValidationError):
        pass
    # A record must never stand beside another task's array, whenever the process is killed.
    task.record.unlink(missing_ok=True)
    try:
        volume = to_grid(scan(), task.region, task.placement, task.intensity)
        array = task.intensity.normalise(volume.array).astype(np.float16)
        if array.min() == array.max():
            raise ScanError(Reason.CONSTANT_ON_GRID(value=float(array.min())))
        found = mask()
    except ScanError as error:
        return LeftOut(task.source.name, error.refusal)
    write_array(array, task.output)
    held: tuple[int, ...] = ()
    if found is not None and task.mask_output is not None:
        labels = nearest(found, volume)
        write_array(labels, task.mask_output)
        held = tuple(int(label) for label in np.unique(labels))
    record = Conversion(key=key, affine=volume.affine.tolist(), labels=held)
    write_text(task.record, record.model_dump_json())
    return record


def to_grid(scan: Volume, region: Region, placement: Placement, intensity: Intensity) -> Volume:
    """A part of a scan on the common grid, in the scan's own unit.

    Args:
        scan: As it was read.
        region: The part.
        placement: How it is brought there.
        intensity: What lies outside the scan gets the value that becomes -1.
    """
    volume = orient(scan, placement.codes)
    box = oriented_box(region, scan, volume, cube=placement.cube)
    interpolation, background = placement.interpolation, intensity.low
    if placement.spacing_mm is None:
        return resample(
            volume, shape=placement.shape, interpolation=interpolation, box=box, background=background
        )
    # Up to a thousandth the grids differ by less than a voxel over the field of view: values stay as scanned.
    if np.allclose(volume.spacing_mm, placement.spacing_mm, rtol=1e-3):
        volume = cut(volume, box)
    else:
        volume = resample(
            volume,
            spacing_mm=placement.spacing_mm,
            interpolation=interpolation,
            box=box,
            background=background,
        )
    center = None
    if placement.center == "foreground":
        center = foreground_center(volume, foreground_threshold(volume.array, intensity.modality))
    return crop_or_pad(volume, placement.shape, background, center)
