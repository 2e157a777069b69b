"""The `anatogen evaluate` commands; heavy imports wait until one of them runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anatogen.cli.command_group import with_default

evaluate_app = typer.Typer(
    cls=with_default("scans"),
    no_args_is_help=True,
    help="Measure synthetic scans: `evaluate REAL SYNTHETIC --out REPORT` (options: `evaluate scans "
    "--help`), or autoencoders: `evaluate reconstruction DATA BUNDLE... --out REPORT`.",
)

_SCANS = "folder of scans, prepared dataset, or DATASET:train, :validation or :test."
Out = Annotated[Path, typer.Option("--out", help="Folder of the report.")]
Seed = Annotated[int, typer.Option(help="Of all that is random.")]


@evaluate_app.command("scans")
def evaluate_scans(
    real: Annotated[Path, typer.Argument(help=f"Real scans the generator was not trained on: {_SCANS}")],
    synthetic: Annotated[Path, typer.Argument(help="Folder of synthetic scans.")],
    out: Out,
    train: Annotated[
        Path | None, typer.Option(help="The generator's training scans; with --holdout: the privacy audit.")
    ] = None,
    holdout: Annotated[Path | None, typer.Option(help="Scans of patients it was not trained on.")] = None,
    bundle: Annotated[
        Path | None, typer.Option(help="The generator, for membership inference in the audit.")
    ] = None,
    medicalnet: Annotated[
        Path | None, typer.Option(help="Weights file of a MedicalNet ResNet, for features of volumes.")
    ] = None,
    pairs: Annotated[int, typer.Option(help="Random pairs of scans for MS-SSIM.")] = 1000,
    seed: Seed = 0,
) -> None:
    """Do synthetic scans look real, are they diverse, do they leak patients? Writes a page that says so."""
    from rich.console import Console

    from anatogen.evaluation.evaluate import describe_roles, evaluate
    from anatogen.report.progress import shown_progress
    from anatogen.report.rows import rows_table

    assumed = describe_roles(real, train, holdout)
    if assumed is not None:
        print(assumed)
    console = Console()
    with shown_progress() as progress:
        found = evaluate(
            real,
            synthetic,
            out,
            train=train,
            holdout=holdout,
            bundle=bundle,
            medicalnet=medicalnet,
            num_pairs=pairs,
            seed=seed,
            progress=progress,
        )
    console.print(rows_table(found.rows))
    for answer in found.answers:
        print(f"{answer.question} {answer.headline}")
    print(f"report: {found.page}")


@evaluate_app.command("reconstruction")
def evaluate_reconstruction(
    data: Annotated[Path, typer.Argument(help=f"Held-out scans: {_SCANS}")],
    bundles: Annotated[list[Path], typer.Argument(help="Model bundles, or runs with an autoencoder.")],
    out: Out,
    seed: Seed = 0,
) -> None:
    """How well do autoencoders give held-out scans back? Writes a page with all of them side by side."""
    from rich.console import Console

    from anatogen.evaluation.reconstruction.report import report_reconstruction
    from anatogen.report.progress import shown_progress
    from anatogen.report.rows import rows_table

    console = Console()
    with shown_progress() as progress:
        found = report_reconstruction(data, bundles, out, seed=seed, progress=progress)
    for name, rows in found.rows_by_bundle.items():
        print(f"\n{name}")
        console.print(rows_table(rows))
    print(f"report: {found.page}")
