"""How often intervals of `anatogen.downstream` hold the truth, and how often its verdict errs.

    python experiments/verdict_errors.py

Draws tables of Dice from a model with known effects: a seed's draw of training scans and a patient's
difficulty, which all arms share, and what each arm makes of them. It needs no data and takes about an hour.
"""

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from anatogen.downstream.experiment.statistics import NUM_BOOTSTRAPS, Scores, compare, estimate
from anatogen.downstream.experiment.verdict import Outcome, outcomes

Array = npt.NDArray[np.float64]

NUM_PATIENTS = 40
FRACTIONS = (0.05, 0.1, 0.2, 1.0)
ARMS = ("scratch", "synthetic", "real", "shapes", "synthetic_and_real")


def table(generator: np.random.Generator, num_seeds: int, of_seeds: float) -> Array:
    """Differences (S, P) of two arms whose mean difference is 0; skewed over patients, as Dice is."""
    patients = generator.gamma(1.0, 1.0, size=(1, NUM_PATIENTS)) - 1
    noise = generator.normal(size=(num_seeds, NUM_PATIENTS))
    return of_seeds * generator.normal(size=(num_seeds, 1)) + 0.03 * patients + 0.02 * noise


def crossed_bootstrap(generator: np.random.Generator, values: Array) -> Array:
    """The rejected 95% interval: seeds and patients drawn again, each with replacement."""
    num_seeds, num_patients = values.shape
    seeds = generator.multinomial(num_seeds, np.full(num_seeds, 1 / num_seeds), NUM_BOOTSTRAPS)
    patients = generator.multinomial(num_patients, np.full(num_patients, 1 / num_patients), NUM_BOOTSTRAPS)
    draws = np.einsum("ns,sp,np->n", seeds / num_seeds, values, patients / num_patients, optimize=True)
    return np.percentile(draws, [2.5, 97.5])


def coverage(num_seeds: int, of_seeds: float, num_draws: int = 1000) -> tuple[float, float, float]:
    """Shares of 95% intervals that hold 0: over patients, crossed bootstrap, over seeds and patients."""
    generator = np.random.default_rng(0)
    held = np.zeros(3)
    for draw in range(num_draws):
        values = table(generator, num_seeds, of_seeds)
        found = estimate(values, draw)
        assert found is not None and found.over_seeds is not None
        pairs = found.over_patients, crossed_bootstrap(generator, values), found.over_seeds
        held += [low <= 0 <= high for low, high in pairs]
    over_patients, crossed_share, over_both = held / num_draws
    return over_patients, crossed_share, over_both


def claims(num_seeds: int, of_seeds: float, gain: float, num_draws: int = 200) -> tuple[float, float]:
    """Shares of experiments that claim a gain or harm of the synthetic arm: anywhere, and a gain at 5%."""
    generator = np.random.default_rng(0)
    anywhere = first = 0
    pairs = [(arm, "scratch") for arm in ARMS[1:]]
    for draw in range(num_draws):
        found = compare(dict(_scores(generator, num_seeds, of_seeds, gain)), pairs, draw)
        said = [said for item, said in zip(found, outcomes(found), strict=True) if item.arm == "synthetic"]
        anywhere += any(outcome in (Outcome.BETTER, Outcome.WORSE) for outcome in said)
        first += said[0] is Outcome.BETTER
    return anywhere / num_draws, first / num_draws


def _scores(
    generator: np.random.Generator, num_seeds: int, of_seeds: float, gain: float
) -> Iterator[tuple[tuple[str, float], Scores]]:
    patients = 0.04 * generator.normal(size=(1, NUM_PATIENTS))
    for fraction in FRACTIONS:
        shared = patients + 0.01 * generator.normal(size=(num_seeds, 1))
        for arm in ARMS:
            own = table(generator, num_seeds, of_seeds) / np.sqrt(2) + gain * (arm == "synthetic")
            yield (arm, fraction), dict(enumerate(0.8 + shared + own))


def main() -> None:
    """Prints both tables."""
    print("seeds  deviation   patients  crossed bootstrap  seeds and patients")
    for num_seeds in (2, 3, 5):
        for of_seeds in (0.0, 0.01, 0.03):
            held = coverage(num_seeds, of_seeds)
            print(f"{num_seeds:5}  {of_seeds:9}   " + "  ".join(f"{share:8.1%}" for share in held))
    print("seeds  deviation   no effect: claims   gain found at 5%: of 0.02, 0.04")
    for num_seeds in (3, 5, 10):
        for of_seeds in (0.003, 0.01, 0.03):
            shares = [claims(num_seeds, of_seeds, 0.0)[0]]
            shares += [claims(num_seeds, of_seeds, gain)[1] for gain in (0.02, 0.04)]
            print(f"{num_seeds:5}  {of_seeds:9}   " + "  ".join(f"{share:8.1%}" for share in shares))


if __name__ == "__main__":
    main()
