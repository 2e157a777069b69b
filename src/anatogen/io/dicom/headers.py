"""Which files are DICOM images and which belong together, from their headers alone; for discovery.

A slice that is damaged must not pass for no slice: its stack would get shorter unnoticed.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from anatogen.core.errors import ScanError
from anatogen.core.reasons import Reason, Refusal
from anatogen.io.checks import quiet_libraries
from anatogen.io.dicom.multiframe import is_enhanced

# Endings that promise DICOM. Files without a preamble are looked into only under these (and none, or a
# number), so that a folder of other data is not parsed byte by byte.
_ENDINGS = (".dcm", ".dicom", ".ima")

# What every image has, and what tells it from others where it is there.
_NEEDED = ("Rows", "Columns", "SeriesInstanceUID")
_TOLD = (
    "SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "PatientID", "SeriesNumber", "Modality",
    "NumberOfFrames", "ConcatenationUID",
)  # fmt: skip

# Siemens (whose CSA objects lie among images), Philips, GE, Canon: roots of their own classes of objects.
_VENDORS = ("1.3.12.2.1107.", "1.3.46.670589.", "1.2.840.113619.", "1.2.392.200036.")


class DamagedDicomError(ScanError):
    """A file that is or should be a DICOM image, and can't be read as one.

    Attributes:
        series: The SeriesInstanceUID as far as the file tells it, maybe cut off; in memory only.
    """

    def __init__(self, refusal: Refusal, series: str = "") -> None:
        super().__init__(refusal)
        self.series = series


@dataclass(frozen=True)
class DicomHeader:
    """Elements that tell which volume a DICOM file is of. Names a patient: keep it in memory.

    Attributes:
        volume: Identifier that the files of one volume share: of the series, or of the enhanced object that
            is one by itself.
        series: SeriesInstanceUID.
        instance: SOPInstanceUID.
        modality: E.g. "CT".
        patient: PatientID, or the study's or series' identifier where that is empty.
        stack: Series number, rows and columns, which the slices of one series share beside its identifier.
    """

    volume: str
    series: str
    instance: str
    modality: str
    patient: str
    stack: str

    @property
    def is_whole(self) -> bool:
        """Whether the file is a volume by itself, or a part of one that knows its number of parts."""
        return self.volume != self.series


def is_dicom(path: Path) -> bool:
    """Whether the file's first bytes are those of DICOM, with its preamble or without."""
    try:
        start = _start(path)
    except OSError:
        return False
    return start[128:] == b"DICM" or _starts_without_preamble(start)


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(132)


def is_stray(path: Path, slices: Collection[str]) -> bool:
    """Whether a file is no DICOM though it is named as the slices beside it but for the digits: damage.

    Args:
        path: A file that `read_header` finds nothing in.
        slices: `name_pattern` of the slices in its folder.
    """
    return name_pattern(path) in slices and not is_dicom(path)


def name_pattern(path: Path) -> str:
    """The file's name with a mark in place of each number."""
    return re.sub(r"\d+", "#", path.name)


def _starts_without_preamble(start: bytes) -> bool:
    # Without a preamble a file starts with an element of group 2 or 8, explicit VR in capital letters or
    # implicit VR with a short length.
    if start[:2] not in (b"\x02\x00", b"\x08\x00") or len(start) < 132:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return explicit or int.from_bytes(start[4:8], "little") < 256


def series_files(path: Path) -> list[Path]:
    """The files of the one DICOM volume in a folder, or of the volume that the file belongs to.

    Raises:
        ScanError: If the folder holds no DICOM images, several series, or a damaged file that may be a slice.
    """
    folder = path if path.is_dir() else path.parent
    series: dict[str, list[Path]] = {}
    damaged: list[DamagedDicomError] = []
    others: list[Path] = []
    wanted = None
    for file in sorted(
        entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")
    ):
        try:
            header = read_header(file)
        except DamagedDicomError as error:
            damaged.append(error)
            continue
        if header is None:
            others.append(file)
            continue
        series.setdefault(header.volume, []).append(file)
        if file == path:
            wanted = header.volume
    if wanted is None:
        if len(series) != 1:
            raise ScanError(Reason.NOT_ONE_SERIES(num=len(series)))
        wanted = next(iter(series))
    patterns = {name_pattern(file) for file in series[wanted]}
    damaged += [DamagedDicomError(Reason.STRAY()) for file in others if is_stray(file, patterns)]
    for damage in damaged:
        if damage.series == wanted or damage.series not in series:
            raise ScanError(Reason.DAMAGED_BESIDE(what=str(damage)))
    return series[wanted]


def read_header(path: Path) -> DicomHeader | None:
    """The few elements that group files to series; None where the file is no DICOM image.

    None is for other formats and for DICOM that says it is no image (reports, contours, DICOMDIR).

    Raises:
        DamagedDicomError: If the file is, or claims to be, an image and can't be read as one.
    """
    suffix = path.suffix.lower()
    promised = suffix in _ENDINGS
    likely = promised or not suffix or suffix[1:].isdigit()
    try:
        start = _start(path)
    except OSError as error:
        if not likely:
            return None
        raise DamagedDicomError(Reason.NOT_READABLE(why=str(error.strerror))) from error
    if start[128:] == b"DICM":
        promised = True
    elif promised and not _starts_without_preamble(start):
        raise DamagedDicomError(Reason.NO_DICOM())
    elif not likely or not _starts_without_preamble(start):
        return None
    # All values are looked at in here: pydicom converts them, and complains of them, only then.
    with quiet_libraries():
        try:
            dataset = pydicom.dcmread(
                path, stop_before_pixels=True, specific_tags=[*_NEEDED, *_TOLD], force=True
            )
            series = str(dataset.get("SeriesInstanceUID") or "")
            classes = _sop_classes(dataset)
            lacking = [keyword for keyword in _NEEDED if not dataset.get(keyword)]
            if not lacking:
                return _header(dataset, series)
        except MemoryError:
            raise
        except Exception as error:  # a damaged header can raise nearly anything
            if not promised:
                return None
            raise DamagedDicomError(Reason.DAMAGED_DICOM(error=type(error).__name__)) from error
    if (not promised and not classes) or (classes and all(_is_no_image(uid) for uid in classes)):
        return None
    raise DamagedDicomError(Reason.LACKS_ELEMENT(keyword=lacking[0]), series)


def _header(dataset: Dataset, series: str) -> DicomHeader:
    whole = dataset.get("ConcatenationUID") or dataset.get("SOPInstanceUID") if is_enhanced(dataset) else None
    return DicomHeader(
        volume=str(whole or series),
        series=series,
        instance=str(dataset.get("SOPInstanceUID")),
        modality=str(dataset.get("Modality") or ""),
        patient=str(dataset.get("PatientID") or dataset.get("StudyInstanceUID") or series),
        stack=f"{dataset.get('SeriesNumber')}: {dataset.get('Rows')} x {dataset.get('Columns')}",
    )


def _sop_classes(dataset: Dataset) -> list[UID]:
    # The file's meta information and the object itself both tell it; a cut or damaged file may have one.
    meta = getattr(dataset, "file_meta", Dataset())
    told = (meta.get("MediaStorageSOPClassUID"), dataset.get("SOPClassUID"))
    return [UID(str(uid)) for uid in told if uid]


def _is_no_image(sop_class: UID) -> bool:
    """Whether the class of DICOM object is known to hold no slices, not merely unknown or damaged."""
    if sop_class.name == sop_class:  # not in the standard's dictionary: a vendor's own, cut or damaged
        return sop_class.startswith(_VENDORS)
    return "Image Storage" not in sop_class.name
