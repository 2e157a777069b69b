"""Which grid: from the scans' spacing and foreground to the finest that memory and hours allow."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from anatogen.dataset.common_grid import SHAPE_MULTIPLE, each_axis
from anatogen.dataset.manifest import Grid
from anatogen.io.geometry import triple
from anatogen.planning.decisions import Decision, Why
from anatogen.planning.fingerprint import Fingerprint
from anatogen.report.numbers import times

Triple = tuple[float, float, float]

# Spacings that differ by less count as one; `prepare` tells slices from planes by the same number.
_ISOTROPIC = 1.5
# The foreground is cropped to where at least this share of the field of view is air.
_WORTH_CROPPING = 0.3
# Kept on either side of it, as a share of its length.
_MARGIN = 0.05
# A grid is not made coarser than this along its longest axis, nor planned finer.
_MIN_LONGEST = 32
MAX_VOXELS = 512
_COARSENING = 1.1


def choose_grid(
    fingerprint: Fingerprint,
    given: Mapping[str, Any],
    orientation: str,
    too_much: Callable[[Grid], str | None],
) -> tuple[Grid, list[Decision]]:
    """Chooses the grid, and the values of `PrepareConfig` that make it.

    Args:
        fingerprint: Fingerprint of the scans.
        given: Nested values of `PrepareConfig` that are settled; of shape and spacing, none is changed.
        orientation: Directions in which (D, H, W) grow, or "auto".
        too_much: What a grid exceeds, e.g. "24 GB of memory"; None where it fits.
    """
    if given.get("shape") is not None:
        grid = _given_grid(fingerprint, given, orientation)
        facts: dict[str, Any] = {"shape": times(grid.shape), "spacing": times(grid.spacing_mm)}
        return grid, [Decision(Why.GRID_SETTLED, facts)]
    extent, air = _extent(fingerprint, given)
    native = _native_spacing(fingerprint, given)
    settled = given.get("spacing_mm") is not None
    grid = grid_of(extent, native, orientation)
    spacing, exceeded = native, dict[str, None]()
    while not settled and (limit := too_much(grid)) is not None:
        exceeded[limit] = None
        spacing = coarser(spacing)
        smaller = grid_of(extent, spacing, orientation)
        if max(smaller.shape) < _MIN_LONGEST:
            break
        grid = smaller
    if settled:
        why = Why.SPACING_SETTLED
    else:
        why = Why.SPACING if grid.spacing_mm == native else Why.SPACING_COARSER
    is_isotropic = _is_isotropic(fingerprint)
    facts = {
        "spacing": times(grid.spacing_mm),
        "native": times(native),
        "limits": " and ".join(exceeded),
        "axes": "one spacing for all axes" if is_isotropic else "plane first: slices stay thick",
    }
    spacing_decision = Decision(why, facts, {"spacing_mm": list(grid.spacing_mm)})
    facts = {"shape": times(grid.shape), "multiple": SHAPE_MULTIPLE}
    values: dict[str, Any] = {"shape": list(grid.shape)}
    if air is None:
        return grid, [spacing_decision, Decision(Why.GRID_OF_FIELD, facts, values)]
    values["center"] = "foreground"
    return grid, [spacing_decision, Decision(Why.GRID_OF_FOREGROUND, facts | {"air": air}, values)]


def grid_of(extent_mm: Triple, spacing_mm: Triple, orientation: str) -> Grid:
    """The grid of a spacing that holds the extent along (D, H, W)."""
    # A hair less, so that a length that divides evenly stays what it is.
    blocks = [
        math.ceil(length / step / SHAPE_MULTIPLE - 1e-3)
        for length, step in zip(extent_mm, spacing_mm, strict=True)
    ]
    d, h, w = (SHAPE_MULTIPLE * max(1, number) for number in blocks)
    return _grid((d, h, w), spacing_mm, orientation)


def coarser(spacing_mm: Triple) -> Triple:
    """The next coarser spacing: the finest axes first, until all are alike."""
    target = _COARSENING * min(spacing_mm)
    return triple(float(f"{max(step, target):.3g}") for step in spacing_mm)


def _given_grid(fingerprint: Fingerprint, given: Mapping[str, Any], orientation: str) -> Grid:
    d, h, w = (int(size) for size in given["shape"])
    if given.get("spacing_mm") is not None:
        spacing = each_axis(given["spacing_mm"])
    elif given.get("fit") == "resize":
        field = np.array(fingerprint.field_mm.median)
        if given.get("cube"):
            field = np.full(3, field.max())
        spacing = triple(np.round(field / (d, h, w), 4).tolist())
    else:
        spacing = fingerprint.spacing_mm.median
    return _grid((d, h, w), spacing, orientation)


def _extent(fingerprint: Fingerprint, given: Mapping[str, Any]) -> tuple[Triple, float | None]:
    """Millimetres along (D, H, W) that the grid is to hold; and the share of air if it is cropped away."""
    field = np.array(fingerprint.field_mm.median)
    body = np.minimum(field, (1 + 2 * _MARGIN) * np.array(fingerprint.foreground_mm.high))
    air = 1 - float(np.prod(body) / np.prod(field))
    is_settled = "center" in given or given.get("region", "scan") != "scan" or given.get("fit") == "resize"
    if is_settled or air < _WORTH_CROPPING:
        return triple(field.tolist()), None
    return triple(body.tolist()), air


def _native_spacing(fingerprint: Fingerprint, given: Mapping[str, Any]) -> Triple:
    if given.get("spacing_mm") is not None:
        return each_axis(given["spacing_mm"])
    spacing = np.array(fingerprint.spacing_mm.median)
    if _is_isotropic(fingerprint):
        spacing = np.full(3, float(np.prod(spacing) ** (1 / 3)))
    return triple(float(f"{step:.3g}") for step in spacing)


def _is_isotropic(fingerprint: Fingerprint) -> bool:
    return fingerprint.anisotropy < _ISOTROPIC


def _grid(shape: tuple[int, int, int], spacing_mm: Triple, orientation: str) -> Grid:
    codes = "SPL" if orientation == "auto" else orientation
    return Grid.centred(codes, shape, spacing_mm)
