"""Laws of the wavelet pyramid, and of the foreground that travels with a scan."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.ndimage import binary_opening

from anatogen.models.pyramid import (
    BACKGROUND,
    WaveletPyramid,
    continued,
    foreground,
    halving_strides,
    with_foreground,
    without_foreground,
)

GRIDS = [
    ((16, 16, 16), (1.0, 1.0, 1.0), 2),
    ((7, 12, 10), (2.0, 1.0, 1.5), 2),
    ((9, 40, 41), (8.0, 1.0, 1.0), 3),
    ((5, 6, 33), (1.0, 1.0, 0.3), 2),
]
grids = pytest.mark.parametrize(("shape", "spacing", "num_levels"), GRIDS)
sides = st.tuples(*[st.integers(1, 9)] * 3)


def _scan(shape: tuple[int, int, int], seed: int, share: float = 0.5) -> torch.Tensor:
    """Noise, of which boxes and single voxels are background."""
    generator = np.random.default_rng(seed)
    x = generator.uniform(-0.99, 1, shape)
    for _ in range(4):
        low = [generator.integers(0, size) for size in shape]
        x[tuple(slice(first, first + 4) for first in low)] = BACKGROUND
    x[generator.random(shape) < share / 4] = BACKGROUND
    return torch.tensor(x, dtype=torch.float32)[None, None]


@grids
@pytest.mark.parametrize("channels", [1, 2])
def test_refining_gives_back_what_was_analysed(shape, spacing, num_levels, channels):
    pyramid = WaveletPyramid(shape, spacing, num_levels)
    x = pyramid.pad(torch.randn(2, channels, *shape))
    images, bands = pyramid.analyse(x)
    image = images[-1]
    for level in reversed(range(num_levels)):
        assert tuple(images[level].shape[2:]) == pyramid.shapes[level]
        assert bands[level].shape == (2, channels * pyramid.num_bands(level), *pyramid.shapes[level + 1])
        image = pyramid.refine(level, image, bands[level])
        assert torch.allclose(image, images[level], atol=1e-5)


@grids
def test_a_level_holds_the_means_over_its_cells_and_bands_keep_the_rest_of_the_energy(
    shape, spacing, num_levels
):
    pyramid = WaveletPyramid(shape, spacing, num_levels)
    x = torch.randn(1, 1, *pyramid.shapes[0], dtype=torch.float64)
    images, bands = pyramid.analyse(x)
    for level, image in enumerate(images):
        stride = pyramid.stride(level)
        assert torch.allclose(image, torch.nn.functional.avg_pool3d(x, stride, stride))
    for level, band in enumerate(bands):
        low, high = images[level + 1].square().sum(), band.square().sum()
        assert torch.isclose(2 ** len(pyramid.axes[level]) * low + high, images[level].square().sum())


def test_channels_and_scans_are_analysed_apart():
    pyramid = WaveletPyramid((8, 8, 8), (1, 1, 1), 2)
    x = torch.randn(2, 2, 8, 8, 8)
    images, bands = pyramid.analyse(x)
    for channel in range(2):
        alone, details = pyramid.analyse(x[1:, channel : channel + 1])
        assert torch.equal(images[2][1:, channel : channel + 1], alone[2])
        for both, one in zip(bands, details, strict=True):
            assert torch.equal(both[1:, channel::2], one)


def test_thick_slices_are_halved_in_their_plane_first():
    pyramid = WaveletPyramid((9, 40, 41), (8, 1, 1), 3)
    assert pyramid.axes == ((3, 4), (3, 4), (3, 4)) and pyramid.shapes[0] == (9, 40, 48)


@grids
def test_a_border_repeats_the_scans_end_and_comes_off_again(shape, spacing, num_levels):
    pyramid = WaveletPyramid(shape, spacing, num_levels)
    x = torch.rand(1, 1, *shape)
    padded = pyramid.pad(x)
    ends = [(0, large - size) for large, size in zip(pyramid.shapes[0], shape, strict=True)]
    np.testing.assert_array_equal(padded[0, 0], np.pad(x[0, 0], ends, mode="edge"))
    assert torch.equal(pyramid.crop(padded), x)
    # A scan that was shifted towards the origin gets a wider one.
    assert torch.equal(pyramid.pad(x[:, :, 1:, 2:, 1:])[:, :, :-1, :-2, :-1], padded[:, :, 1:, 2:, 1:])


@settings(max_examples=40, deadline=None)
@given(shape=sides, seed=st.integers(0, 1000))
def test_the_foreground_is_scipy_s_opening_of_the_background_by_a_block_of_two(shape, seed):
    x = _scan(shape, seed)
    empty = np.pad(x[0, 0].numpy() == BACKGROUND, 1, mode="edge")
    opened = binary_opening(empty, np.ones((2, 2, 2)))[1:-1, 1:-1, 1:-1]
    assert np.array_equal(foreground(x)[0, 0].numpy() == 0, opened)


@settings(max_examples=40, deadline=None)
@given(shape=sides, seed=st.integers(0, 1000), share=st.sampled_from([0.0, 0.5, 4.0]))
def test_a_scan_comes_back_from_its_foreground_to_the_bit(shape, seed, share):
    x = _scan(shape, seed, share)
    both = with_foreground(x)
    assert both[:, 1:].abs().eq(1).all() and torch.equal(without_foreground(both), x)


@settings(max_examples=40, deadline=None)
@given(shape=sides, seed=st.integers(0, 1000))
def test_the_continuation_keeps_the_foreground_and_stays_between_its_extremes(shape, seed):
    x = _scan(shape, seed)
    mask = foreground(x)
    found = continued(x, mask)
    assert torch.equal(found[mask > 0], x[mask > 0])
    if mask.any():
        low, high = x[mask > 0].min(), x[mask > 0].max()
        assert found.min() >= low - 1e-5 and found.max() <= high + 1e-5
    else:
        assert not found.any()


@settings(max_examples=20, deadline=None)
@given(shape=sides, seed=st.integers(0, 1000))
def test_the_continuation_of_a_constant_is_that_constant(shape, seed):
    mask = foreground(_scan(shape, seed))
    if mask.any():
        x = torch.where(mask > 0, 0.3, BACKGROUND)
        assert torch.allclose(continued(x, mask), torch.full_like(x, 0.3))


def test_the_continuation_has_no_edge_where_foreground_ends():
    """The details of a bright ball in nothing are those of the foreground alone."""
    d, h, w = np.ogrid[:16, :16, :16]
    ball = torch.tensor((d - 8) ** 2 + (h - 8) ** 2 + (w - 8) ** 2 < 30)[None, None]
    x = torch.where(ball, 0.8, BACKGROUND)
    pyramid = WaveletPyramid((16, 16, 16), (1, 1, 1), 2)
    _, bands = pyramid.analyse(with_foreground(x))
    for band in bands:
        assert band[:, ::2].abs().max() < 1e-5 and band[:, 1::2].abs().max() > 1


def test_a_single_voxel_of_foreground_is_continued_everywhere():
    mask = torch.zeros(1, 1, 160, 160, 160)
    mask[..., 3, 150, 80] = 1
    assert torch.allclose(continued(0.5 * mask, mask), torch.tensor(0.5))


def test_scans_of_a_batch_are_continued_apart():
    x = torch.cat([_scan((6, 7, 8), seed) for seed in range(3)])
    each = torch.cat([with_foreground(part) for part in x.split(1)])
    assert torch.equal(with_foreground(x), each)


@given(
    shape=st.tuples(*[st.integers(1, 64)] * 3),
    spacing=st.tuples(*[st.floats(0.2, 10)] * 3),
    number=st.integers(0, 4),
)
def test_halvings_bring_a_grid_towards_isotropic_cells(shape, spacing, number):
    strides = halving_strides(shape, spacing, number)
    assert len(strides) == number
    sizes, lengths = list(shape), list(spacing)
    for stride in strides:
        assert set(stride) <= {1, 2}
        can = [axis for axis in range(3) if sizes[axis] >= 4]
        # Something is halved wherever something can be, the finest axis first.
        assert (2 in stride) == bool(can)
        if can:
            assert stride[min(can, key=lambda axis: lengths[axis])] == 2
        for axis in range(3):
            if stride[axis] == 2:
                assert sizes[axis] >= 4
                assert lengths[axis] < 1.5 * min(lengths[other] for other in can)
        sizes = [math.ceil(size / step) for size, step in zip(sizes, stride, strict=True)]
        lengths = [length * step for length, step in zip(lengths, stride, strict=True)]


def test_isotropic_grids_are_halved_alike_and_thick_slices_plane_first():
    assert halving_strides((16, 16, 16), (1, 1, 1), 2) == [(2, 2, 2)] * 2
    assert halving_strides((16, 64, 64), (4, 1, 1), 3) == [(1, 2, 2), (1, 2, 2), (2, 2, 2)]
    assert halving_strides((2, 3, 3), (1, 1, 1), 2) == [(1, 1, 1)] * 2
