"""What becomes of the usable scans: the tasks of conversion, and the dataset's description of them."""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from anatogen.core.version import __version__
from anatogen.dataset.common_grid import CommonGrid
from anatogen.dataset.conversion import Conversion, ConversionTask, Placement
from anatogen.dataset.discover import LeftOut
from anatogen.dataset.manifest import Case, Grid, Intensity, Manifest, Split
from anatogen.dataset.patients import assign_splits, patient_hash, serial_names
from anatogen.dataset.prepare_config import PrepareConfig
from anatogen.dataset.prepared_folder import MASKS_FOLDER, VOLUMES_FOLDER, WORK_FOLDER
from anatogen.dataset.recipes.recipe import Scan, Selection
from anatogen.dataset.regions import Region
from anatogen.dataset.survey import UsableScan
from anatogen.io.geometry import centred_affine

# A scan and the part of it that becomes one case.
Part = tuple[UsableScan, Region]


def conversion_tasks(
    parts: Sequence[Part], modality: str, grid: CommonGrid, config: PrepareConfig, out: Path
) -> list[ConversionTask]:
    """A task for each case, in order; cases are numbered in that order."""
    placement = placement_on(grid.codes, grid.spacing_mm, grid.shape, config)
    tasks = []
    for number, (usable, region) in enumerate(parts):
        scan, record = usable.scan, usable.record
        low, high = (record.low, record.high) if modality == "MR" else config.window_hu
        name = f"case_{number:05d}"
        tasks.append(
            ConversionTask(
                source=scan.source,
                source_sha256=record.sha256,
                intensity=Intensity(modality=modality, low=low, high=high),
                placement=placement,
                reading=config.reading,
                region=region,
                mask=scan.mask,
                mask_sha256=None if usable.mask is None else usable.mask.sha256,
                output=out / VOLUMES_FOLDER / f"{name}.npy",
                mask_output=None if scan.mask is None else out / MASKS_FOLDER / f"{name}.npy",
                record=out / WORK_FOLDER / "conversions" / f"{name}.json",
            )
        )
    return tasks


def by_scan(tasks: Sequence[ConversionTask]) -> list[tuple[ConversionTask, ...]]:
    """The tasks of each scan together, so that it is decoded once for all of its parts."""
    return [tuple(group) for _, group in groupby(tasks, key=lambda task: task.source.name)]


def placement_on(
    codes: str, spacing_mm: tuple[float, float, float], shape: tuple[int, int, int], config: PrepareConfig
) -> Placement:
    """How scans are brought to a grid.

    Args:
        codes: Directions in which its (D, H, W) grow.
        spacing_mm: Along (D, H, W).
        shape: (D, H, W).
        config: The dataset's settings.
    """
    return Placement(
        codes=codes,
        spacing_mm=None if config.fit == "resize" else spacing_mm,
        shape=shape,
        center=config.center,
        interpolation=config.interpolation,
        cube=config.cube,
    )


def describe_cases(
    parts: Sequence[Part],
    tasks: Sequence[ConversionTask],
    conversions: Sequence[Conversion | LeftOut],
    config: PrepareConfig,
) -> tuple[list[Case], list[LeftOut]]:
    """The cases that were made, dealt to splits by patient, and the scans that could not be."""
    failed = {result.name: result for result in conversions if isinstance(result, LeftOut)}
    # Of a scan with two parts both are made, or none.
    made = [
        (part, task, result)
        for part, task, result in zip(parts, tasks, conversions, strict=True)
        if isinstance(result, Conversion) and task.source.name not in failed
    ]
    dealt = deal_patients([usable.scan for (usable, _), *_ in made], config)
    cases = []
    for (usable, region), task, conversion in made:
        scan, record = usable.scan, usable.record
        split, patient = dealt[scan.patient]
        side = {} if region.side is None else {"side": region.side}
        cases.append(
            Case(
                id=task.output.stem,
                file=f"{VOLUMES_FOLDER}/{task.output.name}",
                split=split,
                patient=patient,
                source_sha256=record.sha256,
                intensity=task.intensity,
                source_affine=record.affine,
                source_shape=record.shape,
                affine=conversion.affine,
                conditions={**scan.conditions, **side},
                mask=None if task.mask_output is None else f"{MASKS_FOLDER}/{task.mask_output.name}",
            )
        )
    return cases, list(failed.values())


def deal_patients(scans: Sequence[Scan], config: PrepareConfig) -> dict[str, tuple[Split, str]]:
    """The split and the serial name of each patient.

    Args:
        scans: No patient of theirs is given two splits.
        config: Says which fractions are held back.
    """
    hashes = {scan.patient: patient_hash(scan.patient, config.seed) for scan in scans}
    given = {hashes[scan.patient]: scan.split for scan in scans if scan.split is not None}
    splits = assign_splits(hashes.values(), config.split.validation, config.split.test, given)
    serial = serial_names(hashes.values())
    return {patient: (splits[digest], serial[digest]) for patient, digest in hashes.items()}


def describe_dataset(
    cases: list[Case], modality: str, grid: CommonGrid, selection: Selection, config: PrepareConfig
) -> Manifest:
    """The content of `dataset.json`."""
    training = [case.intensity for case in cases if case.split is Split.TRAIN]
    # A provider's own split may leave none for training, as a limit may.
    intensities = training or [case.intensity for case in cases]
    intensity = Intensity(
        modality=modality,
        low=float(np.median([scan.low for scan in intensities])),
        high=float(np.median([scan.high for scan in intensities])),
    )
    affine = centred_affine(grid.codes, grid.shape, grid.spacing_mm)
    return Manifest(
        anatogen_version=__version__,
        recipe=config.recipe,
        grid=Grid(shape=grid.shape, spacing_mm=grid.spacing_mm, affine=affine.tolist()),
        intensity=intensity,
        config=config.portable(),
        labels={str(value): name for value, name in sorted(selection.labels.items())},
        cases=cases,
    )


def mask_notes(parts: Sequence[Part], conversions: Sequence[Conversion | LeftOut]) -> list[str]:
    """What became of the labels of masks, one line each."""
    pairs = [
        (region, usable.mask.labels, conversion.labels)
        for (usable, region), conversion in zip(parts, conversions, strict=True)
        if usable.mask is not None and isinstance(conversion, Conversion)
    ]
    if not pairs:
        return []
    labels = sorted({label for _, _, kept in pairs for label in kept if label})
    told = ", ".join(map(str, labels)) or "none"
    notes = [f"{len(pairs)} of {len(parts)} cases have a mask; labels on the grid: {told}"]
    num_empty = sum(not any(before) for _, before, _ in pairs)
    if num_empty:
        notes.append(f"{num_empty} of {len(pairs)} masks are empty: background alone; they are kept")
    # One half of a scan rarely holds what the other does.
    num_lost = sum(
        region.side is None and set(before) - {0, *kept} != set() for region, before, kept in pairs
    )
    if num_lost:
        notes.append(
            f"{num_lost} of {len(pairs)} masks lack a label on the grid that they hold in the scan: it is "
            "cropped away, or thinner than a voxel"
        )
    return notes


def patient_notes(cases: Sequence[Case], config: PrepareConfig) -> list[str]:
    """How many patients there are, and which wanted split stays empty, one line each."""
    num_patients = len({case.patient for case in cases})
    num_scans = len({case.source_sha256 for case in cases})
    note = f"{num_scans} scans of {num_patients} patients"
    if num_scans < len(cases):
        note += f", {len(cases)} cases"
    told = config.patient_pattern is not None or config.patient_csv is not None
    if not told and num_patients == num_scans > 1:
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
