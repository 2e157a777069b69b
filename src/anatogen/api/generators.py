"""From a prepared dataset: train a generator, sample it, judge what came out."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from anatogen.core.choices import FileFormat, Sampler, StageName

if TYPE_CHECKING:
    from anatogen.config.settings import GANConfig, GeneratorSettings
    from anatogen.evaluation.evaluate import Evaluation
    from anatogen.evaluation.reconstruction.report import ReconstructionEvaluation


def train(
    data: Path | str,
    run: Path | str,
    settings: "GeneratorSettings | None" = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    preset: str = "default",
    config: Path | str | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    stages: Sequence[StageName] | None = None,
    autoencoder_run: Path | str | None = None,
    device: str = "auto",
    devices: int = 1,
    dry_run: bool = False,
) -> Path | None:
    """Trains a generator, or resumes its training.

    Args:
        data: Prepared dataset.
        run: Folder of the run; the same call again resumes it.
        settings: Settings, in place of the preset's.
        overrides: Settings that differ, e.g. details.width=96, in Python {"details": {"width": 96}};
            a dry run shows them all.
        preset: Preset to start from: default or paper.
        config: YAML file of settings.
        minutes: Budget of each stage in minutes, over all resumptions.
        steps: Budget of each stage in steps.
        stages: Stages to train, of a latent diffusion model autoencoder and diffusion; default all.
        autoencoder_run: Run whose autoencoder a latent diffusion model uses, training stage diffusion alone;
            default this run's own.
        device: auto, cpu, cuda or cuda:1; auto is a GPU where there is one.
        devices: Number of GPUs, or of processes on a CPU.
        dry_run: Show settings, sizes and budget; train nothing.

    Returns:
        The folder of the bundle, or of the autoencoder if nothing more was asked for; None for a dry run.

    Raises:
        UserError: If settings, data and run don't fit, or the autoencoder is not fit for stage two.
    """
    from anatogen.config.presets import training_settings

    chosen = training_settings(
        preset,
        overrides,
        settings=settings,
        config=config,
        minutes=minutes,
        steps=steps,
        stages=stages,
    )
    from anatogen.training.train import asked_for
    from anatogen.training.train import train as train_generator

    if dry_run:
        from anatogen.training.cost.estimate import describe_training

        chosen, trained = asked_for(chosen, stages, run, autoencoder_run)
        print(describe_training(Path(data), chosen, trained, device=device, devices=devices))
        return None
    return train_generator(
        data, run, chosen, stages=stages, autoencoder_run=autoencoder_run, device=device, devices=devices
    )


def train_gan(
    data: Path | str,
    run: Path | str,
    settings: "GANConfig | None" = None,
    *,
    overrides: Mapping[str, Any] | None = None,
    config: Path | str | None = None,
    minutes: float | None = None,
    steps: int | None = None,
    device: str = "auto",
    devices: int = 1,
    dry_run: bool = False,
) -> Path | None:
    """Trains the baseline, a WGAN-GP, or resumes its training.

    Args:
        data: Prepared dataset.
        run: Folder of the run; the same call again resumes it.
        settings: Settings, in place of the defaults.
        overrides: Settings that differ, e.g. gan.width=32, in Python {"gan": {"width": 32}}.
        config: YAML file of settings.
        minutes: Budget in minutes, over all resumptions; default 200,000 steps.
        steps: Budget in steps.
        device: auto, cpu, cuda or cuda:1; auto is a GPU where there is one.
        devices: Number of GPUs, or of processes on a CPU.
        dry_run: Show settings, sizes and budget; train nothing.

    Returns:
        The folder of the bundle; None for a dry run.

    Raises:
        UserError: If settings, data and run don't fit.
    """
    from anatogen.config.presets import gan_settings

    chosen = gan_settings(overrides, settings=settings, config=config, minutes=minutes, steps=steps)
    if dry_run:
        from anatogen.training.cost.estimate import describe_training

        print(describe_training(Path(data), chosen, ("gan",), device=device, devices=devices))
        return None
    from anatogen.training.wgan_gp import train_gan as train_generator

    return train_generator(data, run, chosen, device=device, devices=devices)


def models() -> str:
    """Lists the models that come with anatogen; `sample` takes their names.

    Returns:
        A line for each.
    """
    from anatogen.generators.shipped import describe_models

    return describe_models()


def sample(
    bundle: Path | str,
    out: Path | str,
    *,
    num_samples: int = 1,
    seed: int = 0,
    sampler: Sampler | None = None,
    steps: int | None = None,
    batch_size: int = 4,
    file_format: FileFormat = "nifti",
    device: str = "auto",
    processes: int | None = None,
    reject_copies: Path | str | None = None,
) -> list[Path]:
    """Writes synthetic scans; a call that was stopped makes what is missing.

    Each scan is a file (a folder for DICOM) with a JSON beside it that says it is synthetic and how it was
    made. Scan k depends on (seed, k) alone: to the bit on a CPU, where every process has one thread, and up
    to rounding on a GPU.

    Args:
        bundle: Model bundle, e.g. RUN/bundle, or a name that `anatogen models` lists.
        out: Folder for the synthetic scans; may hold some of the same set already.
        num_samples: Number of scans of the set.
        seed: Random seed of the set.
        sampler: Sampler; default the bundle's own. A GAN has none.
        steps: Number of sampling steps; default the bundle's own. A GAN has none.
        batch_size: Number of scans made at once on a GPU; on a CPU one is made after the other.
        file_format: Format: nifti (.nii.gz), dicom (a folder of slices) or npy.
        device: auto, cpu, cuda or cuda:1; auto is a GPU where there is one.
        processes: Number of processes that share the work; default one per core, or per GPU.
        reject_copies: Privacy audit, e.g. REPORT/audit. Scans that it flags are left out, and later numbers
            take their place; a JSON `rejected_...` stands for each.

    Returns:
        Paths of all scans of the set, in order.

    Raises:
        UserError: If the bundle is none, a number can't be, the folder holds scans of another set, the audit
            is of another grid, or it flags nearly all scans.
    """
    from anatogen.evaluation.privacy.copy_detector import AuditFilter
    from anatogen.generators.loading import load_bundle

    return load_bundle(bundle).write(
        out,
        num_samples=num_samples,
        seed=seed,
        sampler=sampler,
        steps=steps,
        batch_size=batch_size,
        file_format=file_format,
        device=device,
        processes=processes,
        reject_copies=None if reject_copies is None else AuditFilter(Path(reject_copies)),
    )


def reconstruct(
    bundle: Path | str,
    scans: Path | str,
    out: Path | str,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    file_format: FileFormat = "nifti",
    device: str = "auto",
) -> list[Path]:
    """Writes what the autoencoder gives back of real scans: the best that the generator could do.

    They are scans of patients still, with the details that latents can't hold taken away: as private as the
    scans themselves. Each has a JSON beside it.

    Args:
        bundle: Model bundle or run with an autoencoder, as preset paper trains.
        scans: Prepared dataset (its test split, or validation where that is empty), one split of it such as
            DATASET:train, or a folder of scans on the bundle's grid.
        out: Folder to be made.
        num_samples: Number of scans, chosen at random; default all.
        seed: Random seed of the choice.
        file_format: Format: nifti (.nii.gz) or npy.
        device: auto, cpu, cuda or cuda:1; auto is a GPU where there is one.

    Returns:
        Paths of the files.

    Raises:
        UserError: If the bundle has no autoencoder, scans don't fit it or are too few, or the folder exists.
    """
    from anatogen.evaluation.reconstruction.export import reconstruct as write_reconstructions

    return write_reconstructions(
        bundle, scans, out, num_samples=num_samples, seed=seed, file_format=file_format, device=device
    )


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
    quick: bool = False,
    seed: int = 0,
    device: str = "auto",
) -> "Evaluation":
    """Says whether synthetic scans look real, are diverse and leak patients; writes a report.

    Where REAL is a prepared dataset without a split, its test scans are the real and the held-out ones, and
    copies of its training scans are looked for.

    Args:
        real: Real scans that the generator was not trained on: folder, prepared dataset, or one split of it
            such as DATASET:test.
        synthetic: Folder of synthetic scans on the same grid.
        out: Folder of the report; may hold an earlier one, which is replaced.
        train: Scans that the generator was trained on; with a holdout, the privacy audit is made.
        holdout: Scans of other patients, that it was not trained on; may be the real ones.
        bundle: Generator, for membership inference by its loss.
        medicalnet: Weights file of a MedicalNet ResNet, for features of whole volumes.
        num_pairs: Number of random pairs of scans for MS-SSIM.
        quick: Look at fewer slices and pairs, and make no privacy audit: a minute for small scans.
        seed: Random seed of everything.
        device: auto, cpu, cuda or cuda:1; auto is a GPU where there is one.

    Returns:
        Every number, the answers to the report's questions, and its page.

    Raises:
        UserError: If a folder holds no scans, scans differ in grid or modality, sets that must be apart share
            scans, there are too few scans, or the report's folder holds something else.
    """
    from anatogen.evaluation.evaluate import describe_roles
    from anatogen.evaluation.evaluate import evaluate as evaluate_scans
    from anatogen.report.progress import shown_progress

    train = None if train is None else Path(train)
    holdout = None if holdout is None else Path(holdout)
    assumed = describe_roles(Path(real), train, holdout, quick=quick)
    if assumed is not None:
        print(assumed)
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
            quick=quick,
            seed=seed,
            device=device,
            progress=progress,
        )


def compare_autoencoders(
    data: Path | str,
    out: Path | str,
    bundles: Sequence[Path | str],
    *,
    seed: int = 0,
    device: str = "auto",
) -> "ReconstructionEvaluation":
    """Measures how well autoencoders give held-out scans back, side by side; writes a report.

    Args:
        data: Held-out scans: prepared dataset (its test scans), one split such as DATASET:validation, or a
            folder.
        out: Folder of the report; may hold an earlier one, which is replaced.
        bundles: Model bundles or runs with an autoencoder, as preset paper trains.
        seed: Random seed of the intervals.
        device: auto, cpu, cuda or cuda:1; auto is a GPU where there is one.

    Returns:
        Every number by bundle, and the report's page.

    Raises:
        UserError: If a bundle can't be read or does not fit the scans, there are no scans, or the report's
            folder holds something else.
    """
    from anatogen.evaluation.reconstruction.report import report_reconstruction
    from anatogen.report.progress import shown_progress

    with shown_progress() as progress:
        return report_reconstruction(data, bundles, out, seed=seed, device=device, progress=progress)
