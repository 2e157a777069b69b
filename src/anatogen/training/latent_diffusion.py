"""`anatogen train` of a latent diffusion model: both stages, each resumed where it stopped, to a bundle."""

from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from anatogen.config.settings import LatentDiffusionSettings
from anatogen.core.choices import StageName
from anatogen.core.devices import device_named
from anatogen.core.errors import UserError
from anatogen.core.files import sha256_file, write_json
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import WEIGHTS_NAME, load_weights
from anatogen.dataset.manifest import Manifest, Split
from anatogen.dataset.volumes import VolumeDataset
from anatogen.diffusion.latents import LatentScaling, codebook_range_scaling
from anatogen.diffusion.process import mean_x_0_error, x_0_predictor
from anatogen.diffusion.schedule import CosineSchedule
from anatogen.generators.description import LatentDiffusionDescription, bundled_weights
from anatogen.generators.latent_diffusion import LatentDiffusionBundle
from anatogen.models.denoiser import Denoiser
from anatogen.models.vqgan import VQGAN
from anatogen.training.autoencoder import AUTOENCODER, train_autoencoder
from anatogen.training.autoencoder_check import AutoencoderCheck, check_autoencoder
from anatogen.training.devices import launch
from anatogen.training.diffusion import DIFFUSION, train_diffusion
from anatogen.training.latent_cache import cached_latents, claim_latents
from anatogen.training.loop import CHECKPOINT_NAME, read_log
from anatogen.training.run_folder import claim_run, read_settings
from anatogen.training.stage import check_training

AUTOENCODER_CHECK_NAME = "autoencoder_check.json"
_MAX_VARIANCE_SCANS = 16
_NUM_VARIANCE_TIMES = 32
# What may differ until stage two has begun.
_STAGE_TWO = ("denoiser", "diffusion", "diffusion_training")


def train_latent_diffusion(
    data: Path | str,
    run: Path | str,
    settings: LatentDiffusionSettings,
    *,
    stages: tuple[StageName, ...],
    autoencoder_run: Path | str | None,
    device: str,
    devices: int,
) -> Path:
    """`training.train` of this family.

    Raises:
        UserError: If data and settings don't fit the run, or the autoencoder is not fit for stage two.
        NonFiniteLossError: If a loss is not finite.
    """
    data, run = Path(data), Path(run)
    source = run if autoencoder_run is None else Path(autoencoder_run)
    chosen = [stage for stage in (AUTOENCODER, DIFFUSION) if stage.name in stages]
    manifest = check_training(data, settings, chosen, device, devices)
    open_sections = () if (run / "diffusion").exists() else _STAGE_TWO
    claim_run(run, manifest.sha256(), settings, settings.training.seed, open_sections=open_sections)
    if "autoencoder" in stages and not _is_settled(run):
        fabric = AUTOENCODER.build_fabric(device, devices)
        launch(fabric, partial(train_autoencoder, data=data, folder=run / "autoencoder", settings=settings))
    if "diffusion" not in stages:
        return run / "autoencoder"
    place = device_named(device)
    weights = source / "autoencoder" / WEIGHTS_NAME
    network = load_weights(VQGAN(settings.autoencoder), weights).to(place)
    check = _require_fit(network, data, run, settings, place)
    dataset = VolumeDataset(data, Split.TRAIN)
    latents = cached_latents(network, weights, dataset, settings, run / "latents", place)
    scaling = codebook_range_scaling(network.codebook.codes.cpu())
    description = _describe(settings, manifest, latents.shape[3:], scaling)
    claim_latents(run / "diffusion", latents)
    if place.type == "cuda" and devices > 1:
        # The first of the processes to come needs this GPU's memory.
        network.cpu()
        torch.cuda.empty_cache()
    launch(
        DIFFUSION.build_fabric(device, devices),
        partial(
            train_diffusion,
            latents=Path(str(latents.filename)),
            autoencoder=weights,
            folder=run / "diffusion",
            settings=settings,
            description=description,
        ),
    )
    return _write_bundle(run, data, network, description, check, place, settings)


def with_autoencoder_of(source: Path, settings: LatentDiffusionSettings) -> LatentDiffusionSettings:
    """The settings with all that concerns stage one as the run that trained the autoencoder had it."""
    if not (source / "autoencoder").is_dir():
        raise UserError(
            f"{source} holds no autoencoder: train one first, with "
            f"`anatogen train DATA {source} --preset paper --stages autoencoder`"
        )
    trained = read_settings(source)
    kept = {name: getattr(trained, name) for name in ("autoencoder", "losses", "autoencoder_training")}
    return settings.model_copy(update=kept)


def _is_settled(run: Path) -> bool:
    """Whether the autoencoder must stay as it is, because stage two has begun to learn its latents."""
    if not (run / "diffusion" / CHECKPOINT_NAME).exists():
        return False
    print(
        "autoencoder: left as it is, for stage two has begun on its latents (to train it on, delete "
        f"{run / 'diffusion'})",
        flush=True,
    )
    return True


def _require_fit(
    network: VQGAN, data: Path, run: Path, settings: LatentDiffusionSettings, device: torch.device
) -> AutoencoderCheck:
    held_out = VolumeDataset(data, Split.VALIDATION)
    check = check_autoencoder(network, VolumeDataset(data, Split.TRAIN), held_out, device)
    write_json(run / AUTOENCODER_CHECK_NAME, check.model_dump(mode="json"))
    verdict = "fit for stage two" if not check.problems else "not fit for stage two"
    checked = "held-out" if len(held_out) else "training (nothing is held out)"
    print(
        f"autoencoder: {verdict} · {checked} PSNR {check.psnr_db:.1f} dB (mean scan "
        f"{check.mean_scan_psnr_db:.1f} dB) · {check.codes_used:.0%} of codes used · latent std "
        f"{min(check.latent_std):.2g} to {max(check.latent_std):.2g}",
        flush=True,
    )
    if check.problems and settings.training.require_fit_autoencoder:
        listing = "".join(f"\n  - {problem}" for problem in check.problems)
        raise UserError(
            f"the autoencoder is not fit for stage two:{listing}\n"
            "To go on all the same: training.require_fit_autoencoder=false"
        )
    return check


def _describe(
    settings: LatentDiffusionSettings,
    manifest: Manifest,
    latent_shape: tuple[int, ...],
    scaling: LatentScaling,
) -> LatentDiffusionDescription:
    d, h, w = latent_shape
    return LatentDiffusionDescription(
        autoencoder=settings.autoencoder,
        denoiser=settings.denoiser,
        diffusion=settings.diffusion,
        grid=manifest.grid,
        intensity=manifest.intensity,
        latent_shape=(d, h, w),
        latent_shift=scaling.shift.tolist(),
        latent_scale=scaling.scale.tolist(),
        training={"dataset_sha256": manifest.sha256()},
    )


def _write_bundle(
    run: Path,
    data: Path,
    autoencoder: VQGAN,
    description: LatentDiffusionDescription,
    check: AutoencoderCheck,
    device: torch.device,
    settings: LatentDiffusionSettings,
) -> Path:
    weights = run / "diffusion" / WEIGHTS_NAME
    denoiser_sha256 = sha256_file(weights)
    if bundled_weights(run / "bundle", "denoiser_sha256") == denoiser_sha256:
        # Written anew it could differ in a digit, and its hash is what sets of synthetic scans are known by.
        return run / "bundle"
    denoiser = Denoiser(description.denoiser, description.autoencoder.code_dim, description.latent_shape)
    bundle = LatentDiffusionBundle(description, autoencoder, load_weights(denoiser, weights)).to(device)
    held_out = VolumeDataset(data, Split.VALIDATION)
    measured = held_out if len(held_out) else VolumeDataset(data, Split.TRAIN)
    x = measured.batch(range(min(_MAX_VARIANCE_SCANS, len(measured)))).to(device)
    records = read_log(run / "diffusion")
    bundle.description = description.model_copy(
        update={
            "x_0_variance": _x_0_variance(bundle, x, settings.training.seed),
            "training": description.training
            | {
                "reconstruction_psnr_db": round(check.psnr_db, 3),
                "codes_used": round(check.codes_used, 4),
                "diffusion_steps": float(records[-1]["step"]) if records else 0.0,
                "denoiser_sha256": denoiser_sha256,
            },
        }
    )
    bundle.save(run / "bundle")
    return run / "bundle"


@torch.inference_mode()
def _x_0_variance(bundle: LatentDiffusionBundle, x: Tensor, seed: int) -> list[float]:
    """Mean squared error of the estimated x_0 at evenly spaced times from 0 to 1.

    For the best estimate this is the mean variance of x_0 given x_t (Bao et al. 2022). Of scans that the
    denoiser has learned from, it would be the error of its memory.
    """
    settings = bundle.description.diffusion
    schedule = CosineSchedule(settings.num_train_steps)
    predict = x_0_predictor(bundle.denoiser, schedule, "eps", settings.clip_x_0)
    latents = torch.cat([bundle.encode(item) for item in x.split(1)])
    generator = derived_generator(seed, "x_0 variance")
    times = torch.linspace(0, 1, _NUM_VARIANCE_TIMES)[1:].tolist()
    return [0.0] + [mean_x_0_error(predict, latents, t, schedule, generator) for t in times]
