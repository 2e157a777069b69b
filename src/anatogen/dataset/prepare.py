"""A folder of scans becomes a prepared dataset: one grid, one range of intensities, split by patient.

    discover -> select by the recipe -> inspect each scan (pass 1) -> choose the grid
             -> convert each scan (pass 2) -> dataset.json

Both passes use every core and leave a record of each finished scan in `OUT/.work`, so a killed run goes on
where it stopped and ends in the same bytes. `dataset.json` is written last: where it is, the dataset is
whole.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from anatogen.core.errors import UserError
from anatogen.core.reasons import Reason
from anatogen.dataset.cases import (
    conversion_tasks,
    describe_cases,
    describe_dataset,
    mask_notes,
    patient_notes,
)
from anatogen.dataset.common_grid import choose_grid, choose_modality
from anatogen.dataset.conversion import convert_scan
from anatogen.dataset.discover import LeftOut, Source, discover
from anatogen.dataset.inspection import Inspection, InspectionTask, inspect_scan
from anatogen.dataset.manifest import MANIFEST_NAME
from anatogen.dataset.prepare_config import PrepareConfig, SplitConfig
from anatogen.dataset.prepared_folder import (
    WORK_FOLDER,
    PrepareSummary,
    check_folders,
    completed,
    fingerprint,
    publish,
)
from anatogen.dataset.recipes.recipe import Scan, Selection
from anatogen.dataset.selection import require_scans, select_scans
from anatogen.dataset.workers import Workers, available_cores
from anatogen.io.archives import scans_folder

__all__ = ["PrepareConfig", "PrepareSummary", "SplitConfig", "prepare"]


def prepare(
    scans: Path,
    out: Path,
    config: PrepareConfig,
    *,
    strict: bool = False,
    workers: int | None = None,
    progress: bool = True,
) -> PrepareSummary:
    """Makes a prepared dataset of all scans below a folder, or finishes or confirms the one that is there.

    Writes `dataset.json`, `volumes/case_00000.npy` ... (float16, (D, H, W), in [-1, 1]), `masks/` with the
    same names (uint8, on the same grid) where scans have masks, `left_out.json` (relative path and reason)
    and `prepare.json` (what was decided, and how to tell that nothing changed).
    Only `left_out.json` holds file names, which may name patients, and of headers what its reasons quote,
    such as the descriptions of series.

    Args:
        scans: Folder with NIfTI, NRRD, MetaImage, NPY files and DICOM series, nested and mixed, or an archive
            (.zip, .tar, .tar.gz) of one, which is unpacked to a part of `out` that is removed at the end.
        out: Folder of the dataset: new, empty, or made by this function.
        config: How.
        strict: Makes any scan that would be left out an error; nothing is published then.
        workers: Processes; default one per core. With 1 no other process is started.
        progress: Whether to show progress bars on the terminal.

    Raises:
        UserError: If the folders can't be right, no scan is left, a scan is bad and `strict` is set, or a
            process died (naming the scan).
    """
    check_folders(scans, out)
    if workers is not None and workers < 1:
        raise UserError(f"workers is {workers}: it must be at least 1")
    with (
        scans_folder(scans, out / WORK_FOLDER, progress=progress) as folder,
        Workers(workers or available_cores(), progress) as pool,
    ):
        sources, left_out, num_ignored = discover(
            folder,
            lambda function, files: pool.map(function, files, [file.name for file in files], "Looking"),
            config.include,
            config.exclude,
        )
        selection = select_scans(folder, sources, config)
        left_out += selection.left_out
        num_ignored += _num_unused_files(sources, selection)
        inputs = fingerprint(folder, selection, left_out, config)
        complete = completed(out, inputs)
        if complete is not None:
            if strict:
                _refuse_left_out(complete.left_out)
            return complete
        work = out / WORK_FOLDER
        inspections = _inspect(pool, selection, left_out, config, work)
        accepted = _without_duplicates(selection.scans, inspections, left_out)
        require_scans(accepted, left_out, scans, config.narrows)
        modality, others, decisions = choose_modality(
            [(scan.source, inspection) for scan, inspection in accepted], config.modality
        )
        left_out += others
        dropped = {scan.name for scan in others}
        accepted = [(scan, inspection) for scan, inspection in accepted if scan.source.name not in dropped]
        require_scans(accepted, left_out, scans, config.narrows)
        if strict:
            _refuse_left_out(left_out)
        grid = choose_grid(
            [inspection for _, inspection in accepted],
            config.orientation,
            _three(config.spacing_mm),
            config.shape,
            config.fit == "resize",
            config.cube,
        )
        # From here on an older dataset in the folder is no longer whole.
        (out / MANIFEST_NAME).unlink(missing_ok=True)
        parts = [(scan, inspection, region) for scan, inspection in accepted for region in inspection.regions]
        tasks = conversion_tasks(parts, modality, grid, config, out)
        conversions = pool.map(convert_scan, tasks, [task.source.name for task in tasks], "Preparing")
        cases, failed = describe_cases(parts, tasks, conversions, config)
        left_out += failed
        if strict:
            _refuse_left_out(left_out)
        if not cases:
            raise UserError(f"no scan in {scans} could be prepared; the first: {left_out[0].reason}")
        manifest = describe_dataset(cases, modality, grid, selection, config)
        decisions = [*selection.notes, *decisions, *grid.decisions, *mask_notes(parts, conversions)]
        decisions += patient_notes(cases, config)
        summary = PrepareSummary(
            out, manifest, tuple(sorted(left_out, key=lambda scan: scan.name)), num_ignored, tuple(decisions)
        )
        publish(summary, inputs)
        return summary


def _inspect(
    pool: Workers, selection: Selection, left_out: list[LeftOut], config: PrepareConfig, work: Path
) -> dict[str, Inspection]:
    tasks = [
        InspectionTask(
            source=scan.source,
            percentiles=config.percentiles,
            records=work / "inspections",
            reading=config.reading,
            modality=config.modality,
            region=config.region,
            mask=scan.mask,
            known_labels=tuple(sorted(selection.labels)) or None,
        )
        for scan in selection.scans
    ]
    names = [scan.source.name for scan in selection.scans]
    results = pool.map(inspect_scan, tasks, names, "Checking")
    left_out += [result for result in results if isinstance(result, LeftOut)]
    return {
        name: result for name, result in zip(names, results, strict=True) if isinstance(result, Inspection)
    }


def _num_unused_files(sources: Iterable[Source], selection: Selection) -> int:
    """Files of scans that the recipe has no interest in."""
    used = {
        source.name for scan in selection.scans for source in (scan.source, scan.mask) if source is not None
    }
    used |= {scan.name for scan in selection.left_out}
    return sum(len(source.files) for source in sources if source.name not in used)


def _without_duplicates(
    scans: Iterable[Scan], inspections: dict[str, Inspection], left_out: list[LeftOut]
) -> list[tuple[Scan, Inspection]]:
    accepted: list[tuple[Scan, Inspection]] = []
    # Scans with equal bytes have equal voxels too, so one index finds both kinds of copies.
    seen: dict[str, list[tuple[Source, Inspection]]] = {}
    for scan in scans:
        source, inspection = scan.source, inspections.get(scan.source.name)
        if inspection is None:
            continue
        alike = seen.setdefault(inspection.content_sha256, [])
        first = next((other for other, known in alike if inspection.same_scan(known)), None)
        if first is not None:
            left_out.append(LeftOut(source.name, Reason.SAME_SCAN(other=first.name)))
        else:
            alike.append((source, inspection))
            accepted.append((scan, inspection))
    return accepted


def _refuse_left_out(left_out: Sequence[LeftOut]) -> None:
    if not left_out:
        return
    ordered = sorted(left_out, key=lambda scan: scan.name)
    listing = "".join(f"\n  - {scan.name}: {scan.reason}" for scan in ordered[:20])
    more = f"\n  and {len(ordered) - 20} more" if len(ordered) > 20 else ""
    raise UserError(f"strict: {len(ordered)} scans can't be used:{listing}{more}")


def _three(spacing: float | tuple[float, float, float] | None) -> tuple[float, float, float] | None:
    return (spacing, spacing, spacing) if isinstance(spacing, int | float) else spacing
