"""`Volume` to a DICOM series.

Single-frame CT or MR Image Storage, which every viewer and archive takes; it holds no patient and says that
it is synthetic.
"""

import uuid
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import UID, ExplicitVRLittleEndian
from pydicom.valuerep import DSfloat

from anatogen.core.errors import UserError
from anatogen.core.files import atomic_folder
from anatogen.core.version import __version__
from anatogen.io.volume import LPS_TO_RAS, Volume

_NAMESPACE = uuid.UUID("0f6d3f0c-6f0b-5d0e-9b7a-5a1d3f1f7c11")
_SOP_CLASS = {"CT": "1.2.840.10008.5.1.4.1.1.2", "MR": "1.2.840.10008.5.1.4.1.1.4"}


def write_dicom(
    volume: Volume,
    folder: Path,
    modality: Literal["CT", "MR"],
    *,
    uid_from: str,
    patient_id: str = "SYNTHETIC",
) -> None:
    """Writes a folder of single-frame CT or MR images, one per slice along D; whole or absent.

    CT is stored as int16 with intercept -1024 and slope 1, so HU are rounded to integers. MR is stored as
    uint16: exactly where the values are integers in [0, 65535], else in 65,535 steps from its lowest to its
    highest value; slope and intercept say how.

    Args:
        volume: float32 (D, H, W), HU for CT; its axes must be perpendicular.
        folder: Is created; must not exist, or be empty.
        modality: "CT" or "MR".
        uid_from: All identifiers are derived from this text, so that writing the same scan again gives
            the same identifiers; another scan needs another text.
        patient_id: Written as PatientID; PatientName is SYNTHETIC^ANATOGEN.

    Raises:
        UserError: If the folder has content, the axes are not perpendicular, or HU don't fit 16 bits.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty: choose another folder for the DICOM series")
    stored, slope, intercept = _stored_values(volume.array, modality)
    affine = LPS_TO_RAS @ volume.affine
    spacing = volume.spacing_mm
    directions = affine[:3, :3] / spacing
    # Half a micrometre per voxel is what the format's decimal numbers would lose anyway.
    if not np.allclose(directions.T @ directions, np.eye(3), atol=1e-4):
        raise UserError("the scan's axes are not perpendicular: DICOM images can't hold it, write NIfTI")
    window = np.percentile(volume.array, [0.5, 99.5])
    with atomic_folder(folder) as temporary:
        for index, pixels in enumerate(stored):
            dataset = _series_header(modality, uid_from, patient_id)
            dataset.SOPInstanceUID = _uid(uid_from, f"instance {index}")
            dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
            dataset.InstanceNumber = index + 1
            dataset.ImagePositionPatient = _decimals(affine[:3] @ [index, 0, 0, 1])
            dataset.ImageOrientationPatient = _decimals([*directions[:, 2], *directions[:, 1]])
            dataset.PixelSpacing = _decimals([spacing[1], spacing[2]])
            dataset.SliceThickness = _decimal(spacing[0])
            if modality == "MR":
                dataset.SpacingBetweenSlices = _decimal(spacing[0])
            dataset.Rows, dataset.Columns = pixels.shape
            dataset.SamplesPerPixel = 1
            dataset.PhotometricInterpretation = "MONOCHROME2"
            dataset.BitsAllocated = dataset.BitsStored = 16
            dataset.HighBit = 15
            dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
            dataset.RescaleIntercept, dataset.RescaleSlope = _decimal(intercept), _decimal(slope)
            dataset.RescaleType = "HU" if modality == "CT" else "US"
            dataset.WindowCenter = _decimal(float(window.mean()))
            dataset.WindowWidth = _decimal(max(float(window[1] - window[0]), 1.0))
            dataset.PixelData = pixels.astype(pixels.dtype.newbyteorder("<")).tobytes()
            dataset.save_as(temporary / f"slice_{index + 1:04d}.dcm", enforce_file_format=True)


def _stored_values(
    array: npt.NDArray[np.float32], modality: str
) -> tuple[npt.NDArray[np.int16] | npt.NDArray[np.uint16], float, float]:
    values = array.astype(np.float64)
    low, high = float(values.min()), float(values.max())
    if modality == "CT":
        if low + 1024 < -32768 or high + 1024 > 32767:
            raise UserError(f"CT values from {low:g} to {high:g} HU don't fit 16-bit DICOM: clip them first")
        return np.rint(values + 1024).astype(np.int16), 1.0, -1024.0
    if low >= 0 and high <= 65535 and np.array_equal(values, np.rint(values)):
        return values.astype(np.uint16), 1.0, 0.0
    # Slope and intercept go through the file's 16 characters first, so that decoding inverts exactly these.
    slope = float(_decimal((high - low) / 65535 or 1.0))
    intercept = float(_decimal(low))
    return np.clip(np.rint((values - intercept) / slope), 0, 65535).astype(np.uint16), slope, intercept


def _series_header(modality: str, uid_from: str, patient_id: str) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = UID(_SOP_CLASS[modality])
    dataset.SpecificCharacterSet = "ISO_IR 192"
    dataset.ImageType = ["DERIVED", "SECONDARY", "AXIAL" if modality == "CT" else "OTHER"]
    dataset.SOPClassUID = UID(_SOP_CLASS[modality])
    dataset.SyntheticData = "YES"
    dataset.Modality = modality
    dataset.Manufacturer = "Anatogen"
    dataset.SoftwareVersions = __version__
    dataset.SeriesDescription = "Synthetic"
    dataset.PatientName = "SYNTHETIC^ANATOGEN"
    dataset.PatientID = patient_id
    dataset.StudyInstanceUID = _uid(uid_from, "study")
    dataset.SeriesInstanceUID = _uid(uid_from, "series")
    dataset.FrameOfReferenceUID = _uid(uid_from, "frame of reference")
    dataset.PatientPosition = "HFS"
    dataset.SeriesNumber = 1
    dataset.BurnedInAnnotation = "NO"
    # The standard wants these present, and a synthetic scan has nothing to say in them.
    for keyword in (
        "StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName", "PatientBirthDate",
        "PatientSex", "PositionReferenceIndicator", "AcquisitionNumber", "Laterality",
    ):  # fmt: skip
        setattr(dataset, keyword, "")
    if modality == "CT":
        dataset.KVP = ""
    else:
        dataset.ScanningSequence = "RM"
        dataset.SequenceVariant = "NONE"
        dataset.ScanOptions = ""
        dataset.MRAcquisitionType = "3D"
        dataset.EchoTime = dataset.EchoTrainLength = dataset.RepetitionTime = ""
    return dataset


def _uid(uid_from: str, part: str) -> UID:
    return UID(f"2.25.{uuid.uuid5(_NAMESPACE, f'{part} of {uid_from}').int}")


def _decimal(value: float) -> DSfloat:
    # Values below a nanometre are noise of the affine's products, and "-0" confuses some readers.
    return DSfloat(0.0 if abs(value) < 1e-12 else float(value), auto_format=True)


def _decimals(values: npt.ArrayLike) -> list[DSfloat]:
    return [_decimal(float(value)) for value in np.asarray(values, dtype=float)]
