"""Makes a whole run quick in tests: a machine of a known speed, small audits, figures of one colour."""

import numpy as np
import pytest

from anatogen.training.cost.probe import Measurement


class _NoCanvas:
    """Stands for matplotlib's canvas: what figures show is tested with them."""

    def __init__(self, figure: object) -> None:
        pass

    def draw(self) -> None:
        """Nothing."""

    def buffer_rgba(self) -> np.ndarray:
        """A black picture."""
        return np.zeros((8, 8, 4), np.uint8)


def make_quick(patch: pytest.MonkeyPatch) -> None:
    """Times no network, so that plans are equal; trains the audit's network for a moment; draws nothing."""
    measured = Measurement(
        seconds_per_step=0.01,
        steps_between=(0.01, 0.01),
        waited=0.0,
        num_parameters={"all": 1000},
        seconds_of_others={"encode": 0.01, "denoise": 0.01, "decode": 0.01},
        peak_gb=0.5,
    )
    for module in ("anatogen.planning.plan", "anatogen.training.cost.estimate"):
        patch.setattr(f"{module}.probe", lambda *_, **__: measured)
        patch.setattr(f"{module}.peak_memory_gb", lambda *_, **__: 0.5)
    patch.setattr("anatogen.evaluation.privacy.contrastive.ContrastiveSettings.num_steps", lambda *_: 10)
    patch.setattr("matplotlib.backends.backend_agg.FigureCanvasAgg", _NoCanvas)
