"""The forward process, its posterior and its loss, against their definitions."""

import pytest
import torch

from anatogen.diffusion.process import add_noise, denoising_loss, mean_x_0_error, posterior
from anatogen.diffusion.schedule import CosineSchedule, LinearFlowSchedule

SCHEDULES = {"cosine": CosineSchedule(300), "linear_flow": LinearFlowSchedule()}


def _scalar(value: float) -> torch.Tensor:
    return torch.tensor(value, dtype=torch.float64)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_noised_latents_have_the_moments_of_the_forward_process(schedule):
    generator = torch.Generator().manual_seed(0)
    x_0 = torch.tensor([0.5, -2.0, 1.0])[:, None].expand(3, 200_000)
    eps = torch.randn(3, 200_000, generator=generator)
    t = torch.tensor([0.2, 0.6, 1.0])
    alpha, sigma = schedule.alpha_sigma(t.double())
    x_t = add_noise(x_0, eps, t, schedule)
    assert x_t.dtype == torch.float32
    assert torch.allclose(x_t.mean(1), (alpha * x_0[:, 0]).float(), atol=0.01)
    assert torch.allclose(x_t.std(1), sigma.float(), atol=0.01)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
@pytest.mark.parametrize(("t", "s"), [(1.0, 0.9), (0.9, 0.3), (0.5, 0.49), (0.2, 0.01), (0.7, 0.0)])
def test_the_posterior_is_gaussian_conditioning(schedule, t, s):
    """Prior of x_s given x_0 times likelihood of x_t given x_s, in closed form for scalars.

    Precision and information of the two factors add up: an independent way to the same numbers.
    """
    x_0, x_t = _scalar(0.7), _scalar(-1.3)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = (schedule.alpha_sigma(_scalar(time)) for time in (t, s))
    mean, variance, weight = posterior(x_0, x_t, _scalar(t), _scalar(s), schedule)
    if s == 0:
        wanted_mean, wanted_variance = x_0, _scalar(0.0)
    else:
        step = alpha_t / alpha_s
        noise = sigma_t**2 - step**2 * sigma_s**2
        wanted_variance = 1 / (1 / sigma_s**2 + step**2 / noise)
        wanted_mean = wanted_variance * (alpha_s * x_0 / sigma_s**2 + step * x_t / noise)
    assert float(mean) == pytest.approx(float(wanted_mean), rel=1e-9)
    assert float(variance) == pytest.approx(float(wanted_variance), rel=1e-9, abs=1e-15)
    shifted = posterior(x_0 + 1, x_t, _scalar(t), _scalar(s), schedule)[0]
    assert float(shifted - mean) == pytest.approx(float(weight), rel=1e-9)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_posterior_of_draws_is_that_of_draws(schedule):
    """Brute force: draw x_s and x_t forward, regress x_s on x_t for one x_0."""
    generator = torch.Generator().manual_seed(0)
    x_0, t, s = _scalar(0.4), _scalar(0.7), _scalar(0.4)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = schedule.alpha_sigma(t), schedule.alpha_sigma(s)
    step = alpha_t / alpha_s
    noise = torch.randn(2, 1_000_000, generator=generator, dtype=torch.float64)
    x_s = alpha_s * x_0 + sigma_s * noise[0]
    x_t = step * x_s + (sigma_t**2 - step**2 * sigma_s**2).sqrt() * noise[1]
    near = (x_t - 0.5).abs() < 0.05
    mean, variance, _ = posterior(x_0, _scalar(0.5), t, s, schedule)
    assert x_s[near].mean().item() == pytest.approx(float(mean), abs=0.01)
    assert x_s[near].var().item() == pytest.approx(float(variance), rel=0.05)


@pytest.mark.parametrize("schedule", SCHEDULES.values(), ids=SCHEDULES)
def test_the_loss_is_the_distance_to_the_noise(schedule):
    generator = torch.Generator().manual_seed(0)
    x_0, eps = (torch.randn(2, 1, 4, 4, 4, generator=generator) for _ in range(2))
    t = torch.tensor([0.3, 0.8])
    alpha, sigma = (value.view(2, 1, 1, 1, 1).float() for value in schedule.alpha_sigma(t.double()))
    asked = []

    def network(x_t: torch.Tensor, times: torch.Tensor) -> torch.Tensor:
        asked.append((x_t, times))
        return torch.ones_like(x_t)

    found = denoising_loss(network, x_0, eps, t, schedule)
    assert torch.allclose(found, (1 - eps).abs().mean())
    assert torch.allclose(asked[0][0], alpha * x_0 + sigma * eps) and torch.equal(asked[0][1], t)


def test_the_error_of_the_best_estimate_is_the_posterior_variance():
    """Data N(0, 1): x_0 given x_t has variance sigma^2 / (alpha^2 + sigma^2)."""
    schedule = SCHEDULES["linear_flow"]
    x_0 = torch.randn(4, 1, 24, 24, 24, generator=torch.Generator().manual_seed(0))

    def predict(x_t: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        alpha, sigma = schedule.alpha_sigma(t)
        return alpha / (alpha**2 + sigma**2) * x_t

    for t in (0.1, 0.5, 1.0):
        found = mean_x_0_error(predict, x_0, t, schedule, torch.Generator().manual_seed(1))
        assert found == pytest.approx(t**2 / ((1 - t) ** 2 + t**2), rel=0.03)
