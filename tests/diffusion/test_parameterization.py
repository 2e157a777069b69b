"""What networks predict, and back: round trips for any amount of signal and noise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anatogen.diffusion import parameterization
from anatogen.diffusion.process import x_0_predictor
from anatogen.diffusion.schedule import CosineSchedule, LinearFlowSchedule


def _draw(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(3, 2, 4, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))


def _perfect(kind: str, x_0: torch.Tensor, eps: torch.Tensor) -> torch.Tensor:
    return {"eps": eps, "velocity": eps - x_0}[kind]


@pytest.mark.parametrize("kind", ["eps", "velocity"])
@given(seed=st.integers(0, 2**31), angle=st.floats(0.02, 1.55), length=st.floats(0.3, 3))
def test_a_perfect_output_gives_back_x_0_and_eps(kind, seed, angle, length):
    x_0, eps = _draw(seed)
    alpha, sigma = (length * f(torch.tensor(angle, dtype=torch.float64)) for f in (torch.cos, torch.sin))
    x_t = alpha * x_0 + sigma * eps
    found = parameterization.to_x_0(kind, _perfect(kind, x_0, eps), x_t, alpha, sigma)
    assert torch.allclose(found, x_0, atol=1e-9)
    assert torch.allclose(parameterization.to_eps(found, x_t, alpha, sigma), eps, atol=1e-7)


@pytest.mark.parametrize("kind", ["eps", "velocity"])
@pytest.mark.parametrize("schedule", [CosineSchedule(), LinearFlowSchedule()])
def test_the_predictor_of_a_perfect_network_is_x_0_at_each_item_s_own_time(kind, schedule):
    x_0, eps = _draw(1)
    t = torch.tensor([0.1, 0.5, 0.9])
    alpha, sigma = (value.view(3, 1, 1, 1, 1) for value in schedule.alpha_sigma(t.double()))
    predict = x_0_predictor(lambda x_t, times: _perfect(kind, x_0, eps), schedule, kind)
    assert torch.allclose(predict(alpha * x_0 + sigma * eps, t), x_0, atol=1e-9)


def test_clipping_bounds_the_predicted_x_0():
    x_0, _ = _draw(2)
    schedule, t = CosineSchedule(300), torch.full((3,), 0.5)
    network = torch.zeros_like  # says that there is no noise: x_0 is x_t / alpha
    alpha = schedule.alpha_sigma(t.double())[0][0]
    predict = x_0_predictor(lambda x_t, times: network(x_t), schedule, "eps", clip_x_0=1.0)
    assert torch.allclose(predict(9 * x_0, t), (9 * x_0 / alpha).clamp(-1, 1))
