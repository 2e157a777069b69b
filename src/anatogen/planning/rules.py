"""The rules of a plan: from a fingerprint and a budget to settings, each decision with its reason.

Pure: what things cost is asked of functions that are given. docs/planning.md lists the rules with their
sources; change both together.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from anatogen.config.presets import preset_named
from anatogen.config.resolving import merged, resolve
from anatogen.config.settings import Settings
from anatogen.core.errors import UserError
from anatogen.dataset.manifest import Grid
from anatogen.planning.fingerprint import Fingerprint
from anatogen.planning.grid_rules import MAX_VOXELS, choose_grid, coarser, grid_of, times
from anatogen.planning.network_rules import choose_networks

# What a stage takes: (stage, settings, grid) -> GB at its peak, or seconds of a step.
Cost = Callable[[str, Settings, Grid], float]

STAGES = ("autoencoder", "diffusion")
MIN_PATIENTS = 10
# Voxels below which an axis makes no volume.
_MIN_SIZE = 8
# The audit for copies needs about so many held-out patients; no more than this share is held out for it.
_WANTED_TEST_PATIENTS = 20
_MAX_TEST_SHARE = 0.3
_CT_WINDOW = (-1000, 1000)
# Scans that are less like one another mirrored, by more than this and twice its error, have sides.
_MIRROR_GAP = 0.01
# Share of the memory that is planned with: an estimate may be wrong by a fifth.
_USABLE_MEMORY = 1 / 1.2
# Shares of the hours; the rest is for preparing, encoding, previews and sampling.
STAGE_SHARES = {"autoencoder": 0.45, "diffusion": 0.45}
# Below these numbers of steps no training was seen to give anatomy.
MIN_STEPS = {"autoencoder": 2_000, "diffusion": 4_000}
# A moving average over 1,000 steps needs several thousand.
_LONG_TRAINING = 5_000
# Batches of the two stages that are tried where the preset's do not fit.
_SMALLER_BATCHES = ((2, 2), (1, 2), (1, 1))
# With fewer scans, or after so many passes, copies must be expected.
_FEW_SCANS = 500
_PASSES_THAT_COPIED = 187
_DEFORMATIONS = 64


@dataclass(frozen=True)
class Budget:
    """What there is to train with.

    Attributes:
        memory_gb: Of the GPU, or of the machine without one, in 10^9 bytes.
        hours: For everything.
        on_gpu: Whether a GPU is used.
        bf16: Whether it has bfloat16.
    """

    memory_gb: float
    hours: float
    on_gpu: bool = False
    bf16: bool = False

    @property
    def usable_gb(self) -> float:
        """What is planned with."""
        return self.memory_gb * _USABLE_MEMORY


@dataclass(frozen=True)
class Decisions:
    """What the rules came to.

    Attributes:
        prepare: Nested values of `PrepareConfig`.
        training: Nested values of `Settings`, over the preset.
        grid: Of the prepared scans.
        reasons: One line for each decision.
        steps: Of each stage; empty until `decide_budgets`.
        warnings: What may go wrong, one line each; likewise.
    """

    prepare: dict[str, Any]
    training: dict[str, Any]
    grid: Grid
    reasons: tuple[str, ...]
    steps: Mapping[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


def decide(
    fingerprint: Fingerprint,
    budget: Budget,
    given: Mapping[str, Any],
    given_training: Mapping[str, Any],
    memory_gb: Cost,
    seconds_per_step: Cost,
    preset: str = "default",
) -> Decisions:
    """Decides on everything but the lengths of the stages, in the order in which one needs the other.

    Args:
        fingerprint: Of the scans.
        budget: Memory and time.
        given: Nested values of `PrepareConfig` that are settled: by a recipe, or the user.
        given_training: Nested values of `Settings` that the user settled.
        memory_gb: Peak of a stage.
        seconds_per_step: Time of a stage's step, about.
        preset: Where what no rule decides comes from.

    Raises:
        UserError: If the scans or the memory can't give a generator; one line with what would.
    """
    _require_enough(fingerprint)
    reasons: list[str] = []
    orientation = str(given.get("orientation", fingerprint.orientation))
    if "orientation" not in given:
        reasons.append(f"orientation {orientation}: the slice plane of most scans")
    prepare = {"orientation": orientation} | _intensity(fingerprint, given, reasons)
    views = {
        "flip": _flip(fingerprint, given_training, reasons),
        "deformations": _deformations(fingerprint, given_training, reasons),
    }

    def values_on(grid: Grid, batches: tuple[int, int] | None = None) -> dict[str, Any]:
        values = merged(choose_networks(grid, []), {"training": views})
        if batches is not None:
            sizes = {f"{s}_training": {"batch_size": b} for s, b in zip(STAGES, batches, strict=True)}
            values = merged(values, sizes)
        return merged(values, given_training)

    def peak(grid: Grid, batches: tuple[int, int] | None = None) -> float:
        settings = settings_of(values_on(grid, batches), preset)
        return max(memory_gb(stage, settings, grid) for stage in STAGES)

    def too_much(grid: Grid) -> str | None:
        if max(grid.shape) > MAX_VOXELS:
            return f"{MAX_VOXELS} voxels an axis"
        settings = settings_of(values_on(grid), preset)
        for stage in STAGES:
            seconds = seconds_per_step(stage, settings, grid)
            if 3600 * budget.hours * STAGE_SHARES[stage] < MIN_STEPS[stage] * seconds:
                return f"{budget.hours:g} hours"
        # Last, for it takes a second to count.
        return f"{budget.memory_gb:.3g} GB of memory" if peak(grid) > budget.usable_gb else None

    grid, geometry = choose_grid(fingerprint, given, orientation, too_much, reasons)
    choose_networks(grid, reasons)
    batches = _batches(grid, peak, budget, reasons)
    reasons.append(_precision(budget))
    prepare |= geometry | _splits(fingerprint, given, reasons)
    return Decisions(merged(prepare, given), values_on(grid, batches), grid, tuple(reasons))


def decide_budgets(
    decisions: Decisions,
    fingerprint: Fingerprint,
    budget: Budget,
    given_training: Mapping[str, Any],
    seconds_per_step: Mapping[str, float],
    preset: str = "default",
) -> Decisions:
    """Adds to decisions how long each stage is trained, and what to beware of.

    Args:
        decisions: Of `decide`.
        fingerprint: Of the scans.
        budget: Memory and time.
        given_training: Nested values of `Settings` that the user settled.
        seconds_per_step: Time of each stage's step.
        preset: Where what no rule decides comes from.
    """
    reasons = list(decisions.reasons)
    training, steps = decisions.training, dict[str, int]()
    settings = settings_of(training, preset)
    spare = 0.0
    for stage in STAGES:
        name, seconds = f"{stage}_training", seconds_per_step[stage]
        own, settled = getattr(settings, name), given_training.get(name, {})
        # What stage one leaves is stage two's.
        available = 3600 * budget.hours * STAGE_SHARES[stage] + spare
        reachable = max(1, int(available / seconds))
        if "steps" in settled or "minutes" in settled:
            of_minutes = math.inf if own.minutes is None else 60 * own.minutes / seconds
            steps[stage] = max(1, int(min(own.steps or math.inf, of_minutes)))
            reasons.append(f"{stage}: {steps[stage]:,} steps of {seconds:.2g} s, as settled")
        else:
            steps[stage] = min(reachable, own.steps or reachable)
            values = {
                "steps": steps[stage],
                "minutes": round(available / 60, 2),
                "warmup_steps": min(own.warmup_steps, steps[stage] // 10),
            }
            training = merged(training, {name: values | settled})
            why = f"what {available / 3600:.2g} hours hold"
            if steps[stage] < reachable:
                why = "the preset's: longer trainings were not measured"
            reasons.append(f"{stage}: {steps[stage]:,} steps of {seconds:.2g} s, {why}")
        spare = max(0.0, available - steps[stage] * seconds)
    if "ema_decay" not in given_training.get("diffusion", {}) and steps["diffusion"] < _LONG_TRAINING:
        training = merged(training, {"diffusion": {"ema_decay": 0.995}})
        reasons.append("moving average over 200 steps: over 1,000 it would hold too much of so short a start")
    warnings = _warnings(decisions, fingerprint, budget, steps, settings)
    return replace(decisions, training=training, steps=steps, reasons=tuple(reasons), warnings=warnings)


def settings_of(values: Mapping[str, Any], preset: str) -> Settings:
    """The settings of nested values over a preset."""
    return resolve(Settings, merged(preset_named(preset), values))


def num_training_scans(fingerprint: Fingerprint, prepare: Mapping[str, Any]) -> int:
    """Scans that a generator will learn from, about."""
    split = prepare.get("split", {})
    share = 1 - split.get("validation", 0.1) - split.get("test", 0.1)
    return max(1, round(share * fingerprint.num_scans))


def _require_enough(fingerprint: Fingerprint) -> None:
    patients = fingerprint.num_patients
    if patients < MIN_PATIENTS:
        raise UserError(
            f"{fingerprint.num_scans} scans of {patients} patients are too few, for a generator would only "
            f"store them: bring scans of at least {MIN_PATIENTS} patients, better of some hundred"
        )
    if min(fingerprint.size.median) < _MIN_SIZE:
        raise UserError(
            f"the scans have {times(fingerprint.size.median)} voxels in the median, which is 2D or nearly: "
            f"volumes of at least {_MIN_SIZE} slices are needed"
        )


def _intensity(fingerprint: Fingerprint, given: Mapping[str, Any], reasons: list[str]) -> dict[str, Any]:
    modality = given.get("modality", "auto")
    modality = fingerprint.modality if modality == "auto" else modality
    if modality == "MR":
        differs = fingerprint.spread_of_high
        reasons.append(
            "each MR scan's own percentiles become -1 and +1: its unit is arbitrary"
            + (f" (here tissue differs up to {differs:,.0f}-fold)" if differs > 2 else "")
        )
        return {"modality": modality}
    window = given.get("window_hu", _CT_WINDOW)
    why = (
        "as settled" if "window_hu" in given else "air to bone; one for all, so that synthetic scans have HU"
    )
    reasons.append(f"window {window[0]:g} to {window[1]:g} HU: {why}")
    return {"modality": modality, "window_hu": list(window)}


def _flip(fingerprint: Fingerprint, given_training: Mapping[str, Any], reasons: list[str]) -> str:
    settled = given_training.get("training", {}).get("flip")
    if settled is not None:
        reasons.append(f"flip {settled}, as settled")
        return str(settled)
    straight, mirrored = fingerprint.likeness, fingerprint.mirrored_likeness
    found = f"correlation of two scans {straight:.2f}, with one mirrored {mirrored:.2f}"
    if straight - mirrored > _MIRROR_GAP + 2 * fingerprint.mirror_error:
        reasons.append(f"no flips, for left and right differ: {found}")
        return "none"
    reasons.append(f"half of the scans are mirrored, for left and right are alike: {found}")
    return "left_right"


def _deformations(fingerprint: Fingerprint, given_training: Mapping[str, Any], reasons: list[str]) -> int:
    settled = given_training.get("training", {}).get("deformations")
    if settled is not None:
        reasons.append(f"{settled} deformed copies of each scan, as settled")
        return int(settled)
    if fingerprint.num_scans >= _FEW_SCANS:
        return 0
    reasons.append(
        f"{_DEFORMATIONS} deformed copies of each scan for stage two: it would store "
        f"{fingerprint.num_scans} scans alone"
    )
    return _DEFORMATIONS


def _batches(
    grid: Grid,
    peak: Callable[[Grid, tuple[int, int] | None], float],
    budget: Budget,
    reasons: list[str],
) -> tuple[int, int] | None:
    """Batches of the two stages; None for the preset's.

    Raises:
        UserError: If the grid does not fit at batch 1, with one that does.
    """
    if peak(grid, None) <= budget.usable_gb:
        reasons.append("the preset's batches: small ones with large steps learned faster in equal time")
        return None
    for batches in _SMALLER_BATCHES:
        if peak(grid, batches) <= budget.usable_gb:
            reasons.append(
                f"batches of {batches[0]} and {batches[1]}: more do not fit into {budget.memory_gb:.3g} GB"
            )
            return batches
    d, h, w = (size * step for size, step in zip(grid.shape, grid.spacing_mm, strict=True))
    needed = peak(grid, (1, 1)) / _USABLE_MEMORY
    problem = (
        f"the grid of {times(grid.shape)} voxels needs {needed:.1f} GB at batch 1, and there are "
        f"{budget.memory_gb:.3g} GB"
    )
    smaller = grid
    while max(smaller.shape) > 8:
        smaller = grid_of((d, h, w), coarser(smaller.spacing_mm), grid_codes(grid))
        if peak(smaller, (1, 1)) <= budget.usable_gb:
            spacing, shape = (
                ",".join(f"{value:g}" for value in values) for values in (smaller.spacing_mm, smaller.shape)
            )
            raise UserError(f"{problem}: spacing_mm=[{spacing}] shape=[{shape}] fits")
    raise UserError(f"{problem}, in which no grid fits: use a machine with more")


def grid_codes(grid: Grid) -> str:
    """Directions in which (D, H, W) of a grid grow."""
    return "".join(grid.axis_codes)


def _precision(budget: Budget) -> str:
    if budget.bf16:
        return "bfloat16 where it is safe: the GPU has it"
    if budget.on_gpu:
        return "full precision: the GPU has no bfloat16"
    return "full precision: on most CPUs bfloat16 convolutions are hundreds of times slower"


def _splits(fingerprint: Fingerprint, given: Mapping[str, Any], reasons: list[str]) -> dict[str, Any]:
    if "split" in given:
        return {}
    share = _WANTED_TEST_PATIENTS / fingerprint.num_patients
    test = math.floor(100 * min(_MAX_TEST_SHARE, max(0.1, share))) / 100
    why = f": the audit for copies wants about {_WANTED_TEST_PATIENTS} unseen ones" if test > 0.1 else ""
    reasons.append(f"{test:.0%} of the patients for the test and 10% for validation{why}")
    return {"split": {"validation": 0.1, "test": test}}


def _warnings(
    decisions: Decisions,
    fingerprint: Fingerprint,
    budget: Budget,
    steps: Mapping[str, int],
    settings: Settings,
) -> tuple[str, ...]:
    warnings = []
    scans = num_training_scans(fingerprint, decisions.prepare)
    passes = steps["diffusion"] * settings.diffusion_training.batch_size / scans
    if scans < _FEW_SCANS or passes >= _PASSES_THAT_COPIED:
        warnings.append(
            f"it may store its {scans} training scans: stage two sees each {passes:,.0f} times, and with 108 "
            f"scans {_PASSES_THAT_COPIED} times were too many; release nothing before `anatogen evaluate` "
            "has looked for copies"
        )
    warnings += [
        f"{budget.hours:g} hours hold {steps[stage]:,} steps of stage {stage}; with less than "
        f"{MIN_STEPS[stage]:,} no anatomy was ever seen: give more --hours, or a coarser grid"
        for stage in STAGES
        if steps[stage] < MIN_STEPS[stage]
    ]
    told = {"patient_pattern", "patient_csv"} & decisions.prepare.keys()
    is_any_folder = decisions.prepare.get("recipe", "folder") == "folder"
    if fingerprint.num_patients == fingerprint.num_scans and is_any_folder and not told:
        warnings.append(
            "each scan counts as a patient: if one has several, set patient_pattern or patient_csv, or they "
            "leak from training into the test"
        )
    if fingerprint.num_left_out:
        warnings.append(
            f"{fingerprint.num_left_out} scans of {fingerprint.num_left_out + fingerprint.num_measured} that "
            "were looked at can't be used: `anatogen doctor` says why"
        )
    return tuple(warnings)
