"""From a bundle to synthetic scans on disk: restartable, in any number of processes."""

import json
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from itertools import count, islice
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Literal, Protocol, assert_never, cast, get_args

import numpy as np
import numpy.typing as npt
import torch

from anatogen.config.settings import Sampler
from anatogen.core.choices import FileFormat
from anatogen.core.devices import device_named
from anatogen.core.errors import UserError
from anatogen.core.files import remove_parts, write_json
from anatogen.core.version import __version__
from anatogen.dataset.manifest import Grid
from anatogen.dataset.workers import available_cores, end_with_parent
from anatogen.generators.description import Release
from anatogen.generators.latent_diffusion import Bundle, load_bundle
from anatogen.generators.wgan_gp import GANBundle
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.nifti import write_nifti
from anatogen.io.npy import write_npy
from anatogen.io.volume import Volume
from anatogen.report.progress import shown_progress

_ENOUGH_CANDIDATES = 50
_MOST_REJECTED = 0.9
_SUFFIX = {"nifti": ".nii.gz", "dicom": "", "npy": ".npy"}

# From a scan, float32 (D, H, W) in [-1, 1], to its likeness to the training scan that it copies, or None.
FindCopy = Callable[[npt.NDArray[np.float32]], float | None]


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


def sample(
    bundle: Path | str,
    out: Path | str,
    *,
    num_samples: int = 1,
    seed: int = 0,
    sampler: Sampler | None = None,
    steps: int | None = None,
    batch_size: int = 4,
    file_format: FileFormat = "nifti",
    device: str = "auto",
    processes: int | None = None,
    reject_copies: CopyFilter | None = None,
) -> list[Path]:
    """Writes synthetic scans 0 to num_samples - 1, as far as they are missing.

    Each scan is a file (a folder for DICOM) with a JSON beside it that says it is synthetic and how it was
    made. Scan k depends on (seed, k) alone: to the bit on a CPU, where every process has one thread, and up
    to rounding on a GPU.

    Args:
        bundle: Folder of the model bundle, or the name of a model that comes with the package.
        out: Folder for the scans; may hold some of the same set already.
        num_samples: How many scans the set has.
        seed: Of the set.
        sampler: Default the bundle's own; a GAN has none.
        steps: Sampling steps; default the bundle's own; a GAN has none.
        batch_size: Scans made at once on a GPU; on a CPU one is made after the other.
        file_format: "nifti" (.nii.gz), "dicom" (a folder of slices) or "npy".
        device: "cpu", "cuda", "cuda:1", or "auto" for a GPU where there is one.
        processes: Each takes a part of the set; default one per core, or per GPU. With more than one, a
            script must be guarded by `if __name__ == "__main__"`.
        reject_copies: Copies that it finds are left out, and later numbers take their place, until there are
            `num_samples` scans; a JSON `rejected_...` stands for each. For a privacy audit, an `AuditFilter`.

    Returns:
        Paths of all scans of the set, in order.

    Raises:
        UserError: If the bundle is none, a number can't be, the folder holds scans of another set,
            the filter is for another grid, or nearly all scans are copies.
    """
    bundle, out = Path(bundle), Path(out)
    limits = {"num_samples": num_samples, "batch_size": batch_size, "processes": processes, "steps": steps}
    for name, value in limits.items():
        if value is not None and value < 1:
            raise UserError(f"{name} is {value}: it must be at least 1")
    format_named(file_format)
    if sampler is not None:
        sampler_named(sampler)
    first_device = device_named(device, 0)
    loaded = load_bundle(bundle)
    try:
        options = loaded.sampling_options(sampler, steps)
    except ValueError as error:
        raise UserError(str(error)) from error
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder for the scans")
    out.mkdir(parents=True, exist_ok=True)
    remove_parts(out)
    find_copy = _load_filter(reject_copies, loaded)
    about = _about(loaded, seed, options, file_format, reject_copies)
    done = {index for index in _told(out, "synthetic", about) if _scan_path(out, index, file_format).exists()}
    rejected = _told(out, "rejected", about)
    if first_device.type == "cpu":
        batch_size = 1
    if processes is None:
        processes = available_cores() if first_device.type == "cpu" else _num_gpus(device)
    chosen, missing = _next_scans(num_samples, done, rejected)
    with shown_progress() as progress:
        progress("sampling", num_samples - len(missing), num_samples)
        # Every round makes what is missing if none of it is rejected; without an audit there is one.
        while missing:
            batches = [missing[start : start + batch_size] for start in range(0, len(missing), batch_size)]
            workers = min(processes, len(batches))
            if workers == 1:
                loaded.to(first_device)
                find_copy = _load_filter(reject_copies, loaded)
                written = _in_this_process(loaded, out, batches, about, file_format, find_copy)
            else:
                written = _in_processes(
                    bundle, out, batches, about, file_format, device, workers, reject_copies
                )
            for indices, kept in written:
                done.update(kept)
                rejected.update(set(indices) - set(kept))
                progress("sampling", min(len(done), num_samples), num_samples)
                _check_rejection(len(rejected), len(done), reject_copies)
            chosen, missing = _next_scans(num_samples, done, rejected)
    return [_scan_path(out, index, file_format) for index in chosen]


def num_rejected(out: Path | str) -> int:
    """How many scans of the set in the folder were left out as copies so far."""
    return len(list(Path(out).glob("rejected_*.json")))


def sampler_named(name: str) -> Sampler:
    """The sampler of this name; a UserError if there is none."""
    return cast(Sampler, _known(name, "sampler", get_args(Sampler)))


def format_named(name: str) -> FileFormat:
    """The file format of this name; a UserError if there is none."""
    return cast(FileFormat, _known(name, "format", get_args(FileFormat)))


def _known(name: str, kind: str, names: tuple[str, ...]) -> str:
    if name not in names:
        raise UserError(f"{kind} {name!r} is unknown: use {', '.join(names)}")
    return name


@contextmanager
def _one_thread() -> Iterator[None]:
    """Sums are split over threads, and so rounded otherwise with other numbers of them."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _about(
    bundle: Bundle | GANBundle,
    seed: int,
    options: dict[str, str | int],
    file_format: FileFormat,
    reject_copies: CopyFilter | None,
) -> dict[str, str | int | bool]:
    release = bundle.description.release
    return {
        "synthetic": True,
        "anatogen_version": __version__,
        "bundle_sha256": bundle.sha256,
        **({} if release is None else _terms(release)),
        "seed": seed,
        **options,
        "format": file_format,
        "modality": bundle.description.intensity.modality,
        "unit": "HU" if bundle.description.intensity.modality == "CT" else "arbitrary",
        **({} if reject_copies is None else {"audit_sha256": reject_copies.sha256}),
    }


def _terms(release: Release) -> dict[str, str]:
    """What whoever passes on scans of a published model must pass on with them."""
    return {"model": release.name, "licence": release.licence, "attribution": release.attribution}


def _options(about: dict[str, str | int | bool]) -> dict[str, Any]:
    """What the bundle takes besides numbers and seed."""
    return {name: about[name] for name in ("sampler", "steps") if name in about}


def _scan_path(out: Path, index: int, file_format: FileFormat) -> Path:
    return out / f"synthetic_{index:06d}{_SUFFIX[file_format]}"


def _sidecar(out: Path, index: int) -> Path:
    return out / f"synthetic_{index:06d}.json"


def _told(out: Path, what: str, about: dict[str, str | int | bool]) -> set[int]:
    """Numbers of the scans that a JSON in the folder says are "synthetic" (made), or "rejected".

    Raises:
        UserError: If any of them is of another set.
    """
    told = set()
    for path in sorted(out.glob(f"{what}_*.json")):
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
        except (json.JSONDecodeError, UnicodeDecodeError):
            continue
        if not isinstance(found, dict) or not isinstance(found.get("index"), int):
            continue
        # A set without an audit has scans that one with it lacks, so both must say so.
        names = [name for name in (*about, *{"audit_sha256"} - {*about}) if name != "anatogen_version"]
        differing = [name for name in names if found.get(name) != about.get(name)]
        if differing:
            raise UserError(
                f"{path} is of another set of scans (other {', '.join(differing)}): choose another "
                "folder, or empty this one"
            )
        told.add(found["index"])
    return told


def _rejection(out: Path, index: int) -> Path:
    return out / f"rejected_{index:06d}.json"


def _next_scans(num_samples: int, done: set[int], rejected: set[int]) -> tuple[list[int], list[int]]:
    """The first `num_samples` scans that are not rejected, and those of them that are not there yet."""
    chosen = list(islice((index for index in count() if index not in rejected), num_samples))
    return chosen, [index for index in chosen if index not in done]


def _load_filter(reject_copies: CopyFilter | None, bundle: Bundle | GANBundle) -> FindCopy | None:
    return None if reject_copies is None else reject_copies.load(bundle.description.grid, bundle.device)


def _check_rejection(num_rejected: int, num_kept: int, reject_copies: CopyFilter | None) -> None:
    total = num_rejected + num_kept
    if total >= _ENOUGH_CANDIDATES and num_rejected > _MOST_REJECTED * total:
        raise UserError(
            f"{reject_copies} flags {num_rejected} of {total} scans as copies: this bundle has memorised "
            "its training scans; train it on more scans, or for less long"
        )


def _write_batch(
    bundle: Bundle | GANBundle,
    out: Path,
    indices: list[int],
    about: dict[str, str | int | bool],
    file_format: FileFormat,
    find_copy: FindCopy | None,
) -> list[int]:
    """Makes scans, and returns the numbers of those that were kept."""
    grid, intensity = bundle.description.grid, bundle.description.intensity
    try:
        arrays = bundle.generate(indices, seed=int(about["seed"]), **_options(about)).numpy()
    except ValueError as error:
        raise UserError(str(error)) from error
    kept = []
    for index, array in zip(indices, arrays, strict=True):
        correlation = None if find_copy is None else find_copy(array)
        if correlation is not None:
            rejected = {"index": index, "rejected": True, "correlation": correlation}
            write_json(_rejection(out, index), about | rejected)
            continue
        volume = Volume(intensity.restore(array), np.asarray(grid.affine))
        _write(volume, _scan_path(out, index, file_format), index, about, file_format)
        write_json(_sidecar(out, index), about | {"index": index})
        kept.append(index)
    return kept


def _write(
    volume: Volume, path: Path, index: int, about: dict[str, str | int | bool], file_format: FileFormat
) -> None:
    match file_format:
        case "nifti":
            write_nifti(volume, path)
        case "npy":
            write_npy(volume, path)
        case "dicom":
            # A folder without its sidecar may be of any set: like a file, it is replaced.
            shutil.rmtree(path, ignore_errors=True)
            parts = [about["bundle_sha256"], about["seed"], index, *_options(about).values()]
            identity = " ".join(map(str, parts))
            modality: Literal["CT", "MR"] = "CT" if about["modality"] == "CT" else "MR"
            write_dicom(volume, path, modality, uid_from=identity, patient_id=f"SYNTHETIC-{index:06d}")
        case _:
            assert_never(file_format)


def _num_gpus(device: str) -> int:
    return torch.cuda.device_count() if device in ("auto", "cuda") else 1


_worker_bundle: Bundle | GANBundle | None = None
_worker_find_copy: FindCopy | None = None


def _start_worker(bundle: Path, device: str, reject_copies: CopyFilter | None, counter) -> None:  # type: ignore[no-untyped-def]
    global _worker_bundle, _worker_find_copy
    end_with_parent()
    with counter.get_lock():
        number = counter.value
        counter.value += 1
    torch.set_num_threads(1)
    _worker_bundle = load_bundle(bundle, device_named(device, number))
    _worker_find_copy = _load_filter(reject_copies, _worker_bundle)


def _work(
    out: Path, indices: list[int], about: dict[str, str | int | bool], file_format: FileFormat
) -> tuple[list[int], list[int]]:
    assert _worker_bundle is not None
    return indices, _write_batch(_worker_bundle, out, indices, about, file_format, _worker_find_copy)


def _in_this_process(
    bundle: Bundle | GANBundle,
    out: Path,
    batches: list[list[int]],
    about: dict[str, str | int | bool],
    file_format: FileFormat,
    find_copy: FindCopy | None,
) -> Iterator[tuple[list[int], list[int]]]:
    """Yields the numbers of each finished batch, and those of them that were kept."""
    for batch in batches:
        with _one_thread():
            kept = _write_batch(bundle, out, batch, about, file_format, find_copy)
        yield batch, kept


def _in_processes(
    bundle: Path,
    out: Path,
    batches: list[list[int]],
    about: dict[str, str | int | bool],
    file_format: FileFormat,
    device: str,
    processes: int,
    reject_copies: CopyFilter | None,
) -> Iterator[tuple[list[int], list[int]]]:
    """Yields the numbers of each finished batch, and those of them that were kept."""
    context = get_context("spawn")
    arguments = (bundle, device, reject_copies, context.Value("i", 0))
    with ProcessPoolExecutor(processes, context, _start_worker, arguments) as pool:
        futures = [pool.submit(_work, out, batch, about, file_format) for batch in batches]
        try:
            for future in as_completed(futures):
                yield future.result()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
