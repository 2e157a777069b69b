"""A run's folder belongs to one training: one dataset, one set of settings, one autoencoder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from anatogen.config.resolving import Section, read_yaml, resolve, save_yaml
from anatogen.config.settings import LatentDiffusionSettings
from anatogen.core.errors import ConfigError, UserError
from anatogen.core.files import write_text
from anatogen.core.provenance import write_provenance

_DATASET_NAME = "dataset.sha256"
_PROVENANCE_NAME = "provenance.json"
# What may differ when a run is resumed: how long it goes on, and when it shows itself.
_CHANGEABLE = (
    "_training.steps",
    "_training.minutes",
    "training.checkpoint_minutes",
    "training.preview_minutes",
    "training.require_fit_autoencoder",
)


def read_settings(run: Path) -> LatentDiffusionSettings:
    """The settings that a run was started with.

    Raises:
        UserError: If the folder is no run, or its settings are not of this version.
    """
    path = run / "config.yaml"
    if not path.is_file():
        raise UserError(f"{run} is not a training run: it has no config.yaml")
    try:
        return resolve(LatentDiffusionSettings, file=path)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def claim_run(
    run: Path, dataset_sha256: str, settings: Section, seed: int, *, open_sections: Sequence[str] = ()
) -> None:
    """Makes a folder this training's, or checks that it is; `config.yaml` comes last.

    Args:
        run: The folder.
        dataset_sha256: Hash of all that it learns from.
        settings: Configuration of the training.
        seed: Seed of all that is random in it.
        open_sections: Sections of the settings that may still differ from those of the run.

    Raises:
        UserError: If it holds a run with other settings or on other data, or something else.
    """
    if run.exists() and not run.is_dir():
        raise UserError(f"{run} is a file: name a folder for the run")
    dataset, config = run / _DATASET_NAME, run / "config.yaml"
    if config.exists():
        if not read_yaml(config).keys() <= settings.model_dump().keys():
            raise UserError(f"{run} holds a run that trains another kind of model: choose another folder")
        saved = resolve(type(settings), file=config)
        before, now = (_flat(value.model_dump(mode="json")) for value in (saved, settings))
        changed = [
            name
            for name in now
            if now[name] != before.get(name)
            and not name.endswith(_CHANGEABLE)
            and name.split(".")[0] not in open_sections
        ]
        if changed:
            listing = ", ".join(f"{name} was {before.get(name)}, is {now[name]}" for name in changed)
            raise UserError(f"{run} holds a run with other settings ({listing}): choose another folder")
        if dataset.read_text(encoding="utf-8").strip() != dataset_sha256:
            raise UserError(f"{run} holds a run on other data: choose another folder")
    elif run.exists() and not all(_is_begun(entry) for entry in run.iterdir()):
        raise UserError(f"{run} is not empty and holds no run: choose another folder")
    run.mkdir(parents=True, exist_ok=True)
    write_text(dataset, dataset_sha256 + "\n")
    if not config.exists():
        # That of the first call: a later one may do nothing.
        write_provenance(run / _PROVENANCE_NAME, {"dataset": dataset_sha256}, seed)
    save_yaml(settings, config)


def _is_begun(entry: Path) -> bool:
    """Whether the entry of a run's folder may be there before its config.yaml, if it was killed early."""
    return entry.name in (_DATASET_NAME, _PROVENANCE_NAME) or entry.name.startswith(".part-")


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
