"""Where a stage runs: devices and processes, checked before they are started."""

import math
import os
import re
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from multiprocessing.queues import SimpleQueue
from pathlib import Path

import torch
from lightning_fabric import Fabric
from lightning_fabric.strategies import DDPStrategy
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, get_context

from anatogen.config.resolving import Section
from anatogen.core.devices import device_named
from anatogen.core.errors import UserError
from anatogen.core.processes import without_script

_MOST_LOADING_PROCESSES = 8


def build_fabric(
    device: str, devices: int, *, mixed_precision: bool = True, broadcast_buffers: bool = True
) -> Fabric:
    """Devices and processes of one stage, yet to be launched.

    Args:
        device: "cpu", "cuda", "cuda:1", or "auto" for a GPU where there is one.
        devices: Number of GPUs, or of processes on a CPU.
        mixed_precision: Whether GPUs that have bfloat16 may use it.
        broadcast_buffers: Whether each pass begins with the first process's buffers. Not for a network that
            is run several times before its way back: its buffers change under the first run's feet.
    """
    place = device_named(device)
    on_gpu = place.type == "cuda"
    # bfloat16 convolutions are hundreds of times slower on CPUs without native support.
    is_mixed = mixed_precision and on_gpu and torch.cuda.is_bf16_supported()
    strategy = DDPStrategy(start_method="spawn", broadcast_buffers=broadcast_buffers)
    return Fabric(
        accelerator=place.type,
        devices=[place.index] if on_gpu and devices == 1 else devices,
        strategy="auto" if devices == 1 else strategy,
        precision="bf16-mixed" if is_mixed else "32-true",
    )


def available_memory_gb(device: str) -> float:
    """Memory that a training could have, in 10^9 bytes: free on the GPU, or in RAM and within a job's limit.

    Args:
        device: "cpu", "cuda", "cuda:1", or "auto" for a GPU where there is one.
    """
    place = device_named(device)
    if place.type == "cuda":
        return torch.cuda.mem_get_info(place)[0] / 1e9
    free = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        found = re.search(r"MemAvailable:\s+(\d+) kB", meminfo.read_text(encoding="ascii"))
        if found is not None:
            free = int(found[1]) * 1024
    return min(free, bytes_within_limit()) / 1e9


def bytes_within_limit(own: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes that a container's or a batch job's limit leaves this process, which /proc/meminfo does not tell.

    Files that the system has in memory count as used there, but can be dropped; infinite without a limit.

    Args:
        own: Control groups of the process, as Linux lists them (versions 1 and 2).
        groups: Where these are mounted.
    """
    left = math.inf
    for line in own.read_text(encoding="utf-8").splitlines() if own.exists() else ():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            root, limit, used, cached = groups, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, cached = groups / "memory", "total_inactive_file"
            limit, used = "memory.limit_in_bytes", "memory.usage_in_bytes"
        else:
            continue
        folder = root / path.lstrip("/")
        for group in (folder, *folder.parents):
            if group.is_relative_to(root) and (group / limit).is_file():
                text, stat = (group / limit).read_text(), (group / "memory.stat").read_text()
                droppable = re.search(rf"^{cached} (\d+)$", stat, re.MULTILINE)
                if text.strip() != "max" and droppable is not None:
                    left = min(left, int(text) - int((group / used).read_text()) + int(droppable[1]))
    return max(left, 0)


def loading_processes(fabric: Fabric) -> int:
    """Processes that load batches beside each one that learns.

    On a GPU its share of the cores but the one that launches; on a CPU none, for they have arithmetic to do.
    """
    if fabric.device.type == "cpu":
        return 0
    # Fabric has shared the cores among its processes, an experiment has among its own.
    return min(torch.get_num_threads() - 1, _MOST_LOADING_PROCESSES)


def check_stages(settings: Section, stages: Sequence[str], device: str, devices: int) -> None:
    """Checks that stages would end, and that this machine can run them.

    Raises:
        UserError: If a stage has no budget, devices are lacking, or they can't share a batch.
    """
    budgets = {stage: getattr(settings, f"{stage}_training") for stage in stages}
    for stage, budget in budgets.items():
        if budget.steps is None and budget.minutes is None:
            raise UserError(f"{stage}_training has no budget: give --minutes or --steps")
    on_gpu = device_named(device).type == "cuda"
    if devices < 1 or (on_gpu and devices > torch.cuda.device_count()):
        available = f"; this machine has {torch.cuda.device_count()} GPUs" if on_gpu else ""
        raise UserError(f"devices is {devices}: it must be at least 1{available}")
    if devices > 1 and ":" in device:
        raise UserError(f"device {device} is one GPU, and devices is {devices}: use --device cuda")
    for stage, budget in budgets.items():
        if budget.batch_size % devices:
            raise UserError(
                f"{stage}_training.batch_size {budget.batch_size} can't be shared evenly by {devices} "
                "devices: use a multiple of their number"
            )


def launch(fabric: Fabric, stage: Callable[[Fabric], None]) -> None:
    """Runs a stage in the processes of a fabric; errors are raised here as they were."""
    errors: SimpleQueue[UserError] = get_context("spawn").SimpleQueue()
    try:
        with without_script() if fabric.world_size > 1 else nullcontext():
            fabric.launch(partial(_run_stage, stage=stage, errors=errors))
    except ProcessRaisedException as error:
        if errors.empty():
            raise
        raise errors.get() from error
    except ProcessExitedException as error:
        raise UserError(
            f"one of {fabric.world_size} processes that trained died ({error}); most likely memory ran out: "
            "lower the batch size or --devices. The last checkpoint is kept"
        ) from error


def _run_stage(fabric: Fabric, stage: Callable[[Fabric], None], errors: "SimpleQueue[UserError]") -> None:
    try:
        stage(fabric)
    except UserError as error:
        # The processes' launcher hands on text only.
        if fabric.world_size > 1:
            errors.put(error)
        raise
