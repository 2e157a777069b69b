"""What becomes of the usable scans: the tasks of conversion, and the dataset's description of them."""

from collections.abc import Sequence
from itertools import count
from pathlib import Path

import numpy as np

from anatogen.core.version import __version__
from anatogen.dataset.conversion import Conversion, ConversionTask, Placement
from anatogen.dataset.discover import LeftOut
from anatogen.dataset.manifest import Case, Grid, Intensity, Manifest, Split
from anatogen.dataset.patients import assign_splits, patient_hash, serial_names
from anatogen.dataset.prepare_config import PrepareConfig
from anatogen.dataset.prepared_folder import MASKS_FOLDER, VOLUMES_FOLDER
from anatogen.dataset.recipes.recipe import Scan, Selection
from anatogen.dataset.survey import UsableScan
from anatogen.report.numbers import count_of


def conversion_tasks(
    scans: Sequence[UsableScan], modality: str, grid: Grid, config: PrepareConfig, out: Path
) -> list[ConversionTask]:
    """A task for each scan, in order; its regions are cases, numbered in that order."""
    placement = placement_on(grid, config)
    numbers = count()
    tasks = []
    for usable in scans:
        record = usable.record
        windows = record.windows if modality == "MR" else [config.window_hu] * len(record.regions)
        tasks.append(
            ConversionTask(
                source=usable.source,
                source_sha256=record.sha256,
                intensities=tuple(Intensity(modality=modality, low=low, high=high) for low, high in windows),
                placement=placement,
                reading=config.reading,
                regions=record.regions,
                mask=usable.scan.mask,
                mask_sha256=None if usable.mask is None else usable.mask.sha256,
                out=out,
                ids=tuple(f"case_{next(numbers):05d}" for _ in record.regions),
            )
        )
    return tasks


def placement_on(grid: Grid, config: PrepareConfig) -> Placement:
    """How scans are brought to a grid by the dataset's settings."""
    return Placement(
        codes="".join(grid.axis_codes),
        spacing_mm=None if config.fit == "resize" else grid.spacing_mm,
        shape=grid.shape,
        center=config.center,
        interpolation=config.interpolation,
        cube=config.cube,
    )


def describe_cases(
    scans: Sequence[UsableScan],
    tasks: Sequence[ConversionTask],
    conversions: Sequence[Conversion | LeftOut],
    config: PrepareConfig,
) -> tuple[list[Case], list[LeftOut]]:
    """The cases that were made, dealt to splits by patient, and the scans that could not be."""
    made = [
        (usable, task, result)
        for usable, task, result in zip(scans, tasks, conversions, strict=True)
        if isinstance(result, Conversion)
    ]
    dealt = deal_patients([usable.scan for usable, *_ in made], config)
    cases = []
    for usable, task, conversion in made:
        scan, record = usable.scan, usable.record
        split, patient = dealt[scan.patient]
        for name, region, intensity, affine in zip(
            task.ids, record.regions, task.intensities, conversion.affines, strict=True
        ):
            side = {} if region.side is None else {"side": region.side}
            cases.append(
                Case(
                    id=name,
                    file=f"{VOLUMES_FOLDER}/{name}.npy",
                    split=split,
                    patient=patient,
                    source_sha256=record.sha256,
                    intensity=intensity,
                    source_affine=record.affine,
                    source_shape=record.shape,
                    affine=affine,
                    conditions={**scan.conditions, **side},
                    mask=None if scan.mask is None else f"{MASKS_FOLDER}/{name}.npy",
                )
            )
    return cases, [result for result in conversions if isinstance(result, LeftOut)]


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
    cases: list[Case], modality: str, grid: Grid, selection: Selection, config: PrepareConfig
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
    return Manifest(
        anatogen_version=__version__,
        recipe=config.recipe,
        grid=grid,
        intensity=intensity,
        config=config.portable(),
        labels={str(value): name for value, name in sorted(selection.labels.items())},
        cases=cases,
    )


def rounding_notes(scans: Sequence[UsableScan]) -> list[str]:
    """Which distance of slices was taken where their positions are rounded, one line for each rounding."""
    spacings: dict[float, list[float]] = {}
    for scan in scans:
        if scan.record.rounded_mm:
            step = np.array(scan.record.affine)[:3, 0]
            spacings.setdefault(scan.record.rounded_mm, []).append(float(np.linalg.norm(step)))
    notes = []
    for rounded, found in sorted(spacings.items()):
        told = f"{min(found):.4f}" if len(found) == 1 else f"{min(found):.4f} to {max(found):.4f}"
        notes.append(
            f"positions of slices are rounded to {rounded:g} mm in {count_of(len(found), 'scan')}: their "
            f"mean distance is taken, {told} mm"
        )
    return notes


def mask_notes(scans: Sequence[UsableScan], conversions: Sequence[Conversion | LeftOut]) -> list[str]:
    """What became of the labels of masks, one line each."""
    pairs = [
        (region, usable.mask.labels, kept)
        for usable, conversion in zip(scans, conversions, strict=True)
        if usable.mask is not None and isinstance(conversion, Conversion)
        for region, kept in zip(usable.record.regions, conversion.labels, strict=True)
    ]
    if not pairs:
        return []
    num_cases = sum(len(usable.record.regions) for usable in scans)
    labels = sorted({label for _, _, kept in pairs for label in kept if label})
    told = ", ".join(map(str, labels)) or "none"
    notes = [f"{len(pairs)} of {num_cases} cases have a mask; labels on the grid: {told}"]
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
