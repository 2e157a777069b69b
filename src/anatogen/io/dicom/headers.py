"""Which files are DICOM images, and what their headers tell of the volume that they belong to."""

from dataclasses import dataclass
from pathlib import Path

import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from anatogen.core.reasons import Reason, Refusal
from anatogen.io.checks import quiet_libraries, why_absent
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


@dataclass(frozen=True)
class DamagedDicom:
    """A file that is or should be a DICOM image, and can't be read as one.

    Attributes:
        file: The file.
        refusal: Why it can't be.
        series: The SeriesInstanceUID as far as the file tells it, maybe cut off; in memory only.
    """

    file: Path
    refusal: Refusal
    series: str = ""


@dataclass(frozen=True)
class DicomHeader:
    """Elements that tell which volume a DICOM file is of. Names a patient: keep it in memory.

    Attributes:
        file: The file.
        volume: Identifier that the files of one volume share: of the series, or of the enhanced object that
            is one by itself.
        series: SeriesInstanceUID.
        instance: SOPInstanceUID.
        modality: E.g. "CT".
        patient: PatientID, or the study's or series' identifier where that is empty.
        study: StudyInstanceUID.
        stack: Series number, rows and columns, which the slices of one series share beside its identifier.
    """

    file: Path
    volume: str
    series: str
    instance: str
    modality: str
    patient: str
    study: str
    stack: str

    @property
    def is_whole(self) -> bool:
        """Whether the file is a volume by itself, or a part of one that knows its number of parts."""
        return self.volume != self.series


# What a file is: an image, a damaged one, or None for what is no image.
Header = DicomHeader | DamagedDicom | None


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


def _starts_without_preamble(start: bytes) -> bool:
    # Without a preamble a file starts with an element of group 2 or 8, explicit VR in capital letters or
    # implicit VR with a short length.
    if start[:2] not in (b"\x02\x00", b"\x08\x00") or len(start) < 132:
        return False
    explicit = start[4:6].isalpha() and start[4:6].isupper()
    return explicit or int.from_bytes(start[4:8], "little") < 256


def read_header(path: Path) -> Header:
    """The few elements that group files to series.

    None is for other formats and for DICOM that says it is no image (reports, contours, DICOMDIR). A file
    that is, or claims to be, an image and can't be read as one is damaged.
    """
    suffix = path.suffix.lower()
    promised = suffix in _ENDINGS
    likely = promised or not suffix or suffix[1:].isdigit()
    try:
        start = _start(path)
    except OSError as error:
        refusal = why_absent(path) or Reason.NOT_READABLE(why=str(error.strerror))
        return DamagedDicom(path, refusal) if likely else None
    if likely and (absent := why_absent(path)) is not None:
        return DamagedDicom(path, absent)
    if start[128:] == b"DICM":
        promised = True
    elif promised and not _starts_without_preamble(start):
        return DamagedDicom(path, Reason.NO_DICOM())
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
                return _header(path, dataset, series)
        except MemoryError:
            raise
        except Exception as error:  # a damaged header can raise nearly anything
            damage = DamagedDicom(path, Reason.DAMAGED_DICOM(error=type(error).__name__))
            return damage if promised else None
    if (not promised and not classes) or (classes and all(_is_no_image(uid) for uid in classes)):
        return None
    return DamagedDicom(path, Reason.LACKS_ELEMENT(keyword=lacking[0]), series)


def _header(path: Path, dataset: Dataset, series: str) -> DicomHeader:
    whole = dataset.get("ConcatenationUID") or dataset.get("SOPInstanceUID") if is_enhanced(dataset) else None
    return DicomHeader(
        file=path,
        volume=str(whole or series),
        series=series,
        instance=str(dataset.get("SOPInstanceUID")),
        modality=str(dataset.get("Modality") or ""),
        patient=str(dataset.get("PatientID") or dataset.get("StudyInstanceUID") or series),
        study=str(dataset.get("StudyInstanceUID") or ""),
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
