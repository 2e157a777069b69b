"""Sets of scans to be compared: folders or prepared datasets become arrays in [-1, 1] on one grid.

Both sides of a comparison go through the same preprocessing, or its numbers measure the preprocessing:

- A prepared dataset is taken as it is stored.
- CT gets a fixed window: that of `like`, or [-1000, 1000] HU.
- Synthetic or reconstructed MR beside a prepared dataset gets that dataset's one window, the unit that
  Anatogen writes scans in; so differences in brightness between synthetic scans are kept, and measured.
- Any other MR has no unit of its own: each scan gets its own window by the percentiles that the dataset
  beside it was prepared with, else by those of `anatogen prepare`, and so do synthetic scans beside a plain
  folder of real MR.

Arrays are rounded to float16, in which prepared volumes are stored. Messages name files, as the user named
them; nothing that is returned does.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata

from anatogen.core.errors import ScanError, UserError
from anatogen.core.files import sha256_json
from anatogen.dataset.discover import NO_SCANS, Source, discover
from anatogen.dataset.manifest import MANIFEST_NAME, Grid, Intensity, Split, load_manifest
from anatogen.dataset.measures import looks_like_ct, own_window, standardised
from anatogen.dataset.prepare_config import PrepareConfig, stored_settings
from anatogen.dataset.reading import read_source
from anatogen.dataset.volumes import VolumeDataset
from anatogen.io.checks import ConstantScanError
from anatogen.io.formats import ending
from anatogen.io.geometry import axis_codes, orient, slice_plane, triple
from anatogen.io.volume import Volume

# Values apart by less than a step are one to `content_hash`: half the finest step of 12-bit scans.
_HASH_STEPS = 2048
# Voxels of a scan whose ranks `same_scans` compares, about.
_NUM_RANKED = 4096
# Of one scan in two windows: much of it may be clipped in one of them, and hardly any in the other.
_LEAST_RANK_CORRELATION = 0.8
# Of one scan in two windows it is 1 but for rounding to float16.
_LEAST_LINE_CORRELATION = 0.9995


@dataclass(frozen=True)
class ScanSet:
    """Scans on one grid, in the range that networks see.

    Attributes:
        role: "real", "synthetic", "reconstructed", "train" or "holdout": what messages and tables call it.
        arrays: float32 (N, D, H, W) in [-1, 1].
        hashes: `content_hash` of each array.
        grid: Shape, spacing and orientation.
        modality: "CT" or "MR".
        intensity: From [-1, 1] to the scans' unit; of scans with windows of their own the median.
        own_windows: Whether each scan was mapped by its own percentiles (a plain folder of MR).
        percentiles: Which ones those of an MR scan's own window are, as `PrepareConfig.percentiles`.
    """

    role: str
    arrays: npt.NDArray[np.float32]
    hashes: tuple[str, ...]
    grid: Grid
    modality: str
    intensity: Intensity
    own_windows: bool = False
    percentiles: tuple[float, float] = PrepareConfig().percentiles

    def __len__(self) -> int:
        return len(self.arrays)

    @cached_property
    def sha256(self) -> str:
        """Hash of all scans, their order included."""
        return sha256_json(list(self.hashes))

    def take(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> "ScanSet":
        """The scans at the indices, in that order; an index may come twice."""
        chosen = [int(index) for index in indices]
        return self.with_arrays(self.arrays[chosen], tuple(self.hashes[index] for index in chosen))

    def with_arrays(
        self, arrays: npt.NDArray[np.float32], hashes: tuple[str, ...] | None = None
    ) -> "ScanSet":
        """The set with other scans on the same grid; hashes are computed where they are not given."""
        if hashes is None:
            hashes = tuple(content_hash(array) for array in arrays)
        return replace(self, arrays=arrays, hashes=hashes)


def content_hash(array: npt.NDArray[np.float32]) -> str:
    """SHA-256 of an array's shape and values to 1/2048, 64 hex digits.

    So a scan that was exported and read again is still the same scan, whatever its last bits. The steps'
    edges lie at a third of a step, where values of float16 and of whole numbers never fall.

    Args:
        array: float, (D, H, W) in [-1, 1].
    """
    steps = np.floor(array.astype(np.float64) * _HASH_STEPS + 1 / 3).astype(np.int16)
    digest = hashlib.sha256(str(array.shape).encode())
    digest.update(np.ascontiguousarray(steps).data)
    return digest.hexdigest()


def identical_scans(a: ScanSet, b: ScanSet) -> int:
    """How many scans of `a` lie in `b` too, voxel for voxel."""
    known = set(b.hashes)
    return sum(digest in known for digest in a.hashes)


def same_scans(a: ScanSet, b: ScanSet) -> int:
    """How many scans of `a` lie in `b` too, whatever their windows.

    A window clips a scan's values and maps the others by a line. So two arrays are of one scan if they lie
    on a line where neither is clipped.

    Args:
        a: On the grid of `b`.
        b: Whatever its windows.
    """
    # Ranks of a part of the voxels tell which pairs are worth a look.
    step = max(1, a.arrays[0].size // _NUM_RANKED)
    ranks = [
        np.stack([standardised(rankdata(array.ravel()[::step])) for array in scans.arrays])
        for scans in (a, b)
    ]
    likely = ranks[0] @ ranks[1].T > _LEAST_RANK_CORRELATION
    return sum(
        any(_on_a_line(array, b.arrays[other]) for other in np.flatnonzero(row))
        for array, row in zip(a.arrays, likely, strict=True)
    )


def _on_a_line(x: npt.NDArray[np.float32], y: npt.NDArray[np.float32]) -> bool:
    # What is clipped has an array's lowest or highest value, in whatever unit it was clipped.
    inside = np.all([(part > part.min()) & (part < part.max()) for part in (x, y)], axis=0)
    # Scans of background and a single tissue, or with windows that have hardly a value in common.
    if inside.sum() < _NUM_RANKED // 8:
        return bool(np.array_equal(x, y))
    first, second = (standardised(part[inside].astype(np.float64)) for part in (x, y))
    return float(first @ second) > _LEAST_LINE_CORRELATION


def num_constant(scans: ScanSet) -> int:
    """How many scans hold a single value only."""
    flat = scans.arrays.reshape(len(scans), -1)
    return int((flat.min(axis=1) == flat.max(axis=1)).sum())


def count_scans(path: Path, role: str) -> int:
    """How many scans `load_scans` would read.

    Args:
        path: As `load_scans` takes it.
        role: For messages.

    Raises:
        UserError: If there is no such folder or split, or it holds no scans.
    """
    folder, split = _scans_in(path, role)
    if split is not None or (folder / MANIFEST_NAME).is_file():
        return sum(map(len, _datasets(folder, split, role)))
    return len(_sources(folder, role))


def load_scans(
    path: Path, role: str, like: ScanSet | None = None, indices: Sequence[int] | None = None
) -> ScanSet:
    """Reads all scans of a folder, or of a prepared dataset or one split of it.

    Args:
        path: A folder of scans in any format that Anatogen reads, a prepared dataset (all its scans, those
            of training first), or "DATASET:train", "DATASET:validation" or "DATASET:test".
        role: "real", "synthetic", "reconstructed", "train" or "holdout".
        like: The set that it must match in shape, spacing, orientation and modality; scans of a plain folder
            are brought to its order of axes. Decides intensities too: see this module's docstring.
        indices: Which of the scans to read, of the `count_scans` that there are; default all.

    Raises:
        UserError: If there is no such folder or split, it holds no scans, a scan can't be read or holds
            NaN, or the scans are not on one grid, or not on that of `like`; or datasets of CT have
            different windows.
    """
    folder, split = _scans_in(path, role)
    if split is not None or (folder / MANIFEST_NAME).is_file():
        scans = _prepared(folder, split, role, indices)
        if like is not None:
            _check_like(scans, like)
        return scans
    return _plain(folder, role, like, indices)


def _scans_in(path: Path, role: str) -> tuple[Path, Split | None]:
    folder, split = folder_and_split(path)
    if not folder.is_dir():
        raise UserError(f"{role} scans: {folder} is not a folder")
    return folder, split


def folder_and_split(path: Path) -> tuple[Path, Split | None]:
    """The folder that "FOLDER" or "DATASET:SPLIT" names, and the split.

    Raises:
        UserError: If there is no split of that name.
    """
    folder, colon, name = str(path).rpartition(":")
    if not colon or path.exists() or not Path(folder).is_dir():
        return path, None
    try:
        return Path(folder), Split(name)
    except ValueError as error:
        raise UserError(f"{path}: there is no split {name!r}; use {', '.join(Split)}") from error


def _datasets(folder: Path, split: Split | None, role: str) -> list[VolumeDataset]:
    datasets = [VolumeDataset(folder, part) for part in (Split if split is None else (split,))]
    datasets = [dataset for dataset in datasets if len(dataset)]
    if not datasets:
        where = f"the split {split.value!r} of {folder}" if split else f"{folder}"
        raise UserError(f"{role} scans: {where} is empty: choose another, or prepare with larger splits")
    return datasets


def _prepared(folder: Path, split: Split | None, role: str, indices: Sequence[int] | None) -> ScanSet:
    manifest = load_manifest(folder)
    datasets = _datasets(folder, split, role)
    places = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
    chosen = places if indices is None else [places[index] for index in indices]
    arrays = np.concatenate([dataset.batch([index])[:, 0].numpy() for dataset, index in chosen])
    if not np.isfinite(arrays).all():
        raise UserError(f"{role} scans: {folder} holds values that are not finite: prepare the scans again")
    percentiles = stored_settings(manifest.config).percentiles
    return _scan_set(role, arrays, manifest.grid, manifest.intensity, percentiles, own_windows=False)


def _sources(folder: Path, role: str) -> list[Source]:
    sources, left_out, _ = discover(folder)
    if left_out:
        raise UserError(f"{role} scans: {folder / left_out[0].name}: {left_out[0].reason}")
    if not sources:
        raise UserError(f"{role} scans: {folder} holds no scans: {NO_SCANS}")
    return list(sources)


def _plain(folder: Path, role: str, like: ScanSet | None, indices: Sequence[int] | None) -> ScanSet:
    sources = _sources(folder, role)
    if indices is not None:
        sources = [sources[index] for index in indices]
    volumes: list[Volume] = []
    grid = None if like is None else like.grid
    for source in sources:
        name = f"{role} scans: {folder / source.name}"
        if like is not None and source.modality in ("CT", "MR") and source.modality != like.modality:
            raise UserError(
                f"{name} is {source.modality} by its DICOM header, and the {like.role} scans are "
                f"{like.modality}"
            )
        volume = _read(source, name, grid)
        if grid is None:
            grid = _grid_of(volume)
        other = f"the {like.role} scans" if like is not None else f"{folder / sources[0].name}"
        _check_grid(name, _grid_of(volume), grid, other)
        volumes.append(volume)
    assert grid is not None
    modality = like.modality if like is not None else _modality(sources, volumes)
    own_windows = modality == "MR" and (
        like is None or like.own_windows or role not in ("synthetic", "reconstructed")
    )
    percentiles = PrepareConfig().percentiles if like is None else like.percentiles
    windows = _own_windows(volumes, percentiles) if own_windows else [_window(modality, like)] * len(volumes)
    arrays = [window.normalise(volume.array) for window, volume in zip(windows, volumes, strict=True)]
    intensity = Intensity(
        modality=modality,
        low=float(np.median([window.low for window in windows])),
        high=float(np.median([window.high for window in windows])),
    )
    return _scan_set(role, np.stack(arrays), grid, intensity, percentiles, own_windows=own_windows)


def _read(source: Source, name: str, grid: Grid | None) -> Volume:
    """The scan with its axes in the grid's order, or in that of conventional slices if there is none yet."""
    is_npy = not source.is_dicom and ending(source.files[0]) == ".npy"
    try:
        volume = read_source(source)
    except ConstantScanError as error:
        volume = error.volume
    except ScanError as error:
        raise UserError(f"{name}: {error}") from error
    if is_npy:  # the format holds no geometry: taken for an array on the grid
        affine = volume.affine if grid is None else np.asarray(grid.affine)
        return Volume(volume.array, affine)
    return orient(volume, slice_plane(volume.affine) if grid is None else "".join(grid.axis_codes))


def _grid_of(volume: Volume) -> Grid:
    return Grid.centred(axis_codes(volume.affine), triple(volume.array.shape), volume.spacing_mm)


def _modality(sources: Sequence[Source], volumes: Sequence[Volume]) -> str:
    told = {source.modality for source in sources} & {"CT", "MR"}
    if len(told) == 1:
        return str(told.pop())
    if len(told) == 2:
        raise UserError("the folder mixes CT and MR scans: compare scans of one modality")
    num_ct = sum(looks_like_ct(float(v.array.min()), float(v.array.max())) for v in volumes)
    return "CT" if 2 * num_ct > len(volumes) else "MR"


def _window(modality: str, like: ScanSet | None) -> Intensity:
    if like is not None:
        return like.intensity
    low, high = PrepareConfig().window_hu
    return Intensity(modality=modality, low=low, high=high)


def _own_windows(volumes: Sequence[Volume], percentiles: tuple[float, float]) -> list[Intensity]:
    windows = []
    for volume in volumes:
        low = high = float(volume.array.min())
        if low < volume.array.max():
            low, high = own_window(volume.array, percentiles)
        # A constant scan has no window: it becomes -1 everywhere.
        windows.append(Intensity(modality="MR", low=low, high=high if high > low else low + 1))
    return windows


def _check_like(scans: ScanSet, like: ScanSet) -> None:
    name = f"{scans.role} scans"
    if scans.modality != like.modality:
        raise UserError(f"{name} are {scans.modality}, and the {like.role} scans are {like.modality}")
    if scans.modality == "CT" and scans.intensity != like.intensity:
        raise UserError(
            f"{name} have the window {_window_text(scans)}, and the {like.role} scans {_window_text(like)}: "
            "prepare both with one `window_hu`"
        )
    _check_grid(name, scans.grid, like.grid, f"the {like.role} scans")


def _check_grid(name: str, grid: Grid, expected: Grid, other: str) -> None:
    if not grid.fits(expected):
        raise UserError(f"{name}: {grid.text()}, and {other}: {expected.text()}; prepare both on one grid")


def _scan_set(
    role: str,
    arrays: npt.NDArray[np.float32],
    grid: Grid,
    intensity: Intensity,
    percentiles: tuple[float, float],
    *,
    own_windows: bool,
) -> ScanSet:
    stored = arrays.astype(np.float16).astype(np.float32)
    hashes = tuple(content_hash(array) for array in stored)
    return ScanSet(role, stored, hashes, grid, intensity.modality, intensity, own_windows, percentiles)


def _window_text(scans: ScanSet) -> str:
    return f"{scans.intensity.low:g} to {scans.intensity.high:g} HU"
