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
    summary = prepare_scans(scans, out, overrides, config=config, strict=strict)
    for decision in summary.decisions:
        print(f"  {decision}")
    for left_out in summary.left_out:
        print(f"  left out: {left_out.name}: {left_out.reason}")
    counts = ", ".join(f"{count} {split}" for split, count in summary.num_cases.items())
    state = "complete already" if summary.was_complete else "prepared"
    print(
        f"{state}: {len(summary.manifest.cases)} scans ({counts}), {len(summary.left_out)} left out, in {out}"
    )
