"""The 3D ResNet of MedicalNet (Chen, Ma and Zheng 2019, "Med3D"), for its published weights.

Its authors pretrained it to segment CT and MR scans of eight (some files: 23) public sets. The weights are
the user's to download; nothing is downloaded here.
"""

import re
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatogen.core.errors import UserError
from anatogen.models.published_weights import read_torch_file

# Blocks in each stage of ResNet-10, 18 and 34; and of ResNet-50.
_PLAIN = ((1, 1, 1, 1), (2, 2, 2, 2), (3, 4, 6, 3))
_BOTTLENECK = ((3, 4, 6, 3),)
_WIDTHS = (64, 128, 256, 512)
# The last two stages keep the resolution and widen their kernels instead, as in Med3D's segmentation network.
_STRIDES = (1, 2, 1, 1)
_DILATIONS = (1, 1, 2, 4)
_SEGMENTATION_HEAD = "conv_seg."
_EXPANSION = 4


class MedicalNet(nn.Module):
    """The backbone, frozen: a scan becomes one vector.

    Args:
        num_blocks: In each of the four stages.
        bottleneck: Blocks of three convolutions (ResNet-50), or of two.
        projected_shortcut: Where the number of channels changes, the skip is a convolution (type B), or
            padded with zero channels (type A).
    """

    def __init__(self, num_blocks: tuple[int, ...], *, bottleneck: bool, projected_shortcut: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(1, 64, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(64)
        current = 64
        for stage, (width, stride, dilation) in enumerate(zip(_WIDTHS, _STRIDES, _DILATIONS, strict=True)):
            blocks = []
            for index in range(num_blocks[stage]):
                block = _Block(
                    current, width, stride if index == 0 else 1, dilation, bottleneck, projected_shortcut
                )
                current = block.out_channels
                blocks.append(block)
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.num_features = current

    def forward(self, x: Tensor) -> Tensor:
        """Features of volumes, averaged over space.

        Args:
            x: float (B, 1, D, H, W), each volume of mean 0 and standard deviation 1.

        Returns:
            (B, num_features).
        """
        x = functional.relu(self.bn1(self.conv1(x)))
        x = functional.max_pool3d(x, 3, stride=2, padding=1)
        for stage in range(4):
            x = self.get_submodule(f"layer{stage + 1}")(x)
        return x.mean(dim=(2, 3, 4))


class _Block(nn.Module):
    def __init__(
        self,
        in_channels: int,
        width: int,
        stride: int,
        dilation: int,
        bottleneck: bool,
        projected_shortcut: bool,
    ) -> None:
        super().__init__()
        self.out_channels = width * (_EXPANSION if bottleneck else 1)
        self.stride = stride
        if bottleneck:
            self.conv1 = nn.Conv3d(in_channels, width, 1, bias=False)
            self.conv2 = nn.Conv3d(width, width, 3, stride, dilation, dilation, bias=False)
            self.conv3 = nn.Conv3d(width, self.out_channels, 1, bias=False)
            self.bn3 = nn.BatchNorm3d(self.out_channels)
        else:
            self.conv1 = nn.Conv3d(in_channels, width, 3, stride, dilation, dilation, bias=False)
            self.conv2 = nn.Conv3d(width, width, 3, 1, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm3d(width)
        self.bn2 = nn.BatchNorm3d(width)
        self.bottleneck = bottleneck
        self.downsample: nn.Sequential | None = None
        self.padding_channels = 0
        if (stride != 1 or in_channels != self.out_channels) and projected_shortcut:
            self.downsample = nn.Sequential(
                nn.Conv3d(in_channels, self.out_channels, 1, stride=stride, bias=False),
                nn.BatchNorm3d(self.out_channels),
            )
        else:
            self.padding_channels = self.out_channels - in_channels

    def forward(self, x: Tensor) -> Tensor:
        if self.downsample is not None:
            skip = self.downsample(x)
        else:
            skip = x[:, :, :: self.stride, :: self.stride, :: self.stride]
            skip = functional.pad(skip, (0, 0, 0, 0, 0, 0, 0, self.padding_channels))
        h = functional.relu(self.bn1(self.conv1(x)))
        h = self.bn2(self.conv2(h))
        if self.bottleneck:
            h = self.bn3(self.conv3(functional.relu(h)))
        return functional.relu(h + skip)


def load_medicalnet(file: Path) -> MedicalNet:
    """Loads the network with the weights of a published file, whose names tell its depth.

    Args:
        file: As MedicalNet's authors publish it: a dictionary whose `state_dict` has names that start with
            "module.". A segmentation head in it is left out.

    Raises:
        UserError: If there is no such file, it is damaged, or its weights are not those of ResNet-10, 18, 34
            or 50.
    """
    content = read_torch_file(file, "MedicalNet weights")
    weights = content.get("state_dict", content) if isinstance(content, dict) else None
    if not isinstance(weights, dict):
        raise UserError(f"MedicalNet weights: {file} holds no dictionary of weights")
    backbone = {
        str(name).removeprefix("module."): value for name, value in weights.items() if torch.is_tensor(value)
    }
    backbone = {name: value for name, value in backbone.items() if not name.startswith(_SEGMENTATION_HEAD)}
    num_blocks = tuple(_num_blocks(backbone, stage) for stage in range(1, 5))
    bottleneck = "layer1.0.conv3.weight" in backbone
    if num_blocks not in (_BOTTLENECK if bottleneck else _PLAIN):
        raise UserError(
            f"MedicalNet weights: {file} is not of ResNet-10, 18, 34 or 50: it has {num_blocks} blocks in "
            "layer1 to layer4"
        )
    network = MedicalNet(
        num_blocks,
        bottleneck=bottleneck,
        projected_shortcut="layer2.0.downsample.0.weight" in backbone,
    )
    # Files of old PyTorch lack the counters of batches, which nothing reads in a frozen network.
    for name, value in network.state_dict().items():
        if name.endswith("num_batches_tracked"):
            backbone.setdefault(name, value)
    try:
        network.load_state_dict(backbone)
    except RuntimeError as error:
        reason = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(f"MedicalNet weights: {file} does not fit its own layout: {reason}") from error
    return network.requires_grad_(False).eval()


def _num_blocks(weights: dict[str, Tensor], stage: int) -> int:
    found = [re.match(rf"layer{stage}\.(\d+)\.", name) for name in weights]
    return len({match.group(1) for match in found if match})
