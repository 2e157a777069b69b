"""Bundles of tiny wavelet flows that were never trained."""

from pathlib import Path

import torch
from synthetic_dataset import AFFINE, SPACING_MM, tiny_flow_settings
from torch import nn

from anatogen.dataset.manifest import Grid, Intensity
from anatogen.generators.description import FlowStatistics, WaveletFlowDescription
from anatogen.generators.wavelet_flow import FlowLevels, FlowNetworks, WaveletFlowBundle
from anatogen.models.pyramid import WaveletPyramid

# Odd along D, and spaced so that the plane is halved first: the levels pad and differ in their axes.
SHAPE = (7, 12, 10)


def flow_description(
    *overrides: str, channels: int = 2, shape: tuple[int, int, int] = SHAPE
) -> WaveletFlowDescription:
    """A description whose statistics are made up; of scans without background if there is one channel."""
    settings = tiny_flow_settings(*overrides)
    grid = Grid(shape=shape, spacing_mm=SPACING_MM, affine=AFFINE)
    pyramid = WaveletPyramid(shape, SPACING_MM, settings.pyramid.num_levels)
    levels = range(pyramid.num_levels)
    return WaveletFlowDescription(
        pyramid=settings.pyramid,
        coarse=settings.coarse,
        details=settings.details,
        flow=settings.flow,
        statistics=FlowStatistics(
            image_shift=[-0.1, 0.2][:channels],
            image_scale=[0.4, 0.8][:channels],
            band_scales=[[0.2 + level] * (channels * pyramid.num_bands(level)) for level in levels],
            texture_shift=[-1.0 - level for level in levels],
            texture_scale=[0.5 for _ in levels],
            texture_correlation=[[1.0 if one == other else 0.6 for other in levels] for one in levels],
        ),
        grid=grid,
        intensity=Intensity(modality="MR", low=0.0, high=1.0),
    )


def flow_bundle(*overrides: str, channels: int = 2) -> WaveletFlowBundle:
    """A bundle of random networks, all of whose layers do something."""
    torch.manual_seed(0)
    description = flow_description(*overrides, channels=channels)
    networks = FlowNetworks(FlowLevels(description))
    for parameter in networks.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.05)
    return WaveletFlowBundle(description, networks.eval())


def write_flow_bundle(folder: Path) -> Path:
    """Writes such a bundle."""
    flow_bundle().save(folder)
    return folder
