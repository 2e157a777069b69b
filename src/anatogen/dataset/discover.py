"""Which scans a folder holds: files by their ending, DICOM by its content, slices grouped to series."""

import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from anatogen.core.errors import ScanError, UserError
from anatogen.core.reasons import Reason, Refusal
from anatogen.io.checks import MIN_VOXELS
from anatogen.io.dicom.headers import (
    DamagedDicomError,
    DicomHeader,
    is_stray,
    name_pattern,
    read_header,
)
from anatogen.io.formats import SCAN_ENDINGS, ending
from anatogen.io.itk import data_files


@dataclass(frozen=True)
class Source:
    """One scan on disk. Holds what DICOM says of the patient, so it lives in memory only.

    Attributes:
        name: Relative path with "/" between folders; of a DICOM series its folder, or its first file where
            the folder holds several. The user's own words: on screen and in left_out.json only.
        files: One file, a header and its data file, or the files of a DICOM series in order of their path.
        is_dicom: Whether it is a DICOM series.
        modality: What DICOM says, e.g. "CT"; None for other formats.
        patient: DICOM's PatientID, or the study's or series' identifier where that is empty; else None.
    """

    name: str
    files: tuple[Path, ...]
    is_dicom: bool = False
    modality: str | None = None
    patient: str | None = None


@dataclass(frozen=True)
class LeftOut:
    """A scan that did not get into the dataset, by its relative path."""

    name: str
    refusal: Refusal

    @property
    def reason(self) -> str:
        """Why, in one line."""
        return str(self.refusal)


@dataclass(frozen=True)
class _Damaged:
    refusal: Refusal
    series: str


_Class = DicomHeader | _Damaged | None
# What a folder lacks that holds no scans.
NO_SCANS = "no .nii, .nii.gz, .nrrd, .mha, .mhd, .npy file or DICOM series"

Mapper = Callable[[Callable[[Path], _Class], Sequence[Path]], Iterable[_Class]]


def discover(
    folder: Path, mapper: Mapper = map, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> tuple[list[Source], list[LeftOut], int]:
    """Finds every scan below a folder, in order of name; hidden files and folders are not looked at.

    Args:
        folder: Where the scans are, nested as they like, formats mixed.
        mapper: Applies a function to many files in order, e.g. in parallel; default one after the other.
        include: A scan counts if its name, or that of any of its files, matches one of these (as `fnmatch`:
            "*" matches "/" too).
        exclude: It does not if one matches one of these.

    Returns:
        The scans, what is damaged (DICOM files, the series that they may belong to, headers without data),
        and how many files were no scans or are not included.

    Raises:
        UserError: If the folder does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the folder that holds the scans")
    files = sorted(_walk(folder), key=lambda file: file.relative_to(folder).as_posix())
    # Each with the reason that it can't be used for, if there is one.
    candidates: list[tuple[Source, Refusal | None]] = [
        _file_source(file, folder) for file in files if ending(file) in SCAN_ENDINGS
    ]
    others = [file for file in files if ending(file) not in SCAN_ENDINGS and file.name.upper() != "DICOMDIR"]
    damaged: list[tuple[Path, _Damaged]] = []
    found: dict[str, list[tuple[Path, DicomHeader]]] = {}
    unknown: list[Path] = []
    for file, header in zip(others, mapper(classify, others), strict=True):
        if isinstance(header, _Damaged):
            damaged.append((file, header))
        elif header is not None:
            found.setdefault(header.volume, []).append((file, header))
        else:
            unknown.append(file)
    damaged += [(file, _Damaged(Reason.STRAY(), "")) for file in _strays(unknown, found.values())]
    candidates += [
        (Source(file.relative_to(folder).as_posix(), (file,)), damage.refusal) for file, damage in damaged
    ]
    damaged += _lost(found.values())
    series = [copy for slices in found.values() for copy in _copies(slices)]
    homes = Counter(parent for slices in series for parent in {file.parent for file, _ in slices})
    for slices in series:
        first, header = slices[0]
        # A series is named by its folder where the two are one.
        alone = len({file.parent for file, _ in slices}) == 1 and homes[first.parent] == 1
        name = (first.parent if alone and first.parent != folder else first).relative_to(folder).as_posix()
        paths = tuple(file for file, _ in slices)
        culprit = _damage(slices, damaged, found)
        refusal = None
        if culprit is not None:
            refusal = Reason.DAMAGED_BESIDE(what=culprit.relative_to(folder).as_posix())
        candidates.append((Source(name, paths, True, header.modality, header.patient), refusal))
    wanted = [
        (source, refusal)
        for source, refusal in candidates
        if _matches(source, folder, include) and not _matches(source, folder, exclude)
    ]
    sources = sorted(
        (source for source, refusal in wanted if refusal is None), key=lambda source: source.name
    )
    left_out = [LeftOut(source.name, refusal) for source, refusal in wanted if refusal is not None]
    used = {os.path.normpath(file) for source, _ in wanted for file in source.files}
    return sources, left_out, sum(os.path.normpath(file) not in used for file in files)


def _file_source(file: Path, folder: Path) -> tuple[Source, Refusal | None]:
    name = file.relative_to(folder).as_posix()
    try:
        data = data_files(file)
    except ScanError as error:
        return Source(name, (file,)), error.refusal
    if any(Path(os.path.relpath(path, folder)).parts[0] == ".." for path in data):
        return Source(name, (file,)), Reason.DATA_FILE_OUTSIDE()
    return Source(name, (file, *data)), None


def _damage(
    slices: list[tuple[Path, DicomHeader]],
    damaged: list[tuple[Path, _Damaged]],
    series: Collection[str],
) -> Path | None:
    """The first damaged file that may be of the series: it says so, or says nothing and lies beside it."""
    folders = {file.parent for file, _ in slices}
    own = slices[0][1]
    if own.is_whole:
        return None
    for file, damage in damaged:
        if damage.series == own.series or (damage.series not in series and file.parent in folders):
            return file
    return None


def _strays(unknown: Sequence[Path], found: Iterable[list[tuple[Path, DicomHeader]]]) -> list[Path]:
    patterns: dict[Path, set[str]] = {}
    for slices in found:
        for file, _ in slices:
            patterns.setdefault(file.parent, set()).add(name_pattern(file))
    return [file for file in unknown if is_stray(file, patterns.get(file.parent, ()))]


def _lost(found: Iterable[list[tuple[Path, DicomHeader]]]) -> list[tuple[Path, _Damaged]]:
    """Single slices that are numbered as the stack beside them: their SeriesInstanceUID is damaged."""
    few: dict[tuple[Path, str], list[Path]] = {}
    stacks = []
    for slices in found:
        first, header = slices[0]
        if not header.is_whole and len(slices) >= MIN_VOXELS:
            stacks.append(((first.parent, header.stack), header.series))
        elif not header.is_whole:
            for file, own in slices:
                few.setdefault((file.parent, own.stack), []).append(file)
    return [
        (file, _Damaged(Reason.DAMAGED_BESIDE(what=file.name), series))
        for place, series in stacks
        for file in few.get(place, ())
    ]


def _matches(source: Source, folder: Path, patterns: Sequence[str]) -> bool:
    names = [source.name, *(file.relative_to(folder).as_posix() for file in source.files)]
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _copies(slices: list[tuple[Path, DicomHeader]]) -> list[list[tuple[Path, DicomHeader]]]:
    """A series may be spread over folders, or be there several times, whole in each folder."""
    by_folder: dict[Path, list[tuple[Path, DicomHeader]]] = {}
    for file, header in slices:
        by_folder.setdefault(file.parent, []).append((file, header))
    instances = {frozenset(header.instance for _, header in part) for part in by_folder.values()}
    return list(by_folder.values()) if len(instances) == 1 else [slices]


def classify(file: Path) -> _Class:
    """What a file without a scan's ending is: a DICOM slice, a damaged one (with the reason), or no scan."""
    try:
        return read_header(file)
    except DamagedDicomError as error:
        return _Damaged(error.refusal, error.series)


def _walk(folder: Path, above: frozenset[Path] = frozenset()) -> Iterable[Path]:
    # Links may lead to scans, and in circles.
    here = folder.resolve()
    if here in above:
        return
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise UserError(f"the folder {folder} can't be read: {error.strerror}") from error
    for entry in entries:
        if entry.name.startswith("."):
            continue
        if entry.is_dir():
            yield from _walk(entry, above | {here})
        elif entry.is_file():
            yield entry
