"""Optimisers, one step of them, the moving average of weights, and each process's part of a batch."""

import copy
from collections.abc import Iterable
from typing import Any, Generic, TypeVar

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor, nn

from anatogen.config.settings import OptimiserSettings
from anatogen.training.loop import NonFiniteLossError

NetworkT = TypeVar("NetworkT", bound=nn.Module)


def adam(network: nn.Module, settings: OptimiserSettings) -> torch.optim.Optimizer:
    """AdamW over all weights of a network, as the settings say."""
    return torch.optim.AdamW(
        network.parameters(),
        lr=settings.learning_rate,
        betas=settings.betas,
        weight_decay=settings.weight_decay,
    )


class Muon(torch.optim.Optimizer):
    """Muon for weights of the middle layers, Adam for all others (Jordan et al. 2024).

    A step of a matrix is its momentum with all singular values brought to about 1, scaled so that its size is
    that of a step of Adam (Liu et al. 2025, "Muon is scalable for LLM training"): one learning rate serves
    both. A convolution's weight counts as the matrix of its output channels.

    Args:
        matrices: Weights of two or more axes.
        others: Weights that Adam steps.
        learning_rate: Of both.
        betas: Adam's decay rates.
        weight_decay: Decoupled, of both (Loshchilov and Hutter 2019).
        momentum: Decay rate of the matrices' gradients.
    """

    def __init__(
        self,
        matrices: Iterable[Tensor],
        others: Iterable[Tensor],
        learning_rate: float,
        betas: tuple[float, float],
        weight_decay: float = 0.0,
        momentum: float = 0.95,
    ) -> None:
        groups = [{"params": list(matrices), "is_matrix": True}, {"params": list(others), "is_matrix": False}]
        options = {"lr": learning_rate, "betas": betas, "weight_decay": weight_decay, "momentum": momentum}
        super().__init__(groups, options)

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """One step of all weights that have a gradient."""
        for group in self.param_groups:
            step = self._step_matrix if group["is_matrix"] else self._step_adam
            for weight in group["params"]:
                if weight.grad is not None:
                    weight.mul_(1 - group["lr"] * group["weight_decay"])
                    step(weight, weight.grad, group)

    def _step_matrix(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state["mean"] = torch.zeros_like(weight)
        mean = state["mean"].lerp_(gradient, 1 - group["momentum"])
        update = orthogonalised(gradient.lerp(mean, group["momentum"]).flatten(1))
        weight.add_(update.reshape(weight.shape), alpha=-group["lr"] * 0.2 * max(update.shape) ** 0.5)

    def _step_adam(self, weight: Tensor, gradient: Tensor, group: dict[str, Any]) -> None:
        state = self.state[weight]
        if not state:
            state |= {"mean": torch.zeros_like(weight), "square": torch.zeros_like(weight), "count": 0}
        state["count"] += 1
        first, second = group["betas"]
        count = state["count"]
        mean = state["mean"].lerp_(gradient, 1 - first)
        square = state["square"].lerp_(gradient.square(), 1 - second)
        size = (square / (1 - second**count)).sqrt().add_(1e-8)
        weight.addcdiv_(mean / (1 - first**count), size, value=-group["lr"])


def orthogonalised(matrix: Tensor) -> Tensor:
    """About the nearest matrix whose singular values are all 1, by five steps of Newton and Schulz.

    The singular values end between 0.7 and 1.2 (Jordan et al. 2024).

    Args:
        matrix: float (m, n).
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    is_tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.T if is_tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if is_tall else x


def take_step(
    fabric: Fabric,
    loss: Tensor,
    network: _FabricModule,
    optimiser: _FabricOptimizer,
    settings: OptimiserSettings,
) -> None:
    """Steps along the gradient of the loss, averaged over processes and clipped if asked for.

    Raises:
        NonFiniteLossError: If the norm of the gradient that is to be clipped is not finite.
    """
    optimiser.zero_grad(set_to_none=True)
    fabric.backward(loss)
    step_along_gradient(fabric, network, optimiser, settings)


def step_along_gradient(
    fabric: Fabric, network: _FabricModule, optimiser: _FabricOptimizer, settings: OptimiserSettings
) -> None:
    """Steps along the gradient that the weights have, clipped if asked for.

    Raises:
        NonFiniteLossError: If the norm of the gradient that is to be clipped is not finite.
    """
    if settings.gradient_clip is not None:
        limit = settings.gradient_clip
        norm = fabric.clip_gradients(network, optimiser, max_norm=limit, error_if_nonfinite=False)
        if norm is not None and not bool(norm.isfinite()):
            raise NonFiniteLossError(
                "a gradient is not finite though the loss is. The weights were not touched by it and the "
                "last checkpoint is kept: start a new run with a learning rate below "
                f"{settings.learning_rate:g}."
            )
    optimiser.step()


class ExponentialMovingAverage(Generic[NetworkT]):
    """A shadow of a network whose weights follow it slowly.

    Args:
        network: The network to follow. Its buffers, such as running statistics, are not followed.
        decay: Share of the shadow that one update keeps, once enough steps are made.
        every: Steps from one update of the average to the next.
        start: Steps before which it is a copy of the weights.
    """

    def __init__(self, network: NetworkT, decay: float, every: int = 1, start: int = 0) -> None:
        self.shadow: NetworkT = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay
        self.every = every
        self.start = start

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Follows the network after its step number `step` (from 0).

        The first updates keep less, so that the random start is soon forgotten.
        """
        if step >= self.start and step % self.every:
            return
        decay = 0.0 if step < self.start else min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.shadow.parameters()), list(network.parameters()), 1 - decay)


def local_slice(fabric: Fabric, batch_size: int) -> slice:
    """This process's part of a batch, which `check_stages` found to be a multiple of the processes."""
    share = batch_size // fabric.world_size
    return slice(fabric.global_rank * share, (fabric.global_rank + 1) * share)
