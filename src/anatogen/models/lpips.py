"""LPIPS on VGG16, the paper's perceptual loss, from weights that the user names (Zhang et al. 2018).

Neither file comes with the package: their licences, sizes and sources are for the user to look at.
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatogen.core.errors import UserError
from anatogen.models.published_weights import read_torch_file

# Convolutions of torchvision's VGG16 by the numbers of their layers, resolution by resolution; what follows
# the last one of each is compared (Simonyan and Zisserman 2015: relu1_2, relu2_2, relu3_3, relu4_3, relu5_3).
_STAGES = ((0, 2), (5, 7), (10, 12, 14), (17, 19, 21), (24, 26, 28))
# Colours in [-1, 1] to the statistics that VGG16 was trained with.
_SHIFT = (-0.030, -0.088, -0.188)
_SCALE = (0.458, 0.448, 0.450)


class LPIPS(nn.Module):
    """Weighted squared distance of unit-normalised features of VGG16, summed over five resolutions.

    Args:
        vgg: Weights of VGG16 by torchvision's names; the classifier's are not needed.
        linear: Weights of the channels of each resolution by the names of LPIPS 0.1.

    Raises:
        UserError: If the weights are of another network.
    """

    shift: Tensor
    scale: Tensor

    def __init__(self, vgg: dict[str, Tensor], linear: dict[str, Tensor]) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(_SHIFT)[:, None, None])
        self.register_buffer("scale", torch.tensor(_SCALE)[:, None, None])
        try:
            self.stages = nn.ModuleList(
                nn.Sequential(*(_convolution(vgg, number) for number in numbers)) for numbers in _STAGES
            )
            self.weights = nn.ParameterList(
                linear[f"lin{number}.model.1.weight"] for number in range(len(_STAGES))
            )
            with torch.no_grad():
                self(torch.zeros(1, 1, 16, 16), torch.zeros(1, 1, 16, 16))
        except (KeyError, TypeError, ValueError, RuntimeError) as error:
            raise UserError(
                "losses.vgg_weights and losses.lpips_weights are not those of VGG16 (by torchvision's names) "
                f"and of LPIPS 0.1 on it: {error}"
            ) from error
        self.requires_grad_(False)

    def forward(self, slices: Tensor, reference: Tensor) -> Tensor:
        """0-d distance of slices float (B, 1, H, W) in [-1, 1] to reference slices of the same shape.

        A grey slice is shown in all three colour channels.
        """
        with torch.no_grad():
            wanted = self._features(reference)
        total = slices.new_zeros(())
        for found, aim, weight in zip(self._features(slices), wanted, self.weights, strict=True):
            # As published, norms below 1e-10 are none.
            difference = functional.normalize(found, dim=1, eps=1e-10) - functional.normalize(
                aim, dim=1, eps=1e-10
            )
            total = total + functional.conv2d(difference.square(), weight).mean()
        return total

    def _features(self, x: Tensor) -> list[Tensor]:
        x = (x.expand(-1, 3, -1, -1) - self.shift) / self.scale
        features: list[Tensor] = []
        for stage in self.stages:
            if features:
                x = functional.max_pool2d(x, 2)
            for convolution in stage.children():
                x = functional.relu(convolution(x))
            features.append(x)
        return features


def load_lpips(vgg_file: Path, linear_file: Path) -> LPIPS:
    """LPIPS with the weights of two files as their makers publish them; nothing in them is executed.

    Args:
        vgg_file: VGG16 trained on ImageNet, as torchvision has it (`vgg16-397923af.pth`).
        linear_file: Channel weights of LPIPS 0.1 on VGG16 (`vgg.pth`).

    Raises:
        UserError: If a file is missing, damaged, or of another network.
    """
    return LPIPS(
        read_torch_file(vgg_file, "losses.vgg_weights"), read_torch_file(linear_file, "losses.lpips_weights")
    )


def _convolution(weights: dict[str, Tensor], number: int) -> nn.Conv2d:
    kernel, bias = weights[f"features.{number}.weight"], weights[f"features.{number}.bias"]
    made = nn.Conv2d(kernel.shape[1], kernel.shape[0], 3, padding=1)
    made.load_state_dict({"weight": kernel, "bias": bias})
    return made
