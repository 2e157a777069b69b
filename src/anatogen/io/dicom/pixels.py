"""Stored pixel values of DICOM images in every transfer syntax; used by `reading` and `stack`.

One decoder is named for each syntax, whatever else is installed, so that the same file gives the same voxels
on every machine.
"""

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels import get_decoder
from pydicom.uid import (
    HTJ2K,
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLossless,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    MRImageStorage,
    RLELossless,
)

from anatogen.core.errors import ScanError
from anatogen.core.reasons import Reason
from anatogen.io.checks import quiet_native_code

_UNCOMPRESSED = (
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    ExplicitVRBigEndian,
    DeflatedExplicitVRLittleEndian,
)
_PYDICOM_PLUGINS = {
    RLELossless: "pydicom",  # pylibjpeg-rle panics on damaged data, past every `except Exception`
    JPEGBaseline8Bit: "pillow",
    JPEGLSLossless: "pyjpegls",
    JPEGLSNearLossless: "pyjpegls",
    JPEG2000Lossless: "pylibjpeg",
    JPEG2000: "pylibjpeg",
    HTJ2KLossless: "pylibjpeg",
    HTJ2KLosslessRPCL: "pylibjpeg",
    HTJ2K: "pylibjpeg",
}
# pydicom reads these with a GPL library only; the GDCM inside SimpleITK decodes them.
_ITK = (JPEGExtended12Bit, JPEGLossless, JPEGLosslessSV1)

_END_OF_IMAGE = b"\xff\xd9"
_PIXEL_DESCRIPTION = (
    "SamplesPerPixel", "PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored",
    "HighBit", "PixelRepresentation",
)  # fmt: skip


def stored_values(dataset: Dataset, frame: int = 0) -> npt.NDArray[np.integer]:
    """The integers of one image as stored, before rescaling.

    Args:
        dataset: As read, with its pixel data; one sample per pixel.
        frame: Which of a multi-frame object.

    Returns:
        Integers (rows, columns).

    Raises:
        ScanError: If the data is cut, damaged or compressed in a way that can't be read.
    """
    syntax = _transfer_syntax(dataset)
    encapsulated = syntax not in _UNCOMPRESSED
    if encapsulated and syntax not in _PYDICOM_PLUGINS and syntax not in _ITK:
        # Only names of the standard's dictionary are told: others may be damaged text.
        name = syntax.name if syntax.name != syntax else "in an unknown way"
        raise ScanError(Reason.COMPRESSED(how=name))
    try:
        if dataset["PixelData"].is_undefined_length != encapsulated:
            raise ValueError("another transfer syntax")
        if encapsulated:
            array = _decompressed(dataset, syntax, frame)
        else:
            _check_length(dataset)
            array, _ = get_decoder(syntax).as_array(dataset, index=frame, raw=True)
        if array.shape != (dataset.Rows, dataset.Columns):
            raise ValueError("another number of rows or columns")
    except MemoryError:
        raise
    except Exception as error:  # each decoder has its own
        raise ScanError(Reason.DAMAGED_PIXELS(syntax=syntax.name)) from error
    return array


def _transfer_syntax(dataset: Dataset) -> UID:
    """How the file is encoded, as it says, or as it was found to be where it does not say."""
    syntax = dataset.file_meta.get("TransferSyntaxUID") if hasattr(dataset, "file_meta") else None
    if syntax:
        return UID(syntax)
    implicit, little = dataset.original_encoding
    if not little:
        return ExplicitVRBigEndian
    return ImplicitVRLittleEndian if implicit else ExplicitVRLittleEndian


def _check_length(dataset: Dataset) -> None:
    # pydicom takes what is too much for padding or for more frames; the decoder refuses what is too little.
    size = int(dataset.Rows) * int(dataset.Columns) * int(dataset.BitsAllocated) // 8
    if len(dataset.PixelData) > size * int(dataset.get("NumberOfFrames") or 1) + 1:
        raise ValueError("more pixels than the header announces")


def _decompressed(dataset: Dataset, syntax: UID, frame: int) -> npt.NDArray[np.integer]:
    encoded = get_frame(dataset.PixelData, frame, number_of_frames=int(dataset.get("NumberOfFrames") or 1))
    # Decoders make up the rest of a stream that was cut.
    if syntax != RLELossless and _END_OF_IMAGE not in encoded[-10:]:
        raise ValueError("no end of the image")
    if syntax in _ITK:
        return _decompressed_by_itk(dataset, syntax, encoded)
    array, _ = get_decoder(syntax).as_array(
        dataset, index=frame, raw=True, decoding_plugin=_PYDICOM_PLUGINS[syntax]
    )
    return array


def _decompressed_by_itk(dataset: Dataset, syntax: UID, encoded: bytes) -> npt.NDArray[np.integer]:
    import SimpleITK as sitk

    # ITK takes files only, and applies the rescale it finds: it gets one that describes the pixels alone.
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = syntax
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = MRImageStorage
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = UID("2.25.1")
    for keyword in _PIXEL_DESCRIPTION:
        setattr(image, keyword, dataset[keyword].value)
    image.PixelData = encapsulate([encoded])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "image.dcm"
        image.save_as(path, enforce_file_format=True)
        with quiet_native_code():
            array = sitk.GetArrayFromImage(sitk.ReadImage(str(path)))
    return array.reshape(array.shape[-2:])
