"""Pass 2 of `prepare`: brings one scan to the common grid and range, and stores it."""

from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, ValidationError

from anatogen import __version__
from anatogen.data.discover import LeftOut, Source
from anatogen.data.inspection import read_source
from anatogen.data.manifest import Intensity
from anatogen.data.transforms import (
    Interpolation,
    crop_or_pad,
    foreground_center,
    orient,
    otsu_threshold,
    resample,
)
from anatogen.data.volume import Volume
from anatogen.errors import ScanError
from anatogen.storage import atomic_path, sha256_json, write_text

# Separates a body from the air around it in CT.
BODY_HU = -500.0


class ConversionTask(BaseModel):
    """One scan for `convert_scan`, and all that decides its bytes.

    Attributes:
        source: The scan.
        source_sha256: Of its bytes, as pass 1 found it.
        intensity: Its map to [-1, 1].
        codes: Directions in which (D, H, W) grow.
        spacing_mm: Of the common grid, or None to stretch the field of view to the shape.
        shape: (D, H, W).
        center: What comes to the middle.
        interpolation: How values between voxels are found.
        npy_spacing_mm: Spacing of .npy files.
        allow_tilt: Whether DICOM series with gantry tilt are resampled.
        output: The .npy file to write.
        record: The JSON file that says that `output` is done.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source: Source
    source_sha256: str
    intensity: Intensity
    codes: str
    spacing_mm: tuple[float, float, float] | None
    shape: tuple[int, int, int]
    center: Literal["grid", "foreground"]
    interpolation: Interpolation
    npy_spacing_mm: tuple[float, float, float]
    allow_tilt: bool = False
    output: Path
    record: Path

    def sha256(self) -> str:
        """Hash of all that decides the output's bytes, wherever it lies."""
        deciding = self.model_dump(mode="json", exclude={"source", "output", "record"})
        return sha256_json([__version__, deciding])


class Conversion(BaseModel):
    """The record of a finished scan.

    Attributes:
        key: `ConversionTask.sha256` of the task that made it.
        affine: 4 x 4 of the prepared volume, voxel (d, h, w, 1) to RAS+ mm in the patient's space.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    key: str
    affine: list[list[float]]


def convert_scan(task: ConversionTask) -> Conversion | LeftOut:
    """Writes the scan's prepared array, or finds that an interrupted run did.

    The array is float16, (D, H, W), in [-1, 1]; what the scan does not cover is -1.
    """
    key = task.sha256()
    try:
        record = Conversion.model_validate_json(task.record.read_text(encoding="utf-8"))
        if record.key == key and task.output.is_file():
            return record
    except (OSError, ValidationError):
        pass
    # A record must never stand beside another task's array, whenever the process is killed.
    task.record.unlink(missing_ok=True)
    try:
        volume = _to_grid(read_source(task.source, task.npy_spacing_mm, allow_tilt=task.allow_tilt), task)
        array = task.intensity.normalise(volume.array).astype(np.float16)
        if array.min() == array.max():
            raise ScanError(f"on the common grid it is constant: every voxel is {float(array.min()):g}")
    except ScanError as error:
        return LeftOut(task.source.name, str(error))
    with atomic_path(task.output) as temporary, temporary.open("wb") as file:
        np.save(file, array, allow_pickle=False)
    record = Conversion(key=key, affine=volume.affine.tolist())
    write_text(task.record, record.model_dump_json())
    return record


def _to_grid(volume: Volume, task: ConversionTask) -> Volume:
    volume = orient(volume, task.codes)
    if task.spacing_mm is None:
        return resample(volume, shape=task.shape, interpolation=task.interpolation)
    # Up to a thousandth the grids differ by less than a voxel over the field of view: values stay as scanned.
    if not np.allclose(volume.spacing_mm, task.spacing_mm, rtol=1e-3):
        volume = resample(volume, spacing_mm=task.spacing_mm, interpolation=task.interpolation)
    center = None
    if task.center == "foreground":
        threshold = BODY_HU if task.intensity.modality == "CT" else otsu_threshold(volume.array)
        center = foreground_center(volume, threshold)
    return crop_or_pad(volume, task.shape, task.intensity.low, center)
