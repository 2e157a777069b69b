"""A DICOM series, or an enhanced object, as a `Volume`.

`headers` finds the files of a series, `pixels` decodes, `multiframe` takes enhanced objects apart, `stack`
puts slices in order and knows where they lie.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset
from pydicom.uid import UID

from anatogen.core.errors import ScanError
from anatogen.core.reasons import Reason
from anatogen.io.checks import check_size, checked_volume, quiet_libraries
from anatogen.io.dicom.multiframe import check_concatenation, frame_slices, image_types, is_enhanced
from anatogen.io.dicom.pixels import stored_values
from anatogen.io.dicom.stack import Slice, in_order, positions_of, rounding_mm, slice_of, stack_affine
from anatogen.io.padding import AIR_HU, without_padding
from anatogen.io.shear import straightened
from anatogen.io.volume import Volume

# Parts of words of ImageType that tell of maps made of spectral CT, which are not always told by RescaleType.
_MATERIAL_MAPS = (
    "IODINE", "EFF_ATOMIC_NUM", "ZEFF", "Z_EFF", "EFFECTIVE_Z", "ELECTRON_DENSITY", "MAT_SPECIFIC",
    "MAT_FRACTIONAL", "MAT_VALUE_BASED", "URIC_ACID",
)  # fmt: skip


def read_dicom(files: Sequence[Path], *, allow_tilt: bool = False, is_labels: bool = False) -> Volume:
    """Reads the slices of one series, in any order, or one enhanced multi-frame object; modality values.

    Values are the modality's (HU for CT): rescaled slice by slice, never inverted for display (MONOCHROME1),
    without a vendor's real world map. Padding outside the field of view becomes background: see `_padded`.
    Slices that are there twice are taken once, localisers among other slices are not taken.

    The affine is exact for the positions in the headers: its slice axis is the mean step from slice to slice.

    Args:
        files: All files of one series.
        allow_tilt: Resamples stacks with gantry tilt to perpendicular axes; else they are refused.
        is_labels: Whether it is a label map, whose values are never mixed.

    Returns:
        Array float32 (D, H, W): D along the stack, H and W the rows and columns of the images.

    Raises:
        ScanError: If slices are missing, differ at one position, are tilted, of mixed orientation or size, or
            not readable.
    """
    with quiet_libraries():
        datasets = [_read(path) for path in files]
        try:
            slices = in_order(_slices(datasets), allow_tilt)
            # No codec shrinks a whole series as far as this, so a damaged header can't fill the memory.
            check_size(len(slices) * slices[0].dataset.Rows * slices[0].dataset.Columns, *files)
            array = _values(slices)
        except (MemoryError, ScanError):
            raise
        except Exception as error:  # headers that break their own rules can raise nearly anything
            raise ScanError(Reason.DAMAGED_DICOM(error=type(error).__name__)) from error
    volume = replace(
        checked_volume(array, stack_affine(slices)), rounded_mm=rounding_mm(positions_of(slices))
    )
    if not is_labels:
        volume = without_padding(volume, is_ct=str(slices[0].dataset.get("Modality")) == "CT")
    return straightened(volume, is_labels=is_labels) if allow_tilt else volume


def _read(path: Path) -> Dataset:
    try:
        dataset = pydicom.dcmread(path, force=True)
        has_pixels = "PixelData" in dataset
    except MemoryError:
        raise
    except Exception as error:  # damaged headers and streams can raise nearly anything
        raise ScanError(Reason.DAMAGED_DICOM(error=type(error).__name__)) from error
    if not has_pixels:
        raise ScanError(Reason.LACKS_ELEMENT(keyword="PixelData"))
    return dataset


def _slices(datasets: Sequence[Dataset]) -> list[Slice]:
    check_concatenation(datasets)
    images = [dataset for dataset in datasets if "LOCALIZER" not in image_types(dataset)]
    if not images:
        raise ScanError(Reason.LOCALISER())
    slices = []
    for dataset in images:
        _check_no_material_map(dataset)
        if is_enhanced(dataset):
            slices += frame_slices(dataset)
        elif int(dataset.get("NumberOfFrames") or 1) > 1:
            name = UID(str(dataset.get("SOPClassUID"))).name
            raise ScanError(Reason.FRAMES_WITHOUT_PLACE(sop_class=name))
        else:
            slices.append(slice_of(dataset, 0, lambda _, header=dataset: header))  # type: ignore[misc]
    return slices


def _check_no_material_map(dataset: Dataset) -> None:
    if str(dataset.get("Modality")) != "CT":
        return
    for word in sorted(image_types(dataset)):
        if any(part in word for part in _MATERIAL_MAPS):
            raise ScanError(Reason.NOT_HOUNSFIELD(what=f"ImageType {word}"))


def _values(slices: Sequence[Slice]) -> npt.NDArray[np.float32]:
    first = slices[0].dataset
    array = np.empty((len(slices), first.Rows, first.Columns), np.float32)
    padding = _padding_range(first)
    outside = np.zeros(array.shape if padding else (0,), bool)
    for index, one in enumerate(slices):
        stored = stored_values(one.dataset, one.frame)
        slope, intercept = one.rescale
        array[index] = stored.astype(np.float64) * (slope or 1) + (intercept or 0)
        if padding:
            outside[index] = (stored >= padding[0]) & (stored <= padding[1])
            if padding[0] > _written_padding(first)[0]:  # it means far less than the pixels can say
                array[index][outside[index]] = -np.inf
    return _padded(array, outside, str(first.get("Modality"))) if padding else array


def _padding_range(dataset: Dataset) -> tuple[int, int] | None:
    """The stored values that are padding; its sign may contradict that of the pixels, whose bits it has."""
    if dataset.get("PixelPaddingValue") is None:
        return None
    size = 1 << int(dataset.BitsAllocated)
    lowest = -size // 2 if dataset.PixelRepresentation else 0
    ends = [(end - lowest) % size + lowest for end in _written_padding(dataset)]
    return min(ends), max(ends)


def _written_padding(dataset: Dataset) -> tuple[int, int]:
    value, limit = dataset.get("PixelPaddingValue"), dataset.get("PixelPaddingRangeLimit")
    ends = [int(value), int(value if limit is None else limit)]
    return min(ends), max(ends)


def _padded(
    array: npt.NDArray[np.float32], outside: npt.NDArray[np.bool_], modality: str
) -> npt.NDArray[np.float32]:
    """Brings padding to the background: at most the lowest value of the scan, at least that of nothing.

    Nothing is air (-1000 HU) in CT and 0 in MR, or what lies even lower in the scan. So padding of -2000 HU
    or 0 HU becomes the air of the scan, and the zeros around a brain stay zeros.
    """
    if outside.all() or not outside.any():
        return array
    lowest = float(array[~outside].min())
    nothing = min(AIR_HU if modality == "CT" else 0.0, lowest)
    array[outside] = np.clip(array[outside], nothing, lowest)
    return array
