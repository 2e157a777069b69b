"""The commands of the downstream task: what synthetic scans are worth for segmentation with few labels."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from anatogen.cli.scans import ConfigFile
from anatogen.config.presets import budget_overrides
from anatogen.config.resolving import resolve

_SCANS = 'a folder of scans, or a prepared dataset ("DATASET:train" for one split).'
Run = Annotated[Path, typer.Argument(help="Folder of the run; the same command again resumes it.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value, e.g. network.feature_size=12.")]
Minutes = Annotated[float | None, typer.Option(help="Budget in minutes, over all resumptions.")]
Steps = Annotated[int | None, typer.Option(help="Budget in steps.")]
Accelerator = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
Devices = Annotated[int, typer.Option(help="Number of GPUs, or of processes on a CPU.")]

downstream_app = typer.Typer(
    no_args_is_help=True,
    help="What synthetic scans are worth: pre-train on them, segment with few labels, compare.",
)


@downstream_app.command()
def pretrain(
    scans: Annotated[Path, typer.Argument(help=f"To pre-train on: {_SCANS}")],
    run: Run,
    overrides: Overrides = None,
    also: Annotated[list[Path] | None, typer.Option(help="More scans, on the same grid.")] = None,
    like: Annotated[
        Path | None, typer.Option(help="Prepared dataset whose grid and CT window the scans must have.")
    ] = None,
    config: ConfigFile = None,
    minutes: Minutes = None,
    steps: Steps = None,
    accelerator: Accelerator = "auto",
    devices: Devices = 1,
) -> None:
    """Teach Swin UNETR to fill in what is hidden of scans without labels."""
    from anatogen.downstream.inpainting import load_inpainting_quality
    from anatogen.downstream.pretrain import pretrain as run_pretraining
    from anatogen.downstream.settings import PretrainConfig

    budget = budget_overrides(("inpainter",), minutes, steps)
    settings = resolve(PretrainConfig, {}, config, [*budget, *(overrides or [])])
    weights = run_pretraining(
        [scans, *(also or [])], run, settings, like=like, accelerator=accelerator, devices=devices
    )
    print(f"pre-trained network: {weights}")
    quality = load_inpainting_quality(run)
    if quality is not None:
        print(f"it {quality}")
        if not quality.learned:
            or_else = "" if like is None else f", or scans that are more like those of {like}"
            print(f"no better than copying: give it more steps{or_else}")


@downstream_app.command()
def finetune(
    data: Annotated[Path, typer.Argument(help="Prepared dataset with masks.")],
    run: Run,
    overrides: Overrides = None,
    init: Annotated[
        Path | None, typer.Option(help="What `downstream pretrain` made; without it from scratch.")
    ] = None,
    fraction: Annotated[
        float | None, typer.Option(help="Of the training patients whose labels are used, e.g. 0.05.")
    ] = None,
    config: ConfigFile = None,
    minutes: Minutes = None,
    steps: Steps = None,
    accelerator: Accelerator = "auto",
    devices: Devices = 1,
) -> None:
    """Teach Swin UNETR to segment labelled scans, or a fraction of them."""
    from anatogen.downstream.finetune import finetune as run_finetuning
    from anatogen.downstream.settings import FinetuneConfig

    given = budget_overrides(("segmenter",), minutes, steps)
    if fraction is not None:
        given.append(f"fraction={fraction}")
    settings = resolve(FinetuneConfig, {}, config, [*given, *(overrides or [])])
    folder = run_finetuning(data, run, settings, init=init, accelerator=accelerator, devices=devices)
    print(f"segmenter: {folder}")


@downstream_app.command()
def predict(
    scans: Annotated[Path, typer.Argument(help="Folder of scans in any format.")],
    segmenter: Annotated[Path, typer.Argument(help="What `downstream finetune` made.")],
    out: Annotated[Path, typer.Argument(help="Folder for the masks; what is there is kept.")],
    device: Device = "auto",
) -> None:
    """Write a mask for every scan, in the scan's own voxels."""

    from anatogen.downstream.predict import predict as run_prediction
    from anatogen.report.progress import shown_progress

    with shown_progress() as progress:
        left_out = run_prediction(scans, segmenter, out, device=device, progress=progress)
    for scan in left_out:
        print(f"left out: {scan.name}: {scan.reason}")
    print(f"masks: {out}")


@downstream_app.command()
def test(
    data: Annotated[Path, typer.Argument(help="Prepared dataset with masks; its test split is measured.")],
    segmenter: Annotated[
        Path, typer.Argument(help="What `downstream finetune` made, of this dataset or of another.")
    ],
    tolerance_mm: Annotated[float, typer.Option(help="Of the normalised surface distance.")] = 1.0,
    device: Device = "auto",
) -> None:
    """Measure a segmenter on real masks, e.g. one that learned from synthetic scans with masks."""
    from anatogen.downstream.measure import measure_on_test_split
    from anatogen.downstream.metrics import METRICS

    measured = measure_on_test_split(data, segmenter, tolerance_mm=tolerance_mm, device=device)
    names = {"dice": "Dice", "surface_dice": "surface Dice", "hausdorff95_mm": "95% Hausdorff distance (mm)"}
    for metric in METRICS:
        values = [value for case in measured.values() if (value := case.mean(metric)) is not None]
        mean = f"{sum(values) / len(values):.3f}" if values else "undefined"
        print(f"{names[metric]}: mean {mean} of {len(values)} of {len(measured)} scans")


@downstream_app.command()
def experiment(
    plan: Annotated[Path, typer.Argument(help="PLAN.yaml: data, arms, fractions, seeds, settings.")],
    out: Annotated[Path, typer.Argument(help="Folder of the experiment; the same command goes on.")],
    overrides: Annotated[
        list[str] | None, typer.Argument(help="key.sub=value, e.g. fractions=[0.05,0.1].")
    ] = None,
    processes: Annotated[int, typer.Option(help="Number of jobs at a time.")] = 1,
) -> None:
    """Compare ways to begin, fraction by fraction, seed by seed; the page says whether any of them helps."""
    from anatogen.downstream.experiment.plan import ExperimentPlan
    from anatogen.downstream.experiment.run import run_experiment

    page = run_experiment(
        resolve(ExperimentPlan, file=plan, overrides=overrides or []), out, processes=processes
    )
    print(f"page: {page}")
