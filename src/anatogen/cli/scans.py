"""The commands that look at scans before anything is trained; heavy imports wait until one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Scans = Annotated[
    Path, typer.Argument(help="Folder, .zip or .tar of scans: NIfTI, NRRD, MetaImage, NPY, DICOM.")
]
ConfigFile = Annotated[Path | None, typer.Option("--config", help="YAML file of settings.")]


def prepare(
    scans: Scans,
    out: Annotated[Path, typer.Argument(help="Folder for the prepared dataset.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.sub=value, e.g. spacing_mm=1; all keys: docs/data.md.")
    ] = None,
    recipe: Annotated[
        str | None,
        typer.Option(metavar="NAME", help="For a known download or layout; `anatogen recipes` lists them."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Take the first so many scans only, to try.")] = None,
    config: ConfigFile = None,
    strict: Annotated[
        bool, typer.Option("--strict", help="Make a scan that can't be used an error.")
    ] = False,
    allow_tilt: Annotated[
        bool, typer.Option("--allow-tilt", help="Resample CT with gantry tilt instead of leaving it out.")
    ] = False,
) -> None:
    """Check scans, bring them to one grid and intensity range, and split them by patient."""
    from anatogen.api import prepare as prepare_scans

    overrides = [*(overrides or ()), *(["allow_tilt=true"] if allow_tilt else [])]
    summary = prepare_scans(scans, out, overrides, recipe=recipe, limit=limit, config=config, strict=strict)
    for decision in summary.decisions:
        print(f"  {decision}")
    for left_out in summary.left_out:
        print(f"  left out: {left_out.name}: {left_out.reason}")
    num_cases = len(summary.manifest.cases)
    counts = ", ".join(f"{count} {split}" for split, count in summary.num_cases.items())
    state = "complete already" if summary.was_complete else "prepared"
    print(f"{state}: {num_cases} scans ({counts}), {len(summary.left_out)} left out, in {out}")


def recipes() -> None:
    """List the recipes of `prepare`: known downloads and layouts."""
    from anatogen.dataset.recipes import RECIPES

    width = max(map(len, RECIPES))
    for recipe in RECIPES.values():
        print(f"{recipe.name:{width}}  {recipe.summary}")


def plan(
    scans: Scans,
    overrides: Annotated[
        list[str] | None,
        typer.Argument(help="key.sub=value of prepare or train, which the plan keeps, e.g. spacing_mm=1."),
    ] = None,
    memory: Annotated[
        str | None, typer.Option(help="Of the GPU or the machine, e.g. 24G; default what this one has.")
    ] = None,
    hours: Annotated[float, typer.Option(help="For everything, on this machine.")] = 24.0,
    recipe: Annotated[str | None, typer.Option(help="A recipe, whose settings the plan keeps.")] = None,
    out: Annotated[Path, typer.Option(help="Folder for the plan.")] = Path("plan"),
    preset: Annotated[str, typer.Option(help="Where what no rule decides comes from.")] = "default",
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
) -> None:
    """Look at scans and this machine, and decide how to prepare and train; each decision with its reason."""
    from anatogen.api import plan as plan_training
    from anatogen.planning.plan import next_commands, parse_memory

    made = plan_training(
        scans,
        overrides or (),
        memory_gb=None if memory is None else parse_memory(memory),
        hours=hours,
        recipe=recipe,
        preset=preset,
        accelerator=accelerator,
    )
    made.save(out)
    print(made.text())
    print(f"\nsaved in {out}; next:")
    for command in next_commands(scans, out):
        print(f"  {command}")


def doctor(
    scans: Scans,
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.sub=value of prepare, e.g. 'exclude=labelsTr/*'.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder for doctor.html and doctor.json.")] = Path("doctor"),
    recipe: Annotated[str | None, typer.Option(help="The recipe that the folder is meant for.")] = None,
    config: ConfigFile = None,
    headers_only: Annotated[
        bool, typer.Option("--headers-only", help="Read no voxels: quick, and blind to copies and damage.")
    ] = False,
) -> None:
    """Find out what is wrong with a folder of scans, and what to do about it."""
    from anatogen.api import doctor as examine
    from anatogen.doctor.table import print_diagnosis

    diagnosis = examine(scans, out, overrides or (), recipe=recipe, config=config, headers_only=headers_only)
    print_diagnosis(diagnosis, out)
    if not diagnosis.is_usable:
        raise typer.Exit(1)


def run(
    scans: Scans,
    out: Annotated[Path, typer.Argument(help="Folder for everything; the same command again goes on.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.sub=value of prepare or train, e.g. spacing_mm=1.")
    ] = None,
    hours: Annotated[float | None, typer.Option(help="For planning and training, about; default 24.")] = None,
    minutes: Annotated[float | None, typer.Option(help="The same in minutes.")] = None,
    memory: Annotated[
        str | None, typer.Option(help="Of the GPU or the machine, e.g. 24G; default what this one has.")
    ] = None,
    number: Annotated[int, typer.Option("--number", "-n", help="Of synthetic scans.")] = 100,
    seed: Annotated[int, typer.Option(help="Of the set of synthetic scans.")] = 0,
    recipe: Annotated[str | None, typer.Option(help="For a known download or layout.")] = None,
    preset: Annotated[str, typer.Option(help="Where what the plan does not decide comes from.")] = "default",
    accelerator: Annotated[str, typer.Option(help="auto, cpu or cuda.")] = "auto",
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Stop when the plan is shown.")] = False,
) -> None:
    """Go the whole way: doctor, plan, prepare, train, sample, evaluate."""
    from anatogen.api import run as go_the_way
    from anatogen.core.errors import UserError
    from anatogen.planning.plan import parse_memory

    if hours is not None and minutes is not None:
        raise UserError(f"hours is {hours:g} and minutes {minutes:g}: give one of them")
    page = go_the_way(
        scans,
        out,
        overrides or (),
        hours=24.0 if hours is None and minutes is None else hours or (minutes or 0) / 60,
        memory_gb=None if memory is None else parse_memory(memory),
        number=number,
        seed=seed,
        recipe=recipe,
        preset=preset,
        accelerator=accelerator,
        dry_run=dry_run,
    )
    print("the same command without --dry-run goes on" if page is None else f"open {page}")
