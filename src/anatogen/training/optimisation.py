"""Optimisers, one step of them, the moving average of weights, and each process's part of a batch."""

import copy
from typing import Generic, TypeVar

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
    """

    def __init__(self, network: NetworkT, decay: float) -> None:
        self.shadow: NetworkT = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Follows the network after its step number `step` (from 0).

        The first updates keep less, so that the random start is soon forgotten.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.shadow.parameters()), list(network.parameters()), 1 - decay)


def local_slice(fabric: Fabric, batch_size: int) -> slice:
    """This process's part of a batch, which `check_stages` found to be a multiple of the processes."""
    share = batch_size // fabric.world_size
    return slice(fabric.global_rank * share, (fabric.global_rank + 1) * share)
