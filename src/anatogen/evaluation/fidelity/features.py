"""Features of scans from frozen networks: of slices in three planes (2D), and of volumes (3D, MedicalNet).

Each scan's features are kept in a cache by the content of the scan and all that decides them, so a second
evaluation, or a scan that is in several sets, costs nothing.
"""

import hashlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional

from anatogen.core.devices import one_thread
from anatogen.core.files import atomic_path, sha256_file, sha256_json
from anatogen.dataset.scan_sets import ScanSet
from anatogen.dataset.workers import available_cores
from anatogen.models.medicalnet import load_medicalnet
from anatogen.models.perceptual import SliceFeatures, load_slice_features
from anatogen.report.progress import Progress, silent

Features = npt.NDArray[np.float32]
# First and one past the last voxel along D, H and W.
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]

NUM_SLICES = 16
# Pixels along a slice's longer side, at least: the network halves slices four times.
_MIN_PIXELS = 128
# Part of the range of intensities below which the mean real scan counts as background.
_BACKGROUND = 0.1
# So few that the network's maps of them stay in a processor's cache.
_SLICES_AT_ONCE = 4
_PLANES = {"S": "axial", "I": "axial", "A": "coronal", "P": "coronal", "R": "sagittal", "L": "sagittal"}
# Changes whenever this file computes other numbers from the same scan.
_VERSION = 1


def foreground_box(real: ScanSet) -> Box:
    """The box that holds all voxels where the mean scan is no background; the whole grid if there are none.

    Args:
        real: The real scans; both sets of a comparison are cut into slices by the box of the real one.
    """
    shown = real.arrays.mean(axis=0) > 2 * _BACKGROUND - 1
    bounds = []
    for axis, length in enumerate(shown.shape):
        used = np.flatnonzero(shown.any(axis=tuple({0, 1, 2} - {axis})))
        bounds.append((int(used[0]), int(used[-1]) + 1) if len(used) else (0, length))
    return bounds[0], bounds[1], bounds[2]


def slice_features(
    scans: ScanSet,
    box: Box,
    cache: Path | None = None,
    progress: Progress = silent,
    device: torch.device | str = "cpu",
    num_slices: int = NUM_SLICES,
) -> dict[str, Features]:
    """Features of slices in three planes, from EfficientNet-lite0 as it comes with pip.

    Slices are evenly spaced inside the box; each is shown whole, with square pixels, enlarged so that its
    longer side has at least 128. The vector of a slice is made of the means over space of the
    network's feature maps at four resolutions (16 + 24 + 40 + 112 channels).

    Args:
        scans: In [-1, 1].
        box: `foreground_box` of the real scans, for both sets.
        cache: Folder that keeps each scan's features, or None.
        progress: Called with (what, done, total) after each scan.
        device: Device of the network.
        num_slices: Slices of each plane, or all where the box holds fewer.

    Returns:
        Plane ("axial", "coronal", "sagittal") -> float32 (N, S, 192), in order of the tensor's axes.

    Raises:
        UserError: If the weights' package is not installed.
    """
    network = load_slice_features().eval()
    names = [_PLANES[code] for code in scans.grid.axis_codes]
    places = [_slice_places(*bounds, num_slices) for bounds in box]
    settings = [_VERSION, "slices", _weights_sha256(network), scans.grid.spacing_mm, places]
    network.to(device)

    def compute(array: Features) -> Features:
        volume = torch.from_numpy(array).to(device)
        parts = []
        for axis, chosen in enumerate(places):
            slices = volume.movedim(axis, 0)[chosen][:, None]
            spacing = [mm for other, mm in enumerate(scans.grid.spacing_mm) if other != axis]
            for batch in _square_pixels(slices, (spacing[0], spacing[1])).split(_SLICES_AT_ONCE):
                maps = network(batch)
                parts.append(torch.cat([found.mean(dim=(2, 3)) for found in maps], dim=1))
        return torch.cat(parts).cpu().numpy()

    # A scan a core, each with one thread: none waits for another.
    workers = available_cores() if torch.device(device).type == "cpu" else 1
    what = f"slice features, {scans.role} scans"
    rows = _cached(scans, compute, settings, cache, progress, what, workers)
    edges = np.cumsum([len(chosen) for chosen in places])[:-1]
    return dict(zip(names, np.split(rows, edges, axis=1), strict=True))


def volume_features(
    scans: ScanSet,
    weights: Path,
    cache: Path | None = None,
    progress: Progress = silent,
    device: torch.device | str = "cpu",
) -> Features:
    """Features of whole scans from MedicalNet's 3D ResNet (Chen et al. 2019), averaged over space.

    Each scan is brought to mean 0 and standard deviation 1 first, so brightness and contrast of whole scans
    are not seen. MedicalNet's authors take both over the voxels above 0 and fill the rest with noise; here
    all voxels count, and nothing is random.

    Args:
        scans: In [-1, 1].
        weights: Published file of ResNet-10, 18, 34 or 50.
        cache: Folder that keeps each scan's features, or None.
        progress: Called with (what, done, total) after each scan.
        device: Device of the network.

    Returns:
        float32 (N, 512), of ResNet-50 (N, 2048).

    Raises:
        UserError: If the file is none of these.
    """
    network = load_medicalnet(weights)
    network.to(device)
    settings = [_VERSION, "medicalnet", sha256_file(weights)]

    def compute(array: Features) -> Features:
        volume = torch.from_numpy(array)[None, None].to(device)
        spread = volume.std()
        standardised = (volume - volume.mean()) / torch.where(spread > 0, spread, 1)
        found: Features = network(standardised)[0].cpu().numpy()
        return found

    return _cached(scans, compute, settings, cache, progress, f"volume features, {scans.role} scans")


def _slice_places(start: int, stop: int, num_slices: int) -> list[int]:
    number = min(num_slices, stop - start)
    return [start + int((place + 0.5) * (stop - start) / number) for place in range(number)]


def _square_pixels(slices: Tensor, spacing_mm: tuple[float, float]) -> Tensor:
    """Slices (B, 1, H, W) at the finer of the two spacings or finer, both sides in the scale of the body."""
    height, width = (size * step for size, step in zip(slices.shape[2:], spacing_mm, strict=True))
    pixel = min(max(height, width) / _MIN_PIXELS, *spacing_mm)
    size = (max(1, round(height / pixel)), max(1, round(width / pixel)))
    return functional.interpolate(slices, size=size, mode="bilinear", align_corners=False)


def _weights_sha256(network: SliceFeatures) -> str:
    digest = hashlib.sha256()
    for value in network.state_dict().values():
        digest.update(value.numpy().tobytes())
    return digest.hexdigest()


def _cached(
    scans: ScanSet,
    compute: Callable[[Features], Features],
    settings: list[object],
    cache: Path | None,
    progress: Progress,
    what: str,
    workers: int = 1,
) -> Features:
    """What `compute` makes of each scan, stacked; from the cache where it is known already."""

    @torch.inference_mode()
    def features(array: Features, digest: str) -> Features:
        file = None if cache is None else cache / f"{sha256_json([digest, *settings])}.npy"
        if file is not None and file.is_file():
            known: Features = np.load(file, allow_pickle=False)
            return known
        found = compute(array)
        if file is not None:
            with atomic_path(file) as temporary, temporary.open("wb") as stream:
                np.save(stream, found, allow_pickle=False)
        return found

    rows: list[Features] = []
    with one_thread() if workers > 1 else nullcontext(), ThreadPoolExecutor(workers) as pool:
        try:
            for found in pool.map(features, scans.arrays, scans.hashes):
                rows.append(found)
                progress(what, len(rows), len(scans))
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return np.stack(rows)
