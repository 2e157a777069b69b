import numpy as np
import pytest

from anatogen.dataset.manifest import Intensity
from anatogen.study.blinding import (
    MR_LEVELS,
    background,
    blinded,
    blindings,
    common_box,
    padded_borders,
    spread_levels,
)

MR = Intensity(modality="MR", low=0, high=1000)
CT = Intensity(modality="CT", low=-1000, high=1000)


def _tissue(seed, shape=(16, 18, 20)):
    """Smooth bright tissue with noise, in [-1, 1], without background."""
    generator = np.random.default_rng(seed)
    ramp = np.linspace(-0.4, 0.6, shape[0])[:, None, None]
    array = np.clip(ramp + 0.15 * generator.standard_normal(shape), -0.99, 0.99)
    return array.astype(np.float16).astype(np.float32)


def _coarse(array, num_levels):
    """With so many grey levels from 0 to 1, as prepared scans hold them."""
    return (np.round(array * num_levels) / num_levels).astype(np.float16).astype(np.float32)


def test_spreading_moves_no_value_beyond_half_way_to_its_neighbours():
    array = _coarse(_tissue(0), 40)
    spread = spread_levels(array, np.random.default_rng(0))
    assert np.abs(spread - array).max() <= 1 / 80 + 3e-4
    assert len(np.unique(spread)) > 100 * len(np.unique(array)) / 2
    for end in (array.min(), array.max()):
        assert (spread[array == end] == end).all()


def test_spreading_fills_the_teeth_of_a_histogram():
    array = _coarse(_tissue(1, (40, 40, 40)), 40)
    spread = spread_levels(array, np.random.default_rng(0))
    counts, _ = np.histogram(spread, bins=200, range=(-0.3, 0.5))
    assert (counts > 0).all()


def test_spreading_moves_nothing_far_where_gaps_are_wide():
    array = np.where(_tissue(0) > 0, np.float32(0.5), np.float32(-1))
    assert (spread_levels(array, np.random.default_rng(0)) == array).all()
    array[:8] = 0
    assert np.abs(spread_levels(array, np.random.default_rng(0)) - array).max() <= 1 / 40


def test_padding_is_told_from_air_around_a_body():
    padded = _tissue(0)
    padded[:2] = -1
    padded[:, :, -3:] = -1
    assert padded_borders(padded).tolist() == [[2, 0, 0], [0, 0, 3]]
    # What a network makes of padding: never quite one value.
    noisy = np.where(padded == -1, -0.95 + 0.03 * np.random.default_rng(0).random(padded.shape), padded)
    assert padded_borders(noisy).tolist() == [[2, 0, 0], [0, 0, 3]]
    d, h, w = np.indices((16, 18, 20)) - np.array([7.5, 8.5, 9.5]).reshape(3, 1, 1, 1)
    body = np.where((d / 6) ** 2 + (h / 6) ** 2 + (w / 8) ** 2 < 1, 0.5, -1)
    assert padded_borders(body).sum() == 0
    assert padded_borders(np.zeros((4, 4, 4))).sum() == 0


def test_the_common_box_is_padding_in_no_scan_unless_too_little_is_left():
    arrays = np.stack([_tissue(seed) for seed in range(3)])
    arrays[0, :3] = -1
    arrays[1, :, -2:] = -1
    assert common_box(arrays) == (slice(3, 16), slice(0, 16), slice(0, 20))
    arrays[2, :9] = -1
    assert common_box(arrays) == (slice(0, 16), slice(0, 18), slice(0, 20))


def test_mr_scans_end_with_equal_extremes_and_equal_shares_of_them():
    arrays = np.stack([_tissue(0), 0.5 * _tissue(1) - 0.3, _coarse(_tissue(2), 50)])
    how = next(blindings(arrays, MR))
    volumes = [blinded(array, how, np.random.default_rng(n)) for n, array in enumerate(arrays)]
    for volume in volumes:
        assert volume.dtype == np.int16
        assert (volume.min(), volume.max()) == (0, MR_LEVELS - 1)
        assert len(np.unique(volume)) > MR_LEVELS - 5  # the scans are small
    for end in (0, MR_LEVELS - 1):
        shares = [float((volume == end).mean()) for volume in volumes]
        assert max(shares) - min(shares) < 0.001
        assert max(shares) < 0.02


def test_ct_keeps_hounsfield_units_and_every_scan_reaches_both_ends():
    arrays = np.stack([_tissue(0), np.clip(1.4 * _tissue(1), -1, 1)])
    how = next(blindings(arrays, CT))
    volumes = [blinded(array, how, np.random.default_rng(0)) for array in arrays]
    assert volumes[0].min() == volumes[1].min() and volumes[0].max() == volumes[1].max()
    hu = arrays[0][how.box] * 1000
    inside = (hu > volumes[0].min() + 1) & (hu < volumes[0].max() - 1)
    assert np.abs(volumes[0] - hu)[inside].max() <= 0.501


def test_blinding_depends_on_the_scan_and_its_generator_alone():
    arrays = np.stack([_tissue(seed) for seed in range(3)])
    how = next(blindings(arrays, MR))
    again = [blinded(arrays[1], how, np.random.default_rng(5)) for _ in range(2)]
    np.testing.assert_array_equal(*again)


def test_the_last_resort_clears_the_background_and_leaves_the_body():
    d, h, w = np.indices((16, 18, 20)) - np.array([7.5, 8.5, 9.5]).reshape(3, 1, 1, 1)
    body = (d / 6) ** 2 + (h / 6) ** 2 + (w / 8) ** 2 < 1
    noise = np.random.default_rng(0).random(body.shape)
    array = np.where(body, 0.3 + 0.3 * noise, -0.9 + 0.15 * noise).astype(np.float32)
    array[7, 8, 9] = -0.9  # dark inside the body
    *_, last = blindings(array[None], MR)
    assert last.clears_background
    volume = blinded(array, last, np.random.default_rng(0))
    outside = background(volume)
    assert outside.mean() > 0.5 and not (outside & body).any()
    assert (volume[outside] == 0).all()
    assert (volume[body & (array > 0)] > 0).all()


@pytest.mark.parametrize("value", [-1.0, 0.0, 1.0])
def test_constant_scans_do_not_break_it(value):
    arrays = np.full((2, 4, 5, 6), value, dtype=np.float32)
    arrays[1] = _tissue(0, (4, 5, 6))
    for how in (*blindings(arrays, MR), *blindings(arrays, CT)):
        assert blinded(arrays[0], how, np.random.default_rng(0)).dtype == np.int16
