"""DICOM series to `Volume`; the part of `formats` that reads DICOM.

The stacking is highdicom's (it is right or it refuses), after checks that name the reason.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.pixels import get_decoder
from pydicom.uid import UID, ExplicitVRLittleEndian

from anatogen.data.checks import MIN_VOXELS, checked_volume, quiet_libraries, quiet_native_code
from anatogen.data.volume import LPS_TO_RAS, Volume
from anatogen.errors import ScanError

# Endings that promise DICOM. Files without a preamble are looked into only under these (and none, or a
# number), so that a folder of other data is not parsed byte by byte.
_ENDINGS = (".dcm", ".dicom", ".ima")


class DamagedDicomError(ScanError):
    """A file that is or should be a DICOM image, and can't be read as one.

    Attributes:
        series: The SeriesInstanceUID as far as the file tells it, maybe cut off; in memory only.
    """

    def __init__(self, reason: str, series: str = "") -> None:
        super().__init__(reason)
        self.series = series


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


def series_files(path: Path) -> list[Path]:
    """The files of the one DICOM series in a folder, or of the series that the file belongs to.

    Raises:
        ScanError: If the folder holds no DICOM images, several series, or a damaged file that may be a slice.
    """
    folder = path if path.is_dir() else path.parent
    series: dict[str, list[Path]] = {}
    damaged: list[DamagedDicomError] = []
    wanted = None
    for file in sorted(
        entry for entry in folder.iterdir() if entry.is_file() and not entry.name.startswith(".")
    ):
        try:
            header = read_header(file)
        except DamagedDicomError as error:
            damaged.append(error)
            continue
        if header is not None:
            series.setdefault(str(header.SeriesInstanceUID), []).append(file)
            if file == path:
                wanted = str(header.SeriesInstanceUID)
    if wanted is None:
        if len(series) != 1:
            raise ScanError(f"the folder holds {len(series)} DICOM series, expected 1")
        wanted = next(iter(series))
    for damage in damaged:
        if damage.series == wanted or damage.series not in series:
            raise ScanError(f"a file of the series, or beside it, is damaged: {damage}")
    return series[wanted]


def read_header(path: Path) -> Dataset | None:
    """The few elements that group files to series; None where the file is no DICOM image.

    None is for other formats and for DICOM that says it is no image (reports, contours, DICOMDIR): a slice
    that only can't be read must not pass for one of these, or its stack would get shorter unnoticed. The
    result holds PatientID: keep it in memory.

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
        raise DamagedDicomError(f"it can't be read: {error.strerror}") from error
    if start[128:] == b"DICM":
        promised = True
    elif promised and not _starts_without_preamble(start):
        raise DamagedDicomError("the file is no DICOM in spite of its ending")
    elif not likely or not _starts_without_preamble(start):
        return None
    tags = [
        "SOPClassUID",
        "SOPInstanceUID",
        "SeriesInstanceUID",
        "StudyInstanceUID",
        "PatientID",
        "Modality",
        "Rows",
    ]
    with quiet_libraries():
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=tags, force=True)
            series = str(header.get("SeriesInstanceUID") or "")
            sop_class = _sop_class(header)
            has_rows = bool(header.get("Rows"))
        except MemoryError:
            raise
        except Exception as error:  # a damaged header can raise nearly anything
            if not promised:
                return None
            raise DamagedDicomError(f"the file is damaged DICOM ({type(error).__name__})") from error
    if series and has_rows:
        return header
    if (not promised and not sop_class) or _is_no_image(sop_class):
        return None
    lacking = "SeriesInstanceUID" if has_rows else "Rows"
    raise DamagedDicomError(f"the file is a damaged DICOM image: it has no {lacking}", series)


def _sop_class(header: Dataset) -> UID:
    # First that of the file's meta information: a cut file may have the whole of it and a part of the other.
    meta = getattr(header, "file_meta", Dataset())
    return UID(str(meta.get("MediaStorageSOPClassUID") or header.get("SOPClassUID") or ""))


def _is_no_image(sop_class: UID) -> bool:
    """Whether the class of DICOM object is known to hold no slices, not merely unknown or cut off."""
    if sop_class.name == sop_class:  # not in the standard's dictionary: a vendor's own (Siemens CSA), or cut
        return sop_class.is_private and not "1.2.840.10008.".startswith(sop_class)
    return "Image Storage" not in sop_class.name


def read_dicom(files: Sequence[Path]) -> Volume:
    """Reads the slices of one series, in any order; rescaled values (HU for CT).

    The affine is exact for the positions in the headers: its slice axis is the mean step from slice to slice.

    Args:
        files: All files of one series.

    Returns:
        Array float32 (D, H, W): D along the stack, H and W the rows and columns of the images.

    Raises:
        ScanError: If slices are missing, doubled, tilted, of mixed orientation or size, or not readable.
    """
    import highdicom

    with quiet_libraries():
        datasets = [_read(path) for path in files]
        try:
            positions = _check_stack(datasets)
            volume = highdicom.get_volume_from_series(
                datasets,
                dtype=np.float32,
                # Values in the unit of the modality: no vendor's map, no inversion for viewers.
                apply_real_world_transform=False,
                apply_presentation_lut=False,
                orientation_tol=1e-4,
            )
        except (MemoryError, ScanError):
            raise
        except Exception as error:  # headers that break their own rules can raise nearly anything
            raise ScanError(_decoding_reason(datasets[0], error)) from error
    affine = LPS_TO_RAS @ np.asarray(volume.affine, dtype=np.float64)
    step = (positions[-1] - positions[0]) / (len(positions) - 1) * [-1, -1, 1]
    affine[:3, 0] = step if step @ affine[:3, 0] > 0 else -step
    return checked_volume(np.asarray(volume.array), affine)


def _read(path: Path) -> Dataset:
    try:
        dataset = pydicom.dcmread(path, force=True)
        if "PixelData" not in dataset:
            raise ScanError("a file of the series has no pixel data (truncated?)")
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        if syntax is not None and syntax.is_compressed and not get_decoder(syntax).is_available:
            _decompress_with_itk(dataset, path)
    except (MemoryError, ScanError):
        raise
    except Exception as error:  # damaged headers and streams can raise nearly anything
        raise ScanError(f"a file of the series is truncated or damaged ({type(error).__name__})") from error
    return dataset


def _decompress_with_itk(dataset: Dataset, path: Path) -> None:
    """Puts the stored values of lossless JPEG, which pydicom alone can't decode, in place of the stream."""
    import SimpleITK as sitk

    with quiet_native_code():
        rescaled = sitk.GetArrayFromImage(sitk.ReadImage(str(path))).astype(np.float64)
    slope, intercept = float(dataset.get("RescaleSlope") or 1), float(dataset.get("RescaleIntercept") or 0)
    # ITK has applied the rescale, which highdicom applies again.
    stored = np.rint((rescaled - intercept) / slope)
    kind = "i" if dataset.PixelRepresentation else "u"
    dataset.PixelData = stored.astype(f"<{kind}{dataset.BitsAllocated // 8}").tobytes()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian


def _check_stack(datasets: list[Dataset]) -> npt.NDArray[np.float64]:
    """Positions (N, 3) of the first voxel of each slice in LPS mm, in order along the normal."""
    first = datasets[0]
    if any(int(dataset.get("NumberOfFrames") or 1) > 1 for dataset in datasets):
        raise ScanError("it is multi-frame DICOM, which is not supported: export it as single-frame or NIfTI")
    for keyword in ("ImagePositionPatient", "ImageOrientationPatient", "PixelSpacing"):
        if any(not dataset.get(keyword) for dataset in datasets):
            raise ScanError(f"a slice has no {keyword}, so its place in the patient is unknown")
    if any(int(dataset.get("SamplesPerPixel") or 1) != 1 for dataset in datasets):
        raise ScanError("its voxels hold several values (colour), expected one number")
    if len(datasets) < MIN_VOXELS:
        raise ScanError(f"only {len(datasets)} slices, at least {MIN_VOXELS}")
    if str(first.get("Modality")) == "CT" and any(
        dataset.get("RescaleIntercept") is None for dataset in datasets
    ):
        raise ScanError("it is CT without RescaleIntercept, so its values are not in Hounsfield units")
    orientations = np.array([dataset.ImageOrientationPatient for dataset in datasets], dtype=float)
    if np.abs(orientations - orientations[0]).max() > 1e-4:
        raise ScanError("its slices have mixed orientations (a localiser, or several stacks in one series)")
    sizes = {(int(dataset.Rows), int(dataset.Columns)) for dataset in datasets}
    spacings = {tuple(float(value) for value in dataset.PixelSpacing) for dataset in datasets}
    if len(sizes) > 1 or len(spacings) > 1:
        raise ScanError("its slices differ in size or pixel spacing")
    for dataset in datasets:
        # Some de-identifiers drop it; one series has one frame of reference.
        if not dataset.get("FrameOfReferenceUID"):
            dataset.FrameOfReferenceUID = first.SeriesInstanceUID
    normal = np.cross(orientations[0, :3], orientations[0, 3:])
    normal /= np.linalg.norm(normal)
    positions = np.array([dataset.ImagePositionPatient for dataset in datasets], dtype=float)
    positions = positions[np.argsort(positions @ normal, kind="stable")]
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    if gaps.min() < 1e-3 or gaps.min() < 0.1 * usual:
        doubled = int((gaps < max(1e-3, 0.1 * usual)).sum())
        raise ScanError(
            f"{doubled} slices lie where another one is (doubled, or several images per position)"
        )
    missing = int(np.rint(gaps[gaps > 1.5 * usual] / usual - 1).sum())
    if missing:
        raise ScanError(f"{missing} slices are missing inside the stack of {len(datasets)}")
    steps = np.diff(positions, axis=0)
    straight = positions[0] + np.arange(len(positions))[:, None] * steps.mean(axis=0)
    lateral = steps.mean(axis=0) - (steps.mean(axis=0) @ normal) * normal
    pixel = min(spacings.pop())
    # Half a pixel over the whole stack: less is rounding in the header, more misplaces anatomy.
    if np.linalg.norm(lateral) * len(steps) > 0.5 * pixel:
        angle = np.degrees(np.arctan2(np.linalg.norm(lateral), steps.mean(axis=0) @ normal))
        raise ScanError(f"its slices are sheared by {angle:.1f} degrees (gantry tilt)")
    if np.ptp(gaps) > 0.02 * usual + 1e-3 or np.abs(positions - straight).max() > 0.5 * pixel:
        raise ScanError(f"its slices are unevenly spaced, {gaps.min():.3f} to {gaps.max():.3f} mm")
    return positions


def _decoding_reason(dataset: Dataset, error: Exception) -> str:
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if syntax is not None and syntax.is_compressed:
        return f"its pixels can't be decoded: transfer syntax {syntax.name} ({type(error).__name__})"
    return f"its pixels or geometry can't be read ({type(error).__name__}: truncated or inconsistent headers)"
