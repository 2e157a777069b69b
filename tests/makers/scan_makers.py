"""Scans with known content, for the tests of the data side."""

from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from anatogen.io.volume import Volume


def oblique_affine(seed: int, spacing: tuple[float, float, float] = (3.0, 0.7, 0.9)) -> np.ndarray:
    """A rotated, possibly mirrored grid somewhere in the scanner; voxel (d, h, w, 1) to RAS+ mm."""
    generator = np.random.default_rng(seed)
    directions = Rotation.random(rng=generator).as_matrix() * [1, 1, (-1) ** seed]
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = generator.uniform(-200, 200, 3)
    return affine


def world(affine: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """RAS+ millimetres of every voxel, (3, D, H, W)."""
    index = np.indices(shape).reshape(3, -1)
    return (affine[:3, :3] @ index + affine[:3, 3:]).reshape(3, *shape)


def voxels_at(affine: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Undoes `world`: where places (3, D, H, W) lie in a scan's voxels, as numbers of any size."""
    index = np.linalg.solve(affine[:3, :3], places.reshape(3, -1) - affine[:3, 3:])
    return index.reshape(places.shape)


def pattern(points: np.ndarray, scale_mm: float = 40.0) -> np.ndarray:
    """A smooth function of the place in the world, with another value in every direction."""
    x, y, z = points / scale_mm
    return (np.sin(x) + 0.7 * np.cos(1.3 * y + 0.5) + 0.4 * np.sin(0.8 * z + x)).astype(np.float32)


def pattern_volume(affine: np.ndarray, shape: tuple[int, int, int], scale_mm: float = 40.0) -> Volume:
    return Volume(pattern(world(affine, shape), scale_mm), affine)


def head(seed: int = 0, shape: tuple[int, int, int] = (20, 24, 18), spacing: float = 1.0) -> Volume:
    """Something like an MR head: air, a bright ellipsoid with structure, noise of its own seed."""
    generator = np.random.default_rng(seed)
    affine = np.zeros((4, 4))
    affine[[2, 1, 0, 3], [0, 1, 2, 3]] = [spacing, -spacing, -spacing, 1]
    affine[:3, 3] = generator.uniform(-5, 5, 3)
    grid = np.stack(np.meshgrid(*(np.linspace(-1, 1, size) for size in shape), indexing="ij"))
    inside = (grid**2).sum(axis=0) < 0.7
    tissue = 500 + 200 * np.sin(4 * grid[0] + seed) + 100 * np.cos(5 * grid[1] * grid[2])
    array = np.where(inside, tissue, 10) + generator.normal(0, 5, shape)
    return Volume(np.clip(np.rint(array), 0, None).astype(np.float32), affine)


def ct_head(seed: int = 0) -> Volume:
    """The same in Hounsfield units: air at -1000, tissue around 50."""
    volume = head(seed)
    return Volume(np.where(volume.array < 100, -1000 + volume.array, volume.array - 450), volume.affine)


def same_place(first: Volume, second: Volume) -> float:
    """Largest distance in mm between voxels of one index in two scans of one shape."""
    assert first.array.shape == second.array.shape
    shape = first.array.shape
    distance = np.linalg.norm(world(first.affine, shape) - world(second.affine, shape), axis=0)
    return float(distance.max())


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """Content of every file below a folder by relative path."""
    return {
        file.relative_to(folder).as_posix(): file.read_bytes()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
