"""One measurement in a process of its own: ``python -m benchmarks.measure`` with a JSON request.

A fresh process for each makes timings independent of what ran before, and lets the largest resident set
(`ru_maxrss`, which never falls) stand for the peak of this measurement alone. Linux hands `ru_maxrss` down
to a child across exec, so the process that starts this one must stay small: it does not import torch.
"""

import json
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

from anatogen.models.convolution import Conv3d
from benchmarks.task import Sizes, Task

# (batch, channels, cells per side) of the convolutions whose best rate is called the machine's peak.
_PEAK_SHAPES = ((1, 128, 16), (4, 128, 16), (1, 64, 32), (1, 256, 16))


def build(row: str, workload: str, sizes: Sizes) -> Task:
    """The task of a row; peers are imported only where they are asked for."""
    if row in ("monai", "video_diffusion", "video_diffusion_32"):
        from benchmarks import peers

        return peers.build(row, workload, sizes)
    if row == "anatogen":
        from benchmarks import similarity

        return similarity.build(workload, sizes)
    from benchmarks import steps

    return steps.build(row, workload, sizes)


def time_of(task: Task, seconds: float) -> dict[str, Any]:
    """Seconds of a task, each part called again until `seconds` have passed."""
    for part in task.parts:
        # First calls allocate, let oneDNN choose kernels, and make the optimisers' state.
        part.call()
    return {"seconds": sum(part.times * _median_seconds(part.call, seconds) for part in task.parts)}


def resources_of(task: Task) -> dict[str, Any]:
    """Peak memory and floating point operations of a task."""
    baseline, before = _resident_bytes(), _peak_bytes()
    for part in task.parts:
        part.call()
        # The optimisers' state exists throughout the second call only.
        part.call()
    peak = _peak_bytes()
    return {
        "peak_bytes": peak - baseline,
        # Building reached higher than running: the peak is then an upper bound.
        "peak_is_bound": peak == before,
        "baseline_bytes": baseline,
        "flops": sum(part.times * _flops(part.call) for part in task.parts),
        "parameters": task.parameters,
        "note": task.note,
    }


def convolution_peak(seconds: float) -> dict[str, Any]:
    """GFLOP/s of 3x3x3 convolutions, forward and backward, of a few shapes in both layouts of memory."""
    rates = {}
    for batch, channels, side in _PEAK_SHAPES:
        for layout in (torch.contiguous_format, torch.channels_last_3d):
            convolution = nn.Conv3d(channels, channels, 3, padding=1)
            convolution.weight.data = convolution.weight.data.contiguous(memory_format=layout)
            x = torch.randn(batch, channels, side, side, side).to(memory_format=layout).requires_grad_()
            push = torch.ones_like(x)

            def step(
                convolution: nn.Module = convolution, x: torch.Tensor = x, push: torch.Tensor = push
            ) -> None:
                torch.autograd.backward(convolution(x), push)

            step()
            name = f"{batch} x {channels} channels, {side}^3, {str(layout).removeprefix('torch.')}"
            rates[name] = _flops(step) / _median_seconds(step, seconds) / 1e9
    return {"gflops_per_second": max(rates.values()), "shapes": rates}


def _median_seconds(call: Callable[[], object], seconds: float) -> float:
    times: list[float] = []
    while not times or sum(times) < seconds:
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


class _NoModules:
    """Stands in for the counter's record of modules, which can't follow `torch.autograd.grad`."""

    parents = frozenset({"Global"})

    def __enter__(self) -> None:
        pass

    def __exit__(self) -> None:
        pass


def _attention_flops(q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_flop_count(q, k, v)


def _attention_backward_flops(push: Any, q: Any, k: Any, v: Any, *_: Any, **__: Any) -> int:
    return sdpa_backward_flop_count(push, q, k, v)


# The CPU's fused attention is missing in torch's own table.
_FLOP_FORMULAS = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention_flops,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward_flops,
}


def _flops(call: Callable[[], object]) -> int:
    counter = FlopCounterMode(display=False, custom_mapping=_FLOP_FORMULAS)
    counter.mod_tracker = _NoModules()  # type: ignore[assignment]
    # Ours takes a detour past the operators that are counted; what a convolution needs is counted instead.
    with mock.patch.object(Conv3d, "forward", nn.Conv3d.forward), counter:
        call()
    return counter.get_total_flops()


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    return pages * resource.getpagesize()


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    request = json.loads(sys.argv[1])
    if request["threads"] is not None:
        torch.set_num_threads(request["threads"])
    torch.manual_seed(0)
    if request["row"] is None:
        result = convolution_peak(request["seconds"])
    else:
        task = build(request["row"], request["workload"], Sizes(**request["sizes"]))
        result = time_of(task, request["seconds"]) if request["is_timed"] else resources_of(task)
    result["threads"] = torch.get_num_threads()
    print(json.dumps(result))


if __name__ == "__main__":
    main()
