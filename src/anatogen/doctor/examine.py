"""`anatogen doctor`: what is wrong with a folder of scans, and what to do about it.

    survey -> records of scans -> headers -> near-duplicates -> `rules`

What is kept in memory of a scan is a few kilobytes, whatever its size.
"""

import tempfile
from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from anatogen.core.errors import UserError
from anatogen.core.reasons import Reason
from anatogen.dataset.common_grid import oriented
from anatogen.dataset.discover import LeftOut, Source
from anatogen.dataset.manifest import MANIFEST_NAME
from anatogen.dataset.near_duplicates import THRESHOLD, compare_pair, likely_pairs
from anatogen.dataset.prepare_config import PrepareConfig
from anatogen.dataset.recipes import folder_with_masks
from anatogen.dataset.recipes.recipe import Selection
from anatogen.dataset.records import RefusedRecord, ScanRecord, description_path, float16_cube, load_picture
from anatogen.dataset.survey import Survey, mask_refusal, record_scans, survey_folder
from anatogen.dataset.workers import Workers
from anatogen.doctor.diagnosis import Alike, Diagnosis, Facts, Masks, Record, ScanFacts, Shown
from anatogen.doctor.headers import read_scan_header
from anatogen.doctor.rules import conclude
from anatogen.doctor.rules.outliers import outliers
from anatogen.io.geometry import slice_plane

NUM_PICTURES = 12
_PICTURE_ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".gif")


def examine(
    scans: Path,
    config: PrepareConfig | None = None,
    *,
    headers_only: bool = False,
    records: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Diagnosis:
    """Looks at every scan below a folder, and says what is wrong and what to do.

    Nothing is written but `records`.

    Args:
        scans: Folder with NIfTI, NRRD, MetaImage, NPY files and DICOM series, nested and mixed.
        config: What `prepare` would be told; default its defaults.
        headers_only: Reads no voxels: no duplicates, masks only by their names, damage only of headers.
        records: Folder where what was learned of each scan is kept, by the hash of its bytes, so that a
            second call is quick; default nowhere.
        workers: Processes; default one per core. With 1 no other process is started.
        progress: Whether to show progress bars on the terminal.

    Raises:
        UserError: If the folder does not exist or is a prepared dataset, or a process died.
    """
    config = config or PrepareConfig()
    if (scans / MANIFEST_NAME).is_file() and (scans / "volumes").is_dir():
        raise UserError(f"{scans} is a prepared dataset: name the folder of scans that it was made from")
    with ExitStack() as stack:
        pool = stack.enter_context(Workers(workers, progress))
        if records is None:
            records = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        everything = config.model_copy(update={"limit": None, "where": {}})
        survey = survey_folder(scans, everything, records, pool)
        facts = gather(survey, config, pool, headers_only=headers_only)
        diagnosis = Diagnosis(facts, conclude(facts), outliers(facts))
        return replace(diagnosis, shown=_shown(diagnosis, records))


def gather(survey: Survey, config: PrepareConfig, pool: Workers, *, headers_only: bool) -> Facts:
    """Looks at every scan of a survey.

    Args:
        survey: Survey of the folder, without limit.
        config: As `examine` has it.
        pool: Does the work.
        headers_only: Reads no voxels.
    """
    chosen = survey.selection.scans
    left_out: tuple[LeftOut, ...] = ()
    by_mask: list[LeftOut] = []
    if config.recipe == "folder":
        pairs: list[tuple[Source, Source | None]] = [(source, None) for source in survey.sources]
    else:
        # What a recipe has no interest in is not the user's to mend; what it has a reason against is.
        pairs = [(scan.source, scan.mask) for scan in chosen]
        left_out = survey.selection.left_out
    sources = {source.name: source for pair in pairs for source in pair if source is not None}
    found: dict[str, Record | None] = {}
    if not headers_only:
        for (source, mask), (record, mask_record) in zip(
            pairs, record_scans(survey, pairs, pool), strict=True
        ):
            found[source.name] = record
            if mask is not None:
                found[mask.name] = mask_record
                refusal = mask_refusal(survey, record, mask_record)
                by_mask += [LeftOut(source.name, refusal)] if refusal is not None else []
    patients = {scan.source.name: scan.patient for scan in chosen}
    headers = pool.map(read_scan_header, list(sources.values()), list(sources), "Headers")
    facts = [
        ScanFacts(source, header, found.get(name), patients.get(name))
        for (name, source), header in zip(sources.items(), headers, strict=True)
    ]
    return Facts(
        tuple(sorted(facts, key=lambda scan: scan.name)),
        damaged=survey.damaged,
        left_out=left_out,
        by_mask=tuple(by_mask),
        masks=_find_masks(survey, config, facts),
        ignored=survey.ignored,
        num_pictures=_count_pictures(survey.folder),
        alike=() if headers_only else _find_alike(facts, survey.records, pool),
        config=config,
        looked_at_pixels=not headers_only,
    )


def _find_masks(survey: Survey, config: PrepareConfig, facts: Iterable[ScanFacts]) -> Masks:
    """Masks by the recipe, or for any folder what is named as a map or is one by its values."""
    if config.recipe != "folder":
        pairs = _pairs(survey.selection)
        return Masks(pairs, frozenset(mask for _, mask in pairs))
    masks = {
        scan.name
        for scan in facts
        if scan.is_label_map or (scan.is_named_as_map and not isinstance(scan.record, ScanRecord))
    }
    try:
        selection = folder_with_masks.select(survey.folder, survey.sources)
    except UserError:  # no image has one
        return Masks((), frozenset(masks), (), tuple(sorted(masks)))
    pairs = _pairs(selection)
    alone = sorted(scan.name for scan in selection.left_out if scan.refusal.reason is Reason.NO_MASK)
    return Masks(
        pairs,
        frozenset(masks),
        tuple(name for name in alone if name not in masks),
        tuple(sorted(masks - {mask for _, mask in pairs})),
    )


def _pairs(selection: Selection) -> tuple[tuple[str, str], ...]:
    return tuple((scan.source.name, scan.mask.name) for scan in selection.scans if scan.mask is not None)


def _find_alike(facts: Iterable[ScanFacts], records: Path, pool: Workers) -> tuple[Alike, ...]:
    # Copies with equal voxels are found by their hashes; one of them stands for all.
    first: dict[str, tuple[str, ScanRecord]] = {}
    for scan in facts:
        if isinstance(scan.record, ScanRecord):
            first.setdefault(scan.record.content_sha256, (scan.name, scan.record))
    chosen = list(first.values())
    if len(chosen) < 2:
        return ()
    pairs = likely_pairs(np.stack([float16_cube(record.coarse) for _, record in chosen]))
    files = [description_path(records, record.key) for _, record in chosen]
    tasks = [(files[one], files[other], flips) for one, other, flips in pairs]
    correlations = pool.map(compare_pair, tasks, [chosen[one][0] for one, *_ in pairs], "Comparing")
    return tuple(
        Alike(chosen[one][0], chosen[other][0], correlation, bool(flips))
        for (one, other, flips), correlation in zip(pairs, correlations, strict=True)
        if correlation > THRESHOLD
    )


def _count_pictures(scans: Path) -> int:
    return sum(path.suffix.lower() in _PICTURE_ENDINGS for path in scans.rglob("*"))


def _shown(diagnosis: Diagnosis, records: Path) -> tuple[Shown, ...]:
    """Up to 12 scans for the page, each with what is special about it."""
    facts = diagnosis.facts
    measured = {scan.name: record for scan, record in facts.measured()}
    if not measured:
        return ()
    # By field of view: the scan in the middle is the most usual one.
    volume = {
        name: abs(np.linalg.det(np.array(record.affine)[:3, :3])) * np.prod(record.shape)
        for name, record in measured.items()
    }
    ordered = sorted(measured, key=lambda name: (volume[name], name))
    shown = {ordered[len(ordered) // 2]: "median"}
    for name, kinds in list(diagnosis.outliers.items())[:5]:
        shown.setdefault(name, f"outlier: {', '.join(kinds)}")
    for pair in facts.alike[:1]:
        shown.setdefault(pair.first, "look-alike")
        shown.setdefault(pair.second, "look-alike")
    # The rest evenly from the smallest to the largest.
    for index in np.linspace(0, len(ordered) - 1, NUM_PICTURES).astype(int):
        if len(shown) < NUM_PICTURES:
            shown.setdefault(ordered[index], "")
    return tuple(
        Shown(name, why, load_picture(records, record.key), _size_mm(record))
        for name, why in shown.items()
        if isinstance(record := facts.by_name[name].record, ScanRecord)
    )


def _size_mm(record: ScanRecord) -> tuple[float, float]:
    """(height, width) of the record's picture."""
    affine = np.array(record.affine)
    shape, spacing = oriented(record.shape, affine, slice_plane(affine))
    return shape[1] * spacing[1], shape[2] * spacing[2]


def as_json(diagnosis: Diagnosis) -> dict[str, Any]:
    """Everything as JSON. Holds relative paths, which often name patients: it stays with the user."""
    facts = diagnosis.facts
    return {
        "usable": len(facts.usable),
        "findings": [asdict(finding) for finding in diagnosis.findings],
        "scans": [
            {
                "name": scan.name,
                "files": len(scan.source.files),
                "modality": scan.source.modality,
                "shape": scan.shape,
                "spacing_mm": scan.spacing_mm,
                "orientation": scan.plane,
                "labels": scan.num_labels,
                "range": _range(scan.record),
                **(scan.record.refusal.as_json() if isinstance(scan.record, RefusedRecord) else {}),
                "outlier": diagnosis.outliers.get(scan.name, []),
            }
            for scan in facts.scans
        ],
        "damaged": [{"name": scan.name, **scan.refusal.as_json()} for scan in facts.damaged],
        "left_out": [{"name": scan.name, **scan.refusal.as_json()} for scan in facts.left_out],
        "alike": [asdict(pair) for pair in facts.alike],
        "ignored": dict(facts.ignored),
    }


def _range(record: Record | None) -> list[float] | None:
    return [record.minimum, record.maximum] if isinstance(record, ScanRecord) else None
