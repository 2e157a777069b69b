"""Pass 1 of `prepare`: reads one scan, checks it, and measures what the common grid is planned from."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from anatogen import __version__
from anatogen.data.discover import LeftOut, Source
from anatogen.data.formats import ending, read_dicom, read_scan
from anatogen.data.transforms import orient, otsu_threshold
from anatogen.data.volume import Volume
from anatogen.errors import ScanError
from anatogen.storage import sha256_file, sha256_json, write_text

# Label maps have fewer values; a scan with so few would be one of 5 bits.
MAX_LABELS = 32


class Inspection(BaseModel):
    """What pass 1 learns of one scan. Holds no name and nothing of the patient.

    Attributes:
        source_sha256: Of the file; of several (a DICOM series, a header with its data file), of their sorted
            hashes.
        content_sha256: Of the voxel values in one fixed order of axes, so that copies in other formats agree.
        shape: (D, H, W) as read.
        affine: 4 x 4 as read, voxel (d, h, w, 1) to RAS+ mm.
        minimum: Lowest value.
        maximum: Highest value.
        low: Value of the lower percentile, over all voxels.
        high: Value of the upper percentile, over voxels of tissue (above the Otsu threshold), so that it does
            not depend on how much air the field of view holds.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    source_sha256: str
    content_sha256: str
    shape: tuple[int, int, int]
    affine: list[list[float]]
    minimum: float
    maximum: float
    low: float
    high: float

    @property
    def looks_like_ct(self) -> bool:
        """Whether the values can be Hounsfield units of a scan with air in it, where nothing else says so."""
        return looks_like_ct(self.minimum, self.maximum)

    def same_scan(self, other: "Inspection") -> bool:
        """Whether both are the same voxels in the same place, to 0.01 mm."""
        if self.source_sha256 == other.source_sha256:
            return True
        return self.content_sha256 == other.content_sha256 and np.allclose(
            _canonical_affine(self), _canonical_affine(other), rtol=0, atol=0.01
        )


@dataclass(frozen=True)
class InspectionTask:
    """One scan for `inspect_scan`, with the settings that its measurements depend on."""

    source: Source
    percentiles: tuple[float, float]
    npy_spacing_mm: tuple[float, float, float]
    records: Path
    allow_tilt: bool = False


def inspect_scan(task: InspectionTask) -> Inspection | LeftOut:
    """Reads and measures a scan, or takes the record that an interrupted run left of the same bytes."""
    try:
        digest = source_sha256(task.source)
    except OSError as error:
        return LeftOut(task.source.name, f"it can't be read: {error.strerror}")
    suffix = "dicom" if task.source.is_dicom else ending(task.source.files[0])
    settings = [task.percentiles, task.npy_spacing_mm, task.allow_tilt]
    key = sha256_json([__version__, digest, suffix, *settings])
    record = task.records / f"{key}.json"
    try:
        return Inspection.model_validate_json(record.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        pass
    try:
        volume = read_source(task.source, task.npy_spacing_mm, allow_tilt=task.allow_tilt)
        inspection = _measure(volume, digest, task.percentiles)
    except ScanError as error:
        return LeftOut(task.source.name, str(error))
    write_text(record, inspection.model_dump_json())
    return inspection


def read_source(
    source: Source, npy_spacing_mm: tuple[float, float, float], *, allow_tilt: bool = False
) -> Volume:
    """Reads a discovered scan.

    Args:
        source: The scan.
        npy_spacing_mm: Spacing along (D, H, W) of .npy files.
        allow_tilt: Resamples DICOM series with gantry tilt instead of refusing them.

    Raises:
        ScanError: If it can't be read or can't be right.
    """
    if source.is_dicom:
        return read_dicom(source.files, allow_tilt=allow_tilt)
    return read_scan(source.files[0], npy_spacing_mm)


def source_sha256(source: Source) -> str:
    """Hash of the source's bytes; where it is of several files it does not depend on their names."""
    if len(source.files) == 1 and not source.is_dicom:
        return sha256_file(source.files[0])
    return sha256_json(sorted(sha256_file(file) for file in source.files))


def looks_like_ct(minimum: float, maximum: float) -> bool:
    """Whether a scan's lowest and highest value can be Hounsfield units of a scan with air in it."""
    return -4096 <= minimum <= -500 and maximum <= 32767


def own_window(array: npt.NDArray[np.float32], percentiles: tuple[float, float]) -> tuple[float, float]:
    """The values of an MR scan that become -1 and +1: `Inspection.low` and `Inspection.high`.

    Args:
        array: float32, any shape, not constant.
        percentiles: The lower one over all voxels, the upper one over those of tissue.
    """
    low = float(np.percentile(array, percentiles[0]))
    tissue = array[array > otsu_threshold(array)]
    return low, float(np.percentile(tissue if tissue.size else array, percentiles[1]))


def _measure(volume: Volume, digest: str, percentiles: tuple[float, float]) -> Inspection:
    array = volume.array
    num_labels = _num_labels(array)
    if num_labels:
        raise ScanError(f"it looks like a label map ({num_labels} distinct whole values)")
    low, high = own_window(array, percentiles)
    if not high > low:
        raise ScanError(
            f"nearly constant: its {percentiles[0]:g}th and {percentiles[1]:g}th percentile are both {low:g}"
        )
    d, h, w = array.shape
    return Inspection(
        source_sha256=digest,
        content_sha256=hashlib.sha256(orient(volume, "SPL").array.data).hexdigest(),
        shape=(d, h, w),
        affine=volume.affine.tolist(),
        minimum=float(array.min()),
        maximum=float(array.max()),
        low=low,
        high=high,
    )


def _num_labels(array: npt.NDArray[np.float32]) -> int:
    """How many labels a label map has: whole numbers from 0 and few of them; 0 for what is none."""
    if array.min() != 0:
        return 0
    # A part tells nearly every scan, at no cost.
    for part in (array.ravel()[:: max(1, array.size // 4096)], array):
        values = np.unique(part)
        if values.size > MAX_LABELS or not np.array_equal(values, np.rint(values)):
            return 0
    return int(values.size)


def _canonical_affine(inspection: Inspection) -> npt.NDArray[np.float64]:
    affine = np.array(inspection.affine)
    # A view of one value stands in for the voxels: only the geometry is wanted.
    empty = np.broadcast_to(np.float32(0), inspection.shape)
    return orient(Volume(empty, affine), "SPL").affine
