"""Chance-corrected agreement of ordinal answers, for many resamples of the cases at once.

Own code, because pingouin and krippendorff are GPL and irrCAC is not kept; scikit-learn's kappa,
krippendorff, and the tables of the irrCAC vignettes check it in the tests. All coefficients are 1 for full
agreement and 0 for what chance would give; they differ in what they take for chance.
"""

import numpy as np
import numpy.typing as npt

from anatogen.study.analysis.ratings import Floats

Weights = npt.NDArray[np.int64]
Counts = npt.NDArray[np.float64]


def counts_by_option(ratings: Floats, values: tuple[int, ...]) -> Counts:
    """How many raters gave each option to each case, (C, K).

    Args:
        ratings: (R, C), NaN where there is no answer.
        values: The K options, ascending.
    """
    return np.stack([(ratings == value).sum(axis=0) for value in values], axis=1).astype(np.float64)


def quadratic_weights(values: tuple[int, ...]) -> Floats:
    """How near two options are, (K, K): 1 for the same, 0 for the farthest, 1 - (difference / range)^2."""
    scale = np.array(values, dtype=np.float64)
    return 1 - np.square((scale[:, None] - scale) / (scale[-1] - scale[0]))


def exact_agreement(counts: Counts, weights: Weights) -> Floats:
    """Share of pairs of answers to the same case that are equal, (B,).

    Args:
        counts: (C, K) from `counts_by_option`.
        weights: (B, C), how often each case counts in each resample.
    """
    return _weighted_agreement(counts, weights, np.eye(counts.shape[1]))


def kappa_quadratic(ratings: Floats, weights: Weights) -> Floats:
    """Quadratic-weighted kappa (Cohen 1968), (B,); for more than two raters the mean over pairs (Light 1971).

    With quadratic weights kappa is 1 - E (x - y)^2 / (var x + var y + (mean x - mean y)^2), over the cases
    that both raters answered. NaN for pairs that gave one and the same answer throughout.

    Args:
        ratings: (R, C), NaN where there is no answer.
        weights: (B, C), how often each case counts in each resample.
    """
    kappas = []
    for first in range(len(ratings)):
        for second in range(first + 1, len(ratings)):
            both = np.isfinite(ratings[first]) & np.isfinite(ratings[second])
            x, y, w = ratings[first][both], ratings[second][both], weights[:, both].astype(np.float64)
            total = w.sum(axis=1)
            with np.errstate(invalid="ignore", divide="ignore"):
                mean_x, mean_y = w @ x / total, w @ y / total
                chance = w @ x**2 / total - mean_x**2 + w @ y**2 / total - mean_y**2 + (mean_x - mean_y) ** 2
                observed = w @ (x - y) ** 2 / total
                kappas.append(np.where(chance > 1e-12, 1 - observed / chance, np.nan))
    if not kappas:
        return np.full(len(weights), np.nan)
    table = np.stack(kappas)
    known = np.isfinite(table)
    # Pairs without a kappa are left out, as their number is told apart.
    return np.where(known, table, 0).sum(axis=0) / np.where(known.any(axis=0), known.sum(axis=0), np.nan)


def gwet_ac2(counts: Counts, weights: Weights, nearness: Floats) -> Floats:
    """Gwet's AC2 (AC1 with the identity as nearness), (B,), for any number of raters and missing answers.

    Gwet, "Computing inter-rater reliability and its variance in the presence of high agreement", 2008, and
    Handbook of Inter-Rater Reliability, 4th ed., 2014: chance is sum(nearness) / (K (K - 1)) times
    sum_k pi_k (1 - pi_k), which is *small* where nearly all answers are the same. So, unlike kappa, it does
    not fall to 0 when readers agree that nearly everything is good.

    Args:
        counts: (C, K) from `counts_by_option`.
        weights: (B, C), how often each case counts in each resample.
        nearness: (K, K), 1 on the diagonal.
    """
    num_options = counts.shape[1]
    raters = counts.sum(axis=1)
    rated = raters > 0
    w = weights[:, rated].astype(np.float64)
    observed = _weighted_agreement(counts, weights, nearness)
    prevalence = w @ (counts[rated] / raters[rated, None]) / w.sum(axis=1, keepdims=True)
    spread = (prevalence * (1 - prevalence)).sum(axis=1)
    chance = nearness.sum() / (num_options * (num_options - 1)) * spread
    return np.asarray((observed - chance) / (1 - chance))


def krippendorff_alpha(counts: Counts, weights: Weights) -> Floats:
    """Krippendorff's alpha with the ordinal metric, (B,), for any number of raters and missing answers.

    Krippendorff, Content Analysis, 2004, ch. 11: alpha = 1 - D_o / D_e from the matrix of coincidences. The
    distance of two options is the number of answers between them, the outer two counting half. NaN where all
    answers are the same.

    Args:
        counts: (C, K) from `counts_by_option`; cases with one answer don't count.
        weights: (B, C), how often each case counts in each resample.
    """
    raters = counts.sum(axis=1)
    paired = raters >= 2
    given, w = counts[paired], weights[:, paired].astype(np.float64)
    pairs = given[:, :, None] * given[:, None, :] - given[:, :, None] * np.eye(counts.shape[1])
    per_case = pairs / np.maximum(raters[paired] - 1, 1)[:, None, None]
    coincidences = np.tensordot(w, per_case, axes=1)
    totals = coincidences.sum(axis=2)
    below = np.cumsum(totals, axis=1) - totals / 2
    distance = np.square(below[:, :, None] - below[:, None, :])
    observed = (coincidences * distance).sum(axis=(1, 2))
    expected = (totals[:, :, None] * totals[:, None, :] * distance).sum(axis=(1, 2))
    with np.errstate(invalid="ignore", divide="ignore"):
        alpha = 1 - (totals.sum(axis=1) - 1) * observed / expected
    return np.where(expected > 1e-12, alpha, np.nan)


def _weighted_agreement(counts: Counts, weights: Weights, nearness: Floats) -> Floats:
    """Mean nearness of pairs of answers to the same case, over cases with two answers or more, (B,)."""
    raters = counts.sum(axis=1)
    paired = raters >= 2
    given, w = counts[paired], weights[:, paired].astype(np.float64)
    # Of r answers, each meets r - 1 others.
    near = (given * (given @ nearness - 1)).sum(axis=1) / (raters[paired] * (raters[paired] - 1))
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(w @ near / w.sum(axis=1))
