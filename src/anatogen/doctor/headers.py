"""What the header of a scan tells before any voxel is read, and whether somebody's name is in it."""

import re
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
import numpy.typing as npt
import pydicom
from nibabel.spatialimages import SpatialImage

from anatogen.dataset.discover import Source
from anatogen.io.checks import quiet_libraries
from anatogen.io.formats import ending
from anatogen.io.itk import read_itk_header
from anatogen.io.nifti import affine_of

# Elements that tell what a DICOM slice is, and whether somebody's name is in or on it.
_TAGS = [
    "BurnedInAnnotation",
    "Columns",
    "ConversionType",
    "ImageType",
    "NumberOfFrames",
    "PatientBirthDate",
    "PatientName",
    "PixelSpacing",
    "Rows",
    "SOPClassUID",
    "SliceThickness",
    "SpacingBetweenSlices",
]
_MGH_FLAG_AT = 28
_NAME_OR_DATE = re.compile(
    rb"[A-Za-z]+\^[A-Za-z]+|(?:19|20)\d\d[-/.]?(?:0[1-9]|1[0-2])[-/.]?(?:0[1-9]|[12]\d|3[01])"
)


@dataclass(frozen=True)
class Header:
    """What a header tells before any voxel is read.

    Attributes:
        shape: Voxels along (D, H, W), as far as it tells.
        spacing_mm: Along (D, H, W), as far as it tells.
        hints: Some of "burned_in", "screen_capture", "localisers", "no_geometry", "names_in_headers".
    """

    shape: tuple[int, ...] | None = None
    spacing_mm: tuple[float, ...] | None = None
    hints: frozenset[str] = frozenset()


def read_scan_header(source: Source) -> Header:
    """Reads the header of a scan; of a DICOM series those of its first, middle and last file.

    Damaged headers give what they tell: the reason comes with the voxels.
    """
    with quiet_libraries():
        try:
            if source.is_dicom:
                return _dicom_header(source)
            kind = ending(source.files[0])
            if kind in (".nii", ".nii.gz", ".hdr", ".mgz", ".mgh"):
                return _nifti_header(source.files[0])
            if kind == ".npy":
                array = np.load(source.files[0], mmap_mode="r", allow_pickle=False)
                return Header(shape=array.shape)
            return _itk_header(source.files[0])
        except MemoryError:
            raise
        except Exception:  # damaged headers can raise nearly anything
            return Header()


def _nifti_header(path: Path) -> Header:
    image = nib.load(path)
    hints = set()
    texts = [
        image.header[name].tobytes() for name in ("descrip", "db_name", "aux_file") if name in image.header
    ]
    if any(_NAME_OR_DATE.search(text) for text in texts):
        hints.add("names_in_headers")
    codes = [int(image.header[name]) for name in ("sform_code", "qform_code") if name in image.header]
    if codes == [0, 0] or _is_mgh_without_place(image) or np.array_equal(image.affine, np.eye(4)):
        hints.add("no_geometry")
    # nibabel's axes are (i, j, k), those of a `Volume` (k, j, i).
    shape = tuple(int(length) for length in image.shape[::-1])
    return Header(shape, _spacing_mm(affine_of(image)), frozenset(hints))


def _is_mgh_without_place(image: SpatialImage) -> bool:
    """Whether FreeSurfer's usual place stands in for what the header does not tell."""
    if not isinstance(image, nib.MGHImage):
        return False
    with image.file_map["image"].get_prepare_fileobj("rb") as file:
        # nibabel sets the flag as it fills in the place.
        file.seek(_MGH_FLAG_AT)
        return bool(file.read(2) == bytes(2))


def _itk_header(path: Path) -> Header:
    shape, affine = read_itk_header(path)
    return Header(shape, _spacing_mm(affine))


def _spacing_mm(affine: npt.NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.linalg.norm(affine[:3, :3], axis=0).tolist())


def _dicom_header(source: Source) -> Header:
    files = source.files
    hints = set()
    first = None
    for path in dict.fromkeys((files[0], files[len(files) // 2], files[-1])):
        header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS), force=True)
        first = first or header
        types = {str(value).upper() for value in header.get("ImageType") or ()}
        if str(header.get("BurnedInAnnotation") or "").upper() == "YES":
            hints.add("burned_in")
        # Secondary capture storage and its multi-frame kinds: pictures of screens.
        if "1.2.840.10008.5.1.4.1.1.7" in str(header.get("SOPClassUID") or "") or header.get(
            "ConversionType"
        ):
            hints.add("screen_capture")
        if types & {"LOCALIZER", "SCOUT"}:
            hints.add("localisers")
        if str(header.get("PatientName") or "").strip(" ^") or header.get("PatientBirthDate"):
            hints.add("names_in_headers")
    assert first is not None
    depth = int(first.get("NumberOfFrames") or 1) if len(files) == 1 else len(files)
    shape = (depth, int(first.get("Rows") or 0), int(first.get("Columns") or 0))
    between = first.get("SpacingBetweenSlices") or first.get("SliceThickness")
    pixel = first.get("PixelSpacing")
    spacing = (float(between), float(pixel[0]), float(pixel[1])) if between and pixel else None
    return Header(shape, spacing, frozenset(hints))
