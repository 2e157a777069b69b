"""Which DICOM files make up a volume together.

A slice that is damaged must not pass for no slice: its stack would get shorter unnoticed.
"""

import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from anatogen.core.errors import ScanError
from anatogen.core.reasons import Reason
from anatogen.io.checks import MIN_VOXELS
from anatogen.io.dicom.headers import DamagedDicom, DicomHeader, Header, is_dicom, read_header

Mapper = Callable[[Callable[[Path], Header], Sequence[Path]], Iterable[Header]]


@dataclass(frozen=True)
class Series:
    """The files of one volume.

    Attributes:
        files: In the order in which they were given.
        header: Of the first file.
        damage: A damaged file that may be one of its slices.
        num_subjects: How many patients or studies its files name; several are no volume.
    """

    files: tuple[Path, ...]
    header: DicomHeader
    damage: DamagedDicom | None
    num_subjects: int


def find_series(files: Sequence[Path], mapper: Mapper = map) -> tuple[list[Series], list[DamagedDicom]]:
    """Finds the DICOM images among files and groups them to volumes.

    Args:
        files: Files of any kind.
        mapper: Applies a function to many files in order, e.g. in parallel; default one after the other.

    Returns:
        The volumes, and the files that are images too but damaged.
    """
    volumes: dict[str, list[DicomHeader]] = {}
    damaged: list[DamagedDicom] = []
    others = []
    for file, header in zip(files, mapper(read_header, files), strict=True):
        if isinstance(header, DamagedDicom):
            damaged.append(header)
        elif header is not None:
            volumes.setdefault(header.volume, []).append(header)
        else:
            others.append(file)
    slice_names = {_name_pattern(header.file) for slices in volumes.values() for header in slices}
    damaged += [
        DamagedDicom(file, Reason.NO_DICOM())
        for file in others
        if _name_pattern(file) in slice_names and not is_dicom(file)
    ]
    suspects = [*damaged, *_torn_off(volumes.values())]
    series = [
        Series(
            tuple(header.file for header in slices),
            slices[0],
            _damage(slices, suspects, volumes),
            len(_by_subject(slices)),
        )
        for of_volume in volumes.values()
        for of_subject in _of_subjects(of_volume)
        for slices in _copies(of_subject)
    ]
    return series, damaged


def series_files(path: Path) -> tuple[Path, ...]:
    """The files of the one DICOM volume in a folder, or of the volume that the file belongs to.

    Raises:
        ScanError: If the folder holds no DICOM images, several series, or a damaged file that may be a slice.
    """
    folder = path if path.is_dir() else path.parent
    files = [file for file in sorted(folder.iterdir()) if file.is_file() and not file.name.startswith(".")]
    series, _ = find_series(files)
    series = [one for one in series if path in one.files] or series
    if len(series) != 1:
        raise ScanError(Reason.NOT_ONE_SERIES(num=len(series)))
    if series[0].damage is not None:
        raise ScanError(Reason.DAMAGED_BESIDE(what=str(series[0].damage.refusal)))
    if series[0].num_subjects > 1:
        raise ScanError(Reason.SEVERAL_PATIENTS(num=series[0].num_subjects))
    return series[0].files


def _name_pattern(file: Path) -> Path:
    """The file's path with a mark in place of each number of its name."""
    return file.with_name(re.sub(r"\d+", "#", file.name))


def _torn_off(volumes: Iterable[Sequence[DicomHeader]]) -> list[DamagedDicom]:
    """Single slices that are numbered as the stack beside them: their SeriesInstanceUID is damaged."""
    single: dict[tuple[Path, str], list[Path]] = {}
    stacks = []
    for slices in volumes:
        if slices[0].is_whole:
            continue
        if len(slices) >= MIN_VOXELS:
            stacks.append(slices[0])
        else:
            for header in slices:
                single.setdefault((header.file.parent, header.stack), []).append(header.file)
    return [
        DamagedDicom(file, Reason.DAMAGED_BESIDE(what=file.name), stack.series)
        for stack in stacks
        for file in single.get((stack.file.parent, stack.stack), ())
    ]


def _by_subject(slices: Iterable[DicomHeader]) -> dict[tuple[str, str], list[DicomHeader]]:
    """Slices by patient and study."""
    found: dict[tuple[str, str], list[DicomHeader]] = {}
    for header in slices:
        found.setdefault((header.patient, header.study), []).append(header)
    return found


def _of_subjects(slices: list[DicomHeader]) -> list[list[DicomHeader]]:
    """Slices under one identifier, parted by patient and study where those lie in folders of their own.

    Some anonymisers give one SeriesInstanceUID to many patients. A slice or two, or some among another's, may
    as well have a damaged header: they stay with the others, whose stack must not get shorter unnoticed.
    """
    parts = list(_by_subject(slices).values())
    folders = [folder for part in parts for folder in {header.file.parent for header in part}]
    are_apart = len(folders) == len(set(folders))
    are_stacks = all(part[0].is_whole or len(part) >= MIN_VOXELS for part in parts)
    return parts if are_apart and are_stacks else [slices]


def _copies(slices: list[DicomHeader]) -> list[list[DicomHeader]]:
    """A series may be spread over folders, or be there several times, whole in each folder."""
    by_folder: dict[Path, list[DicomHeader]] = {}
    for header in slices:
        by_folder.setdefault(header.file.parent, []).append(header)
    instances = {frozenset(header.instance for header in part) for part in by_folder.values()}
    return list(by_folder.values()) if len(instances) == 1 else [slices]


def _damage(
    slices: Sequence[DicomHeader], damaged: Iterable[DamagedDicom], volumes: Collection[str]
) -> DamagedDicom | None:
    """The first damaged file that may be of the series: it says so, or says nothing and lies beside it."""
    if slices[0].is_whole:
        return None
    folders = {header.file.parent for header in slices}
    return next(
        (
            one
            for one in damaged
            if one.series == slices[0].series or (one.series not in volumes and one.file.parent in folders)
        ),
        None,
    )
