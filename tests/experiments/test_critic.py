"""`experiments/critic.py`: it tells what differs, and nothing else, and no patient is in both halves."""

import critic
import numpy as np
import pytest

_PATIENTS = [f"patient_{index // 2}" for index in range(24)]


def scans(seed):
    """float32 (24, 8, 12, 8) of noise beside an exact background."""
    found = np.random.default_rng(seed).uniform(-1, 1, (24, 8, 12, 8)).astype(np.float32)
    found[:, :, :4] = -1
    return found


def test_scans_of_one_kind_are_told_apart_no_better_than_by_chance_and_the_answer_repeats():
    found, again = (critic.criticise(scans(0), scans(1), _PATIENTS) for _ in range(2))
    assert found.num_asked == 24
    assert found.accuracy.low < 0.5 < found.accuracy.high
    assert found.accuracy == again.accuracy and np.array_equal(found.saliency, again.saliency)


@pytest.mark.parametrize(
    "damage",
    [lambda x: np.where(x == -1, x, 0.7 * x), lambda x: np.where(x == -1, np.float32(-0.97), x)],
    ids=["less contrast", "fuzzy background"],
)
def test_damage_is_told(damage):
    assert critic.criticise(scans(0), damage(scans(1)), _PATIENTS).accuracy.low > 0.5


def test_no_patient_is_in_both_halves_and_real_and_synthetic_scans_are_as_many():
    patients = [str(index // 3) for index in range(24)]
    real = np.broadcast_to(np.arange(24, dtype=np.float32)[:, None, None, None], (24, 2, 2, 2))
    asked = []
    for x, labels in critic._halves(real, real + 100, patients, np.random.default_rng(0)):
        values = x[:, 0, 0, 0, 0].numpy()
        assert (values[labels == 1] < 100).all() and (values[labels == 0] >= 100).all()
        assert labels.mean() == 0.5
        asked.append({patients[int(value)] for value in values if value < 100})
    assert not asked[0] & asked[1]
