"""Random parts of scans that are larger than what is learned from at once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from anatogen.core.errors import UserError
from anatogen.dataset.volumes import flip_axis

Shape = tuple[int, int, int]


def check_patch(patch_shape: Shape | None, shape: Shape) -> None:
    """Refuses a patch that is larger than the scans.

    Raises:
        UserError: If it is, along any axis.
    """
    if patch_shape is not None and any(p > s for p, s in zip(patch_shape, shape, strict=True)):
        raise UserError(f"patch_shape {patch_shape} is larger than the scans, {shape}: make it smaller")


def random_corner(shape: Shape, patch_shape: Shape, generator: torch.Generator) -> Shape:
    """The first voxel (d, h, w) of a patch that lies anywhere inside.

    Args:
        shape: (D, H, W) of the scan.
        patch_shape: (D, H, W) of the patch, not larger.
        generator: On the CPU.
    """
    d, h, w = (
        int(torch.randint(side - part + 1, (), generator=generator))
        for side, part in zip(shape, patch_shape, strict=True)
    )
    return d, h, w


def corner_around(labels: Tensor, patch_shape: Shape, generator: torch.Generator) -> Shape:
    """The first voxel of a patch with a random labelled voxel in its middle, as far as the scan reaches.

    So small structures in large scans are learned from, too.

    Args:
        labels: (D, H, W), 0 where nothing is labelled; anywhere if nothing is at all.
        patch_shape: (D, H, W), not larger.
        generator: On the CPU.
    """
    shape: Shape = (labels.shape[0], labels.shape[1], labels.shape[2])
    found = labels.nonzero()
    if not len(found):
        return random_corner(shape, patch_shape, generator)
    middle = found[int(torch.randint(len(found), (), generator=generator))].tolist()
    d, h, w = (
        min(max(place - part // 2, 0), side - part)
        for place, part, side in zip(middle, patch_shape, shape, strict=True)
    )
    return d, h, w


def mirror_axes(flip: str, affine: Sequence[Sequence[float]]) -> tuple[int, ...]:
    """Axes of (..., D, H, W), counted from the end, one of which a scan may be mirrored along.

    Args:
        flip: As of `DownstreamLoopSettings`.
        affine: Affine of the grid, voxel (d, h, w, 1) to RAS+ mm.
    """
    if flip == "in_plane":
        return -2, -1
    axis = flip_axis(flip, affine)
    return () if axis is None else (axis - 5,)


def drawn_mirror(axes: tuple[int, ...], generator: torch.Generator) -> tuple[int, ...]:
    """What half of the scans are mirrored along, for `Tensor.flip`: one of the axes; none for the others."""
    if not axes or bool(torch.rand((), generator=generator) >= 0.5):
        return ()
    chosen = int(torch.randint(len(axes), (), generator=generator)) if len(axes) > 1 else 0
    return (axes[chosen],)


def crop(x: Tensor, corner: Shape, patch_shape: Shape) -> Tensor:
    """The patch (..., *patch_shape) of x (..., D, H, W) whose first voxel is the corner."""
    for axis, (first, size) in enumerate(zip(corner, patch_shape, strict=True)):
        x = x.narrow(axis - 3, first, size)
    return x
