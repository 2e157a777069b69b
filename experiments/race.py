"""A race of generators: equal training time, one dataset, the same numbers, the same pictures.

    python experiments/race.py run DATA OUT --minutes 5 10 20 [--only NAME ...] [--number 43] [--threads 1]
    python experiments/race.py table DATA OUT [--full]

`run` trains each entrant anew for each number of minutes, which is the whole time of all its stages, and
samples from it; a run that was stopped goes on where it stopped, and each budget's log.txt says what took how
long. Budgets don't share a training, since the learning rate falls to zero over each: so a shorter one is
what a user gets in that time, not a longer one caught before its end.

`table` evaluates against the test scans of DATA by `anatogen evaluate --quick`, with --full by the whole
report with its privacy audit, and writes OUT/table.md, OUT/scans.png (of the largest budget; the first scans
of each set, not chosen) and OUT/curves.png (the kernel distance and the spectrum by minutes).

The datasets, of the Medical Segmentation Decathlon (Task04), the Left Atrial Segmentation Challenge 2018 and
ACDC. Two atria look like others of the set, and each heart is there twice:

    anatogen prepare hippocampus/images hippocampi split.validation=0.1 split.test=0.4
    anatogen prepare atrium/images atria split.validation=0.1 split.test=0.4 shape=[44,72,96] \\
        'exclude=["atrium_042.nii.gz","atrium_073.nii.gz"]'
    anatogen prepare acdc/images hearts split.validation=0.1 split.test=0.4 spacing_mm=[10,2,2] \\
        shape=[8,128,128] 'patient_pattern=(patient[0-9]+)_'
"""

import argparse
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from anatogen import sample
from anatogen.config.presets import STAGES_OF, gan_settings, preset_named, training_settings
from anatogen.config.resolving import merged
from anatogen.config.settings import GANConfig, GeneratorSettings
from anatogen.core.files import write_json, write_text
from anatogen.dataset.scan_sets import ScanSet, load_scans
from anatogen.evaluation.evaluate import evaluate
from anatogen.evaluation.report import CACHE, JSON_NAME
from anatogen.report.figures import new_panels, save_figure, style_panel
from anatogen.report.rows import Row
from anatogen.report.volume_figures import planes_figure
from anatogen.training.train import train
from anatogen.training.wgan_gp import train_gan

_NUM_SHOWN = 8
_BUDGETS = "*_minutes"
# Rows that are drawn by minutes.
_CURVES = ("kid_slices", "spectrum")


@dataclass(frozen=True)
class Entrant:
    """One column of the table.

    Attributes:
        preset: Of the generator; none for a WGAN-GP.
        values: Settings that differ, nested.
    """

    preset: str | None
    values: Mapping[str, Any] = field(default_factory=dict)


ENTRANTS = {
    "default": Entrant("default"),
    # An autoencoder that minutes of a CPU leave unfit for stage two is part of the result.
    "paper_8": Entrant(
        "paper", {"training": {"require_fit_autoencoder": False}, "autoencoder": {"compression": 8}}
    ),
    # Of Kwon's widths a CPU makes a dozen steps in the time.
    "wgan_gp": Entrant(None, {"gan": {"width": 16}}),
    # Nearly all in one stage: what is left of the pyramid is its finest details.
    "haar_flow": Entrant(
        "default", {"pyramid": {"num_levels": 1}, "coarse": {"multipliers": [1, 2, 2], "num_blocks": 2}}
    ),
    "default_plain_times": Entrant("default", {"flow": {"coarse_shift": 1.0}}),
    "default_not_deformed": Entrant("default", {"flow": {"deformed": 0.0}}),
    "default_no_told_noise": Entrant("default", {"flow": {"told_noise": 0.0, "sampled_noise": 0.0}}),
}


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("action", choices=("run", "table"))
    parser.add_argument("data", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--minutes", type=float, nargs="+", default=[6.0], help="of training, for each entrant"
    )
    parser.add_argument("--only", nargs="+", default=list(ENTRANTS), choices=list(ENTRANTS), metavar="NAME")
    parser.add_argument("--number", type=int, default=43, help="synthetic scans of each entrant")
    parser.add_argument("--flip", default="none", help="as `training.flip`, for all entrants")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--full", action="store_true", help="evaluate with the whole report")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.action == "run":
        for minutes in sorted(arguments.minutes):
            for name in arguments.only:
                folder, number = _folder(arguments.out, minutes), arguments.number
                values = {"training": {"flip": arguments.flip}}
                run(name, ENTRANTS[name], arguments.data, folder, number, values, minutes=minutes)
    else:
        table(arguments.only, arguments.data, arguments.out, full=arguments.full)


def run(
    name: str,
    entrant: Entrant,
    data: Path,
    folder: Path,
    number: int,
    values: Mapping[str, Any],
    *,
    minutes: float | None = None,
    steps: int | None = None,
) -> None:
    """Trains an entrant and samples from it, as far as that is not done.

    Args:
        name: Name of the entrant: its scans are FOLDER/samples/NAME, its run FOLDER/runs/NAME.
        entrant: What is trained.
        data: Prepared dataset.
        folder: Of all entrants of the budget.
        number: How many scans are sampled.
        values: Settings that differ for all, nested.
        minutes: Training time of all stages together.
        steps: Steps of each stage.
    """
    timing = folder / "timing" / f"{name}.json"
    if timing.exists():
        return
    _log(folder, f"{name}: training")
    started = time.perf_counter()
    settings = settings_of(entrant, values, minutes=minutes, steps=steps)
    if isinstance(settings, GANConfig):
        train_gan(data, folder / "runs" / name, settings)
    else:
        train(data, folder / "runs" / name, settings)
    trained = time.perf_counter()
    _log(folder, f"{name}: trained, {trained - started:.0f} s in this call")
    sample(bundle_of(folder, name), folder / "samples" / name, num_samples=number, processes=1)
    seconds = (time.perf_counter() - trained) / number
    _log(folder, f"{name}: {number} scans sampled, {seconds:.2f} s a scan")
    write_json(timing, {"seconds_per_scan": seconds})


def settings_of(
    entrant: Entrant,
    values: Mapping[str, Any],
    *,
    minutes: float | None = None,
    steps: int | None = None,
) -> GeneratorSettings | GANConfig:
    """What an entrant is trained with.

    Args:
        entrant: Its own values go before all others.
        values: Settings that differ for all, nested.
        minutes: Training time of all stages together.
        steps: Steps of each stage.

    Raises:
        ConfigError: Listing all that is wrong.
    """
    # No time goes into previews.
    chosen = merged(merged({"training": {"preview_minutes": 1000}}, values), entrant.values)
    if entrant.preset is None:
        return gan_settings(chosen, minutes=minutes, steps=steps)
    stages = STAGES_OF[type(preset_named(entrant.preset))]
    share = None if minutes is None else minutes / len(stages)
    return training_settings(entrant.preset, chosen, minutes=share, steps=steps)


def table(names: Sequence[str], data: Path, out: Path, *, full: bool) -> None:
    """Writes the table, the pictures and the curves of what has been sampled so far.

    Args:
        names: Names of entrants.
        data: Prepared dataset.
        out: Folder of the race.
        full: Whether to evaluate with the whole report instead of the quick one.
    """
    folders = sorted(out.glob(_BUDGETS), key=_minutes)
    parts, found = [], {}
    for folder in folders:
        done = [name for name in names if (folder / "timing" / f"{name}.json").exists()]
        found[_minutes(folder)] = {name: _rows(name, data, folder, full=full) for name in done}
        parts.append(f"## {_minutes(folder):g} minutes\n\n{markdown_table(found[_minutes(folder)])}")
    write_text(out / "table.md", "\n".join(parts))
    real = load_scans(Path(f"{data}:test"), "real")
    _draw_scans(list(found[_minutes(folders[-1])]), real, folders[-1], out / "scans.png")
    _draw_curves(names, found, out / "curves.png")


def _rows(name: str, data: Path, folder: Path, *, full: bool) -> dict[str, Row]:
    """All rows of an entrant's report, which is made unless it is there, and the time that a scan takes."""
    reports = folder / ("reports" if full else "quick_reports")
    report = reports / name
    if not (report / JSON_NAME).exists():
        # Real scans' features and the audit's encoder are the same for all.
        for other in list(folder.parent.glob(f"{_BUDGETS}/{reports.name}/*/{CACHE}"))[:1]:
            shutil.copytree(other, report / CACHE, dirs_exist_ok=True)
        bundle = bundle_of(folder, name) if full else None
        evaluate(data, folder / "samples" / name, report, bundle=bundle, quick=not full)
    return reported_rows(report, folder, name)


def reported_rows(report: Path, folder: Path, name: str) -> dict[str, Row]:
    """The rows of a report by name, and the time that a scan takes.

    Args:
        report: Folder of the report.
        folder: Of all entrants of the budget.
        name: Name of the entrant.
    """
    content = json.loads((report / JSON_NAME).read_text(encoding="utf-8"))
    rows = {row["name"]: Row(**row) for row in content["rows"]}
    timing = json.loads((folder / "timing" / f"{name}.json").read_text(encoding="utf-8"))
    seconds = Row("fidelity", "seconds", "Sampling, s a scan", timing["seconds_per_scan"], better="none")
    return rows | {"seconds": seconds}


def markdown_table(columns: Mapping[str, Mapping[str, Row]]) -> str:
    """A line for each row, a column for each entrant, in Markdown."""
    labels = {name: row for column in columns.values() for name, row in column.items()}
    lines = [
        "| | real against real | " + " | ".join(f"`{name}`" for name in columns) + " |",
        "|---|---|" + "---|" * len(columns),
    ]
    for name, row in labels.items():
        cells = [_cell(column.get(name)) for column in columns.values()]
        label = row.label.replace("|", "\\|")
        lines.append(f"| {label} | {_number(row.reference)} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _cell(row: Row | None) -> str:
    if row is None or row.value is None:
        return "–"
    interval = "" if row.low is None else f" ({_number(row.low)} to {_number(row.high)})"
    return _number(row.value) + interval


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _draw_scans(names: Sequence[str], real: ScanSet, folder: Path, path: Path) -> None:
    groups = [("real, held out", list(real.arrays[:_NUM_SHOWN]))]
    for name in names:
        made = load_scans(folder / "samples" / name, "synthetic", real)
        groups.append((name.replace("_", " "), list(made.arrays[:_NUM_SHOWN])))
    planes_figure(groups, path, spacing_mm=real.grid.spacing_mm, axis_codes=real.grid.axis_codes)


def _draw_curves(
    names: Sequence[str], found: Mapping[float, Mapping[str, Mapping[str, Row]]], path: Path
) -> None:
    figure, panels = new_panels(10, 3.2, columns=len(_CURVES))
    for measure, panel in zip(_CURVES, panels, strict=True):
        for name in names:
            rows = {at: columns[name][measure] for at, columns in found.items() if name in columns}
            points = [(at, row.value) for at, row in rows.items() if row.value is not None]
            if points:
                panel.plot(*zip(*points, strict=True), marker="o", markersize=3, label=name)
                style_panel(panel, next(iter(rows.values())).label, "minutes of training")
    panels[-1].legend(frameon=False, fontsize=7, bbox_to_anchor=(1, 1))
    save_figure(figure, path, dpi=150)


def _folder(out: Path, minutes: float) -> Path:
    return out / _BUDGETS.replace("*", f"{minutes:g}")


def _minutes(folder: Path) -> float:
    return float(folder.name.partition("_")[0])


def bundle_of(folder: Path, name: str) -> Path:
    """The bundle of an entrant."""
    return folder / "runs" / name / "bundle"


def _log(folder: Path, line: str) -> None:
    """Adds a line with the time to the folder's log, and prints it."""
    folder.mkdir(parents=True, exist_ok=True)
    text = f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}"
    print(text, flush=True)
    with (folder / "log.txt").open("a", encoding="utf-8") as log:
        log.write(text + "\n")


if __name__ == "__main__":
    main()
