"""Trains the WGAN-GP baseline on prepared volumes.

Gulrajani et al. 2017, "Improved training of Wasserstein GANs", with the networks of Kwon et al. 2019. With
`gan.kwon_compatible` it repeats what the latter's published code does, faults included.
"""

import math
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn

from anatogen.config.settings import GANConfig
from anatogen.core.errors import UserError
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import WEIGHTS_NAME, save_weights
from anatogen.dataset.manifest import Split
from anatogen.dataset.volumes import VolumeDataset, flip_axis, prefetched, shuffled_indices
from anatogen.models.wgan_gp import Critic, Generator, Shape, fit_running_statistics, level_shapes
from anatogen.training.checkpoint import Stateful
from anatogen.training.ema import ExponentialMovingAverage
from anatogen.training.loop import Loop
from anatogen.training.optimisation import adam, local_slice, take_step

_NUM_STATISTICS_BATCHES = 32


def train_wgan_gp(
    fabric: Fabric,
    data: Path,
    folder: Path,
    config: GANConfig,
    draw_preview: Callable[[Generator, Path], None],
) -> None:
    """Trains generator and critic until the budget is used up, from the last checkpoint if there is one.

    Args:
        fabric: Devices and processes, in full precision; launched.
        data: A prepared dataset.
        folder: Where checkpoint, logs, previews and at the end `weights.safetensors` (of the generator's
            moving average) go.
        config: The whole configuration.
        draw_preview: Samples with a generator and writes the picture.

    Raises:
        NonFiniteLossError: If a loss is not finite.
    """
    seed, batch_size, gan = config.training.seed, config.gan_training.batch_size, config.gan
    dataset = VolumeDataset(data, Split.TRAIN)
    axis = flip_axis(config.training.flip, dataset.manifest.grid.affine)
    mine = local_slice(fabric, batch_size)
    num_critic_steps, num_generator_steps = gan.updates
    num_scans = num_critic_steps * batch_size
    player = WGANGPStep(fabric, config, dataset.shape)
    ema = ExponentialMovingAverage(player.generator, gan.ema_decay)

    def with_statistics() -> Generator:
        # The moving average was never run, so that it has none of its own.
        draws = derived_generator(seed, "running statistics")
        batches = [
            torch.randn(batch_size, gan.latent_dim, generator=draws) for _ in range(_NUM_STATISTICS_BATCHES)
        ]
        fit_running_statistics(ema.shadow, [z.to(fabric.device) for z in batches])
        return ema.shadow

    def load(step: int) -> Tensor:
        x = dataset.batch(shuffled_indices(len(dataset), seed, step * num_scans, num_scans))
        if axis is not None:
            flipped = torch.rand(num_scans, generator=derived_generator(seed, "flip", step)) < 0.5
            x[flipped] = x[flipped].flip(axis)
        return x.unflatten(0, (num_critic_steps, batch_size))[:, mine]

    loop = Loop(
        fabric,
        folder,
        config.gan_training,
        config.training,
        player.parts | {"ema": ema.shadow},
        player.learners,
        len(dataset),
        lambda path: draw_preview(with_statistics(), path),
        batches_per_step=num_critic_steps,
    )
    for step, batches in prefetched(loop.steps(), load):
        # Drawn for the whole batch on every process, so that their number changes nothing.
        draws = derived_generator(seed, "gan", step)

        def noise(draws: torch.Generator = draws) -> Tensor:
            return torch.randn(batch_size, gan.latent_dim, generator=draws)[mine].to(fabric.device)

        judged = []
        for x in batches.to(fabric.device):
            z, share = noise(), torch.rand(batch_size, generator=draws)[mine].to(fabric.device)
            judged.append(player.update_critic(x, z, share, loop.require_finite))
        made = [player.update_generator(noise(), loop.require_finite) for _ in range(num_generator_steps)]
        ema.update(player.generator, step)
        loop.record(_means(judged) | _means(made))

    if fabric.is_global_zero:
        save_weights(with_statistics(), folder / WEIGHTS_NAME)
    fabric.barrier()


class WGANGPStep:
    """Generator and critic with their optimisers, and what one batch does to either.

    Args:
        fabric: Devices and processes; launched.
        config: The whole configuration; its seed decides the initial weights.
        shape: (D, H, W) of the volumes.

    Attributes:
        generator: The generator.
        critic: The critic.
        parts: All that a checkpoint holds but the moving average, by name.
        learners: The optimisers.
    """

    def __init__(self, fabric: Fabric, config: GANConfig, shape: Shape) -> None:
        self._fabric = fabric
        self._settings = config.gan
        self._optimisation = config.gan_training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            self.generator = Generator(config.gan, shape)
            self.critic = Critic(config.gan, shape)
        self.learners = [adam(self.generator, config.gan_training), adam(self.critic, config.gan_training)]
        self._wrapped_generator, self._generator_learner = fabric.setup(self.generator, self.learners[0])
        self._wrapped_critic, self._critic_learner = fabric.setup(self.critic, self.learners[1])
        self.parts: dict[str, Stateful] = {
            "generator": self.generator,
            "generator_optimiser": self.learners[0],
            "critic": self.critic,
            "critic_optimiser": self.learners[1],
        }

    def update_critic(
        self, real: Tensor, z: Tensor, share: Tensor, require_finite: Callable[[Mapping[str, Tensor]], None]
    ) -> dict[str, Tensor]:
        """One step of the critic towards L = E[C(fake)] - E[C(real)] + weight * penalty.

        Args:
            real: float32 (B, 1, D, H, W) in [-1, 1], on the device.
            z: float32 (B, latent_dim), noise for as many fakes.
            share: float32 (B,) in [0, 1], of each real volume in the one between where the gradient is.
            require_finite: Raises if a loss is not finite; called before any weight changes.

        Returns:
            "critic_loss", the "gradient_penalty" without its weight, and the "wasserstein" estimate
            E[C(real)] - E[C(fake)]; 0-d.
        """
        with torch.no_grad():
            fake = self.generator(z)
        wasserstein = self._wrapped_critic(real).mean() - self._wrapped_critic(fake).mean()
        # Past the wrapper: it allows no way back but Fabric's, and gathers these gradients all the same.
        penalty = gradient_penalty(self.critic, real, fake, share, per_voxel=self._settings.kwon_compatible)
        loss = self._settings.gradient_penalty * penalty - wasserstein
        losses = {"critic_loss": loss, "gradient_penalty": penalty, "wasserstein": wasserstein}
        require_finite(losses)
        take_step(self._fabric, loss, self._wrapped_critic, self._critic_learner, self._optimisation)
        return {name: value.detach() for name, value in losses.items()}

    def update_generator(
        self, z: Tensor, require_finite: Callable[[Mapping[str, Tensor]], None]
    ) -> dict[str, Tensor]:
        """One step of the generator towards L = -E[C(G(z))].

        Args:
            z: float32 (B, latent_dim), on the device.
            require_finite: Raises if the loss is not finite; called before any weight changes.

        Returns:
            "generator_loss", 0-d.
        """
        self.critic.requires_grad_(False)
        loss = -self.critic(self._wrapped_generator(z)).mean()
        require_finite({"generator_loss": loss})
        take_step(self._fabric, loss, self._wrapped_generator, self._generator_learner, self._optimisation)
        self.critic.requires_grad_(True)
        return {"generator_loss": loss.detach()}


def check_statistics(batch_size: int, shape: Shape) -> None:
    """Refuses batches that batch normalisation can't take: it needs two values of each channel.

    Args:
        batch_size: Scans that one device gets at once.
        shape: (D, H, W) of the volumes.

    Raises:
        UserError: If the coarsest level has fewer voxels over the whole batch.
    """
    if batch_size * math.prod(level_shapes(shape)[-1]) < 2:
        raise UserError(
            f"gan_training.batch_size gives each device {batch_size} scan of {shape} voxels, which is too "
            "little for batch normalisation: give at least 2"
        )


def gradient_penalty(
    critic: nn.Module, real: Tensor, fake: Tensor, share: Tensor, *, per_voxel: bool = False
) -> Tensor:
    """E[(||grad C(x)|| - 1)^2] at volumes between real and fake (Gulrajani et al. 2017, equation 3).

    Args:
        critic: Gives float (B,) for volumes.
        real: float32 (B, C, D, H, W).
        fake: float32 (B, C, D, H, W).
        share: float32 (B,) in [0, 1], of the real volume.
        per_voxel: Takes the norm over the channels of each voxel, and asks of every voxel that it be 1: the
            fault of Kwon et al.'s published code. The equation's norm is over the whole volume.

    Returns:
        0-d, differentiable in the critic's weights.
    """
    share = share[:, None, None, None, None]
    between = (share * real + (1 - share) * fake).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    norms = gradient.norm(dim=1) if per_voxel else gradient.flatten(1).norm(dim=1)
    return (norms - 1).square().mean()


def _means(records: list[dict[str, Tensor]]) -> dict[str, Tensor | float]:
    return {name: torch.stack([record[name] for record in records]).mean() for name in records[0]}
