"""Swin UNETR for grids of any size, and the weights that pre-training hands on to segmentation.

Grids are padded inside to what the network takes, and cropped on the way out.
"""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from anatogen.core.errors import UserError
from anatogen.core.files import utf8_name
from anatogen.downstream.settings import SwinUNETRSettings

if TYPE_CHECKING:
    from monai.networks.nets import SwinUNETR

Shape = tuple[int, int, int]

# The network halves each axis five times.
_MULTIPLE = 32
_BACKGROUND = -1.0
_ENCODER = ("network.swinViT.", "network.encoder")
# Its channels are voxel values in one task and classes in the other.
_HEAD = "network.out."


class PaddedSwinUNETR(nn.Module):
    """Swin UNETR (Hatamizadeh et al. 2022), MONAI's, that takes any (D, H, W).

    Args:
        settings: Its size.
        out_channels: 1 for inpainting, the number of classes for segmentation.

    Attributes:
        network: MONAI's; its names of weights are those of the files that this project writes.
    """

    def __init__(self, settings: SwinUNETRSettings, out_channels: int) -> None:
        super().__init__()
        self.network = _swin_unetr(settings.feature_size, out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """Maps float (B, 1, D, H, W) in [-1, 1] to float (B, out_channels, D, H, W)."""
        shape: Shape = (x.shape[2], x.shape[3], x.shape[4])
        widths = []
        for before, after in zip(shape, padded_shape(shape), strict=True):
            low = (after - before) // 2
            widths.append((low, after - before - low))
        padding = [width for pair in reversed(widths) for width in pair]
        y = self.network(functional.pad(x, padding, value=_BACKGROUND))
        for axis, (low, _) in enumerate(widths):
            y = y.narrow(2 + axis, low, shape[axis])
        return y


def seeded_network(settings: SwinUNETRSettings, out_channels: int, seed: int) -> PaddedSwinUNETR:
    """A network whose random start is the seed's alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return PaddedSwinUNETR(settings, out_channels)


def padded_shape(shape: Shape) -> Shape:
    """The smallest (D, H, W) that Swin UNETR takes and that holds the shape.

    Each side is a multiple of 32. One cell at the coarsest level would be too little for its instance
    normalisation, so the longest side is at least 64.
    """
    sides = [_MULTIPLE * math.ceil(side / _MULTIPLE) for side in shape]
    if math.prod(sides) == _MULTIPLE**3:
        sides[max(range(3), key=lambda axis: shape[axis])] = 2 * _MULTIPLE
    return sides[0], sides[1], sides[2]


def _swin_unetr(feature_size: int, out_channels: int) -> "SwinUNETR":
    # MONAI takes seconds to import.
    from monai.networks.nets import SwinUNETR

    return SwinUNETR(
        in_channels=1, out_channels=out_channels, feature_size=feature_size, use_flash_attention=True
    )


def transfer_weights(network: nn.Module, path: Path, part: Literal["all", "encoder"] = "all") -> list[str]:
    """Takes over the weights of a pre-trained network, all but its last layer, or its encoder alone.

    Args:
        network: A `PaddedSwinUNETR`; changed in place, and only if everything fits.
        path: Weights of another one, as safetensors.
        part: "all" or "encoder".

    Returns:
        The names of the tensors that were taken over; the others stay at their start.

    Raises:
        UserError: If the file can't be read, or lacks a tensor of the part, or holds one of another shape or
            an unknown one: it is then of another network or another size.
    """
    try:
        with utf8_name(path) as name:
            found = load_file(name)
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
    return expected
