"""`experiments/race.py`: its entrants can be trained, and its threshold parts background from the rest."""

import numpy as np
import pytest
import race

from anatogen.config.presets import gan_settings, training_settings


@pytest.mark.parametrize("entrant", race.ENTRANTS.values(), ids=race.ENTRANTS)
def test_an_entrant_is_settings_of_its_preset(entrant):
    if entrant.preset is None:
        gan_settings(entrant.values)
    else:
        training_settings(entrant.preset, entrant.values)
    if entrant.mends is not None:
        shared = race.ENTRANTS[entrant.mends]
        assert (shared.preset, shared.values, shared.mends) == (entrant.preset, entrant.values, None)


def test_the_threshold_takes_fewest_voxels_for_the_other_kind():
    generator = np.random.default_rng(0)
    real = np.where(generator.random((3, 6, 6, 6)) < 0.4, -1, generator.uniform(-0.9, 1, (3, 6, 6, 6)))
    fuzzy = np.maximum(real + generator.normal(0, 0.08, real.shape), -1)

    def num_wrong(threshold):
        return int(((fuzzy < threshold) != (real == -1)).sum())

    found = race.background_threshold(real, fuzzy)
    assert num_wrong(found) == min(num_wrong(threshold) for threshold in np.linspace(-1, -0.5, 501))
    assert num_wrong(found) < num_wrong(-0.99)


def test_where_nothing_is_background_nothing_becomes_it():
    scans = np.zeros((1, 2, 2, 2), np.float32)
    assert race.background_threshold(scans, scans) == -1
