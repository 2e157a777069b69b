"""What networks predict, and back: round trips for any amount of signal and noise."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from anatogen.diffusion import parameterization
from anatogen.diffusion.process import x_0_predictor
from anatogen.diffusion.schedule import CosineSchedule, LinearFlowSchedule

KINDS = ["eps", "x_0", "v", "velocity"]


def _draw(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(3, 2, 4, 4, 4, generator=generator, dtype=torch.float64) for _ in range(2))


@pytest.mark.parametrize("kind", KINDS)
@given(seed=st.integers(0, 2**31), angle=st.floats(0.02, 1.55), length=st.floats(0.3, 3))
def test_a_perfect_output_gives_back_x_0_and_eps(kind, seed, angle, length):
    x_0, eps = _draw(seed)
    # v is for variance-preserving processes only.
    length = 1.0 if kind == "v" else length
    alpha, sigma = (length * f(torch.tensor(angle, dtype=torch.float64)) for f in (torch.cos, torch.sin))
    x_t = alpha * x_0 + sigma * eps
    output = parameterization.target(kind, x_0, eps, alpha, sigma)
    found = parameterization.to_x_0(kind, output, x_t, alpha, sigma)
    assert torch.allclose(found, x_0, atol=1e-9)
    assert torch.allclose(parameterization.to_eps(found, x_t, alpha, sigma), eps, atol=1e-7)


def test_v_is_the_derivative_of_x_t_along_the_circle():
    """x_t = cos(phi) x_0 + sin(phi) eps, so v = dx / dphi (Salimans and Ho 2022)."""
    x_0, eps = _draw(0)
    phi, h = torch.tensor(0.7, dtype=torch.float64), 1e-6
    ahead, behind = ((phi + d).cos() * x_0 + (phi + d).sin() * eps for d in (h, -h))
    v = parameterization.target("v", x_0, eps, phi.cos(), phi.sin())
    assert torch.allclose(v, (ahead - behind) / (2 * h), atol=1e-8)


@pytest.mark.parametrize(
    ("kind", "schedule"),
    [(kind, CosineSchedule(300)) for kind in KINDS]
    + [(kind, LinearFlowSchedule()) for kind in ("eps", "x_0", "velocity")],
)
def test_the_predictor_of_a_perfect_network_is_x_0_at_each_item_s_own_time(kind, schedule):
    x_0, eps = _draw(1)
    t = torch.tensor([0.1, 0.5, 0.9])
    alpha, sigma = (value.view(3, 1, 1, 1, 1) for value in schedule.alpha_sigma(t.double()))
    predict = x_0_predictor(
        lambda x_t, times: parameterization.target(kind, x_0, eps, alpha, sigma), schedule, kind
    )
    assert torch.allclose(predict(alpha * x_0 + sigma * eps, t), x_0, atol=1e-9)


def test_clipping_bounds_the_predicted_x_0():
    x_0, _ = _draw(2)
    predict = x_0_predictor(lambda x_t, t: 9 * x_0, CosineSchedule(300), "x_0", clip_x_0=1.0)
    assert torch.equal(predict(x_0, torch.full((3,), 0.5)), (9 * x_0).clamp(-1, 1))
