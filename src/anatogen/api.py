"""The short Python calls: the same as the commands, with settings by preset, file and keyword."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from anatogen.dataset.prepare import PrepareSummary
    from anatogen.doctor.diagnosis import Diagnosis
    from anatogen.evaluation.evaluate import Evaluation
    from anatogen.planning.plan import Plan
    from anatogen.training.latent_diffusion import Stage


def doctor(
    scans: Path | str,
    out: Path | str | None = None,
    overrides: Iterable[str] = (),
    *,
    recipe: str | None = None,
    config: Path | None = None,
    headers_only: bool = False,
    progress: bool = True,
) -> "Diagnosis":
    """Finds out what is wrong with a folder of scans, as `anatogen doctor` does.

    Args:
        scans: Folder, .zip or .tar of NIfTI, NRRD, MetaImage, NPY files and DICOM series.
        out: Folder for `doctor.html` and `doctor.json`, which name files; None writes nothing.
        overrides: Strings "key.sub=value" as `prepare` takes them.
        recipe: Name of the recipe of `prepare` that the folder is meant for.
        config: YAML file of settings of `prepare`.
        headers_only: Reads no voxels.
        progress: Whether to show progress bars on the terminal.

    Returns:
        Facts and findings, each with what to do.

    Raises:
        UserError: If settings or folders are wrong.
    """
    from anatogen.dataset.prepare_config import prepare_settings
    from anatogen.doctor.examine import examine
    from anatogen.doctor.page import check_out, write_doctor_page
    from anatogen.io.archives import scans_folder

    settings = prepare_settings(overrides, config=config, recipe=recipe)
    out = None if out is None else Path(out)
    if out is not None:
        check_out(Path(scans), out)
    records = None if out is None else out / ".examined"
    with scans_folder(Path(scans), progress=progress) as folder:
        diagnosis = examine(folder, settings, headers_only=headers_only, records=records, progress=progress)
        if out is not None:
            write_doctor_page(diagnosis, out, progress=progress)
    return diagnosis


def prepare(
    scans: Path | str,
    out: Path | str,
    overrides: Iterable[str] = (),
    *,
    recipe: str | None = None,
    limit: int | None = None,
    config: Path | None = None,
    strict: bool = False,
) -> "PrepareSummary":
    """Makes a prepared dataset of a folder of scans, as `anatogen prepare` does.

    Args:
        scans: Folder of NIfTI, NRRD, MetaImage, NPY files and DICOM series.
        out: Folder of the dataset.
        overrides: Strings "key.sub=value", e.g. "spacing_mm=1".
        recipe: Name of a recipe, whose settings file and overrides change; default any folder's.
        limit: Takes the first so many scans, to try.
        config: YAML file of settings.
        strict: Makes a scan that can't be used an error.

    Returns:
        What was decided, prepared and left out.

    Raises:
        UserError: If settings or folders are wrong, or no scan is left.
    """
    from anatogen.dataset.prepare import prepare as prepare_scans
    from anatogen.dataset.prepare_config import prepare_settings

    settings = prepare_settings(overrides, config=config, recipe=recipe, limit=limit)
    return prepare_scans(Path(scans), Path(out), settings, strict=strict)


def plan(
    scans: Path | str,
    overrides: Iterable[str] = (),
    *,
    memory_gb: float | None = None,
    hours: float = 24.0,
    recipe: str | None = None,
    preset: str = "default",
    accelerator: str = "auto",
) -> "Plan":
    """Plans how to prepare and train a folder of scans, as `anatogen plan` does; `save` writes it.

    Args:
        scans: Folder of NIfTI, NRRD, MetaImage, NPY files and DICOM series.
        overrides: Strings "key.sub=value" of `prepare` or `train`, which the plan keeps.
        memory_gb: Of the GPU, or of the machine without one, in 10^9 bytes; default what this one has.
        hours: For everything, on this machine.
        recipe: Name of a recipe, whose settings the plan keeps.
        preset: Where what no rule decides comes from.
        accelerator: "cpu", "cuda", or "auto" for a GPU where there is one.

    Returns:
        Both configurations, each decision with its reason, warnings, and what it will take.

    Raises:
        UserError: If settings are wrong, or scans or budget can't give a generator.
    """
    from anatogen.planning.plan import make_plan

    return make_plan(
        Path(scans),
        memory_gb=memory_gb,
        hours=hours,
        recipe=recipe,
        overrides=overrides,
        preset=preset,
        accelerator=accelerator,
    )


def run(
    scans: Path | str,
    out: Path | str,
    overrides: Iterable[str] = (),
    *,
    hours: float = 24.0,
    memory_gb: float | None = None,
    number: int = 100,
    seed: int = 0,
    recipe: str | None = None,
    preset: str = "default",
    accelerator: str = "auto",
    workers: int | None = None,
    dry_run: bool = False,
    progress: bool = True,
) -> Path | None:
    """Goes the whole way from scans to evaluated synthetic ones, or goes on, as `anatogen run` does.

    Args:
        scans: Folder of NIfTI, NRRD, MetaImage, NPY files and DICOM series.
        out: Folder of everything.
        overrides: Strings "key.sub=value" of `prepare` or `train`.
        hours: For planning and training, about.
        memory_gb: Of the GPU, or of the machine without one, in 10^9 bytes; default what this one has.
        number: Of synthetic scans.
        seed: Of the set of synthetic scans.
        recipe: Name of a recipe of `prepare`.
        preset: Where what the plan does not decide comes from.
        accelerator: "cpu", "cuda", or "auto" for a GPU where there is one.
        workers: Processes that look at scans and sample; default one per core.
        dry_run: Stops when the plan is shown.
        progress: Whether to show progress bars on the terminal.

    Returns:
        The page `OUT/index.html`; None for a dry run.

    Raises:
        UserError: If settings or folders are wrong, or a stage can't be done.
    """
    from anatogen.workflow.request import Wishes
    from anatogen.workflow.run import run as run_stages

    wishes = Wishes(
        Path(scans),
        Path(out),
        tuple(overrides),
        hours=hours,
        memory_gb=memory_gb,
        number=number,
        seed=seed,
        recipe=recipe,
        preset=preset,
        accelerator=accelerator,
        workers=workers,
        progress=progress,
    )
    return run_stages(wishes, dry_run=dry_run)


def train(
    data: Path | str,
    run: Path | str,
    overrides: Iterable[str] = (),
    *,
    preset: str = "default",
    config: Path | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    stages: tuple["Stage", ...] = ("autoencoder", "diffusion"),
    autoencoder_run: Path | str | None = None,
    accelerator: str = "auto",
    devices: int = 1,
) -> Path:
    """Trains a generator or resumes its training, as `anatogen train` does.

    Args:
        data: A prepared dataset.
        run: Folder of the run.
        overrides: Strings "key.sub=value", e.g. "denoiser.width=96".
        preset: "paper", "default" or "tiny".
        config: YAML file of settings.
        minutes: Budget of each stage in minutes; default the preset's steps.
        steps: Budget of each stage in steps.
        stages: Which stages.
        autoencoder_run: The run whose autoencoder stage two uses; default this run's own.
        accelerator: "cpu", "cuda", or "auto" for a GPU where there is one.
        devices: Number of GPUs, or of processes on a CPU; more than one needs the caller's script to be
            guarded by `if __name__ == "__main__"`.

    Returns:
        The folder of the bundle, or of the autoencoder if stage two was not asked for.

    Raises:
        UserError: If settings, data and run don't fit, or the autoencoder is not fit for stage two.
    """
    from anatogen.config.presets import training_settings
    from anatogen.training.latent_diffusion import train as train_stages

    settings = training_settings(
        preset, overrides, config=config, minutes=minutes, steps=steps, stages=stages
    )
    return train_stages(
        data,
        run,
        settings,
        stages=stages,
        autoencoder_run=autoencoder_run,
        accelerator=accelerator,
        devices=devices,
    )


def train_gan(
    data: Path | str,
    run: Path | str,
    overrides: Iterable[str] = (),
    *,
    config: Path | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    accelerator: str = "auto",
    devices: int = 1,
) -> Path:
    """Trains the WGAN-GP baseline or resumes its training, as `anatogen train gan` does.

    Args:
        data: A prepared dataset.
        run: Folder of the run.
        overrides: Strings "key.sub=value", e.g. "gan.width=32".
        config: YAML file of settings.
        minutes: Budget in minutes; default 200,000 steps.
        steps: Budget in steps.
        accelerator: "cpu", "cuda", or "auto" for a GPU where there is one.
        devices: Number of GPUs, or of processes on a CPU; more than one needs the caller's script to be
            guarded by `if __name__ == "__main__"`.

    Returns:
        The folder of the bundle.

    Raises:
        UserError: If settings, data and run don't fit.
    """
    from anatogen.config.presets import gan_settings
    from anatogen.training.wgan_gp import train_gan as train_generator

    settings = gan_settings(overrides, config=config, minutes=minutes, steps=steps)
    return train_generator(data, run, settings, accelerator=accelerator, devices=devices)


def evaluate(
    real: Path | str,
    synthetic: Path | str,
    out: Path | str,
    *,
    train: Path | str | None = None,
    holdout: Path | str | None = None,
    bundle: Path | str | None = None,
    medicalnet: Path | str | None = None,
    num_pairs: int = 1000,
    seed: int = 0,
) -> "Evaluation":
    """Measures synthetic scans against real ones and writes a report, as `anatogen evaluate` does.

    Args:
        real: Folder of scans, prepared dataset, or one split of it such as "DATASET:test". Of a whole dataset
            the test scans are the real and held-out ones, and copies of its training scans are looked for.
        synthetic: Folder of synthetic scans on the same grid.
        out: Folder of the report.
        train: The scans that the generator was trained on; with `holdout`, the privacy audit is made.
        holdout: Scans of other patients that it was not trained on; may be those of `real`.
        bundle: The generator, for membership inference on its denoiser.
        medicalnet: Weights file of a MedicalNet ResNet, for features of whole volumes.
        num_pairs: Random pairs of scans for MS-SSIM.
        seed: Of everything random.

    Returns:
        Every number, the answers to the report's questions, and its page.

    Raises:
        UserError: If a folder holds no scans, scans differ in grid or modality, sets that must be apart share
            scans, there are too few scans, or the report's folder holds something else.
    """

    from anatogen.evaluation.evaluate import evaluate as evaluate_scans
    from anatogen.report.progress import shown_progress

    with shown_progress() as progress:
        return evaluate_scans(
            real,
            synthetic,
            out,
            train=train,
            holdout=holdout,
            bundle=bundle,
            medicalnet=medicalnet,
            num_pairs=num_pairs,
            seed=seed,
            progress=progress,
        )
