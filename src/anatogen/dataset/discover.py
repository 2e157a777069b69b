"""Which scans a folder holds: files by their ending, DICOM by its content, slices grouped to series."""

import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from anatogen.core.errors import ScanError, UserError
from anatogen.core.reasons import Reason, Refusal
from anatogen.io.checks import why_absent
from anatogen.io.dicom.series import Mapper, find_series
from anatogen.io.formats import OTHER_SCAN_ENDINGS, SCAN_ENDINGS, ending, files_beside, is_scan_file


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
NO_SCANS = f"no {', '.join(SCAN_ENDINGS)} file or DICOM series"

# Why files are ignored, beside their ending that is no scan's.
NOT_INCLUDED = "not included"
HIDDEN = "hidden"
NOT_CHOSEN = "not of the recipe"
_MOST_ENDINGS = 8


def ignored_text(ignored: Mapping[str, int]) -> str:
    """How many files are ignored, and why, in a line.

    Args:
        ignored: What `discover` gives.
    """
    whole = (NOT_CHOSEN, NOT_INCLUDED, HIDDEN)
    endings = sorted((-num, why) for why, num in ignored.items() if why not in whole)
    shown, others = endings[:_MOST_ENDINGS], -sum(num for num, _ in endings[_MOST_ENDINGS:])
    shown += [(-others, "of other endings")] if others else []
    parts = [", ".join(f"{-num} {why}" for num, why in shown) + " (no scans)"] if shown else []
    parts += [f"{num} {why}" for why in whole if (num := ignored.get(why))]
    return "; ".join(parts) or "none"


def discover(
    folder: Path, mapper: Mapper = map, include: Sequence[str] = ("*",), exclude: Sequence[str] = ()
) -> tuple[list[Source], list[LeftOut], dict[str, int]]:
    """Finds every scan below a folder, in order of name; hidden files and folders are not looked at.

    What looks like a scan and can't be read is named: links to nothing, other formats, voxels without header.

    Args:
        folder: Where the scans are, nested as they like, formats mixed.
        mapper: Applies a function to many files in order, e.g. in parallel; default one after the other.
        include: A scan counts if its name, or that of any of its files, matches one of these (as `fnmatch`:
            "*" matches "/" too).
        exclude: It does not if one matches one of these.

    Returns:
        The scans, what is damaged (DICOM files, the series that they may belong to, headers without data) or
        can't be read, and how many files are ignored, by their ending or by `NOT_INCLUDED` or `HIDDEN`.

    Raises:
        UserError: If the folder does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the folder that holds the scans")
    found = sorted(_walk(folder), key=lambda file: _name(file, folder))
    files = [file for file in found if not file.name.startswith(".")]
    # Each with the reason that it can't be used for, if there is one.
    candidates: list[tuple[Source, Refusal | None]] = []
    others = []
    for file in files:
        if is_scan_file(file):
            candidates.append(_file_source(file, folder))
        elif file.name.upper() != "DICOMDIR":
            others.append(file)
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
        elif one.num_subjects > 1:
            refusal = Reason.SEVERAL_PATIENTS(num=one.num_subjects)
        candidates.append((Source(name, one.files, True, one.header.modality, one.header.patient), refusal))
    claimed = _paths(candidates)
    candidates += [
        (Source(_name(file, folder), (file,)), refusal)
        for file in others
        if os.path.normpath(file) not in claimed and (refusal := _lost_scan(file)) is not None
    ]
    wanted = [
        (source, refusal)
        for source, refusal in candidates
        if matches(source, folder, include) and not matches(source, folder, exclude)
    ]
    sources = sorted(
        (source for source, refusal in wanted if refusal is None), key=lambda source: source.name
    )
    left_out = [LeftOut(source.name, refusal) for source, refusal in wanted if refusal is not None]
    ignored = Counter({HIDDEN: len(found) - len(files)} if len(found) > len(files) else {})
    used = _paths(wanted)
    not_included = _paths(candidates) - used
    for path in map(os.path.normpath, files):
        if path in not_included:
            ignored[NOT_INCLUDED] += 1
        elif path not in used:
            ignored[ending(Path(path)) or "without ending"] += 1
    return sources, left_out, dict(ignored)


def _paths(candidates: Iterable[tuple[Source, Refusal | None]]) -> set[str]:
    return {os.path.normpath(file) for source, _ in candidates for file in source.files}


def _lost_scan(file: Path) -> Refusal | None:
    """Why a file of no format that can be read looks like a scan nevertheless, if it does."""
    kind = ending(file)
    if kind == ".img":
        return why_absent(file) or Reason.NO_HEADER()
    if kind in OTHER_SCAN_ENDINGS:
        return why_absent(file) or Reason.UNKNOWN_FORMAT(ending=kind, known=", ".join(SCAN_ENDINGS))
    return None


def _file_source(file: Path, folder: Path) -> tuple[Source, Refusal | None]:
    name = _name(file, folder)
    if (absent := why_absent(file)) is not None:
        return Source(name, (file,)), absent
    try:
        data = files_beside(file)
    except ScanError as error:
        return Source(name, (file,)), error.refusal
    if any(Path(os.path.relpath(path, folder)).parts[0] == ".." for path in data):
        return Source(name, (file,)), Reason.NO_DATA_FILE()
    return Source(name, (file, *data)), None


def matches(source: Source, folder: Path, patterns: Sequence[str]) -> bool:
    """Whether a scan's name, or that of any of its files, matches one of the patterns, as `fnmatch`."""
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
            yield entry  # a folder as one, without what is in it
        elif entry.is_dir():
            yield from _walk(entry, above | {here})
        elif entry.is_file() or entry.is_symlink():
            yield entry
