"""Enhanced DICOM: the slices of objects that hold a whole volume each, by their functional groups."""

from collections.abc import Sequence
from functools import partial

from pydicom.dataset import Dataset
from pydicom.uid import (
    UID,
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
)

from anatogen.core.errors import ScanError
from anatogen.core.reasons import Reason
from anatogen.io.dicom.stack import Slice, slice_of

_ENHANCED = (
    EnhancedCTImageStorage,
    EnhancedMRImageStorage,
    EnhancedPETImageStorage,
    LegacyConvertedEnhancedCTImageStorage,
    LegacyConvertedEnhancedMRImageStorage,
    LegacyConvertedEnhancedPETImageStorage,
)
_FRAME_TYPES = ("MRImageFrameTypeSequence", "CTImageFrameTypeSequence", "PETFrameTypeSequence")
# Group and element that all frames of one volume share, and what several values of it are called.
_ONE_VALUE = (
    ("FrameContentSequence", "StackID", "stacks"),
    ("FrameContentSequence", "TemporalPositionIndex", "time points"),
    ("MREchoSequence", "EffectiveEchoTime", "echoes"),
    ("MRDiffusionSequence", "DiffusionBValue", "b-values"),
    ("MRImageFrameTypeSequence", "ComplexImageComponent", "components (magnitude, phase)"),
    *((sequence, "FrameType", "kinds of image (FrameType)") for sequence in _FRAME_TYPES),
)


def is_enhanced(dataset: Dataset) -> bool:
    """Whether the object is of a class whose frames tell their places, so that it is a volume by itself."""
    return UID(str(dataset.get("SOPClassUID"))) in _ENHANCED


def frame_slices(dataset: Dataset) -> list[Slice]:
    """The frames of an enhanced object as slices.

    Raises:
        ScanError: If its frames are of several volumes, or lack their places.
    """
    shared = dataset.get("SharedFunctionalGroupsSequence") or [Dataset()]
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if len(frames) != int(dataset.get("NumberOfFrames") or 1) or len(shared) != 1:
        announced = int(dataset.get("NumberOfFrames") or 1)
        raise ScanError(Reason.OTHER_NUMBER_OF_FRAMES(announced=announced, found=len(frames)))
    _check_one_volume(frames, shared[0])
    return [slice_of(dataset, index, partial(_group, frame, shared[0])) for index, frame in enumerate(frames)]


def image_types(dataset: Dataset) -> set[str]:
    """The words of ImageType, or of every FrameType where frames have their own."""
    groups = [
        *(dataset.get("SharedFunctionalGroupsSequence") or []),
        *(dataset.get("PerFrameFunctionalGroupsSequence") or []),
    ]
    types = [dataset.get("ImageType")]
    types += [
        item.get("FrameType") for group in groups for name in _FRAME_TYPES for item in group.get(name, [])
    ]
    return {str(word).upper() for words in types if words for word in words}


def check_concatenation(datasets: Sequence[Dataset]) -> None:
    """Checks that datasets are no parts of a larger object, or all its parts.

    Raises:
        ScanError: If parts are missing.
    """
    for dataset in datasets:
        total = int(dataset.get("InConcatenationTotalNumber") or 1)
        parts = {int(other.get("InConcatenationNumber") or 1) for other in datasets}
        if dataset.get("ConcatenationUID") and parts != set(range(1, total + 1)):
            raise ScanError(Reason.INCOMPLETE_CONCATENATION(num=len(parts), total=total))


def _group(frame: Dataset, shared: Dataset, sequence: str) -> Dataset:
    items = frame.get(sequence) or shared.get(sequence)
    return items[0] if items else Dataset()


def _check_one_volume(frames: Sequence[Dataset], shared: Dataset) -> None:
    for sequence, keyword, what in _ONE_VALUE:
        values = {str(_group(frame, shared, sequence).get(keyword)) for frame in frames}
        if len(values) > 1:
            raise ScanError(Reason.SEVERAL_VOLUMES(num=len(values), what=what))
