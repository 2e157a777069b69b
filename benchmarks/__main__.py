"""``python -m benchmarks``: measures every row in turn and prints Markdown tables.

Rows alternate within each repetition (A B A B), so that a drift of the machine hits all of them alike.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

from benchmarks.task import ROWS, TITLES, WORKLOADS, Sizes

_PACKAGES = ("anatogen", "torch", "monai", "video-diffusion-pytorch", "lightning-fabric", "numpy")
# glibc then gives every freed tensor back at once, so that the peak is that of live tensors whatever way the
# heap happens to break up. It costs time, so the timed processes go without.
_RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}
_QUICK = {"volume": 32, "denoiser_batch": 2, "lookup": 16, "timed_steps": 2}


def main() -> None:
    arguments = _arguments()
    sizes = Sizes(**(_QUICK if arguments.quick else {}), full_sampling=arguments.full)
    chosen = [
        (workload, row)
        for workload in WORKLOADS
        for row, workloads in ROWS.items()
        if workload in workloads and _is_asked_for(workload, row, arguments.only)
    ]
    if not chosen:
        sys.exit(f"--only {' '.join(arguments.only)}: nothing is called that; see --help")
    common = {"sizes": asdict(sizes), "seconds": arguments.seconds, "threads": arguments.threads}
    resources = {}
    for workload, row in chosen:
        _say(f"memory and arithmetic: {workload} {row}")
        request = common | {"row": row, "workload": workload, "is_timed": False}
        resources[workload, row] = _run(request, _RETURN_MEMORY)
    peaks: list[dict[str, Any]] = []
    times: dict[tuple[str, str], list[float]] = {key: [] for key in chosen}
    for repetition in range(arguments.repeats):
        _say(f"repetition {repetition + 1} of {arguments.repeats}: convolution peak")
        peaks.append(_run(common | {"row": None}))
        for workload, row in chosen:
            result = _run(common | {"row": row, "workload": workload, "is_timed": True})
            times[workload, row].append(result["seconds"])
            _say(f"  {workload:17} {row:20} {result['seconds']:9.4f} s")
    report = _report(arguments, sizes, peaks, times, resources)
    print(_markdown(report))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="processes per row and workload (default 5)")
    parser.add_argument(
        "--seconds", type=float, default=2.0, help="least time of calls in each process (default 2)"
    )
    parser.add_argument(
        "--only",
        nargs="+",
        default=[],
        metavar="NAME",
        help=f"rows and workloads to measure; rows: {', '.join(ROWS)}; workloads: {', '.join(WORKLOADS)}",
    )
    parser.add_argument("--threads", type=int, help="of torch (default: its own choice)")
    parser.add_argument("--full", action="store_true", help="run all sampling steps instead of multiplying")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to try the benchmark itself")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="where to write all numbers")
    return parser.parse_args()


def _is_asked_for(workload: str, row: str, only: list[str]) -> bool:
    rows = [name for name in only if name in ROWS]
    workloads = [name for name in only if name in WORKLOADS]
    unknown = set(only) - set(rows) - set(workloads)
    return not unknown and (not rows or row in rows) and (not workloads or workload in workloads)


def _run(request: dict[str, Any], environment: Mapping[str, str] | None = None) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.measure", json.dumps(request)]
    finished = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, check=False, env=os.environ | (environment or {})
    )
    if finished.returncode:
        sys.exit(f"the measurement failed: {request}")
    # Peers may print while they are imported.
    result: dict[str, Any] = json.loads(finished.stdout.strip().splitlines()[-1])
    return result


def _report(
    arguments: argparse.Namespace,
    sizes: Sizes,
    peaks: list[dict[str, Any]],
    times: dict[tuple[str, str], list[float]],
    resources: dict[tuple[str, str], dict[str, Any]],
) -> dict[str, Any]:
    """Everything that was measured, and on what, as JSON."""
    peak = max(run["gflops_per_second"] for run in peaks)
    rows = []
    for (workload, row), seconds in times.items():
        used = resources[workload, row]
        median = statistics.median(seconds)
        rate = used["flops"] / median / 1e9
        rows.append(
            {
                "workload": workload,
                "row": row,
                "seconds": seconds,
                "median_seconds": median,
                "gflops_per_second": rate,
                "fraction_of_peak": rate / peak,
                **used,
            }
        )
    return {
        "machine": {"processor": _processor(), "system": platform.platform(), "threads": peaks[0]["threads"]},
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
        "sizes": asdict(sizes),
        "repeats": arguments.repeats,
        "seconds_per_process": arguments.seconds,
        "convolution_peak_gflops_per_second": peak,
        "convolution_peaks": peaks,
        "results": rows,
    }


def _markdown(report: dict[str, Any]) -> str:
    machine, sizes = report["machine"], report["sizes"]
    side = sizes["volume"]
    versions = ", ".join(f"{name} {version}" for name, version in report["versions"].items())
    lines = [
        f"{machine['processor']}, {machine['threads']} threads; {versions}.",
        "",
        f"Volumes {side}^3, batch 1; latents of the denoiser's step and forward: batch "
        f"{sizes['denoiser_batch']}; lookup of {sizes['lookup']}^3 cells; fp32. "
        f"Median of {report['repeats']} processes (least..most). "
        "Memory: largest resident set above that of the built networks. "
        "Ratio: time relative to Anatogen `paper`, or to Anatogen. "
        f"Best convolution of the run: {report['convolution_peak_gflops_per_second']:.0f} GFLOP/s.",
    ]
    header = ("Row", "Parameters", "Time", "Ratio", "Peak memory", "GFLOP", "GFLOP/s", "Of peak")
    for workload, title in WORKLOADS.items():
        rows = [result for result in report["results"] if result["workload"] == workload]
        if not rows:
            continue
        reference = next((result for result in rows if result["row"] in ("paper", "anatogen")), None)
        lines += ["", f"### {title}", "", _line(header), _line(["---"] * len(header))]
        for result in rows:
            ratio = (
                "" if reference is None else f"{result['median_seconds'] / reference['median_seconds']:.2f}"
            )
            cells = (
                TITLES[result["row"]],
                ", ".join(f"{name} {count / 1e6:.2f} M" for name, count in result["parameters"].items()),
                _time(result["seconds"]),
                ratio,
                ("at most " if result["peak_is_bound"] else "") + f"{result['peak_bytes'] / 2**20:.0f} MiB",
                f"{result['flops'] / 1e9:.3g}",
                f"{result['gflops_per_second']:.3g}",
                f"{result['fraction_of_peak']:.0%}",
            )
            lines.append(_line(cells))
        lines.append("")
        lines += [f"{TITLES[result['row']]}: {result['note']}.  " for result in rows if result["note"]]
    return "\n".join(lines)


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return "| " + " | ".join(cells) + " |"


def _time(seconds: list[float]) -> str:
    factor, unit = (1, "s") if statistics.median(seconds) >= 1 else (1000, "ms")
    median, low, high = (factor * value for value in (statistics.median(seconds), min(seconds), max(seconds)))
    return f"{median:.3g} {unit} ({low:.3g}..{high:.3g})"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
