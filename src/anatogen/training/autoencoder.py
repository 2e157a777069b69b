"""Stage one of latent diffusion: trains the VQ-GAN on prepared volumes.

Adversarial losses: Esser et al. 2021; feature matching: Wang et al. 2018.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful
from torch.nn import functional

from anatogen.config.settings import LatentDiffusionSettings, LossSettings
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import WEIGHTS_NAME, save_weights
from anatogen.dataset.manifest import Grid, Split
from anatogen.dataset.volumes import VolumeDataset, prefetched
from anatogen.models.discriminators import DiscriminatorOutputs, Discriminators, take_slices
from anatogen.models.lpips import load_lpips
from anatogen.models.perceptual import PerceptualDistance, load_slice_features
from anatogen.models.vqgan import VQGAN
from anatogen.training.batches import scans_of_step
from anatogen.training.loop import NUM_PREVIEWS, Loop, report_trend
from anatogen.training.optimisation import adam, local_slice, take_step
from anatogen.training.stage import DryRun, Stage, accept_losses, made_up_scans


def train_autoencoder(fabric: Fabric, data: Path, folder: Path, settings: LatentDiffusionSettings) -> None:
    """Trains the VQ-GAN until its budget is used up, from the last checkpoint if there is one.

    Args:
        fabric: Devices and processes; launched.
        data: A prepared dataset.
        folder: Where checkpoint, logs, previews and at the end `weights.safetensors` go.
        settings: The whole configuration.

    Raises:
        NonFiniteLossError: If a loss is not finite.
    """
    seed, batch_size = settings.training.seed, settings.autoencoder_training.batch_size
    dataset = VolumeDataset(data, Split.TRAIN)
    mine = local_slice(fabric, batch_size)
    train_step = VQGANStep(fabric, settings)
    codebook = train_step.network.codebook
    preview_scans = _preview_scans(data, dataset)

    def load(step: int) -> Tensor:
        return scans_of_step(dataset, settings.training, step, batch_size, range(batch_size)[mine])

    def preview() -> dict[str, Tensor]:
        with torch.no_grad(), fabric.autocast():
            # One by one, so that no preview needs more memory than a step.
            scans = preview_scans.to(fabric.device).split(1)
            reconstructed = torch.cat([train_step.network(scan)[0].float().cpu() for scan in scans])
        return {"real": preview_scans, "reconstructed": reconstructed}

    loop = Loop(
        fabric,
        folder,
        settings.autoencoder_training,
        settings.training,
        train_step.state,
        len(dataset),
        preview,
        dataset.manifest.grid,
    )
    for step, x in prefetched(loop.steps(), load):
        generator = derived_generator(seed, "autoencoder", step)
        slice_index = torch.randint(x.shape[2], (batch_size,), generator=generator)[mine]
        losses = train_step(
            x.to(fabric.device), step, slice_index.to(fabric.device), generator, loop.require_finite
        )
        values: dict[str, Tensor | float] = {**losses}
        ends_epoch = (step + 1) * batch_size // len(dataset) > step * batch_size // len(dataset)
        if ends_epoch:
            values["codes_used"] = codebook.fraction_used()
            codebook.reset_usage()
        loop.record(values)

    if fabric.is_global_zero:
        save_weights(train_step.network, folder / WEIGHTS_NAME)
        report_trend(folder)
    fabric.barrier()


def _preview_scans(data: Path, train: VolumeDataset) -> Tensor:
    """The first validation scans, or training ones where there are none."""
    validation = VolumeDataset(data, Split.VALIDATION)
    shown = validation if len(validation) else train
    return shown.batch(range(min(NUM_PREVIEWS, len(shown))))


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

    def __init__(self, fabric: Fabric, settings: LatentDiffusionSettings) -> None:
        self._fabric = fabric
        self._losses = losses = settings.losses
        self._optimisation = settings.autoencoder_training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(settings.training.seed)
            self.network = VQGAN(settings.autoencoder)
            discriminators = Discriminators(
                losses.discriminator_width, losses.adversarial_slice > 0, losses.adversarial_volume > 0
            )
        optimiser = adam(self.network, self._optimisation)
        self._autoencoder, self._optimiser = fabric.setup(self.network, optimiser)
        self.networks: dict[str, nn.Module] = {"autoencoder": self.network}
        self.state: dict[str, Stateful] = {"network": self.network, "optimiser": optimiser}
        self._discriminators = None
        if losses.adversarial:
            optimiser = adam(discriminators, self._optimisation)
            self._discriminators, self._discriminator_optimiser = fabric.setup(discriminators, optimiser)
            self.networks["discriminators"] = discriminators
            self.state |= {"discriminators": discriminators, "discriminator_optimiser": optimiser}
        self._perceptual = None
        if losses.perceptual > 0:
            self._perceptual = fabric.to_device(_perceptual(losses))

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
            generator: Decides where unused codes go; alike on all ranks.
            require_finite: Raises if a loss is not finite; called before any weight changes.

        Returns:
            All losses, 0-d, unweighted, and their weighted sum "loss" without the adversarial part.
        """
        reconstructed, z, indices = self._autoencoder(x)
        losses = self._reconstruction_losses(x, reconstructed, slice_index)
        losses["commitment"] = self.network.codebook.commitment(z, indices)
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
        self.network.codebook.update(z, indices, generator)
        return losses

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


def discriminator_hinge_loss(real_logits: Tensor, fake_logits: Tensor) -> Tensor:
    """0-d hinge loss of a discriminator: real logits above 1, fake ones below -1; any shapes."""
    return (functional.relu(1 - real_logits).mean() + functional.relu(1 + fake_logits).mean()) / 2


def generator_hinge_loss(fake_logits: Tensor) -> Tensor:
    """0-d adversarial loss of the generator, -mean(logits of its reconstructions)."""
    return -fake_logits.mean()


def _perceptual(losses: LossSettings) -> nn.Module:
    """The distance of slices that the user has weights for."""
    if losses.vgg_weights is None or losses.lpips_weights is None:
        return PerceptualDistance(load_slice_features())
    return load_lpips(Path(losses.vgg_weights), Path(losses.lpips_weights))


def feature_matching_loss(fake_features: Sequence[Tensor], real_features: Sequence[Tensor]) -> Tensor:
    """0-d sum over stages of the mean L1 distance of features; real ones give no gradient."""
    distances = [
        functional.l1_loss(fake, real.detach())
        for fake, real in zip(fake_features, real_features, strict=True)
    ]
    return torch.stack(distances).sum()


def _dry_run(fabric: Fabric, settings: LatentDiffusionSettings, grid: Grid) -> DryRun:
    losses, optimisation = settings.losses, settings.autoencoder_training
    if optimisation.steps is None or losses.adversarial_start < optimisation.steps:
        losses = losses.model_copy(update={"discriminator_start": 0, "adversarial_start": 0})
    elif losses.discriminator_start >= optimisation.steps:
        losses = losses.model_copy(update={"adversarial_slice": 0.0, "adversarial_volume": 0.0})
    train_step = VQGANStep(fabric, settings.model_copy(update={"losses": losses}))
    x = made_up_scans(optimisation.batch_size, grid, fabric)
    generator = torch.Generator().manual_seed(0)

    def step(number: int) -> object:
        slice_index = torch.zeros(len(x), dtype=torch.int64, device=x.device)
        return train_step(x, number, slice_index, generator, accept_losses)

    @torch.no_grad()
    def preview() -> object:
        with fabric.autocast():
            return train_step.network(made_up_scans(1, grid, fabric))

    return DryRun(train_step.networks, step, {"preview": preview})


def _work(settings: LatentDiffusionSettings, grid: Grid) -> float:
    return math.prod(grid.shape) * settings.autoencoder_training.batch_size


AUTOENCODER = Stage("autoencoder", LatentDiffusionSettings, _dry_run, _work)
