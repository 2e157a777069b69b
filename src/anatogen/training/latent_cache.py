"""Latents are encoded once, with their flips, and kept under a key of everything that decides them."""

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from rich.progress import track

from anatogen.data.dataset import VolumeDataset, flip_axis
from anatogen.models.vqgan import VQGAN
from anatogen.storage import atomic_path, remove_parts, sha256_file, sha256_json

ENCODED_AT_ONCE = 4


@torch.no_grad()
def cached_latents(
    network: VQGAN,
    weights: Path,
    dataset: VolumeDataset,
    flip: str,
    folder: Path,
    device: torch.device,
    stage: Literal["pre", "post"] = "pre",
) -> np.memmap:
    """Latents of every case, encoded unless they lie there already.

    Args:
        network: The trained autoencoder, on `device`.
        weights: Its file, for the key.
        dataset: What to encode.
        flip: "none", "vertical" or "left_right".
        folder: Where caches lie.
        device: Where to encode.
        stage: Before or after quantisation.

    Returns:
        float32 (N, F, C, d, h, w), read-only: F = 2, as it is and flipped, or 1 without flips.
    """
    decisive = [dataset.manifest.sha256(), sha256_file(weights), flip]
    if stage == "post":
        decisive.append(stage)
    key = sha256_json(decisive)[:16]
    path = folder / f"{key}.npy"
    if not path.exists():
        remove_parts(folder)
        axis = flip_axis(flip, dataset.manifest.grid.affine)
        starts = range(0, len(dataset), ENCODED_AT_ONCE)
        with atomic_path(path) as temporary:
            out: np.memmap | None = None
            for start in track(starts, description="encoding latents"):
                indices = range(start, min(start + ENCODED_AT_ONCE, len(dataset)))
                x = dataset.batch(indices).to(device)
                views = [x] if axis is None else [x, x.flip(axis)]
                encoded = [network.encode(view) for view in views]
                if stage == "post":
                    encoded = [network.codebook.quantise(z) for z in encoded]
                latents = torch.stack(encoded, dim=1).float().cpu().numpy()
                if out is None:
                    shape = (len(dataset), *latents.shape[1:])
                    out = np.lib.format.open_memmap(temporary, "w+", dtype=np.float32, shape=shape)
                out[start : start + len(latents)] = latents
            assert out is not None
            out.flush()
    return np.load(path, mmap_mode="r")
