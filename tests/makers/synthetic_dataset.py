"""A tiny prepared dataset of smooth blobs, written without `prepare`, and settings and a bundle for it."""

from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import gaussian_filter

from anatogen.config.presets import preset_named
from anatogen.config.resolving import parse_overrides, resolve
from anatogen.config.settings import LatentDiffusionSettings, WaveletFlowSettings
from anatogen.dataset.manifest import Case, Grid, Intensity, Manifest, Split
from anatogen.generators.description import LatentDiffusionDescription
from anatogen.generators.latent_diffusion import LatentDiffusionBundle

SPACING_MM = (2.0, 1.0, 1.5)
# Slices go towards the feet, rows towards the back, columns towards the left: no axis is a plain RAS one.
AFFINE = [[0.0, 0.0, -1.5, 11.25], [0.0, -1.0, 0.0, 7.5], [-2.0, 0.0, 0.0, 15.0], [0.0, 0.0, 0.0, 1.0]]

# Preset `paper`, small, without what needs weights or long trainings.
TINY = (
    "autoencoder.compression=2",
    "autoencoder.base_width=8",
    "autoencoder.decoder_width=8",
    "autoencoder.num_blocks=0",
    "autoencoder.num_decoder_blocks=1",
    "autoencoder.num_codes=32",
    "autoencoder.code_dim=4",
    "losses.l1=1",
    "losses.perceptual=0",
    "losses.adversarial_slice=0",
    "losses.adversarial_volume=0",
    "losses.feature_matching=0",
    "denoiser.width=8",
    "denoiser.multipliers=[1, 2]",
    "denoiser.num_blocks=1",
    "denoiser.num_heads=1",
    "denoiser.head_dim=8",
    "diffusion_training.batch_size=2",
    "diffusion_training.accumulate=2",
    "diffusion.ema_every=1",
    "diffusion.ema_start=2",
    "autoencoder_training.learning_rate=1e-3",
    "diffusion_training.learning_rate=1e-3",
    "autoencoder_training.steps=6",
    "diffusion_training.steps=6",
    "diffusion.sampling_steps=3",
    "training.flip=none",
    "training.require_fit_autoencoder=false",
)
TINY_FLOW = (
    "pyramid.num_levels=2",
    "pyramid.crop=4",
    "coarse.width=16",
    "coarse.multipliers=[1, 2]",
    "coarse.num_blocks=1",
    "details.width=16",
    "details.multipliers=[1]",
    "details.num_blocks=1",
    "flow.sampling_steps=3",
    "flow_training.batch_size=2",
    "flow_training.warmup_steps=2",
    "flow_training.steps=6",
)
# Both discriminators take part from the second half of those steps.
ADVERSARIAL = (
    "losses.adversarial_slice=1",
    "losses.adversarial_volume=1",
    "losses.feature_matching=1",
    "losses.discriminator_width=4",
    "losses.discriminator_start=2",
    "losses.adversarial_start=3",
    "training.flip=left_right",
)


def tiny_settings(*overrides: str) -> LatentDiffusionSettings:
    """Settings of networks with a few thousand weights."""
    return resolve(
        LatentDiffusionSettings,
        preset_named("paper"),
        overrides=parse_overrides([*TINY, *overrides], LatentDiffusionSettings),
    )


def tiny_flow_settings(*overrides: str) -> WaveletFlowSettings:
    """Settings of a wavelet flow whose networks have a few thousand weights."""
    return resolve(
        WaveletFlowSettings,
        preset_named("default"),
        overrides=parse_overrides([*TINY_FLOW, *overrides], WaveletFlowSettings),
    )


def write_dataset(
    folder: Path,
    num_train: int = 6,
    num_validation: int = 2,
    shape: tuple[int, int, int] = (16, 16, 16),
    seed: int = 0,
    modality: str = "CT",
) -> Path:
    """Writes a prepared dataset of Gaussian-filtered noise in [-1, 1], float16."""
    generator = np.random.default_rng(seed)
    intensity = Intensity(modality=modality, low=-200.0, high=600.0)
    cases = []
    (folder / "volumes").mkdir(parents=True)
    for index in range(num_train + num_validation):
        blobs = gaussian_filter(generator.standard_normal(shape), 2.5)
        array = (blobs / np.abs(blobs).max()).astype(np.float16)
        name = f"case_{index:05d}"
        np.save(folder / "volumes" / f"{name}.npy", array)
        cases.append(
            Case(
                id=name,
                file=f"volumes/{name}.npy",
                split=Split.TRAIN if index < num_train else Split.VALIDATION,
                patient=f"patient_{index}",
                source_sha256=f"{seed}-{index}",
                intensity=intensity,
                source_affine=AFFINE,
                source_shape=shape,
                affine=AFFINE,
            )
        )
    Manifest(
        anatogen_version="test",
        grid=Grid(shape=shape, spacing_mm=SPACING_MM, affine=AFFINE),
        intensity=intensity,
        config={},
        cases=cases,
    ).save(folder)
    return folder


def write_bundle(folder: Path, manifest: Manifest, *overrides: str) -> Path:
    """Writes a bundle of untrained networks for volumes of 16 voxels a side."""
    settings = tiny_settings(*overrides)
    latent = (8, 8, 8)
    description = LatentDiffusionDescription(
        autoencoder=settings.autoencoder,
        denoiser=settings.denoiser,
        diffusion=settings.diffusion,
        grid=manifest.grid,
        intensity=manifest.intensity,
        latent_shape=latent,
        latent_shift=[0.0] * settings.autoencoder.code_dim,
        latent_scale=[1.0] * settings.autoencoder.code_dim,
    )
    torch.manual_seed(0)
    LatentDiffusionBundle.build(description).save(folder)
    return folder
