"""Seconds and memory of a stage, measured by a few steps of it in a process of its own.

`python -m anatogen.training.cost.probe` takes the task as JSON from its standard input.

Times are those of an idle machine: on a busy one threads wait for a processor, and Linux tells for how long.
Threads that wait for one another sleep here instead of spinning, or they would take the time of those that
they wait for.
"""

import json
import os
import re
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel

from anatogen.dataset.manifest import Grid
from anatogen.training.stage import ConfigT, Stage
from anatogen.training.stages import STAGES

_NUM_STEPS = 5
# A probe is short: after this long no further step is begun.
_SECONDS = 30.0
# From this share of waiting on, the machine is called busy.
_BUSY = 0.2


class Measurement(BaseModel):
    """Speed and memory of a stage on this machine.

    Attributes:
        seconds_per_step: Time of a whole training step on an idle machine, without reading scans.
        steps_between: Shortest and longest of the steps that it is the median of.
        waited: Share of the time for which the steps' threads waited for a processor; 0 where the system
            does not tell.
        num_parameters: Trained parameters by network.
        seconds_of_others: Times of what else the stage does, by the names of `DryRun.others`.
        peak_gb: Largest memory of the process so far, in 10^9 bytes: of the GPU, or resident in RAM.
    """

    seconds_per_step: float
    steps_between: tuple[float, float]
    waited: float
    num_parameters: dict[str, int]
    seconds_of_others: dict[str, float]
    peak_gb: float

    def text(self) -> str:
        """Time of a step, how sure it is, and whether the machine was busy."""
        low, high = self.steps_between
        step = f"{self.seconds_per_step:.2g} s a step, {low:.2g} to {high:.2g}"
        if self.waited < _BUSY:
            return step
        return (
            f"{step}, when the machine is idle; it is busy now: steps waited for a processor in "
            f"{self.waited:.0%} of the time"
        )


def probe(
    stage: Stage[ConfigT], settings: ConfigT, grid: Grid, *, device: str = "auto"
) -> Measurement | None:
    """Runs a few steps of a stage on made-up scans in a fresh process.

    Args:
        stage: The stage to measure.
        settings: The whole configuration.
        grid: Grid of the scans.
        device: "cpu", "cuda", "cuda:1", or "auto" for a GPU where there is one.

    Returns:
        What was measured; None if the process died, most likely for want of memory.
    """
    task = {
        "stage": stage.name,
        "settings": settings.model_dump(mode="json"),
        "grid": grid.model_dump(mode="json"),
        "device": device,
        "threads": torch.get_num_threads(),
    }
    result = subprocess.run(
        [sys.executable, "-m", "anatogen.training.cost.probe"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        check=False,
        env=os.environ
        | {
            "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            "OMP_WAIT_POLICY": "passive",
        },
    )
    if result.returncode != 0:
        if result.returncode > 0 and "OutOfMemoryError" not in result.stderr:
            raise RuntimeError(f"the probe of {stage.name} failed:\n{result.stderr}")
        return None
    return Measurement.model_validate_json(result.stdout.splitlines()[-1])


def _measure(stage: Stage[ConfigT], settings: ConfigT, grid: Grid, device: str) -> Measurement:
    fabric = stage.build_fabric(device)
    on_gpu = fabric.device.type == "cuda"
    trial = stage.dry_run(fabric, settings, grid)

    def timed(call: Any, *arguments: Any) -> tuple[float, float]:
        """Seconds on an idle machine, and the share of the time that was waited."""
        before, started = processor_seconds(), time.perf_counter()
        call(*arguments)
        if on_gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - started
        ran, waited = (after - first for after, first in zip(processor_seconds(), before, strict=True))
        share = waited / (ran + waited) if waited > 0 else 0.0
        return seconds * (1 - share), share

    began = time.perf_counter()
    timed(trial.step, 0)
    # The first step makes the optimisers' state and chooses kernels: time and peak are of later ones.
    steps: list[tuple[float, float]] = []
    while not steps or (len(steps) < _NUM_STEPS and time.perf_counter() - began < _SECONDS):
        steps.append(timed(trial.step, len(steps) + 1))
    seconds, shares = zip(*steps, strict=True)
    others = {}
    for name, other in trial.others.items():
        # Once to warm up.
        timed(other)
        others[name], _ = timed(other)
    return Measurement(
        seconds_per_step=statistics.median(seconds),
        steps_between=(min(seconds), max(seconds)),
        waited=statistics.mean(shares),
        num_parameters=trial.num_parameters,
        seconds_of_others=others,
        peak_gb=(torch.cuda.max_memory_reserved() if on_gpu else peak_resident_bytes()) / 1e9,
    )


def processor_seconds(tasks: Path = Path("/proc/self/task")) -> tuple[float, float]:
    """Seconds that this process's threads ran, and that they were ready to run and waited for a processor.

    Args:
        tasks: Where Linux keeps them, in nanoseconds; both are 0 on other systems.
    """
    ran = waited = 0
    for path in tasks.glob("*/schedstat"):
        try:
            times = path.read_text(encoding="ascii").split()
        except OSError:
            # A thread that has ended.
            continue
        ran, waited = ran + int(times[0]), waited + int(times[1])
    return ran / 1e9, waited / 1e9


def peak_resident_bytes() -> int:
    """Largest resident set of this process since it was started."""
    status = Path("/proc/self/status")
    if status.exists():
        # Not `ru_maxrss`, which a process inherits from the one that started it.
        found = re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii"))
        if found is not None:
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def main() -> None:
    """Measures the task on standard input and prints the measurement as JSON."""
    task = json.load(sys.stdin)
    torch.set_num_threads(task["threads"])
    stage = STAGES[task["stage"]]
    settings, grid = stage.config.model_validate(task["settings"]), Grid.model_validate(task["grid"])
    found = _measure(stage, settings, grid, task["device"])
    print(found.model_dump_json())


if __name__ == "__main__":
    main()
