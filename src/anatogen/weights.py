"""Networks' weights as safetensors files."""

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from anatogen.errors import UserError
from anatogen.storage import atomic_path

WEIGHTS_NAME = "weights.safetensors"


def save_weights(network: nn.Module, path: Path) -> None:
    """Writes parameters and buffers, atomically."""
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def load_weights(network: nn.Module, path: Path) -> None:
    """Reads parameters and buffers into the network.

    Raises:
        UserError: If the file is missing, damaged or of another network.
    """
    try:
        network.load_state_dict(load_file(path))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: the stage that makes it has not finished; run it again."
        ) from error
    except (SafetensorError, RuntimeError, OSError) as error:
        raise UserError(f"{path} is damaged or of another network ({type(error).__name__}).") from error
