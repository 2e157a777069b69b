"""PatchGAN discriminators of the VQ-GAN: one sees a random slice of each volume, one the whole volume.

Isola et al. 2017; the pair follows Khader et al. 2023 (after Ge et al. 2022). Group instead of batch
normalisation: with one or two volumes a batch has no statistics worth the name.
"""

import torch
from torch import Tensor, nn

from anatogen.models.blocks import channels_last, group_norm

# Logits of patches and feature maps; and those on real and on fake volumes, by discriminator.
PatchOutput = tuple[Tensor, list[Tensor]]
DiscriminatorOutputs = dict[str, tuple[PatchOutput, PatchOutput]]


class PatchDiscriminator(nn.Module):
    """Classifies overlapping patches: three halving convolutions, one more, one logit a patch.

    Args:
        num_dims: 2 for slices, 3 for volumes.
        width: Channels of the first convolution; doubled by the next three.
    """

    def __init__(self, num_dims: int, width: int) -> None:
        super().__init__()
        convolution: type[nn.Conv2d | nn.Conv3d] = nn.Conv2d if num_dims == 2 else nn.Conv3d
        stages: list[nn.Module] = []
        current = 1
        for index, factor in enumerate((1, 2, 4, 8)):
            stride = 2 if index < 3 else 1
            layers: list[nn.Module] = [convolution(current, factor * width, 4, stride, 2)]
            if index > 0:
                layers.append(group_norm(factor * width))
            stages.append(nn.Sequential(*layers, nn.LeakyReLU(0.2)))
            current = factor * width
        self.stages = nn.ModuleList(stages)
        self.head = convolution(current, 1, 4, 1, 2)

    def forward(self, x: Tensor) -> PatchOutput:
        """Logits of patches, and the features of each stage.

        Args:
            x: float (B, 1, H, W) or (B, 1, D, H, W) in [-1, 1].

        Returns:
            Logits (B, 1, ...), high for real, and four feature maps (B, C, ...).
        """
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        return self.head(x), features


class Discriminators(nn.Module):
    """The slice and the volume discriminator as one module, so that one optimiser and one wrapper serve both.

    Args:
        width: Channels of their first convolutions.
        use_slice: Whether the slice discriminator takes part.
        use_volume: Whether the volume discriminator takes part.
    """

    def __init__(self, width: int, use_slice: bool, use_volume: bool) -> None:
        super().__init__()
        self.slice = PatchDiscriminator(2, width) if use_slice else None
        self.volume = PatchDiscriminator(3, width) if use_volume else None
        channels_last(self)

    def forward(self, real: Tensor, fake: Tensor, slice_index: Tensor) -> DiscriminatorOutputs:
        """Outputs of each discriminator on the real and on the fake volumes.

        Args:
            real: float (B, 1, D, H, W) in [-1, 1].
            fake: float (B, 1, D, H, W), their reconstructions.
            slice_index: int64 (B,), the slice of each volume to show, in [0, D).

        Returns:
            By "slice" and "volume", as far as they take part: the outputs on real and on fake.
        """
        outputs = {}
        if self.slice is not None:
            outputs["slice"] = (
                self.slice(take_slices(real, slice_index)),
                self.slice(take_slices(fake, slice_index)),
            )
        if self.volume is not None:
            outputs["volume"] = (self.volume(real), self.volume(fake))
        return outputs


def take_slices(volumes: Tensor, slice_index: Tensor) -> Tensor:
    """One slice along D of each volume: (B, C, D, H, W) and int64 (B,) give (B, C, H, W)."""
    return volumes[torch.arange(len(volumes), device=volumes.device), :, slice_index]
