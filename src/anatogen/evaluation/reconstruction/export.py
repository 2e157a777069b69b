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
from anatogen.io.nifti import write_nifti
from anatogen.io.npy import write_npy
from anatogen.io.volume import Volume

_WRITERS = {"nifti": (".nii.gz", write_nifti), "npy": (".npy", write_npy)}


def reconstruct(
    bundle: Path | str,
    scans: Path | str,
    out: Path | str,
    *,
    number: int | None = None,
    seed: int = 0,
    file_format: str = "nifti",
    device: str = "auto",
) -> list[Path]:
    """Writes what a bundle's autoencoder gives back of scans, each with a JSON beside it.

    They are scans of patients still, with the details that latents can't hold taken away: as private as the
    scans themselves.

    Args:
        bundle: Folder of a bundle or a run, or the name of a model that comes with the package.
        scans: A prepared dataset (its test split, or validation where that is empty), one split of it as
            "DATASET:train", or a folder of scans on the bundle's grid.
        out: Folder to be made.
        number: How many, chosen by the seed; default all.
        seed: Of the choice.
        file_format: "nifti" (.nii.gz) or "npy".
        device: "cpu", "cuda", "cuda:1", or "auto" for a GPU where there is one.

    Returns:
        Paths of the files.

    Raises:
        UserError: If the bundle has no autoencoder, scans don't fit it or are too few, or the folder exists.
    """
    folder, data, out = bundle_folder(bundle), Path(scans), Path(out)
    if file_format not in _WRITERS:
        raise UserError(f"format {file_format!r} is unknown: use {', '.join(_WRITERS)}")
    if out.exists():
        raise UserError(f"{out} exists: choose another folder, or remove it")
    place = device_named(device)
    real = held_out_scans(data, folder)
    wanted = len(real) if number is None else number
    if not 0 < wanted <= len(real):
        raise UserError(f"number is {wanted}: {scans} has {len(real)} scans to reconstruct")
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
    suffix, write = _WRITERS[file_format]
    with atomic_folder(out) as part:
        names = []
        for index, chosen in enumerate(sorted(order[:wanted])):
            with torch.inference_mode():
                decoded = network(torch.from_numpy(real.arrays[chosen])[None, None].to(place))[0]
            array = decoded[0, 0].float().clamp(-1, 1).cpu().numpy()
            names.append(f"reconstructed_{index:06d}{suffix}")
            write(Volume(real.intensity.restore(array), np.asarray(real.grid.affine)), part / names[-1])
            write_json(part / f"reconstructed_{index:06d}.json", about | {"index": index})
    return [out / name for name in names]
