"""Deformed copies of training scans, so that a generator sees more anatomies than there are patients.

Free-form deformation by cubic B-splines (Rueckert et al. 1999): random, smooth, and without folds.
"""

import torch
from torch import Tensor
from torch.nn import functional

from anatogen.models.pyramid import BACKGROUND, continued, foreground

# Control points per axis, as intervals over the field of view: whole structures move, their texture does not.
_INTERVALS = 2
# Largest shift of a control point in intervals; below 0.403 a cubic B-spline can't fold (Choi and Lee 2000).
_MAX_SHIFT = 0.4


def deformed(x: Tensor, generator: torch.Generator) -> Tensor:
    """A scan whose anatomy is randomly deformed inside its field of view, which stays where it is.

    Points on a face of the field of view stay on it. The shifts' standard deviation is 2.5% of each
    side.

    Args:
        x: float (D, H, W) in [-1, 1]; the field of view is the bounding box of its foreground.
        generator: On the CPU, whatever x's device.

    Returns:
        float (D, H, W) in [-1, 1], exactly -1 in the background.
    """
    mask = foreground(x[None, None])
    box = _bounding_box(mask[0, 0])
    # The image is continued into the background and the foreground moved beside it: interpolated with the
    # background, voxels on its border would be of neither.
    both = torch.cat((continued(x[None, None], mask), mask), dim=1)[:, :, *box]
    shift = _displacement(both.shape[2:], generator).to(x)
    still = functional.affine_grid(
        torch.eye(3, 4, device=x.device)[None], [1, 1, *both.shape[2:]], align_corners=False
    )
    # grid_sample's coordinates run (w, h, d), and a side is 2 long.
    grid = still.to(x) + 2 * shift.flip(0).movedim(0, -1)
    image, inside = functional.grid_sample(both, grid, padding_mode="border", align_corners=False)[0]
    out = torch.full_like(x, BACKGROUND)
    out[box] = torch.where(inside > 0.5, image, BACKGROUND)
    return out


def _bounding_box(mask: Tensor) -> tuple[slice, ...]:
    found = mask.nonzero()
    if not len(found):
        return (slice(None),) * 3
    low, high = found.amin(0).tolist(), found.amax(0).tolist()
    return tuple(slice(first, last + 1) for first, last in zip(low, high, strict=True))


def _displacement(shape: torch.Size, generator: torch.Generator) -> Tensor:
    """Where each voxel's value comes from, as a shift (3, D, H, W) along (D, H, W) in units of each side."""
    size = _INTERVALS + 3
    shifts = _MAX_SHIFT * (2 * torch.rand(3, size, size, size, generator=generator) - 1) / _INTERVALS
    for axis in range(3):
        _hold_faces(shifts[axis].movedim(axis, 0))
    bases = [_spline_basis(side) for side in shape]
    return torch.einsum("xabc,da,hb,wc->xdhw", shifts, *bases)


def _hold_faces(shifts: Tensor) -> None:
    """Mirrors control points about both faces with the other sign: the spline is then 0 on them. In place."""
    first, last = 1, _INTERVALS + 1
    shifts[first] = shifts[last] = 0
    shifts[first - 1] = -shifts[first + 1]
    shifts[last + 1] = -shifts[last - 1]


def _spline_basis(side: int) -> Tensor:
    """Weights (side, _INTERVALS + 3) of the control points at each voxel's centre; each row sums to 1."""
    place = (torch.arange(side) + 0.5) / side * _INTERVALS
    distance = (place[:, None] - torch.arange(-1, _INTERVALS + 2)).abs()
    near = 2 / 3 - distance.square() + distance.pow(3) / 2
    far = (2 - distance).clamp(min=0).pow(3) / 6
    return torch.where(distance < 1, near, far)
