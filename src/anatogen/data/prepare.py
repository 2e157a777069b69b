"""A folder of scans becomes a prepared dataset: one grid, one range of intensities, split by patient.

    discover -> inspect each scan (pass 1) -> choose the grid -> convert each scan (pass 2) -> dataset.json

Both passes use every core and leave a record of each finished scan in `OUT/.work`, so a killed run goes on
where it stopped and ends in the same bytes. `dataset.json` is written last: where it is, the dataset is
whole.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from anatogen import __version__
from anatogen.data.archives import scans_folder
from anatogen.data.common_grid import CommonGrid, choose_grid, choose_modality
from anatogen.data.conversion import Conversion, ConversionTask, convert_scan
from anatogen.data.discover import LeftOut, Source, discover
from anatogen.data.inspection import Inspection, InspectionTask, inspect_scan
from anatogen.data.manifest import MANIFEST_NAME, Case, Grid, Intensity, Manifest, Split
from anatogen.data.patients import assign_splits, identify, patient_hash, serial_names
from anatogen.data.prepare_config import PrepareConfig, SplitConfig
from anatogen.data.prepared_folder import (
    VOLUMES_FOLDER,
    WORK_FOLDER,
    PrepareSummary,
    check_folders,
    completed,
    fingerprint,
    publish,
)
from anatogen.data.transforms import centred_affine
from anatogen.data.workers import Workers, available_cores
from anatogen.errors import UserError

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

    Writes `dataset.json`, `volumes/case_00000.npy` ... (float16, (D, H, W), in [-1, 1]), `left_out.json`
    (relative path and reason) and `prepare.json` (what was decided, and how to tell that nothing changed).
    Only `left_out.json` holds file names, which may name patients; none of them holds anything of a header.

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
        inputs = fingerprint(folder, sources, left_out, config)
        complete = completed(out, inputs)
        if complete is not None:
            if strict:
                _refuse_left_out(complete.left_out)
            return complete
        work = out / WORK_FOLDER
        inspections = _inspect(pool, sources, left_out, config, work)
        accepted = _without_duplicates(sources, inspections, left_out)
        patients, unknown = identify(
            [source for source, _ in accepted], folder, config.patient_pattern, config.patient_csv
        )
        left_out += unknown
        accepted = [(source, inspection) for source, inspection in accepted if source.name in patients]
        _require_scans(accepted, left_out, scans, config.narrows)
        modality, others, decisions = choose_modality(accepted, config.modality)
        left_out += others
        dropped = {scan.name for scan in others}
        accepted = [(source, inspection) for source, inspection in accepted if source.name not in dropped]
        _require_scans(accepted, left_out, scans, config.narrows)
        if strict:
            _refuse_left_out(left_out)
        grid = choose_grid(
            [inspection for _, inspection in accepted],
            config.orientation,
            _three(config.spacing_mm),
            config.shape,
            config.fit == "resize",
        )
        # From here on an older dataset in the folder is no longer whole.
        (out / MANIFEST_NAME).unlink(missing_ok=True)
        tasks = _tasks(accepted, modality, grid, config, out)
        names = [source.name for source, _ in accepted]
        conversions = pool.map(convert_scan, tasks, names, "Preparing")
    cases = _cases(accepted, tasks, conversions, patients, config, left_out)
    if strict:
        _refuse_left_out(left_out)
    if not cases:
        raise UserError(f"no scan in {scans} could be prepared; the first: {left_out[0].reason}")
    manifest = _manifest(cases, modality, grid, config)
    decisions = [*decisions, *grid.decisions, *_patient_notes(cases, config)]
    summary = PrepareSummary(
        out, manifest, tuple(sorted(left_out, key=lambda scan: scan.name)), num_ignored, tuple(decisions)
    )
    publish(summary, inputs)
    return summary


def _inspect(
    pool: Workers, sources: Sequence[Source], left_out: list[LeftOut], config: PrepareConfig, work: Path
) -> dict[str, Inspection]:
    tasks = [
        InspectionTask(
            source, config.percentiles, config.npy_spacing_mm, work / "inspections", config.allow_tilt
        )
        for source in sources
    ]
    results = pool.map(inspect_scan, tasks, [source.name for source in sources], "Checking")
    left_out += [result for result in results if isinstance(result, LeftOut)]
    return {
        source.name: result
        for source, result in zip(sources, results, strict=True)
        if isinstance(result, Inspection)
    }


def _without_duplicates(
    sources: Iterable[Source], inspections: dict[str, Inspection], left_out: list[LeftOut]
) -> list[tuple[Source, Inspection]]:
    accepted: list[tuple[Source, Inspection]] = []
    # Scans with equal bytes have equal voxels too, so one index finds both kinds of copies.
    seen: dict[str, list[tuple[Source, Inspection]]] = {}
    for source in sources:
        inspection = inspections.get(source.name)
        if inspection is None:
            continue
        alike = seen.setdefault(inspection.content_sha256, [])
        first = next((other for other, known in alike if inspection.same_scan(known)), None)
        if first is not None:
            left_out.append(LeftOut(source.name, f"it is the same scan as {first.name}"))
        else:
            alike.append((source, inspection))
            accepted.append((source, inspection))
    return accepted


def _require_scans(
    accepted: Sequence[object], left_out: Sequence[LeftOut], scans: Path, narrowed: bool
) -> None:
    if accepted:
        return
    if left_out:
        raise UserError(
            f"none of the {len(left_out)} scans in {scans} can be used; the first: "
            f"{left_out[0].name}: {left_out[0].reason}"
        )
    passed = " that include and exclude let pass" if narrowed else ""
    raise UserError(
        f"{scans} holds no scans{passed}: no .nii, .nii.gz, .nrrd, .mha, .mhd, .npy file or DICOM series"
    )


def _refuse_left_out(left_out: Sequence[LeftOut]) -> None:
    if not left_out:
        return
    ordered = sorted(left_out, key=lambda scan: scan.name)
    listing = "".join(f"\n  - {scan.name}: {scan.reason}" for scan in ordered[:20])
    more = f"\n  and {len(ordered) - 20} more" if len(ordered) > 20 else ""
    raise UserError(f"strict: {len(ordered)} scans can't be used:{listing}{more}")


def _three(spacing: float | tuple[float, float, float] | None) -> tuple[float, float, float] | None:
    return (spacing, spacing, spacing) if isinstance(spacing, int | float) else spacing


def _tasks(
    accepted: Sequence[tuple[Source, Inspection]],
    modality: str,
    grid: CommonGrid,
    config: PrepareConfig,
    out: Path,
) -> list[ConversionTask]:
    tasks = []
    for number, (source, inspection) in enumerate(accepted):
        low, high = (inspection.low, inspection.high) if modality == "MR" else config.window_hu
        name = f"case_{number:05d}"
        tasks.append(
            ConversionTask(
                source=source,
                source_sha256=inspection.source_sha256,
                intensity=Intensity(modality=modality, low=low, high=high),
                codes=grid.codes,
                spacing_mm=None if config.fit == "resize" else grid.spacing_mm,
                shape=grid.shape,
                center=config.center,
                interpolation=config.interpolation,
                npy_spacing_mm=config.npy_spacing_mm,
                allow_tilt=config.allow_tilt,
                output=out / VOLUMES_FOLDER / f"{name}.npy",
                record=out / WORK_FOLDER / "conversions" / f"{name}.json",
            )
        )
    return tasks


def _cases(
    accepted: Sequence[tuple[Source, Inspection]],
    tasks: Sequence[ConversionTask],
    conversions: Sequence[Conversion | LeftOut],
    patients: dict[str, str],
    config: PrepareConfig,
    left_out: list[LeftOut],
) -> list[Case]:
    made = []
    for (source, inspection), task, conversion in zip(accepted, tasks, conversions, strict=True):
        if isinstance(conversion, LeftOut):
            left_out.append(conversion)
        else:
            made.append((source, inspection, task, conversion))
    hashes = {source.name: patient_hash(patients[source.name], config.seed) for source, *_ in made}
    splits = assign_splits(hashes.values(), config.split.validation, config.split.test)
    serial = serial_names(hashes.values())
    return [
        Case(
            id=task.output.stem,
            file=f"{VOLUMES_FOLDER}/{task.output.name}",
            split=splits[hashes[source.name]],
            patient=serial[hashes[source.name]],
            source_sha256=inspection.source_sha256,
            intensity=task.intensity,
            source_affine=inspection.affine,
            source_shape=inspection.shape,
            affine=conversion.affine,
        )
        for source, inspection, task, conversion in made
    ]


def _manifest(cases: list[Case], modality: str, grid: CommonGrid, config: PrepareConfig) -> Manifest:
    training = [case.intensity for case in cases if case.split is Split.TRAIN]
    intensity = Intensity(
        modality=modality,
        low=float(np.median([scan.low for scan in training])),
        high=float(np.median([scan.high for scan in training])),
    )
    affine = centred_affine(grid.codes, grid.shape, grid.spacing_mm)
    return Manifest(
        anatogen_version=__version__,
        grid=Grid(shape=grid.shape, spacing_mm=grid.spacing_mm, affine=affine.tolist()),
        intensity=intensity,
        config=config.portable(),
        cases=cases,
    )


def _patient_notes(cases: Sequence[Case], config: PrepareConfig) -> list[str]:
    num_patients = len({case.patient for case in cases})
    note = f"{len(cases)} scans of {num_patients} patients"
    told = config.patient_pattern is not None or config.patient_csv is not None
    if not told and num_patients == len(cases) > 1:
        note += ": each scan counts as a patient; if one has several, set patient_pattern or patient_csv"
    wanted = {Split.VALIDATION: config.split.validation, Split.TEST: config.split.test}
    empty = [
        split for split in wanted if wanted[split] > 0 and all(case.split is not split for case in cases)
    ]
    if not empty:
        return [note]
    empty_ones = f"{' and '.join(empty)} {'is' if len(empty) == 1 else 'are'} empty"
    if num_patients == 1:
        return [
            note,
            f"{empty_ones}, as all scans are of 1 patient: if not, set patient_pattern or patient_csv",
        ]
    larger = " and ".join(f"split.{split}" for split in empty)
    return [note, f"{empty_ones}, a share too small of {num_patients} patients: set a larger {larger}, or 0"]
