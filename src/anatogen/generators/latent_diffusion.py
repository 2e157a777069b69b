"""The model bundle: a folder that holds all it takes to make new scans, and describes itself.

`bundle.json` says what the networks are, how latents and intensities are undone, and where voxels lie in
space; the weights lie beside it as safetensors. Sampling needs neither the training data nor the network.
"""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
import torch
from torch import Tensor, nn

from anatogen.config.settings import AutoencoderSettings, DenoiserSettings, DiffusionSettings, Sampler
from anatogen.core.errors import UserError
from anatogen.core.files import sha256_file, write_json
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import load_weights, save_weights
from anatogen.dataset.manifest import Grid
from anatogen.diffusion import samplers
from anatogen.diffusion.latents import LatentScaling
from anatogen.diffusion.process import Network, mean_x_0_error, x_0_predictor
from anatogen.diffusion.schedule import CosineSchedule, LinearFlowSchedule, Schedule
from anatogen.generators.description import (
    DESCRIPTION_NAME,
    BundleDescription,
    GANBundleDescription,
    read_description,
)
from anatogen.generators.shipped import bundle_folder
from anatogen.generators.wgan_gp import GANBundle, load_gan_bundle
from anatogen.io.volume import Volume
from anatogen.models.denoiser import Denoiser
from anatogen.models.vqgan import VQGAN

_AUTOENCODER, _DENOISER = BundleDescription.weights_names
_NUM_VARIANCE_TIMES = 32


class Bundle:
    """A trained latent diffusion model.

    Args:
        description: What it is.
        autoencoder: With its weights.
        denoiser: With its weights.
    """

    def __init__(self, description: BundleDescription, autoencoder: VQGAN, denoiser: nn.Module) -> None:
        self.description = description
        self.autoencoder = autoencoder
        self.denoiser = denoiser
        self.device = torch.device("cpu")

    @property
    def sha256(self) -> str:
        """Hash of the description, which holds the hashes of the weights."""
        return self.description.sha256

    @property
    def scaling(self) -> LatentScaling:
        """How latents are scaled for the diffusion process."""
        return LatentScaling(
            torch.tensor(self.description.latent_shift), torch.tensor(self.description.latent_scale)
        )

    def to(self, device: str | torch.device) -> Self:
        """Moves both networks to a device, and returns the bundle."""
        self.device = torch.device(device)
        self.autoencoder.to(self.device)
        self.denoiser.to(self.device)
        return self

    def sampling_options(self, sampler: Sampler | None, steps: int | None) -> dict[str, str | int]:
        """How scans are sampled if this is asked for: what `generate` takes besides numbers and seed."""
        settings = self.description.diffusion
        return {"sampler": sampler or settings.sampler, "steps": steps or settings.sampling_steps}

    def sample(
        self,
        number: int = 1,
        *,
        seed: int = 0,
        first: int = 0,
        sampler: Sampler | None = None,
        steps: int | None = None,
        batch_size: int = 4,
    ) -> Iterator[Volume]:
        """Makes new scans, one after another.

        Scan k depends on (seed, k) alone: to the bit on a CPU with the same number of threads, else up to
        rounding.

        Args:
            number: How many.
            seed: Of the whole set.
            first: Number k of the first scan.
            sampler: "ddpm", "ddim", "dpm_solver_pp", "euler" or "heun"; default the bundle's own.
            steps: Sampling steps; default the bundle's own.
            batch_size: Scans made at once on a GPU; on a CPU one is made after the other.

        Yields:
            Volumes, float32 (D, H, W) in the unit of the training scans (HU for CT), with spacing and
            orientation of the prepared data.

        Raises:
            ValueError: If steps or sampler can't be.
        """
        grid = self.description.grid
        for start in range(first, first + number, batch_size):
            indices = range(start, min(start + batch_size, first + number))
            for array in self.generate(indices, seed=seed, sampler=sampler, steps=steps).numpy():
                yield Volume(self.description.intensity.restore(array), np.asarray(grid.affine))

    @torch.inference_mode()
    def generate(
        self,
        indices: Sequence[int],
        *,
        seed: int = 0,
        sampler: Sampler | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """The scans of these numbers as they come from the networks, in one batch.

        Args:
            indices: Numbers k of the scans.
            seed: Of the whole set.
            sampler: Default the bundle's own.
            steps: Default the bundle's own.

        Returns:
            float32 (B, D, H, W) in [-1, 1], on the CPU.
        """
        if self.device.type == "cpu" and len(indices) > 1:
            # One by one: sums are then rounded alike in every batch, and little speed is lost.
            return torch.cat([self.generate([i], seed=seed, sampler=sampler, steps=steps) for i in indices])
        latents = self.scaling.undo(self.sample_latents(indices, seed=seed, sampler=sampler, steps=steps))
        quantised = self.autoencoder.codebook.quantise(latents)
        decoded = self.autoencoder.decode(quantised, self.description.grid.shape)
        return decoded[:, 0].float().clamp(-1, 1).cpu()

    @torch.inference_mode()
    def encode(self, x: Tensor) -> Tensor:
        """Scaled latents of volumes, such as the denoiser has learned.

        Args:
            x: float32 (B, 1, D, H, W) in [-1, 1], on the bundle's device.

        Returns:
            float32 (B, C, d, h, w), on the bundle's device.
        """
        z = self.autoencoder.encode(x)
        if self.description.diffusion.latents == "post":
            z = self.autoencoder.codebook.quantise(z)
        return self.scaling.apply(z)

    @torch.inference_mode()
    def sample_latents(
        self,
        indices: Sequence[int],
        *,
        seed: int = 0,
        sampler: Sampler | None = None,
        steps: int | None = None,
    ) -> Tensor:
        """Scaled latents of the scans of these numbers, float32 (B, C, d, h, w) on the bundle's device."""
        settings = self.description.diffusion
        schedule = build_schedule(settings)
        num_steps = settings.sampling_steps if steps is None else steps
        times = schedule.sampling_times(num_steps)
        shape = (len(self.description.latent_shift), *self.description.latent_shape)
        generators = [derived_generator(seed, "scan", index) for index in indices]

        def noise() -> Tensor:
            draws = [torch.randn(shape, generator=generator) for generator in generators]
            return torch.stack(draws).to(self.device)

        predict = x_0_predictor(self.denoiser, schedule, settings.prediction, settings.clip_x_0)
        x = noise()
        match sampler or settings.sampler:
            case "ddpm":
                # A step for every level is the paper's algorithm, and beta_tilde is right for it.
                variance = None if num_steps == settings.num_train_steps else self._x_0_variance()
                times = samplers.ancestral_times(schedule, num_steps)
                return samplers.ddpm(predict, x, times, schedule, noise, variance)
            case "ddim":
                return samplers.ddim(predict, x, times, schedule)
            case "dpm_solver_pp":
                return samplers.dpm_solver_pp(predict, x, times, schedule)
            case "euler":
                return samplers.euler(predict, x, times, schedule)
            case "heun":
                return samplers.heun(predict, x, times, schedule)
            case unknown:
                raise ValueError(
                    f"sampler {unknown!r} is unknown: use ddpm, ddim, dpm_solver_pp, euler or heun"
                )

    def save(self, folder: Path, *, half: bool = False) -> None:
        """Writes the bundle; `bundle.json`, which makes it one, comes last.

        Args:
            folder: Where to.
            half: Writes weights as float16, in half the space.

        Raises:
            ValueError: If a weight is too large for float16.
        """
        save_weights(self.autoencoder, folder / _AUTOENCODER, half=half)
        save_weights(self.denoiser, folder / _DENOISER, half=half)
        files = {name: sha256_file(folder / name) for name in (_AUTOENCODER, _DENOISER)}
        content = self.description.model_dump(mode="json") | {"files": files}
        self.description = BundleDescription.model_validate(content)
        write_json(folder / DESCRIPTION_NAME, content)

    def _x_0_variance(self) -> Callable[[Tensor], Tensor] | None:
        table = self.description.x_0_variance
        if not table:
            return None

        def interpolate(t: Tensor) -> Tensor:
            return torch.tensor(
                np.interp(float(t), np.linspace(0, 1, len(table)), table), dtype=torch.float64
            )

        return interpolate


def load_bundle(folder: Path | str, device: str | torch.device = "cpu") -> Bundle | GANBundle:
    """Reads a bundle and checks its weights against their hashes.

    Args:
        folder: What `anatogen train` wrote as RUN/bundle, or the name of a model that comes with the package.
        device: Where to sample.

    Returns:
        A `Bundle`, or a `GANBundle` if the folder is one of `anatogen train-gan`.

    Raises:
        UserError: If the folder is no bundle, of another format version, or damaged.
    """
    folder = bundle_folder(folder)
    description = read_description(folder)
    if isinstance(description, GANBundleDescription):
        return load_gan_bundle(folder, description).to(device)
    autoencoder = VQGAN(description.autoencoder)
    denoiser = build_denoiser(
        description.denoiser, description.autoencoder, description.grid, description.latent_shape
    )
    load_weights(autoencoder, folder / _AUTOENCODER)
    load_weights(denoiser, folder / _DENOISER)
    autoencoder.requires_grad_(False).eval()
    denoiser.requires_grad_(False).eval()
    return Bundle(description, autoencoder, denoiser).to(device)


def load_diffusion_bundle(folder: Path | str, device: str | torch.device = "cpu") -> Bundle:
    """`load_bundle` for what needs an autoencoder or a denoiser.

    Raises:
        UserError: If the folder is no bundle of a diffusion model, or damaged.
    """
    bundle = load_bundle(folder, device)
    if isinstance(bundle, GANBundle):
        raise UserError(
            f"{folder} is the bundle of a GAN, which has no autoencoder and no denoiser: "
            "name one of a diffusion model"
        )
    return bundle


def build_schedule(settings: DiffusionSettings) -> Schedule:
    """The noise schedule that the settings describe."""
    if settings.num_train_steps is not None:
        return CosineSchedule(settings.num_train_steps)
    return LinearFlowSchedule(settings.time_sampling)


def build_denoiser(
    denoiser: DenoiserSettings, autoencoder: AutoencoderSettings, grid: Grid, latent_shape: tuple[int, ...]
) -> Denoiser:
    """The denoiser of the latents (d, h, w) that an autoencoder makes of volumes on the grid, untrained."""
    spacing = zip(grid.spacing_mm, autoencoder.compression, strict=True)
    spacing_mm = tuple(millimetres * factor for millimetres, factor in spacing)
    return Denoiser(denoiser, autoencoder.latent_channels, latent_shape, spacing_mm)


@torch.inference_mode()
def measure_x_0_variance(predict: Network, latents: Tensor, schedule: Schedule, seed: int) -> list[float]:
    """Mean squared error of the estimated x_0, at evenly spaced times from 0 to 1.

    For the best estimate this is the mean variance of x_0 given x_t (Bao et al. 2022).

    Args:
        predict: Estimates x_0.
        latents: float32 (N, C, d, h, w), scaled; held-out ones, or the error is that of memory.
        schedule: Gives alpha and sigma.
        seed: Of the noise.
    """
    times = torch.linspace(0, 1, _NUM_VARIANCE_TIMES)[1:]
    generator = derived_generator(seed, "x_0 variance")
    return [0.0] + [mean_x_0_error(predict, latents, float(t), schedule, generator) for t in times]
