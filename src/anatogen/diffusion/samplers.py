"""Samplers: from noise to a clean latent in `len(times) - 1` steps.

Each is a function over a predictor of x_0 (`process.x_0_predictor`), a start x, and times that fall from 1 to
0. x is float (B, ...); the predictor gets x and times (B,) and returns the estimated x_0 of x's shape.
"""

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from anatogen.diffusion.parameterization import to_eps
from anatogen.diffusion.process import Network, posterior
from anatogen.diffusion.schedule import Schedule


def ddpm(
    predict_x_0: Network,
    x: Tensor,
    times: Tensor,
    schedule: Schedule,
    noise: Callable[[], Tensor],
    x_0_variance: Callable[[Tensor], Tensor] | None = None,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2) over any subset of the times.

    Args:
        predict_x_0: Estimates x_0.
        x: Standard normal noise.
        times: (num_steps + 1,) float64 from 1 to 0, best from `ancestral_times`.
        schedule: Gives alpha and sigma.
        noise: Returns standard normal noise of x's shape, anew at each call.
        x_0_variance: Mean variance of x_0 given x_t, by 0-d time. With it each step has the variance that
            is best for its length (Bao et al. 2022, Analytic-DPM, equation 8), so that any number of steps
            keeps the spread of the data; without it it is beta_tilde of Ho et al., right for many steps.
    """
    for t, s in pairwise(times):
        x_0 = predict_x_0(x, _batch(t, x))
        if s == 0:
            return x_0
        x, variance, weight = posterior(x_0, x, t, s, schedule)
        if x_0_variance is not None:
            variance = variance + weight**2 * x_0_variance(t)
        x = x + variance.sqrt().to(x.dtype) * noise()
    return x


def ancestral_times(schedule: Schedule, num_steps: int) -> Tensor:
    """(num_steps + 1,) float64 times for `ddpm` whose last step is short.

    The last step adds no noise, so whatever spread of x_0 is left at its start is lost.
    """
    times = schedule.sampling_times(num_steps)
    if num_steps > 1:
        times[-2] = torch.minimum(times[-2], schedule.shortest_time)
    return times


def ddim(predict_x_0: Network, x: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
    """Deterministic implicit sampling (Song et al. 2021, equation 12 with eta = 0).

    Of first order: on standard normal data n steps shrink the standard deviation by about pi^2 / (8 n).
    """
    for t, s in pairwise(times):
        alpha_t, sigma_t = _at(schedule, t, x)
        alpha_s, sigma_s = _at(schedule, s, x)
        x_0 = predict_x_0(x, _batch(t, x))
        x = alpha_s * x_0 + sigma_s * to_eps(x_0, x, alpha_t, sigma_t)
    return x


def dpm_solver_pp(predict_x_0: Network, x: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
    """DPM-Solver++(2M), second order at one call of the network a step (Lu et al. 2022, algorithm 2).

    The first and the last step are of first order, where the log-SNR is infinite or changes most.
    """
    previous: Tensor | None = None
    last_h = torch.tensor(float("inf"), dtype=torch.float64)
    for index, (t, s) in enumerate(pairwise(times)):
        alpha_t, sigma_t = schedule.alpha_sigma(t)
        alpha_s, sigma_s = schedule.alpha_sigma(s)
        # exp(-h) for h = lambda_s - lambda_t, lambda = log(alpha / sigma): finite at both ends.
        decay = (alpha_t * sigma_s) / (sigma_t * alpha_s)
        h = -decay.log()
        x_0 = predict_x_0(x, _batch(t, x))
        estimate = x_0
        is_last = index == len(times) - 2
        if previous is not None and not is_last:
            half_ratio = (h / (2 * last_h)).to(x.dtype)
            estimate = x_0 + half_ratio * (x_0 - previous)
        x = (sigma_s / sigma_t).to(x.dtype) * x + (alpha_s * (1 - decay)).to(x.dtype) * estimate
        previous, last_h = x_0, h
    return x


def euler(predict_x_0: Network, x: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
    """Euler's method on the probability-flow ODE dx/dt = alpha'(t) x_0 + sigma'(t) eps.

    With the linear flow schedule it is the same as `ddim`.
    """
    for t, s in pairwise(times):
        x_0 = predict_x_0(x, _batch(t, x))
        x = x + (s - t).to(x.dtype) * _velocity(x_0, x, t, schedule)
    return x


def heun(predict_x_0: Network, x: Tensor, times: Tensor, schedule: Schedule) -> Tensor:
    """Heun's method on the same ODE: second order at two calls of the network a step (Karras et al. 2022).

    The last step ends at sigma = 0, where the ODE has no velocity: it goes straight to the estimate of x_0.
    """
    for t, s in pairwise(times):
        x_0 = predict_x_0(x, _batch(t, x))
        if s == 0:
            return x_0
        here = _velocity(x_0, x, t, schedule)
        step = (s - t).to(x.dtype)
        ahead = x + step * here
        there = _velocity(predict_x_0(ahead, _batch(s, x)), ahead, s, schedule)
        x = x + step * (here + there) / 2
    return x


def _velocity(x_0: Tensor, x: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    alpha, sigma = _at(schedule, t, x)
    d_alpha, d_sigma = (rate.to(x.dtype) for rate in schedule.derivatives(t))
    return d_alpha * x_0 + d_sigma * to_eps(x_0, x, alpha, sigma)


def _at(schedule: Schedule, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    alpha, sigma = schedule.alpha_sigma(t)
    return alpha.to(x.dtype), sigma.to(x.dtype)


def _batch(t: Tensor, x: Tensor) -> Tensor:
    return t.to(device=x.device, dtype=torch.float32).expand(x.shape[0])
