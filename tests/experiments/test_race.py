"""`experiments/race.py`: its entrants can be trained."""

import pytest
import race

from anatogen.config.presets import gan_settings, training_settings


@pytest.mark.parametrize("entrant", race.ENTRANTS.values(), ids=race.ENTRANTS)
def test_an_entrant_is_settings_of_its_preset(entrant):
    if entrant.preset is None:
        gan_settings(entrant.values)
    else:
        training_settings(entrant.preset, entrant.values)
