"""Stage one: trains the VQ-GAN on prepared volumes."""

from pathlib import Path

import torch
from lightning_fabric import Fabric
from torch import Tensor
from torch.nn import functional

from anatogen.data.dataset import VolumeDataset, flip_axis, prefetched, shuffled_indices
from anatogen.data.manifest import Split
from anatogen.figures import planes_figure
from anatogen.models.discriminators import Discriminators, take_slices
from anatogen.models.perceptual import PerceptualDistance, load_slice_features
from anatogen.models.vqgan import VQGAN
from anatogen.seeding import derived_generator
from anatogen.settings import LossSettings, Settings
from anatogen.training.checkpoint import Stateful
from anatogen.training.loop import Loop
from anatogen.training.losses import discriminator_hinge_loss, feature_matching_loss, generator_hinge_loss
from anatogen.training.optimisation import adam, local_slice, take_step
from anatogen.weights import WEIGHTS_NAME, save_weights

NUM_PREVIEWS = 4


def train_autoencoder(fabric: Fabric, data: Path, folder: Path, settings: Settings) -> None:
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
    axis = flip_axis(settings.training.flip, dataset.manifest.grid.affine)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = VQGAN(settings.autoencoder)
        critics = _discriminators(settings.losses)
    optimiser = adam(network, settings.autoencoder_training)
    wrapped, learner = fabric.setup(network, optimiser)
    parts: dict[str, Stateful] = {"network": network, "optimiser": optimiser}
    learners = [optimiser]
    if critics is not None:
        critic_optimiser = adam(critics, settings.autoencoder_training)
        wrapped_critics, critic_learner = fabric.setup(critics, critic_optimiser)
        parts |= {"discriminators": critics, "discriminator_optimiser": critic_optimiser}
        learners.append(critic_optimiser)
    perceptual = _perceptual(settings.losses, fabric.device)
    previews = _preview_volumes(data, dataset)

    def preview(path: Path) -> None:
        with torch.no_grad(), fabric.autocast():
            reconstructed = network(previews.to(fabric.device))[0].float().cpu()
        rows = [("real", list(previews[:, 0].numpy())), ("reconstructed", list(reconstructed[:, 0].numpy()))]
        grid = dataset.manifest.grid
        planes_figure(rows, path, spacing_mm=grid.spacing_mm, axis_codes=grid.axis_codes)

    loop = Loop(
        fabric,
        folder,
        settings.autoencoder_training,
        settings.training,
        parts,
        learners,
        len(dataset),
        preview,
    )
    mine = local_slice(fabric, batch_size)

    def load(step: int) -> Tensor:
        indices = shuffled_indices(len(dataset), seed, step * batch_size, batch_size)
        x = dataset.batch(indices[mine])
        if axis is not None:
            flipped = torch.rand(batch_size, generator=derived_generator(seed, "flip", step))[mine] < 0.5
            x[flipped] = x[flipped].flip(axis)
        return x

    for step, x in prefetched(loop.steps(), load):
        x = x.to(fabric.device)
        weights = settings.losses
        generator = derived_generator(seed, "autoencoder", step)
        slice_index = torch.randint(x.shape[2], (batch_size,), generator=generator)[mine].to(fabric.device)

        reconstructed, z, indices = wrapped(x)
        codes = network.codebook.embed(indices)
        losses = {
            "l1": functional.l1_loss(reconstructed.float(), x),
            "commitment": functional.mse_loss(z.float(), codes),
        }
        if perceptual is not None:
            shown = take_slices(reconstructed.float(), slice_index)
            losses["perceptual"] = perceptual(shown, take_slices(x, slice_index))
        total = sum(getattr(weights, name) * value for name, value in losses.items())
        assert isinstance(total, Tensor)

        critic_loss = None
        pull = None
        if critics is not None and step >= weights.discriminator_start:
            # One pass through the discriminators serves both: their own loss goes back to their weights,
            # the generator's only to `fake`, and from there on through the autoencoder.
            fake = reconstructed.detach().requires_grad_()
            judged = wrapped_critics(x, fake, slice_index)
            critic_loss = sum(
                discriminator_hinge_loss(real[0].float(), wrong[0].float()) for real, wrong in judged.values()
            )
            losses["discriminator"] = critic_loss
            if step >= weights.adversarial_start:
                adversarial = torch.zeros((), device=fabric.device)
                for name, (real, wrong) in judged.items():
                    losses[f"adversarial_{name}"] = generator_hinge_loss(wrong[0].float())
                    matching = feature_matching_loss(wrong[1], real[1])
                    losses[f"feature_matching_{name}"] = matching
                    weight = getattr(weights, f"adversarial_{name}")
                    adversarial = adversarial + weight * losses[f"adversarial_{name}"]
                    adversarial = adversarial + weights.feature_matching * matching
                (pull,) = torch.autograd.grad(adversarial, fake, retain_graph=True)
        loop.require_finite(losses | {"loss": total})

        backward = total if pull is None else total + (reconstructed * pull).sum()
        take_step(fabric, backward, wrapped, learner, settings.autoencoder_training)
        if critic_loss is not None:
            take_step(fabric, critic_loss, wrapped_critics, critic_learner, settings.autoencoder_training)
        network.codebook.update(z, indices, generator)
        values: dict[str, Tensor | float] = {"loss": total, **losses}
        if (step + 1) * batch_size // len(dataset) > step * batch_size // len(dataset):
            values["codes_used"] = network.codebook.fraction_used()
            network.codebook.reset_usage()
        loop.record(values)

    if fabric.is_global_zero:
        save_weights(network, folder / WEIGHTS_NAME)
    fabric.barrier()


def _discriminators(settings: LossSettings) -> Discriminators | None:
    if not settings.adversarial:
        return None
    return Discriminators(
        settings.discriminator_width, settings.adversarial_slice > 0, settings.adversarial_volume > 0
    )


def _perceptual(settings: LossSettings, device: torch.device) -> PerceptualDistance | None:
    if settings.perceptual == 0:
        return None
    file = None if settings.perceptual_weights is None else Path(settings.perceptual_weights)
    return PerceptualDistance(load_slice_features(file)).to(device)


def _preview_volumes(data: Path, train: VolumeDataset) -> Tensor:
    """The first validation volumes, or training ones where there are none."""
    validation = VolumeDataset(data, Split.VALIDATION)
    shown = validation if len(validation) else train
    return shown.batch(range(min(NUM_PREVIEWS, len(shown))))
