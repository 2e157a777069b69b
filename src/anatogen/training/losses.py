"""The VQ-GAN's adversarial losses (Esser et al. 2021; feature matching: Wang et al. 2018)."""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional


def discriminator_hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """0-d hinge loss of a discriminator: real logits above 1, fake ones below -1; any shapes."""
    return (functional.relu(1 - real_logits).mean() + functional.relu(1 + fake_logits).mean()) / 2


def generator_hinge_loss(fake_logits: Tensor) -> Tensor:
    """0-d adversarial loss of the generator, -mean(logits of its reconstructions)."""
    return -fake_logits.mean()


def feature_matching_loss(fake_features: Sequence[Tensor], real_features: Sequence[Tensor]) -> Tensor:
    """0-d sum over stages of the mean L1 distance of features; real ones give no gradient."""
    distances = [
        functional.l1_loss(fake, real.detach())
        for fake, real in zip(fake_features, real_features, strict=True)
    ]
    return torch.stack(distances).sum()
