"""The rules of a plan: from a fingerprint and a budget to settings, each decision with its reason.

Here are those that all families of generators share; what a family adds is its `FamilyRules`. Pure: what
things cost is asked of functions that are given. docs/planning.md lists the rules with their sources; change
both together.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Any

from anatogen.config.presets import STAGES_OF, preset_named
from anatogen.config.resolving import merged, resolve
from anatogen.config.settings import (
    DiffusionOptimiserSettings,
    GeneratorSettings,
    LatentDiffusionSettings,
    WaveletFlowSettings,
)
from anatogen.core.errors import UserError
from anatogen.dataset.manifest import Grid
from anatogen.planning.decisions import Decision, Why
from anatogen.planning.family_rules import FamilyRules, holds_out
from anatogen.planning.fingerprint import Fingerprint
from anatogen.planning.grid_rules import MAX_VOXELS, choose_grid, coarser, grid_of
from anatogen.planning.latent_diffusion_rules import LATENT_DIFFUSION
from anatogen.planning.wavelet_flow_rules import WAVELET_FLOW
from anatogen.report.numbers import times

# What a stage takes: (stage, settings, grid) -> GB at its peak, or seconds of a step.
Cost = Callable[[str, GeneratorSettings, Grid], float]

RULES: dict[type[GeneratorSettings], FamilyRules] = {
    LatentDiffusionSettings: LATENT_DIFFUSION,
    WaveletFlowSettings: WAVELET_FLOW,
}
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
# Share of the hours for the stages, alike for each; the rest is for preparing, encoding, previews, sampling.
_TRAINING_SHARE = 0.9


@dataclass(frozen=True)
class Budget:
    """Memory and time to train with.

    Attributes:
        memory_gb: Memory of the GPU, or of the machine without one, in 10^9 bytes.
        hours: Hours for everything.
        on_gpu: Whether a GPU is used.
        bf16: Whether it has bfloat16.
    """

    memory_gb: float
    hours: float
    on_gpu: bool = False
    bf16: bool = False

    @property
    def usable_gb(self) -> float:
        """Memory that is planned with."""
        return self.memory_gb * _USABLE_MEMORY


@dataclass(frozen=True)
class Decisions:
    """What the rules decided.

    Attributes:
        prepare: Nested values of `PrepareConfig`.
        training: Nested values of the generator's settings, over the preset.
        grid: Grid of the prepared scans.
        made: Each decision with its reason.
        steps: Number of steps of each stage; empty until `decide_budgets`.
        beware: What may go wrong; likewise.
    """

    prepare: dict[str, Any]
    training: dict[str, Any]
    grid: Grid
    made: tuple[Decision, ...]
    steps: Mapping[str, int] = field(default_factory=dict)
    beware: tuple[Decision, ...] = ()

    @property
    def reasons(self) -> tuple[str, ...]:
        """One line for each decision."""
        return tuple(map(str, self.made))

    @property
    def warnings(self) -> tuple[str, ...]:
        """One line for each thing that may go wrong."""
        return tuple(map(str, self.beware))


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
        fingerprint: Fingerprint of the scans.
        budget: Memory and time.
        given: Nested values of `PrepareConfig` that are settled: by a recipe, or the user.
        given_training: Nested values of the generator's settings that the user settled.
        memory_gb: Peak memory of a stage.
        seconds_per_step: Approximate time of a stage's step.
        preset: Where what no rule decides comes from.

    Raises:
        UserError: If the scans or the memory can't give a generator; one line with what would.
    """
    _require_enough(fingerprint)
    stages, rules = stages_planned(preset), rules_of(preset)
    orientation = str(given.get("orientation", fingerprint.orientation))
    views = [_flip(fingerprint, given_training), *rules.against_copies(fingerprint, given, given_training)]

    # By stage; those that are settled stay.
    smaller_batches = [
        {
            stage: given_training.get(f"{stage}_training", {}).get("batch_size") or tried
            for stage, tried in zip(stages, batches, strict=True)
        }
        for batches in rules.smaller_batches
    ]

    def values_on(grid: Grid, batches: Mapping[str, int] | None = None) -> dict[str, Any]:
        values = _values_of([*rules.networks(grid), *views])
        if batches is not None:
            values = merged(values, _of_batches(preset, batches))
        return merged(values, given_training)

    def peak(grid: Grid, batches: Mapping[str, int] | None = None) -> float:
        settings = settings_of(values_on(grid, batches), preset)
        return max(memory_gb(stage, settings, grid) for stage in stages)

    def too_much(grid: Grid) -> str | None:
        if max(grid.shape) > MAX_VOXELS:
            return f"{MAX_VOXELS} voxels an axis"
        settings = settings_of(values_on(grid), preset)
        for stage in stages:
            seconds = rules.min_steps[stage] * seconds_per_step(stage, settings, grid)
            if 3600 * budget.hours * _TRAINING_SHARE / len(stages) < seconds:
                return f"{budget.hours:g} hours"
        # Last, for it takes a second to count.
        return f"{budget.memory_gb:.3g} GB of memory" if peak(grid) > budget.usable_gb else None

    intensity = _intensity(fingerprint, given)
    grid, geometry = choose_grid(fingerprint, given, orientation, too_much)
    batches = _batches(grid, peak, budget, smaller_batches)
    splits = _splits(fingerprint, given)
    made = [intensity, *views, *geometry, *rules.networks(grid)]
    if batches is None:
        made.append(Decision(Why.BATCHES_FIT))
    else:
        facts = {"batches": " and ".join(map(str, batches.values())), "memory": budget.memory_gb}
        made.append(Decision(Why.BATCHES_LESS, facts))
    precision = Why.BFLOAT16 if budget.bf16 else Why.NO_BFLOAT16 if budget.on_gpu else Why.CPU_PRECISION
    made += [Decision(precision), *splits]
    if "orientation" not in given:
        made.insert(0, Decision(Why.ORIENTATION, {"orientation": orientation}))
    prepare = {"orientation": orientation} | _values_of([intensity, *geometry, *splits])
    return Decisions(merged(prepare, given), values_on(grid, batches), grid, tuple(made))


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
        decisions: Result of `decide`.
        fingerprint: Fingerprint of the scans.
        budget: Memory and time.
        given_training: Nested values of the generator's settings that the user settled.
        seconds_per_step: Time of each stage's step.
        preset: Where what no rule decides comes from.
    """
    made, steps = list(decisions.made), dict[str, int]()
    settings = settings_of(decisions.training, preset)
    stages, rules = stages_planned(preset), rules_of(preset)
    scans = num_training_scans(fingerprint, decisions.prepare)
    most = rules.most_steps(scans, settings)
    spare = 0.0
    for stage in stages:
        name, seconds = f"{stage}_training", seconds_per_step[stage]
        own, settled = getattr(settings, name), given_training.get(name, {})
        # What stage one leaves is stage two's.
        available = 3600 * budget.hours * _TRAINING_SHARE / len(stages) + spare
        reachable = max(1, int(available / seconds))
        if any(settled.get(kind) is not None for kind in ("steps", "minutes")):
            of_minutes = math.inf if own.minutes is None else 60 * own.minutes / seconds
            steps[stage] = max(1, int(min(own.steps or math.inf, of_minutes)))
            why, values = Why.STEPS_SETTLED, {}
        else:
            steps[stage] = min(reachable, own.steps or reachable, most.get(stage, reachable))
            why = Why.STEPS_OF_HOURS if steps[stage] == reachable else Why.STEPS_OF_PRESET
            if steps[stage] < min(reachable, own.steps or reachable):
                why = Why.STEPS_OF_SCANS
            values = {
                "steps": steps[stage],
                "minutes": round(available / 60, 2),
                "warmup_steps": min(own.warmup_steps, steps[stage] // 10),
            }
        facts = {
            "stage": stage,
            "steps": steps[stage],
            "seconds": seconds,
            "hours": available / 3600,
            "left": max(0.0, available - steps[stage] * seconds) / 3600,
            "passes": steps[stage] * own.scans_per_step / scans,
            "scans": scans,
        }
        made.append(Decision(why, facts, {name: values | settled}))
        spare = max(0.0, available - steps[stage] * seconds)
    lengths = _values_of(made[len(decisions.made) :])
    return replace(
        decisions,
        training=merged(decisions.training, lengths),
        made=tuple(made),
        steps=steps,
        beware=_warnings(decisions, fingerprint, budget, steps, settings, rules),
    )


def stages_planned(preset: str) -> tuple[str, ...]:
    """The stages of a preset's family."""
    return STAGES_OF[type(preset_named(preset))]


def rules_of(preset: str) -> FamilyRules:
    """The rules of a preset's family."""
    return RULES[type(preset_named(preset))]


def settings_of(values: Mapping[str, Any], preset: str) -> GeneratorSettings:
    """The settings of nested values over a preset."""
    start = preset_named(preset)
    return resolve(type(start), start, overrides=values)


def num_training_scans(fingerprint: Fingerprint, prepare: Mapping[str, Any]) -> int:
    """Approximate number of scans that a generator will learn from."""
    split = prepare.get("split", {})
    share = 1 - split.get("validation", 0.1) - split.get("test", 0.1)
    return max(1, round(share * fingerprint.num_scans))


def _values_of(decisions: Iterable[Decision]) -> dict[str, Any]:
    """The nested values of all decisions; of two that meet, the later's."""
    return reduce(lambda values, decision: merged(values, decision.values), decisions, {})


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


def _intensity(fingerprint: Fingerprint, given: Mapping[str, Any]) -> Decision:
    modality = given.get("modality", "auto")
    modality = fingerprint.modality if modality == "auto" else modality
    if modality == "MR":
        spread = fingerprint.spread_of_high
        why = Why.PERCENTILES_DIFFER if spread > 2 else Why.PERCENTILES
        return Decision(why, {"spread": spread}, {"modality": modality})
    low, high = given.get("window_hu", _CT_WINDOW)
    why = Why.WINDOW_SETTLED if "window_hu" in given else Why.WINDOW
    return Decision(why, {"low": low, "high": high}, {"modality": modality, "window_hu": [low, high]})


def _flip(fingerprint: Fingerprint, given_training: Mapping[str, Any]) -> Decision:
    settled = given_training.get("training", {}).get("flip")
    if settled is not None:
        return Decision(Why.FLIP_SETTLED, {"flip": settled}, {"training": {"flip": str(settled)}})
    straight, mirrored = fingerprint.likeness, fingerprint.mirrored_likeness
    facts = {"straight": straight, "mirrored": mirrored}
    if straight - mirrored > _MIRROR_GAP + 2 * fingerprint.mirror_error:
        return Decision(Why.NO_FLIP, facts, {"training": {"flip": "none"}})
    return Decision(Why.FLIP, facts, {"training": {"flip": "left_right"}})


def _batches(
    grid: Grid,
    peak: Callable[[Grid, Mapping[str, int] | None], float],
    budget: Budget,
    smaller_batches: Sequence[Mapping[str, int]],
) -> Mapping[str, int] | None:
    """Batches by stage; None for the preset's.

    Raises:
        UserError: If the grid does not fit at batch 1 or what is settled, with one that does.
    """
    for batches in (None, *smaller_batches):
        if peak(grid, batches) <= budget.usable_gb:
            return batches
    ones = smaller_batches[-1]
    least = " and ".join(map(str, {*ones.values()}))
    d, h, w = (size * step for size, step in zip(grid.shape, grid.spacing_mm, strict=True))
    needed = peak(grid, ones) / _USABLE_MEMORY
    problem = (
        f"the grid of {times(grid.shape)} voxels needs {needed:.1f} GB at batch {least}, and there are "
        f"{budget.memory_gb:.3g} GB"
    )
    smaller = grid
    while max(smaller.shape) > 8:
        smaller = grid_of((d, h, w), coarser(smaller.spacing_mm), "".join(grid.axis_codes))
        if peak(smaller, ones) <= budget.usable_gb:
            spacing, shape = (
                ",".join(f"{value:g}" for value in values) for values in (smaller.spacing_mm, smaller.shape)
            )
            raise UserError(f"{problem}: spacing_mm=[{spacing}] shape=[{shape}] fits")
    raise UserError(f"{problem}, in which no grid fits: use a machine with more")


def _of_batches(preset: str, batches: Mapping[str, int]) -> dict[str, Any]:
    """Nested values of batches by stage; where several make a step, enough of them for as many scans."""
    values: dict[str, dict[str, int]] = {}
    for stage, batch in batches.items():
        name = f"{stage}_training"
        values[name] = {"batch_size": batch}
        own = getattr(preset_named(preset), name)
        if isinstance(own, DiffusionOptimiserSettings):
            values[name]["accumulate"] = math.ceil(own.scans_per_step / batch)
    return values


def _splits(fingerprint: Fingerprint, given: Mapping[str, Any]) -> list[Decision]:
    if "split" in given:
        return []
    share = _WANTED_TEST_PATIENTS / fingerprint.num_patients
    test = math.floor(100 * min(_MAX_TEST_SHARE, max(0.1, share))) / 100
    why = Why.SPLIT_FOR_AUDIT if test > 0.1 else Why.SPLIT
    facts = {"test": test, "wanted": _WANTED_TEST_PATIENTS}
    return [Decision(why, facts, {"split": {"validation": 0.1, "test": test}})]


def _warnings(
    decisions: Decisions,
    fingerprint: Fingerprint,
    budget: Budget,
    steps: Mapping[str, int],
    settings: GeneratorSettings,
    rules: FamilyRules,
) -> tuple[Decision, ...]:
    scans = num_training_scans(fingerprint, decisions.prepare)
    most = rules.most_steps(scans, settings)
    found = rules.copies(scans, steps, settings, holds_out(decisions.prepare))
    for stage, least in rules.min_steps.items():
        if steps[stage] < least:
            few = steps[stage] == most.get(stage)
            facts = {"stage": stage, "steps": steps[stage], "least": least}
            facts |= {"scans": scans} if few else {"hours": budget.hours}
            found.append(Decision(Why.TOO_FEW_FOR_STEPS if few else rules.too_short, facts))
    told = {"patient_pattern", "patient_csv"} & decisions.prepare.keys()
    is_any_folder = decisions.prepare.get("recipe", "folder") == "folder"
    if fingerprint.num_patients == fingerprint.num_scans and is_any_folder and not told:
        found.append(Decision(Why.PATIENTS_UNKNOWN))
    left_out = fingerprint.num_left_out
    if left_out:
        looked_at = left_out + fingerprint.num_measured
        found.append(Decision(Why.LEFT_OUT, {"left_out": left_out, "looked_at": looked_at}))
    return tuple(found)
