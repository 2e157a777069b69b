"""Samplers against data whose exact denoiser is known in closed form."""

import math
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from anatogen.diffusion import samplers
from anatogen.diffusion.schedule import CosineSchedule, LinearFlowSchedule, Schedule

SCHEDULES: dict[str, Schedule] = {"cosine": CosineSchedule(300), "linear_flow": LinearFlowSchedule()}
NUM_POINTS = 20_000


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

    def mean_variance(self, t: Tensor, schedule: Schedule) -> Tensor:
        """Mean over x_t of the variance of x_0 given x_t, by a fine grid instead of draws."""
        alpha, sigma = schedule.alpha_sigma(t.double())
        x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
        variance = alpha**2 * self.stds**2 + sigma**2
        density = (-((x[:, None] - alpha * self.means) ** 2) / (2 * variance)).exp() / variance.sqrt()
        weight = (density * self.weights).sum(1)
        return (weight * self.moments(x, t, schedule)[1]).sum() / weight.sum()


GAUSSIAN = GaussianMixture([1.0], [0.3], [0.5])
STANDARD = GaussianMixture([1.0], [0.0], [1.0])
MIXTURE = GaussianMixture([0.3, 0.7], [-0.8, 0.6], [0.25, 0.35])


def normal_quantiles(number: int) -> Tensor:
    """A standard normal without the scatter of draws."""
    ranks = (torch.arange(number, dtype=torch.float64) + 0.5) / number
    return torch.special.ndtri(ranks)


def run(
    name: str,
    data: GaussianMixture,
    schedule: Schedule,
    num_steps: int,
    analytic: bool = True,
    start: Tensor | None = None,
) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    start = normal_quantiles(NUM_POINTS) if start is None else start

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return data.moments(x, t[0], schedule)[0]

    times = schedule.sampling_times(num_steps)
    if name == "ddpm":
        times = samplers.ancestral_times(schedule, num_steps) if analytic else times
        return samplers.ddpm(
            predict,
            start,
            times,
            schedule,
            lambda: torch.randn(len(start), generator=generator, dtype=torch.float64),
            (lambda t: data.mean_variance(t, schedule)) if analytic else None,
        )
    sampler = getattr(samplers, name)
    return sampler(predict, start, times, schedule)


def assert_moments(x: Tensor, data: GaussianMixture, tolerance: float = 0.02) -> None:
    assert x.std().item() == pytest.approx(data.std, rel=tolerance)
    assert abs(x.mean().item() - data.mean) < tolerance * data.std


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["dpm_solver_pp", "heun"])
@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_second_order_samplers_keep_mean_and_std_in_25_steps(name, data, schedule):
    assert_moments(run(name, data, SCHEDULES[schedule], 25), data)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [2, 5, 10, 25, 100, 300])
def test_ddpm_with_the_best_variance_keeps_a_gaussian_in_any_number_of_steps(num_steps, schedule):
    if schedule == "linear_flow" and num_steps == 300:
        num_steps = 400  # this schedule has no number of levels: more is as good
    assert_moments(run("ddpm", GAUSSIAN, SCHEDULES[schedule], num_steps), GAUSSIAN)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [25, 100])
def test_ddpm_with_the_best_variance_keeps_a_mixture_from_25_steps(num_steps, schedule):
    assert_moments(run("ddpm", MIXTURE, SCHEDULES[schedule], num_steps), MIXTURE)


def test_ddpm_with_beta_tilde_keeps_the_data_at_a_step_for_every_level():
    assert_moments(run("ddpm", GAUSSIAN, SCHEDULES["cosine"], 300, analytic=False), GAUSSIAN, 0.03)
    assert_moments(run("ddpm", MIXTURE, SCHEDULES["cosine"], 300, analytic=False), MIXTURE, 0.03)


def test_ddpm_with_beta_tilde_loses_spread_in_few_steps_which_the_best_variance_cures():
    """The reason for `x_0_variance`."""
    assert run("ddpm", GAUSSIAN, SCHEDULES["cosine"], 10, analytic=False).std() < 0.95 * GAUSSIAN.std


@pytest.mark.parametrize("name", ["ddpm", "dpm_solver_pp", "heun"])
def test_samples_of_a_mixture_have_its_distribution(name):
    """Largest distance of the cumulative distributions (Kolmogorov); 20,000 draws have about 0.006."""
    x = run(name, MIXTURE, SCHEDULES["cosine"], 100).sort().values
    exact = (torch.special.ndtr((x[:, None] - MIXTURE.means) / MIXTURE.stds) * MIXTURE.weights).sum(1)
    assert (exact - torch.linspace(0, 1, len(x), dtype=torch.float64)).abs().max() < 0.02


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["ddim", "euler"])
@pytest.mark.parametrize("data", [GAUSSIAN, MIXTURE], ids=["gaussian", "mixture"])
def test_first_order_samplers_keep_mean_and_std_in_150_steps(name, data, schedule):
    assert_moments(run(name, data, SCHEDULES[schedule], 150), data)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("num_steps", [1, 2, 7, 25])
def test_ddim_on_a_gaussian_is_the_exact_product_of_its_linear_steps(num_steps, schedule):
    """On data N(0, c^2), x_0 = alpha c^2 / v x with v = alpha^2 c^2 + sigma^2; each step is a factor."""
    data, path = GaussianMixture([1.0], [0.0], [0.5]), SCHEDULES[schedule]
    factor = 1.0
    times = [float(t) for t in path.sampling_times(num_steps)]
    for t, s in pairwise(times):
        # What the sampler asks the network with is rounded to float32.
        asked = torch.tensor(t, dtype=torch.float32)
        a, b = (float(value) for value in path.alpha_sigma(asked.double()))
        gain = a * 0.25 / (a**2 * 0.25 + b**2)
        alpha_t, sigma_t = (float(value) for value in path.alpha_sigma(torch.tensor(t).double()))
        alpha_s, sigma_s = (float(value) for value in path.alpha_sigma(torch.tensor(s).double()))
        factor *= alpha_s * gain + sigma_s * (1 - alpha_t * gain) / sigma_t
    start = torch.tensor([-1.5, 0.2, 1.0], dtype=torch.float64)
    found = run("ddim", data, path, num_steps, start=start)
    assert torch.allclose(found, factor * start, rtol=1e-5)


@pytest.mark.parametrize("num_steps", [1, 2, 7, 25])
def test_euler_on_a_gaussian_is_the_exact_product_of_its_linear_steps(num_steps):
    """dx/dt = (alpha' x_0 + sigma' eps), both linear in x; here for the cosine schedule."""
    data, path = GaussianMixture([1.0], [0.0], [0.5]), SCHEDULES["cosine"]
    factor = 1.0
    times = path.sampling_times(num_steps)
    for t, s in pairwise(times):
        (a, b), (da, db) = path.alpha_sigma(t), path.derivatives(t)
        gain = a * 0.25 / (a**2 * 0.25 + b**2)
        factor *= float(1 + (s - t) * (da * gain + db * (1 - a * gain) / b))
    start = torch.tensor([-1.5, 0.2, 1.0], dtype=torch.float64)
    assert torch.allclose(run("euler", data, path, num_steps, start=start), factor * start, rtol=1e-5)


@pytest.mark.parametrize("num_steps", [25, 50, 100])
def test_ddim_shrinks_standard_normal_data_by_pi_squared_over_eight_steps(num_steps):
    x = run("ddim", STANDARD, SCHEDULES["cosine"], num_steps)
    assert 1 - x.std().item() == pytest.approx(math.pi**2 / (8 * num_steps), rel=0.1)


@pytest.mark.parametrize("num_steps", [1, 3, 25])
def test_euler_is_ddim_along_the_straight_lines_of_linear_flow(num_steps):
    start = normal_quantiles(1000)
    euler = run("euler", MIXTURE, SCHEDULES["linear_flow"], num_steps, start=start)
    ddim = run("ddim", MIXTURE, SCHEDULES["linear_flow"], num_steps, start=start)
    assert torch.allclose(euler, ddim, rtol=0, atol=1e-12)


def _order(name: str, schedule: Schedule, coarse: int) -> float:
    """Slope of log(error) against log(step), against the exact map of a Gaussian's ODE.

    From t = 1 to 0.1: the last step to 0 is the estimate of x_0 in all samplers, whose error is sigma^2, and
    the cosine schedule's offset makes that linear in t below 0.016.
    """
    data = GaussianMixture([1.0], [0.0], [0.5])
    alpha, sigma = schedule.alpha_sigma(torch.tensor([1.0, 0.1], dtype=torch.float64))
    # The ODE maps quantiles to quantiles: x_t keeps its place in N(0, v_t).
    before, after = (alpha**2 * 0.25 + sigma**2).sqrt().tolist()
    start = torch.ones(1, dtype=torch.float64)

    def predict(x: Tensor, t: Tensor) -> Tensor:
        return data.moments(x, t[0], schedule)[0]

    errors = []
    for num_steps in (coarse, 2 * coarse):
        times = torch.linspace(1, 0.1, num_steps + 1, dtype=torch.float64)
        found = getattr(samplers, name)(predict, start, times, schedule)
        errors.append(abs(found.item() - after / before))
    return math.log2(errors[0] / errors[1])


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["ddim", "euler"])
def test_first_order_samplers_converge_with_order_one(name, schedule):
    assert _order(name, SCHEDULES[schedule], 64) == pytest.approx(1, abs=0.15)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ["dpm_solver_pp", "heun"])
def test_second_order_samplers_converge_with_at_least_order_two(name, schedule):
    assert _order(name, SCHEDULES[schedule], 64) > 1.85


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        (name, schedule)
        for name in ("ddpm", "ddim", "dpm_solver_pp", "euler", "heun")
        for schedule in SCHEDULES
        if (name, schedule) != ("euler", "cosine")  # Euler's step of a curved path does not end at x_0
    ],
)
def test_one_step_is_the_estimate_from_pure_noise(name, schedule):
    """The last step of the samplers ends at x_0, however they got there."""
    path = SCHEDULES[schedule]
    x = run(name, GAUSSIAN, path, 1, analytic=False, start=normal_quantiles(100))
    wanted = GAUSSIAN.moments(normal_quantiles(100), torch.tensor(1.0), path)[0]
    assert torch.allclose(x, wanted, atol=1e-6)


@pytest.mark.parametrize("name", ["ddpm", "ddim", "dpm_solver_pp", "euler", "heun"])
def test_samplers_keep_shape_and_float32(name):
    schedule = SCHEDULES["linear_flow"]
    x = torch.randn(2, 3, 4, 5, 6, generator=torch.Generator().manual_seed(0))

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        assert t.shape == (2,) and t.dtype == torch.float32
        return 0.5 * x_t

    noise = [lambda: torch.zeros_like(x)] if name == "ddpm" else []
    found = getattr(samplers, name)(predict, x, schedule.sampling_times(4), schedule, *noise)
    assert found.shape == x.shape and found.dtype == torch.float32 and found.isfinite().all()


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_ddpm_ends_without_noise(schedule):
    """The result is the last estimate of x_0 itself: noise added to it would be seen."""
    x = torch.zeros(3)
    times = samplers.ancestral_times(SCHEDULES[schedule], 4)
    assert times[-2] == SCHEDULES[schedule].shortest_time
    estimate = torch.tensor([1.0, 2.0, 3.0])
    found = samplers.ddpm(
        lambda x_t, t: estimate, x, times, SCHEDULES[schedule], lambda: torch.ones(3), lambda t: t
    )
    assert torch.equal(found, estimate)
