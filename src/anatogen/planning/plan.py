"""`anatogen plan`: scans and a budget to a plan, which is what `prepare` and `train` take.

fingerprint of the scans -> speed of this machine -> rules -> a short probe of what was decided -> plan
"""

import math
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from pydantic import BaseModel

from anatogen.config.presets import split_overrides
from anatogen.config.resolving import merged, resolve, save_yaml, to_yaml
from anatogen.config.settings import GeneratorSettings
from anatogen.core.devices import device_named
from anatogen.core.errors import UserError
from anatogen.core.files import write_json
from anatogen.core.version import __version__
from anatogen.dataset.manifest import MANIFEST_NAME, Grid
from anatogen.dataset.prepare_config import PrepareConfig
from anatogen.dataset.recipes import recipe_named
from anatogen.planning.family_rules import FamilyRules
from anatogen.planning.fingerprint import Fingerprint, take_fingerprint
from anatogen.planning.rules import (
    Budget,
    decide,
    decide_budgets,
    num_training_scans,
    rules_of,
    settings_of,
    stages_planned,
)
from anatogen.report.numbers import count_of, times
from anatogen.report.progress import shown_progress
from anatogen.training.cost.estimate import StageEstimate, estimate_stage
from anatogen.training.cost.memory import peak_memory_gb
from anatogen.training.cost.probe import probe
from anatogen.training.devices import available_memory_gb
from anatogen.training.stages import STAGES

PREPARE_NAME = "prepare.yaml"
TRAIN_NAME = "train.yaml"
PLAN_NAME = "plan.json"
# The grid, of 1 mm, on which this machine's speed is measured, and what a probe of the chosen grid may take.
_REFERENCE_SHAPE = (40, 56, 40)
_LONGEST_STEP = 30.0


class Estimates(BaseModel):
    """Time and memory that a plan takes.

    Attributes:
        stages: Estimates of each stage by its name.
        sample_seconds: Time to sample one scan; None where it could not be measured.
    """

    stages: dict[str, StageEstimate]
    sample_seconds: float | None


class Plan(BaseModel):
    """Settings for a set of scans, and why.

    Attributes:
        prepare: For `prepare --config`.
        training: For `train --config`.
        grid: Grid of the prepared scans.
        fingerprint: Fingerprint of the scans.
        reasons: One line for each decision.
        warnings: What may go wrong, one line each.
        estimates: What it will take.
    """

    prepare: PrepareConfig
    training: GeneratorSettings
    grid: Grid
    fingerprint: Fingerprint
    reasons: tuple[str, ...]
    warnings: tuple[str, ...]
    estimates: Estimates

    def save(self, folder: Path) -> None:
        """Writes `prepare.yaml`, `train.yaml`, and `plan.json` with fingerprint, reasons and estimates."""
        save_yaml(self.prepare, folder / PREPARE_NAME)
        save_yaml(self.training, folder / TRAIN_NAME)
        others = self.model_dump(mode="json", exclude={"prepare", "training"})
        write_json(folder / PLAN_NAME, {"anatogen_version": __version__, **others})

    def text(self) -> str:
        """The plan for a reader: what the scans are like, each decision with its reason, what it takes."""
        found = self.fingerprint
        lines = [
            f"{found.num_scans} {found.modality} scans of {found.num_patients} patients: "
            f"{times(found.size.median)} voxels of {times(found.spacing_mm.median)} mm, tissue over "
            f"{times(round(length) for length in found.foreground_mm.median)} mm (medians)",
            "",
            *(f"  {reason}" for reason in self.reasons),
            "",
            *(f"  {estimate.text(stage)}" for stage, estimate in self.estimates.stages.items()),
        ]
        if found.num_label_maps:
            maps = count_of(found.num_label_maps, "label map")
            lines.insert(1, f"{maps} among the files that were looked at: no scans, left out")
        if self.estimates.sample_seconds is not None:
            lines.append(f"  a synthetic scan: {self.estimates.sample_seconds:.2g} s")
        lines += ["", *(f"  beware: {warning}" for warning in self.warnings)]
        return "\n".join(lines).rstrip()


def make_plan(
    scans: Path,
    *,
    memory_gb: float | None = None,
    hours: float = 24.0,
    recipe: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    preset: str = "default",
    device: str = "auto",
    records: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Plan:
    """Plans the preparation and training of a folder of scans; writes nothing.

    The arguments are those of `anatogen.plan`, which explains them; `workers` is the number of processes
    that look at the scans, by default one per core.

    Raises:
        UserError: If settings are wrong, or scans or budget can't give a generator.
    """
    given, given_training = _settled(recipe, overrides, preset)
    budget = _budget(memory_gb, hours, device)
    if (scans / MANIFEST_NAME).exists():
        raise UserError(
            f"{scans} is a prepared dataset: plan the scans that it was made of, or ask "
            f"`anatogen train {scans} RUN --dry-run` what its training takes"
        )
    fingerprint = take_fingerprint(
        scans, resolve(PrepareConfig, given), records=records, workers=workers, progress=progress
    )
    with shown_progress(progress) as display:
        display("timing this machine", 0, 1)
        made = _planned(fingerprint, budget, given, given_training, preset, device)
        display("timing this machine", 1, 1)
    return made


def _planned(
    fingerprint: Fingerprint,
    budget: Budget,
    given: dict[str, Any],
    given_training: dict[str, Any],
    preset: str,
    device: str,
) -> Plan:
    rules = rules_of(preset)

    @cache
    def speed(stage: str) -> float:
        """Seconds of this machine for a cell of the stage's batch."""
        grid = Grid.centred("SPL", _REFERENCE_SHAPE, (1, 1, 1))
        settings = settings_of({}, rules.reference)
        measured = probe(STAGES[stage], settings, grid, device=device)
        if measured is None:
            raise UserError("this machine has too little free memory to time a small training step")
        return measured.seconds_per_step / STAGES[stage].work(settings, grid)

    def seconds_per_step(stage: str, settings: GeneratorSettings, grid: Grid) -> float:
        return speed(stage) * STAGES[stage].work(settings, grid)

    known_memory: dict[str, float] = {}

    def memory_gb(stage: str, settings: GeneratorSettings, grid: Grid) -> float:
        # The rules ask again for what they have asked before.
        key = f"{stage} {to_yaml(settings)} {grid.model_dump_json()}"
        if key not in known_memory:
            known_memory[key] = peak_memory_gb(
                STAGES[stage], settings, grid, on_gpu=budget.on_gpu, bf16=budget.bf16
            )
        return known_memory[key]

    decisions = decide(fingerprint, budget, given, given_training, memory_gb, seconds_per_step, preset)
    settings = settings_of(decisions.training, preset)
    num_scans = num_training_scans(fingerprint, decisions.prepare)
    seconds = {stage: seconds_per_step(stage, settings, decisions.grid) for stage in stages_planned(preset)}
    tried = {
        stage: estimate_stage(
            STAGES[stage],
            settings,
            decisions.grid,
            num_scans,
            device=device,
            memory_gb=memory_gb(stage, settings, decisions.grid),
            measure=seconds[stage] < _LONGEST_STEP,
        )
        for stage in seconds
    }
    for stage, estimate in tried.items():
        if estimate.measured is not None:
            seconds[stage] = estimate.measured.seconds_per_step
    decisions = decide_budgets(decisions, fingerprint, budget, given_training, seconds, preset)
    training = settings_of(decisions.training, preset)
    return Plan(
        prepare=resolve(PrepareConfig, decisions.prepare),
        training=training,
        grid=decisions.grid,
        fingerprint=fingerprint,
        reasons=decisions.reasons,
        warnings=decisions.warnings,
        estimates=_estimates(tried, decisions.steps, training, num_scans, rules),
    )


def next_commands(scans: Path, folder: Path, records: Path | None = None) -> list[str]:
    """Commands that follow once a plan was saved in a folder, with the records of scans that it kept."""
    known = "" if records is None else f" --records {quote(str(records))}"
    return [
        f"anatogen prepare {quote(str(scans))} DATA --config {quote(str(folder / PREPARE_NAME))}{known}",
        f"anatogen train DATA RUN --config {quote(str(folder / TRAIN_NAME))}",
        "anatogen sample RUN/bundle OUT -n 100",
    ]


def _settled(
    recipe: str | None, overrides: Mapping[str, Any] | None, preset: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Nested values of `PrepareConfig` and of the generator that recipe and overrides settle, all valid."""
    given, given_training = split_overrides(overrides or {})
    name = recipe or str(given.get("recipe", "folder"))
    given = merged(merged(recipe_named(name).defaults, given), {"recipe": name})
    resolve(PrepareConfig, given)
    settings_of(given_training, preset)
    return given, given_training


def _budget(memory_gb: float | None, hours: float, device: str) -> Budget:
    if not 0 < hours < math.inf:
        raise UserError(f"hours is {hours:g}: it must be more than 0, and finite")
    if memory_gb is not None and not memory_gb > 0:
        raise UserError(f"memory is {memory_gb:g} GB: it must be more than 0")
    on_gpu = device_named(device).type == "cuda"
    return Budget(
        memory_gb=available_memory_gb(device) if memory_gb is None else memory_gb,
        hours=hours,
        on_gpu=on_gpu,
        bf16=on_gpu and torch.cuda.is_bf16_supported(),
    )


def _estimates(
    tried: Mapping[str, StageEstimate],
    steps: Mapping[str, int],
    training: GeneratorSettings,
    num_scans: int,
    rules: FamilyRules,
) -> Estimates:
    stages = {}
    for stage, estimate in tried.items():
        scans = STAGES[stage].batches_per_step(training) * STAGES[stage].optimisation(training).batch_size
        passes = steps[stage] * scans / num_scans
        stages[stage] = estimate.model_copy(update={"steps": steps[stage], "passes": passes})
    measured = list(tried.values())[-1].measured
    sample = (
        None if measured is None else round(rules.sample_seconds(training, measured.seconds_of_others), 3)
    )
    return Estimates(stages=stages, sample_seconds=sample)
