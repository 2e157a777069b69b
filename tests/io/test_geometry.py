"""Transforms: a function of the place in the world has the same values at the same places afterwards."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scan_makers import oblique_affine, pattern, pattern_volume, same_place, world

from anatogen.core.errors import UserError
from anatogen.io.geometry import (
    axis_codes,
    centred_affine,
    crop_or_pad,
    foreground_center,
    orient,
    otsu_threshold,
    resample,
    slice_plane,
)
from anatogen.io.volume import Volume

CODES = [
    "".join(letters)
    for axes in itertools.permutations(["RL", "AP", "SI"])
    for letters in itertools.product(*axes)
]


def error_inside(volume: Volume, margin: int = 0, scale_mm: float = 40.0) -> float:
    """Largest difference to the pattern at the voxels' places, away from the border."""
    inner = tuple(slice(margin, size - margin) for size in volume.array.shape)
    expected = pattern(world(volume.affine, volume.array.shape), scale_mm)
    return float(np.abs(volume.array - expected)[inner].max())


@given(seed=st.integers(0, 10_000), codes=st.sampled_from(CODES))
@settings(max_examples=60, deadline=None)
def test_orient_moves_nothing_and_is_undone(seed: int, codes: str) -> None:
    volume = pattern_volume(oblique_affine(seed), (4, 6, 5))
    turned = orient(volume, codes)
    assert axis_codes(turned.affine) == codes
    assert error_inside(turned) < 1e-5
    back = orient(turned, axis_codes(volume.affine))
    assert np.array_equal(back.array, volume.array)
    np.testing.assert_allclose(back.affine, volume.affine, atol=1e-9)


@pytest.mark.parametrize("codes", ["SP", "SPP", "SPA", "XYZ", "spl", ""])
def test_orientation_names_each_body_axis_once(codes: str) -> None:
    with pytest.raises(UserError, match="one letter of each pair"):
        orient(pattern_volume(np.eye(4), (4, 4, 4)), codes)


@pytest.mark.parametrize("interpolation", ["linear", "cubic"])
@pytest.mark.parametrize("spacing", [(3.0, 0.7, 0.9), (1.7, 0.5, 1.1), (4.1, 1.9, 2.3)], ids=str)
def test_resample_keeps_places(interpolation: str, spacing: tuple[float, float, float]) -> None:
    volume = pattern_volume(oblique_affine(1), (24, 40, 36))
    result = resample(volume, spacing_mm=spacing, interpolation=interpolation)  # type: ignore[arg-type]
    np.testing.assert_allclose(result.spacing_mm, spacing)
    # A wrong half voxel would show as about 0.05 on this pattern.
    assert error_inside(result, margin=4) < 0.012


@given(
    seed=st.integers(0, 1000),
    shape=st.tuples(*[st.integers(1, 40)] * 3),
)
@settings(max_examples=30, deadline=None)
def test_resample_to_a_shape_keeps_the_field_of_view(seed: int, shape: tuple[int, int, int]) -> None:
    volume = pattern_volume(oblique_affine(seed), (8, 12, 10))
    result = resample(volume, shape=shape)
    assert result.array.shape == shape
    edges = [np.array([[-0.5] * 3 + [1], [*(np.array(v.array.shape) - 0.5), 1]]) for v in (volume, result)]
    np.testing.assert_allclose(volume.affine @ edges[0].T, result.affine @ edges[1].T, atol=1e-6)
    assert result.array.dtype == np.float32
    assert result.array.min() >= volume.array.min() - 1e-5
    assert result.array.max() <= volume.array.max() + 1e-5


def test_resample_to_the_same_grid_changes_nothing() -> None:
    volume = pattern_volume(oblique_affine(0), (6, 9, 7))
    result = resample(volume, spacing_mm=volume.spacing_mm)
    assert np.array_equal(result.array, volume.array)
    np.testing.assert_allclose(result.affine, volume.affine, atol=1e-9)


def test_coarser_grids_do_not_alias() -> None:
    # Stripes of one voxel: interpolation alone would show false broad stripes, the truth is grey.
    array = np.tile(np.float32([0, 1]), (32, 32, 16))
    result = resample(Volume(array, np.eye(4)), spacing_mm=(3.3, 3.3, 3.3))
    assert np.abs(result.array[2:-2, 2:-2, 2:-2] - 0.5).max() < 0.01


def test_resample_takes_spacing_or_shape() -> None:
    volume = pattern_volume(np.eye(4), (4, 4, 4))
    with pytest.raises(UserError, match="either"):
        resample(volume)
    with pytest.raises(UserError, match="positive"):
        resample(volume, spacing_mm=(1, 0, 1))


@given(seed=st.integers(0, 1000), shape=st.tuples(*[st.integers(1, 14)] * 3))
@settings(max_examples=60, deadline=None)
def test_crop_or_pad_keeps_places(seed: int, shape: tuple[int, int, int]) -> None:
    volume = pattern_volume(oblique_affine(seed), (7, 6, 9))
    result = crop_or_pad(volume, shape, background=-99)
    assert result.array.shape == shape
    expected = pattern(world(result.affine, shape))
    kept = result.array != -99
    np.testing.assert_allclose(result.array[kept], expected[kept], atol=1e-5)
    assert kept.sum() == np.prod(np.minimum(shape, volume.array.shape))
    middles = [
        v.affine[:3, :3] @ ((np.array(v.array.shape) - 1) / 2) + v.affine[:3, 3] for v in (volume, result)
    ]
    assert np.linalg.norm(middles[0] - middles[1]) <= np.linalg.norm(np.array(volume.spacing_mm) / 2) + 1e-9


def test_padding_is_undone_by_cropping() -> None:
    volume = pattern_volume(oblique_affine(3), (7, 6, 9))
    back = crop_or_pad(crop_or_pad(volume, (16, 16, 16), 0), (7, 6, 9), 0)
    assert np.array_equal(back.array, volume.array)
    assert same_place(back, volume) < 1e-9


def test_crop_around_the_foreground() -> None:
    array = np.full((20, 24, 30), 10, np.float32)
    array[2:8, 14:20, 20:27] = 500
    array[15, 3, 3] = 900  # a single bright voxel is no body
    volume = Volume(array, np.diag([1.0, 2, 3, 1]))
    center = foreground_center(volume, otsu_threshold(array))
    assert center == (4.5, 16.5, 23.0)
    result = crop_or_pad(volume, (6, 6, 7), 10, center)
    assert (result.array == 500).all()
    np.testing.assert_allclose(result.affine[:3, 3], [2, 28, 60])


def test_crop_entirely_outside_is_background() -> None:
    result = crop_or_pad(pattern_volume(np.eye(4), (5, 5, 5)), (4, 4, 4), 7, center=(50, 50, 50))
    assert (result.array == 7).all()


def test_otsu_ignores_outliers() -> None:
    generator = np.random.default_rng(0)
    array = np.concatenate([generator.normal(10, 3, 50_000), generator.normal(300, 20, 50_000), [1e7] * 5])
    assert 20 < otsu_threshold(array.astype(np.float32).reshape(-1, 5, 1)) < 250


@pytest.mark.parametrize(
    ("spacing", "axis", "codes"),
    [
        ((5, 1, 1), 0, "SPL"), ((1, 5, 1), 1, "PIL"), ((1, 1, 5), 2, "RIP"), ((1, 1.2, 1), 1, "SPL"),
    ],
)  # fmt: skip
def test_slice_plane(spacing: tuple[float, float, float], axis: int, codes: str) -> None:
    affine = centred_affine("SPL", (10, 10, 10), spacing)
    assert slice_plane(affine) == codes
    turned = orient(Volume(np.zeros((4, 5, 6), np.float32), affine), "LSA")
    assert slice_plane(turned.affine) == codes


@pytest.mark.parametrize("codes", ["SPL", "RIP", "PIL"])
def test_conventional_orders_are_right_handed_in_dicom(codes: str) -> None:
    # Then slices written in order of D are in DICOM's own order, along row direction x column direction.
    affine = np.diag([-1.0, -1, 1, 1]) @ centred_affine(codes, (10, 20, 30), (3, 1, 2))
    assert axis_codes(np.diag([-1.0, -1, 1, 1]) @ affine) == codes
    normal = np.cross(affine[:3, 2], affine[:3, 1])
    assert normal @ affine[:3, 0] > 0
    np.testing.assert_allclose(affine @ [4.5, 9.5, 14.5, 1], [0, 0, 0, 1], atol=1e-9)
