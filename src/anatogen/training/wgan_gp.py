"""`anatogen train-gan`: the WGAN-GP baseline from prepared dataset to bundle, resumed where it stopped.

Gulrajani et al. 2017, "Improved training of Wasserstein GANs", with the networks of Kwon et al. 2019. With
`gan.kwon_compatible` it repeats what the latter's published code does, faults included.
"""

import math
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor, nn
from torch.distributed.checkpoint.stateful import Stateful
from torch.optim.swa_utils import update_bn

from anatogen.config.settings import GANConfig
from anatogen.core.errors import UserError
from anatogen.core.files import sha256_file
from anatogen.core.seeding import derived_generator
from anatogen.core.weights import WEIGHTS_NAME, load_weights, save_weights
from anatogen.dataset.manifest import Grid, Manifest, Split
from anatogen.dataset.volumes import VolumeDataset, prefetched
from anatogen.generators.description import WGANGPDescription, bundled_weights
from anatogen.generators.wgan_gp import WGANGPBundle
from anatogen.models.wgan_gp import Critic, Generator, Shape, level_shapes
from anatogen.training.batches import scans_of_step
from anatogen.training.devices import launch
from anatogen.training.loop import Loop, previewed, read_log
from anatogen.training.optimisation import ExponentialMovingAverage, adam, local_slice, take_step
from anatogen.training.run_folder import claim_run
from anatogen.training.stage import DryRun, Stage, accept_losses, check_training, made_up_scans

_NUM_STATISTICS_BATCHES = 32


def train_gan(
    data: Path | str, run: Path | str, config: GANConfig, *, device: str = "auto", devices: int = 1
) -> Path:
    """Trains a WGAN-GP, or goes on with a training that was stopped; a finished one is left as it is.

    The arguments are those of `anatogen.train_gan`, which explains them.

    Raises:
        UserError: If data and settings don't fit the run.
        NonFiniteLossError: If a loss is not finite.
    """
    data, run = Path(data), Path(run)
    manifest = check_training(data, config, [GAN], device, devices)
    claim_run(run, manifest.sha256(), config, config.training.seed)
    description = _describe(config, manifest)
    launch(
        GAN.build_fabric(device, devices),
        partial(train_wgan_gp, data=data, folder=run / "gan", config=config, description=description),
    )
    return _write_bundle(run, description)


def train_wgan_gp(
    fabric: Fabric, data: Path, folder: Path, config: GANConfig, description: WGANGPDescription
) -> None:
    """Trains generator and critic until the budget is used up, from the last checkpoint if there is one.

    Args:
        fabric: Devices and processes, in full precision; launched.
        data: A prepared dataset.
        folder: Where checkpoint, logs, previews and at the end `weights.safetensors` (of the generator's
            moving average) go.
        config: The whole configuration.
        description: Description of the bundle that is trained.

    Raises:
        NonFiniteLossError: If a loss is not finite.
    """
    seed, batch_size, gan = config.training.seed, config.gan_training.batch_size, config.gan
    num_critic_updates, num_generator_updates = gan.updates
    num_scans = num_critic_updates * batch_size
    dataset = VolumeDataset(data, Split.TRAIN)
    mine = local_slice(fabric, batch_size)
    positions = torch.arange(num_scans).view(num_critic_updates, batch_size)[:, mine].flatten().tolist()
    train_step = WGANGPStep(fabric, config, dataset.shape)
    ema = ExponentialMovingAverage(train_step.generator, gan.ema_decay)

    def load(step: int) -> Tensor:
        scans = scans_of_step(dataset, config.training, step, num_scans, positions)
        return scans.unflatten(0, (num_critic_updates, -1))

    def noise(draws: torch.Generator) -> Tensor:
        # Drawn for the whole batch on every process, so that their number changes nothing.
        return torch.randn(batch_size, gan.latent_dim, generator=draws)[mine].to(fabric.device)

    def sampled_generator() -> Generator:
        """The moving average with running statistics of its own: it was never run in training.

        Wu and Johnson 2021, "Rethinking 'Batch' in BatchNorm".
        """
        draws = derived_generator(seed, "running statistics")
        batches = [
            torch.randn(batch_size, gan.latent_dim, generator=draws) for _ in range(_NUM_STATISTICS_BATCHES)
        ]
        update_bn(batches, ema.shadow, fabric.device)
        return ema.shadow

    def preview() -> dict[str, Tensor]:
        bundle = WGANGPBundle(description, sampled_generator()).to(fabric.device)
        return {"synthetic": previewed(bundle, seed)}

    loop = Loop(
        fabric,
        folder,
        config.gan_training,
        config.training,
        train_step.state | {"ema": ema.shadow},
        len(dataset),
        preview,
        description.grid,
        batches_per_step=num_critic_updates,
    )
    has_learned = False
    for step, batches in prefetched(loop.steps(), load):
        has_learned = True
        draws = derived_generator(seed, "gan", step)
        critic_losses = []
        for x in batches.to(fabric.device):
            z = noise(draws)
            epsilon = torch.rand(batch_size, generator=draws)[mine].to(fabric.device)
            critic_losses.append(train_step.update_critic(x, z, epsilon, loop.require_finite))
        generator_losses = [
            train_step.update_generator(noise(draws), loop.require_finite)
            for _ in range(num_generator_updates)
        ]
        ema.update(train_step.generator, step)
        loop.record(_means(critic_losses) | _means(generator_losses))

    # Statistics that were taken anew could differ in a digit, on another machine say.
    if fabric.is_global_zero and (has_learned or not (folder / WEIGHTS_NAME).exists()):
        save_weights(sampled_generator(), folder / WEIGHTS_NAME)
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


def _means(records: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.stack([record[name] for record in records]).mean() for name in records[0]}


def _describe(config: GANConfig, manifest: Manifest) -> WGANGPDescription:
    return WGANGPDescription(
        gan=config.gan,
        grid=manifest.grid,
        intensity=manifest.intensity,
        training={"dataset_sha256": manifest.sha256()},
    )


def _write_bundle(run: Path, description: WGANGPDescription) -> Path:
    weights = run / "gan" / WEIGHTS_NAME
    sha256 = sha256_file(weights)
    if bundled_weights(run / "bundle", "generator_sha256") == sha256:
        return run / "bundle"
    records = read_log(run / "gan")
    training = description.training | {
        "gan_steps": float(records[-1]["step"]) if records else 0.0,
        "generator_sha256": sha256,
    }
    generator = load_weights(Generator(description.gan, description.grid.shape), weights)
    description = description.model_copy(update={"training": training})
    WGANGPBundle(description, generator).save(run / "bundle")
    return run / "bundle"


def _dry_run(fabric: Fabric, config: GANConfig, grid: Grid) -> DryRun:
    train_step = WGANGPStep(fabric, config, grid.shape)
    batch_size = config.gan_training.batch_size
    x = made_up_scans(batch_size, grid, fabric)
    z = torch.randn(batch_size, config.gan.latent_dim, device=fabric.device)
    epsilon = torch.full((batch_size,), 0.5, device=fabric.device)
    num_critic_updates, num_generator_updates = config.gan.updates

    def step(number: int) -> object:
        for _ in range(num_critic_updates):
            train_step.update_critic(x, z, epsilon, accept_losses)
        for _ in range(num_generator_updates):
            train_step.update_generator(z, accept_losses)
        return number

    return DryRun(train_step.networks, step)


def _work(config: GANConfig, grid: Grid) -> float:
    return math.prod(grid.shape) * config.gan_training.batch_size * config.gan.updates[0]


def _check_statistics(config: GANConfig, grid: Grid, devices: int) -> None:
    """Refuses batches that batch normalisation can't take: it needs two values of each channel."""
    batch_size = config.gan_training.batch_size // devices
    if batch_size * math.prod(level_shapes(grid.shape)[-1]) < 2:
        raise UserError(
            f"gan_training.batch_size gives each device {batch_size} scan of {grid.shape} voxels, which is "
            "too little for batch normalisation: give at least 2"
        )


# The gradient penalty goes back through a gradient, which half precision has too few digits for; and the
# critic is run on real and on fake volumes before its way back.
GAN = Stage(
    "gan",
    GANConfig,
    _dry_run,
    _work,
    check=_check_statistics,
    batches_per_step=lambda config: config.gan.updates[0],
    mixed_precision=False,
    broadcast_buffers=False,
)
