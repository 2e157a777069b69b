"""`anatogen train`: the training of whichever family of generators the settings are of."""

from collections.abc import Sequence
from pathlib import Path

from anatogen.config.presets import stages_of
from anatogen.config.settings import GeneratorSettings, WaveletFlowSettings
from anatogen.core.choices import StageName
from anatogen.core.errors import UserError
from anatogen.training.latent_diffusion import train_latent_diffusion, with_autoencoder_of
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
    settings, chosen = asked_for(settings, stages, run, autoencoder_run)
    if isinstance(settings, WaveletFlowSettings):
        return train_flow(data, run, settings, device=device, devices=devices)
    return train_latent_diffusion(
        data, run, settings, stages=chosen, autoencoder_run=autoencoder_run, device=device, devices=devices
    )


def asked_for(
    settings: GeneratorSettings,
    stages: Sequence[StageName] | None,
    run: Path | str,
    autoencoder_run: Path | str | None,
) -> tuple[GeneratorSettings, tuple[StageName, ...]]:
    """The settings and the stages of a call of `train`.

    A trained autoencoder that is used comes with its settings, and is not trained.

    Args:
        settings: Those of the call.
        stages: The stages that are asked for; default all that are to be trained.
        run: Folder of the run.
        autoencoder_run: Run whose autoencoder is used; default this run's own.

    Raises:
        UserError: If the family has no such stage or no autoencoder, or the named run holds none.
    """
    chosen = stages_of(type(settings), stages)
    if isinstance(settings, WaveletFlowSettings):
        if autoencoder_run is not None:
            raise UserError(
                "a wavelet flow has no autoencoder: leave out --autoencoder-run, or name a preset"
            )
        return settings, chosen
    if autoencoder_run is not None and "autoencoder" in chosen:
        if stages is not None:
            raise UserError(
                "--autoencoder-run names a trained autoencoder, and stage autoencoder trains one: leave one "
                "of the two out"
            )
        chosen = ("diffusion",)
    if "autoencoder" not in chosen:
        settings = with_autoencoder_of(Path(run if autoencoder_run is None else autoencoder_run), settings)
    return settings, chosen
