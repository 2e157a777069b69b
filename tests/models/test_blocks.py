"""Laws of the pieces that several networks are built of."""

import math
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anatogen.models.blocks import CellNorm, group_norm, haar, inverse_haar

AXES = [axes for number in range(4) for axes in combinations((2, 3, 4), number)]


@given(
    axes=st.sampled_from(AXES),
    channels=st.integers(1, 3),
    halves=st.tuples(*[st.integers(1, 4)] * 3),
    seed=st.integers(0, 999),
)
def test_the_inverse_wavelet_gives_back_the_volume_and_the_norm_is_kept(axes, channels, halves, seed):
    shape = (2, channels, *(2 * half for half in halves))
    x = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    y = haar(x, axes)
    assert y.shape[1] == channels * 2 ** len(axes)
    assert all(y.shape[axis] == x.shape[axis] // (2 if axis in axes else 1) for axis in (2, 3, 4))
    assert torch.allclose(inverse_haar(y, axes), x, atol=1e-12)
    assert float(y.norm()) == pytest.approx(float(x.norm()), rel=1e-12)


def test_the_wavelet_is_orthonormal_so_its_transpose_is_its_inverse():
    axes = (2, 3, 4)
    basis = torch.eye(8, dtype=torch.float64).reshape(8, 1, 2, 2, 2)
    matrix = haar(basis, axes).reshape(8, 8)
    assert torch.allclose(matrix @ matrix.T, torch.eye(8, dtype=torch.float64), atol=1e-12)


def test_the_low_pass_channels_come_first():
    x = torch.ones(1, 2, 4, 4, 4)
    y = haar(x, (2, 3, 4))
    assert torch.allclose(y[:, :2], torch.tensor(8**0.5)) and torch.allclose(y[:, 2:], torch.tensor(0.0))


@pytest.mark.parametrize("groups", [8, 32])
@pytest.mark.parametrize("channels", [1, 2, 6, 8, 12, 48, 64])
def test_group_norm_takes_any_number_of_channels(channels, groups):
    norm = group_norm(channels, groups)
    assert norm.num_groups == math.gcd(groups, channels)
    assert norm(torch.randn(1, channels, 2, 2, 2)).isfinite().all()


def test_cells_are_normalised_one_by_one_over_their_channels():
    norm = CellNorm(6)
    norm.scale.data = torch.arange(1.0, 7.0)
    found = norm(torch.randn(2, 6, 3, 4, 5)) / torch.arange(1.0, 7.0)[:, None, None, None]
    assert torch.allclose(found.mean(1), torch.zeros(2, 3, 4, 5), atol=1e-5)
    assert torch.allclose(found.var(1, correction=0), torch.ones(2, 3, 4, 5), atol=1e-3)
