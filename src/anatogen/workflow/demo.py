"""`anatogen demo`: the whole way on embedded data, through the very calls that the commands make."""

import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from anatogen.config.presets import budget, training_settings
from anatogen.config.resolving import merged
from anatogen.core.errors import UserError
from anatogen.dataset.manifest import Split, load_manifest
from anatogen.dataset.prepare import PrepareConfig, prepare
from anatogen.dataset.volumes import VolumeDataset
from anatogen.generators.loading import load_bundle, load_latent_diffusion
from anatogen.io.nifti import read_nifti
from anatogen.training.autoencoder_check import AutoencoderCheck
from anatogen.training.latent_diffusion import AUTOENCODER_CHECK_NAME, train
from anatogen.training.loop import read_log
from anatogen.workflow.brains import make_brains
from anatogen.workflow.demo_page import write_demo_page

NUM_SCANS = 300
NUM_SAMPLES = 16
_NUM_SHOWN = 8
# Shares of the budget; the rest is for making and preparing scans, sampling and the page.
_AUTOENCODER_SHARE = 0.3
_DIFFUSION_SHARE = 0.6


def run_demo(folder: Path, minutes: float = 10.0) -> Path:
    """Makes brains, prepares them, trains both stages, samples, and writes a page about it.

    A demo that was stopped goes on where it stopped.

    Args:
        folder: Where everything goes.
        minutes: How long all of it may take, about.

    Returns:
        The page, `index.html`.

    Raises:
        UserError: If the template that the brains are made from is not installed, or minutes can't be.
    """
    if minutes <= 0:
        raise UserError(f"minutes is {minutes}: it must be above 0")
    first, second = _AUTOENCODER_SHARE * minutes, _DIFFUSION_SHARE * minutes
    scans, data, synthetic = folder / "scans", folder / "data", folder / f"synthetic_{minutes:g}min"
    run = folder / f"run_{minutes:g}min"
    settings = training_settings(
        "tiny",
        merged(budget(("autoencoder",), first, None), budget(("diffusion",), second, None)),
    )
    commands = [
        f"# {NUM_SCANS} brains, made by deforming the MNI152 template; they stand in for real scans",
        f"anatogen prepare {scans} {data}",
        f"anatogen train {data} {run} --stages autoencoder --preset tiny --minutes {first:g}",
        f"anatogen train {data} {run} --stages diffusion --preset tiny --minutes {second:g}",
        f"anatogen sample {run / 'bundle'} {synthetic} -n {NUM_SAMPLES} --seed 0",
    ]
    timings: dict[str, float] = {}

    def step(name: str, command: str, action: Callable[[], object]) -> None:
        print(f"\n{command}", flush=True)
        started = time.perf_counter()
        action()
        timings[name] = time.perf_counter() - started

    step("Make scans", commands[0], lambda: make_brains(scans, count=NUM_SCANS))
    step("Prepare", commands[1], lambda: prepare(scans, data, PrepareConfig()))
    step("Train autoencoder", commands[2], lambda: train(data, run, settings, stages=("autoencoder",)))
    step("Train diffusion model", commands[3], lambda: train(data, run, settings, stages=("diffusion",)))
    paths: list[Path] = []
    step(
        "Sample",
        commands[4],
        lambda: paths.extend(
            load_bundle(run / "bundle").write(synthetic, num_samples=NUM_SAMPLES, device="auto")
        ),
    )
    # A stage that an earlier call finished took its time then.
    for name, stage in (("Train autoencoder", "autoencoder"), ("Train diffusion model", "diffusion")):
        timings[name] = max(timings[name], 60 * read_log(run / stage)[-1]["minutes"])
    page = _write_page(folder, data, run, paths, timings, commands)
    print(f"\nopen {page}", flush=True)
    return page


def _write_page(
    folder: Path, data: Path, run: Path, paths: list[Path], timings: dict[str, float], commands: list[str]
) -> Path:
    manifest = load_manifest(data)
    bundle = load_latent_diffusion(run / "bundle")
    held_out = VolumeDataset(data, Split.TEST)
    real = held_out.batch(range(min(_NUM_SHOWN, len(held_out))))
    with torch.inference_mode():
        reconstructed = bundle.autoencoder(real)[0].clamp(-1, 1)
    synthetic = [manifest.intensity.normalise(read_nifti(path).array) for path in paths[:_NUM_SHOWN]]
    check = AutoencoderCheck.model_validate_json((run / AUTOENCODER_CHECK_NAME).read_text(encoding="utf-8"))
    histories = {stage: read_log(run / stage) for stage in ("autoencoder", "diffusion")}
    return write_demo_page(
        folder,
        real=_arrays(real),
        reconstructed=_arrays(reconstructed),
        synthetic=synthetic,
        grid=manifest.grid,
        timings=timings,
        histories=histories,
        numbers={
            "Training scans": str(len(manifest.split(Split.TRAIN))),
            "Held-out reconstruction": f"{check.psnr_db:.1f} dB PSNR",
            "Codes used": f"{check.codes_used:.0%} of {len(bundle.autoencoder.codebook.codes):,}",
            "Denoiser": f"{sum(p.numel() for p in bundle.denoiser.parameters()) / 1e6:.1f} M parameters",
            "Autoencoder steps": f"{histories['autoencoder'][-1]['step']:,.0f}",
            "Denoiser steps": f"{histories['diffusion'][-1]['step']:,.0f}",
            "Sampling": f"{timings['Sample'] / len(paths):.2f} s a scan, {len(paths)} scans",
        },
        commands=commands,
        next_steps=[
            "# your folder of NIfTI, NRRD, MetaImage, NPY or DICOM scans",
            "anatogen prepare MY_SCANS my_data",
            "# what it will take, before it is started",
            "anatogen train my_data my_run --dry-run --minutes 60",
            "anatogen train my_data my_run --minutes 60",
            "anatogen sample my_run/bundle my_synthetic_scans -n 100 --seed 0",
        ],
    )


def _arrays(batch: torch.Tensor) -> list[npt.NDArray[np.float32]]:
    return list(batch[:, 0].numpy())
