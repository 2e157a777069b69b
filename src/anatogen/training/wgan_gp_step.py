"""One update of the critic and of the generator of the WGAN-GP; the loop and the dry run share them.

Gulrajani et al. 2017, "Improved training of Wasserstein GANs", with the networks of Kwon et al. 2019. With
`gan.kwon_compatible` it repeats what the latter's published code does, faults included.
"""

from collections.abc import Callable, Mapping

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful

from anatogen.config.settings import GANConfig
from anatogen.models.wgan_gp import Critic, Generator, Shape
from anatogen.training.optimisation import adam, take_step


class WGANGPStep:
    """Generator and critic with their optimisers, and what one batch does to either.

    Args:
        fabric: Devices and processes; launched.
        config: The whole configuration; its seed decides the initial weights.
        shape: (D, H, W) of the volumes.

    Attributes:
        generator: The generator.
        critic: The critic.
        networks: Both by name.
        state: All that a checkpoint holds but the moving average, by name.
    """

    def __init__(self, fabric: Fabric, config: GANConfig, shape: Shape) -> None:
        self._fabric = fabric
        self._settings = config.gan
        self._optimisation = config.gan_training
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.training.seed)
            self.generator = Generator(config.gan, shape)
            self.critic = Critic(config.gan, shape)
        self.networks: dict[str, nn.Module] = {"generator": self.generator, "critic": self.critic}
        optimisers = {name: adam(network, config.gan_training) for name, network in self.networks.items()}
        self.state: dict[str, Stateful] = {
            **self.networks,
            **{f"{name}_optimiser": optimiser for name, optimiser in optimisers.items()},
        }
        self._generator, self._generator_optimiser = fabric.setup(self.generator, optimisers["generator"])
        self._critic, self._critic_optimiser = fabric.setup(self.critic, optimisers["critic"])

    def update_critic(
        self, real: Tensor, z: Tensor, epsilon: Tensor, require_finite: Callable[[Mapping[str, Tensor]], None]
    ) -> dict[str, Tensor]:
        """One step of the critic towards L = E[C(fake)] - E[C(real)] + weight * penalty.

        Args:
            real: float32 (B, 1, D, H, W) in [-1, 1], on the device.
            z: float32 (B, latent_dim), noise for as many fakes.
            epsilon: float32 (B,) in [0, 1], where between fake (0) and real (1) the gradient is penalised.
            require_finite: Raises if a loss is not finite; called before any weight changes.

        Returns:
            "critic_loss", the "gradient_penalty" without its weight, and the "wasserstein" estimate
            E[C(real)] - E[C(fake)]; 0-d.
        """
        with torch.no_grad():
            fake = self.generator(z)
        wasserstein = self._critic(real).mean() - self._critic(fake).mean()
        # Past the wrapper: it allows no way back but Fabric's, and gathers these gradients all the same.
        penalty = gradient_penalty(self.critic, real, fake, epsilon, per_voxel=self._settings.kwon_compatible)
        loss = self._settings.gradient_penalty * penalty - wasserstein
        losses = {"critic_loss": loss, "gradient_penalty": penalty, "wasserstein": wasserstein}
        require_finite(losses)
        take_step(self._fabric, loss, self._critic, self._critic_optimiser, self._optimisation)
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
        loss = -self.critic(self._generator(z)).mean()
        require_finite({"generator_loss": loss})
        take_step(self._fabric, loss, self._generator, self._generator_optimiser, self._optimisation)
        self.critic.requires_grad_(True)
        return {"generator_loss": loss.detach()}


def gradient_penalty(
    critic: nn.Module, real: Tensor, fake: Tensor, epsilon: Tensor, *, per_voxel: bool = False
) -> Tensor:
    """E[(||grad C(x)|| - 1)^2] at volumes between real and fake (Gulrajani et al. 2017, equation 3).

    Args:
        critic: Gives float (B,) for volumes.
        real: float32 (B, C, D, H, W).
        fake: float32 (B, C, D, H, W).
        epsilon: float32 (B,) in [0, 1], the weight of the real volume.
        per_voxel: Takes the norm over the channels of each voxel, and asks of every voxel that it be 1: the
            fault of Kwon et al.'s published code. The equation's norm is over the whole volume.

    Returns:
        0-d, differentiable in the critic's weights.
    """
    epsilon = epsilon[:, None, None, None, None]
    between = (epsilon * real + (1 - epsilon) * fake).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(critic(between).sum(), between, create_graph=True)
    norms = gradient.norm(dim=1) if per_voxel else gradient.flatten(1).norm(dim=1)
    return (norms - 1).square().mean()
