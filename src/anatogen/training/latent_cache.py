"""Latents are encoded once, with all their views, and kept under a key of everything that decides them."""

import os
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anatogen.config.settings import LatentDiffusionSettings
from anatogen.core.errors import UserError
from anatogen.core.files import atomic_path, remove_parts, sha256_file, sha256_json, write_text
from anatogen.dataset.volumes import VolumeDataset, flip_axis
from anatogen.models.vqgan import VQGAN
from anatogen.report.progress import shown_progress

# A scan and its mirror image.
ENCODED_AT_ONCE = 2


@torch.no_grad()
def cached_latents(
    network: VQGAN,
    weights: Path,
    dataset: VolumeDataset,
    settings: LatentDiffusionSettings,
    folder: Path,
    device: torch.device,
) -> np.memmap:
    """Latents of every case, encoded unless they lie there already.

    Args:
        network: The trained autoencoder, on `device`.
        weights: Its file, for the key.
        dataset: What to encode.
        settings: Say whether scans are mirrored.
        folder: Where caches lie.
        device: Where to encode.

    Returns:
        float32 (N, V, C, d, h, w) before quantisation, read-only. Views V: the scan as it is; with flips,
        then its mirror image.
    """
    flip = settings.training.flip
    key = sha256_json([dataset.manifest.sha256(), sha256_file(weights), flip])[:16]
    path = folder / f"{key}.npy"
    if not path.exists():
        remove_parts(folder)
        with atomic_path(path) as temporary, shown_progress() as progress:
            out: np.memmap | None = None
            for index in range(len(dataset)):
                encoded = network.encode(_views(dataset, index, flip).to(device)).float().cpu().numpy()
                if out is None:
                    shape = (len(dataset), *encoded.shape)
                    out = np.lib.format.open_memmap(temporary, "w+", dtype=np.float32, shape=shape)
                    # Where the disk gets full under a map, the system ends the process.
                    if hasattr(os, "posix_fallocate"):
                        with temporary.open("rb+") as file:
                            os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
                out[index] = encoded
                progress("encoding latents", index + 1, len(dataset))
            assert out is not None
            out.flush()
        for other in folder.glob("*.npy"):
            if other != path:
                # Of an autoencoder that was trained on since: the denoiser may not learn from it any more.
                other.unlink()
    return np.load(path, mmap_mode="r")


def claim_latents(folder: Path, latents: np.memmap) -> None:
    """Makes stage two's folder these latents', or checks that it is: the autoencoder may have trained on.

    Raises:
        UserError: If the denoiser there learned latents of another autoencoder.
    """
    path, key = folder / "latents.txt", Path(str(latents.filename)).stem
    if path.exists() and path.read_text(encoding="utf-8").strip() != key:
        raise UserError(
            f"{folder} was trained on latents of another autoencoder: delete it to train the denoiser anew"
        )
    write_text(path, key + "\n")


def _views(dataset: VolumeDataset, index: int, flip: str) -> Tensor:
    """All that stage two sees of a scan, float32 (V, 1, D, H, W)."""
    x = dataset.batch([index])
    axis = flip_axis(flip, dataset.manifest.grid.affine)
    return x if axis is None else torch.cat([x, x.flip(axis)])
