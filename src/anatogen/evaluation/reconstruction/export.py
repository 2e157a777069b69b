"""From real scans to what an autoencoder gives back of them, on disk: the best that a generator could do."""

from pathlib import Path

import numpy as np
import torch

from anatogen.core.devices import device_named
from anatogen.core.errors import UserError
from anatogen.core.files import atomic_folder, sha256_file, write_json
from anatogen.core.seeding import derived_generator
from anatogen.core.version import __version__
from anatogen.evaluation.reconstruction.autoencoders import held_out_scans, load_autoencoder
from anatogen.generators.shipped import bundle_folder
from anatogen.io.volume import Volume

_SUFFIX = {"nifti": ".nii.gz", "npy": ".npy"}


def reconstruct(
    bundle: Path | str,
    scans: Path | str,
    out: Path | str,
    *,
    num_samples: int | None = None,
    seed: int = 0,
    file_format: str = "nifti",
    device: str = "auto",
) -> list[Path]:
    """Writes what a bundle's autoencoder gives back of scans, each with a JSON beside it.

    They are scans of patients still, with the details that latents can't hold taken away: as private as the
    scans themselves.

    The arguments are those of `anatogen.reconstruct`, which explains them.

    Raises:
        UserError: If the bundle has no autoencoder, scans don't fit it or are too few, or the folder exists.
    """
    folder, data, out = bundle_folder(bundle), Path(scans), Path(out)
    if file_format not in _SUFFIX:
        raise UserError(f"format {file_format!r} is unknown: use {', '.join(_SUFFIX)}")
    if out.exists():
        raise UserError(f"{out} exists: choose another folder, or remove it")
    place = device_named(device)
    real = held_out_scans(data, folder)
    wanted = len(real) if num_samples is None else num_samples
    if not 0 < wanted <= len(real):
        raise UserError(f"num_samples is {wanted}: {scans} has {len(real)} scans to reconstruct")
    network, weights = load_autoencoder(folder, real, data)
    network.to(place)
    about = {
        "reconstructed": True,
        "synthetic": False,
        "anatogen_version": __version__,
        "weights_sha256": sha256_file(weights),
        "format": file_format,
        "modality": real.modality,
        "unit": "HU" if real.modality == "CT" else "arbitrary",
    }
    order = torch.randperm(len(real), generator=derived_generator(seed, "reconstruct")).tolist()
    with atomic_folder(out) as part:
        names = []
        for index, chosen in enumerate(sorted(order[:wanted])):
            array = network.reconstruct(torch.from_numpy(real.arrays[chosen])[None, None])[0, 0].numpy()
            names.append(f"reconstructed_{index:06d}{_SUFFIX[file_format]}")
            Volume(real.intensity.restore(array), np.asarray(real.grid.affine)).save(part / names[-1])
            write_json(part / f"reconstructed_{index:06d}.json", about | {"index": index})
    return [out / name for name in names]
