"""Scans are known again whatever their windows, and others are not."""

import numpy as np
import pytest
from synthetic_dataset import write_dataset

from anatogen.api.scans import prepare
from anatogen.dataset.manifest import Intensity
from anatogen.dataset.same_scans import KnownScans
from anatogen.dataset.scan_sets import ScanSet, identical_scans, load_scans


def same_scans(a: ScanSet, b: ScanSet) -> int:
    return KnownScans(len(b), lambda number: b.arrays[number]).among(a)


@pytest.fixture
def real(tmp_path) -> ScanSet:
    return load_scans(write_dataset(tmp_path / "data", 4, 2), "real")


@pytest.mark.parametrize("low", [0.0, 30.0])
@pytest.mark.parametrize("high", [60.0, 99.0, 100.0])
def test_a_scan_is_the_same_whatever_its_window(real, low, high):
    others = []
    for array in real.arrays:
        limits = np.percentile(array, [low, high])
        window = Intensity(modality="MR", low=limits[0], high=limits[1])
        others.append(window.normalise(array).astype(np.float16).astype(np.float32))
    windowed = real.with_arrays(np.stack(others))
    assert same_scans(windowed, real) == same_scans(real, windowed) == len(real)
    assert same_scans(windowed.take([0, 1, 0]), real.take([1, 2])) == 1
    assert not identical_scans(windowed, real) or (low, high) == (0, 100)


def test_scans_of_others_are_not_the_same(real, shared_data, tmp_path):
    noise = np.random.default_rng(0).normal(0, 0.05, real.arrays.shape).astype(np.float32)
    assert same_scans(real.with_arrays(np.clip(real.arrays + noise, -1, 1)), real) == 0
    prepare(shared_data / "hippocampus" / "images", tmp_path / "hippocampi", limit=20)
    hippocampi = load_scans(tmp_path / "hippocampi", "real")
    half = len(hippocampi) // 2
    assert same_scans(hippocampi.take(range(half)), hippocampi.take(range(half, len(hippocampi)))) == 0


def test_constant_scans_are_the_same_where_their_values_are(real):
    constant = real.with_arrays(np.stack([np.full_like(real.arrays[0], value) for value in (-1, 0.5)]))
    assert same_scans(constant, constant.take([0])) <= 1 and same_scans(constant, real) == 0
