"""One training step of the denoiser and its moving average; the loop and the dry run share it."""

from collections.abc import Callable, Mapping

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful

from anatogen.config.settings import Settings
from anatogen.dataset.manifest import Grid
from anatogen.diffusion.process import denoising_loss
from anatogen.generators.latent_diffusion import build_denoiser, build_schedule
from anatogen.models.denoiser import Denoiser
from anatogen.training.ema import ExponentialMovingAverage
from anatogen.training.optimisation import adam, local_slice, take_step


class DenoiserStep:
    """The network of stage two with its optimiser and moving average, and what one batch does to them.

    Args:
        fabric: Devices and processes; launched.
        settings: The whole configuration; its seed decides the initial weights.
        grid: Grid of the volumes.
        latent_shape: (d, h, w) of the latents.

    Attributes:
        network: The denoiser.
        ema: Its moving average.
        networks: What is trained, by name.
        state: All that a checkpoint holds, by name.
    """

    def __init__(self, fabric: Fabric, settings: Settings, grid: Grid, latent_shape: tuple[int, ...]) -> None:
        self._fabric = fabric
        self._diffusion = settings.diffusion
        self._optimisation = settings.diffusion_training
        self._schedule = build_schedule(settings.diffusion)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.training.seed + 1)
            self.network: Denoiser = build_denoiser(
                settings.denoiser, settings.autoencoder, grid, latent_shape
            )
        optimiser = adam(self.network, self._optimisation)
        self._denoiser, self._optimiser = fabric.setup(self.network, optimiser)
        self.networks: dict[str, nn.Module] = {"denoiser": self.network}
        self.ema = ExponentialMovingAverage(self.network, settings.diffusion.ema_decay)
        self.state: dict[str, Stateful] = {
            "network": self.network,
            "optimiser": optimiser,
            "ema": self.ema.shadow,
        }

    def __call__(
        self,
        x_0: Tensor,
        step: int,
        generator: torch.Generator,
        require_finite: Callable[[Mapping[str, Tensor]], None],
    ) -> dict[str, Tensor]:
        """Learns from one batch.

        Args:
            x_0: float32 (B, C, d, h, w), this process's part of a batch of scaled latents, on the device.
            step: Batches before this one.
            generator: Decides times and noise of the whole batch; alike on all ranks.
            require_finite: Raises if the loss is not finite; called before any weight changes.

        Returns:
            The "loss", 0-d.
        """
        # Drawn for the whole batch on every process, so that their number changes nothing.
        batch_size = self._optimisation.batch_size
        mine = local_slice(self._fabric, batch_size)
        t = self._schedule.draw_times(batch_size, generator)[mine].to(x_0.device)
        eps = torch.randn(batch_size, *x_0.shape[1:], generator=generator)[mine].to(x_0.device)
        loss = denoising_loss(
            self._denoiser, x_0, eps, t, self._schedule, self._diffusion.prediction, self._diffusion.loss
        )
        require_finite({"loss": loss})
        take_step(self._fabric, loss, self._denoiser, self._optimiser, self._optimisation)
        self.ema.update(self.network, step)
        return {"loss": loss}
