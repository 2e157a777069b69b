"""Statistics of nearest neighbours: are synthetic scans closer to training scans than unseen scans are?

Similarities (M, N) are of M scans to N candidates. The nearest of many is nearer than the nearest of few, so
sets of candidates that are compared have the same size.
"""

import math

import numpy as np
import numpy.typing as npt
from scipy.stats import betabinom, binomtest

from anatogen.report.intervals import Estimate, bootstrapped, percentile_interval

Values = npt.NDArray[np.floating]

# Share of unseen scans that the threshold may flag.
RATE = 0.05
_NUM_DRAWS = 200
_NUM_FOLDS = 5


def binomial_estimate(successes: int, number: int) -> Estimate:
    """A share with its exact 95% interval (Clopper and Pearson 1934)."""
    interval = binomtest(successes, number).proportion_ci()
    return Estimate(successes / number, float(interval.low), float(interval.high))


def upper_threshold(null: Values) -> float:
    """The value that a further draw from the null's distribution exceeds with probability 0.05 at most.

    The ceil(0.95 (n + 1))-th smallest value: for exchangeable draws the bound is exact at any n
    (conformal prediction, Vovk et al. 2005). It tends to the percentile as n grows. Below 19
    values there is no such threshold, and the largest value is returned.

    Args:
        null: (n,), at least one value.
    """
    return float(np.sort(null)[_rank(len(null)) - 1])


def _rank(number: int) -> int:
    # Rounded, or 0.95 x 20 = 19.000000000000004 would ask for one more.
    return min(math.ceil(round((number + 1) * (1 - RATE), 9)), number)


def exceedance_p_value(num_above: int, num_values: int, num_null: int) -> float:
    """The chance that as many further draws from the null's distribution, or more, exceed its threshold.

    The k-th smallest of n values leaves a share of the distribution above it that is itself random, a
    Beta(n + 1 - k, k); so the count is beta-binomial, and exact for exchangeable draws at any n. A binomial
    would take the threshold for known, and accuse too often where n is small.

    Args:
        num_above: Number of further draws above `upper_threshold` of the null.
        num_values: All of them.
        num_null: n, at least 1.
    """
    rank = _rank(num_null)
    return float(betabinom(num_values, num_null + 1 - rank, rank).sf(num_above - 1))


def share_above(values: Values, null: Values, seed: int) -> Estimate:
    """The share of values above the null's threshold; the bootstrap draws both sets anew.

    Args:
        values: (M,).
        null: (n,); also uncertain, and with few values more so.
        seed: Random seed of the draws.
    """
    generator = np.random.default_rng([seed, 1])
    draws = []
    for _ in range(_NUM_DRAWS * 5):
        drawn = generator.choice(values, len(values))
        threshold = upper_threshold(generator.choice(null, len(null)))
        draws.append(float((drawn > threshold).mean()))
    low, high = percentile_interval(draws)
    # Repeated values lower a bootstrapped maximum, and no draw shows more than the sample.
    value = float((values > upper_threshold(null)).mean())
    return Estimate(value, min(low, value), max(high, value))


def num_cross_fitted(null: Values, seed: int) -> int:
    """Number of null values above a threshold that was set without them.

    Args:
        null: (n,), at least 2.
        seed: Decides the folds.
    """
    order = np.random.default_rng([seed, 2]).permutation(len(null))
    flagged = 0
    for fold in np.array_split(order, min(_NUM_FOLDS, len(null))):
        kept = np.delete(null, fold)
        flagged += int((null[fold] > upper_threshold(kept)).sum())
    return flagged


def distance_ratios(similarities: Values) -> Values:
    """Distance to the nearest candidate over that to the second nearest; small for a copy of one scan.

    Args:
        similarities: (M, N), N >= 2, correlations; the distance is 1 minus it.

    Returns:
        (M,) in [0, 1]; 1 where both distances are 0.
    """
    second, first = np.partition(1 - similarities, 1, axis=1)[:, [1, 0]].T
    second, first = np.maximum(second, 0), np.maximum(first, 0)
    return np.where(second > 0, first / np.where(second > 0, second, 1), 1.0)


def closer_to_train(to_train: Values, to_holdout: Values, seed: int) -> tuple[Estimate, float]:
    """How often a scan's closest record is a training scan, when both sets of records have one size.

    The larger set is drawn down to the smaller one's size, again and again. The p-value is that of the
    one-sided binomial test against 1/2, twice the median over the draws, which is valid whatever their
    dependence (Rüger 1978).

    Args:
        to_train: (M, N) similarities to training scans.
        to_holdout: (M, n) similarities to held-out scans.
        seed: Random seed of the draws.

    Returns:
        The share, with its interval over synthetic scans; the p-value.
    """
    number, size = len(to_train), min(to_train.shape[1], to_holdout.shape[1])
    generator = np.random.default_rng([seed, 4])
    wins, p_values = np.zeros(number), []
    for _ in range(_NUM_DRAWS):
        train = to_train[:, generator.permutation(to_train.shape[1])[:size]].max(axis=1)
        holdout = to_holdout[:, generator.permutation(to_holdout.shape[1])[:size]].max(axis=1)
        wins += (train > holdout) / _NUM_DRAWS
        p_values.append(binomtest(int((train > holdout).sum()), number, 0.5, "greater").pvalue)
    return bootstrapped(wins, np.mean, generator), min(1.0, 2 * float(np.median(p_values)))


def unseen_closer_to_train(to_train: Values, to_holdout: Values, seed: int) -> Estimate:
    """The same share for held-out scans themselves: one half asks, the other is the unseen records.

    About 1/2 unless the two sets differ in themselves.

    Args:
        to_train: (n, N) similarities of held-out to training scans.
        to_holdout: (n, n) among held-out scans.
        seed: Random seed of the halves.

    Returns:
        The mean over random halves, and the interval in which 95% of them fall.
    """
    number = len(to_train)
    generator = np.random.default_rng([seed, 5])
    shares = []
    for _ in range(_NUM_DRAWS):
        order = generator.permutation(number)
        asking, records = order[: number // 2], order[number // 2 :]
        train = generator.permutation(to_train.shape[1])[: len(records)]
        records = records[: len(train)]
        closer = to_train[np.ix_(asking, train)].max(1) > to_holdout[np.ix_(asking, records)].max(1)
        shares.append(float(closer.mean()))
    return Estimate(float(np.mean(shares)), *percentile_interval(shares))


def memorised_share(train_to_synthetic: Values, train_to_holdout: Values, seed: int) -> Estimate:
    """The share of training scans with a synthetic scan closer than unseen scans come (Dar et al. 2025).

    The threshold is the 95th percentile of the training scans' nearest held-out correlations; as many
    synthetic as held-out scans are drawn each time, for the nearest of many is nearer. They are drawn without
    replacement, so the smaller of these sets is always the whole one.

    Args:
        train_to_synthetic: (N, M) similarities.
        train_to_holdout: (N, n) similarities.
        seed: Random seed of the draws.

    Returns:
        The mean, and the interval over draws of training, synthetic and held-out scans.
    """
    size = min(train_to_synthetic.shape[1], train_to_holdout.shape[1])
    generator = np.random.default_rng([seed, 6])
    shares = []
    for _ in range(_NUM_DRAWS):
        rows = generator.choice(len(train_to_holdout), len(train_to_holdout))
        synthetic = train_to_synthetic[:, generator.permutation(train_to_synthetic.shape[1])[:size]]
        holdout = train_to_holdout[:, generator.permutation(train_to_holdout.shape[1])[:size]]
        threshold = np.quantile(holdout[rows].max(axis=1), 0.95)
        shares.append(float((synthetic[rows].max(axis=1) > threshold).mean()))
    return Estimate(float(np.mean(shares)), *percentile_interval(shares))
