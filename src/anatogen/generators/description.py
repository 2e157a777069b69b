"""What a model bundle says of itself: `bundle.json`, for each family of generators."""

from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from anatogen.config.settings import (
    AutoencoderSettings,
    DenoiserSettings,
    DiffusionSettings,
    FlowNetworkSettings,
    FlowSettings,
    GANSettings,
    PyramidSettings,
)
from anatogen.core.described import check_hashes, read_description_file
from anatogen.core.errors import UserError
from anatogen.core.files import sha256_json
from anatogen.core.version import __version__
from anatogen.dataset.manifest import Grid, Intensity

DESCRIPTION_NAME = "bundle.json"
FORMAT_VERSION = 1
_MEND = "copy the bundle again"


class Release(BaseModel):
    """What those who use a published model must know; it travels with the weights.

    Attributes:
        name: Name that it is called by.
        summary: What its scans show, in one line.
        licence: Licence of the weights, as an SPDX identifier.
        attribution: Whom the licence asks to name.
        metrics: What was measured, name to value with unit.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")]
    summary: Annotated[str, Field(min_length=1)]
    licence: Annotated[str, Field(min_length=1)]
    attribution: Annotated[str, Field(min_length=1)]
    metrics: dict[str, str] = {}


class Description(BaseModel):
    """What every bundle says, whatever makes its scans.

    Attributes:
        format_version: Version of this file's format.
        anatogen_version: Version of the program that wrote it.
        kind: Family of the generator.
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
    kind: str
    grid: Grid
    intensity: Intensity
    training: dict[str, float | str] = {}
    release: Release | None = None
    files: dict[str, str] = {}

    @property
    def sha256(self) -> str:
        """Hash of all that `bundle.json` says; keys that came later don't change an older bundle's."""
        return sha256_json(self.model_dump(mode="json", exclude_unset=True))

    def text(self) -> str:
        """What the bundle makes, as text for people."""
        lines = [f"scans: {self.intensity.modality}, {self.grid.text()}"]
        if self.release is not None:
            lines.append(f"licence: {self.release.licence}, {self.release.attribution}")
            lines += [f"{name}: {value}" for name, value in self.release.metrics.items()]
        return "\n".join(lines)


class LatentDiffusionDescription(Description):
    """`bundle.json` of a latent diffusion model.

    Attributes:
        autoencoder: Its architecture.
        denoiser: Its architecture.
        diffusion: The process, and how it is sampled unless told otherwise.
        latent_shape: (d, h, w).
        latent_shift: Shift of each latent channel.
        latent_scale: Scale of each latent channel.
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


class FlowStatistics(BaseModel):
    """How the values of a wavelet flow's levels are scaled; of the training scans.

    Channels are the image and, if scans have a background, the foreground.

    Attributes:
        image_shift: Mean of each channel of the coarse image.
        image_scale: Its standard deviation.
        band_scales: Root mean square of each detail band of the image, by level, finest first; 1 of the
            foreground's.
        texture_shift: Mean over scans of the logarithm of the image's details' root mean square, by level.
        texture_scale: Its standard deviation.
        texture_correlation: Its correlations between levels.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_shift: list[float]
    image_scale: list[float]
    band_scales: list[list[float]]
    texture_shift: list[float]
    texture_scale: list[float]
    texture_correlation: list[list[float]]


class WaveletFlowDescription(Description):
    """`bundle.json` of a wavelet flow.

    Attributes:
        pyramid: Its levels.
        coarse: Architecture of the coarse level's network.
        details: Architecture of the other levels' networks.
        flow: The process, and how it is sampled unless told otherwise.
        statistics: How the levels' values are scaled.
    """

    weights_names = ("networks.safetensors",)

    kind: Literal["wavelet_flow"] = "wavelet_flow"
    pyramid: PyramidSettings
    coarse: FlowNetworkSettings
    details: FlowNetworkSettings
    flow: FlowSettings
    statistics: FlowStatistics


class WGANGPDescription(Description):
    """`bundle.json` of a WGAN-GP.

    Attributes:
        gan: Architecture, and how it was trained: `kwon_compatible` says that it was with known faults.
    """

    weights_names = ("generator.safetensors",)

    kind: Literal["gan"] = "gan"
    gan: GANSettings


AnyDescription = LatentDiffusionDescription | WaveletFlowDescription | WGANGPDescription
_ANY: TypeAdapter[AnyDescription] = TypeAdapter(Annotated[AnyDescription, Field(discriminator="kind")])


def read_description(folder: Path) -> AnyDescription:
    """The description of a bundle whose weights files are there and undamaged.

    Raises:
        UserError: If the folder is no bundle, damaged, or of another format version or program.
    """
    description = read_description_file(
        folder / DESCRIPTION_NAME,
        _parse,
        version=FORMAT_VERSION,
        missing=f"{folder} is not a model bundle: it has no {DESCRIPTION_NAME}. Training writes RUN/bundle.",
        mend=_MEND,
    )
    hashes = {name: description.files.get(name, "") for name in description.weights_names}
    check_hashes(folder, hashes, mend=_MEND)
    return description


def _parse(content: dict[str, Any]) -> AnyDescription:
    try:
        return _ANY.validate_python(content)
    except ValidationError as error:
        # The first part of a place is the kind.
        places = [problem["loc"][1:] for problem in error.errors() if problem["type"] == "extra_forbidden"]
        if not places:
            raise
        unknown = ", ".join(".".join(map(str, place)) for place in places)
        raise UserError(
            f"{unknown} is unknown to anatogen {__version__}: use the version that wrote it "
            f"({content.get('anatogen_version')})"
        ) from error


def bundled_weights(folder: Path, key: str) -> float | str | None:
    """Hash of the trained weights that a bundle was made of; None without a bundle that can be used.

    Args:
        folder: The bundle's.
        key: What `training` calls it.
    """
    try:
        return read_description(folder).training.get(key)
    except UserError:
        return None
