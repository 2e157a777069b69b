"""Which scans a folder holds: files by their ending, DICOM by its content, slices grouped to series."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from anatogen.data.dicom import is_dicom, read_header
from anatogen.data.formats import SCAN_ENDINGS, ending
from anatogen.errors import UserError

# Files that may start like DICOM without a preamble are looked into only under these endings (and none, or a
# number), so that a folder of other data is not parsed byte by byte.
_DICOM_ENDINGS = (".dcm", ".dicom", ".ima", "")


@dataclass(frozen=True)
class Source:
    """One scan on disk. Holds what DICOM says of the patient, so it lives in memory only.

    Attributes:
        name: Relative path with "/" between folders; of a DICOM series its folder, or its first file where
            the folder holds several. The user's own words: on screen and in left_out.json only.
        files: One file, or the files of a DICOM series in order of their path.
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
    """A scan that did not get into the dataset: its relative path and the reason, one line."""

    name: str
    reason: str


@dataclass(frozen=True)
class _Slice:
    series: str
    instance: str
    modality: str
    patient: str


Mapper = Callable[[Callable[[Path], _Slice | str | None], Sequence[Path]], Iterable[_Slice | str | None]]


def discover(folder: Path, mapper: Mapper) -> tuple[list[Source], list[LeftOut], int]:
    """Finds every scan below a folder, in order of name; hidden files and folders are not looked at.

    Args:
        folder: Where the scans are, nested as they like, formats mixed.
        mapper: Applies a function to many files in order, e.g. in parallel.

    Returns:
        The scans, the files that claim to be DICOM and are not, and how many files were no scans.

    Raises:
        UserError: If the folder does not exist.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: name the folder that holds the scans")
    files = sorted(_walk(folder), key=lambda file: file.relative_to(folder).as_posix())
    sources = [
        Source(file.relative_to(folder).as_posix(), (file,)) for file in files if ending(file) in SCAN_ENDINGS
    ]
    others = [file for file in files if ending(file) not in SCAN_ENDINGS and file.name.upper() != "DICOMDIR"]
    left_out = []
    found: dict[str, list[tuple[Path, _Slice]]] = {}
    for file, header in zip(others, mapper(classify, others), strict=True):
        if isinstance(header, str):
            left_out.append(LeftOut(file.relative_to(folder).as_posix(), header))
        elif header is not None:
            found.setdefault(header.series, []).append((file, header))
    num_ignored = len(files) - len(sources) - sum(map(len, found.values())) - len(left_out)
    series = [copy for slices in found.values() for copy in _copies(slices)]
    homes = Counter(parent for slices in series for parent in {file.parent for file, _ in slices})
    for slices in series:
        first, header = slices[0]
        # A series is named by its folder where the two are one.
        alone = len({file.parent for file, _ in slices}) == 1 and homes[first.parent] == 1
        name = (first.parent if alone and first.parent != folder else first).relative_to(folder).as_posix()
        paths = tuple(file for file, _ in slices)
        sources.append(Source(name, paths, True, header.modality, header.patient))
    return sorted(sources, key=lambda source: source.name), left_out, num_ignored


def _copies(slices: list[tuple[Path, _Slice]]) -> list[list[tuple[Path, _Slice]]]:
    """A series may be spread over folders, or be there several times, once in each folder."""
    if len({header.instance for _, header in slices}) == len(slices):
        return [slices]
    by_folder: dict[Path, list[tuple[Path, _Slice]]] = {}
    for file, header in slices:
        by_folder.setdefault(file.parent, []).append((file, header))
    return list(by_folder.values())


def classify(file: Path) -> _Slice | str | None:
    """What a file without a scan's ending is: a DICOM slice, a damaged one (with the reason), or no scan."""
    suffix = file.suffix.lower()
    if not is_dicom(file):
        if suffix in (".dcm", ".dicom", ".ima"):
            return "the file is no DICOM in spite of its ending"
        return None
    preamble = _has_preamble(file)
    if not preamble and suffix not in _DICOM_ENDINGS and not suffix[1:].isdigit():
        return None
    header = read_header(file)
    if header is None:
        return None
    patient = header.get("PatientID") or header.get("StudyInstanceUID") or header.SeriesInstanceUID
    return _Slice(
        str(header.SeriesInstanceUID),
        str(header.get("SOPInstanceUID")),
        str(header.get("Modality") or ""),
        str(patient),
    )


def _has_preamble(file: Path) -> bool:
    with file.open("rb") as opened:
        return opened.read(132)[128:] == b"DICM"


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
