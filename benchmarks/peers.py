"""The peers' rows: MONAI, and video-diffusion-pytorch, the origin of the paper's denoiser.

Each peer is used as its documentation shows, with its own networks, codebook and scheduler. Optimiser, loss
weights, moving average and inputs are those of our rows. Peers are imported by name because they need not be
installed (README.md).
"""

import importlib
import sys
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn
from torch.nn import functional

from anatogen.config.settings import LossSettings, OptimiserSettings
from anatogen.models.discriminators import take_slices
from anatogen.training.autoencoder import (
    discriminator_hinge_loss,
    feature_matching_loss,
    generator_hinge_loss,
)
from anatogen.training.optimisation import ExponentialMovingAverage, adam
from benchmarks.similarity import DATA_RANGE, value_note, volume_and_noisy_copy
from benchmarks.steps import (
    cells_to_look_up,
    count_parameters,
    in_inference_mode,
    latents,
    plain_step,
    shared_settings,
    volumes,
)
from benchmarks.task import CODE_DIM, NUM_CODES, NUM_STEPS, Part, Sizes, Task

# Kernel-4 convolutions of stride 2, as our compression 4; 1.4 M parameters, ours has 1.6 M.
_VQVAE = {
    "spatial_dims": 3,
    "in_channels": 1,
    "out_channels": 1,
    "channels": (32, 64),
    "num_res_channels": (32, 64),
    "num_res_layers": 2,
    "downsample_parameters": ((2, 4, 1, 1),) * 2,
    "upsample_parameters": ((2, 4, 1, 1, 0),) * 2,
    "num_embeddings": NUM_CODES,
    "embedding_dim": CODE_DIM,
}
# 28.8 M parameters.
_UNET = {
    "spatial_dims": 3,
    "in_channels": CODE_DIM,
    "out_channels": CODE_DIM,
    "channels": (64, 128, 256),
    "num_res_blocks": 1,
    "attention_levels": (False, False, True),
    "num_head_channels": 32,
}
# 14.9 M and 10.0 M parameters; `paper` has 10.0 M at width 32.
_VIDEO_WIDTHS = {"video_diffusion": 40, "video_diffusion_32": 32}


def build(row: str, workload: str, sizes: Sizes) -> Task:
    """The task of a peer's row."""
    if row in _VIDEO_WIDTHS:
        return _video_task(_VIDEO_WIDTHS[row], workload, sizes)
    match workload:
        case "vqgan_step":
            return _monai_vqgan_step(sizes)
        case "denoiser_step":
            return _monai_denoiser_step(sizes)
        case "denoiser_forward":
            network = _monai("networks.nets").DiffusionModelUNet(**_UNET).eval()
            x_t, t = latents(sizes), torch.randint(NUM_STEPS, (sizes.denoiser_batch,))
            call = in_inference_mode(lambda: network(x=x_t, timesteps=t))
            return Task((Part(call),), {"denoiser": count_parameters(network)})
        case "sample":
            return _monai_sample(sizes)
        case "decode":
            autoencoder = _monai("networks.nets").VQVAE(**_VQVAE).eval()
            z = torch.randn(1, CODE_DIM, sizes.latent, sizes.latent, sizes.latent)
            call = in_inference_mode(lambda: autoencoder.decode(z))
            return Task((Part(call),), {"decoder": count_parameters(autoencoder.decoder)})
        case "lookup":
            quantizer = _monai("networks.nets").VQVAE(**_VQVAE).eval().quantizer
            cells = cells_to_look_up(sizes)
            return Task((Part(in_inference_mode(lambda: quantizer(cells))),), {})
        case "ssim":
            return _monai_ssim(sizes)
        case _:
            raise ValueError(f"workload {workload!r} is unknown")


def _monai_ssim(sizes: Sizes) -> Task:
    """Its dense window of 11^3 voxels, over the same windows: those that lie inside."""
    metric = _monai("metrics").SSIMMetric(
        spatial_dims=3, data_range=DATA_RANGE, win_size=11, kernel_sigma=1.5
    )
    x, y = volume_and_noisy_copy(sizes)
    call = in_inference_mode(lambda: metric(x, y))
    return Task((Part(call),), {}, value_note(metric(x, y)))


def _monai(module: str) -> Any:
    return importlib.import_module(f"monai.{module}")


def _monai_vqgan_step(sizes: Sizes) -> Task:
    """Generator, then discriminators, as in MONAI's tutorials, with the feature matching of the paper.

    MONAI's PatchAdversarialLoss puts a tanh before its hinge, which is not the paper's loss: ours is used.
    """
    nets = _monai("networks.nets")
    settings = shared_settings()
    weights, optimiser_settings = settings.losses, settings.autoencoder_training
    network = nets.VQVAE(**_VQVAE)
    critics = nn.ModuleList(
        nets.PatchDiscriminator(spatial_dims=dims, channels=weights.discriminator_width, in_channels=1)
        for dims in (2, 3)
    )
    parameters = {"autoencoder": count_parameters(network), "discriminators": count_parameters(critics)}
    optimiser, critic_optimiser = adam(network, optimiser_settings), adam(critics, optimiser_settings)
    x = volumes(sizes)
    generator = torch.Generator().manual_seed(0)

    def judge(volume: Tensor, slice_index: Tensor) -> list[list[Tensor]]:
        return [critics[0](take_slices(volume, slice_index)), critics[1](volume)]

    def step() -> None:
        slice_index = torch.randint(x.shape[2], (len(x),), generator=generator)
        reconstructed, quantisation_loss = network(x)
        loss = weights.l1 * functional.l1_loss(reconstructed, x) + quantisation_loss
        critics.requires_grad_(False)
        for real, fake in zip(judge(x, slice_index), judge(reconstructed, slice_index), strict=True):
            loss = loss + _generator_loss(real, fake, weights)
        _step(loss, network, optimiser, optimiser_settings)
        critics.requires_grad_(True)
        detached = reconstructed.detach()
        critic_loss = torch.zeros(())
        for real, fake in zip(judge(x, slice_index), judge(detached, slice_index), strict=True):
            critic_loss = critic_loss + discriminator_hinge_loss(real[-1], fake[-1])
        _step(critic_loss, critics, critic_optimiser, optimiser_settings)

    included = "L1, commitment, slice and volume discriminator, feature matching"
    return Task((Part(step),), parameters, f"losses: {included}")


def _generator_loss(real: list[Tensor], fake: list[Tensor], weights: LossSettings) -> Tensor:
    matching = feature_matching_loss(fake[:-1], real[:-1])
    return generator_hinge_loss(fake[-1]) + weights.feature_matching * matching


def _step(
    loss: Tensor, network: nn.Module, optimiser: torch.optim.Optimizer, settings: OptimiserSettings
) -> None:
    plain_step(loss, network, optimiser, settings.gradient_clip)


def _monai_denoiser_step(sizes: Sizes) -> Task:
    settings = shared_settings().diffusion_training
    network = _monai("networks.nets").DiffusionModelUNet(**_UNET)
    scheduler = _monai("networks.schedulers").DDPMScheduler(num_train_timesteps=NUM_STEPS)
    optimiser = adam(network, settings)
    ema = ExponentialMovingAverage(network, 0.995)
    x_0 = latents(sizes)

    def step() -> None:
        t = torch.randint(NUM_STEPS, (len(x_0),))
        eps = torch.randn_like(x_0)
        x_t = scheduler.add_noise(original_samples=x_0, noise=eps, timesteps=t)
        _step(functional.l1_loss(network(x=x_t, timesteps=t), eps), network, optimiser, settings)
        ema.update(network, 1000)

    return Task((Part(step),), {"denoiser": count_parameters(network)})


def _monai_sample(sizes: Sizes) -> Task:
    nets = _monai("networks.nets")
    denoiser, autoencoder = nets.DiffusionModelUNet(**_UNET).eval(), nets.VQVAE(**_VQVAE).eval()
    scheduler = _monai("networks.schedulers").DDPMScheduler(num_train_timesteps=NUM_STEPS)
    scheduler.set_timesteps(NUM_STEPS)
    parameters = {"autoencoder": count_parameters(autoencoder), "denoiser": count_parameters(denoiser)}
    timed = sizes.steps_to_time(NUM_STEPS)
    shape = (1, CODE_DIM, sizes.latent, sizes.latent, sizes.latent)

    def steps() -> Tensor:
        x = torch.randn(shape)
        for t in scheduler.timesteps[:timed]:
            x, _ = scheduler.step(denoiser(x=x, timesteps=t[None]), t, x)
        return x

    start = torch.randn(shape)
    decode = in_inference_mode(lambda: autoencoder.decode_stage_2_outputs(start))
    parts = (Part(in_inference_mode(steps), NUM_STEPS / timed), Part(decode))
    return Task(parts, parameters, _sampling_note(timed) + "; and decoding")


def _video_task(width: int, workload: str, sizes: Sizes) -> Task:
    package = _video_diffusion()
    network = package.Unet3D(dim=width, channels=CODE_DIM)
    process = package.GaussianDiffusion(
        network, image_size=sizes.latent, num_frames=sizes.latent, channels=CODE_DIM, timesteps=NUM_STEPS
    )
    parameters = {"denoiser": count_parameters(network)}
    if workload == "denoiser_step":
        settings = shared_settings().diffusion_training
        optimiser, ema = adam(network, settings), ExponentialMovingAverage(network, 0.995)
        # The package maps [0, 1] to [-1, 1] itself.
        x_0 = (latents(sizes) + 1) / 2

        def step() -> None:
            _step(process(x_0), network, optimiser, settings)
            ema.update(network, 1000)

        return Task((Part(step),), parameters)
    if workload == "denoiser_forward":
        x_t, t = latents(sizes), torch.randint(NUM_STEPS, (sizes.denoiser_batch,))
        network.eval()
        return Task((Part(in_inference_mode(lambda: network(x_t, t))),), parameters)
    timed = sizes.steps_to_time(NUM_STEPS)
    network.eval()

    def steps() -> Tensor:
        x = torch.randn(1, CODE_DIM, sizes.latent, sizes.latent, sizes.latent)
        for index in range(NUM_STEPS - 1, NUM_STEPS - 1 - timed, -1):
            x = process.p_sample(x, torch.tensor([index]))
        return x

    note = _sampling_note(timed) + "; it has no autoencoder, so nothing is decoded"
    return Task((Part(steps, NUM_STEPS / timed),), parameters, note)


def _sampling_note(timed: int) -> str:
    return f"{NUM_STEPS} steps of ddpm" + ("" if timed == NUM_STEPS else f": {timed} timed, multiplied")


def _video_diffusion() -> ModuleType:
    # It imports torchvision for reading and writing GIFs only, which nothing here does.
    sys.modules.setdefault("torchvision", MagicMock())
    return importlib.import_module("video_diffusion_pytorch")
