"""Exponential moving average of a network's weights."""

import copy
from typing import Generic, TypeVar

import torch
from torch import nn

NetworkT = TypeVar("NetworkT", bound=nn.Module)


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
