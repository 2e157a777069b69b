"""The paper's comparison on a dataset: diffusion (`paper`, `default`) and WGAN-GP, equal training time each.

python experiments/comparison.py run DATA OUT [--minutes 6] [--number 43] [--flip none] [--only NAME ...]
python experiments/comparison.py table DATA OUT

`run` trains each generator that is not complete and samples from it, with one thread; a run that was stopped
goes on where it stopped. `table` evaluates each against the test scans of DATA, a prepared dataset, with the
audit for copies of its training scans, and writes OUT/table.md and OUT/scans.png.
"""

import argparse
import json
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from anatogen import sample
from anatogen.config.presets import budget, gan_settings, training_settings
from anatogen.config.resolving import merged, parse_overrides
from anatogen.config.settings import GANConfig, LatentDiffusionSettings
from anatogen.core.files import write_json, write_text
from anatogen.dataset.manifest import load_manifest
from anatogen.dataset.scan_sets import load_scans
from anatogen.evaluation.evaluate import evaluate
from anatogen.evaluation.report import CACHE, JSON_NAME
from anatogen.report.figures import planes_figure
from anatogen.report.rows import Row
from anatogen.training.train import train
from anatogen.training.wgan_gp import train_gan

# Stage one's share of a diffusion model's training time.
_AUTOENCODER_SHARE = 1 / 2
_NUM_SHOWN = 6


@dataclass(frozen=True)
class Generator:
    """One column of the comparison.

    Attributes:
        name: Of its run.
        label: For people.
        preset: Of the diffusion model; none for a GAN.
        overrides: Settings that differ.
    """

    name: str
    label: str
    preset: str | None
    overrides: tuple[str, ...] = ()


# An autoencoder that minutes of a CPU leave unfit for stage two is part of the result.
_GO_ON = "training.require_fit_autoencoder=false"
# Of Kwon's widths a CPU makes a dozen steps in the time.
_NARROW = "gan.width=16"
GENERATORS = (
    Generator("default", "`default`", "default", (_GO_ON,)),
    Generator("wgan_gp", "WGAN-GP", None, (_NARROW,)),
    Generator("paper_8", "`paper`, compression 8", "paper", ("autoencoder.compression=8", _GO_ON)),
    # All 300 steps would take half a minute a scan.
    Generator("paper", "`paper`, 50 steps", "paper", ("diffusion.sampling_steps=50", _GO_ON)),
    Generator("wgan_gp_kwon", "WGAN-GP, `kwon_compatible`", None, (_NARROW, "gan.kwon_compatible=true")),
)


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=6.0, help="of training, for each generator")
    parser.add_argument("--number", type=int, default=43, help="synthetic scans of each generator")
    parser.add_argument("--only", nargs="+", default=[], choices=[g.name for g in GENERATORS])
    parser.add_argument("--flip", default="none", help="as `training.flip`, for all generators")
    parser.add_argument("--set", nargs="+", default=[], help="further settings of all diffusion models")
    arguments = parser.parse_args()
    chosen = [g for g in GENERATORS if not arguments.only or g.name in arguments.only]
    if arguments.action == "run":
        torch.set_num_threads(1)
        common = [f"training.flip={arguments.flip}", "training.preview_minutes=1000"]
        for generator in chosen:
            further = [*common, *(arguments.set if generator.preset else ())]
            _run(generator, arguments.data, arguments.out, arguments.minutes, arguments.number, further)
    else:
        _table(chosen, arguments.data, arguments.out)


def _run(
    generator: Generator, data: Path, out: Path, minutes: float, number: int, further: list[str]
) -> None:
    run = out / "runs" / generator.name
    overrides = [*generator.overrides, *further]
    if generator.preset is None:
        chosen = gan_settings(parse_overrides(overrides, GANConfig), minutes=minutes)
        bundle = train_gan(data, run, chosen)
    else:
        first = _AUTOENCODER_SHARE * minutes
        budgets = budget(("autoencoder",), first, None) | budget(("diffusion",), minutes - first, None)
        given = merged(budgets, parse_overrides(overrides, LatentDiffusionSettings))
        bundle = train(data, run, training_settings(generator.preset, given))
    timing = out / "timing" / f"{generator.name}.json"
    if not timing.exists():
        started = time.perf_counter()
        sample(bundle, out / "samples" / generator.name, num_samples=number, processes=1)
        write_json(timing, {"seconds_per_scan": (time.perf_counter() - started) / number})


def _table(chosen: list[Generator], data: Path, out: Path) -> None:
    manifest = load_manifest(data)
    columns: dict[str, dict[str, Row]] = {}
    for generator in chosen:
        rows = _evaluated(generator, data, out)
        timing = json.loads((out / "timing" / f"{generator.name}.json").read_text(encoding="utf-8"))
        rows.append(
            Row("fidelity", "seconds", "Sampling, s a scan", timing["seconds_per_scan"], better="none")
        )
        columns[generator.label] = {row.name: row for row in rows}
    labels = {row.name: row for column in columns.values() for row in column.values()}
    lines = [
        "| | real against real | " + " | ".join(columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name, row in labels.items():
        cells = [_cell(column.get(name)) for column in columns.values()]
        lines.append(f"| {row.label} | {_number(row.reference)} | {' | '.join(cells)} |")
    write_text(out / "table.md", "\n".join(lines) + "\n")
    real = load_scans(Path(f"{data}:test"), "real")
    groups = [("real, held out", list(real.arrays[:_NUM_SHOWN]))]
    for generator in chosen:
        made = load_scans(out / "samples" / generator.name, "synthetic", real)
        groups.append((generator.label.replace("`", ""), list(made.arrays[:_NUM_SHOWN])))
    planes_figure(
        groups,
        out / "scans.png",
        spacing_mm=manifest.grid.spacing_mm,
        axis_codes=manifest.grid.axis_codes,
    )


def _evaluated(generator: Generator, data: Path, out: Path) -> list[Row]:
    """All rows of a generator's report, which is made unless it is there."""
    report = out / "reports" / generator.name
    if not (report / JSON_NAME).exists():
        # Real scans' features and the audit's encoder are the same for all.
        for other in (out / "reports").glob(f"*/{CACHE}"):
            shutil.copytree(other, report / CACHE, dirs_exist_ok=True)
        bundle = out / "runs" / generator.name / "bundle"
        evaluate(data, out / "samples" / generator.name, report, bundle=bundle)
    content = json.loads((report / JSON_NAME).read_text(encoding="utf-8"))
    return [Row(**row) for row in content["rows"]]


def _cell(row: Row | None) -> str:
    if row is None or row.value is None:
        return "–"
    interval = "" if row.low is None else f" ({_number(row.low)} to {_number(row.high)})"
    return _number(row.value) + interval


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


if __name__ == "__main__":
    main()
