import json

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter

from anatogen.dataset.manifest import Grid, Intensity
from anatogen.dataset.scan_sets import ScanSet, content_hash
from anatogen.evaluation.diversity import (
    bootstrap_means,
    foreground,
    measure_diversity,
    random_pairs,
)

SHAPE = (12, 13, 12)


def scan_set(arrays, role="real"):
    grid = Grid(shape=arrays.shape[1:], spacing_mm=(1, 1, 1), affine=np.eye(4).tolist())
    intensity = Intensity(modality="MR", low=0, high=1)
    arrays = arrays.astype(np.float32)
    return ScanSet(role, arrays, tuple(content_hash(array) for array in arrays), grid, "MR", intensity)


def population(number, seed, shape=SHAPE):
    """One anatomy with differences: smooth volumes in [-1, 1] that share a mean."""
    generator = np.random.default_rng(seed)
    common = gaussian_filter(np.random.default_rng(99).standard_normal(shape), 2)
    own = np.stack([gaussian_filter(generator.standard_normal(shape), 2) for _ in range(number)])
    return np.clip(5 * (common + 0.5 * own), -1, 1)


def measure(real, synthetic, seed=0, num_pairs=40):
    rows, record = measure_diversity(
        real, synthetic, seed=seed, num_pairs=num_pairs, progress=lambda what, done, total: None
    )
    return {row.name: row for row in rows}, record


def test_pairs_are_distinct_scans_and_come_once():
    generator = np.random.default_rng(0)
    for num_scans, asked in ((2, 10), (7, 21), (7, 20), (1000, 500), (100_000, 300)):
        pairs = random_pairs(num_scans, asked, generator)
        assert len(pairs) == min(asked, num_scans * (num_scans - 1) // 2)
        assert len({tuple(pair) for pair in pairs}) == len(pairs)
        assert (pairs[:, 0] < pairs[:, 1]).all() and pairs.min() >= 0 and pairs.max() < num_scans
        assert num_scans < 2 * asked or len(np.unique(pairs)) == 2 * asked
    # Asked for more than there are: all of them.
    assert {tuple(pair) for pair in random_pairs(4, 99, generator)} == {
        (i, j) for j in range(4) for i in range(j)
    }


@pytest.mark.parametrize("num_pairs", [400, 15])
def test_the_interval_holds_the_truth_whether_pairs_share_scans_or_not(num_pairs):
    """Values a_i + a_j: their mean's standard deviation is 2 / sqrt(N), whatever the number of pairs."""
    generator = np.random.default_rng(1)
    covered, num_scans = 0, 30
    for _ in range(60):
        effects = generator.standard_normal(num_scans)
        pairs = random_pairs(num_scans, num_pairs, generator)
        draws = bootstrap_means(pairs, effects[pairs].sum(axis=1), num_scans, generator)
        low, high = np.quantile(draws, [0.025, 0.975])
        covered += low <= 0 <= high
        assert draws.std() == pytest.approx(2 / np.sqrt(num_scans), rel=0.6)
    assert covered >= 52


def test_collapse_and_noise_are_told_from_a_set_like_the_real_one():
    real = scan_set(population(16, 0))
    alike = population(16, 1)
    collapsed = np.concatenate([alike[:2]] * 8)
    noisy = np.clip(alike + np.random.default_rng(5).standard_normal(alike.shape), -1, 1)
    found = {
        name: measure(real, scan_set(arrays, "synthetic"))[0]
        for name, arrays in (("alike", alike), ("collapsed", collapsed), ("noisy", noisy))
    }
    for name in ("ms_ssim", "ms_ssim_reference_compatible"):
        rows = {kind: rows[name] for kind, rows in found.items()}
        assert rows["collapsed"].value > rows["alike"].value + 0.03
        assert rows["alike"].value > rows["noisy"].value + 0.03
        assert len({row.reference for row in rows.values()}) == 1
    gaps = {kind: rows["ms_ssim_gap"] for kind, rows in found.items()}
    assert gaps["alike"].value < min(gaps["collapsed"].value, gaps["noisy"].value) / 2
    assert gaps["collapsed"].low > 0 and gaps["alike"].low == 0
    for rows in found.values():
        gap, row = rows["ms_ssim_gap"], rows["ms_ssim"]
        assert gap.value == pytest.approx(abs(row.value - row.reference))
        assert row.low < row.value < row.high and gap.low <= gap.value <= gap.high
        assert (row.better, gap.better) == ("reference", "lower")


def test_a_seed_gives_one_result_and_the_record_is_json():
    real, synthetic = scan_set(population(6, 0)), scan_set(population(5, 1), "synthetic")
    rows, record = measure(real, synthetic)
    again, record_again = measure(real, synthetic)
    assert rows == again and record == record_again
    assert json.loads(json.dumps(record)) == record
    assert {name: len(v) for name, v in record["pairs"]["standard"].items()} == {"real": 15, "synthetic": 10}
    assert "10 synthetic and 15 real pairs; 1 scale (12 x 13 x 12), window 11" in "; ".join(
        rows["ms_ssim"].notes
    )
    assert "few scans (6 real, 5 synthetic)" in "; ".join(rows["ms_ssim"].notes)
    assert measure(real, synthetic, seed=1)[0] != rows


def test_the_foreground_is_that_of_real_scans_alone():
    arrays = population(4, 0)
    arrays[:, :, :, 6:] = -1
    real = scan_set(arrays)
    mask = foreground(real)
    assert not mask[:, :, 6:].any() and mask[:, :, :6].any()
    # A synthetic set that differs only far outside is no more and no less diverse.
    other = arrays.copy()
    other[..., -1] = np.random.default_rng(1).uniform(-1, 1, other.shape[:-1])
    rows, record = measure(real, scan_set(other, "synthetic"))
    assert record["foreground"] == pytest.approx(float(mask.float().mean()))
    assert rows["ms_ssim"].value == pytest.approx(rows["ms_ssim"].reference)


def test_real_scans_without_foreground_are_compared_whole():
    rows, record = measure(scan_set(np.full((4, *SHAPE), -1.0)), scan_set(population(4, 1), "synthetic"))
    assert record["foreground"] is None
    assert "no foreground" in "; ".join(rows["ms_ssim"].notes) and rows["ms_ssim"].reference == pytest.approx(
        1
    )


def test_what_cannot_be_measured_says_why():
    real = scan_set(population(3, 0))
    rows, record = measure(real, scan_set(population(1, 1), "synthetic"))
    assert record == {} and all(row.value is None for row in rows.values())
    assert list(rows) == ["ms_ssim", "ms_ssim_gap", "ms_ssim_reference_compatible"]
    assert "3 real, 1 synthetic" in "; ".join(rows["ms_ssim"].notes)
    flat = (4, 12, 12)
    rows, _ = measure(scan_set(population(3, 0, flat)), scan_set(population(3, 1, flat), "synthetic"))
    assert "at least 5 voxels" in "; ".join(rows["ms_ssim"].notes)
    # Three real scans have no two halves with a pair each.
    rows, _ = measure(real, scan_set(population(3, 1), "synthetic"))
    assert rows["ms_ssim_gap"].reference is None and "4 real scans" in "; ".join(rows["ms_ssim_gap"].notes)
