"""Networks' weights as safetensors files."""

from pathlib import Path
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from anatogen.core.errors import UserError
from anatogen.core.files import atomic_path, utf8_name

NetworkT = TypeVar("NetworkT", bound=nn.Module)

WEIGHTS_NAME = "weights.safetensors"


def save_weights(network: nn.Module, path: Path, *, half: bool = False) -> None:
    """Writes parameters and buffers, atomically.

    Args:
        network: The network.
        path: The file.
        half: Writes floating-point numbers as float16; `load_weights` gives them back as float32.

    Raises:
        ValueError: If a number is too large for float16.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    if half:
        tensors = {name: _halved(name, tensor) for name, tensor in tensors.items()}
    with atomic_path(path) as temporary:
        save_file(tensors, temporary)


def load_weights(network: NetworkT, path: Path) -> NetworkT:
    """Reads parameters and buffers into the network, whose own precision they take on.

    Returns:
        The network, in evaluation mode and frozen: what is trained on comes from checkpoints.

    Raises:
        UserError: If the file is missing, damaged or of another network.
    """
    try:
        with utf8_name(path) as name:
            network.load_state_dict(load_file(name))
    except FileNotFoundError as error:
        raise UserError(
            f"{path} is missing: the stage that makes it has not finished; run it again."
        ) from error
    except (SafetensorError, RuntimeError, OSError) as error:
        raise UserError(f"{path} is damaged or of another network ({type(error).__name__}).") from error
    return network.requires_grad_(False).eval()


def _halved(name: str, tensor: Tensor) -> Tensor:
    if not tensor.is_floating_point():
        return tensor
    halved = tensor.half()
    if not bool(halved.isfinite().all()):
        raise ValueError(f"{name} holds {float(tensor.abs().max()):.3g}, too large for half precision")
    return halved
