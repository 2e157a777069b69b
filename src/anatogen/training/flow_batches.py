"""What the levels of a wavelet flow learn from a scan: shifted, deformed and cropped at random."""

from collections.abc import Sequence

import torch
from torch import Tensor

from anatogen.config.settings import WaveletFlowSettings
from anatogen.generators.wavelet_flow import FlowLevels, LevelBatch
from anatogen.models.pyramid import WaveletPyramid
from anatogen.training.deformation import deformed


def level_batches(
    levels: FlowLevels,
    settings: WaveletFlowSettings,
    scans: Tensor,
    generators: Sequence[torch.Generator],
) -> list[LevelBatch]:
    """What each level learns from some scans: shifted by less than a coarse cell, a crop of the finer levels.

    Args:
        levels: The levels.
        settings: The whole configuration.
        scans: float32 (B, 1, D, H, W) in [-1, 1].
        generators: Source of each scan's draws.

    Returns:
        A batch of B for each update: one of each level of details, finest first, then the coarse level's.
    """
    updates = [
        _updates_of_scan(levels, settings, scan, generator)
        for scan, generator in zip(scans.split(1), generators, strict=True)
    ]
    return [
        LevelBatch(*(torch.cat(parts) for parts in zip(*of_update, strict=True)))
        for of_update in zip(*updates, strict=True)
    ]


def _updates_of_scan(
    levels: FlowLevels, settings: WaveletFlowSettings, scan: Tensor, generator: torch.Generator
) -> list[LevelBatch]:
    offset = drawn_offset(levels.pyramid, generator)
    images, bands = _analysed(levels, scan, offset)
    texture = levels.texture(images, bands)
    updates = []
    for level in range(levels.num_levels):
        image = images[level + 1]
        noise = torch.randn(image.shape, generator=generator)
        strength = settings.flow.told_noise * torch.rand(1, generator=generator)
        whole = levels.details(level, image, bands[level], texture, offset, noise, strength)
        updates.append(_cropped(whole, settings.pyramid.crop, generator))
    for _ in range(settings.flow_training.coarse_updates):
        offset = drawn_offset(levels.pyramid, generator)
        is_deformed = bool(torch.rand((), generator=generator) < settings.flow.deformed)
        # A deformed copy is blurred; its texture is that of the scan.
        copy = deformed(scan[0, 0], generator)[None, None] if is_deformed else scan
        images, _ = _analysed(levels, copy, offset)
        noise = torch.randn(texture.shape, generator=generator)
        updates.append(levels.coarse(images[-1], texture, offset, noise, is_deformed))
    return updates


def _analysed(levels: FlowLevels, scan: Tensor, offset: Sequence[int]) -> tuple[list[Tensor], list[Tensor]]:
    d, h, w = offset
    return levels.pyramid.analyse(levels.channels_of(scan[:, :, d:, h:, w:]))


def drawn_offset(pyramid: WaveletPyramid, generator: torch.Generator) -> list[int]:
    """Voxels along (D, H, W) by which a scan is shifted towards the origin: less than a coarse cell."""
    return [_draw(step, generator) for step in pyramid.stride(pyramid.num_levels)]


def _cropped(batch: LevelBatch, side: int, generator: torch.Generator) -> LevelBatch:
    box = [slice(None), slice(None)]
    for size in batch.x_0.shape[2:]:
        start = _draw(max(size - side, 0) + 1, generator)
        box.append(slice(start, start + side))
    return LevelBatch(batch.x_0[tuple(box)], batch.told[tuple(box)], batch.conditions)


def _draw(number: int, generator: torch.Generator) -> int:
    return int(torch.randint(number, (), generator=generator))
