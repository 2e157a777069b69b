"""Pass 1 of `prepare`: reads one scan, checks it, and measures what the common grid is planned from."""

import hashlib
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, ValidationError

from anatogen.core.errors import ScanError
from anatogen.core.files import sha256_file, sha256_json, write_text
from anatogen.core.reasons import Reason
from anatogen.core.version import __version__
from anatogen.dataset.discover import LeftOut, Source
from anatogen.dataset.masks import as_labels, check_labels, on_grid_of
from anatogen.dataset.regions import Region, RegionKind, find_regions
from anatogen.io.checks import ConstantScanError
from anatogen.io.dicom.reading import read_dicom
from anatogen.io.formats import AS_IT_IS, Reading, ending, read_scan
from anatogen.io.geometry import orient, otsu_threshold
from anatogen.io.volume import Volume

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
        regions: The boxes of it that become a case each.
        mask_sha256: Of the file of its mask, if it has one.
        labels: That its mask holds, the background too.
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
    regions: tuple[Region, ...]
    mask_sha256: str | None = None
    labels: tuple[int, ...] = ()

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
    """One scan for `inspect_scan`, with the settings that its measurements depend on.

    Attributes:
        source: The scan.
        percentiles: As `PrepareConfig` has them, and so the next ones.
        records: Folder for what is found.
        reading: How the source is read.
        modality: See `PrepareConfig`.
        region: See there.
        mask: The scan's label map, if there is one.
        known_labels: Labels that it may hold, where the source tells.
    """

    source: Source
    percentiles: tuple[float, float]
    records: Path
    reading: Reading = AS_IT_IS
    modality: str = "auto"
    region: RegionKind = "scan"
    mask: Source | None = None
    known_labels: tuple[int, ...] | None = None

    def key(self, digest: str, mask_digest: str | None) -> str:
        """Hash of all that decides what is found, wherever the files lie."""
        kinds = [
            None if source is None else "dicom" if source.is_dicom else ending(source.files[0])
            for source in (self.source, self.mask)
        ]
        settings = asdict(replace(self, source=None, mask=None, records=None))  # type: ignore[arg-type]
        return sha256_json([__version__, digest, mask_digest, kinds, settings])


def inspect_scan(task: InspectionTask) -> Inspection | LeftOut:
    """Reads and measures a scan, or takes the record that an interrupted run left of the same bytes."""
    try:
        digest = source_sha256(task.source)
        mask_digest = source_sha256(task.mask) if task.mask is not None else None
    except OSError as error:
        return LeftOut(task.source.name, Reason.NOT_READABLE(why=str(error.strerror)))
    record = task.records / f"{task.key(digest, mask_digest)}.json"
    try:
        return Inspection.model_validate_json(record.read_text(encoding="utf-8"))
    except (OSError, ValidationError):
        pass
    try:
        volume = read_source(task.source, task.reading)
        inspection = measure(task, volume, digest, mask_digest)
    except ScanError as error:
        return LeftOut(task.source.name, error.refusal)
    write_text(record, inspection.model_dump_json())
    return inspection


def read_source(source: Source, reading: Reading = AS_IT_IS) -> Volume:
    """Reads a discovered scan.

    Args:
        source: The scan.
        reading: What the files do not tell, and what is allowed.

    Raises:
        ScanError: If it can't be read or can't be right.
    """
    if source.is_dicom:
        return read_dicom(source.files, allow_tilt=reading.allow_tilt)
    return read_scan(source.files[0], reading)


def read_mask(source: Source, reading: Reading) -> Volume:
    """Reads a label map, whole numbers from 0 to 255; an empty one is a mask too.

    Raises:
        ScanError: If it can't be read, or a value is no label.
    """
    try:
        mask = read_source(source, reading)
    except ConstantScanError as error:
        mask = error.volume
    except ScanError as error:
        raise ScanError(Reason.MASK_UNUSABLE(why=str(error))) from error
    return as_labels(mask)


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


def measure(task: InspectionTask, volume: Volume, digest: str, mask_digest: str | None) -> Inspection:
    """Measures a scan that was read.

    Args:
        task: What to measure.
        volume: The scan, as its reader gives it.
        digest: `source_sha256` of its files.
        mask_digest: The same of its mask.

    Raises:
        ScanError: If it is a label map or nearly constant, or its mask does not fit it.
    """
    array, percentiles = volume.array, task.percentiles
    num_labels = count_labels(array)
    if num_labels:
        raise ScanError(Reason.LABEL_MAP(num=num_labels))
    low, high = own_window(array, percentiles)
    if not high > low:
        raise ScanError(Reason.NEARLY_CONSTANT(lower=percentiles[0], upper=percentiles[1], value=low))
    mask = None
    labels: tuple[int, ...] = ()
    if task.mask is not None:
        mask = read_mask(task.mask, task.reading)
        labels = check_labels(mask, task.known_labels)
        mask = on_grid_of(volume, mask, required=task.region != "breasts")
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
        regions=tuple(find_regions(volume, task.region, _modality(task, array), mask)),
        mask_sha256=mask_digest,
        labels=labels,
    )


def _modality(task: InspectionTask, array: npt.NDArray[np.float32]) -> str:
    """What the scan alone tells, which is what most scans tell: pass 1 does not know the others."""
    told = task.source.modality if task.modality == "auto" else task.modality
    if told in ("CT", "MR"):
        return told
    return "CT" if looks_like_ct(float(array.min()), float(array.max())) else "MR"


def count_labels(array: npt.NDArray[np.float32]) -> int:
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
