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
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from anatogen.downstream.experiment.results import ResultRow
from anatogen.downstream.experiment.trials import Trial
from anatogen.downstream.metrics import Metric, mean_over_labels

Array = npt.NDArray[np.float64]
Interval = tuple[float, float]
# One metric of one arm at one fraction: by seed, the mean of each patient's cases (P,), NaN where undefined.
# All scores of an experiment have the same patients in the same order.
Scores = Mapping[int, Array]

NUM_BOOTSTRAPS = 1000
# Up to 13 patients have fewer ways to flip their signs, which are then counted and not drawn.
NUM_SIGN_FLIPS = 10_000


@dataclass(frozen=True)
class MeanEstimate:
    """A mean over patients of their means over seeds.

    Attributes:
        mean: Mean of the patients that count.
        deviation: The bootstrap's standard deviation over patients, as in the paper.
        over_patients: 95% interval over patients.
        over_seeds: 95% interval over seeds and patients; None with one seed or one patient.
        num_seeds: Number of seeds, S.
        num_patients: Number of patients whose value is defined in every seed; the others are left out.
        num_undefined: Number of values of a patient and a seed that are undefined.
    """

    mean: float
    deviation: float
    over_patients: Interval
    over_seeds: Interval | None
    num_seeds: int
    num_patients: int
    num_undefined: int


@dataclass(frozen=True)
class ArmComparison:
    """The paired difference `arm` minus `other` at one fraction.

    Attributes:
        arm: The one arm.
        other: The other.
        fraction: Fraction of the labelled scans.
        difference: Over the seeds that both have, and the patients whose value is defined in all of them.
        p_corrected: p-value of the sign-flip test over patients, after Holm's correction over all comparisons
            made together.
    """

    arm: str
    other: str
    fraction: float
    difference: MeanEstimate
    p_corrected: float


def finished_trials(rows: Sequence[ResultRow]) -> set[Trial]:
    """The trials that have a row for every test case that any trial has."""
    cases: dict[Trial, set[str]] = {}
    for row in rows:
        cases.setdefault(row.trial, set()).add(row.case)
    everything = set().union(*cases.values())
    return {trial for trial, found in cases.items() if found == everything}


def scores_by_arm(
    rows: Sequence[ResultRow], metric: Metric, label: str | None = None
) -> Mapping[tuple[str, float], Scores]:
    """The scores of every (arm, fraction) that has a finished trial.

    Args:
        rows: Results of the experiment; trials that aren't finished are left out, since their cases may be
            the easy ones.
        metric: Name of the metric.
        label: Label that is scored; None for the mean over the labels for which the metric is defined.
    """
    values: dict[Trial, dict[str, list[float]]] = {}
    for row in rows:
        by_label = getattr(row, metric)
        value = mean_over_labels(by_label) if label is None else by_label[label]
        of_patient = values.setdefault(row.trial, {}).setdefault(row.patient, [])
        if value is not None:
            of_patient.append(value)
    scores: dict[tuple[str, float], dict[int, Array]] = {}
    for trial in sorted(finished_trials(rows)):
        means = [np.mean(found) if found else np.nan for _, found in sorted(values[trial].items())]
        scores.setdefault((trial.arm, trial.fraction), {})[trial.seed] = np.array(means)
    return scores


def estimate(values: Array, seed: int = 0) -> MeanEstimate | None:
    """The mean with both intervals, see the module.

    Args:
        values: Scores or paired differences of seeds and patients (S, P); NaN where undefined.
        seed: Random seed of the bootstrap.

    Returns:
        None where no patient is defined in every seed.
    """
    complete = _complete(values)
    num_seeds, num_patients = complete.shape
    if num_patients == 0:
        return None
    means = complete.mean(axis=0)
    mean = float(means.mean())
    deviation, over_patients = _bootstrap_over_patients(means, seed)
    margin = margin_over_seeds(complete)
    return MeanEstimate(
        mean=mean,
        deviation=deviation,
        over_patients=over_patients,
        over_seeds=None if margin is None else (mean - margin, mean + margin),
        num_seeds=num_seeds,
        num_patients=num_patients,
        num_undefined=int(np.isnan(values).sum()),
    )


def _complete(values: Array) -> Array:
    """The columns of values (S, P) that are defined in every seed."""
    return values[:, ~np.isnan(values).any(axis=0)]


def _bootstrap_over_patients(means: Array, seed: int) -> tuple[float, Interval]:
    """Standard deviation and 95% interval of the mean of patients (P,) that are drawn again."""
    from scipy.stats import bootstrap

    if len(means) == 1:
        return 0.0, (float(means[0]), float(means[0]))
    generator = np.random.default_rng([seed, len(means)])
    drawn = bootstrap(
        (means,), np.mean, n_resamples=NUM_BOOTSTRAPS, method="percentile", random_state=generator
    )
    interval = drawn.confidence_interval
    return float(drawn.standard_error), (float(interval.low), float(interval.high))


def margin_over_seeds(values: Array) -> float | None:
    """Half the width of the 95% interval for the mean if both seeds and patients were drawn anew.

    Every seed's network sees every patient, as every reader does in a reader study. With the mean squares of
    the two-way table MS_S (seeds), MS_P (patients) and MS_SP (what is left), the variance of the mean is

        (MS_S + max(MS_P - MS_SP, 0)) / (S P),   MS_S at least MS_SP,

    and the interval is Student's with Satterthwaite's degrees of freedom (Obuchowski and Rockette 1995;
    Hillis 2007, doi:10.1002/sim.2532, who leaves out the patients' part of them). It is never based on less
    variance than patients alone have. A bootstrap over seeds and patients was measured, and is too narrow
    with 3 seeds: drawn again, 3 seeds have 2/3 of their variance, and no Student's t (docs/downstream.md).

    Args:
        values: Values of seeds and patients (S, P), all finite.

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
    return float(t.ppf(0.975, freedom) * np.sqrt(total / (num_seeds * num_patients)))


def compare(
    scores: Mapping[tuple[str, float], Scores],
    pairs: Sequence[tuple[str, str]],
    seed: int = 0,
) -> list[ArmComparison]:
    """The paired differences of arms at every fraction that both have, corrected together.

    Args:
        scores: Scores of one metric by (arm, fraction).
        pairs: (arm, other arm).
        seed: Random seed of the bootstrap and the test.

    Returns:
        By pair, then fraction. Pairs without a common seed, or a patient defined in both, are left out.
    """
    from statsmodels.stats.multitest import multipletests

    found, p_values = [], []
    for arm, other in pairs:
        for fraction in sorted({fraction for _, fraction in scores}):
            one, two = scores.get((arm, fraction), {}), scores.get((other, fraction), {})
            differences = [one[number] - two[number] for number in one if number in two]
            difference = estimate(np.array(differences), seed) if differences else None
            if difference is not None:
                found.append((arm, other, fraction, difference))
                p_values.append(sign_flip_p(_complete(np.array(differences)).mean(axis=0), seed))
    corrected = multipletests(p_values, method="holm")[1]
    return [ArmComparison(*one, float(p)) for one, p in zip(found, corrected, strict=True)]


def sign_flip_p(differences: Array, seed: int = 0) -> float:
    """Two-sided p of a paired permutation test that two arms segment patients equally well.

    If they did, each patient's difference might as well have the other sign. The statistic is the mean, which
    is what is reported: Wilcoxon's ranks would play down the few patients whom one arm fails, and those are
    what few labels cost.

    Args:
        differences: Differences of the patients (P,), means over seeds.
        seed: Random seed of the signs, drawn 10,000 times; with at most 13 patients all are counted instead.
    """
    from scipy.stats import permutation_test

    if len(differences) == 1:
        return 1.0
    generator = np.random.default_rng([seed, len(differences)])
    found = permutation_test(
        (differences,),
        np.mean,
        permutation_type="samples",
        n_resamples=NUM_SIGN_FLIPS,
        random_state=generator,
    )
    return float(found.pvalue)
