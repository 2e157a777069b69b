"""A tiny prepared dataset of scans with a bright ball (label 1) and a dark one (label 2) in each."""

from pathlib import Path

import numpy as np

from anatogen.dataset.prepare import prepare
from anatogen.dataset.prepare_config import prepare_settings
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume

SHAPE = (16, 16, 16)


def balls(
    seed: int, shape: tuple[int, int, int] = SHAPE, affine: np.ndarray | None = None
) -> tuple[Volume, Volume]:
    """A scan and its mask."""
    random = np.random.default_rng(seed)
    places = np.stack(np.meshgrid(*(np.arange(side) for side in shape), indexing="ij"), -1)
    array = random.normal(400, 10, shape)
    mask = np.zeros(shape)
    for label, value, along in ((1, 800, 0.3), (2, 100, 0.7)):
        center = np.array(shape) * along + random.uniform(-1, 1, 3)
        inside = np.linalg.norm(places - center, axis=-1) < min(shape) / 5
        array[inside], mask[inside] = value + random.normal(0, 10, inside.sum()), label
    affine = (
        np.array([[0, 0, -1.0, 0], [0, -1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1]]) if affine is None else affine
    )
    return Volume(array.astype(np.float32), affine), Volume(mask.astype(np.float32), affine)


def write_labelled(root: Path, number: int = 8) -> Path:
    """Prepares `number` scans of as many patients: 2 of them validate, 2 test."""
    for seed in range(number):
        for folder, volume in zip(("images", "labels"), balls(seed), strict=True):
            (root / "scans" / folder).mkdir(parents=True, exist_ok=True)
            write_nifti(volume, root / "scans" / folder / f"p{seed}.nii.gz")
    share = 2 / number
    settings = prepare_settings(
        {"spacing_mm": 1, "split": {"validation": share, "test": share}, "shape": (16, 16, 16)},
        recipe="folder_with_masks",
    )
    prepare(root / "scans", root / "data", settings, workers=1)
    return root / "data"
