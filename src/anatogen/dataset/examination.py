"""What `doctor` learns of the voxels of one scan, in worker processes.

A worker gives back a few kilobytes whatever the size of the scan, so that memory does not grow with the
scans.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from anatogen.core.errors import ScanError
from anatogen.core.files import write_text
from anatogen.core.reasons import Reason, Refusal
from anatogen.dataset.discover import Source
from anatogen.dataset.inspection import (
    Inspection,
    InspectionTask,
    count_labels,
    measure,
    read_source,
    source_sha256,
)
from anatogen.dataset.near_duplicates import COARSE_SIZE, FINE_SIZE, describe
from anatogen.io.checks import ConstantScanError
from anatogen.io.formats import Reading
from anatogen.io.geometry import orient, slice_plane
from anatogen.io.npy import write_array
from anatogen.io.volume import Volume

# Sides of the pictures on the page, in pixels.
_PICTURE_SIZE = 192


class Look(BaseModel):
    """What the voxels of a scan tell. Holds no name and nothing of a header but geometry.

    Attributes:
        digest: `source_sha256` of the files.
        refusal: Why `prepare` would leave the scan out; None if it would not.
        inspection: Measurements of a scan that can be used.
        num_labels: Of a label map, 1 where every voxel is background; 0 for what is none.
        shape: (D, H, W), where it could be read.
        affine: 4 x 4, voxel (d, h, w, 1) to RAS+ mm, where it could be read.
        coarse: The coarse description of `likeness`, flat, float16 as hexadecimal digits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    digest: str
    refusal: Refusal | None = None
    inspection: Inspection | None = None
    num_labels: int = 0
    shape: tuple[int, int, int] | None = None
    affine: list[list[float]] | None = None
    coarse: str = ""

    def description(self) -> npt.NDArray[np.float16]:
        """The coarse description, (12, 12, 12)."""
        return np.frombuffer(bytes.fromhex(self.coarse), np.float16).reshape((COARSE_SIZE,) * 3)


@dataclass(frozen=True)
class Picture:
    """The middle slice of a scan as it is shown.

    Attributes:
        array: uint8, (H, W).
        size_mm: (height, width).
    """

    array: npt.NDArray[np.uint8]
    size_mm: tuple[float, float]


@dataclass(frozen=True)
class PictureTask:
    """One scan for `picture`, its values that become black and white, and its orientation on the page."""

    source: Source
    window: tuple[float, float]
    reading: Reading


def look(task: InspectionTask) -> Look:
    """Reads and measures a scan, or takes the record of an earlier look at the same bytes."""
    try:
        digest = source_sha256(task.source)
    except OSError as error:
        return Look(digest="", refusal=Reason.NOT_READABLE(why=str(error.strerror)))
    record = task.records / f"{task.key(digest, None)}.look.json"
    try:
        return Look.model_validate_json(record.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        pass
    seen = _look(task, digest)
    write_text(record, seen.model_dump_json())
    return seen


def _look(task: InspectionTask, digest: str) -> Look:
    try:
        volume = read_source(task.source, task.reading)
    except ConstantScanError as error:
        empty_mask = error.volume.array.flat[0] == 0
        return _failed(digest, error.refusal, error.volume, 1 if empty_mask else 0)
    except ScanError as error:
        return Look(digest=digest, refusal=error.refusal)
    try:
        inspection = measure(task, volume, digest, None)
    except ScanError as error:
        return _failed(digest, error.refusal, volume, count_labels(volume.array))
    write_array(describe(volume, FINE_SIZE).astype(np.float16), description_path(task.records, digest))
    return Look(
        digest=digest,
        inspection=inspection,
        shape=inspection.shape,
        affine=inspection.affine,
        coarse=describe(volume, COARSE_SIZE).astype(np.float16).tobytes().hex(),
    )


def _failed(digest: str, refusal: Refusal, volume: Volume, num_labels: int) -> Look:
    d, h, w = volume.array.shape
    affine = volume.affine.tolist()
    return Look(digest=digest, refusal=refusal, num_labels=num_labels, shape=(d, h, w), affine=affine)


def description_path(records: Path, digest: str) -> Path:
    """Where `look` keeps the fine description of a scan, float16 (24, 24, 24)."""
    return records / f"{digest}.npy"


def picture(task: PictureTask) -> Picture | None:
    """The middle slice of a scan's own plane, the way radiologists look at it; None if it can't be read."""
    try:
        volume = read_source(task.source, task.reading)
    except ScanError:
        return None
    # Of its own plane: the middle of a thick stack's other planes shows little.
    volume = orient(volume, slice_plane(volume.affine))
    middle = volume.array[volume.array.shape[0] // 2]
    step = max(1, max(middle.shape) // _PICTURE_SIZE)
    low, high = task.window
    shown = np.clip((middle[::step, ::step] - low) / max(high - low, 1e-12), 0, 1)
    height, width = (length * mm for length, mm in zip(middle.shape, volume.spacing_mm[1:], strict=True))
    return Picture(np.rint(255 * shown).astype(np.uint8), (height, width))
