"""The fingerprint of a set of scans: all that the plan's rules look at, and nothing of a patient."""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, ConfigDict

from anatogen.dataset.common_grid import choose_modality, regions_along, usual_plane
from anatogen.dataset.prepare_config import PrepareConfig
from anatogen.dataset.recipes.recipe import Scan
from anatogen.dataset.records import ScanRecord, float16_cube
from anatogen.dataset.selection import require_scans
from anatogen.dataset.survey import survey_folder, usable_scans
from anatogen.dataset.workers import Workers
from anatogen.io.archives import scans_folder
from anatogen.io.geometry import body_axes, centred_affine, slice_plane, triple

# Scans whose voxels are read, evenly chosen: medians of more would hardly differ.
MAX_MEASURED = 200

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
        num_left_out: Scans that were looked at and can't be used; they don't count in what follows.
        num_label_maps: Label and probability maps among what was looked at, which are no scans.
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
    num_label_maps: int
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


def take_fingerprint(
    scans: Path,
    config: PrepareConfig,
    *,
    records: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> Fingerprint:
    """Looks at the scans below a folder, as `prepare` would with this configuration.

    Args:
        scans: Folder or archive of scans.
        config: What narrows the scans, says who the patients are, or settles modality and orientation.
        records: Folder of records of scans, which then are all looked at; default nowhere, and 200 of them.
        workers: Processes; default one per core.
        progress: Whether to show progress bars on the terminal.

    Raises:
        UserError: If there are no scans, none can be used, or modalities are mixed.
    """
    with (
        scans_folder(scans, progress=progress) as folder,
        Workers(workers, progress) as pool,
        nullcontext(records) if records is not None else TemporaryDirectory() as place,
    ):
        survey = survey_folder(folder, config, Path(place), pool)
        selection = survey.selection
        chosen = selection.scans if records is not None else _evenly(selection.scans, MAX_MEASURED)
        # Masks change nothing that a plan looks at but where breasts are.
        by_mask = config.region == "breasts_by_mask"
        looked_at = [scan if by_mask else replace(scan, mask=None) for scan in chosen]
        usable, refused = usable_scans(survey, looked_at, pool)
    left_out = [*survey.left_out, *refused]
    require_scans(usable, left_out, scans, config.narrows)
    modality, strays, _ = choose_modality(usable, config.modality)
    names = {stray.name for stray in strays}
    usable = [scan for scan in usable if scan.name not in names]
    maps = {scan.name for scan in refused if scan.refusal.is_of_map}
    # Of scans that were not looked at as many can't be used as of those that were.
    num_usable = len(selection.scans) * len(usable) / len(chosen)
    cases = sum(len(scan.record.regions) for scan in usable) / len(usable)
    patients = len({scan.patient for scan in selection.scans if scan.source.name not in maps})
    return _summarise(
        [scan.record for scan in usable],
        config,
        modality,
        {
            "num_scans": round(num_usable * cases),
            "num_patients": min(round(num_usable), patients),
            "num_measured": len(usable),
            "num_left_out": len(chosen) - len(usable) - len(maps) + len(survey.left_out),
            "num_label_maps": len(maps),
        },
    )


def _evenly(scans: Sequence[Scan], number: int) -> list[Scan]:
    if len(scans) <= number:
        return list(scans)
    return [scans[index * len(scans) // number] for index in range(number)]


def _summarise(
    records: Sequence[ScanRecord], config: PrepareConfig, modality: str, counts: dict[str, int]
) -> Fingerprint:
    codes = config.orientation
    if codes == "auto":
        codes, _ = usual_plane(slice_plane(np.array(record.affine)) for record in records)
    size, spacing = regions_along(records, codes, config.cube)
    wanted = body_axes(centred_affine(codes, (1, 1, 1), (1, 1, 1)))
    foreground = np.array([np.array(record.foreground_mm[modality])[list(wanted)] for record in records])
    highs = np.array([record.high for record in records])
    likeness, mirrored, error = mirror_likeness([float16_cube(record.posture) for record in records])
    bottom, top = np.percentile(np.abs(highs), (5, 95))
    return Fingerprint(
        **counts,
        modality=modality,
        orientation=codes,
        spacing_mm=_spread(spacing),
        size=_spread(size),
        field_mm=_spread(spacing * size),
        foreground_mm=_spread(foreground),
        background=float(np.median([record.background for record in records])),
        low=float(np.median([record.low for record in records])),
        high=float(np.median(highs)),
        spread_of_high=round(float(top / max(bottom, 1e-9)), 3),
        likeness=likeness,
        mirrored_likeness=mirrored,
        mirror_error=error,
    )


def mirror_likeness(postures: Sequence[npt.NDArray[np.float16]]) -> tuple[float, float, float]:
    """Mean correlation of pairs of scans, the same with one mirrored, and the error of their difference.

    Args:
        postures: Results of `measure_posture`: alike in shape, first axis left to right, mean 0 and length 1;
            of different scans.

    Returns:
        The two means, and the standard error of their difference over scans; (0, 0, 0) for fewer than two.
    """
    number = len(postures)
    if number < 2:
        return 0.0, 0.0, 0.0
    straight = np.stack([posture.astype(np.float64).ravel() for posture in postures])
    mirrored = np.stack([posture[::-1].astype(np.float64).ravel() for posture in postures])
    # Mean over all others of each scan's correlation, without itself.
    same = (straight @ straight.sum(0) - (straight**2).sum(1)) / (number - 1)
    other = (mirrored @ straight.sum(0) - (mirrored * straight).sum(1)) / (number - 1)
    error = float(np.std(same - other, ddof=1) / np.sqrt(number))
    return round(float(same.mean()), 4), round(float(other.mean()), 4), round(error, 4)


def _spread(values: npt.NDArray[np.float64]) -> Spread:
    # Four digits of a millimetre hide the noise of float32 affines.
    low, median, high = np.round(np.percentile(values, (5, 50, 95), axis=0), 4).tolist()
    return Spread(low=triple(low), median=triple(median), high=triple(high))
