"""The command line: each command is one library call. Heavy imports wait until a command needs them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from anatogen.cli.command_group import with_default
from anatogen.cli.downstream import downstream_app
from anatogen.cli.evaluate import evaluate_app
from anatogen.cli.scans import ConfigFile, doctor, plan, prepare, recipes, run
from anatogen.cli.study import study_app
from anatogen.core.errors import UserError

if TYPE_CHECKING:
    from anatogen.training.latent_diffusion import Stage

Data = Annotated[Path, typer.Argument(help="Prepared dataset.")]
Run = Annotated[Path, typer.Argument(help="Folder of the run; the same command again resumes it.")]
Overrides = Annotated[list[str] | None, typer.Argument(help="key.sub=value, e.g. denoiser.width=96.")]
Preset = Annotated[str, typer.Option(help="paper, default or tiny.")]
Minutes = Annotated[float | None, typer.Option(help="Budget of each stage in minutes, over all resumptions.")]
Steps = Annotated[int | None, typer.Option(help="Budget of each stage in steps.")]
Accelerator = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Devices = Annotated[int, typer.Option(help="Number of GPUs, or of processes on a CPU.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Show settings, sizes and budget; train nothing.")]


_OUT_OF_MEMORY = (
    "the GPU's memory is full: lower autoencoder_training.batch_size, diffusion_training.batch_size or "
    "gan_training.batch_size when training, --batch when sampling"
)


app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="From a folder of 3D medical scans to a generator of new ones.",
)
train_app = typer.Typer(
    cls=with_default("both"),
    no_args_is_help=True,
    help="Train a generator: `train DATA RUN [OPTIONS]` for both stages (options: `train both --help`), "
    "one stage by name, or a GAN as a baseline.",
)
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(downstream_app, name="downstream")
app.add_typer(study_app, name="study")


def _show_version(wanted: bool) -> None:
    if wanted:
        import anatogen

        print(f"anatogen {anatogen.__version__}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", help="Show the version.", is_eager=True, callback=_show_version)
    ] = False,
) -> None:
    """From a folder of 3D medical scans to a generator of new ones."""


app.command()(run)
app.command()(doctor)
app.command()(prepare)
app.command()(recipes)
app.command()(plan)


@app.command()
def demo(
    out: Annotated[Path, typer.Argument(help="Folder for everything; the page is OUT/index.html.")],
    minutes: Annotated[float, typer.Option(help="How long it may take, about.")] = 10.0,
) -> None:
    """Go the whole way on embedded data: brains made from the MNI152 template."""
    from anatogen.workflow.demo import run_demo

    run_demo(out, minutes)


@train_app.command("both")
def train_both(
    data: Data,
    run: Run,
    overrides: Overrides = None,
    preset: Preset = "default",
    config: ConfigFile = None,
    minutes: Minutes = None,
    steps: Steps = None,
    accelerator: Accelerator = "auto",
    devices: Devices = 1,
    dry_run: DryRun = False,
) -> None:
    """Train the autoencoder, then the diffusion model on its latents."""
    sources = _sources(overrides, config, minutes, steps) | {"preset": preset}
    _train(data, run, sources, ("autoencoder", "diffusion"), accelerator, devices, dry_run)


@train_app.command("autoencoder")
def train_autoencoder(
    data: Data,
    run: Run,
    overrides: Overrides = None,
    preset: Preset = "default",
    config: ConfigFile = None,
    minutes: Minutes = None,
    steps: Steps = None,
    accelerator: Accelerator = "auto",
    devices: Devices = 1,
    dry_run: DryRun = False,
) -> None:
    """Train stage one: the VQ-GAN that compresses scans."""
    sources = _sources(overrides, config, minutes, steps) | {"preset": preset}
    _train(data, run, sources, ("autoencoder",), accelerator, devices, dry_run)


@train_app.command("diffusion")
def train_diffusion(
    data: Data,
    run: Run,
    overrides: Overrides = None,
    autoencoder: Annotated[
        Path | None, typer.Option(help="Run whose autoencoder is used; default RUN itself.")
    ] = None,
    preset: Preset = "default",
    config: ConfigFile = None,
    minutes: Minutes = None,
    steps: Steps = None,
    accelerator: Accelerator = "auto",
    devices: Devices = 1,
    dry_run: DryRun = False,
) -> None:
    """Train stage two: the diffusion model of the latents."""
    sources = _sources(overrides, config, minutes, steps) | {"preset": preset}
    _train(data, run, sources, ("diffusion",), accelerator, devices, dry_run, autoencoder)


@train_app.command("gan")
def train_gan(
    data: Data,
    run: Run,
    overrides: Annotated[list[str] | None, typer.Argument(help="key.sub=value, e.g. gan.width=32.")] = None,
    config: ConfigFile = None,
    minutes: Annotated[float | None, typer.Option(help="Budget in minutes, over all resumptions.")] = None,
    steps: Annotated[int | None, typer.Option(help="Budget in steps.")] = None,
    accelerator: Accelerator = "auto",
    devices: Devices = 1,
    dry_run: DryRun = False,
) -> None:
    """Train the baseline: a WGAN-GP, which has no stages."""
    sources = _sources(overrides, config, minutes, steps)
    if dry_run:
        from anatogen.config.presets import gan_settings
        from anatogen.training.cost.estimate import describe_plan

        print(describe_plan(data, gan_settings(**sources), ("gan",)))
        return
    from anatogen.api import train_gan as train

    result = train(data, run, **sources, accelerator=accelerator, devices=devices)
    print(f"finished: {result}")


@app.command()
def models() -> None:
    """List the models that come with anatogen; `sample` takes their names."""
    from anatogen.generators.shipped import describe_models

    print(describe_models())


@app.command()
def sample(
    bundle: Annotated[
        Path, typer.Argument(help="Model bundle, e.g. RUN/bundle, or a name that `anatogen models` lists.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder for the synthetic scans.")],
    number: Annotated[int, typer.Option("--number", "-n", help="How many scans the set has.")] = 1,
    seed: Annotated[int, typer.Option(help="Of the set; scan k depends on (seed, k) alone.")] = 0,
    sampler: Annotated[
        str | None, typer.Option(help="ddpm, ddim, dpm_solver_pp, euler or heun; default the bundle's.")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Sampling steps; default the bundle's.")] = None,
    batch: Annotated[int, typer.Option(help="Scans made at once on a GPU.")] = 4,
    file_format: Annotated[str, typer.Option("--format", help="nifti, dicom or npy.")] = "nifti",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    processes: Annotated[
        int | None, typer.Option(help="Processes that share the work; default one per core, or per GPU.")
    ] = None,
    reject_copies: Annotated[
        Path | None,
        typer.Option(metavar="AUDIT", help="Leave out scans that this privacy audit (REPORT/audit) flags."),
    ] = None,
) -> None:
    """Write synthetic scans; a call that was stopped makes what is missing."""
    from anatogen.evaluation.privacy.copy_detector import AuditFilter
    from anatogen.generators.sampling import format_named, num_rejected, sampler_named
    from anatogen.generators.sampling import sample as write_samples

    paths = write_samples(
        bundle,
        out,
        num_samples=number,
        seed=seed,
        sampler=None if sampler is None else sampler_named(sampler),
        steps=steps,
        batch_size=batch,
        file_format=format_named(file_format),
        device=device,
        processes=processes,
        reject_copies=None if reject_copies is None else AuditFilter(reject_copies),
    )
    print(f"{len(paths)} synthetic scans in {out}")
    if reject_copies is not None:
        print(f"{num_rejected(out)} scans left out, because the audit flags them as copies")


@app.command()
def reconstruct(
    bundle: Annotated[
        Path, typer.Argument(help="Model bundle or run, or a name that `anatogen models` lists.")
    ],
    scans: Annotated[
        Path, typer.Argument(help="Prepared dataset (its test split), DATASET:train, or folder of scans.")
    ],
    out: Annotated[Path, typer.Argument(help="Folder to be made.")],
    number: Annotated[int | None, typer.Option("--number", "-n", help="How many; default all.")] = None,
    seed: Annotated[int, typer.Option(help="Of which.")] = 0,
    file_format: Annotated[str, typer.Option("--format", help="nifti or npy.")] = "nifti",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
) -> None:
    """Write what the autoencoder gives back of real scans: the best that the generator could do."""
    from anatogen.evaluation.reconstruction.export import reconstruct as write_reconstructions

    paths = write_reconstructions(
        bundle, scans, out, number=number, seed=seed, file_format=file_format, device=device
    )
    print(f"{len(paths)} reconstructed scans in {out}")


def main() -> None:
    """Entry point of the `anatogen` command: errors that a user can mend become one line."""
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(arguments)
    except (UserError, RuntimeError) as error:
        # By name: torch, whose error it is, need not be loaded.
        out_of_memory = type(error).__name__ == "OutOfMemoryError"
        if len(arguments) < len(sys.argv) - 1 or not (out_of_memory or isinstance(error, UserError)):
            raise
        text = _OUT_OF_MEMORY if out_of_memory else error
        print(f"anatogen: {text}", file=sys.stderr)
        sys.exit(1)


def _sources(
    overrides: list[str] | None, config: Path | None, minutes: float | None, steps: int | None
) -> dict[str, Any]:
    """What settings are made of, as the library's calls take it."""
    return {"overrides": overrides or (), "config": config, "minutes": minutes, "steps": steps}


def _train(
    data: Path,
    run: Path,
    sources: dict[str, Any],
    stages: tuple[Stage, ...],
    accelerator: str,
    devices: int,
    dry_run: bool,
    autoencoder: Path | None = None,
) -> None:
    if dry_run:
        from anatogen.config.presets import training_settings
        from anatogen.training.cost.estimate import describe_plan
        from anatogen.training.run_folder import with_autoencoder_of

        settings = training_settings(**sources, stages=stages)
        if autoencoder is not None:
            settings = with_autoencoder_of(autoencoder, settings)
        print(describe_plan(data, settings, stages))
        return
    from anatogen.api import train

    result = train(
        data,
        run,
        **sources,
        stages=stages,
        autoencoder_run=autoencoder,
        accelerator=accelerator,
        devices=devices,
    )
    print(f"finished: {result}")
