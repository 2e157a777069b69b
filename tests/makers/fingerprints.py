"""Fingerprints of sets of scans, made up, and costs that are easy to reckon with."""

import math

import numpy as np

from anatogen.config.settings import GeneratorSettings, WaveletFlowSettings
from anatogen.dataset.manifest import Grid
from anatogen.planning.fingerprint import Fingerprint, Spread


def spread(median, low=None, high=None):
    return Spread(low=low or median, median=median, high=high or median)


def fingerprint(spacing, size, foreground=None, **values):
    """Of scans that are all alike: spacing in mm, size in voxels and foreground in mm along (D, H, W)."""
    field = tuple(float(length) for length in np.array(spacing) * size)
    made = {
        "num_scans": 1000,
        "num_patients": 1000,
        "num_measured": 200,
        "num_left_out": 0,
        "num_label_maps": 0,
        "modality": "MR",
        "orientation": "SPL",
        "spacing_mm": spread(spacing),
        "size": spread(size),
        "field_mm": spread(field),
        "foreground_mm": spread(foreground or field),
        "background": 0.0,
        "low": 0.0,
        "high": 1000.0,
        "spread_of_high": 1.0,
        "likeness": 0.6,
        "mirrored_likeness": 0.6,
        "mirror_error": 0.01,
    }
    return Fingerprint(**made | values)


# The paper's data sets as their descriptions have them.
MRNET = fingerprint(
    (1.0, 1.0, 1.0), (30.0, 256.0, 256.0), num_scans=1250, num_patients=1250, orientation="RIP"
)
ADNI = fingerprint(
    (1.0, 1.0, 1.0), (256.0, 256.0, 170.0), (150.0, 180.0, 150.0), background=0.75, num_scans=998
)
DUKE = fingerprint(
    (2.0, 0.7, 0.7), (170.0, 480.0, 480.0), (300.0, 250.0, 330.0), num_scans=922, num_patients=922
)
LIDC = fingerprint(
    (1.5, 0.7, 0.7),
    (230.0, 512.0, 512.0),
    (330.0, 260.0, 350.0),
    modality="CT",
    high=60.0,
    mirrored_likeness=0.5,
    num_scans=1018,
    num_patients=1010,
)


def memory_gb(stage: str, settings: GeneratorSettings, grid: Grid) -> float:
    """0.5 GB and 200 bytes a voxel of an autoencoder's batch, 3 kB a cell of a denoiser's.

    Of a flow's, 20 MB a scan of the batch, which it learns from in crops, and 20 bytes a voxel of a preview.
    """
    voxels = math.prod(grid.shape)
    batch = getattr(settings, f"{stage}_training").batch_size
    if isinstance(settings, WaveletFlowSettings):
        return 0.5 + 2e-8 * voxels + 0.02 * batch
    if stage == "autoencoder":
        return 0.5 + 2e-7 * voxels * batch
    return 0.5 + 3e-6 * voxels / math.prod(settings.autoencoder.compression) * batch


def seconds_per_step(stage: str, settings: GeneratorSettings, grid: Grid) -> float:
    """Of a GPU: 10 ns a voxel of a batch."""
    return 1e-8 * math.prod(grid.shape) * getattr(settings, f"{stage}_training").batch_size
