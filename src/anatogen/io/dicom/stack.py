"""Slices of one DICOM series in order, and where they lie: right, or refused with the reason."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from pydicom.dataset import Dataset

from anatogen.core.errors import ScanError
from anatogen.core.reasons import Reason
from anatogen.io.checks import MIN_VOXELS
from anatogen.io.dicom.pixels import stored_values
from anatogen.io.shear import MAX_SHIFT_VOXELS
from anatogen.io.volume import LPS_TO_RAS

# What describes the stored values: one of them altered in one slice gives wrong voxels without an error.
_ALIKE = (
    "Modality", "Rows", "Columns", "SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated",
    "BitsStored", "HighBit", "PixelRepresentation", "PixelPaddingValue", "PixelPaddingRangeLimit",
)  # fmt: skip
# Why a series has several images at one position, as far as its headers tell.
_DISTINGUISHING = (
    "EchoTime", "EchoNumbers", "DiffusionBValue", "TemporalPositionIdentifier", "ImageType", "TriggerTime",
    "AcquisitionNumber", "AcquisitionTime", "ContentTime",
)  # fmt: skip
# RescaleType of CT: Hounsfield units (also modified ones), unspecified, or not told.
_UNITS_OF_CT = ("HU", "HU_MOD", "US", "")
# Positions nearer than this are one position: rounding of the headers' decimals.
_SAME_PLACE_MM = 1e-3
# What single precision leaves of a position's digits.
_FLOAT32_MM = 1e-4


@dataclass(frozen=True)
class Slice:
    """One image of a series.

    Attributes:
        dataset: The object that holds its pixels.
        frame: Which image of the object.
        position: float64 (3,), centre of the first voxel, LPS mm.
        orientation: float64 (6,), direction cosines along a row, then along a column, LPS.
        spacing: Distance of rows and of columns in mm.
        rescale: Slope and intercept that make stored values the modality's, each None where not told.
        unit: RescaleType, what rescaled values are, e.g. "HU"; "" where not told.
    """

    dataset: Dataset
    frame: int
    position: npt.NDArray[np.float64]
    orientation: npt.NDArray[np.float64]
    spacing: tuple[float, float]
    rescale: tuple[float | None, float | None]
    unit: str = ""

    @property
    def normal(self) -> npt.NDArray[np.float64]:
        """Unit vector (3,) across the image, LPS."""
        normal = np.cross(self.orientation[:3], self.orientation[3:])
        return normal / np.linalg.norm(normal)


def slice_of(dataset: Dataset, frame: int, group: Callable[[str], Dataset]) -> Slice:
    """One image of an object as a slice.

    Args:
        dataset: The object.
        frame: Which image of it.
        group: Gives the part of the header that tells what a functional group sequence of the name tells.

    Raises:
        ScanError: If its place in the patient or its rescaling is missing or damaged.
    """
    measures = _numbers(group("PixelMeasuresSequence"), "PixelSpacing", 2)
    if not (measures > 0).all():
        raise ScanError(Reason.DAMAGED_PLACE(keyword="PixelSpacing"))
    values = group("PixelValueTransformationSequence")
    slope, intercept = (
        None if values.get(keyword) in (None, "") else float(values.get(keyword))
        for keyword in ("RescaleSlope", "RescaleIntercept")
    )
    if slope == 0 or not np.isfinite([slope or 1, intercept or 0]).all():
        raise ScanError(Reason.RESCALE())
    return Slice(
        dataset,
        frame,
        position=_numbers(group("PlanePositionSequence"), "ImagePositionPatient", 3),
        orientation=_numbers(group("PlaneOrientationSequence"), "ImageOrientationPatient", 6),
        spacing=(float(measures[0]), float(measures[1])),
        rescale=(slope, intercept),
        unit=str(values.get("RescaleType") or "").strip().upper(),
    )


def _numbers(group: Dataset, keyword: str, count: int) -> npt.NDArray[np.float64]:
    """An element of the geometry as float64 (count,), if it is that many finite numbers."""
    value = group.get(keyword)
    if value is None or value == "":
        raise ScanError(Reason.NO_PLACE(keyword=keyword))
    array = np.array(value, dtype=np.float64).ravel()
    if array.shape != (count,) or not np.isfinite(array).all():
        raise ScanError(Reason.DAMAGED_PLACE(keyword=keyword))
    return array


def in_order(slices: Sequence[Slice], allow_tilt: bool) -> list[Slice]:
    """The slices along their normal, each position once.

    Args:
        slices: Of one series, in any order.
        allow_tilt: Accepts stacks whose slices are shifted against one another evenly.

    Raises:
        ScanError: If they are no whole stack: missing, doubled, tilted, uneven or of several kinds.
    """
    _check_alike(slices)
    _check_orientations(slices)
    first = slices[0]
    normal = first.normal
    ordered = sorted(slices, key=lambda one: float(one.position @ normal))
    ordered = _without_copies(ordered, normal)
    if len(ordered) < MIN_VOXELS:
        raise ScanError(Reason.TOO_FEW_SLICES(num=len(ordered), least=MIN_VOXELS))
    positions = positions_of(ordered)
    gaps = np.diff(positions @ normal)
    usual = float(np.median(gaps))
    rounded = rounding_mm(positions)
    if gaps.min() < 0.1 * usual:
        doubled = int((gaps < 0.1 * usual).sum())
        raise ScanError(Reason.SLICES_TOO_NEAR(num=doubled))
    missing = int(np.rint(gaps[gaps > 1.5 * usual] / usual - 1).sum())
    if missing and not rounded:
        raise ScanError(Reason.MISSING_SLICES(num=missing, total=len(ordered)))
    step = (positions[-1] - positions[0]) / (len(positions) - 1)
    lateral = step - (step @ normal) * normal
    pixel = min(first.spacing)
    if np.linalg.norm(lateral) * len(gaps) > MAX_SHIFT_VOXELS * pixel + rounded and not allow_tilt:
        angle = np.degrees(np.arctan2(np.linalg.norm(lateral), step @ normal))
        raise ScanError(Reason.TILT(degrees=float(angle)))
    off = positions - positions[0] - np.arange(len(positions))[:, None] * step
    along = off @ normal
    is_uneven = _are_uneven(gaps) or np.abs(along).max() > MAX_SHIFT_VOXELS * pixel
    if is_uneven and not rounded:
        raise ScanError(Reason.UNEVEN_SLICES(smallest=float(gaps.min()), largest=float(gaps.max())))
    aside = np.linalg.norm(off - along[:, None] * normal, axis=1).max()
    # Headers with one decimal are off by 0.05 mm.
    if aside > 0.1 * pixel + 0.05:
        raise ScanError(Reason.SLICES_NOT_IN_LINE(aside_mm=float(aside)))
    return ordered


def positions_of(slices: Sequence[Slice]) -> npt.NDArray[np.float64]:
    """Positions of slices, (N, 3), LPS mm."""
    return np.array([one.position for one in slices])


def rounding_mm(positions: npt.NDArray[np.float64]) -> float:
    """What positions are rounded to, 0.1 or 0.01 mm, if by that alone their distances are uneven; else 0.

    Each coordinate then lies within half of that of an even row. A row that lacks a slice doesn't, as long as
    slices are farther apart than that.

    Args:
        positions: float64 (N, 3), in order along the stack.
    """
    gaps = np.linalg.norm(np.diff(positions, axis=0), axis=1)
    if not _are_uneven(gaps):
        return 0
    for decimals in (1, 2):
        unit = 10.0**-decimals
        # Some writers keep the rounded numbers in single precision.
        is_rounded = np.abs(positions - positions.round(decimals)).max() < _FLOAT32_MM
        if is_rounded and gaps.mean() > 1.2 * unit:
            within = max(_distance_of_even_row(coordinate) for coordinate in positions.T)
            return unit if within < unit / 2 + _FLOAT32_MM else 0
    return 0


def _are_uneven(gaps: npt.NDArray[np.float64]) -> bool:
    return bool(np.ptp(gaps) > 0.02 * np.median(gaps) + 1e-3)


def _distance_of_even_row(values: npt.NDArray[np.float64]) -> float:
    """The least distance within which all values lie of a row start + k * step."""
    # Few series need this, and importing it takes long.
    from scipy.optimize import linprog

    index = np.arange(len(values))
    ones = np.ones(len(values))
    above = np.column_stack([ones, index, -ones])
    below = np.column_stack([-ones, -index, -ones])
    offset = values - values[0]
    found = linprog(
        [0, 0, 1],
        A_ub=np.vstack([above, below]),
        b_ub=np.concatenate([offset, -offset]),
        bounds=[(None, None), (None, None), (0, None)],
    )
    return float(found.fun) if found.success else np.inf


def _check_alike(slices: Sequence[Slice]) -> None:
    first = slices[0].dataset
    if any(int(one.dataset.get("SamplesPerPixel") or 1) != 1 for one in slices):
        raise ScanError(Reason.COLOUR())
    for keyword in _ALIKE:
        if any(one.dataset.get(keyword) != first.get(keyword) for one in slices):
            raise ScanError(Reason.SLICES_DIFFER(keyword=keyword))
    if len({one.spacing for one in slices}) > 1:
        raise ScanError(Reason.SLICES_DIFFER(keyword="PixelSpacing"))
    if first.get("HighBit") is not None and int(first.HighBit) != int(first.BitsStored) - 1:
        raise ScanError(Reason.UNUSUAL_BITS(high_bit=int(first.HighBit), stored=int(first.BitsStored)))
    if any(one.dataset.get("ModalityLUTSequence") for one in slices):
        raise ScanError(Reason.LOOKUP_TABLE())
    if str(first.get("Modality")) == "CT":
        _check_hounsfield(slices)
    for part, keyword in enumerate(("RescaleSlope", "RescaleIntercept")):
        if len({one.rescale[part] is None for one in slices}) > 1:
            raise ScanError(Reason.SOME_WITHOUT_RESCALE(keyword=keyword))


def _check_hounsfield(slices: Sequence[Slice]) -> None:
    for one in slices:
        if one.unit not in _UNITS_OF_CT:
            raise ScanError(Reason.NOT_HOUNSFIELD(what=f"RescaleType {one.unit}"))
    if any(one.rescale[1] is None for one in slices):
        raise ScanError(Reason.CT_WITHOUT_INTERCEPT())


def _check_orientations(slices: Sequence[Slice]) -> None:
    orientations = np.array([one.orientation for one in slices])
    rows, columns = orientations[:, :3], orientations[:, 3:]
    lengths = np.linalg.norm([rows, columns], axis=-1)
    if np.abs(lengths - 1).max() > 1e-3 or np.abs((rows * columns).sum(axis=1)).max() > 1e-3:
        raise ScanError(Reason.DAMAGED_PLACE(keyword="ImageOrientationPatient"))
    if np.abs(orientations - orientations[0]).max() > 1e-4:
        planes = len(np.unique(np.abs(np.round(np.cross(rows, columns), 1)), axis=0))
        raise ScanError(Reason.THREE_PLANES() if planes == 3 else Reason.SEVERAL_STACKS())


def _without_copies(ordered: Sequence[Slice], normal: npt.NDArray[np.float64]) -> list[Slice]:
    """Drops slices that are there twice; two images at one position are refused."""
    kept: list[Slice] = []
    conflicts: list[tuple[Slice, Slice]] = []
    for one in ordered:
        other = kept[-1] if kept else None
        if other is None or abs((one.position - other.position) @ normal) > _SAME_PLACE_MM:
            kept.append(one)
        elif not _same_image(one, other):
            conflicts.append((one, other))
    if conflicts:
        one, other = conflicts[0]
        differing = (key for key in _DISTINGUISHING if one.dataset.get(key) != other.dataset.get(key))
        what = next(differing, "what no header tells, as echo, b-value or time point")
        raise ScanError(Reason.SEVERAL_AT_A_PLACE(num=len(conflicts), what=what))
    return kept


def _same_image(one: Slice, other: Slice) -> bool:
    return (
        bool(np.linalg.norm(one.position - other.position) < _SAME_PLACE_MM)
        and one.rescale == other.rescale
        and np.array_equal(stored_values(one.dataset, one.frame), stored_values(other.dataset, other.frame))
    )


def stack_affine(ordered: Sequence[Slice]) -> npt.NDArray[np.float64]:
    """Affine (4, 4), voxel (d, h, w, 1) to RAS+ mm; its slice axis is the mean step from slice to slice.

    Args:
        ordered: What `in_order` gave.
    """
    first, last = ordered[0], ordered[-1]
    affine = np.eye(4)
    affine[:3, 0] = (last.position - first.position) / (len(ordered) - 1)
    affine[:3, 1] = first.orientation[3:] * first.spacing[0]
    affine[:3, 2] = first.orientation[:3] * first.spacing[1]
    affine[:3, 3] = first.position
    return LPS_TO_RAS @ affine
