"""Prepared volumes and cached latents as batches, memory-mapped; which case comes when is a pure function."""

import multiprocessing
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from anatogen.core.errors import UserError
from anatogen.core.seeding import derived_generator
from anatogen.dataset.manifest import Split, load_manifest
from anatogen.io.volume import Volume

Batch = TypeVar("Batch")


class VolumeDataset(Dataset[Tensor]):
    """The prepared volumes of one split, as a `torch.utils.data.DataLoader` takes them.

    An item is a float32 tensor (1, D, H, W) in [-1, 1].

    Args:
        folder: A prepared dataset.
        split: "train", "validation" or "test".

    Raises:
        UserError: If the folder is no prepared dataset, or a file of it is missing or damaged.
    """

    def __init__(self, folder: Path | str, split: Split | str) -> None:
        folder = Path(folder)
        self.manifest = load_manifest(folder)
        self.shape = self.manifest.grid.shape
        self.cases = self.manifest.split(Split(split))
        self.paths = [folder / case.file for case in self.cases]
        for path in self.paths:
            self._map(path)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        return self.batch([index])[0]

    def volume(self, index: int) -> Volume:
        """The case in the unit of its scan (HU for CT), where it lay in the patient's space."""
        case = self.cases[index]
        return Volume(case.intensity.restore(self[index][0].numpy()), np.asarray(case.affine))

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


class LabelledDataset(VolumeDataset):
    """The prepared volumes of one split with their label maps.

    Args:
        folder: A prepared dataset.
        split: "train", "validation" or "test".

    Raises:
        UserError: As `VolumeDataset`; or if a case has no mask.
    """

    def __init__(self, folder: Path | str, split: Split | str) -> None:
        super().__init__(folder, split)
        folder = Path(folder)
        without = [case.id for case in self.cases if case.mask is None]
        if without:
            raise UserError(
                f"{folder}: {len(without)} of {len(self.cases)} {split} cases have no mask (e.g. "
                f"{without[0]}): prepare with a recipe that reads masks too, e.g. --recipe folder_with_masks"
            )
        self.mask_paths = [folder / str(case.mask) for case in self.cases]
        for path in self.mask_paths:
            self._map(path)

    def masks(self, indices: Sequence[int]) -> Tensor:
        """uint8 (B, 1, D, H, W), the label maps of the cases at the indices."""
        return torch.from_numpy(np.stack([self._map(self.mask_paths[index]) for index in indices]))[:, None]


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


def prefetched(
    steps: Iterable[int],
    load: Callable[[int], Batch],
    processes: int = 0,
) -> Iterator[tuple[int, Batch]]:
    """Yields each step with its batch, while the batches of the next steps are loaded.

    Args:
        steps: Consecutive step numbers.
        load: The batch of a step, on the CPU; a pure function. For processes a tuple of tensors.
        processes: Number of processes that load, two batches ahead each, for batches that take longer to load
            than to learn from; 0 for a thread, which is one batch ahead.
    """
    batches: Generator[Batch, None, None] | None = None
    try:
        for step in steps:
            if batches is None:
                batches = _by_processes(load, step, processes) if processes else _by_thread(load, step)
            yield step, next(batches)
    finally:
        if batches is not None:
            batches.close()


def _by_thread(load: Callable[[int], Batch], first: int) -> Generator[Batch, None, None]:
    with ThreadPoolExecutor(max_workers=1) as pool:
        ahead = pool.submit(load, first)
        for step in count(first + 1):
            batch = ahead.result()
            ahead = pool.submit(load, step)
            yield batch


def _by_processes(load: Callable[[int], Any], first: int, processes: int) -> Generator[Any, None, None]:
    # Forked where that is possible, for each of them would import PyTorch anew otherwise.
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    loader = DataLoader(
        _ArraysOfSteps(load),
        batch_size=None,
        sampler=count(first),
        num_workers=processes,
        collate_fn=_unchanged,
        multiprocessing_context="fork" if can_fork else None,
        # The loader would draw from the global one.
        generator=torch.Generator(),
    )
    for arrays in loader:
        if isinstance(arrays, UserError):
            raise arrays
        yield tuple(torch.from_numpy(array) for array in arrays)


class _ArraysOfSteps(Dataset[tuple[np.ndarray, ...] | UserError]):
    """Batches by step, as PyTorch's loader asks for them."""

    def __init__(self, load: Callable[[int], tuple[Tensor, ...]]) -> None:
        self._load = load

    def __getitem__(self, step: int) -> tuple[np.ndarray, ...] | UserError:
        try:
            # Tensors would go through shared memory, of which containers have little.
            return tuple(part.numpy() for part in self._load(step))
        except UserError as error:
            # Raised here, it would reach the user as the text of a traceback.
            return error


def _unchanged(batch: Any) -> Any:
    return batch


def flip_axis(flip: str, affine: Sequence[Sequence[float]]) -> int | None:
    """Tensor axis of (B, C, D, H, W) that a mirroring runs along, or None for none.

    Args:
        flip: "none"; "vertical", along the rows of the slice plane; "left_right", along the body's.
        affine: Affine of the grid, voxel (d, h, w, 1) to RAS+ mm.
    """
    if flip == "none":
        return None
    if flip == "vertical":
        return 3
    return 2 + int(np.argmax(np.abs(np.asarray(affine)[0, :3])))
