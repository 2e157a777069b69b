"""Which networks for a grid: compression along each axis, codes, wavelet, levels of the denoiser."""

import math
from collections.abc import Sequence
from typing import Any

from anatogen.dataset.manifest import Grid
from anatogen.models.denoiser import halving_strides
from anatogen.models.vqgan import latent_shape
from anatogen.planning.grid_rules import times

# By ablation (docs/decisions/0007), on a grid whose shortest latent axis has 5 cells.
_COMPRESSION = 8
_MIN_CELLS = 5
# A cell of so few voxels does with one code (docs/decisions/0004).
_VOXELS_OF_ONE_CODE = 8
# Attention takes time in proportion to the square of the cells.
_MAX_ATTENDED_CELLS = 4096
_MULTIPLIERS = (1, 2, 2, 4)


def choose_networks(grid: Grid, reasons: list[str]) -> dict[str, Any]:
    """Nested values of `Settings` for a grid; `reasons` gets a line for each decision."""
    compression = compression_of(grid)
    voxels = math.prod(compression)
    groups = 4 if voxels > _VOXELS_OF_ONE_CODE else 1
    wavelet = 1 if max(compression) > 1 else 0
    cells = latent_shape(grid.shape, compression)
    cell_mm = [length * factor for length, factor in zip(grid.spacing_mm, compression, strict=True)]
    # Many small cells are gathered, so that the widest convolutions run on fewer.
    patch = 2 if max(compression) == 2 and min(cells) >= 2 * _MIN_CELLS else 1
    gathered = [math.ceil(size / patch) for size in cells]
    levels = 2
    while levels < len(_MULTIPLIERS) and _attended(gathered, cell_mm, levels) > _MAX_ATTENDED_CELLS:
        levels += 1
    if set(compression) == {_COMPRESSION}:
        why = "8 gave the best samples for the time by ablation"
    else:
        why = (
            "less than 8 along thick slices, so that cells are nearly cubes, and along short axes, which "
            f"keep {_MIN_CELLS} cells"
        )
    reasons.append(f"compression {times(compression)}, cells of {times(cell_mm)} mm: {why}")
    reasons.append(
        f"{groups} code{'s' if groups > 1 else ''} for a cell of {voxels} voxels: "
        + ("one holds too little of so many" if groups > 1 else "one holds so few")
    )
    if wavelet:
        reasons.append("1 wavelet level at either end: ten times the steps in equal time")
    reasons.append(
        f"denoiser of {levels} levels{' on cells gathered by 2' if patch == 2 else ''}: the coarsest attends "
        f"over {_attended(gathered, cell_mm, levels):,} cells, at most {_MAX_ATTENDED_CELLS:,}; widths "
        "are the preset's, for twice as wide was worse in equal time"
    )
    return {
        "autoencoder": {"compression": list(compression), "num_groups": groups, "wavelet_levels": wavelet},
        "denoiser": {"multipliers": list(_MULTIPLIERS[:levels]), "patch": patch},
    }


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
