"""From an experiment's results to estimates, paired differences and how sure they are.

Two things were drawn at random: the test patients, and in each seed the training scans, the initial weights
that were not pre-trained, and the order of steps. So there are two kinds of interval:

* **Over patients** (bootstrap, as the paper's): what other test patients would give *with these very
  networks*. Other training scans would give other networks; this interval knows nothing of that.
* **Over seeds and patients** (`margin_over_seeds`): what other training scans, seeds and test patients would
  give. Verdicts rest on it.

Neither covers what was done once: the generator, its synthetic scans, each arm's pre-training, this task.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from anatogen.downstream.experiment.results import ResultRow
from anatogen.downstream.metrics import Metric, mean_over_labels

Array = npt.NDArray[np.float64]

NUM_BOOTSTRAPS = 1000
NUM_SIGN_FLIPS = 10_000
_EXACT_BELOW = 13  # patients: 2^13 ways to flip their signs are counted, not drawn


@dataclass(frozen=True)
class Scores:
    """One metric of one arm at one fraction.

    Attributes:
        seeds: Of the S runs.
        values: float64 (S, P), the mean of each patient's cases; NaN where undefined. All scores of an
            experiment have the same patients in the same order.
    """

    seeds: tuple[int, ...]
    values: Array


@dataclass(frozen=True)
class Estimate:
    """A mean over patients of their means over seeds.

    Attributes:
        mean: Of the patients that count.
        deviation: The bootstrap's standard deviation over patients, as in the paper.
        low: Of the 95% interval over patients.
        high: Of the same.
        wide_low: Of the 95% interval over seeds and patients; None with one seed or one patient.
        wide_high: Of the same.
        num_seeds: S.
        num_patients: Those whose value is defined in every seed; the others are left out.
        num_undefined: Values of a patient and a seed that are undefined.
    """

    mean: float
    deviation: float
    low: float
    high: float
    wide_low: float | None
    wide_high: float | None
    num_seeds: int
    num_patients: int
    num_undefined: int


@dataclass(frozen=True)
class Comparison:
    """The paired difference `arm` minus `other` at one fraction.

    Attributes:
        arm: The one arm.
        other: The other.
        fraction: Of the labelled scans.
        difference: Over the seeds that both have, and the patients whose value is defined in all of them.
        p: Of the sign-flip test over patients.
        p_corrected: The same after Holm's correction over all comparisons made together.
    """

    arm: str
    other: str
    fraction: float
    difference: Estimate
    p: float
    p_corrected: float


def finished_units(rows: Sequence[ResultRow]) -> set[tuple[str, float, int]]:
    """The runs (arm, fraction, seed) that have a row for every test case that any run has."""
    cases: dict[tuple[str, float, int], set[str]] = {}
    for row in rows:
        cases.setdefault(row.unit, set()).add(row.case)
    everything = set().union(*cases.values())
    return {unit for unit, found in cases.items() if found == everything}


def scores_by_arm(
    rows: Sequence[ResultRow], metric: Metric, label: str | None = None
) -> dict[tuple[str, float], Scores]:
    """The scores of every (arm, fraction) that has a finished run.

    Args:
        rows: Of the experiment; runs that aren't finished are left out, since their cases may be the easy
            ones.
        metric: Which.
        label: Of which label; without it, the mean over the labels for which it is defined.
    """
    finished = finished_units(rows)
    columns = {name: column for column, name in enumerate(sorted({row.patient for row in rows}))}
    cases: dict[tuple[str, float, int], list[list[float]]] = {
        unit: [[] for _ in columns] for unit in sorted(finished)
    }
    for row in rows:
        if row.unit in finished:
            values = getattr(row, metric)
            value = mean_over_labels(values) if label is None else values[label]
            if value is not None:
                cases[row.unit][columns[row.patient]].append(value)
    table: dict[tuple[str, float], dict[int, list[float]]] = {}
    for (arm, fraction, seed), patients in cases.items():
        means = [float(np.mean(found)) if found else np.nan for found in patients]
        table.setdefault((arm, fraction), {})[seed] = means
    return {
        key: Scores(tuple(by_seed), np.array(list(by_seed.values()), np.float64))
        for key, by_seed in table.items()
    }


def estimate(values: Array, seed: int = 0) -> Estimate | None:
    """The mean with both intervals, see the module.

    Args:
        values: Of seeds and patients (S, P), scores or paired differences; NaN where undefined.
        seed: Of the bootstrap.

    Returns:
        None where no patient is defined in every seed.
    """
    complete = values[:, ~np.isnan(values).any(axis=0)]
    num_seeds, num_patients = complete.shape
    if num_patients == 0:
        return None
    means = complete.mean(axis=0)
    generator = np.random.default_rng([seed, num_patients])
    draws = means[generator.integers(num_patients, size=(NUM_BOOTSTRAPS, num_patients))].mean(axis=1)
    low, high = np.percentile(draws, [2.5, 97.5])
    mean = float(means.mean())
    margin = margin_over_seeds(complete)
    return Estimate(
        mean=mean,
        deviation=float(draws.std()),
        low=float(low),
        high=float(high),
        wide_low=None if margin is None else mean - margin,
        wide_high=None if margin is None else mean + margin,
        num_seeds=num_seeds,
        num_patients=num_patients,
        num_undefined=int(np.isnan(values).sum()),
    )


def margin_over_seeds(values: Array, level: float = 0.95) -> float | None:
    """Half the width of the interval for the mean if both seeds and patients were drawn anew.

    Every seed's network sees every patient, as every reader does in a reader study. With the mean squares of
    the two-way table MS_S (seeds), MS_P (patients) and MS_SP (what is left), the variance of the mean is

        (MS_S + max(MS_P - MS_SP, 0)) / (S P),   MS_S at least MS_SP,

    and the interval is Student's with Satterthwaite's degrees of freedom (Obuchowski and Rockette 1995;
    Hillis 2007, doi:10.1002/sim.2532, who leaves out the patients' part of them). It is never based on less
    variance than patients alone have. A bootstrap over seeds and patients was measured, and is too narrow
    with 3 seeds: drawn again, 3 seeds have 2/3 of their variance, and no Student's t (docs/downstream.md).

    Args:
        values: Of seeds and patients (S, P), all finite.
        level: Of confidence.

    Returns:
        None with one seed or one patient, which say nothing about others.
    """
    from scipy.stats import t

    num_seeds, num_patients = values.shape
    if min(num_seeds, num_patients) < 2:
        return None
    mean = values.mean()
    by_seed, by_patient = values.mean(axis=1, keepdims=True), values.mean(axis=0, keepdims=True)
    left = values - by_seed - by_patient + mean
    of_seeds = num_patients * float(np.square(by_seed - mean).sum()) / (num_seeds - 1)
    of_patients = num_seeds * float(np.square(by_patient - mean).sum()) / (num_patients - 1)
    of_both = float(np.square(left).sum()) / ((num_seeds - 1) * (num_patients - 1))
    if of_seeds > of_both:
        beyond = max(of_patients - of_both, 0.0)
        total = of_seeds + beyond
        freedom = total**2 / (of_seeds**2 / (num_seeds - 1) + beyond**2 / (num_patients - 1))
    else:
        total = max(of_patients, of_both)
        freedom = num_patients - 1
    return float(t.ppf((1 + level) / 2, freedom) * np.sqrt(total / (num_seeds * num_patients)))


def compare(
    scores: Mapping[tuple[str, float], Scores],
    pairs: Sequence[tuple[str, str]],
    seed: int = 0,
) -> list[Comparison]:
    """The paired differences of arms at every fraction that both have, corrected together.

    Args:
        scores: Of one metric.
        pairs: (arm, other arm).
        seed: Of the bootstrap and the test.

    Returns:
        By pair, then fraction. Pairs without a common seed, or a patient defined in both, are left out.
    """
    found = []
    for arm, other in pairs:
        for fraction in sorted({fraction for _, fraction in scores}):
            if (arm, fraction) not in scores or (other, fraction) not in scores:
                continue
            one, two = scores[arm, fraction], scores[other, fraction]
            common = [number for number in one.seeds if number in two.seeds]
            if not common:
                continue
            differences = (
                one.values[[one.seeds.index(number) for number in common]]
                - two.values[[two.seeds.index(number) for number in common]]
            )
            difference = estimate(differences, seed)
            if difference is not None:
                complete = differences[:, ~np.isnan(differences).any(axis=0)]
                p = sign_flip_p(complete.mean(axis=0), seed)
                found.append(Comparison(arm, other, fraction, difference, p, p))
    corrected = holm([comparison.p for comparison in found])
    return [replace(comparison, p_corrected=p) for comparison, p in zip(found, corrected, strict=True)]


def sign_flip_p(differences: Array, seed: int = 0) -> float:
    """Two-sided p of a paired permutation test that two arms segment patients equally well.

    If they did, each patient's difference might as well have the other sign. The statistic is the mean, which
    is what is reported: Wilcoxon's ranks would play down the few patients whom one arm fails, and those are
    what few labels cost.

    Args:
        differences: Of the patients (P,), means over seeds.
        seed: Of the random signs, drawn 10,000 times; with at most 13 patients all are counted instead.
    """
    num_patients = len(differences)
    if num_patients <= _EXACT_BELOW:
        numbers = np.arange(2**num_patients)[:, None]
        signs = 1.0 - 2.0 * (numbers >> np.arange(num_patients) & 1)
        extra = 0
    else:
        generator = np.random.default_rng([seed, num_patients])
        signs = 1.0 - 2.0 * generator.integers(0, 2, size=(NUM_SIGN_FLIPS, num_patients))
        extra = 1  # what was observed is one of the ways
    least = abs(differences.sum()) - 1e-12 * np.abs(differences).sum()
    as_large = int(np.sum(np.abs(signs @ differences) >= least))
    return (as_large + extra) / (len(signs) + extra)


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values corrected by Holm's step-down method, in the given order; each at most 1."""
    order = np.argsort(p_values, kind="stable")
    corrected = np.empty(len(p_values))
    largest = 0.0
    for rank, index in enumerate(order):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        corrected[index] = largest
    return [float(value) for value in corrected]
