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
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import numpy.typing as npt

from anatogen.core.errors import ScanError, UserError
from anatogen.core.files import sha256_json
from anatogen.dataset.common_grid import modality_of_values
from anatogen.dataset.discover import NO_SCANS, Source, discover
from anatogen.dataset.manifest import MANIFEST_NAME, Grid, Intensity, Split
from anatogen.dataset.measures import looks_like_ct, own_window
from anatogen.dataset.prepare_config import PrepareConfig, stored_settings
from anatogen.dataset.reading import read_source
from anatogen.dataset.volumes import VolumeDataset
from anatogen.io.checks import ConstantScanError
from anatogen.io.formats import ending
from anatogen.io.geometry import axis_codes, orient, slice_plane, triple
from anatogen.io.volume import Volume

# Values apart by less than a step are one to `content_hash`: half the finest step of 12-bit scans.
_HASH_STEPS = 2048
# Of the float32 arrays that `ScanFolder.parts` gives at once; reading takes about twice as much.
_BYTES_AT_ONCE = 2**27


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
    return len(ScanFolder(path, role))


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
    folder = ScanFolder(path, role)
    return folder.read(like, range(len(folder)) if indices is None else indices)


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


class ScanFolder:
    """Where the scans of a folder, a prepared dataset or one of its splits are: found once, read by number.

    Args:
        path: As `load_scans` takes it.
        role: What messages call the scans.

    Raises:
        UserError: If there is no such folder or split, or it holds no scans.
    """

    def __init__(self, path: Path, role: str) -> None:
        self.role = role
        self.folder, split = folder_and_split(path)
        if not self.folder.is_dir():
            raise UserError(f"{role} scans: {self.folder} is not a folder")
        self._prepared: list[tuple[VolumeDataset, int]] = []
        self._sources: list[Source] = []
        if split is not None or (self.folder / MANIFEST_NAME).is_file():
            datasets = _datasets(self.folder, split, role)
            self._prepared = [(dataset, index) for dataset in datasets for index in range(len(dataset))]
        else:
            self._sources = _sources(self.folder, role)

    def __len__(self) -> int:
        return len(self._prepared) or len(self._sources)

    def parts(self, like: ScanSet | None = None) -> Iterator[ScanSet]:
        """Reads all, a few at a time, so that memory does not grow with their number.

        Where neither `like` nor DICOM tells CT from MR, scans of a plain folder are decoded once more for it.

        Args:
            like: As `load_scans` takes it.

        Raises:
            UserError: As `load_scans`, once the part is asked for that something is wrong with.
        """
        modality = None if self._prepared or like is not None else self._modality()
        grid, start = None, 0
        while start < len(self):
            number = 1 if grid is None else max(1, _BYTES_AT_ONCE // (4 * math.prod(grid.shape)))
            part = self.read(like, range(start, min(start + number, len(self))), grid, modality)
            grid, start = part.grid, start + len(part)
            yield part

    def _modality(self) -> str:
        """CT or MR of a plain folder, by all its scans."""
        told = _told_modality(self._sources)
        return told or _modality_of([_range(self._volume(source, None).array) for source in self._sources])

    def read(
        self,
        like: ScanSet | None,
        indices: Sequence[int],
        grid: Grid | None = None,
        modality: str | None = None,
    ) -> ScanSet:
        """Reads some of the scans.

        Args:
            like: As `load_scans` takes it.
            indices: Which.
            grid: What those of a plain folder have to be on; default that of `like`, else of the first.
            modality: CT or MR, for a plain folder; default what these scans tell.
        """
        if not self._prepared:
            return self._read_plain(like, [self._sources[index] for index in indices], grid, modality)
        scans = self._read_prepared([self._prepared[index] for index in indices])
        if like is not None:
            _check_like(scans, like)
        return scans

    def _read_prepared(self, chosen: Sequence[tuple[VolumeDataset, int]]) -> ScanSet:
        manifest = chosen[0][0].manifest
        arrays = np.empty((len(chosen), *manifest.grid.shape), np.float32)
        for array, (dataset, index) in zip(arrays, chosen, strict=True):
            array[:] = _as_stored(dataset.batch([index])[0, 0].numpy())
            if not np.isfinite(array).all():
                raise UserError(
                    f"{self.role} scans: {self.folder} holds values that are not finite: prepare the scans "
                    "again"
                )
        percentiles = stored_settings(manifest.config).percentiles
        return _scan_set(self.role, arrays, manifest.grid, manifest.intensity, percentiles, own_windows=False)

    def _read_plain(
        self, like: ScanSet | None, sources: Sequence[Source], grid: Grid | None, modality: str | None
    ) -> ScanSet:
        if like is not None:
            grid, modality = like.grid, like.modality
        other = f"the {like.role} scans" if like is not None else f"{self.folder / self._sources[0].name}"
        arrays: npt.NDArray[np.float32] | None = None
        # Into place one by one: no scan is in memory twice.
        for number, source in enumerate(sources):
            if like is not None and source.modality in ("CT", "MR") and source.modality != like.modality:
                raise UserError(
                    f"{self._name(source)} is {source.modality} by its DICOM header, and the {like.role} "
                    f"scans are {like.modality}"
                )
            volume = self._volume(source, grid)
            grid = grid or _grid_of(volume)
            _check_grid(self._name(source), _grid_of(volume), grid, other)
            if arrays is None:
                arrays = np.empty((len(sources), *grid.shape), np.float32)
            arrays[number] = volume.array
        assert grid is not None and arrays is not None
        modality = modality or _told_modality(sources) or _modality_of([_range(array) for array in arrays])
        own_windows = modality == "MR" and (
            like is None or like.own_windows or self.role not in ("synthetic", "reconstructed")
        )
        percentiles = PrepareConfig().percentiles if like is None else like.percentiles
        windows = []
        for array in arrays:
            window = _own_window(array, percentiles) if own_windows else _shared_window(modality, like)
            array[:] = _as_stored(window.normalise(array))
            windows.append(window)
        intensity = Intensity(
            modality=modality,
            low=float(np.median([window.low for window in windows])),
            high=float(np.median([window.high for window in windows])),
        )
        return _scan_set(self.role, arrays, grid, intensity, percentiles, own_windows=own_windows)

    def _name(self, source: Source) -> str:
        return f"{self.role} scans: {self.folder / source.name}"

    def _volume(self, source: Source, grid: Grid | None) -> Volume:
        return _read(source, self._name(source), grid)


def _datasets(folder: Path, split: Split | None, role: str) -> list[VolumeDataset]:
    datasets = [VolumeDataset(folder, part) for part in (Split if split is None else (split,))]
    datasets = [dataset for dataset in datasets if len(dataset)]
    if not datasets:
        where = f"the split {split.value!r} of {folder}" if split else f"{folder}"
        raise UserError(f"{role} scans: {where} is empty: choose another, or prepare with larger splits")
    return datasets


def _sources(folder: Path, role: str) -> list[Source]:
    sources, left_out, _ = discover(folder)
    if left_out:
        raise UserError(f"{role} scans: {folder / left_out[0].name}: {left_out[0].reason}")
    if not sources:
        raise UserError(f"{role} scans: {folder} holds no scans: {NO_SCANS}")
    return list(sources)


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


def _told_modality(sources: Sequence[Source]) -> str | None:
    told = {source.modality for source in sources} & {"CT", "MR"}
    if len(told) == 2:
        raise UserError("the folder mixes CT and MR scans: compare scans of one modality")
    return str(told.pop()) if told else None


def _modality_of(ranges: Sequence[tuple[float, float]]) -> str:
    """CT or MR, by the lowest and the highest value of each scan."""
    return modality_of_values(sum(looks_like_ct(low, high) for low, high in ranges), len(ranges))


def _range(array: npt.NDArray[np.float32]) -> tuple[float, float]:
    return float(array.min()), float(array.max())


def _shared_window(modality: str, like: ScanSet | None) -> Intensity:
    if like is not None:
        return like.intensity
    low, high = PrepareConfig().window_hu
    return Intensity(modality=modality, low=low, high=high)


def _own_window(array: npt.NDArray[np.float32], percentiles: tuple[float, float]) -> Intensity:
    low, high = _range(array)
    if low < high:
        low, high = own_window(array, percentiles)
    # A constant scan has no window: it becomes -1 everywhere.
    return Intensity(modality="MR", low=low, high=high if high > low else low + 1)


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
    hashes = tuple(content_hash(array) for array in arrays)
    return ScanSet(role, arrays, hashes, grid, intensity.modality, intensity, own_windows, percentiles)


def _as_stored(array: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    return array.astype(np.float16)


def _window_text(scans: ScanSet) -> str:
    return f"{scans.intensity.low:g} to {scans.intensity.high:g} HU"
