"""`anatogen train`: the training of whichever family of generators the settings are of."""

from collections.abc import Sequence
from pathlib import Path

from anatogen.config.presets import STAGES_OF
from anatogen.config.settings import GeneratorSettings, WaveletFlowSettings
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
    chosen = stages_of(settings, stages)
    if isinstance(settings, WaveletFlowSettings):
        if autoencoder_run is not None:
            raise UserError("a wavelet flow has no autoencoder: leave out --autoencoder-run")
        return train_flow(data, run, settings, device=device, devices=devices)
    return train_latent_diffusion(
        data, run, settings, stages=chosen, autoencoder_run=autoencoder_run, device=device, devices=devices
    )


def stages_of(
    settings: GeneratorSettings, stages: Sequence[StageName] | None = None
) -> tuple[StageName, ...]:
    """The stages that are trained.

    Args:
        settings: Settings of the family.
        stages: Those that are asked for; default all.

    Raises:
        UserError: If the family has no such stage.
    """
    known = STAGES_OF[type(settings)]
    for stage in stages or ():
        if stage not in known:
            raise UserError(f"stage {stage!r} is not one of a {settings.family}: use {', '.join(known)}")
    return known if stages is None else tuple(stages)
