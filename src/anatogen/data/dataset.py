"""Prepared volumes and cached latents as batches, memory-mapped; which case comes when is a pure function."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from anatogen.data.manifest import Split, load_manifest
from anatogen.errors import UserError
from anatogen.seeding import derived_generator


class VolumeDataset:
    """The prepared volumes of one split.

    Args:
        folder: A prepared dataset.
        split: Which of its cases.

    Raises:
        UserError: If the folder is no prepared dataset, or a file of it is missing or damaged.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        self.manifest = load_manifest(folder)
        self.shape = self.manifest.grid.shape
        self.paths = [folder / case.file for case in self.manifest.split(split)]
        for path in self.paths:
            self._map(path)

    def __len__(self) -> int:
        return len(self.paths)

    def batch(self, indices: Sequence[int]) -> Tensor:
        """float32 (B, 1, D, H, W) in [-1, 1] of the cases at the indices."""
        volumes = np.stack([self._map(self.paths[index]) for index in indices])
        return torch.from_numpy(volumes.astype(np.float32))[:, None]

    def _map(self, path: Path) -> np.memmap:
        # Mapped anew each time: every map that is kept would keep a file open, and their number is limited.
        try:
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (FileNotFoundError, ValueError) as error:
            raise UserError(f"{path} is missing or damaged: prepare the scans again.") from error
        if array.shape != self.shape:
            raise UserError(f"{path} has shape {array.shape}, not {self.shape}: prepare the scans again.")
        return array


def shuffled_indices(num_cases: int, seed: int, first: int, number: int) -> list[int]:
    """Cases at positions `first` to `first + number - 1` of an endless sequence of shuffled epochs.

    Args:
        num_cases: Cases in the split; each comes once an epoch.
        seed: Decides the order of every epoch.
        first: Position in the sequence, e.g. step * batch_size.
        number: How many.
    """
    positions = range(first, first + number)
    return [int(_epoch_order(num_cases, seed, p // num_cases)[p % num_cases]) for p in positions]


@lru_cache(maxsize=2)
def _epoch_order(num_cases: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(num_cases, generator=derived_generator(seed, "order", epoch))


def prefetched(steps: Iterable[int], load: Callable[[int], Tensor]) -> Iterator[tuple[int, Tensor]]:
    """Yields each step with its batch, and loads the next step's batch in a thread meanwhile.

    Args:
        steps: Consecutive step numbers.
        load: The batch of a step; a pure function.
    """
    ahead: Future[Tensor] | None = None
    with ThreadPoolExecutor(max_workers=1) as pool:
        for step in steps:
            batch = load(step) if ahead is None else ahead.result()
            ahead = pool.submit(load, step + 1)
            yield step, batch


def flip_axis(flip: str, affine: Sequence[Sequence[float]]) -> int | None:
    """Tensor axis of (B, C, D, H, W) that a mirroring runs along, or None for none.

    Args:
        flip: "none"; "vertical", along the rows of the slice plane; "left_right", along the body's.
        affine: Of the grid, voxel (d, h, w, 1) to RAS+ mm.
    """
    if flip == "none":
        return None
    if flip == "vertical":
        return 3
    return 2 + int(np.argmax(np.abs(np.asarray(affine)[0, :3])))
