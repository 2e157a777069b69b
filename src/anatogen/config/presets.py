"""Named starting points of a generator's settings: where they come from, and what they are for.

`paper` reproduces Khader et al. 2023 with the settings of its published code where the paper is silent.
`default` is what we recommend, a wavelet flow. `latent_diffusion` is what was `default` before it, and `tiny`
is that sized for tests.
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

PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "autoencoder": {
            "compression": 4,
            "wavelet_levels": 0,
            "base_width": 16,
            "decoder_width": 32,
            "num_blocks": 1,
            "num_decoder_blocks": 2,
            "num_core_blocks": 1,
            "num_codes": 16_384,
            "code_dim": 8,
        },
        "losses": {
            "l1": 4.0,
            "perceptual": 4.0,
            "commitment": 0.25,
            "adversarial_slice": 1.0,
            "adversarial_volume": 1.0,
            "feature_matching": 4.0,
            "discriminator_width": 64,
            "discriminator_start": 10_000,
            "adversarial_start": 10_000,
        },
        "autoencoder_training": {
            "batch_size": 2,
            "learning_rate": 3e-4,
            "betas": (0.5, 0.9),
            "gradient_clip": 1.0,
            "steps": 100_000,
        },
        "denoiser": {
            "kind": "factorised",
            "width": 32,
            "multipliers": (1, 2, 4, 8),
            "num_blocks": 2,
            "num_heads": 8,
            "head_dim": 32,
        },
        "diffusion": {
            "latent_scaling": "codebook_range",
            "schedule": "cosine",
            "num_train_steps": 300,
            "prediction": "eps",
            "time_sampling": "uniform",
            "loss": "l1",
            "clip_x_0": 1.0,
            "sampler": "ddpm",
            "sampling_steps": 300,
            "ema_decay": 0.995,
        },
        "diffusion_training": {"batch_size": 4, "learning_rate": 1e-4, "steps": 150_000},
        "training": {"flip": "vertical"},
    },
    "default": {"family": "wavelet_flow"},
    "latent_diffusion": {
        "autoencoder": {
            "compression": 8,
            "wavelet_levels": 1,
            "base_width": 32,
            "decoder_width": 32,
            "num_blocks": 0,
            "num_decoder_blocks": 1,
            "num_core_blocks": 2,
            "num_codes": 2_048,
            "code_dim": 4,
            "num_groups": 4,
        },
        "losses": {
            "l1": 1.0,
            "perceptual": 0.0,
            "commitment": 0.25,
            # The ratios of `paper`, from discriminators a sixteenth as large.
            "adversarial_slice": 0.25,
            "adversarial_volume": 0.25,
            "feature_matching": 1.0,
            "discriminator_width": 16,
            "discriminator_start": 2_000,
            "adversarial_start": 2_500,
        },
        "autoencoder_training": {
            "batch_size": 2,
            "learning_rate": 1e-3,
            "betas": (0.9, 0.99),
            "warmup_steps": 100,
            "decay": "cosine",
            "gradient_clip": 1.0,
            "steps": 50_000,
        },
        "denoiser": {
            "kind": "volumetric",
            "width": 64,
            "multipliers": (1, 2),
            "num_blocks": 1,
            "num_heads": 4,
            "head_dim": 32,
        },
        "diffusion": {
            "latent_scaling": "standardise",
            "schedule": "linear_flow",
            "prediction": "velocity",
            "time_sampling": "logit_normal",
            "loss": "l2",
            "sampler": "dpm_solver_pp",
            "sampling_steps": 25,
            "ema_decay": 0.999,
        },
        "diffusion_training": {
            "batch_size": 4,
            "learning_rate": 7e-4,
            "warmup_steps": 200,
            "decay": "cosine",
            "gradient_clip": 1.0,
            "steps": 100_000,
        },
    },
}
PRESETS["tiny"] = PRESETS["latent_diffusion"] | {
    # Its trainings end before discriminators pay.
    "losses": {
        "l1": 1.0,
        "perceptual": 0.0,
        "commitment": 0.25,
        "adversarial_slice": 0.0,
        "adversarial_volume": 0.0,
        "feature_matching": 0.0,
    },
    "autoencoder": PRESETS["latent_diffusion"]["autoencoder"] | {"compression": 2, "num_groups": 1},
    "autoencoder_training": PRESETS["latent_diffusion"]["autoencoder_training"] | {"steps": 2_000},
    "denoiser": PRESETS["latent_diffusion"]["denoiser"] | {"width": 48, "multipliers": (1, 2, 2), "patch": 2},
    "diffusion": PRESETS["latent_diffusion"]["diffusion"] | {"ema_decay": 0.995},
    "diffusion_training": PRESETS["latent_diffusion"]["diffusion_training"]
    | {"learning_rate": 1e-3, "steps": 2_000},
}


def preset_named(name: str) -> dict[str, Any]:
    """The nested values of a preset, for `config.resolve`.

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
    family: type[GeneratorSettings]
    if settings is not None:
        family = type(settings)
    else:
        family = family_of(start)
        named = {} if config is None else read_yaml(Path(config))
        # A whole file without the key is older than families.
        is_older = {"family", *named} == LatentDiffusionSettings.model_fields.keys()
        if ("family" in named or is_older) and family_of(named) is not family:
            start, family = {}, family_of(named)
    budgets = budget(stages_of(family, stages), minutes, steps)
    return resolve(family, settings or start, config, merged(budgets, overrides or {}))


def family_of(values: Mapping[str, Any]) -> type[GeneratorSettings]:
    """The type of settings that nested values are of.

    Raises:
        ConfigError: If they name a family that there is not.
    """
    name = values.get("family", "latent_diffusion")
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
