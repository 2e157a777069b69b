"""Which scans a folder holds: files by their ending, DICOM by its content, slices grouped to series."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from anatogen.core.errors import ScanError, UserError
from anatogen.core.reasons import Reason, Refusal
from anatogen.io.dicom.series import Mapper, find_series
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


# What a folder lacks that holds no scans.
NO_SCANS = "no .nii, .nii.gz, .nrrd, .mha, .mhd, .npy file or DICOM series"


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
    files = sorted(_walk(folder), key=lambda file: _name(file, folder))
    # Each with the reason that it can't be used for, if there is one.
    candidates: list[tuple[Source, Refusal | None]] = [
        _file_source(file, folder) for file in files if ending(file) in SCAN_ENDINGS
    ]
    others = [file for file in files if ending(file) not in SCAN_ENDINGS and file.name.upper() != "DICOMDIR"]
    series, damaged = find_series(others, mapper)
    candidates += [(Source(_name(one.file, folder), (one.file,)), one.refusal) for one in damaged]
    homes = Counter(home for one in series for home in {file.parent for file in one.files})
    for one in series:
        first = one.files[0]
        # A series is named by its folder where the two are one.
        alone = len({file.parent for file in one.files}) == 1 and homes[first.parent] == 1
        name = _name(first.parent if alone and first.parent != folder else first, folder)
        refusal = None
        if one.damage is not None:
            refusal = Reason.DAMAGED_BESIDE(what=_name(one.damage.file, folder))
        candidates.append((Source(name, one.files, True, one.header.modality, one.header.patient), refusal))
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
    name = _name(file, folder)
    try:
        data = data_files(file)
    except ScanError as error:
        return Source(name, (file,)), error.refusal
    if any(Path(os.path.relpath(path, folder)).parts[0] == ".." for path in data):
        return Source(name, (file,)), Reason.NO_DATA_FILE()
    return Source(name, (file, *data)), None


def _matches(source: Source, folder: Path, patterns: Sequence[str]) -> bool:
    names = [source.name, *(_name(file, folder) for file in source.files)]
    return any(fnmatchcase(name, pattern) for pattern in patterns for name in names)


def _name(path: Path, folder: Path) -> str:
    return path.relative_to(folder).as_posix()


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
