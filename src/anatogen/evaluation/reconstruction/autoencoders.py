"""The autoencoders of bundles and runs, and the scans that they are tried on."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from anatogen.core.errors import UserError
from anatogen.core.weights import WEIGHTS_NAME, load_weights
from anatogen.dataset.manifest import MANIFEST_NAME, Split, load_manifest
from anatogen.dataset.scan_sets import ScanSet, folder_and_split, load_scans
from anatogen.generators.description import DESCRIPTION_NAME, read_description
from anatogen.generators.loading import load_bundle
from anatogen.models.vqgan import VQGAN
from anatogen.training.run_folder import read_settings


def bundle_names(bundles: Sequence[Path]) -> list[str]:
    """The folders' own names, or those of the runs they lie in; numbered where two are alike."""
    plain = [path.resolve().parent.name if path.name == "bundle" else path.resolve().name for path in bundles]
    return [
        name if plain.count(name) == 1 else f"{name} ({plain[: index + 1].count(name)})"
        for index, name in enumerate(plain)
    ]


def held_out_scans(data: Path, bundle: Path) -> ScanSet:
    """The scans to reconstruct.

    Args:
        data: A prepared dataset: its test split, or the validation split where that is empty; one split as
            "DATASET:validation"; or a folder of scans, read as the bundle's grid and window demand.
        bundle: The first of those that are compared.

    Raises:
        UserError: If there are none, or they don't fit the bundle.
    """
    if (data / MANIFEST_NAME).is_file():
        manifest = load_manifest(data)
        split = Split.TEST if manifest.split(Split.TEST) else Split.VALIDATION
        return load_scans(Path(f"{data}:{split.value}"), "held-out")
    like = None
    if data.is_dir() and (_bundle_in(bundle) / DESCRIPTION_NAME).is_file():
        description = read_description(_bundle_in(bundle))
        grid, intensity = description.grid, description.intensity
        empty = np.empty((0, *grid.shape), dtype=np.float32)
        like = ScanSet("bundle's", empty, (), grid, intensity.modality, intensity)
    return load_scans(data, "held-out", like)


def _bundle_in(folder: Path) -> Path:
    """The bundle of a run's folder, or the folder itself."""
    return folder / "bundle" if (folder / "bundle" / DESCRIPTION_NAME).is_file() else folder


def load_autoencoder(folder: Path, scans: ScanSet, data: Path) -> tuple[VQGAN, Path]:
    """The autoencoder of a bundle, or of a run that has no bundle yet.

    Args:
        folder: Folder of the bundle or the run.
        scans: What it is to reconstruct.
        data: Where they come from: a run fits the dataset only that it was trained on.

    Returns:
        The network, frozen, on the CPU; and its weights file.

    Raises:
        UserError: If it can't be read, has no autoencoder, or is for another grid, modality or CT window.
    """
    inner = _bundle_in(folder)
    weights = folder / "autoencoder" / WEIGHTS_NAME
    if not (inner / DESCRIPTION_NAME).is_file() and weights.is_file():
        dataset, _ = folder_and_split(data)
        known = load_manifest(dataset).sha256() if (dataset / MANIFEST_NAME).is_file() else None
        if (folder / "dataset.sha256").read_text(encoding="utf-8").strip() != known:
            raise UserError(
                f"{folder} was trained on another dataset than {data}, and a run keeps no grid: name its "
                "bundle, or the dataset that it was trained on"
            )
        return load_weights(VQGAN(read_settings(folder).autoencoder), weights), weights
    if not (inner / DESCRIPTION_NAME).is_file():
        raise UserError(f"{folder} is no bundle, and no run whose autoencoder is trained")
    bundle = load_bundle(inner)
    if bundle.autoencoder is None:
        raise UserError(f"{folder} is the bundle of a {bundle.family}, which has no autoencoder")
    bundle.require_fit(scans)
    return bundle.autoencoder, inner / "autoencoder.safetensors"
