"""Unlabelled scans for pre-training: read a few at a time and kept in one file, however many there are."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anatogen.core.errors import UserError
from anatogen.core.files import atomic_path, sha256_json
from anatogen.dataset.manifest import Grid, Split
from anatogen.dataset.same_scans import KnownScans
from anatogen.dataset.scan_sets import ScanFolder, load_scans
from anatogen.dataset.volumes import VolumeDataset

# That of prepared scans, to which all are rounded.
_DTYPE = np.dtype("<f2")


@dataclass(frozen=True)
class StoredScans:
    """Scans on one grid, in a file.

    Attributes:
        path: float16 (N, D, H, W) in [-1, 1], as .npy.
        num_scans: N.
        grid: Their grid.
        sha256: Hash of all scans, their order included.
    """

    path: Path
    num_scans: int
    grid: Grid
    sha256: str

    def arrays(self) -> npt.NDArray[np.float16]:
        """The scans, mapped from the file into memory: what is not looked at is not read."""
        # Copied on writing, which never happens: torch warns of arrays that can't be written.
        arrays: npt.NDArray[np.float16] = np.load(self.path, mmap_mode="c", allow_pickle=False)
        return arrays


def store_scans(folders: Sequence[Path], like: Path | None, path: Path) -> StoredScans:
    """Brings the scans of all folders to [-1, 1] on one grid, and writes them into one file.

    Args:
        folders: Folders of scans or prepared datasets, as `load_scans` takes them.
        like: A prepared dataset whose grid and windows they take, and whose validation and test scans must
            not be among them.
        path: The file to write.

    Raises:
        UserError: If there is no folder, scans are not on one grid, or some are held back by `like`.
    """
    if not folders:
        raise UserError("there are no scans to pre-train on: name at least one folder")
    roles = ["pre-training", *(f"pre-training (set {number})" for number in range(2, len(folders) + 1))]
    places = [ScanFolder(folder, role) for folder, role in zip(folders, roles, strict=True)]
    num_scans = sum(map(len, places))
    first = None if like is None else load_scans(like, "target", indices=[0])
    held_out = {} if like is None else _held_out(like)
    digests = []
    # Written, not mapped: what is mapped counts as memory until the system writes it out.
    with atomic_path(path) as temporary, temporary.open("wb") as file:
        for folder, place in zip(folders, places, strict=True):
            hashes: list[str] = []
            found = dict.fromkeys(held_out, 0)
            for part in place.parts(first):
                first = first or part.take([0])
                if file.tell() == 0:
                    shape = (num_scans, *part.grid.shape)
                    header = {"descr": _DTYPE.str, "fortran_order": False, "shape": shape}
                    np.lib.format.write_array_header_1_0(file, header)
                file.write(part.arrays.astype(_DTYPE).data)
                hashes += part.hashes
                for split, known in held_out.items():
                    found[split] += known.among(part)
            _require_apart(folder, len(place), like, found)
            digests.append(sha256_json(hashes))
    assert first is not None
    return StoredScans(path, num_scans, first.grid, sha256_json(digests))


def _held_out(target: Path) -> dict[Split, KnownScans]:
    """The scans that fine-tuned networks will be judged by: learning from them would be a leak."""
    datasets = [(split, VolumeDataset(target, split)) for split in (Split.VALIDATION, Split.TEST)]
    return {
        split: KnownScans(len(dataset), partial(_array, dataset))
        for split, dataset in datasets
        if len(dataset)
    }


def _array(dataset: VolumeDataset, index: int) -> npt.NDArray[np.float32]:
    array: npt.NDArray[np.float32] = dataset[index][0].numpy()
    return array


def _require_apart(folder: Path, number: int, target: Path | None, found: dict[Split, int]) -> None:
    for split, num_known in found.items():
        if num_known:
            raise UserError(
                f"{num_known} of the {number} scans of {folder} are {split} scans of {target}, which must "
                "not be learned from: leave them out"
            )
