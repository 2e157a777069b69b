"""From a bundle's folder, or the name of a model that comes with the package, to the bundle of its family."""

from pathlib import Path

import torch

from anatogen.core.errors import UserError
from anatogen.generators.bundle import Bundle
from anatogen.generators.description import (
    Description,
    LatentDiffusionDescription,
    WaveletFlowDescription,
    WGANGPDescription,
    read_description,
)
from anatogen.generators.latent_diffusion import LatentDiffusionBundle
from anatogen.generators.shipped import bundle_folder
from anatogen.generators.wavelet_flow import WaveletFlowBundle
from anatogen.generators.wgan_gp import WGANGPBundle

FAMILIES: dict[type[Description], type[Bundle]] = {
    LatentDiffusionDescription: LatentDiffusionBundle,
    WaveletFlowDescription: WaveletFlowBundle,
    WGANGPDescription: WGANGPBundle,
}


def load_bundle(folder: Path | str, device: str | torch.device = "cpu") -> Bundle:
    """Reads a bundle of any family and checks its weights against their hashes.

    Args:
        folder: What `anatogen train` wrote as RUN/bundle, or the name of a model that comes with the package.
        device: Where to sample.

    Raises:
        UserError: If the folder is no bundle, of another format version, or damaged.
    """
    folder = bundle_folder(folder)
    description = read_description(folder)
    return FAMILIES[type(description)].load(folder, description).to(device)


def load_latent_diffusion(folder: Path | str, device: str | torch.device = "cpu") -> LatentDiffusionBundle:
    """`load_bundle` for what needs an autoencoder and a denoiser.

    Raises:
        UserError: As `load_bundle`; or if the bundle is of another family.
    """
    bundle = load_bundle(folder, device)
    if not isinstance(bundle, LatentDiffusionBundle):
        raise UserError(
            f"{folder} is the bundle of a {bundle.family}, which has no autoencoder and no denoiser: "
            f"name one of a {LatentDiffusionBundle.family}"
        )
    return bundle
