"""A network's training passes as one launch each, where a GPU waits for launches and not for arithmetic."""

import warnings

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
        optimiser: Of its weights.
        shape: Of every batch that it learns from, if one process has it all.

    Returns:
        The network to learn with, whose output the next pass overwrites on a GPU, and its optimiser.
    """
    if fabric.device.type != "cuda" or fabric.world_size > 1:
        return fabric.setup(network, optimiser)
    # PyTorch says so of every recording: the gradients' nodes are of the stream that was recorded.
    warnings.filterwarnings("ignore", "The AccumulateGrad node's stream does not match")
    replayed = _Replayed(network, shape)
    wrapped, learner = fabric.setup(replayed, optimiser)
    with fabric.autocast():
        # Weights change between replays, so their casts belong into the graph.
        torch.set_autocast_cache_enabled(False)
        torch.cuda.make_graphed_callables(replayed.passes, (torch.zeros(shape, device=fabric.device),))
    return wrapped, learner


class _Replayed(nn.Module):
    def __init__(self, network: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.shape = shape
        # Recording replaces a module's passes; those of the network itself are needed for other shapes.
        self.passes = nn.Sequential(network)

    def forward(self, x: Tensor) -> Tensor:
        # A graph would broadcast a smaller batch to the recorded shape.
        if x.shape != self.shape:
            raise ValueError(f"the passes were recorded for {self.shape}, got {tuple(x.shape)}")
        y: Tensor = self.passes(x)
        return y
