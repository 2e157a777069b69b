"""One optimiser step, and what each process's part of a batch is."""

import torch
from lightning_fabric import Fabric
from lightning_fabric.wrappers import _FabricModule, _FabricOptimizer
from torch import Tensor, nn

from anatogen.errors import UserError
from anatogen.settings import OptimiserSettings


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
    """Gradient of the loss, averaged over processes and clipped if asked for, and one step along it."""
    optimiser.zero_grad(set_to_none=True)
    fabric.backward(loss)
    if settings.gradient_clip is not None:
        fabric.clip_gradients(network, optimiser, max_norm=settings.gradient_clip)
    optimiser.step()


def local_slice(fabric: Fabric, batch_size: int) -> slice:
    """This process's part of a batch.

    Raises:
        UserError: If the processes can't share the batch evenly.
    """
    share, rest = divmod(batch_size, fabric.world_size)
    if rest:
        raise UserError(
            f"batch_size {batch_size} can't be shared evenly by {fabric.world_size} devices: "
            "use a multiple of their number"
        )
    return slice(fabric.global_rank * share, (fabric.global_rank + 1) * share)
