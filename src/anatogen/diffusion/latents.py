"""Scaling of latents to what the diffusion process expects: about 0, about unit size.

The statistics are those of the whole training set, or of the codebook, and travel with the bundle.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LatentScaling:
    """scaled = (latent - shift) / scale for each channel.

    Attributes:
        shift: float32 (C,).
        scale: float32 (C,), above 0.
    """

    shift: Tensor
    scale: Tensor

    def apply(self, latent: Tensor) -> Tensor:
        """Scales (B, C, d, h, w) latents."""
        return (latent - self._spread(self.shift, latent)) / self._spread(self.scale, latent)

    def undo(self, scaled: Tensor) -> Tensor:
        """Maps scaled (B, C, d, h, w) back to the autoencoder's latents."""
        return scaled * self._spread(self.scale, scaled) + self._spread(self.shift, scaled)

    @staticmethod
    def _spread(values: Tensor, like: Tensor) -> Tensor:
        return values.to(like)[:, None, None, None]


def codebook_range_scaling(codes: Tensor) -> LatentScaling:
    """Maps the codebook's smallest and largest value to -1 and 1 (Khader et al. 2023).

    Args:
        codes: float (num_codes, code_dim).
    """
    low, high, channels = codes.min(), codes.max(), codes.shape[1]
    return LatentScaling(((low + high) / 2).repeat(channels), ((high - low) / 2).repeat(channels))


def standard_scaling(cases: Iterable[Tensor]) -> LatentScaling:
    """Gives each channel mean 0 and variance 1 over all cases.

    Args:
        cases: float (V, C, d, h, w) each, all of the training set; taken one at a time.
    """
    number, total, squares = 0, torch.zeros(()), torch.zeros(())
    for case in cases:
        channels = case.movedim(1, 0).flatten(1).double()
        number += channels.shape[1]
        total = total + channels.sum(1)
        squares = squares + channels.square().sum(1)
    mean = total / number
    std = (squares / number - mean.square()).clamp(min=1e-12).sqrt()
    return LatentScaling(mean.float(), std.float())
