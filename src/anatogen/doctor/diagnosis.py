"""What `doctor` gathers of a folder and concludes from it. Names files and knows patients: in memory only."""

import glob
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from functools import cached_property

import numpy as np
import numpy.typing as npt

from anatogen.dataset.discover import LeftOut, Source
from anatogen.dataset.label_maps import word_of_map
from anatogen.dataset.prepare_config import PrepareConfig
from anatogen.dataset.records import MaskRecord, RefusedRecord, ScanRecord
from anatogen.doctor.headers import Header
from anatogen.io.geometry import slice_plane
from anatogen.report.numbers import count_of

Record = ScanRecord | MaskRecord | RefusedRecord

# Patterns that still can be typed.
_MOST_PATTERNS = 4


class Severity(StrEnum):
    """How much a finding matters."""

    ERROR = "error"
    WARNING = "warning"
    NOTE = "note"


@dataclass(frozen=True)
class Finding:
    """Something about the folder, and what to do about it.

    Attributes:
        code: What kind, e.g. "near_duplicates".
        severity: "error" where nothing can be prepared, "warning" where the result would suffer.
        title: One sentence.
        count: How many scans (or pairs, patients, folders) it concerns.
        names: Relative paths of those concerned, all of them.
        advice: One or two sentences.
        option: What to add to `anatogen prepare SCANS OUT`, exactly as it is typed; "" where nothing is.
        alternative: Another way, likewise.
    """

    code: str
    severity: Severity
    title: str
    count: int
    names: tuple[str, ...]
    advice: str
    option: str = ""
    alternative: str = ""


def of_scans(
    code: str,
    severity: Severity,
    title: str,
    names: Sequence[str],
    advice: str,
    option: str = "",
    alternative: str = "",
) -> Finding:
    """A finding that counts the scans that it names."""
    return Finding(code, severity, title, len(names), tuple(names), advice, option, alternative)


@dataclass(frozen=True)
class ScanFacts:
    """One scan.

    Attributes:
        source: Where it lies.
        header: What its header tells.
        record: What its voxels tell; None where only headers were read.
        patient: Who it is of as `prepare` sees it, or None where a pattern or table does not say.
    """

    source: Source
    header: Header
    record: Record | None
    patient: str | None

    @property
    def name(self) -> str:
        """Relative path."""
        return self.source.name

    @property
    def num_labels(self) -> int | None:
        """How many labels a label map holds, 1 where every voxel is background; 0 for what is none."""
        if isinstance(self.record, MaskRecord):
            return len(self.record.labels)
        if isinstance(self.record, RefusedRecord):
            return self.record.num_labels
        return None if self.record is None else 0

    @property
    def is_label_map(self) -> bool:
        """Whether it is a label or probability map, as far as voxels were read."""
        return isinstance(self.record, RefusedRecord) and self.record.refusal.is_of_map

    @property
    def is_named_as_map(self) -> bool:
        """Whether its name says so."""
        return not self.source.is_dicom and word_of_map(self.name) is not None

    @property
    def affine(self) -> npt.NDArray[np.float64] | None:
        """Voxel (d, h, w, 1) to RAS+ mm, where it could be read."""
        return None if self.record is None or self.record.affine is None else np.array(self.record.affine)

    @property
    def spacing_mm(self) -> tuple[float, ...] | None:
        """Along the scan's own (D, H, W)."""
        if self.affine is None:
            return self.header.spacing_mm
        return tuple(np.linalg.norm(self.affine[:3, :3], axis=0).tolist())

    @property
    def shape(self) -> tuple[int, ...] | None:
        """Voxels along the scan's own (D, H, W)."""
        return self.record.shape if self.record is not None and self.record.shape else self.header.shape

    @property
    def plane(self) -> str | None:
        """Directions in which its slices, rows and columns are shown, e.g. "SPL"."""
        return None if self.affine is None else slice_plane(self.affine)


@dataclass(frozen=True)
class Alike:
    """Two scans that look the same, by name."""

    first: str
    second: str
    correlation: float
    flipped: bool


@dataclass(frozen=True)
class Masks:
    """Which scans are masks, by name.

    Attributes:
        pairs: Each image that has a mask, and its mask.
        masks: All masks.
        images_without: Images without a mask, where others have one.
        masks_without: Masks without an image.
    """

    pairs: tuple[tuple[str, str], ...] = ()
    masks: frozenset[str] = frozenset()
    images_without: tuple[str, ...] = ()
    masks_without: tuple[str, ...] = ()


@dataclass(frozen=True)
class Facts:
    """All that was gathered.

    Attributes:
        scans: Every scan that was found, label maps too, in order of name.
        damaged: Files that could not even be told to be scans.
        left_out: What the recipe, or with it the patient table or pattern, has a reason to leave out.
        by_mask: Images that can't be used because of their masks.
        masks: As the recipe pairs them, or for any folder's images as `folder_with_masks` would.
        ignored: How many files are no scans, or are not wanted, by why; see `discover`.
        num_pictures: Files that are photographs or screenshots by their ending.
        alike: Pairs of near-duplicates.
        config: The settings of `prepare` that the folder was looked at with.
        looked_at_pixels: Whether voxels were read.
    """

    scans: tuple[ScanFacts, ...]
    damaged: tuple[LeftOut, ...] = ()
    left_out: tuple[LeftOut, ...] = ()
    by_mask: tuple[LeftOut, ...] = ()
    masks: Masks = Masks()
    ignored: Mapping[str, int] = field(default_factory=dict)
    num_pictures: int = 0
    alike: tuple[Alike, ...] = ()
    config: PrepareConfig = field(default_factory=PrepareConfig)
    looked_at_pixels: bool = True

    @cached_property
    def by_name(self) -> dict[str, ScanFacts]:
        """Each scan by its relative path."""
        return {scan.name: scan for scan in self.scans}

    @cached_property
    def images(self) -> tuple[ScanFacts, ...]:
        """Scans that are no masks."""
        return tuple(scan for scan in self.scans if scan.name not in self.masks.masks)

    @property
    def num_candidates(self) -> int:
        """How many scans there are that are no masks, with the damaged ones and those left out."""
        return len(self.images) + len(self.damaged) + len(self.left_out)

    @cached_property
    def usable(self) -> tuple[ScanFacts, ...]:
        """Scans that `prepare` can take, as far as they were looked at."""
        if not self.looked_at_pixels:
            return self.images
        by_mask = {scan.name for scan in self.by_mask}
        return tuple(
            scan for scan in self.images if isinstance(scan.record, ScanRecord) and scan.name not in by_mask
        )

    def measured(self) -> Iterator[tuple[ScanFacts, ScanRecord]]:
        """Usable scans with their measurements."""
        for scan in self.usable:
            if isinstance(scan.record, ScanRecord):
                yield scan, scan.record


@dataclass(frozen=True)
class Shown:
    """A scan on the page.

    Attributes:
        name: Relative path.
        why: What is special about it: "median", "look-alike", "outlier: ..." or "".
        picture: Its middle slice, uint8 (H, W).
        size_mm: (height, width) of it.
    """

    name: str
    why: str
    picture: npt.NDArray[np.uint8]
    size_mm: tuple[float, float]


@dataclass(frozen=True)
class Diagnosis:
    """Result of `examine`.

    Attributes:
        facts: What was gathered.
        findings: What it means, the gravest first.
        outliers: For each outlier, by name, in what it differs.
        shown: Scans whose pictures stand for the folder; none where no voxels were read.
    """

    facts: Facts
    findings: tuple[Finding, ...]
    outliers: dict[str, list[str]] = field(default_factory=dict)
    # Pictures don't make two diagnoses differ.
    shown: tuple[Shown, ...] = field(default=(), compare=False)

    @property
    def is_usable(self) -> bool:
        """Whether `prepare` would make a dataset."""
        return all(finding.severity is not Severity.ERROR for finding in self.findings)


def exclude(facts: Facts, names: Iterable[str]) -> str:
    """The override of `prepare` that leaves scans out, quoted for a shell; "" where they are too many.

    What the user excludes already comes first: an override replaces the one before it.
    """
    return exclude_patterns(facts, [glob.escape(name) for name in names])


def exclude_patterns(facts: Facts, patterns: Sequence[str]) -> str:
    """The same for glob patterns."""
    if not patterns or len(patterns) > _MOST_PATTERNS:
        return ""
    # "?" stands for a byte of a name that is not UTF-8, which can't be typed.
    listing = ", ".join(
        '"' + re.sub("[\udc80-\udcff]", "?", pattern).replace("\\", "\\\\").replace('"', '\\"') + '"'
        for pattern in (*facts.config.exclude, *patterns)
    )
    return shlex.quote(f"exclude=[{listing}]")


def scans_are(names: Sequence[str]) -> str:
    """The start of a sentence about so many scans."""
    return f"{count_of(len(names), 'scan')} {'is' if len(names) == 1 else 'are'}"
