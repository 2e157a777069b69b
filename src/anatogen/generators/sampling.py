"""From a bundle to synthetic scans on disk: restartable, in any number of processes."""

import json
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

import numpy as np
import numpy.typing as npt
import torch

from anatogen.core.choices import FileFormat, Sampler
from anatogen.core.devices import device_named, one_thread
from anatogen.core.errors import UserError
from anatogen.core.files import remove_parts, write_json
from anatogen.core.processes import SPAWN
from anatogen.core.version import __version__
from anatogen.dataset.manifest import Grid
from anatogen.dataset.workers import available_cores, end_with_parent
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.volume import Volume
from anatogen.report.progress import shown_progress

if TYPE_CHECKING:
    from multiprocessing.queues import SimpleQueue

    from anatogen.generators.bundle import Bundle

_ENOUGH_CANDIDATES = 50
_MOST_REJECTED = 0.9
_SUFFIX = {"nifti": ".nii.gz", "dicom": "", "npy": ".npy"}

# From a scan, float32 (D, H, W) in [-1, 1], to its likeness to the training scan that it copies, or None.
FindCopy = Callable[[npt.NDArray[np.float32]], float | None]


class OtherSetError(UserError):
    """A folder holds synthetic scans of another set: of another bundle, say, or seed."""


class CopyFilter(Protocol):
    """Tells which scans are copies of training scans; sent to every process, which loads it there.

    Its text names it in messages.
    """

    @property
    def sha256(self) -> str:
        """Hash of everything that decides which scans are copies."""
        ...

    def load(self, grid: Grid, device: torch.device) -> FindCopy:
        """What finds copies among scans on a grid.

        Raises:
            UserError: If it can't be loaded, or is for scans on another grid.
        """
        ...


def write_scans(
    bundle: "Bundle",
    out: Path | str,
    *,
    num_samples: int = 1,
    seed: int = 0,
    sampler: Sampler | None = None,
    steps: int | None = None,
    batch_size: int = 4,
    file_format: FileFormat = "nifti",
    device: str | None = None,
    processes: int | None = None,
    reject_copies: CopyFilter | None = None,
) -> list[Path]:
    """Writes synthetic scans 0 to num_samples - 1, as far as they are missing; `Bundle.write`.

    The options are those of `anatogen.sample`, which explains them, but that the device's default is
    where the bundle is, and `reject_copies` is a filter: for a privacy audit, an `AuditFilter`.

    Raises:
        OtherSetError: If the folder holds scans of another set.
        UserError: If a number can't be, the bundle was never saved, the filter is for another grid, or nearly
            all scans are copies.
    """
    limits = {"num_samples": num_samples, "batch_size": batch_size, "processes": processes, "steps": steps}
    for name, value in limits.items():
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}: it must be at least 1")
    _check_known(file_format, "format", get_args(FileFormat))
    if sampler is not None:
        _check_known(sampler, "sampler", get_args(Sampler))
    device = str(bundle.device) if device is None else device
    place = device_named(device)
    if bundle.folder is None:
        raise UserError("the bundle lies on no disk: save it before it writes scans")
    options = bundle.sampling_options(sampler, steps)
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder for the scans")
    remove_parts(out)
    if reject_copies is not None:
        # Here its refusal is an error of the caller; in a process it would be that of a broken pool.
        reject_copies.load(bundle.grid, bundle.device)
    scans = _ScanSet(out, _about(bundle, seed, options, file_format, reject_copies), options)
    kept = scans.told()
    if place.type == "cpu":
        batch_size = 1
    if processes is None:
        num_gpus = torch.cuda.device_count() if device in ("auto", "cuda") else 1
        processes = available_cores() if place.type == "cpu" else num_gpus
    chosen, missing = _next_scans(num_samples, kept)
    if missing:
        processes = min(processes, -(-len(missing) // batch_size))
        with shown_progress() as progress, _makers(bundle, device, scans, reject_copies, processes) as make:
            progress("sampling", num_samples - len(missing), num_samples)
            # Every round makes what is missing if none of it is rejected; without a filter there is one.
            while missing:
                batches = [missing[at : at + batch_size] for at in range(0, len(missing), batch_size)]
                for made in make(batches):
                    kept |= made
                    progress("sampling", min(sum(kept.values()), num_samples), num_samples)
                    _check_rejection(kept, reject_copies)
                chosen, missing = _next_scans(num_samples, kept)
    return [scans.path(index) for index in chosen]


def num_rejected(out: Path | str) -> int:
    """How many scans of the set in the folder were left out as copies so far."""
    return len(list(Path(out).glob("rejected_*.json")))


def _check_known(name: str, kind: str, names: tuple[str, ...]) -> None:
    if name not in names:
        raise UserError(f"{kind} {name!r} is unknown: use {', '.join(names)}")


@dataclass(frozen=True)
class _ScanSet:
    """A set of scans in a folder.

    Attributes:
        folder: Where they lie.
        about: What the JSON beside each says of all of them.
        options: What the bundle takes besides numbers and seed.
    """

    folder: Path
    about: dict[str, str | int | bool]
    options: dict[str, Any]

    def path(self, index: int) -> Path:
        """The file of a scan, or its folder of slices."""
        return self.folder / f"synthetic_{index:06d}{_SUFFIX[str(self.about['format'])]}"

    def tell(self, what: str, index: int, **more: bool | float) -> None:
        """Writes the JSON of a scan that is "synthetic" (made), or "rejected"."""
        write_json(self.folder / f"{what}_{index:06d}.json", self.about | {"index": index} | more)

    def told(self) -> dict[int, bool]:
        """Whether each scan that was made was kept, by its number; kept ones whose file is gone are left out.

        Raises:
            OtherSetError: If any of them is of another set.
        """
        kept = {}
        for path in sorted([*self.folder.glob("synthetic_*.json"), *self.folder.glob("rejected_*.json")]):
            try:
                found = json.loads(path.read_text(encoding="utf-8"))
                index = found["index"]
            except (ValueError, KeyError, TypeError):
                continue
            # A set without an audit has scans that one with it lacks, so both must say so.
            names = {*self.about, "audit_sha256"} - {"anatogen_version"}
            differing = sorted(name for name in names if found.get(name) != self.about.get(name))
            if differing:
                raise OtherSetError(
                    f"{path} is of another set of scans (other {', '.join(differing)}): choose another "
                    "folder, or empty this one"
                )
            if found.get("rejected") or self.path(index).exists():
                kept[index] = not found.get("rejected")
        return kept

    def write(self, volume: Volume, index: int) -> None:
        """Writes a scan, then the JSON beside it."""
        path = self.path(index)
        if self.about["format"] == "dicom":
            # A folder without its JSON may be of any set: like a file, it is replaced.
            shutil.rmtree(path, ignore_errors=True)
            parts = [self.about["bundle_sha256"], self.about["seed"], index, *self.options.values()]
            modality: Literal["CT", "MR"] = "CT" if self.about["modality"] == "CT" else "MR"
            write_dicom(
                volume,
                path,
                modality,
                uid_from=" ".join(map(str, parts)),
                patient_id=f"SYNTHETIC-{index:06d}",
            )
        else:
            volume.save(path)
        self.tell("synthetic", index)


class _Maker:
    """Makes the scans of a set with a bundle, and leaves out copies."""

    def __init__(self, bundle: "Bundle", scans: _ScanSet, reject_copies: CopyFilter | None) -> None:
        self._bundle = bundle
        self._scans = scans
        self._find_copy = None if reject_copies is None else reject_copies.load(bundle.grid, bundle.device)

    def __call__(self, indices: list[int]) -> dict[int, bool]:
        """Makes scans in one batch; returns by number whether each was kept."""
        seed = int(self._scans.about["seed"])
        with one_thread():
            made = self._bundle.generate(indices, seed=seed, **self._scans.options)
        kept = {}
        for index, x in zip(indices, made, strict=True):
            correlation = None if self._find_copy is None else self._find_copy(x.numpy())
            if correlation is None:
                self._scans.write(self._bundle.volume(x), index)
            else:
                self._scans.tell("rejected", index, rejected=True, correlation=correlation)
            kept[index] = correlation is None
        return kept


def _about(
    bundle: "Bundle",
    seed: int,
    options: dict[str, str | int],
    file_format: FileFormat,
    reject_copies: CopyFilter | None,
) -> dict[str, str | int | bool]:
    description = bundle.description
    release, modality = description.release, description.intensity.modality
    # What whoever passes on scans of a published model must pass on with them.
    terms = (
        {"model": release.name, "licence": release.licence, "attribution": release.attribution}
        if release
        else {}
    )
    return {
        "synthetic": True,
        "anatogen_version": __version__,
        "bundle_sha256": bundle.sha256,
        **terms,
        "seed": seed,
        **options,
        "format": file_format,
        "modality": modality,
        "unit": "HU" if modality == "CT" else "arbitrary",
        **({} if reject_copies is None else {"audit_sha256": reject_copies.sha256}),
    }


def _next_scans(num_samples: int, kept: dict[int, bool]) -> tuple[list[int], list[int]]:
    """The first `num_samples` scans that are not rejected, and those of them that are not there yet."""
    chosen = list(islice((index for index in count() if kept.get(index, True)), num_samples))
    return chosen, [index for index in chosen if index not in kept]


def _check_rejection(kept: dict[int, bool], reject_copies: CopyFilter | None) -> None:
    num_rejected = list(kept.values()).count(False)
    if len(kept) >= _ENOUGH_CANDIDATES and num_rejected > _MOST_REJECTED * len(kept):
        raise UserError(
            f"{reject_copies} flags {num_rejected} of {len(kept)} scans as copies: this bundle has memorised "
            "its training scans; train it on more scans, or for less long"
        )


_maker: _Maker | None = None


def _start_worker(
    load: "Callable[[], Bundle]",
    device: str,
    numbers: "SimpleQueue[int]",
    scans: _ScanSet,
    reject_copies: CopyFilter | None,
) -> None:
    global _maker
    end_with_parent()
    bundle = load().to(device_named(device, numbers.get()))
    _maker = _Maker(bundle, scans, reject_copies)


def _make(indices: list[int]) -> dict[int, bool]:
    assert _maker is not None
    return _maker(indices)


@contextmanager
def _makers(
    bundle: "Bundle", device: str, scans: _ScanSet, reject_copies: CopyFilter | None, processes: int
) -> Iterator[Callable[[list[list[int]]], Iterable[dict[int, bool]]]]:
    """What makes batches of scans, here or in processes, and yields what `_Maker` returns for each."""
    if processes == 1:
        yield partial(map, _Maker(bundle.to(device_named(device)), scans, reject_copies))
        return
    assert bundle.folder is not None
    numbers = SPAWN.SimpleQueue()
    for number in range(processes):
        numbers.put(number)
    load = partial(type(bundle).load, bundle.folder, bundle.description)
    start = partial(_start_worker, load, device, numbers, scans, reject_copies)
    with ProcessPoolExecutor(processes, SPAWN, start) as pool:
        try:
            yield partial(pool.map, _make)
        except BrokenProcessPool as error:
            raise UserError(
                f"one of {processes} processes that made scans died; most likely memory ran out: use fewer "
                f"(--processes {processes // 2})"
            ) from error
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
