"""Named starting points of a generator's settings: where they come from, and what they are for.

`paper` reproduces Khader et al. 2023, `default` is what we recommend, a wavelet flow: each is a family as its
settings are when nobody sets them.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from anatogen.config.resolving import merged, read_yaml, resolve
from anatogen.config.settings import (
    GANConfig,
    GeneratorSettings,
    LatentDiffusionSettings,
    WaveletFlowSettings,
)
from anatogen.core.choices import StageName
from anatogen.core.errors import ConfigError

FAMILIES: dict[str, type[GeneratorSettings]] = {
    "latent_diffusion": LatentDiffusionSettings,
    "wavelet_flow": WaveletFlowSettings,
}
# The sections that end in _training say how long each is trained.
STAGES_OF: dict[type[GeneratorSettings], tuple[StageName, ...]] = {
    LatentDiffusionSettings: ("autoencoder", "diffusion"),
    WaveletFlowSettings: ("flow",),
}

PRESETS: dict[str, GeneratorSettings] = {"paper": LatentDiffusionSettings(), "default": WaveletFlowSettings()}


def preset_named(name: str) -> GeneratorSettings:
    """The settings of a preset.

    Raises:
        ConfigError: If there is none of the name.
    """
    if name not in PRESETS:
        raise ConfigError(f"preset {name!r} is unknown: use {', '.join(PRESETS)}")
    return PRESETS[name]


def training_settings(
    preset: str = "default",
    overrides: Mapping[str, Any] | None = None,
    *,
    settings: GeneratorSettings | None = None,
    config: Path | str | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    stages: Iterable[str] | None = None,
) -> GeneratorSettings:
    """The settings of a training: preset, then YAML file, then the budget of its stages, then overrides.

    Args:
        preset: Name of a preset; a file of another family than the preset's stands in its place.
        overrides: Nested values, e.g. {"details": {"width": 96}}.
        settings: Stands in the preset's place.
        config: YAML file.
        minutes: Budget of each stage in minutes.
        steps: Budget of each stage in steps.
        stages: The stages that the budget is for; default all.

    Raises:
        ConfigError: Listing all that is wrong, or if the family has no such stage.
    """
    start = preset_named(preset)
    if settings is not None:
        start = settings
    elif config is not None and "family" in (named := read_yaml(Path(config))):
        family = family_of(named)
        start = start if isinstance(start, family) else family()
    budgets = budget(stages_of(type(start), stages), minutes, steps)
    return resolve(type(start), start, config, merged(budgets, overrides or {}))


def family_of(values: Mapping[str, Any]) -> type[GeneratorSettings]:
    """The type of settings that nested values with the key "family" are of.

    Raises:
        ConfigError: If they name a family that there is not.
    """
    name = values["family"]
    if name not in FAMILIES:
        raise ConfigError(f"family {name!r} is unknown: use {', '.join(FAMILIES)}")
    return FAMILIES[name]


def stages_of(family: type[GeneratorSettings], stages: Iterable[str] | None = None) -> tuple[StageName, ...]:
    """The stages that are trained.

    Args:
        family: Type of the settings.
        stages: Those that are asked for; default all.

    Raises:
        ConfigError: If the family has no such stage.
    """
    known = STAGES_OF[family]
    asked = known if stages is None else tuple(stages)
    for stage in asked:
        if stage not in known:
            name = family.model_fields["family"].default
            raise ConfigError(
                f"stage {stage!r} is none of the family {name}, which has {', '.join(known)}: name another "
                "stage or preset"
            )
    return tuple(stage for stage in known if stage in asked)


def gan_settings(
    overrides: Mapping[str, Any] | None = None,
    *,
    settings: GANConfig | None = None,
    config: Path | str | None = None,
    minutes: float | None = None,
    steps: int | None = None,
) -> GANConfig:
    """The settings of a WGAN-GP: the defaults, then YAML file, then the budget, then overrides.

    Args:
        overrides: Nested values, e.g. {"gan": {"width": 32}}.
        settings: Stand in the defaults' place.
        config: YAML file.
        minutes: Budget in minutes.
        steps: Budget in steps.

    Raises:
        ConfigError: Listing all that is wrong.
    """
    return resolve(GANConfig, settings, config, merged(budget(("gan",), minutes, steps), overrides or {}))


def split_overrides(overrides: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nested values of `prepare` and those of `train`, which are the ones of a section of any family."""
    sections = {name for family in FAMILIES.values() for name in family.model_fields}
    training = {key: value for key, value in overrides.items() if key in sections}
    return {key: value for key, value in overrides.items() if key not in sections}, training


def budget(stages: Iterable[str], minutes: float | None, steps: int | None) -> dict[str, Any]:
    """Overrides by which a budget that is given stands for the preset's, whichever kind that was.

    Args:
        stages: Names of the stages.
        minutes: Budget of each in minutes.
        steps: Budget of each in steps.
    """
    if minutes is None and steps is None:
        return {}
    return {f"{stage}_training": {"minutes": minutes, "steps": steps} for stage in stages}
