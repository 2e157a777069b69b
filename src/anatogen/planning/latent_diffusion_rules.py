"""The rules of a latent diffusion model: compression along each axis, codes, denoiser, deformed copies."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from anatogen.config.settings import LatentDiffusionSettings
from anatogen.dataset.manifest import Grid
from anatogen.models.denoiser import halving_strides
from anatogen.models.vqgan import latent_shape
from anatogen.planning.decisions import Decision, Why
from anatogen.planning.family_rules import FEW_SCANS, FamilyRules
from anatogen.planning.fingerprint import Fingerprint
from anatogen.report.numbers import times

# By ablation (docs/decisions/0007), on a grid whose shortest latent axis has 5 cells.
_COMPRESSION = 8
_MIN_CELLS = 5
# A cell of so few voxels does with one code (docs/decisions/0004).
_VOXELS_OF_ONE_CODE = 8
# Attention takes time in proportion to the square of the cells.
_MAX_ATTENDED_CELLS = 4096
_MULTIPLIERS = (1, 2, 2, 4)
# A moving average over 1,000 steps needs several thousand.
_LONG_TRAINING = 5_000
# After so many passes, copies must be expected.
_PASSES_THAT_COPIED = 187
_DEFORMATIONS = 64


def choose_networks(grid: Grid) -> list[Decision]:
    """Chooses the values of `LatentDiffusionSettings` that depend on the grid alone."""
    compression = compression_of(grid)
    voxels = math.prod(compression)
    cells = latent_shape(grid.shape, compression)
    cell_mm = [length * factor for length, factor in zip(grid.spacing_mm, compression, strict=True)]
    is_usual = set(compression) == {_COMPRESSION}
    facts = {"compression": times(compression), "cell": times(cell_mm), "least": _MIN_CELLS}
    found = [
        Decision(
            Why.COMPRESSION if is_usual else Why.COMPRESSION_LESS,
            facts,
            {"autoencoder": {"compression": list(compression)}},
        )
    ]
    groups = 4 if voxels > _VOXELS_OF_ONE_CODE else 1
    found.append(
        Decision(
            Why.SEVERAL_CODES if groups > 1 else Why.ONE_CODE,
            {"codes": groups, "voxels": voxels},
            {"autoencoder": {"num_groups": groups, "wavelet_levels": 0}},
        )
    )
    if max(compression) > 1:
        found.append(Decision(Why.WAVELET, values={"autoencoder": {"wavelet_levels": 1}}))
    # Many small cells are gathered, so that the widest convolutions run on fewer.
    patch = 2 if max(compression) == 2 and min(cells) >= 2 * _MIN_CELLS else 1
    gathered = [math.ceil(size / patch) for size in cells]
    levels = 2
    while levels < len(_MULTIPLIERS) and _attended(gathered, cell_mm, levels) > _MAX_ATTENDED_CELLS:
        levels += 1
    facts = {
        "levels": levels,
        "gathering": f" on cells gathered by {patch}" if patch > 1 else "",
        "attended": _attended(gathered, cell_mm, levels),
        "most": _MAX_ATTENDED_CELLS,
    }
    values = {"denoiser": {"multipliers": list(_MULTIPLIERS[:levels]), "patch": patch}}
    found.append(Decision(Why.DENOISER, facts, values))
    return found


def compression_of(grid: Grid) -> tuple[int, int, int]:
    """Voxels per latent cell along (D, H, W): cells that are nearly cubes, and at least 5 of them an axis."""
    finest = min(grid.spacing_mm)
    factors = []
    for size, spacing in zip(grid.shape, grid.spacing_mm, strict=True):
        factor = max(2, _COMPRESSION // 2 ** round(math.log2(spacing / finest)))
        while factor > 1 and size < _MIN_CELLS * factor:
            factor //= 2
        factors.append(factor)
    return factors[0], factors[1], factors[2]


def _attended(cells: Sequence[int], cell_mm: Sequence[float], levels: int) -> int:
    """Cells of the denoiser's coarsest level."""
    sizes = list(cells)
    for stride in halving_strides(cells, cell_mm, levels - 1):
        sizes = [math.ceil(size / step) for size, step in zip(sizes, stride, strict=True)]
    return math.prod(sizes)


def _deformations(
    fingerprint: Fingerprint, given: Mapping[str, Any], given_training: Mapping[str, Any]
) -> list[Decision]:
    settled = given_training.get("training", {}).get("deformations")
    if settled is None and fingerprint.num_scans >= FEW_SCANS:
        return []
    copies = _DEFORMATIONS if settled is None else int(settled)
    why = Why.DEFORMATIONS if settled is None else Why.DEFORMATIONS_SETTLED
    facts = {"copies": copies, "num_scans": fingerprint.num_scans}
    return [Decision(why, facts, {"training": {"deformations": copies}})]


def _averages(steps: Mapping[str, int], given_training: Mapping[str, Any]) -> list[Decision]:
    if "ema_decay" in given_training.get("diffusion", {}) or steps["diffusion"] >= _LONG_TRAINING:
        return []
    return [Decision(Why.SHORT_AVERAGE, values={"diffusion": {"ema_decay": 0.995}})]


def _most_steps(scans: int, settings: LatentDiffusionSettings) -> dict[str, int]:
    # The last one whose passes are fewer.
    return {
        "diffusion": max(
            1, math.ceil(_PASSES_THAT_COPIED * scans / settings.diffusion_training.batch_size) - 1
        )
    }


def _copies(
    scans: int, steps: Mapping[str, int], settings: LatentDiffusionSettings, are_held_out: bool
) -> list[Decision]:
    passes = steps["diffusion"] * settings.diffusion_training.batch_size / scans
    if passes < _PASSES_THAT_COPIED:
        return [Decision(Why.MAY_STORE_SOME, {"scans": scans})] if scans < FEW_SCANS else []
    facts = {"scans": scans, "passes": passes, "copied": _PASSES_THAT_COPIED}
    return [Decision(Why.MAY_STORE, facts)]


def _sample_seconds(settings: LatentDiffusionSettings, others: Mapping[str, float]) -> float:
    return others["denoise"] * settings.diffusion.sampling_steps + others["decode"]


LATENT_DIFFUSION = FamilyRules(
    reference="latent_diffusion",
    # Below these numbers of steps no training was seen to give anatomy.
    min_steps={"autoencoder": 2_000, "diffusion": 4_000},
    smaller_batches=((2, 2), (1, 2), (1, 1)),
    batches=Why.BATCHES,
    too_short=Why.TOO_SHORT,
    networks=choose_networks,
    against_copies=_deformations,
    averages=_averages,
    most_steps=_most_steps,
    copies=_copies,
    sample_seconds=_sample_seconds,
)
