"""What the levels of a wavelet flow learn from a scan: shifted, deformed and cropped at random."""

from collections.abc import Sequence

import torch
from torch import Tensor

from anatogen.config.settings import FlowSettings, WaveletFlowSettings
from anatogen.generators.wavelet_flow import FlowLevels, LevelBatch
from anatogen.models.pyramid import Triple, WaveletPyramid
from anatogen.training.deformation import deformed

# Many updates on small crops teach more at first than few on large ones. Later the network must have seen
# what lies further away, as it will in sampling.
_EARLY_CROP = 8
_EARLY_STEPS = 3_000


def level_batches(
    levels: FlowLevels,
    settings: WaveletFlowSettings,
    scans: Tensor,
    step: int,
    generators: Sequence[torch.Generator],
) -> list[LevelBatch]:
    """What each level learns from some scans: shifted by less than a coarse cell, a crop of the finer levels.

    Args:
        levels: The levels.
        settings: The whole configuration.
        scans: float32 (B, 1, D, H, W) in [-1, 1].
        step: Steps before this one; crops are smaller in the first ones.
        generators: Source of each scan's draws.

    Returns:
        A batch of B for each level, finest first.
    """
    crop = min(settings.pyramid.crop, _EARLY_CROP) if step < _EARLY_STEPS else settings.pyramid.crop
    by_scan = [
        _levels_of_scan(levels, settings.flow, crop, scan, generator)
        for scan, generator in zip(scans.split(1), generators, strict=True)
    ]
    return [
        LevelBatch(*(torch.cat(parts) for parts in zip(*of_level, strict=True)))
        for of_level in zip(*by_scan, strict=True)
    ]


def _levels_of_scan(
    levels: FlowLevels, flow: FlowSettings, crop: int, scan: Tensor, generator: torch.Generator
) -> list[LevelBatch]:
    offset = drawn_offset(levels.pyramid, generator)
    images, bands = _analysed(levels, scan, offset)
    texture = levels.texture(images, bands)
    found = []
    for level in range(levels.num_levels):
        image = images[level + 1]
        noise = torch.randn(image.shape, generator=generator)
        strength = flow.told_noise * torch.rand(1, generator=generator)
        whole = levels.details(level, image, bands[level], texture, offset, noise, strength)
        found.append(_cropped(whole, crop, generator))
    is_deformed = bool(torch.rand((), generator=generator) < flow.deformed)
    if is_deformed:
        # A deformed copy is blurred; its texture is that of the scan.
        images, _ = _analysed(levels, deformed(scan[0, 0], generator)[None, None], offset)
    noise = torch.randn(texture.shape, generator=generator)
    return [*found, levels.coarse(images[-1], texture, offset, noise, is_deformed)]


def _analysed(levels: FlowLevels, scan: Tensor, offset: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    d, h, w = offset
    return levels.pyramid.analyse(levels.channels_of(scan[:, :, d:, h:, w:]))


def drawn_offset(pyramid: WaveletPyramid, generator: torch.Generator) -> list[int]:
    """Voxels along (D, H, W) by which a scan is shifted towards the origin: less than a coarse cell."""
    return [_draw(step, generator) for step in pyramid.stride(pyramid.num_levels)]


def crop_shape(cells: Sequence[int], side: int) -> Triple:
    """The most cube-like box within a level that has as many cells as a cube of a side, or all it has.

    Args:
        cells: (d, h, w) of the level.
        side: Of the cube.
    """
    found, number = [0, 0, 0], side**3
    for axes_left, axis in zip((3, 2, 1), sorted(range(3), key=lambda axis: cells[axis]), strict=True):
        # The root of a cube's cells may come out a hair below its side.
        found[axis] = min(cells[axis], int(number ** (1 / axes_left) + 1e-9))
        number //= found[axis]
    return found[0], found[1], found[2]


def _cropped(batch: LevelBatch, side: int, generator: torch.Generator) -> LevelBatch:
    box = [slice(None), slice(None)]
    cells = batch.x_0.shape[2:]
    for size, length in zip(cells, crop_shape(cells, side), strict=True):
        start = _draw(size - length + 1, generator)
        box.append(slice(start, start + length))
    return LevelBatch(batch.x_0[tuple(box)], batch.told[tuple(box)], batch.conditions)


def _draw(number: int, generator: torch.Generator) -> int:
    return int(torch.randint(number, (), generator=generator))
