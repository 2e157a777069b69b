"""What a training will take, before it is started: parameters, memory, time, passes over the data."""

import math
from pathlib import Path

import torch
from pydantic import BaseModel

from anatogen.config.resolving import Section, to_yaml
from anatogen.core.devices import device_named
from anatogen.dataset.manifest import Grid, Split
from anatogen.report.numbers import duration_text
from anatogen.training.cost.memory import peak_memory_gb
from anatogen.training.cost.probe import Measurement, probe
from anatogen.training.devices import available_memory_gb
from anatogen.training.stage import ConfigT, Stage, check_training
from anatogen.training.stages import STAGES


class StageEstimate(BaseModel):
    """Memory, time and passes over the data of one stage.

    Attributes:
        memory_gb: Largest memory of the process, in 10^9 bytes: of the GPU, or resident in RAM; counted
            without taking it (`memory`).
        measured: What a few steps of it took on this machine; None where they don't fit into its memory.
        steps: Steps of the budget; infinite if only minutes limit it and no step could be timed.
        passes: How often the budget sees each training scan.
    """

    memory_gb: float
    measured: Measurement | None
    steps: float
    passes: float

    @property
    def seconds(self) -> float | None:
        """How long the budget lasts; None where no step could be timed."""
        return None if self.measured is None else self.steps * self.measured.seconds_per_step

    def text(self, stage: str) -> str:
        """One line for a reader.

        Args:
            stage: Name of the stage.
        """
        budget = f"{self.steps:,.0f} steps, {self.passes:,.1f} passes over the training scans"
        memory = f"{self.memory_gb:.1f} GB at most"
        if self.measured is None or self.seconds is None:
            if math.isinf(self.steps):
                budget = "a budget of minutes"
            return f"{stage}: {budget}; {memory}; not timed, for it is too large for this machine"
        found = self.measured
        parameters = ", ".join(f"{name} {number:,}" for name, number in found.num_parameters.items())
        return (
            f"{stage}: parameters {parameters}; {memory} (a few steps: {found.peak_gb:.1f} GB); {budget}, "
            f"about {duration_text(self.seconds)} ({found.text()})"
        )


def estimate_stage(
    stage: Stage[ConfigT],
    settings: ConfigT,
    grid: Grid,
    num_scans: int,
    *,
    device: str = "auto",
    memory_gb: float | None = None,
    measure: bool = True,
) -> StageEstimate:
    """Estimates what a stage takes; a few steps of it are made in a process of its own.

    Args:
        stage: The stage to estimate.
        settings: The whole configuration.
        grid: Grid of the scans.
        num_scans: Training scans.
        device: "cpu", "cuda", "cuda:1", or "auto" for a GPU where there is one.
        memory_gb: Its memory, if that has been counted already.
        measure: Whether to make those steps.
    """
    if memory_gb is None:
        on_gpu = device_named(device).type == "cuda"
        bf16 = on_gpu and stage.mixed_precision and torch.cuda.is_bf16_supported()
        memory_gb = peak_memory_gb(stage, settings, grid, on_gpu=on_gpu, bf16=bf16)
    # What does not fit is not tried: the system might end other programs for it.
    fits = measure and memory_gb < available_memory_gb(device)
    measured = probe(stage, settings, grid, device=device) if fits else None
    budget = stage.optimisation(settings)
    steps = float("inf") if budget.steps is None else float(budget.steps)
    if budget.minutes is not None and measured is not None:
        steps = min(steps, 60 * budget.minutes / measured.seconds_per_step)
    scans_per_step = stage.batches_per_step(settings) * budget.batch_size
    return StageEstimate(
        memory_gb=memory_gb, measured=measured, steps=steps, passes=steps * scans_per_step / num_scans
    )


def describe_training(
    data: Path, settings: Section, stages: tuple[str, ...], *, device: str = "auto", devices: int = 1
) -> str:
    """Describes the resolved settings and what each stage takes, as text.

    Args:
        data: A prepared dataset.
        settings: The whole configuration.
        stages: Names of its stages.
        device: "cpu", "cuda", "cuda:1", or "auto" for a GPU where there is one.
        devices: Number of GPUs, or of processes on a CPU; what is told is for one that has the whole batch.

    Raises:
        UserError: See `check_training`.
    """
    manifest = check_training(data, settings, [STAGES[name] for name in stages], device, devices)
    num_scans = len(manifest.split(Split.TRAIN))
    lines = [to_yaml(settings), f"{num_scans} training scans of {manifest.grid.shape}"]
    for name in stages:
        estimate = estimate_stage(STAGES[name], settings, manifest.grid, num_scans, device=device)
        lines.append(estimate.text(name))
    return "\n".join(lines)
