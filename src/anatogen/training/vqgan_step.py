"""One training step of the VQ-GAN, both networks and both optimisers; the loop and the dry run share it."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful
from torch.nn import functional

from anatogen.config.settings import LossSettings, Settings
from anatogen.models.discriminators import DiscriminatorOutputs, Discriminators, take_slices
from anatogen.models.perceptual import PerceptualDistance, load_slice_features
from anatogen.models.vqgan import VQGAN, latent_shape
from anatogen.training.losses import discriminator_hinge_loss, feature_matching_loss, generator_hinge_loss
from anatogen.training.optimisation import adam, local_slice, take_step


class VQGANStep:
    """The networks of stage one with their optimisers, and what one batch does to them.

    Args:
        fabric: Devices and processes; launched.
        settings: The whole configuration; its seed decides the initial weights.

    Attributes:
        network: The autoencoder.
        networks: What is trained by name: "autoencoder", and "discriminators" where the losses ask for them.
        state: All that a checkpoint holds, by name.
    """

    def __init__(self, fabric: Fabric, settings: Settings) -> None:
        self._fabric = fabric
        self._losses = settings.losses
        self._optimisation = settings.autoencoder_training
        self._draws_latents = settings.autoencoder.quantiser == "none"
        self._latent_channels = settings.autoencoder.latent_channels
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.training.seed)
            self.network = VQGAN(settings.autoencoder)
            discriminators = _build_discriminators(settings.losses)
        optimiser = adam(self.network, self._optimisation)
        self._autoencoder, self._optimiser = fabric.setup(self.network, optimiser)
        self.networks: dict[str, nn.Module] = {"autoencoder": self.network}
        self.state: dict[str, Stateful] = {"network": self.network, "optimiser": optimiser}
        self._discriminators = None
        if discriminators is not None:
            optimiser = adam(discriminators, self._optimisation)
            self._discriminators, self._discriminator_optimiser = fabric.setup(discriminators, optimiser)
            self.networks["discriminators"] = discriminators
            self.state |= {"discriminators": discriminators, "discriminator_optimiser": optimiser}
        self._perceptual = _perceptual(settings.losses, fabric)

    def __call__(
        self,
        x: Tensor,
        step: int,
        slice_index: Tensor,
        generator: torch.Generator,
        require_finite: Callable[[Mapping[str, Tensor]], None],
    ) -> dict[str, Tensor]:
        """Learns from one batch.

        Args:
            x: float32 (B, 1, D, H, W) in [-1, 1], on the device.
            step: Batches before this one.
            slice_index: int64 (B,), the slice of each volume that 2D losses see, in [0, D).
            generator: Decides what is random in the quantiser; alike on all ranks.
            require_finite: Raises if a loss is not finite; called before any weight changes.

        Returns:
            All losses, 0-d, unweighted, and their weighted sum "loss" without the adversarial part.
        """
        noise = self._noise(x, generator) if self._draws_latents else None
        reconstructed, h, indices = self._autoencoder(x, noise)
        losses = self._reconstruction_losses(x, reconstructed, slice_index)
        losses |= self.network.codebook.losses(h, indices)
        total = torch.stack([getattr(self._losses, name) * value for name, value in losses.items()]).sum()
        generator_loss, discriminator_loss = total, None
        if self._discriminators is not None and step >= self._losses.discriminator_start:
            # One pass through the discriminators serves both: their own loss goes back to their weights,
            # the generator's only to `fake`, and from there on through the autoencoder.
            fake = reconstructed.detach().requires_grad_()
            outputs = self._discriminators(x, fake, slice_index)
            hinges = [
                discriminator_hinge_loss(on_real[0].float(), on_fake[0].float())
                for on_real, on_fake in outputs.values()
            ]
            discriminator_loss = torch.stack(hinges).sum()
            losses["discriminator"] = discriminator_loss
            if step >= self._losses.adversarial_start:
                adversarial, parts = self._adversarial_loss(outputs)
                losses |= parts
                # Through Fabric: in mixed precision it refuses any other way back.
                self._fabric.backward(adversarial, inputs=[fake], retain_graph=True)
                assert fake.grad is not None
                generator_loss = total + (reconstructed * fake.grad).sum()
        losses = {"loss": total, **losses}
        require_finite(losses)
        take_step(self._fabric, generator_loss, self._autoencoder, self._optimiser, self._optimisation)
        if self._discriminators is not None and discriminator_loss is not None:
            take_step(
                self._fabric,
                discriminator_loss,
                self._discriminators,
                self._discriminator_optimiser,
                self._optimisation,
            )
        self.network.codebook.update(h, indices, generator)
        return losses

    def _noise(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Standard normal noise for the latents of this process's part of the batch."""
        cells = latent_shape(x.shape[2:], self.network.compression)
        shape = (self._optimisation.batch_size, self._latent_channels, *cells)
        noise = torch.randn(shape, generator=generator)
        return noise[local_slice(self._fabric, len(noise))].to(x.device)

    def _reconstruction_losses(
        self, x: Tensor, reconstructed: Tensor, slice_index: Tensor
    ) -> dict[str, Tensor]:
        losses = {"l1": functional.l1_loss(reconstructed.float(), x)}
        if self._perceptual is not None:
            shown = take_slices(reconstructed.float(), slice_index)
            losses["perceptual"] = self._perceptual(shown, take_slices(x, slice_index))
        return losses

    def _adversarial_loss(self, outputs: DiscriminatorOutputs) -> tuple[Tensor, dict[str, Tensor]]:
        """The generator's loss of all discriminators, weighted, and its parts by name, unweighted."""
        weighted, parts = [], dict[str, Tensor]()
        for name, (on_real, on_fake) in outputs.items():
            hinge = generator_hinge_loss(on_fake[0].float())
            matching = feature_matching_loss(on_fake[1], on_real[1])
            parts |= {f"adversarial_{name}": hinge, f"feature_matching_{name}": matching}
            weighted += [
                getattr(self._losses, f"adversarial_{name}") * hinge,
                self._losses.feature_matching * matching,
            ]
        return torch.stack(weighted).sum(), parts


def _build_discriminators(settings: LossSettings) -> Discriminators | None:
    """The discriminators that the loss weights ask for, untrained, or None where they ask for none."""
    if not settings.adversarial:
        return None
    return Discriminators(
        settings.discriminator_width, settings.adversarial_slice > 0, settings.adversarial_volume > 0
    )


def _perceptual(settings: LossSettings, fabric: Fabric) -> PerceptualDistance | None:
    if settings.perceptual == 0:
        return None
    file = None if settings.perceptual_weights is None else Path(settings.perceptual_weights)
    distance = fabric.to_device(PerceptualDistance(load_slice_features(file)))
    assert isinstance(distance, PerceptualDistance)
    return distance
