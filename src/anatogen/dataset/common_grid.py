"""What all scans of a dataset share, decided from their records: modality, axes, spacing, shape."""

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from anatogen.core.errors import UserError
from anatogen.core.reasons import Reason, Refusal
from anatogen.dataset.discover import LeftOut
from anatogen.dataset.manifest import Grid
from anatogen.dataset.measures import looks_like_ct, may_lack_intercept
from anatogen.dataset.prepare_config import PrepareConfig
from anatogen.dataset.records import ScanRecord
from anatogen.dataset.regions import cube_shape
from anatogen.dataset.survey import UsableScan
from anatogen.io.geometry import body_axes, centred_affine, slice_plane, triple
from anatogen.report.numbers import times

# Latents are 4 or 8 times smaller along each axis.
SHAPE_MULTIPLE = 8
# Share of scans of the other modality that may be strays.
_STRAYS = 0.1
# What the codes of `slice_plane` are called.
PLANE_NAMES = {"SPL": "axial", "RIP": "sagittal", "PIL": "coronal"}


def choose_modality(scans: Sequence[UsableScan], wanted: str) -> tuple[str, list[LeftOut], list[str]]:
    """CT or MR for the whole dataset, as told, else as DICOM tells, else as the values of nearly all scans.

    Args:
        scans: Those that can be used, not empty.
        wanted: "auto", "CT" or "MR".

    Returns:
        The modality, the scans that are of another one, and what was decided.

    Raises:
        UserError: If "auto" finds DICOM of both, or values of both and no DICOM that tells of enough of them.
    """
    told = Counter(scan.source.modality for scan in scans if scan.source.modality in ("CT", "MR"))
    if wanted != "auto":
        modality, decisions = wanted, []
    elif len(told) == 2:
        raise UserError(
            f"the folder mixes CT ({told['CT']} scans) and MR ({told['MR']} scans), which can't share one "
            "range of intensities: set modality to CT or MR, and the others are left out"
        )
    elif told:
        modality = next(iter(told)) or ""
        decisions = [f"modality {modality}, as DICOM headers tell"]
    else:
        num_ct = sum(scan.record.looks_like_ct for scan in scans)
        modality = modality_of_values(num_ct, len(scans))
        decisions = [f"modality {modality}: {num_ct} of {len(scans)} scans have values like Hounsfield units"]
    left_out = []
    for scan in scans:
        refusal = other_modality(
            scan.source.modality,
            (scan.record.minimum, scan.record.maximum),
            modality,
            whose="dataset",
            is_told=wanted != "auto",
        )
        if refusal is not None:
            left_out.append(LeftOut(scan.source.name, refusal))
    by_values = (Reason.VALUES_OF_OTHER_MODALITY, Reason.CT_WITHOUT_AIR)
    num_strays = sum(scan.refusal.reason in by_values for scan in left_out)
    if 2 * num_strays > len(scans):  # the headers of a few don't outweigh the values of most
        modality_of_values(num_strays if modality == "MR" else len(scans) - num_strays, len(scans))
    return modality, left_out, decisions


def modality_of_values(num_ct: int, num: int) -> str:
    """The modality that the values of all scans tell, or of all but a few strays; most alone don't decide it.

    Args:
        num_ct: How many have values like Hounsfield units.
        num: How many there are, at least one.

    Raises:
        UserError: If more than a tenth have values of the other modality.
    """
    modality = "CT" if 2 * num_ct > num else "MR"
    if min(num_ct, num - num_ct) > _STRAYS * num:
        raise UserError(
            f"the scans mix modalities: {num_ct} look like CT by their values and {num - num_ct} like MR; "
            "choose by include or exclude, or set modality to CT or MR if all are of one (CT whose air is at "
            "0 lacks its rescale intercept: export it again)"
        )
    return modality


def other_modality(
    header: str | None,
    values: tuple[float, float],
    expected: str,
    *,
    whose: Literal["dataset", "segmenter"],
    is_told: bool,
) -> Refusal | None:
    """Why a scan is not of the modality, by its DICOM header, else by its values; None if it is.

    Args:
        header: Modality of its DICOM header; None for other formats.
        values: Its smallest and its largest value.
        expected: "CT" or "MR".
        whose: Who expects it.
        is_told: Whether the user named the modality, so that values say nothing.
    """
    if header and header != expected:
        return Reason.OTHER_MODALITY(modality=header, whose=whose, expected=expected)
    if header is None and not is_told and looks_like_ct(*values) != (expected == "CT"):
        low, high = values
        if whose == "dataset" and expected == "CT" and may_lack_intercept(low, high):
            return Reason.CT_WITHOUT_AIR(low=low, high=high)
        if whose == "dataset":
            return Reason.VALUES_OF_OTHER_MODALITY(low=low, high=high, modality=expected)
        return Reason.VALUES_OF_OTHER_SEGMENTER(low=low, high=high, modality=expected)
    return None


def choose_grid(records: Sequence[ScanRecord], config: PrepareConfig) -> tuple[Grid, list[str]]:
    """Fills in what the configuration leaves open.

    Orientation: that of most scans' slices. Spacing: the median of each axis. Shape: the median field of view
    in voxels, rounded up to a multiple of 8. Medians, so that a single huge scan does not decide.

    Args:
        records: The scans that count, not empty.
        config: How scans are prepared.

    Returns:
        The grid, of whose spacing that of resized scans is the median; and what was chosen, one line each.
    """
    decisions = []
    codes = config.orientation
    if codes == "auto":
        codes, number = usual_plane(slice_plane(np.array(record.affine)) for record in records)
        plane = PLANE_NAMES[codes]
        decisions.append(f"orientation {codes} ({plane}), that of {number} of {len(records)} scans")
    sizes, spacings = regions_along(records, codes, config.cube)
    spacing_mm = None if config.spacing_mm is None else each_axis(config.spacing_mm)
    if spacing_mm is None and config.fit != "resize":
        # Six digits of a millimetre hide the noise of float32 affines.
        spacing_mm = triple(np.round(np.median(spacings, axis=0), 6).tolist())
        decisions.append(f"spacing {times(spacing_mm)} mm, the median of the scans")
    fields = sizes * spacings
    voxels = sizes if spacing_mm is None else np.rint(fields / np.array(spacing_mm))
    shape = config.shape
    if shape is None:
        rounded = np.ceil(np.median(voxels, axis=0) / SHAPE_MULTIPLE) * SHAPE_MULTIPLE
        shape = triple(rounded.astype(int).tolist())
        decisions.append(f"shape {times(shape)}, the median size rounded up to multiples of {SHAPE_MULTIPLE}")
    if spacing_mm is None:
        spacing_mm = triple(np.round(np.median(fields / np.array(shape), axis=0), 6).tolist())
        decisions.append(f"spacing {times(spacing_mm)} mm is the median after resizing")
    else:
        num_cut = int((voxels > np.array(shape)).any(axis=1).sum())
        if num_cut:
            decisions.append(f"{num_cut} of {len(voxels)} scans are larger than the grid and are cropped")
    return Grid.centred(codes, shape, spacing_mm), decisions


def usual_plane(planes: Iterable[str]) -> tuple[str, int]:
    """The commonest of slice planes, and how many have it; of equally many the first by name."""
    counts = Counter(planes)
    codes = min(counts, key=lambda plane: (-counts[plane], plane))
    return codes, counts[codes]


def regions_along(
    records: Sequence[ScanRecord], codes: str, cube: bool
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Shapes and spacings of all regions of scans along the axes of a grid: (N, 3) each."""
    found = [
        oriented(region.shape, np.array(record.affine), codes, cube)
        for record in records
        for region in record.regions
    ]
    return np.array([shape for shape, _ in found], float), np.array([spacing for _, spacing in found])


def oriented(
    shape: tuple[int, int, int], affine: npt.NDArray[np.float64], codes: str, cube: bool = False
) -> tuple[tuple[int, ...], tuple[float, float, float]]:
    """Shape and spacing of a region along the axes of the common grid."""
    axes = body_axes(affine)
    order = [axes.index(axis) for axis in body_axes(centred_affine(codes, (1, 1, 1), (1, 1, 1)))]
    spacing = triple(np.linalg.norm(affine[:3, :3], axis=0).tolist())
    if cube:
        shape = cube_shape(shape, spacing)
    return triple(shape[axis] for axis in order), triple(spacing[axis] for axis in order)


def each_axis(spacing_mm: float | Sequence[float]) -> tuple[float, float, float]:
    """The spacing along (D, H, W) that one number for all axes, or one for each, stands for."""
    if isinstance(spacing_mm, int | float):
        return float(spacing_mm), float(spacing_mm), float(spacing_mm)
    return triple(float(step) for step in spacing_mm)
