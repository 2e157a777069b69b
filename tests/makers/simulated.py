"""Results of experiments that were never run, with effects that are known."""

from collections.abc import Mapping, Sequence

import numpy as np

from anatogen.downstream.experiment.results import ResultRow

ARMS = ("scratch", "synthetic", "real", "shapes", "synthetic_and_real")
FRACTIONS = (0.05, 0.1, 0.2, 1.0)
_LEVEL = {0.05: 0.80, 0.1: 0.84, 0.2: 0.865, 1.0: 0.89}


def simulated_rows(
    gains: Mapping[str, Sequence[float]],
    *,
    fractions: Sequence[float] = FRACTIONS,
    num_seeds: int = 3,
    num_patients: int = 40,
    seed_deviation: float = 0.001,
    seed: int = 0,
) -> list[ResultRow]:
    """Rows whose Dice is the fraction's level, plus a gain, a seed's and a patient's deviation, and noise.

    Args:
        gains: Of Dice by arm, one for each fraction.
        fractions: Of labelled scans.
        num_seeds: Runs of each arm and fraction; a seed's draw of training scans moves all arms alike.
        num_patients: Of the test set, one case each.
        seed_deviation: Of a run from its arm's mean, standard deviation.
        seed: Of all that is random.
    """
    generator = np.random.default_rng(seed)
    # A few patients are hard for everyone.
    patients = generator.gamma(2.0, 0.012, num_patients) - 0.024
    subsets = generator.normal(scale=0.01, size=(len(fractions), num_seeds))
    rows = []
    for arm, gain in gains.items():
        for place, fraction in enumerate(fractions):
            for number in range(num_seeds):
                run = gain[place] + subsets[place, number] + generator.normal(scale=seed_deviation)
                for patient, hard in enumerate(patients):
                    dice = _LEVEL[fraction] + run - hard + generator.normal(scale=0.012, size=2)
                    dice = np.clip(dice + np.array([0.008, -0.008]), 0, 1).round(6)
                    distance = np.clip(3.2 - 12 * (dice - 0.7), 1, None).round(6)
                    rows.append(
                        ResultRow(
                            arm=arm,
                            fraction=fraction,
                            seed=number,
                            num_training_scans=max(round(100 * fraction), 1),
                            case=f"case_{patient:05d}",
                            patient=f"patient_{patient:05d}",
                            dice=_by_label(dice),
                            surface_dice=_by_label(np.clip(dice + 0.07, 0, 1)),
                            hausdorff95_mm=_by_label(distance),
                        )
                    )
    return rows


def _by_label(values) -> dict[str, float | None]:
    return {str(label): float(value) for label, value in enumerate(values, start=1)}
