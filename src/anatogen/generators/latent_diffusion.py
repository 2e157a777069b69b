"""The family of latent diffusion models: latents from the denoiser, scans from the autoencoder's decoder."""

from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn

from anatogen.config.settings import Sampler
from anatogen.core.errors import UserError
from anatogen.core.seeding import derived_generator
from anatogen.diffusion.latents import LatentScaling
from anatogen.diffusion.process import denoising_loss, x_0_predictor
from anatogen.diffusion.schedule import CosineSchedule
from anatogen.generators.bundle import Bundle
from anatogen.generators.description import LatentDiffusionDescription
from anatogen.generators.solving import LOSS_TIMES, options_in_force, solve
from anatogen.models.denoiser import Denoiser
from anatogen.models.vqgan import VQGAN


class LatentDiffusionBundle(Bundle):
    """A trained latent diffusion model.

    Args:
        description: Content of `bundle.json`.
        autoencoder: With its weights.
        denoiser: With its weights.
    """

    family = "latent diffusion model"
    has_loss = True
    description: LatentDiffusionDescription
    autoencoder: VQGAN

    def __init__(
        self, description: LatentDiffusionDescription, autoencoder: VQGAN, denoiser: nn.Module
    ) -> None:
        super().__init__(description, autoencoder, denoiser)
        self.autoencoder = autoencoder
        self.denoiser = denoiser

    @classmethod
    def build(cls, description: LatentDiffusionDescription) -> Self:
        """The bundle of this description, with untrained networks."""
        autoencoder = VQGAN(description.autoencoder)
        denoiser = Denoiser(description.denoiser, description.autoencoder.code_dim, description.latent_shape)
        return cls(description, autoencoder, denoiser)

    @property
    def scaling(self) -> LatentScaling:
        """How latents are scaled for the diffusion process."""
        return LatentScaling(
            torch.tensor(self.description.latent_shift), torch.tensor(self.description.latent_scale)
        )

    def sampling_options(self, sampler: Sampler | None, steps: int | None) -> dict[str, str | int]:
        """Sampler and number of steps; where not asked for, the bundle's own.

        Raises:
            UserError: If the process has not so many steps.
        """
        options = options_in_force(self.description.diffusion, sampler, steps)
        try:
            CosineSchedule(self.description.diffusion.num_train_steps).sampling_times(int(options["steps"]))
        except ValueError as error:
            raise UserError(str(error)) from error
        return options

    def _generate(self, indices: Sequence[int], seed: int, options: dict[str, Any]) -> Tensor:
        latents = self.scaling.undo(self.sample_latents(indices, seed=seed, **options))
        quantised = self.autoencoder.codebook.quantise(latents)
        return self.autoencoder.decode(quantised, self.grid.shape).float().clamp(-1, 1)

    @torch.inference_mode()
    def encode(self, x: Tensor) -> Tensor:
        """Scaled latents of volumes, such as the denoiser has learned.

        Args:
            x: float32 (B, 1, D, H, W) in [-1, 1], on the bundle's device.

        Returns:
            float32 (B, C, d, h, w), on the bundle's device.
        """
        return self.scaling.apply(self.autoencoder.encode(x))

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
        schedule = CosineSchedule(settings.num_train_steps)
        num_steps = settings.sampling_steps if steps is None else steps
        shape = (len(self.description.latent_shift), *self.description.latent_shape)
        generators = [derived_generator(seed, "scan", index) for index in indices]

        def noise() -> Tensor:
            draws = [torch.randn(shape, generator=generator) for generator in generators]
            return torch.stack(draws).to(self.device)

        predict = x_0_predictor(self.denoiser, schedule, "eps", settings.clip_x_0)
        # A step for every level is the paper's algorithm, and beta_tilde is right for it.
        variance = None if num_steps == settings.num_train_steps else self._x_0_variance()
        return solve(sampler or settings.sampler, predict, noise, schedule, num_steps, variance)

    @torch.inference_mode()
    def loss(self, x: Tensor, *, seed: int) -> float:
        """Mean denoising loss of a scan, over the same times and noises for every scan.

        Args:
            x: float32 (1, 1, D, H, W) in [-1, 1], on any device.
            seed: Random seed of the noises.
        """
        x_0 = self.encode(x.to(self.device)).float()
        shape = (len(LOSS_TIMES), *x_0.shape[1:])
        eps = torch.randn(shape, generator=derived_generator(seed, "membership")).to(x_0.device)
        t = torch.tensor(LOSS_TIMES, device=x_0.device)
        schedule = CosineSchedule(self.description.diffusion.num_train_steps)
        return float(denoising_loss(self.denoiser, x_0.expand(shape), eps, t, schedule))

    def _x_0_variance(self) -> Callable[[Tensor], Tensor] | None:
        table = self.description.x_0_variance
        if not table:
            return None

        def interpolate(t: Tensor) -> Tensor:
            return torch.tensor(
                np.interp(float(t), np.linspace(0, 1, len(table)), table), dtype=torch.float64
            )

        return interpolate
