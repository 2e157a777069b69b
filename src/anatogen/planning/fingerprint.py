"""The fingerprint of a set of scans: all that the plan's rules look at, and nothing of a patient."""

import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict
from scipy import ndimage

from anatogen.core.errors import ScanError, UserError
from anatogen.dataset.common_grid import choose_modality, oriented
from anatogen.dataset.discover import LeftOut, Source, discover
from anatogen.dataset.inspection import Inspection, InspectionTask, inspect_scan, read_source
from anatogen.dataset.prepare_config import PrepareConfig
from anatogen.dataset.recipes.recipe import Scan
from anatogen.dataset.selection import require_scans, select_scans
from anatogen.dataset.workers import Workers, available_cores
from anatogen.io.archives import scans_folder
from anatogen.io.formats import Reading
from anatogen.io.geometry import (
    body_axes,
    centred_affine,
    foreground_box,
    foreground_threshold,
    orient,
    slice_plane,
)
from anatogen.io.volume import Volume

# Scans whose voxels are read, evenly chosen: medians of more would hardly differ.
MAX_MEASURED = 200
# Scans of the minority modality that may be strays.
_STRAYS = 0.1
# Voxels along an axis that the foreground is looked for with, and of the thumbnails that mirrors are told by.
_COARSE = 96
_THUMBNAIL = 12

Triple = tuple[float, float, float]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Spread(_Record):
    """How a length along (D, H, W) is distributed over the scans.

    Attributes:
        low: 5th percentile of each axis.
        median: Median of each axis.
        high: 95th percentile of each axis.
    """

    low: Triple
    median: Triple
    high: Triple


class Fingerprint(_Record):
    """What a set of scans is like. Holds no name and nothing of a patient.

    Attributes:
        num_scans: Scans that were found; cases where one gives several.
        num_patients: Patients that they are of, as far as names and headers tell.
        num_measured: Scans whose voxels were looked at: all, or 200 that were evenly chosen.
        num_left_out: Of those that were looked at, how many can't be used; they don't count in what follows.
        modality: "CT" or "MR".
        orientation: Directions in which (D, H, W) grow, that of most scans' slices.
        spacing_mm: Distance of voxels.
        size: Voxels, of the region of each scan that counts.
        field_mm: Its field of view.
        foreground_mm: Bounding box of what is not air.
        background: Median share of voxels that hold the lowest value: high where the skull was stripped or
            the scan was padded.
        low: Median of the scans' lower percentile (all voxels), in the scans' unit.
        high: Median of the scans' upper percentile (tissue), in the scans' unit.
        spread_of_high: 95th by 5th percentile of `high` over the scans: far above 1 where units differ.
        likeness: Mean correlation of two scans (coarse, on one field of view).
        mirrored_likeness: The same with one of them mirrored left to right.
        mirror_error: Standard error of the difference of the two.
    """

    num_scans: int
    num_patients: int
    num_measured: int
    num_left_out: int
    modality: str
    orientation: str
    spacing_mm: Spread
    size: Spread
    field_mm: Spread
    foreground_mm: Spread
    background: float
    low: float
    high: float
    spread_of_high: float
    likeness: float
    mirrored_likeness: float
    mirror_error: float

    @property
    def anisotropy(self) -> float:
        """Largest by smallest median spacing."""
        return max(self.spacing_mm.median) / min(self.spacing_mm.median)


@dataclass(frozen=True)
class _Look:
    """What one scan's voxels show, along (R-L, A-P, I-S) of the body; a thumbnail stays in memory."""

    foreground_mm: Triple
    background: float
    thumbnail: npt.NDArray[np.float32]


@dataclass(frozen=True)
class _LookTask:
    source: Source
    modality: str
    reading: Reading


def take_fingerprint(
    scans: Path, config: PrepareConfig, *, workers: int | None = None, progress: bool = True
) -> Fingerprint:
    """Looks at the scans below a folder, as `prepare` would with this configuration.

    Args:
        scans: Folder or archive of scans.
        config: What narrows the scans, says who the patients are, or settles modality and orientation.
        workers: Processes; default one per core.
        progress: Whether to show progress bars on the terminal.

    Raises:
        UserError: If there are no scans, none can be used, or modalities are mixed.
    """
    with (
        scans_folder(scans, progress=progress) as folder,
        Workers(workers or available_cores(), progress) as pool,
    ):
        sources, damaged, _ = discover(
            folder,
            lambda function, files: pool.map(function, files, [file.name for file in files], "Looking"),
            config.include,
            config.exclude,
        )
        selection = select_scans(folder, sources, config)
        chosen = _evenly(selection.scans, MAX_MEASURED)
        names = [scan.source.name for scan in chosen]
        with tempfile.TemporaryDirectory() as records:
            tasks = [_inspection_task(scan, config, Path(records)) for scan in chosen]
            results = pool.map(inspect_scan, tasks, names, "Checking")
        left_out = [
            *damaged,
            *selection.left_out,
            *(result for result in results if isinstance(result, LeftOut)),
        ]
        accepted = [
            (scan.source, result)
            for scan, result in zip(chosen, results, strict=True)
            if isinstance(result, Inspection)
        ]
        require_scans(accepted, left_out, scans, config.narrows)
        modality, strays = _one_modality(accepted, config)
        accepted = [(source, result) for source, result in accepted if source.name not in strays]
        looks = pool.map(
            _look,
            [_LookTask(source, modality, config.reading) for source, _ in accepted],
            [source.name for source, _ in accepted],
            "Measuring",
        )
    # Of scans that were not looked at as many can't be used as of those that were.
    usable = len(selection.scans) * len(accepted) / len(chosen)
    cases = sum(len(inspection.regions) for _, inspection in accepted) / len(accepted)
    patients = len({scan.patient for scan in selection.scans})
    return _summarise(
        [inspection for _, inspection in accepted],
        looks,
        config,
        {
            "num_scans": round(usable * cases),
            "num_patients": min(round(usable), patients),
            "num_measured": len(accepted),
            "num_left_out": len(chosen) - len(accepted) + len(damaged) + len(selection.left_out),
            "modality": modality,
        },
    )


def _inspection_task(scan: Scan, config: PrepareConfig, records: Path) -> InspectionTask:
    # Without its mask, which changes nothing that a plan looks at but where breasts are.
    return InspectionTask(
        source=scan.source,
        percentiles=config.percentiles,
        records=records,
        reading=config.reading,
        modality=config.modality,
        region=config.region,
        mask=scan.mask if config.region == "breasts" else None,
    )


def _evenly(scans: Sequence[Scan], number: int) -> list[Scan]:
    if len(scans) <= number:
        return list(scans)
    return [scans[index * len(scans) // number] for index in range(number)]


def _one_modality(
    accepted: Sequence[tuple[Source, Inspection]], config: PrepareConfig
) -> tuple[str, set[str]]:
    """The modality, and the names of the few scans that are of another one."""
    modality, strays, _ = choose_modality(accepted, config.modality)
    if config.modality == "auto" and len(strays) > _STRAYS * len(accepted):
        other = "MR" if modality == "CT" else "CT"
        raise UserError(
            f"the scans mix modalities: {len(accepted) - len(strays)} look like {modality} and {len(strays)} "
            f"like {other}; choose with include=... or exclude=..., or set modality={modality} if all are"
        )
    return modality, {stray.name for stray in strays}


def _look(task: _LookTask) -> _Look | LeftOut:
    """Foreground and thumbnail of a scan."""
    try:
        volume = read_source(task.source, task.reading)
    except ScanError as error:
        return LeftOut(task.source.name, error.refusal)
    upright = orient(volume, "RAS")
    array = upright.array
    steps = [max(1, size // _COARSE) for size in array.shape]
    coarse = np.ascontiguousarray(array[tuple(slice(step // 2, None, step) for step in steps)])
    box = foreground_box(Volume(coarse, upright.affine), foreground_threshold(coarse, task.modality))
    extent = coarse.shape if box is None else [part.stop - part.start for part in box]
    sizes = np.minimum(np.array(extent) * steps, array.shape) * np.array(upright.spacing_mm)
    background = float(np.mean(array == array.min()))
    low, high = np.percentile(coarse, (0.5, 99.5))
    clipped = np.clip(coarse, low, high)
    factors = [_THUMBNAIL / size for size in clipped.shape]
    blurred = ndimage.gaussian_filter(clipped, [0.4 / factor if factor < 1 else 0 for factor in factors])
    return _Look(_triple(sizes), background, ndimage.zoom(blurred, factors, order=1, mode="nearest"))


def _summarise(
    inspections: Sequence[Inspection],
    looks: Sequence[_Look | LeftOut],
    config: PrepareConfig,
    counts: dict[str, Any],
) -> Fingerprint:
    codes = config.orientation
    if codes == "auto":
        planes = Counter(slice_plane(np.array(inspection.affine)) for inspection in inspections)
        codes = min(planes, key=lambda plane: (-planes[plane], plane))
    geometry = [
        oriented(region.shape, np.array(inspection.affine), codes, config.cube)
        for inspection in inspections
        for region in inspection.regions
    ]
    size = np.array([shape for shape, _ in geometry], dtype=float)
    spacing = np.array([lengths for _, lengths in geometry])
    wanted = body_axes(centred_affine(codes, (1, 1, 1), (1, 1, 1)))
    seen = [look for look in looks if isinstance(look, _Look)]
    foreground = np.array([np.array(look.foreground_mm)[list(wanted)] for look in seen])
    highs = np.array([inspection.high for inspection in inspections])
    likeness, mirrored, error = mirror_likeness([look.thumbnail for look in seen])
    bottom, top = np.percentile(np.abs(highs), (5, 95))
    return Fingerprint(
        **counts,
        orientation=codes,
        spacing_mm=_spread(spacing),
        size=_spread(size),
        field_mm=_spread(spacing * size),
        foreground_mm=_spread(foreground),
        background=float(np.median([look.background for look in seen])),
        low=float(np.median([inspection.low for inspection in inspections])),
        high=float(np.median(highs)),
        spread_of_high=round(float(top / max(bottom, 1e-9)), 3),
        likeness=likeness,
        mirrored_likeness=mirrored,
        mirror_error=error,
    )


def mirror_likeness(thumbnails: Sequence[npt.NDArray[np.float32]]) -> tuple[float, float, float]:
    """Mean correlation of pairs of scans, the same with one mirrored, and the error of their difference.

    Args:
        thumbnails: Alike in shape, first axis left to right; of different scans.

    Returns:
        The two means, and the standard error of their difference over scans; (0, 0, 0) for fewer than two.
    """
    if len(thumbnails) < 2:
        return 0.0, 0.0, 0.0
    straight = np.stack([_standard(thumbnail) for thumbnail in thumbnails])
    mirrored = np.stack([_standard(thumbnail[::-1]) for thumbnail in thumbnails])
    number = len(thumbnails)
    # Mean over all others of each scan's correlation, without itself.
    same = (straight @ straight.sum(0) - (straight**2).sum(1)) / (number - 1)
    other = (mirrored @ straight.sum(0) - (mirrored * straight).sum(1)) / (number - 1)
    error = float(np.std(same - other, ddof=1) / np.sqrt(number))
    return round(float(same.mean()), 4), round(float(other.mean()), 4), round(error, 4)


def _standard(thumbnail: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Mean 0 and length 1, so that a product of two is their correlation."""
    centred = thumbnail.astype(np.float64).ravel() - thumbnail.mean()
    return centred / max(float(np.linalg.norm(centred)), 1e-12)


def _spread(values: npt.NDArray[np.float64]) -> Spread:
    # Four digits of a millimetre hide the noise of float32 affines.
    low, median, high = np.round(np.percentile(values, (5, 50, 95), axis=0), 4)
    return Spread(low=_triple(low), median=_triple(median), high=_triple(high))


def _triple(values: npt.NDArray[np.float64] | Sequence[float]) -> Triple:
    return float(values[0]), float(values[1]), float(values[2])
