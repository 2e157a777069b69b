"""What a network's output means: eps, x_0, v or velocity, and how each gives the clean latent.

With x_t = alpha x_0 + sigma eps:  v = alpha eps - sigma x_0 (Salimans and Ho 2022);  velocity = eps - x_0
(Lipman et al. 2023). All tensors are floats of one shape; alpha and sigma broadcast against them.
"""

from typing import Literal, assert_never

from torch import Tensor

Prediction = Literal["eps", "x_0", "v", "velocity"]


def target(kind: Prediction, x_0: Tensor, eps: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """What a perfect network of this kind would return."""
    match kind:
        case "eps":
            return eps
        case "x_0":
            return x_0
        case "v":
            return alpha * eps - sigma * x_0
        case "velocity":
            return eps - x_0
        case _:
            assert_never(kind)


def to_x_0(kind: Prediction, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The clean latent that an output stands for; `eps` needs alpha > 0, `v` alpha^2 + sigma^2 = 1."""
    match kind:
        case "eps":
            return (x_t - sigma * output) / alpha
        case "x_0":
            return output
        case "v":
            return alpha * x_t - sigma * output
        case "velocity":
            return (x_t - sigma * output) / (alpha + sigma)
        case _:
            assert_never(kind)


def to_eps(x_0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise that x_t holds if x_0 is its clean latent; needs sigma > 0."""
    return (x_t - alpha * x_0) / sigma
