"""A folder of scans becomes a prepared dataset: one grid, one range of intensities, split by patient.

    survey -> choose modality and grid -> convert each scan -> dataset.json

Survey and conversion decode each scan once, use every core and leave a record of each finished scan in
`OUT/.work`, so a killed run goes on where it stopped and ends in the same bytes. `dataset.json` is written
last: where it is, the dataset is whole.
"""

from collections.abc import Sequence
from pathlib import Path

from anatogen.core.errors import UserError
from anatogen.dataset.cases import (
    conversion_tasks,
    describe_cases,
    describe_dataset,
    mask_notes,
    patient_notes,
    rounding_notes,
)
from anatogen.dataset.common_grid import choose_grid, choose_modality
from anatogen.dataset.conversion import convert_scan
from anatogen.dataset.discover import LeftOut
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
from anatogen.dataset.selection import require_scans
from anatogen.dataset.survey import survey_folder, usable_scans, without_copies
from anatogen.dataset.workers import Workers
from anatogen.io.archives import scans_folder

__all__ = ["PrepareConfig", "PrepareSummary", "SplitConfig", "prepare"]


def prepare(
    scans: Path,
    out: Path,
    config: PrepareConfig,
    *,
    strict: bool = False,
    records: Path | None = None,
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
        records: Folder where what is learned of each scan is kept, and found; default a part of `out` that
            is removed at the end.
        workers: Processes; default one per core. With 1 no other process is started.
        progress: Whether to show progress bars on the terminal.

    Raises:
        UserError: If the folders can't be right, no scan is left, a scan is bad and `strict` is set, or a
            process died (naming the scan).
    """
    check_folders(scans, out)
    with (
        scans_folder(scans, out / WORK_FOLDER, progress=progress) as folder,
        Workers(workers, progress) as pool,
    ):
        survey = survey_folder(folder, config, records or out / WORK_FOLDER / "records", pool)
        left_out = survey.left_out
        inputs = fingerprint(folder, survey.selection, left_out, config)
        complete = completed(out, inputs)
        if complete is not None:
            if strict:
                _refuse_left_out(complete.left_out)
            return complete
        usable, refused = usable_scans(survey, survey.selection.scans, pool)
        usable, copies = without_copies(usable)
        left_out += [*refused, *copies]
        require_scans(usable, left_out, scans, config.narrows)
        modality, others, decisions = choose_modality(usable, config.modality)
        left_out += others
        dropped = {scan.name for scan in others}
        usable = [scan for scan in usable if scan.name not in dropped]
        require_scans(usable, left_out, scans, config.narrows)
        if strict:
            _refuse_left_out(left_out)
        grid, of_grid = choose_grid([scan.record for scan in usable], config)
        # From here on an older dataset in the folder is no longer whole.
        (out / MANIFEST_NAME).unlink(missing_ok=True)
        tasks = conversion_tasks(usable, modality, grid, config, out)
        conversions = pool.map(convert_scan, tasks, [scan.name for scan in usable], "Preparing")
        cases, failed = describe_cases(usable, tasks, conversions, config)
        left_out += failed
        if strict:
            _refuse_left_out(left_out)
        if not cases:
            raise UserError(f"no scan in {scans} could be prepared; the first: {left_out[0].reason}")
        manifest = describe_dataset(cases, modality, grid, survey.selection, config)
        decisions = [*survey.selection.notes, *decisions, *of_grid, *rounding_notes(usable)]
        decisions += mask_notes(usable, conversions)
        decisions += patient_notes(cases, config)
        summary = PrepareSummary(
            out,
            manifest,
            tuple(sorted(left_out, key=lambda scan: scan.name)),
            survey.ignored,
            tuple(decisions),
        )
        publish(summary, inputs)
        return summary


def _refuse_left_out(left_out: Sequence[LeftOut]) -> None:
    if not left_out:
        return
    ordered = sorted(left_out, key=lambda scan: scan.name)
    listing = "".join(f"\n  - {scan.name}: {scan.reason}" for scan in ordered[:20])
    more = f"\n  and {len(ordered) - 20} more" if len(ordered) > 20 else ""
    raise UserError(f"strict: {len(ordered)} scans can't be used:{listing}{more}")
