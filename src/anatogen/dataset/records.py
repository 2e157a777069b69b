"""Records of scans: what is learned of one by decoding it once, kept by the hash of its bytes.

`doctor`, `plan` and `prepare` all ask for records, and what one of them left another takes: a record is named
by a hash of the bytes and of the settings that its measurements depend on. It holds no name and nothing of a
header but geometry; beside it lie a picture and a description of some kilobytes, which show the patient. The
hash of a scan's bytes is kept by a hash of path, sizes and times, so that unchanged files are hashed once.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from anatogen.core.errors import ScanError
from anatogen.core.files import sha256_json, write_text
from anatogen.core.reasons import Reason, Refusal
from anatogen.core.version import __version__
from anatogen.dataset.discover import Source
from anatogen.dataset.masks import on_grid_of
from anatogen.dataset.measures import (
    Triple,
    content_sha256,
    looks_like_ct,
    map_refusal,
    measure_body,
    measure_posture,
    middle_slice,
    scan_window,
    thumbnail,
)
from anatogen.dataset.near_duplicates import COARSE_SIZE, FINE_SIZE, describe
from anatogen.dataset.prepare_config import PrepareConfig
from anatogen.dataset.reading import read_mask, read_source, source_sha256
from anatogen.dataset.regions import Region, find_regions, window_voxels
from anatogen.io.checks import ConstantScanError
from anatogen.io.formats import ending, says_labels
from anatogen.io.geometry import oriented_grid
from anatogen.io.label_values import ValueKind, values_of
from anatogen.io.npy import write_array
from anatogen.io.volume import Volume


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, ser_json_bytes="base64", val_json_bytes="base64")


class ScanRecord(_Record):
    """What was measured of a scan that can be used.

    Attributes:
        key: Name of its files in the folder of records.
        sha256: `source_sha256` of its files.
        content_sha256: Hash of the voxel values in one fixed order of axes, so that copies in other formats
            agree.
        shape: (D, H, W) as read.
        affine: 4 x 4 as read, voxel (d, h, w, 1) to RAS+ mm.
        minimum: Lowest value.
        maximum: Highest value.
        low: Value of the lower percentile: see `own_window`.
        high: Value of the upper percentile.
        background: Share of the voxels that hold the lowest value.
        values: What its values are: `SCAN`, or what may be a map's.
        says_labels: Whether its header says that they are labels.
        modality: "CT" or "MR", as the scan was told to be or alone tells: by it the region was found.
        rounded_mm: As of `Volume`.
        regions: The boxes of it that become a case each.
        windows: `low` and `high` of each region's `window_voxels`.
        foreground_mm: By modality, the bounding box of what is not air, along (R-L, A-P, I-S) of the body.
        posture: Result of `measure_posture`, float16 (12, 12, 12).
        coarse: The coarse description of `near_duplicates`, float16 (12, 12, 12).
    """

    key: str
    sha256: str
    content_sha256: str
    shape: tuple[int, int, int]
    affine: list[list[float]]
    minimum: float
    maximum: float
    low: float
    high: float
    background: float
    values: ValueKind
    says_labels: bool
    modality: str
    rounded_mm: float = 0
    regions: tuple[Region, ...]
    windows: tuple[tuple[float, float], ...]
    foreground_mm: dict[str, Triple]
    posture: bytes
    coarse: bytes

    @property
    def looks_like_ct(self) -> bool:
        """Whether the values can be Hounsfield units of a scan with air in it, where nothing else says so."""
        return looks_like_ct(self.minimum, self.maximum)

    def same_scan(self, other: "ScanRecord") -> bool:
        """Whether both are the same voxels in the same place, to 0.01 mm."""
        if self.sha256 == other.sha256:
            return True
        if self.content_sha256 != other.content_sha256:
            return False
        first, second = (
            oriented_grid(record.shape, np.array(record.affine), "SPL")[1] for record in (self, other)
        )
        return np.allclose(first, second, rtol=0, atol=0.01)


class MaskRecord(_Record):
    """What was learned of a label map that can be used.

    Attributes:
        sha256: `source_sha256` of its files.
        shape: (D, H, W) as read.
        affine: 4 x 4 as read, voxel (d, h, w, 1) to RAS+ mm.
        labels: Those that it holds, the background too, in rising order.
    """

    sha256: str
    shape: tuple[int, int, int]
    affine: list[list[float]]
    labels: tuple[int, ...]


class RefusedRecord(_Record):
    """A scan or mask that can't be used, or a map that is no scan.

    Attributes:
        sha256: `source_sha256` of its files; "" where they can't be read.
        refusal: Why.
        num_labels: Number of labels of a label map among the scans, 1 where every voxel is background; 0 for
            what is none.
        shape: (D, H, W), where it could be read.
        affine: 4 x 4, where it could be read.
    """

    sha256: str
    refusal: Refusal
    num_labels: int = 0
    shape: tuple[int, int, int] | None = None
    affine: list[list[float]] | None = None


AnyScan = ScanRecord | RefusedRecord
AnyMask = MaskRecord | RefusedRecord
RecordT = TypeVar("RecordT", bound=_Record)
_SCANS: TypeAdapter[AnyScan] = TypeAdapter(AnyScan)
_MASKS: TypeAdapter[AnyMask] = TypeAdapter(AnyMask)


@dataclass(frozen=True)
class RecordTask:
    """A scan for `record_scan`.

    Attributes:
        source: The scan.
        mask: Its label map, if there is one that is asked for.
        config: The settings that its measurements depend on.
        folder: Folder of records.
    """

    source: Source
    mask: Source | None
    config: PrepareConfig
    folder: Path


def record_scan(task: RecordTask) -> tuple[AnyScan, AnyMask | None]:
    """The records of a scan and of its mask: those that are there, or made by decoding each file once."""
    try:
        digest = _sha256(task.source, task.folder)
    except OSError as error:
        return _not_readable(error), None
    mask_record, mask = _mask_of(task) if task.mask is not None else (None, None)
    by_mask = mask_record if task.config.region == "breasts_by_mask" else None
    if isinstance(by_mask, RefusedRecord):
        return RefusedRecord(sha256=digest, refusal=by_mask.refusal), mask_record
    found = _known_scan(task, digest, by_mask)
    return found or _recorded_scan(task, digest, by_mask, mask), mask_record


def _not_readable(error: OSError) -> RefusedRecord:
    return RefusedRecord(sha256="", refusal=Reason.NOT_READABLE(why=str(error.strerror)))


def _sha256(source: Source, folder: Path) -> str:
    """`source_sha256`, kept in the folder of records for files that stay as they are."""
    stats = [(file.name, file.stat()) for file in source.files]
    # No program sets the time of the last change of an entry: a copy is not taken for what it overwrote.
    files = [(name, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns) for name, stat in stats]
    path = folder / f"{sha256_json([source.name, source.is_dicom, files])}.sha256"
    if path.is_file():
        return path.read_text(encoding="ascii")
    digest = source_sha256(source)
    write_text(path, digest)
    return digest


def _mask_of(task: RecordTask) -> tuple[AnyMask, Volume | None]:
    """The record of the mask, and the mask if it was decoded for it."""
    assert task.mask is not None
    try:
        digest = _sha256(task.mask, task.folder)
    except OSError as error:
        return _not_readable(error), None
    path = task.folder / f"{_key('mask', digest, task.mask, task.config)}.json"
    known = _load(path, _MASKS)
    if known is not None:
        return known, None
    try:
        mask = read_mask(task.mask, task.config.reading)
    except ScanError as error:
        return _save(path, RefusedRecord(sha256=digest, refusal=error.refusal)), None
    d, h, w = mask.array.shape
    labels = tuple(int(value) for value in np.unique(mask.array))
    record = MaskRecord(sha256=digest, shape=(d, h, w), affine=mask.affine.tolist(), labels=labels)
    return _save(path, record), mask


def _known_scan(task: RecordTask, digest: str, mask: MaskRecord | None) -> AnyScan | None:
    told = _told_modality(task)
    # A scan that was not told its modality has told it by itself, which is the same most of the time.
    for modality in dict.fromkeys((told, "auto")):
        known = _load(task.folder / f"{_scan_key(task, digest, mask, modality)}.json", _SCANS)
        if known is not None and (
            modality == told or (isinstance(known, ScanRecord) and known.modality == told)
        ):
            return known
    return None


def _recorded_scan(
    task: RecordTask, digest: str, mask_record: MaskRecord | None, mask: Volume | None
) -> AnyScan:
    key = _scan_key(task, digest, mask_record, _told_modality(task))
    path = task.folder / f"{key}.json"
    try:
        volume = read_source(task.source, task.config.reading)
        if mask_record is not None:
            assert task.mask is not None
            mask = read_mask(task.mask, task.config.reading) if mask is None else mask
            mask = on_grid_of(volume, mask)
        else:
            mask = None
    except ConstantScanError as error:
        num_labels = 1 if error.volume.array.flat[0] == 0 else 0
        return _save(path, _refused(digest, error.refusal, error.volume, num_labels))
    except ScanError as error:
        return _save(path, RefusedRecord(sha256=digest, refusal=error.refusal))
    try:
        small = thumbnail(volume)
        record = _measured(task, volume, small, key, digest, mask)
    except ScanError as error:
        is_label_map = error.refusal.reason is Reason.LABEL_MAP
        num_labels = len(np.unique(volume.array)) if is_label_map else 0
        return _save(path, _refused(digest, error.refusal, volume, num_labels))
    write_array(describe(small, FINE_SIZE).astype(np.float16), description_path(task.folder, key))
    write_array(middle_slice(volume, (record.low, record.high)), _picture_path(task.folder, key))
    return _save(path, record)


def _measured(
    task: RecordTask, volume: Volume, small: Volume, key: str, digest: str, mask: Volume | None
) -> ScanRecord:
    array, percentiles = volume.array, task.config.percentiles
    values = values_of(array)
    of_map = map_refusal(values)
    if of_map is not None:
        raise ScanError(of_map)
    low, high = scan_window(array, percentiles)
    minimum, maximum = float(array.min()), float(array.max())
    modality = _told_modality(task)
    if modality == "auto":
        modality = "CT" if looks_like_ct(minimum, maximum) else "MR"
    regions = find_regions(volume, task.config.region, modality, mask)
    windows = [(low, high)]
    if len(regions) > 1:
        windows = [scan_window(window_voxels(array, region), percentiles) for region in regions]
    d, h, w = array.shape
    return ScanRecord(
        key=key,
        sha256=digest,
        content_sha256=content_sha256(volume),
        shape=(d, h, w),
        affine=volume.affine.tolist(),
        minimum=minimum,
        maximum=maximum,
        low=low,
        high=high,
        background=float(np.mean(array == minimum)),
        values=values.kind,
        says_labels=not task.source.is_dicom and says_labels(task.source.files[0]),
        modality=modality,
        rounded_mm=volume.rounded_mm,
        regions=tuple(regions),
        windows=tuple(windows),
        foreground_mm=measure_body(volume),
        posture=measure_posture(small).tobytes(),
        coarse=describe(small, COARSE_SIZE).astype(np.float16).tobytes(),
    )


def _told_modality(task: RecordTask) -> str:
    """Modality "CT" or "MR" as settings or DICOM tell, else "auto": other scans are not known here."""
    told = task.source.modality if task.config.modality == "auto" else task.config.modality
    return told if told in ("CT", "MR") else "auto"


def _scan_key(task: RecordTask, digest: str, mask: MaskRecord | None, modality: str) -> str:
    config = task.config
    of_region = {
        "scan": [],
        "foreground": [modality],
        "breasts": [],
        "breasts_by_mask": [None if mask is None else mask.sha256],
    }[config.region]
    return _key("scan", digest, task.source, config, config.percentiles, config.region, of_region)


def _key(role: str, digest: str, source: Source, config: PrepareConfig, *settings: object) -> str:
    """Hash of all that decides what is found, wherever the files lie."""
    kind = "dicom" if source.is_dicom else ending(source.files[0])
    reading: list[object] = [config.allow_tilt]
    if kind == ".npy":
        reading = [config.npy_spacing_mm, config.npy_orientation]
    return sha256_json([__version__, role, digest, kind, reading, *settings])


def _refused(digest: str, refusal: Refusal, volume: Volume, num_labels: int) -> RefusedRecord:
    d, h, w = volume.array.shape
    affine = volume.affine.tolist()
    return RefusedRecord(
        sha256=digest, refusal=refusal, num_labels=num_labels, shape=(d, h, w), affine=affine
    )


def _load(path: Path, kind: TypeAdapter[RecordT]) -> RecordT | None:
    try:
        return kind.validate_json(path.read_bytes())
    except (OSError, ValidationError):
        return None


def _save(path: Path, record: RecordT) -> RecordT:
    write_text(path, record.model_dump_json())
    return record


def description_path(folder: Path, key: str) -> Path:
    """Where the fine description of a scan is kept, float16 (24, 24, 24)."""
    return folder / f"{key}.npy"


def load_picture(folder: Path, key: str) -> npt.NDArray[np.uint8]:
    """The middle slice of a scan, uint8 (H, W)."""
    return np.asarray(np.load(_picture_path(folder, key), allow_pickle=False))


def _picture_path(folder: Path, key: str) -> Path:
    return folder / f"{key}.picture.npy"


def float16_cube(content: bytes) -> npt.NDArray[np.float16]:
    """A posture or coarse description, (12, 12, 12)."""
    return np.frombuffer(content, np.float16).reshape((COARSE_SIZE,) * 3)
