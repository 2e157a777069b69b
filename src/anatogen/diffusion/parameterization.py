"""What a network's output means, and how it gives the clean latent.

With x_t = alpha x_0 + sigma eps it is eps (Ho et al. 2020), or the velocity eps - x_0 (Lipman et al. 2023).
All tensors are floats of one shape; alpha and sigma broadcast against them.
"""

from typing import Literal, assert_never

from torch import Tensor

Prediction = Literal["eps", "velocity"]


def to_x_0(kind: Prediction, output: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The clean latent that an output stands for; `eps` needs alpha > 0."""
    match kind:
        case "eps":
            return (x_t - sigma * output) / alpha
        case "velocity":
            return (x_t - sigma * output) / (alpha + sigma)
        case _:
            assert_never(kind)


def to_eps(x_0: Tensor, x_t: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The noise that x_t holds if x_0 is its clean latent; needs sigma > 0."""
    return (x_t - alpha * x_0) / sigma
