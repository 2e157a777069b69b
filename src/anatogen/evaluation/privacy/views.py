"""Random views of scans for learning by contrast, a batch at a time and on any device."""

import math

import torch
from torch import Tensor
from torch.nn import functional

_MAX_ANGLE = math.radians(10)
_BLUR_RADIUS = 2


def random_views(x: Tensor, spacing_mm: tuple[float, float, float], generator: torch.Generator) -> Tensor:
    """A random view of each scan: what a copy may have gone through and still be a copy.

    Flips along each axis, rotation by up to 10 degrees about each axis, scale 0.9 to 1.1, shift by up to 5%
    of each side; gamma 0.75 to 1.33, contrast 0.8 to 1.25, offset up to 0.1; Gaussian blur of up to 1 voxel;
    in half of the views noise of standard deviation up to 0.15.

    Args:
        x: float (B, 1, d, h, w) in [-1, 1].
        spacing_mm: Distance between these voxels; keeps rotations rigid.
        generator: On the CPU, whatever x's device.

    Returns:
        float (B, 1, d, h, w), about in [-1, 1].
    """
    number, device = len(x), x.device

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand((number, *shape), generator=generator)

    angles = uniform(-_MAX_ANGLE, _MAX_ANGLE, 3)
    scale = uniform(0.9, 1.1, 1, 1)
    flips = torch.where(uniform(0, 1, 3) < 0.5, -1.0, 1.0)
    extent = torch.tensor([side * mm for side, mm in zip(x.shape[2:], spacing_mm, strict=True)])
    # grid_sample counts in halves of each side, so that a rotation must go through millimetres.
    linear = _rotations(angles) * scale * extent[None, None, :] / extent[None, :, None]
    linear = linear * flips[:, None, :]
    # Its coordinates run (w, h, d).
    theta = torch.cat([linear.flip(1, 2), uniform(-0.1, 0.1, 3, 1)], dim=2).to(device)
    grid = functional.affine_grid(theta, list(x.shape), align_corners=False)
    # Moved by 1, so that what comes from outside is background.
    unit = functional.grid_sample((x + 1) / 2, grid, align_corners=False).clamp(0, 1)

    def each(values: Tensor) -> Tensor:
        return values.to(device)[:, None, None, None, None]

    view = unit.pow(each(uniform(-0.288, 0.288).exp())) * 2 - 1
    view = view * each(uniform(-0.223, 0.223).exp()) + each(uniform(-0.1, 0.1))
    view = _blurred(view, uniform(0, 1).to(device))
    deviation = each(uniform(0, 0.15) * (uniform(0, 1) < 0.5))
    return view + deviation * torch.randn(view.shape, generator=generator).to(device)


def _rotations(angles: Tensor) -> Tensor:
    """Rotations by vectors of angles about the axes d, h and w, (B, 3) radians to (B, 3, 3)."""
    generators = torch.zeros(3, 3, 3)
    for axis, (a, b) in enumerate(((1, 2), (2, 0), (0, 1))):
        generators[axis, b, a], generators[axis, a, b] = 1, -1
    out: Tensor = torch.linalg.matrix_exp(torch.einsum("bi,ijk->bjk", angles, generators))
    return out


def _blurred(x: Tensor, sigma: Tensor) -> Tensor:
    """Gaussian blur of each (B, 1, d, h, w) with its own sigma (B,) in voxels; 0 leaves it as it is."""
    offsets = torch.arange(-_BLUR_RADIUS, _BLUR_RADIUS + 1, device=x.device)
    kernels = (-0.5 * (offsets / sigma.clamp(min=1e-3)[:, None]).square()).exp()
    kernels = kernels / kernels.sum(1, keepdim=True)
    out = x.transpose(0, 1)
    for axis in range(3):
        shape, pads = [len(x), 1, 1, 1, 1], [0] * 6
        shape[2 + axis] = len(offsets)
        pads[4 - 2 * axis] = pads[5 - 2 * axis] = _BLUR_RADIUS
        padded = functional.pad(out, pads, mode="replicate")
        out = functional.conv3d(padded, kernels.view(shape), groups=len(x))
    return out.transpose(0, 1)
