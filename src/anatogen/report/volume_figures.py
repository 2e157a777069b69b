"""Pictures of volumes: in three planes, in neighbouring slices, side by side with a region enlarged.

Used by the demo page, previews during training, and reports.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from anatogen.report.figures import FONT, new_figure, save_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Up to here, of [-1, 1], a voxel is background.
_BLACK = -0.9
# Slices of a volume in `slices_figure`.
_NUM_NEIGHBOURS = 8

Slice = npt.NDArray[np.float32]


def planes_figure(
    rows: Sequence[tuple[str, Sequence[npt.NDArray[Any]]]],
    path: Path,
    *,
    spacing_mm: tuple[float, float, float] = (1, 1, 1),
    axis_codes: tuple[str, str, str] | None = None,
) -> None:
    """Draws volumes as their three central planes, a labelled group of rows for each source.

    A column is a volume: its axial, coronal and sagittal plane, one below the other, without the border that
    is black in all of them. With `axis_codes`, planes are shown as radiologists read them: superior or
    anterior up, the patient's right (or front) at the left.

    Args:
        rows: (label, volumes) pairs; each volume of shape (D, H, W), any real dtype, shown from black at -1
            to white at 1. All volumes have one shape; sources may hold different numbers of volumes.
        path: The PNG file, written atomically, smaller than 500 kB.
        spacing_mm: Distance between voxels along (D, H, W).
        axis_codes: The patient's direction in which each index increases, such as ("S", "A", "R"). Without
            it, planes are shown as stored: rows down, columns to the right.

    Raises:
        ValueError: If there is no volume, shapes differ, or the axis codes don't name three axes.
    """
    volumes = [np.asarray(volume) for _, group in rows for volume in group]
    if not volumes:
        raise ValueError("there is no volume to draw: every row is empty")
    shape = volumes[0].shape
    if len(shape) != 3 or any(volume.shape != shape for volume in volumes):
        raise ValueError(f"volumes must share one shape (D, H, W), got {sorted({v.shape for v in volumes})}")
    directions, codes = display_axes(axis_codes)
    bounds = _occupied(volumes)
    left_right, front_back, up_down = (
        (bounds[axis].stop - bounds[axis].start) * abs(spacing_mm[axis]) for axis in directions
    )
    names = ("axial", "coronal", "sagittal") if codes else ("plane H×W", "plane D×W", "plane D×H")
    # (name, horizontal direction, vertical direction, width in mm, height in mm)
    planes = [
        (names[0], 0, 1, left_right, front_back),
        (names[1], 0, 2, left_right, up_down),
        (names[2], 1, 2, front_back, up_down),
    ]
    columns = max(len(group) for _, group in rows)
    cell = max(left_right, front_back)
    gap, margin, heading = 0.05 * cell, 0.26 * cell, 0.22 * cell
    width = margin + columns * (cell + gap)
    height = len(rows) * (heading + sum(plane[4] + gap for plane in planes)) + gap
    figure, axes = _sheet(width, height, 1.1 * width / cell)
    text: dict[str, Any] = {"fontfamily": FONT, "va": "center"}
    top = 0.0
    for label, group in rows:
        axes.text(gap, top + 0.6 * heading, label, color="white", fontsize=9, weight="bold", **text)
        top += heading
        for name, across, up, plane_width, plane_height in planes:
            middle = top + plane_height / 2
            axes.text(0.1 * cell, middle, name, color="0.65", fontsize=6.5, ha="center", rotation=90, **text)
            if codes:
                mark = "R" if across == 0 else "A"
                axes.text(0.22 * cell, middle, mark, color="0.5", fontsize=5.5, ha="center", **text)
            for column, volume in enumerate(group):
                left = margin + column * (cell + gap) + (cell - plane_width) / 2
                picture = central_slice(np.asarray(volume), bounds, directions, codes, (across, up))
                _draw_slice(axes, picture, left, top, plane_width, plane_height)
            top += plane_height + gap
    save_figure(figure, path, dpi=140)


def slices_figure(
    rows: Sequence[tuple[str, npt.NDArray[Any]]],
    path: Path,
    *,
    spacing_mm: tuple[float, float, float] = (1, 1, 1),
    axis_codes: tuple[str, str, str] | None = None,
) -> None:
    """Draws neighbouring slices of volumes, a row for each, as the paper's Fig. 1 does.

    Slices lie across the volumes' first axis, around its middle, without the border that is black in all.

    Args:
        rows: (label, volume) pairs; each volume of shape (D, H, W), any real dtype, shown from black at -1 to
            white at 1. All volumes have one shape.
        path: The PNG file, written atomically, smaller than 500 kB.
        spacing_mm: Distance between voxels along (D, H, W).
        axis_codes: As in `planes_figure`.

    Raises:
        ValueError: If there is no volume, or the axis codes don't name three axes.
    """
    volumes = [np.asarray(volume) for _, volume in rows]
    if not volumes:
        raise ValueError("there is no volume to draw")
    directions, codes = display_axes(axis_codes)
    bounds = _occupied(volumes)
    across, up = (number for number in (0, 1, 2) if directions[number] != 0)
    width, height = (
        (bounds[directions[number]].stop - bounds[directions[number]].start)
        * abs(spacing_mm[directions[number]])
        for number in (across, up)
    )
    middle = volumes[0].shape[0] // 2
    shown = range(max(middle - _NUM_NEIGHBOURS // 2, 0), len(volumes[0]))[:_NUM_NEIGHBOURS]
    gap, heading = 0.04 * width, 0.2 * width
    total_width = gap + len(shown) * (width + gap)
    total_height = len(rows) * (heading + height) + gap
    figure, axes = _sheet(total_width, total_height, 1.0 * total_width / width)
    for row, ((label, _), volume) in enumerate(zip(rows, volumes, strict=True)):
        top = row * (heading + height)
        axes.text(
            gap,
            top + heading / 2,
            label,
            color="white",
            fontsize=8,
            va="center",
            fontfamily=FONT,
            weight="bold",
        )
        for column, number in enumerate(shown):
            picture = central_slice(volume, bounds, directions, codes, (across, up), offset=number - middle)
            left = gap + column * (width + gap)
            _draw_slice(axes, picture, left, top + heading, width, height)
    save_figure(figure, path, dpi=140)


def zoom_figure(
    columns: Sequence[tuple[str, Sequence[npt.NDArray[Any]], Sequence[str]]],
    path: Path,
    *,
    row_labels: Sequence[str],
    spacing_mm: tuple[float, float, float] = (1, 1, 1),
    axis_codes: tuple[str, str, str] | None = None,
) -> None:
    """Draws the middle slice of volumes side by side, each with a magnified region of it at its right.

    Volumes of one row show the same scan. The region is the third of the slice, along both axes, where the
    first column's tissue changes most from voxel to voxel. Slices lie across the volumes' first axis.

    Args:
        columns: (label, volumes, captions), a volume (D, H, W) in [-1, 1] and a caption for each row; all
            volumes have one shape.
        path: The PNG file, written atomically, smaller than 500 kB.
        row_labels: What each row shows.
        spacing_mm: Distance between voxels along (D, H, W).
        axis_codes: As in `planes_figure`.

    Raises:
        ValueError: If the axis codes don't name three axes.
    """
    directions, codes = display_axes(axis_codes)
    across, up = (number for number in (0, 1, 2) if directions[number] != 0)
    everything = [slice(None)] * 3
    pictures = [
        [central_slice(np.asarray(v), everything, directions, codes, (across, up)) for v in volumes]
        for _, volumes, _ in columns
    ]
    regions = [_busiest_region(picture) for picture in pictures[0]]
    num_rows, num_columns = pictures[0][0].shape
    width = num_columns * abs(spacing_mm[directions[across]])
    height = num_rows * abs(spacing_mm[directions[up]])
    gap, margin, heading, caption = 0.03 * width, 0.16 * width, 0.22 * width, 0.19 * width
    cell = 2 * width + gap
    total_width = margin + len(columns) * (cell + 4 * gap)
    total_height = heading + len(row_labels) * (height + caption)
    figure, axes = _sheet(total_width, total_height, 1.35 * total_width / width)
    text: dict[str, Any] = {"fontfamily": FONT, "va": "center", "ha": "center"}
    for row, label in enumerate(row_labels):
        middle = heading + row * (height + caption) + height / 2
        axes.text(0.5 * margin, middle, label, color="0.8", fontsize=8, rotation=90, **text)
    for column, (label, _, captions) in enumerate(columns):
        left = margin + column * (cell + 4 * gap)
        beside = left + width + gap
        middle = left + cell / 2
        axes.text(middle, 0.5 * heading, label, color="white", fontsize=9, weight="bold", **text)
        for row, (picture, region, said) in enumerate(zip(pictures[column], regions, captions, strict=True)):
            top = heading + row * (height + caption)
            _draw_slice(axes, picture, left, top, width, height)
            _draw_slice(axes, picture[region], beside, top, width, height)
            box = (
                left + region[1].start / num_columns * width,
                top + region[0].start / num_rows * height,
                (region[1].stop - region[1].start) / num_columns * width,
                (region[0].stop - region[0].start) / num_rows * height,
            )
            _draw_box(axes, *box)
            _draw_box(axes, beside, top, width, height)
            bottom = top + height + 0.4 * caption
            axes.text(middle, bottom, said, color="0.75", fontsize=7.5, **text)
    save_figure(figure, path, dpi=140)


def central_slice(
    volume: npt.NDArray[Any],
    bounds: list[slice],
    directions: list[int],
    codes: list[str] | None,
    plane: tuple[int, int],
    offset: int = 0,
) -> Slice:
    """The volume's middle slice within the bounds, float32, with row 0 up and column 0 at the left.

    With an offset, the slice that lies so many voxels further along its axis.
    """
    across, up = plane
    axis = directions[3 - across - up]
    place: list[slice | int] = list(bounds)
    place[axis] = volume.shape[axis] // 2 + offset
    picture = volume[tuple(place)]
    if directions[up] > directions[across]:
        picture = picture.T
    if codes is not None:
        # Rows run from superior or anterior downwards, columns from the patient's right or front.
        if codes[up] in "AS":
            picture = picture[::-1]
        if codes[across] in "RA":
            picture = picture[:, ::-1]
    return np.ascontiguousarray(picture, dtype=np.float32)


def display_axes(axis_codes: tuple[str, str, str] | None) -> tuple[list[int], list[str] | None]:
    """Which array axes run left-right, front-back and up-down, and the codes of those axes."""
    if axis_codes is None:
        return [2, 1, 0], None
    found = []
    for pair in ("RL", "AP", "SI"):
        axes = [axis for axis, code in enumerate(axis_codes) if code in pair]
        if len(axes) != 1:
            raise ValueError(
                f"axis codes {axis_codes} must name each of R/L, A/P and S/I once, such as ('S', 'A', 'R')"
            )
        found.append(axes[0])
    return found, [axis_codes[axis] for axis in found]


def _sheet(width: float, height: float, inches: float) -> "tuple[Figure, Axes]":
    """A black figure so many inches wide, and axes that fill it: `width` across, `height` downwards."""
    figure = new_figure(inches, inches * height / width, "black")
    axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
    axes.set_axis_off()
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    return figure, axes


def _draw_slice(
    axes: "Axes", picture: npt.NDArray[Any], left: float, top: float, width: float, height: float
) -> None:
    extent = (left, left + width, top + height, top)
    axes.imshow(picture, cmap="gray", vmin=-1, vmax=1, interpolation="catrom", extent=extent, aspect="auto")


def _occupied(volumes: Sequence[npt.NDArray[Any]]) -> list[slice]:
    """Along each array axis, the part outside which every volume is black."""
    shown = np.any([volume > _BLACK for volume in volumes], axis=0)
    bounds = []
    for axis, length in enumerate(shown.shape):
        used = np.flatnonzero(shown.any(axis=tuple({0, 1, 2} - {axis})))
        bounds.append(
            slice(max(used[0] - 1, 0), min(used[-1] + 2, length)) if len(used) else slice(0, length)
        )
    return bounds


def _busiest_region(picture: Slice) -> tuple[slice, slice]:
    """The third of a picture, along both axes, whose neighbouring voxels differ most.

    Steps from or to black don't count: they are the body's outline, or the border of what was scanned.
    """
    picture = np.where(picture > _BLACK, picture, np.nan)
    rows, columns = (max(length // 3, 1) for length in picture.shape)
    change = np.zeros(np.add(picture.shape, 1))
    change[1:-1, 1:] += np.nan_to_num(np.abs(np.diff(picture, axis=0)))
    change[1:, 1:-1] += np.nan_to_num(np.abs(np.diff(picture, axis=1)))
    # Sums over all regions at once, from the table of sums over all rectangles at the upper left corner.
    table = change.cumsum(axis=0).cumsum(axis=1)
    sums = (
        table[rows:, columns:] - table[:-rows, columns:] - table[rows:, :-columns] + table[:-rows, :-columns]
    )
    top, left = np.unravel_index(sums.argmax(), sums.shape)
    return slice(int(top), int(top) + rows), slice(int(left), int(left) + columns)


def _draw_box(axes: "Axes", left: float, top: float, width: float, height: float) -> None:
    from matplotlib.patches import Rectangle

    axes.add_patch(Rectangle((left, top), width, height, fill=False, edgecolor="#f2c14e", linewidth=1.0))
