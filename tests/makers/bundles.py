"""Bundles of untrained networks, for tests of what uses a bundle."""

from pathlib import Path

import torch
from synthetic_dataset import AFFINE, SPACING_MM, tiny_settings

from anatogen.dataset.manifest import Grid, Intensity
from anatogen.generators.description import LatentDiffusionDescription
from anatogen.generators.latent_diffusion import LatentDiffusionBundle
from anatogen.models.denoiser import Denoiser
from anatogen.models.vqgan import VQGAN

SHAPE = (7, 8, 10)  # odd along D: the last slice is padding inside


def make_bundle(folder: Path, modality: str = "CT", *overrides: str) -> Path:
    """A bundle of untrained networks with enough codes that scans differ."""
    settings = tiny_settings(*overrides)
    torch.manual_seed(0)
    autoencoder = VQGAN(settings.autoencoder)
    latent = tuple(-(-n // c) for n, c in zip(SHAPE, settings.autoencoder.compression, strict=True))
    channels = settings.autoencoder.code_dim
    denoiser = Denoiser(settings.denoiser, channels, latent)
    description = LatentDiffusionDescription(
        autoencoder=settings.autoencoder,
        denoiser=settings.denoiser,
        diffusion=settings.diffusion,
        grid=Grid(shape=SHAPE, spacing_mm=SPACING_MM, affine=AFFINE),
        intensity=Intensity(modality=modality, low=-200.0, high=600.0),
        latent_shape=latent,
        latent_shift=[0.0] * channels,
        latent_scale=[1.0] * channels,
        x_0_variance=[0.0, 0.3, 1.0],
    )
    LatentDiffusionBundle(description, autoencoder.eval(), denoiser.eval()).save(folder)
    return folder
