"""Pass 2 of `prepare`: brings one scan to the common grid and range, and stores it."""

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from anatogen.core.errors import ScanError
from anatogen.core.files import sha256_json, write_text
from anatogen.core.reasons import Reason
from anatogen.core.version import __version__
from anatogen.dataset.discover import LeftOut, Source
from anatogen.dataset.inspection import read_mask, read_source
from anatogen.dataset.manifest import Intensity
from anatogen.dataset.masks import nearest, on_grid_of
from anatogen.dataset.regions import Region, cut, oriented_box
from anatogen.io.formats import Reading
from anatogen.io.geometry import (
    Interpolation,
    crop_or_pad,
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
    """One scan for `convert_scan`, and all that decides its bytes.

    Attributes:
        source: The scan.
        source_sha256: Of its bytes, as pass 1 found it.
        intensity: Its map to [-1, 1].
        placement: How it is brought to the grid.
        reading: How the source is read.
        region: The part of the scan.
        mask: Label map of the scan, if there is one.
        mask_sha256: Of its bytes, as pass 1 found it.
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


def convert_scan(task: ConversionTask) -> Conversion | LeftOut:
    """Writes the scan's prepared array and that of its mask, or finds that an interrupted run did.

    The array is float16, (D, H, W), in [-1, 1]; what the scan does not cover is -1. The mask is uint8 on the
    same grid: at each voxel's centre the nearest label, 0 where the scan does not reach.
    """
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
        scan = read_source(task.source, task.reading)
        volume = to_grid(scan, task.region, task.placement, task.intensity)
        array = task.intensity.normalise(volume.array).astype(np.float16)
        if array.min() == array.max():
            raise ScanError(Reason.CONSTANT_ON_GRID(value=float(array.min())))
        labels = None if task.mask is None else _labels_on(volume, scan, task.mask, task)
    except ScanError as error:
        return LeftOut(task.source.name, error.refusal)
    write_array(array, task.output)
    if labels is not None and task.mask_output is not None:
        write_array(labels, task.mask_output)
    held = () if labels is None else tuple(int(label) for label in np.unique(labels))
    record = Conversion(key=key, affine=volume.affine.tolist(), labels=held)
    write_text(task.record, record.model_dump_json())
    return record


def _labels_on(grid: Volume, scan: Volume, source: Source, task: ConversionTask) -> npt.NDArray[np.uint8]:
    mask = read_mask(source, task.reading)
    # Breasts may be outlined on another series of the same study: pass 1 found that it shows them.
    return nearest(on_grid_of(scan, mask, required=False), grid)


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
