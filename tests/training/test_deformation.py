"""Deformations keep the field of view, never fold, and are the same for the same draw."""

import pytest
import torch

from anatogen.training.deformation import _displacement, _spline_basis, deformed


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _scan(shape: tuple[int, int, int] = (20, 24, 18)) -> torch.Tensor:
    x = torch.full(shape, -1.0)
    x[3:17, 2:22, 4:15] = torch.rand(14, 20, 11, generator=_generator(7)) * 1.9 - 0.95
    return x


@pytest.mark.parametrize("seed", range(5))
def test_the_field_of_view_stays_where_it_is(seed):
    found = deformed(_scan(), _generator(seed))
    assert torch.equal(found > -1, _scan() > -1)
    assert not torch.allclose(found, _scan(), atol=0.1)


def test_what_is_uniform_stays_uniform():
    x = torch.full((12, 12, 12), -1.0)
    x[2:10, 2:10, 2:10] = 0.5
    assert torch.allclose(deformed(x, _generator(0)), x, atol=1e-6)


def test_a_scan_of_background_alone_is_left_as_it_is():
    x = torch.full((8, 8, 8), -1.0)
    assert torch.allclose(deformed(x, _generator(0)), x, atol=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_a_curved_foreground_moves_as_one_and_its_background_stays_exact(seed):
    """An ellipsoid of one value: no voxel becomes a mixture with the background, and it keeps its size."""
    axes = [torch.linspace(-1.2, 1.2, side) for side in (40, 56, 40)]
    x = torch.where(sum(place**2 for place in torch.meshgrid(*axes, indexing="ij")) < 1, 0.5, -1.0)
    found = deformed(x, _generator(seed))
    assert torch.allclose(found, torch.where(found > -1, 0.5, -1.0))
    assert int((found > -1).sum()) == pytest.approx(int((x > -1).sum()), rel=0.1)


def test_the_same_draw_gives_the_same_scan():
    assert torch.equal(deformed(_scan(), _generator(3)), deformed(_scan(), _generator(3)))
    assert not torch.equal(deformed(_scan(), _generator(3)), deformed(_scan(), _generator(4)))


def test_spline_weights_sum_to_one():
    assert torch.allclose(_spline_basis(17).sum(1), torch.ones(17), atol=1e-6)


@pytest.mark.parametrize("seed", range(20))
def test_nothing_folds(seed):
    """The Jacobian determinant of x + displacement, in units of each side, is positive everywhere."""
    shape = torch.Size((33, 36, 30))
    shift = _displacement(shape, _generator(seed))
    rows = []
    for component in range(3):
        slopes = torch.gradient(shift[component], spacing=[1 / side for side in shape])
        rows.append(torch.stack([slope + (axis == component) for axis, slope in enumerate(slopes)]))
    jacobian = torch.stack(rows).movedim((0, 1), (-2, -1))
    assert torch.linalg.det(jacobian).min() > 0


def test_faces_are_held_and_the_middle_moves_as_documented():
    shape = torch.Size((60, 60, 60))
    shifts = torch.stack([_displacement(shape, _generator(seed)) for seed in range(40)])
    for axis in range(3):
        faces = shifts[:, axis].movedim(axis + 1, 1)[:, [0, -1]]
        # Half a voxel from the face, where the shift is 0.
        assert faces.abs().max() < 0.6 / 60
    assert shifts.std() == pytest.approx(0.025, abs=0.003)
