"""A network's training passes as one launch each, where a GPU waits for launches and not for arithmetic."""

import warnings
from collections.abc import Callable

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor, nn


def set_up(
    fabric: Fabric, network: nn.Module, optimiser: torch.optim.Optimizer, shape: tuple[int, ...]
) -> tuple[_FabricModule, _FabricOptimizer]:
    """`fabric.setup`; on a single GPU the training passes are recorded as a CUDA graph and replayed.

    Args:
        fabric: Devices and processes.
        network: Draws nothing at random and keeps no running statistics. Its own passes stay as they are.
        optimiser: Optimiser of its weights.
        shape: Shape of every batch that it learns from, if one process has it all.

    Returns:
        The network to learn with, whose output the next pass overwrites on a GPU, and its optimiser.
    """
    if fabric.device.type != "cuda" or fabric.world_size > 1:
        return fabric.setup(network, optimiser)
    replayed = _Replayed(network, shape)
    wrapped, learner = fabric.setup(replayed, optimiser)
    replayed.record(fabric)
    return wrapped, learner


class _Replayed(nn.Module):
    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.network = network
        self.shape = shape
        self.passes: Callable[[Tensor], Tensor] = network.forward

    def record(self, fabric: Fabric) -> None:
        # PyTorch says so of every recording: its gradients' nodes belong to the stream that was recorded.
        warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
        is_cached = torch.is_autocast_cache_enabled()
        # Weights change between replays, so their casts belong into the graph.
        torch.set_autocast_cache_enabled(False)
        try:
            with fabric.autocast():
                x = torch.zeros(self.shape, device=fabric.device)
                torch.cuda.make_graphed_callables(self.network, (x,))
        finally:
            torch.set_autocast_cache_enabled(is_cached)
        # Taken from the network, which then makes its own passes again, for other shapes; and which does not
        # hold itself by them any more, for their memory is to be free with it.
        self.passes = self.network.__dict__.pop("forward")

    def forward(self, x: Tensor) -> Tensor:
        # A graph would broadcast a smaller batch to the recorded shape.
        if x.shape != self.shape:
            raise ValueError(f"the passes were recorded for {self.shape}, got {tuple(x.shape)}")
        return self.passes(x)
