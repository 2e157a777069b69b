"""Exponential moving average of a network's weights."""

import copy

import torch
from torch import nn


class ExponentialMovingAverage:
    """A shadow of a network whose weights follow it slowly.

    Args:
        network: The network to follow; must have no buffers that training changes.
        decay: Share of the shadow that one update keeps, once enough steps are made.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.shadow = copy.deepcopy(network).requires_grad_(False).eval()
        self.decay = decay

    @torch.no_grad()
    def update(self, network: nn.Module, step: int) -> None:
        """Follows the network after its step number `step` (from 0).

        The first updates keep less, so that the random start is soon forgotten.
        """
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(list(self.shadow.parameters()), list(network.parameters()), 1 - decay)
