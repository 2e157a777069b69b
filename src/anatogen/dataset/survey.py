"""The one survey of a folder of scans, which `doctor`, `plan` and `prepare` share.

survey_folder: discover -> select by the recipe          headers and names alone
record_scans:  decode each scan once -> records          content-addressed: see `records`; maps are none
usable_scans:  with masks, labels and grids agreeing     what `prepare` would take, and what not and why
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anatogen.core.errors import UserError
from anatogen.core.reasons import Reason, Refusal
from anatogen.dataset import label_maps
from anatogen.dataset.discover import NOT_CHOSEN, LeftOut, Source, discover
from anatogen.dataset.masks import grid_refusal, label_refusal
from anatogen.dataset.prepare_config import PrepareConfig
from anatogen.dataset.recipes.recipe import Scan, Selection
from anatogen.dataset.records import (
    AnyMask,
    AnyScan,
    MaskRecord,
    RecordTask,
    RefusedRecord,
    ScanRecord,
    record_scan,
)
from anatogen.dataset.selection import select_scans
from anatogen.dataset.workers import Workers
from anatogen.io.label_values import ValueKind


@dataclass(frozen=True)
class Survey:
    """What a folder holds, before any voxel is decoded.

    Attributes:
        folder: Where the scans are.
        config: The settings that it was asked for with.
        records: Folder of records of scans.
        sources: Every scan that was discovered, in order of name.
        damaged: What could not even be told to be a scan.
        not_scans: How many files are no scans or not included, by why; see `discover`.
        selection: What the recipe makes of the sources.
    """

    folder: Path
    config: PrepareConfig
    records: Path
    sources: tuple[Source, ...]
    damaged: tuple[LeftOut, ...]
    not_scans: Mapping[str, int]
    selection: Selection

    @property
    def left_out(self) -> list[LeftOut]:
        """What can't be used, as far as headers, names and tables tell."""
        return [*self.damaged, *self.selection.left_out]

    @property
    def ignored(self) -> dict[str, int]:
        """How many files are ignored, by why: `not_scans`, and what the recipe has no interest in."""
        num_unused = self._num_unused()
        return {**self.not_scans, **({NOT_CHOSEN: num_unused} if num_unused else {})}

    def _num_unused(self) -> int:
        chosen = [source for scan in self.selection.scans for source in (scan.source, scan.mask) if source]
        used = {source.name for source in chosen} | {scan.name for scan in self.selection.left_out}
        return sum(len(source.files) for source in self.sources if source.name not in used)


@dataclass(frozen=True)
class UsableScan:
    """A scan that `prepare` can take, with what was measured of it and of its mask."""

    scan: Scan
    record: ScanRecord
    mask: MaskRecord | None

    @property
    def source(self) -> Source:
        """Where it lies."""
        return self.scan.source

    @property
    def name(self) -> str:
        """Relative path."""
        return self.scan.source.name


def survey_folder(folder: Path, config: PrepareConfig, records: Path, pool: Workers) -> Survey:
    """Finds the scans below a folder, and selects among them.

    Args:
        folder: With scans in all formats, nested and mixed.
        config: What narrows the scans, the recipe, who the patients are, and how scans are measured.
        records: Folder where what is learned of each scan is kept, and found.
        pool: Looks into the files that have no ending of a scan.

    Raises:
        UserError: As `discover` and `select_scans`; or if the records would lie among the scans.
    """
    if records.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{records} lies inside {folder}: choose another folder for records of scans")
    sources, damaged, not_scans = discover(
        folder,
        lambda function, files: pool.map(function, files, [file.name for file in files], "Looking"),
        config.include,
        config.exclude,
    )
    selection = select_scans(folder, sources, config)
    return Survey(folder, config, records, tuple(sources), tuple(damaged), not_scans, selection)


def record_scans(
    survey: Survey, scans: Sequence[tuple[Source, Source | None]], pool: Workers
) -> list[tuple[AnyScan, AnyMask | None]]:
    """The records of scans and of their masks, in order.

    What names, sidecars and other scans tell is settled here: of any folder, maps and what may be one are
    refused. A recipe knows its scans.

    Args:
        survey: Survey of the folder; records that are there are not made again.
        scans: Each scan with the mask that is asked for.
        pool: Decodes the others.
    """
    records = _recorded(survey, scans, pool)
    if survey.config.recipe != "folder":
        return records
    found = {source.name: record for (source, _), (record, _) in zip(scans, records, strict=True)}
    near = {
        source.name: label_maps.beside(source, survey.sources)
        for source, _ in scans
        if isinstance(record := found[source.name], ScanRecord) and record.values is ValueKind.UNIT
    }
    others = [(other, None) for sources in near.values() for other in sources if other.name not in found]
    others = list(dict.fromkeys(others))
    for (other, _), (record, _) in zip(others, _recorded(survey, others, pool), strict=True):
        found[other.name] = record
    return [
        (_settled(survey, source, record, [found[other.name] for other in near.get(source.name, [])]), mask)
        for (source, _), (record, mask) in zip(scans, records, strict=True)
    ]


def _recorded(
    survey: Survey, scans: Sequence[tuple[Source, Source | None]], pool: Workers
) -> list[tuple[AnyScan, AnyMask | None]]:
    tasks = [RecordTask(source, mask, survey.config, survey.records) for source, mask in scans]
    return pool.map(record_scan, tasks, [source.name for source, _ in scans], "Checking")


def _settled(survey: Survey, source: Source, record: AnyScan, beside: Sequence[AnyScan]) -> AnyScan:
    """The record of a scan; of what is or may be a map by all that is known of it, why it is left out."""
    # Headers of DICOM tell more than names do.
    word = None if source.is_dicom else label_maps.word_of_map(source.name)
    if isinstance(record, RefusedRecord):
        if word is None or record.num_labels != 1:
            return record
        return record.model_copy(update={"refusal": Reason.LABEL_MAP(num=1)})
    refusal = None
    if record.values is ValueKind.UNIT and word is not None:
        refusal = Reason.PROBABILITY_MAP()
    elif word is not None:
        refusal = Reason.MAYBE_LABEL_MAP(why=f"name ({word})")
    elif record.says_labels:
        refusal = Reason.MAYBE_LABEL_MAP(why="header")
    elif label_maps.has_label_sidecar(source):
        refusal = Reason.MAYBE_LABEL_MAP(why="sidecar")
    elif record.values is ValueKind.DOUBTFUL:
        refusal = Reason.MAYBE_LABEL_MAP(why="values")
    elif any(_on_grid_of_scan(record, other) for other in beside):
        refusal = Reason.MAYBE_LABEL_MAP(why="values from 0 to 1 on the grid of a scan beside it")
    if refusal is None or label_maps.is_named(source, survey.folder, survey.config.include, word):
        return record
    return RefusedRecord(sha256=record.sha256, refusal=refusal, shape=record.shape, affine=record.affine)


def _on_grid_of_scan(record: ScanRecord, other: AnyScan) -> bool:
    if not isinstance(other, ScanRecord) or other.values is not ValueKind.SCAN:
        return False
    grids = [(one.shape, np.array(one.affine)) for one in (other, record)]
    return grid_refusal(grids[0], grids[1]) is None


def usable_scans(
    survey: Survey, scans: Sequence[Scan], pool: Workers
) -> tuple[list[UsableScan], list[LeftOut]]:
    """The scans that `prepare` can take, and the others with their reasons; see `record_scans`.

    Args:
        survey: Survey of the folder.
        scans: Those of its selection to look at.
        pool: Decodes what has no record.
    """
    records = record_scans(survey, [(scan.source, scan.mask) for scan in scans], pool)
    usable, left_out = [], []
    for scan, (record, mask) in zip(scans, records, strict=True):
        if isinstance(record, RefusedRecord):
            left_out.append(LeftOut(scan.source.name, record.refusal))
        elif (refusal := mask_refusal(survey, record, mask)) is not None:
            left_out.append(LeftOut(scan.source.name, refusal))
        else:
            assert not isinstance(mask, RefusedRecord)
            usable.append(UsableScan(scan, record, mask))
    return usable, left_out


def mask_refusal(survey: Survey, record: AnyScan, mask: AnyMask | None) -> Refusal | None:
    """Why a scan can't be used with its mask; None where it can, and for a scan that can't be used anyway.

    Args:
        survey: Names the labels that masks may hold, and says whether they have to lie on the scan's grid.
        record: Record of the scan.
        mask: Record of its mask, if it has one.
    """
    if isinstance(record, RefusedRecord) or mask is None:
        return None
    if isinstance(mask, RefusedRecord):
        return mask.refusal
    known = survey.selection.labels
    unknown = label_refusal(mask.labels, known) if known else None
    # Masks of breasts only tell where to cut.
    if unknown is not None or survey.config.region == "breasts_by_mask":
        return unknown
    return grid_refusal((record.shape, np.array(record.affine)), (mask.shape, np.array(mask.affine)))


def without_copies(scans: Sequence[UsableScan]) -> tuple[list[UsableScan], list[LeftOut]]:
    """The scans, of those with equal voxels in the same place the first, and the others."""
    kept: list[UsableScan] = []
    left_out = []
    # Scans with equal bytes have equal voxels too, so one index finds both kinds of copies.
    seen: dict[str, list[UsableScan]] = {}
    for scan in scans:
        alike = seen.setdefault(scan.record.content_sha256, [])
        first = next((other for other in alike if scan.record.same_scan(other.record)), None)
        if first is not None:
            refusal = Reason.SAME_SCAN(other=first.name)
            left_out.append(LeftOut(scan.name, refusal))
        else:
            alike.append(scan)
            kept.append(scan)
    return kept, left_out
