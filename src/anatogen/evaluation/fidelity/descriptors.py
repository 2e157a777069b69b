"""What is compared without a network: each scan's histogram, power spectrum, wavelet energies, coarse voxels.

Each function gives one row a scan, float64 (N, ...), for the distances in `distances`.
"""

import math

import numpy as np
import numpy.typing as npt
import torch
from torch.nn import functional

from anatogen.dataset.scan_sets import ScanSet
from anatogen.models.blocks import haar

Array = npt.NDArray[np.float64]

_NUM_BINS = 1024
_COARSE = 16
# Energies below this, of a range of 2, are rounding.
_ENERGY_FLOOR = 1e-6


def intensity_histograms(scans: ScanSet) -> Array:
    """Share of each scan's voxels in 1,024 equal bins that span [-1, 1]: (N, 1024)."""
    rows = [np.histogram(array, bins=_NUM_BINS, range=(-1, 1))[0] for array in scans.arrays]
    return np.stack(rows) / scans.arrays[0].size


def radial_power(scans: ScanSet) -> Array:
    """Power of each scan by spatial frequency, averaged over all directions: (N, F).

    Frequencies are physical: shells of width 1 / (longest side in mm), up to the Nyquist frequency of the
    coarsest axis. The mean is removed, and a Hann window along each axis keeps the edges of the field of
    view from leaking into all frequencies; so the borders count little.
    """
    shape, spacing = scans.grid.shape, scans.grid.spacing_mm
    window = np.ones(shape)
    squared = np.zeros((shape[0], shape[1], shape[2] // 2 + 1))
    for axis, (size, step) in enumerate(zip(shape, spacing, strict=True)):
        along = [1, 1, 1]
        along[axis] = -1
        window *= np.hanning(size + 2)[1:-1].reshape(along)
        last = axis == 2
        frequencies = np.fft.rfftfreq(size, step) if last else np.fft.fftfreq(size, step)
        squared += np.square(frequencies).reshape(along)
    width = 1 / max(size * step for size, step in zip(shape, spacing, strict=True))
    shell = np.rint(np.sqrt(squared) / width).astype(np.int64).ravel()
    num_shells = math.floor(0.5 / max(spacing) / width + 1e-9) + 1
    # A real scan's spectrum is stored by half: what lies inside stands for its mirror image too.
    times = np.full(squared.shape, 2)
    times[..., 0] = 1
    if shape[2] % 2 == 0:
        times[..., -1] = 1
    counts = np.bincount(shell, weights=times.ravel())[1:num_shells]
    rows = []
    for array in scans.arrays:
        power = np.square(np.abs(np.fft.rfftn((array - array.mean(dtype=np.float64)) * window)))
        sums = np.bincount(shell, weights=(times * power).ravel())[1:num_shells]
        rows.append(sums / np.maximum(counts, 1) / array.size)
    return np.stack(rows)


def wavelet_energies(scans: ScanSet) -> Array:
    """Place and direction of each scan's detail: (N, 38), from two levels of the Haar wavelet.

    log10 of the mean squared coefficient of the 7 detail subbands of each level (14 values); the same of all
    detail of a level within each octant of the volume (16); and the mean of the low-pass band there (8).
    Sides are cut to a multiple of 4 voxels.

    Args:
        scans: Scans of at least 4 voxels a side, as all that are read.
    """
    rows = []
    for array in scans.arrays:
        d, h, w = (size // 4 * 4 for size in array.shape)
        low = torch.from_numpy(array[:d, :h, :w]).double()[None, None]
        row = []
        for _ in range(2):
            bands = haar(low, (2, 3, 4))
            low, energy = bands[:, :1], bands[:, 1:].square()
            row.append(torch.log10(energy.mean(dim=(0, 2, 3, 4)) + _ENERGY_FLOOR))
            octants = functional.adaptive_avg_pool3d(energy.mean(dim=1, keepdim=True), 2)
            row.append(torch.log10(octants + _ENERGY_FLOOR).flatten())
        row.append(functional.adaptive_avg_pool3d(low, 2).flatten() / 8)
        rows.append(torch.cat(row).numpy())
    return np.stack(rows)


def coarse_voxels(scans: ScanSet) -> Array:
    """Each scan averaged over blocks, to at most 16 along an axis: (N, up to 4096)."""
    return _coarse(scans).reshape(len(scans), -1)


def _coarse(scans: ScanSet) -> Array:
    """Block means (N, d, h, w)."""
    d, h, w = (min(_COARSE, length) for length in scans.grid.shape)
    pooled = [
        functional.adaptive_avg_pool3d(volume[None], (d, h, w))[0]
        for volume in torch.from_numpy(scans.arrays)
    ]
    return torch.stack(pooled).double().numpy()


def mirrored_correlations(scans: ScanSet, records: ScanSet) -> Array:
    """Highest correlation of coarse voxels of each scan with each record, as it is or mirrored on one axis.

    Knows neither set beforehand, so it treats training and held-out records alike.

    Args:
        scans: M scans.
        records: N scans on the same grid.

    Returns:
        (M, N) in [-1, 1]; a constant scan correlates with none.
    """
    asked, known = _unit(_coarse(scans)), _coarse(records)
    # The blocks lie alike from either end, so mirrored means are the means of mirrored scans.
    views = [known] + [np.flip(known, axis) for axis in (1, 2, 3)]
    return np.max([asked @ _unit(view).T for view in views], axis=0)


def _unit(volumes: Array) -> Array:
    """Rows (N, d h w) whose inner products are correlations; of a constant volume zeros."""
    rows = volumes.reshape(len(volumes), -1)
    centred = rows - rows.mean(axis=1, keepdims=True)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)
