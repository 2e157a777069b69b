"""The forward process, its posterior, and the loss that trains a denoiser (Ho et al. 2020)."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from anatogen.diffusion import parameterization
from anatogen.diffusion.parameterization import Prediction
from anatogen.diffusion.schedule import Schedule

Network = Callable[[Tensor, Tensor], Tensor]


def add_noise(x_0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """A draw x_t of q(x_t | x_0), equation 4 of Ho et al. 2020.

    Args:
        x_0: float (B, ...), clean.
        eps: float (B, ...), standard normal.
        t: float (B,) in [0, 1].
        schedule: Gives alpha and sigma.
    """
    alpha, sigma = _per_item(schedule, t, x_0)
    return alpha * x_0 + sigma * eps


def posterior(
    x_0: Tensor, x_t: Tensor, t: Tensor, s: Tensor, schedule: Schedule
) -> tuple[Tensor, Tensor, Tensor]:
    """q(x_s | x_t, x_0) for any 0 <= s < t <= 1, equations 6 and 7 of Ho et al. 2020 for general steps.

    Args:
        x_0: float (B, ...), clean.
        x_t: float (B, ...), at time t.
        t: 0-d float64.
        s: 0-d float64.
        schedule: Gives alpha and sigma.

    Returns:
        The mean (B, ...); the variance, 0-d; the weight of x_0 in the mean, 0-d.
    """
    alpha_t, sigma_t = schedule.alpha_sigma(t)
    alpha_s, sigma_s = schedule.alpha_sigma(s)
    step = alpha_t / alpha_s
    step_variance = sigma_t**2 - step**2 * sigma_s**2
    weight = alpha_s * step_variance / sigma_t**2
    mean = (step * sigma_s**2 / sigma_t**2).to(x_t.dtype) * x_t + weight.to(x_0.dtype) * x_0
    return mean, step_variance * sigma_s**2 / sigma_t**2, weight


def denoising_loss(network: Network, x_0: Tensor, eps: Tensor, t: Tensor, schedule: Schedule) -> Tensor:
    """Mean absolute difference of the network's output and the noise.

    Args:
        network: Maps (x_t, t) to the estimated noise, of x_t's shape.
        x_0: float (B, ...), clean.
        eps: float (B, ...), standard normal.
        t: float (B,) in [0, 1].
        schedule: Gives alpha and sigma.

    Returns:
        0-d float.
    """
    return functional.l1_loss(network(add_noise(x_0, eps, t, schedule), t), eps)


def x_0_predictor(
    network: Network, schedule: Schedule, prediction: Prediction, clip_x_0: float | None = None
) -> Network:
    """Wraps a network of any kind into one that maps (x_t, t) to the clean latent.

    Args:
        network: Maps (x_t, t) to an output of x_t's shape.
        schedule: Gives alpha and sigma.
        prediction: What the output means.
        clip_x_0: Bound of |x_0|, or None.
    """

    def predict(x_t: Tensor, t: Tensor) -> Tensor:
        alpha, sigma = _per_item(schedule, t, x_t)
        x_0 = parameterization.to_x_0(prediction, network(x_t, t), x_t, alpha, sigma)
        return x_0 if clip_x_0 is None else x_0.clamp(-clip_x_0, clip_x_0)

    return predict


def _per_item(schedule: Schedule, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    # In float64: 1 - alpha_bar loses all digits near t = 0 in float32.
    alpha, sigma = schedule.alpha_sigma(t.to(torch.float64))
    shape = (-1,) + (1,) * (like.ndim - 1)
    return alpha.to(like.dtype).view(shape), sigma.to(like.dtype).view(shape)


def mean_x_0_error(
    predict_x_0: Network, x_0: Tensor, t: float, schedule: Schedule, generator: torch.Generator
) -> float:
    """Mean squared error of the estimated x_0 at one time, one item at a time.

    Args:
        predict_x_0: Estimates x_0 from (x_t, t).
        x_0: float (B, ...), clean.
        t: In (0, 1].
        schedule: Gives alpha and sigma.
        generator: Source of the noise, on the CPU.
    """
    errors = []
    for item in x_0.split(1):
        times = torch.tensor([t], device=item.device)
        eps = torch.randn(item.shape, generator=generator).to(item.device)
        found = predict_x_0(add_noise(item, eps, times, schedule), times)
        errors.append(float((found - item).square().mean()))
    return sum(errors) / len(errors)
