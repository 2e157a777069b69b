"""Weights from inpainting to segmentation: by name and shape, strictly, and reported."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from anatogen.core.errors import UserError

_ENCODER = ("network.swinViT.", "network.encoder")
# Its channels are voxel values in one task and classes in the other.
_HEAD = "network.out."


@dataclass(frozen=True)
class Transfer:
    """What a network took over.

    Attributes:
        loaded: Names of the tensors that were.
        kept: Names of those that stayed at their random start.
    """

    loaded: tuple[str, ...]
    kept: tuple[str, ...]

    def __str__(self) -> str:
        return (
            f"{len(self.loaded)} of {len(self.loaded) + len(self.kept)} tensors from the pre-trained network"
        )


def transfer_weights(network: nn.Module, path: Path, part: Literal["all", "encoder"] = "all") -> Transfer:
    """Takes over the weights of a pre-trained network, all but its last layer, or its encoder alone.

    Args:
        network: A `PaddedSwinUNETR`; changed in place, and only if everything fits.
        path: Weights of another one, as safetensors.
        part: "all" or "encoder".

    Raises:
        UserError: If the file can't be read, or lacks a tensor of the part, or holds one of another shape or
            an unknown one: it is then of another network or another size.
    """
    try:
        found = load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"the pre-trained weights {path} can't be read ({type(error).__name__})") from error
    own = network.state_dict()
    unknown = sorted(set(found) - set(own))
    expected = [
        name for name in own if not name.startswith(_HEAD) and (part == "all" or name.startswith(_ENCODER))
    ]
    missing = [name for name in expected if name not in found]
    other = [name for name in expected if name in found and found[name].shape != own[name].shape]
    if unknown or missing or other:
        example = (other or missing or unknown)[0]
        raise UserError(
            f"{path} is not of this network: of {len(expected)} tensors {len(missing)} are missing and "
            f"{len(other)} have another shape, and {len(unknown)} are unknown (e.g. {example}): pre-train "
            "with the same network.feature_size"
        )
    network.load_state_dict(own | {name: found[name] for name in expected})
    return Transfer(tuple(expected), tuple(name for name in own if name not in expected))
