"""`anatogen train gan`: the WGAN-GP baseline from prepared dataset to bundle, resumed where it stopped."""

from functools import partial
from pathlib import Path

from lightning_fabric import Fabric

from anatogen.config.settings import GANConfig
from anatogen.core.files import sha256_file
from anatogen.core.weights import WEIGHTS_NAME, load_weights
from anatogen.dataset.manifest import Manifest, load_manifest
from anatogen.generators.description import GANBundleDescription
from anatogen.generators.latent_diffusion import load_bundle
from anatogen.generators.wgan_gp import GANBundle
from anatogen.models.wgan_gp import Generator
from anatogen.report.figures import planes_figure
from anatogen.training.autoencoder import NUM_PREVIEWS
from anatogen.training.devices import build_fabric, check_budgets, check_devices, launch
from anatogen.training.loop import read_log
from anatogen.training.run_folder import claim_run, count_training_scans
from anatogen.training.wgan_gp import check_statistics, train_wgan_gp


def train_gan(
    data: Path | str, run: Path | str, config: GANConfig, *, accelerator: str = "auto", devices: int = 1
) -> Path:
    """Trains a WGAN-GP, or goes on with a training that was stopped; a finished one is left as it is.

    Args:
        data: A prepared dataset.
        run: Folder of the run: checkpoint, log, previews in `gan/`, and at the end `bundle/`.
        config: From `presets.gan_settings`.
        accelerator: "cpu", "cuda", or "auto" for a GPU where there is one.
        devices: Number of GPUs, or of processes on a CPU.

    Returns:
        The folder of the bundle.

    Raises:
        UserError: If data and settings don't fit the run.
        NonFiniteLossError: If a loss is not finite.
    """
    data, run = Path(data), Path(run)
    manifest = load_manifest(data)
    check_budgets(config, ("gan",))
    check_devices(config, ("gan",), accelerator, devices)
    count_training_scans(data, manifest)
    check_statistics(config.gan_training.batch_size // devices, manifest.grid.shape)
    claim_run(run, manifest.sha256(), config, config.training.seed)
    # The gradient penalty goes back through a gradient, which half precision has too few digits for; and the
    # critic is run on real and on fake volumes before its way back.
    fabric = build_fabric(accelerator, devices, mixed_precision=False, broadcast_buffers=False)
    description = _describe(config, manifest)
    launch(fabric, partial(_stage, data=data, folder=run / "gan", config=config, description=description))
    return _write_bundle(run, description)


def _describe(config: GANConfig, manifest: Manifest) -> GANBundleDescription:
    return GANBundleDescription(
        gan=config.gan,
        grid=manifest.grid,
        intensity=manifest.intensity,
        training={"dataset_sha256": manifest.sha256()},
    )


def _stage(
    fabric: Fabric, data: Path, folder: Path, config: GANConfig, description: GANBundleDescription
) -> None:
    grid = description.grid

    def draw_preview(generator: Generator, path: Path) -> None:
        bundle = GANBundle(description, generator).to(fabric.device)
        arrays = bundle.generate(range(NUM_PREVIEWS), seed=config.training.seed).numpy()
        planes_figure(
            [("synthetic", list(arrays))], path, spacing_mm=grid.spacing_mm, axis_codes=grid.axis_codes
        )

    train_wgan_gp(fabric, data, folder, config, draw_preview)


def _write_bundle(run: Path, description: GANBundleDescription) -> Path:
    weights = run / "gan" / WEIGHTS_NAME
    records = read_log(run / "gan")
    training = description.training | {
        "gan_steps": float(records[-1]["step"]) if records else 0.0,
        "generator_sha256": sha256_file(weights),
    }
    generator = Generator(description.gan, description.grid.shape)
    load_weights(generator, weights)
    description = description.model_copy(update={"training": training})
    GANBundle(description, generator).save(run / "bundle")
    load_bundle(run / "bundle")
    return run / "bundle"
