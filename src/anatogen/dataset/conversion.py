"""Conversion in `prepare`: brings one scan to the common grid and range, and stores it."""

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
from anatogen.dataset.prepared_folder import MASKS_FOLDER, VOLUMES_FOLDER, WORK_FOLDER
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
        spacing_mm: Spacing of the common grid, or None to stretch the field of view to the shape.
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
    """A scan for `convert_scan`, and all that decides the bytes of its cases.

    Attributes:
        source: The scan.
        source_sha256: Hash of its bytes, as its record has it.
        placement: How it is brought to the grid.
        reading: How the source is read.
        regions: The parts of the scan that become a case each.
        intensities: The map to [-1, 1] of each.
        mask: Label map of the scan, if there is one.
        mask_sha256: Hash of its bytes, as its record has it.
        out: Folder of the dataset.
        ids: Name of each case.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Source
    source_sha256: str
    placement: Placement
    reading: Reading
    regions: tuple[Region, ...]
    intensities: tuple[Intensity, ...]
    mask: Source | None = None
    mask_sha256: str | None = None
    out: Path
    ids: tuple[str, ...]

    def sha256(self) -> str:
        """Hash of all that decides the outputs' bytes, wherever they lie."""
        deciding = self.model_dump(mode="json", exclude={"source", "mask", "out", "ids"})
        return sha256_json([__version__, deciding])

    def outputs(self, folder: str) -> list[Path]:
        """The .npy file of each case in the dataset's folder of volumes or of masks."""
        return [self.out / folder / f"{name}.npy" for name in self.ids]


class Conversion(BaseModel):
    """The record of a finished scan.

    Attributes:
        key: `ConversionTask.sha256` of the task that made it.
        affines: 4 x 4 of each prepared volume, voxel (d, h, w, 1) to RAS+ mm in the patient's space.
        labels: Those that each prepared mask holds, the background too.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    affines: tuple[list[list[float]], ...]
    labels: tuple[tuple[int, ...], ...] = ()


def convert_scan(task: ConversionTask) -> Conversion | LeftOut:
    """Writes the prepared arrays of a scan and of its mask, or finds that an interrupted run did.

    Arrays are float16, (D, H, W), in [-1, 1]; what the scan does not cover is -1. Masks are uint8 on the same
    grid: at each voxel's centre the nearest label, 0 where the scan does not reach. Both cases of a scan with
    two regions are made, or none. The scan is decoded once, as is its mask.
    """
    key = task.sha256()
    finished = task.out / WORK_FOLDER / "conversions" / f"{task.ids[0]}.json"
    outputs, mask_outputs = task.outputs(VOLUMES_FOLDER), task.outputs(MASKS_FOLDER) if task.mask else []
    try:
        record = Conversion.model_validate_json(finished.read_text(encoding="utf-8"))
        if record.key == key and all(path.is_file() for path in (*outputs, *mask_outputs)):
            return record
    except (OSError, ValidationError):
        pass
    # A record must never stand beside another task's array, whenever the process is killed.
    finished.unlink(missing_ok=True)
    try:
        scan = read_source(task.source, task.reading)
        parts = list(zip(task.regions, task.intensities, strict=True))
        volumes = [to_grid(scan, region, task.placement, intensity) for region, intensity in parts]
        arrays = [
            intensity.normalise(volume.array).astype(np.float16)
            for volume, intensity in zip(volumes, task.intensities, strict=True)
        ]
        for array in arrays:
            if array.min() == array.max():
                raise ScanError(Reason.CONSTANT_ON_GRID(value=float(array.min())))
        # Breasts may be outlined on another series of the same study: their mask keeps its own grid.
        mask = None if task.mask is None else on_grid_of(scan, read_mask(task.mask, task.reading))
    except ScanError as error:
        return LeftOut(task.source.name, error.refusal)
    for array, path in zip(arrays, outputs, strict=True):
        write_array(array, path)
    maps = [] if mask is None else [nearest(mask, volume) for volume in volumes]
    for labels, path in zip(maps, mask_outputs, strict=True):
        write_array(labels, path)
    record = Conversion(
        key=key,
        affines=tuple(volume.affine.tolist() for volume in volumes),
        labels=tuple(tuple(int(label) for label in np.unique(labels)) for labels in maps),
    )
    write_text(finished, record.model_dump_json())
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
