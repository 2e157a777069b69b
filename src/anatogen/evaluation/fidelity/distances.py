"""Distances between two sets of feature vectors: Fréchet, kernel (MMD), and neighbourhoods (PRDC).

Pure functions of float64 arrays. Features of slices come grouped by scan, (N, S, C), since slices of one scan
are alike: whatever resamples or pairs them does it by scan.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anatogen.core.devices import one_thread

Array = npt.NDArray[np.float64]

# Elements of a block of pairs of slices, so that memory stays below about 100 MB.
_BLOCK = 4_000_000


@one_thread()
def frechet_distance(x: Array, y: Array) -> float:
    """Squared Fréchet distance of the Gaussians that fit two sets (Heusel et al. 2017, "FID").

    |mu_x - mu_y|^2 + Tr(S_x + S_y - 2 (S_x S_y)^(1/2)) with unbiased covariances S. The last trace is the
    nuclear norm of Xc Yc^T / sqrt((n - 1)(m - 1)), Xc and Yc centred: no matrix root is taken, so covariances
    may lack rank. Biased upwards by about c / n: compare values at equal n only.

    Args:
        x: (n, d), n at least 2.
        y: (m, d), m at least 2.
    """
    # torch's linear algebra takes as many threads as it is told, NumPy's as many as there are cores.
    u, v = (torch.from_numpy(np.asarray(side, np.float64)) for side in (x, y))
    root_u, root_v = _covariance_root(u), _covariance_root(v)
    cross = torch.linalg.svdvals(root_u @ root_v.T).sum()
    means = (u.mean(dim=0) - v.mean(dim=0)).square().sum()
    # The sum is a difference of large numbers: rounding must not make a distance negative.
    return max(float(means + root_u.square().sum() + root_v.square().sum() - 2 * cross), 0.0)


def _covariance_root(x: Tensor) -> Tensor:
    """R (min(n, d), d) with R^T R the covariance of x (n, d)."""
    centred = (x - x.mean(dim=0)) / math.sqrt(len(x) - 1)
    return centred if len(x) <= x.shape[1] else torch.linalg.qr(centred, mode="r").R


def polynomial_gram(x: Array) -> Array:
    """The cubic kernel (u.v / d + 1)^3 between scans: (N, N), each value the mean over pairs of their slices.

    `unbiased_mmd` of it is the kernel distance of Binkowski et al. 2018 ("KID"), but for pairs of slices of
    one scan, which are left out: they are no independent draws.

    Args:
        x: (N, S, d): S slices of each scan.
    """
    num_scans, num_slices, d = x.shape
    flat = np.asarray(x, np.float64).reshape(-1, d)
    gram = np.empty((num_scans, num_scans))
    step = max(1, _BLOCK // (num_slices * len(flat)))
    for first in range(0, num_scans, step):
        rows = flat[first * num_slices : (first + step) * num_slices]
        kernel = rows @ flat.T / d + 1
        kernel *= kernel * kernel
        blocks = kernel.reshape(-1, num_slices, num_scans, num_slices)
        gram[first : first + step] = blocks.mean(axis=(1, 3))
    return gram


def rbf_gram(x: Array, bandwidth: float) -> Array:
    """The kernel exp(-|u - v|^2 / (2 bandwidth^2)) between all pairs of x (N, d): (N, N)."""
    kernel: Array = np.exp(-squared_distances(x, x) / (2 * bandwidth**2))
    return kernel


def median_bandwidth(x: Array) -> float:
    """The median distance between two different vectors of x (N, d), N at least 2 (Gretton et al. 2012).

    1 where all are equal.
    """
    distances = np.sqrt(squared_distances(x, x)[np.triu_indices(len(x), 1)])
    return float(np.median(distances)) or 1.0


def unbiased_mmd(gram: Array, x: npt.NDArray[np.int64], y: npt.NDArray[np.int64]) -> float:
    """Unbiased squared maximum mean discrepancy of two sets (Gretton et al. 2012, lemma 6).

    The mean of the kernel over pairs within x, plus that within y, minus twice that between them. Zero on
    average for sets of equal distribution, whatever their sizes; may be negative.

    Args:
        gram: (T, T), the kernel between all pairs.
        x: Indices of the one set's members in it, at least 2.
        y: Those of the other.
    """
    within = 0.0
    for members in (x, y):
        inner = gram[np.ix_(members, members)]
        within += (inner.sum() - np.trace(inner)) / (len(members) * (len(members) - 1))
    return float(within - 2 * gram[np.ix_(x, y)].mean())


class Prdc(NamedTuple):
    """Each in [0, 1], but density, whose expectation is 1 for sets of equal distribution.

    Attributes:
        precision: Part of the synthetic vectors within the neighbourhood of a real one.
        recall: Part of the real vectors within the neighbourhood of a synthetic one.
        density: In how many real neighbourhoods a synthetic vector lies, divided by k.
        coverage: Part of the real vectors whose neighbourhood holds a synthetic one.
    """

    precision: float
    recall: float
    density: float
    coverage: float


def prdc_of_distances(
    distances: Array, real: npt.NDArray[np.int64], fake: npt.NDArray[np.int64], k: int = 5
) -> Prdc:
    """Precision and recall (Kynkäänniemi et al. 2019), density and coverage (Naeem et al. 2020).

    A vector's neighbourhood is the ball that reaches to its k-th nearest neighbour in its own set.

    Args:
        distances: (T, T) between all vectors, or any increasing function of them; zeros on the diagonal.
        real: Indices of the real vectors, more than k.
        fake: Indices of the synthetic ones, more than k.
        k: Neighbours.
    """
    # A vector is its own nearest, so the k-th neighbour stands at place k.
    real_radius = np.partition(distances[np.ix_(real, real)], k, axis=1)[:, k]
    fake_radius = np.partition(distances[np.ix_(fake, fake)], k, axis=1)[:, k]
    between = distances[np.ix_(real, fake)]
    inside = between <= real_radius[:, None]
    return Prdc(
        precision=float(inside.any(axis=0).mean()),
        recall=float((between <= fake_radius[None, :]).any(axis=1).mean()),
        density=float(inside.sum() / (k * len(fake))),
        coverage=float(inside.any(axis=1).mean()),
    )


def squared_distances(x: Array, y: Array) -> Array:
    """|u - v|^2 between all rows of x (n, d) and y (m, d): (n, m), never below 0; exactly 0 for a row itself.

    Args:
        x: Any real dtype.
        y: Any real dtype.
    """
    # Centred first, since the squares of a common offset would swallow the digits of the distances.
    centre = np.mean(x, axis=0, dtype=np.float64)
    u, v = x - centre, y - centre
    squares = np.square(u).sum(axis=1)[:, None] + np.square(v).sum(axis=1)[None, :] - 2 * (u @ v.T)
    if x is y:
        np.fill_diagonal(squares, 0)
    return np.maximum(squares, 0)


def histogram_distance(x: Array, y: Array) -> float:
    """Wasserstein-1 distance of two distributions of intensity, in units of intensity.

    Args:
        x: (n, bins), one histogram of a scan a row, over equal bins that span [-1, 1].
        y: (m, bins), likewise.
    """
    gap = np.cumsum(x.mean(axis=0) / x.mean(axis=0).sum() - y.mean(axis=0) / y.mean(axis=0).sum())
    return float(np.abs(gap).sum() * 2 / x.shape[1])


def spectrum_distance(x: Array, y: Array) -> float:
    """Mean |log10| of the ratio of two sets' mean power, over all frequencies: 0.3 is a factor of 2.

    Args:
        x: (n, frequencies), one radial power spectrum of a scan a row.
        y: (m, frequencies), likewise.
    """
    # Far below any scan's noise; for constant scans, which have no power.
    floor = 1e-12
    return float(np.abs(np.log10((x.mean(axis=0) + floor) / (y.mean(axis=0) + floor))).mean())
