"""`anatogen doctor`: what is wrong with a folder of scans, and what to do about it.

    discover -> headers -> voxels, in parallel -> near-duplicates -> `rules`

What is kept in memory of a scan is a few kilobytes, whatever its size.
"""

import tempfile
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from anatogen.core.errors import UserError
from anatogen.dataset.discover import LeftOut, discover
from anatogen.dataset.examination import (
    Look,
    Picture,
    PictureTask,
    description_path,
    look,
    picture,
)
from anatogen.dataset.inspection import InspectionTask
from anatogen.dataset.manifest import MANIFEST_NAME
from anatogen.dataset.mask_names import MaskNames
from anatogen.dataset.near_duplicates import THRESHOLD, PairTask, compare_pair, likely_pairs
from anatogen.dataset.prepare_config import PrepareConfig
from anatogen.dataset.selection import select_scans
from anatogen.dataset.workers import Workers, available_cores
from anatogen.doctor.diagnosis import Alike, Diagnosis, Facts, ScanFacts
from anatogen.doctor.headers import read_scan_header
from anatogen.doctor.rules import conclude
from anatogen.doctor.rules.outliers import outliers

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
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}: it must be at least 1")
    with ExitStack() as stack:
        pool = stack.enter_context(Workers(workers or available_cores(), progress))
        if records is None:
            records = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        sources, damaged, num_other = discover(
            scans,
            lambda function, files: pool.map(function, files, [file.name for file in files], "Looking"),
            config.include,
            config.exclude,
        )
        everyone = config.model_copy(update={"limit": None, "where": {}})
        selection = select_scans(scans, sources, everyone)
        patients = {scan.source.name: scan.patient for scan in selection.scans}
        told_masks = None
        left_out: tuple[LeftOut, ...] = ()
        if config.recipe != "folder":
            # What a recipe has no interest in is not the user's to mend; what it has a reason against is.
            pairs = tuple(
                (scan.source.name, scan.mask.name) for scan in selection.scans if scan.mask is not None
            )
            told_masks = MaskNames(pairs, frozenset(mask for _, mask in pairs), (), ())
            left_out = selection.left_out
            wanted = patients.keys() | told_masks.masks
            sources = [source for source in sources if source.name in wanted]
        names = [source.name for source in sources]
        headers = pool.map(read_scan_header, sources, names, "Headers")
        looks: Sequence[Look | None] = [None] * len(sources)
        if not headers_only:
            tasks = [
                InspectionTask(source, config.percentiles, records, config.reading) for source in sources
            ]
            looks = pool.map(look, tasks, names, "Voxels")
        facts = tuple(
            ScanFacts(source, header, found, patients.get(source.name))
            for source, header, found in zip(sources, headers, looks, strict=True)
        )
        alike = () if headers_only else _find_alike(facts, records, pool)
    gathered = Facts(
        facts,
        damaged=tuple(damaged),
        left_out=left_out,
        told_masks=told_masks,
        num_other_files=num_other,
        num_pictures=_count_pictures(scans),
        alike=alike,
        config=config,
        looked_at_pixels=not headers_only,
    )
    return Diagnosis(gathered, conclude(gathered), outliers(gathered))


def _find_alike(facts: Iterable[ScanFacts], records: Path, pool: Workers) -> tuple[Alike, ...]:
    # Copies with equal voxels are found by their hashes; one of them stands for all.
    first: dict[str, tuple[str, Look]] = {}
    for scan in facts:
        if scan.look is not None and scan.look.inspection is not None:
            first.setdefault(scan.look.inspection.content_sha256, (scan.name, scan.look))
    chosen = list(first.values())
    if len(chosen) < 2:
        return ()
    coarse = np.stack([found.description() for _, found in chosen])
    pairs = likely_pairs(coarse)
    files = [description_path(records, found.digest) for _, found in chosen]
    tasks = [PairTask(files[one], files[other], flips) for one, other, flips in pairs]
    correlations = pool.map(compare_pair, tasks, [chosen[one][0] for one, *_ in pairs], "Comparing")
    return tuple(
        Alike(chosen[one][0], chosen[other][0], correlation, bool(flips))
        for (one, other, flips), correlation in zip(pairs, correlations, strict=True)
        if correlation > THRESHOLD
    )


def _count_pictures(scans: Path) -> int:
    return sum(path.suffix.lower() in _PICTURE_ENDINGS for path in scans.rglob("*"))


def choose_shown(diagnosis: Diagnosis) -> list[tuple[ScanFacts, str]]:
    """Up to 12 scans for the page, each with what is special about it."""
    facts = diagnosis.facts
    measured = {scan.name: inspection for scan, inspection in facts.measured()}
    if not measured:
        return []
    # By field of view: the scan in the middle is the most usual one.
    volume = {
        name: abs(np.linalg.det(np.array(i.affine)[:3, :3])) * np.prod(i.shape)
        for name, i in measured.items()
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
    return [(facts.by_name[name], why) for name, why in shown.items()]


def pictures(
    shown: Sequence[ScanFacts], config: PrepareConfig, *, progress: bool = True
) -> list[Picture | None]:
    """The middle slices of some scans, in order.

    Args:
        shown: Scans whose voxels were looked at and can be used.
        config: As `examine` was told.
        progress: Whether to show a progress bar.
    """
    tasks = []
    for scan in shown:
        assert scan.look is not None and scan.look.inspection is not None
        window = (scan.look.inspection.low, scan.look.inspection.high)
        tasks.append(PictureTask(scan.source, window, config.reading))
    # One after the other: starting processes takes longer than a dozen scans.
    with Workers(1, progress) as pool:
        return pool.map(picture, tasks, [scan.name for scan in shown], "Pictures")


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
                "labels": scan.look.num_labels if scan.look else None,
                "range": _range(scan.look),
                **(scan.look.refusal.as_json() if scan.look and scan.look.refusal else {}),
                "outlier": diagnosis.outliers.get(scan.name, []),
            }
            for scan in facts.scans
        ],
        "damaged": [{"name": scan.name, **scan.refusal.as_json()} for scan in facts.damaged],
        "left_out": [{"name": scan.name, **scan.refusal.as_json()} for scan in facts.left_out],
        "alike": [asdict(pair) for pair in facts.alike],
    }


def _range(found: Look | None) -> list[float] | None:
    if found is None or found.inspection is None:
        return None
    return [found.inspection.minimum, found.inspection.maximum]
