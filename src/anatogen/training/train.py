"""`anatogen train`: the training of whichever family of generators the settings are of."""

from collections.abc import Sequence
from pathlib import Path

from anatogen.config.presets import stages_of
from anatogen.config.settings import GeneratorSettings, LatentDiffusionSettings, WaveletFlowSettings
from anatogen.core.choices import StageName
from anatogen.core.errors import UserError
from anatogen.training.latent_diffusion import train_latent_diffusion
from anatogen.training.wavelet_flow import train_flow


def train(
    data: Path | str,
    run: Path | str,
    settings: GeneratorSettings,
    *,
    stages: Sequence[StageName] | None = None,
    autoencoder_run: Path | str | None = None,
    device: str = "auto",
    devices: int = 1,
) -> Path:
    """Trains a generator, or goes on with a training that was stopped; a finished one is left as it is.

    The arguments are those of `anatogen.train`, which explains them.

    Raises:
        UserError: If data and settings don't fit the run, or a stage is asked for that the family hasn't.
        NonFiniteLossError: If a loss is not finite.
    """
    chosen = stages_of(type(settings), stages)
    if autoencoder_run is not None:
        settings = having_autoencoder(settings)
    if isinstance(settings, WaveletFlowSettings):
        return train_flow(data, run, settings, device=device, devices=devices)
    return train_latent_diffusion(
        data, run, settings, stages=chosen, autoencoder_run=autoencoder_run, device=device, devices=devices
    )


def having_autoencoder(settings: GeneratorSettings) -> LatentDiffusionSettings:
    """The settings, if they are of a family that an autoencoder's run can be named for.

    Raises:
        UserError: If they are not.
    """
    if not isinstance(settings, LatentDiffusionSettings):
        raise UserError("a wavelet flow has no autoencoder: leave out --autoencoder-run, or name a preset")
    return settings
