"""What a model bundle says of itself: `bundle.json`, for each kind of generator."""

import json
from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from anatogen.config.settings import AutoencoderSettings, DenoiserSettings, DiffusionSettings, GANSettings
from anatogen.core.errors import UserError
from anatogen.core.files import sha256_file, sha256_json
from anatogen.core.version import __version__
from anatogen.dataset.manifest import Grid, Intensity

DESCRIPTION_NAME = "bundle.json"
FORMAT_VERSION = 1


class Release(BaseModel):
    """What those who use a published model must know; it travels with the weights.

    Attributes:
        name: By which it is called.
        summary: What its scans show, in one line.
        licence: Of the weights, as an SPDX identifier.
        attribution: Whom the licence asks to name.
        metrics: What was measured, name to value with unit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    summary: Annotated[str, Field(min_length=1)]
    licence: Annotated[str, Field(min_length=1)]
    attribution: Annotated[str, Field(min_length=1)]
    metrics: dict[str, str] = {}


class CommonDescription(BaseModel):
    """What every bundle says, whatever makes its scans.

    Attributes:
        format_version: Of this file.
        anatogen_version: Of the program that wrote it.
        grid: Shape, spacing and orientation of the scans.
        intensity: The map from [-1, 1] to the scans' unit.
        training: What is known of the training: hash of the dataset, steps, quality.
        release: Name and licence of a published model; none for one's own.
        files: SHA-256 of each weights file.
        weights_names: The weights files that a bundle of the kind has.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)
    weights_names: ClassVar[tuple[str, ...]] = ()

    format_version: int = FORMAT_VERSION
    anatogen_version: str = __version__
    grid: Grid
    intensity: Intensity
    training: dict[str, float | str] = {}
    release: Release | None = None
    files: dict[str, str] = {}

    @property
    def sha256(self) -> str:
        """Hash of all that `bundle.json` says; keys that came later don't change an older bundle's."""
        return sha256_json(self.model_dump(mode="json", exclude_unset=True))


class BundleDescription(CommonDescription):
    """`bundle.json` of a latent diffusion model.

    Attributes:
        kind: Of the generator.
        autoencoder: Architecture.
        denoiser: Architecture.
        diffusion: The process, and how it is sampled unless told otherwise.
        latent_shape: (d, h, w).
        latent_shift: Of each latent channel.
        latent_scale: Of each latent channel.
        x_0_variance: Mean variance of the clean latent given a noised one, at evenly spaced times from 0
            to 1; for ancestral sampling in any number of steps.
    """

    weights_names = ("autoencoder.safetensors", "denoiser.safetensors")

    kind: Literal["diffusion"] = "diffusion"
    autoencoder: AutoencoderSettings
    denoiser: DenoiserSettings
    diffusion: DiffusionSettings
    latent_shape: tuple[int, int, int]
    latent_shift: list[float]
    latent_scale: list[float]
    x_0_variance: list[float] = []


class GANBundleDescription(CommonDescription):
    """`bundle.json` of a WGAN-GP.

    Attributes:
        kind: Of the generator.
        gan: Architecture, and how it was trained: `kwon_compatible` says that it was with known faults.
    """

    weights_names = ("generator.safetensors",)

    kind: Literal["gan"] = "gan"
    gan: GANSettings


def read_description(folder: Path) -> BundleDescription | GANBundleDescription:
    """The description of a bundle whose weights files are there and undamaged.

    Raises:
        UserError: If the folder is no bundle, of another format version, or damaged.
    """
    path = folder / DESCRIPTION_NAME
    if not path.is_file():
        raise UserError(
            f"{folder} is not a model bundle: it has no {DESCRIPTION_NAME}. Training writes RUN/bundle."
        )
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if content["format_version"] != FORMAT_VERSION:
            raise UserError(
                f"{path} has format version {content['format_version']}, this program reads {FORMAT_VERSION}."
            )
        # Bundles were all of diffusion models before they named their kind.
        model: type[BundleDescription | GANBundleDescription] = (
            GANBundleDescription if content.get("kind") == "gan" else BundleDescription
        )
        description = model.model_validate(content)
    except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError, ValidationError) as error:
        raise UserError(f"{path} is damaged ({type(error).__name__}): copy the bundle again.") from error
    for name in description.weights_names:
        if not (folder / name).is_file() or sha256_file(folder / name) != description.files.get(name):
            raise UserError(f"{folder / name} is missing or damaged: copy the bundle again.")
    return description
