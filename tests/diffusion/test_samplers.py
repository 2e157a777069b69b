"""Samplers against data whose exact denoiser is known in closed form."""

import math

import pytest
import torch
from torch import Tensor

from anatogen.diffusion import samplers
from anatogen.diffusion.schedule import CosineSchedule, LinearFlowSchedule, Schedule

SCHEDULES = {"cosine": CosineSchedule(300), "linear_flow": LinearFlowSchedule()}
NUM_POINTS = 200_000


class GaussianMixture:
    """1D mixture of Gaussians with its posterior mean and variance of x_0 given x_t."""

    def __init__(self, weights: list[float], means: list[float], stds: list[float]) -> None:
        self.weights, self.means, self.stds = (
            torch.tensor(values, dtype=torch.float64) for values in (weights, means, stds)
        )

    @property
    def mean(self) -> float:
        return float((self.weights * self.means).sum())

    @property
    def std(self) -> float:
        second = (self.weights * (self.stds**2 + self.means**2)).sum()
        return math.sqrt(float(second) - self.mean**2)

    def moments(self, x: Tensor, t: Tensor, schedule: Schedule) -> tuple[Tensor, Tensor]:
        alpha, sigma = (value.item() for value in schedule.alpha_sigma(t.double()))
        x = x.double()[:, None]
        variance = alpha**2 * self.stds**2 + sigma**2
        log_density = -((x - alpha * self.means) ** 2) / (2 * variance) - variance.log() / 2
        share = (log_density + self.weights.log()).softmax(1)
        mean = self.means + alpha * self.stds**2 / variance * (x - alpha * self.means)
        spread = self.stds**2 * sigma**2 / variance
        x_0 = (share * mean).sum(1)
        return x_0, (share * (spread + mean**2)).sum(1) - x_0**2


GAUSSIAN = GaussianMixture([1.0], [0.3], [0.5])
MIXTURE = GaussianMixture([0.3, 0.7], [-0.8, 0.6], [0.25, 0.35])


def run(name: str, data: GaussianMixture, schedule: Schedule, num_steps: int, analytic: bool = True) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(NUM_POINTS, generator=generator, dtype=torch.float64)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return data.moments(x, t[0], schedule)[0]

    times = schedule.sampling_times(num_steps)
    if name != "ddpm":
        return getattr(samplers, name)(predict, start, times, schedule)

    def x_0_variance(t: Tensor) -> Tensor:
        alpha, sigma = schedule.alpha_sigma(t)
        draws = torch.Generator().manual_seed(1)
        which = torch.multinomial(data.weights, NUM_POINTS, replacement=True, generator=draws)
        x_0 = data.means[which] + data.stds[which] * torch.randn(NUM_POINTS, generator=draws).double()
        x_t = alpha * x_0 + sigma * torch.randn(NUM_POINTS, generator=draws).double()
        return data.moments(x_t, t, schedule)[1].mean()

    return samplers.ddpm(
        predict,
        start,
        times,
        schedule,
        lambda: torch.randn(NUM_POINTS, generator=generator, dtype=torch.float64),
        x_0_variance if analytic else None,
    )


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm_solver_pp", "euler", "heun"])
@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_mean_and_std_are_those_of_the_data(name, data, schedule):
    x = run(name, data, SCHEDULES[schedule], 25)
    print(name, schedule, (x.mean() - data.mean) / data.std, x.std() / data.std)
    assert x.std() == pytest.approx(data.std, rel=0.02)
    assert abs(x.mean() - data.mean) < 0.02 * data.std
