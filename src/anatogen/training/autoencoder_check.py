"""Checks whether an autoencoder is good enough, before stage two spends hours on its latents."""

import math

import numpy as np
import torch
from pydantic import BaseModel
from torch import Tensor

from anatogen.dataset.volumes import VolumeDataset
from anatogen.models.vqgan import VQGAN

# A reconstruction must be this much closer to the scan than the mean of all scans is.
_MIN_GAIN_DB = 3.0
_MIN_CODES_USED = 0.01
_MIN_CHANNEL_STD = 1e-3
_MAX_LATENT_STDS = 30.0


class AutoencoderCheck(BaseModel):
    """Quality of an autoencoder's reconstructions and latents.

    Attributes:
        psnr_db: Mean peak signal-to-noise ratio of held-out reconstructions, range [-1, 1].
        mean_scan_psnr_db: The same if the mean training scan stood for every scan.
        codes_used: Codes that the checked scans use, as a share of the codebook or, where they have fewer
            cells than it has codes, of their cells.
        latent_std: Standard deviation of each latent channel before quantisation.
        latent_peak: Largest distance of a latent from its channel's mean, in standard deviations.
        problems: Why the autoencoder is not fit; empty if it is.
    """

    psnr_db: float
    mean_scan_psnr_db: float
    codes_used: float
    latent_std: list[float]
    latent_peak: float
    problems: list[str]


@torch.no_grad()
def check_autoencoder(
    network: VQGAN, train: VolumeDataset, held_out: VolumeDataset, device: torch.device
) -> AutoencoderCheck:
    """Checks an autoencoder on held-out scans (training scans where none are held out).

    Args:
        network: The trained autoencoder, on `device`.
        train: Training scans; their mean is the yardstick.
        held_out: Scans that it was not trained on; may be empty.
        device: Where to compute.
    """
    checked = held_out if len(held_out) else train
    # One scan at a time: all of them together may not fit into memory.
    mean = torch.zeros_like(train.batch([0]))
    for index in range(len(train)):
        mean += train.batch([index]) / len(train)
    psnrs, mean_psnrs, latents, indices = [], [], [], []
    for index in range(len(checked)):
        x = checked.batch([index])
        z = network.encode(x.to(device))
        chosen = network.codebook.lookup(z)
        reconstructed = network.decode(network.codebook.quantise(z), x.shape[2:])
        psnrs.append(psnr_db(reconstructed.float().cpu(), x))
        mean_psnrs.append(psnr_db(mean, x))
        latents.append(z.float().cpu())
        indices.append(chosen.cpu())
    z = torch.cat(latents).movedim(1, 0).flatten(1)
    std, average = torch.std_mean(z, dim=1, keepdim=True)
    cells = torch.cat(indices)
    check = AutoencoderCheck(
        psnr_db=float(np.mean(psnrs)),
        mean_scan_psnr_db=float(np.mean(mean_psnrs)),
        codes_used=len(cells.unique()) / min(len(network.codebook.codes), cells.numel()),
        latent_std=[float(value) for value in std.flatten()],
        latent_peak=float(((z - average) / std.clamp(min=1e-12)).abs().max()),
        problems=[],
    )
    return check.model_copy(update={"problems": _problems(check)})


def psnr_db(found: Tensor, wanted: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of tensors in [-1, 1]; `found` is clipped to it first."""
    error = (found.clamp(-1, 1) - wanted).square().mean()
    return float(10 * torch.log10(4.0 / error.clamp(min=1e-12)))


def _problems(check: AutoencoderCheck) -> list[str]:
    problems = []
    if not math.isfinite(check.psnr_db + check.latent_peak + sum(check.latent_std)):
        return ["reconstructions or latents are not finite: train it again with a lower learning rate"]
    if check.psnr_db < check.mean_scan_psnr_db + _MIN_GAIN_DB:
        problems.append(
            f"reconstructions ({check.psnr_db:.1f} dB) are hardly closer to the scans than the mean "
            f"scan is ({check.mean_scan_psnr_db:.1f} dB): train the autoencoder longer, or compress less"
        )
    if check.codes_used < _MIN_CODES_USED:
        problems.append(
            f"only {check.codes_used:.2%} of the codes are used: the codebook has collapsed; "
            "lower autoencoder.num_codes or the learning rate"
        )
    if min(check.latent_std) < _MIN_CHANNEL_STD:
        problems.append(
            f"a latent channel hardly varies (std {min(check.latent_std):.1e}): lower autoencoder.code_dim"
        )
    if check.latent_peak > _MAX_LATENT_STDS:
        problems.append(
            f"a latent lies {check.latent_peak:.0f} standard deviations out: "
            "train longer, or raise losses.commitment"
        )
    return problems
