"""The embedded demo population: brains made from the MNI152 template, for a first run without own scans.

Writes scans that `prepare` reads like any others. Each brain is the template bent, aged and given a
contrast of its own; the template itself is not redistributed but read from the installed nilearn package.
"""

import gzip
import importlib.util
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial.transform import Rotation

from anatogen.core.errors import UserError
from anatogen.core.files import atomic_path
from anatogen.core.processes import SPAWN
from anatogen.report.progress import shown_progress

FIELD_OF_VIEW_MM = 192.0
# Voxels along each side of a scan, and of the grid that it is averaged from: reading the template every 6 mm
# would alias sulci.
SIZE = 32
_FINE_SIZE = 64
# Of the lateral ventricles, in MNI space: their centre, and how far their growth is felt along each axis.
_VENTRICLES_MM = np.array([0.0, -14.0, 14.0])
_VENTRICLES_REACH_MM = np.array([24.0, 36.0, 22.0])

Array = npt.NDArray[np.float32]
Points = npt.NDArray[np.float64]


@dataclass(frozen=True)
class _Template:
    """The MNI152 template, cropped to the brain.

    Attributes:
        maps: float32, (4, X, Y, Z) on a 1 mm RAS+ grid, low-passed by 1 mm: the fractions of grey matter,
            white matter and CSF in [0, 1], then the T1 texture that they do not explain (1 = the contrast
            between white and grey matter).
        inside: bool, (X, Y, Z): the brain with a margin of 3 mm.
        origin_mm: float64, (3,): place of the first voxel in MNI space.
        centre_mm: float64, (3,): centre of the brain's bounding box in MNI space.
    """

    maps: Array
    inside: npt.NDArray[np.bool_]
    origin_mm: Points
    centre_mm: Points


def make_brains(out: Path, count: int, *, progress: bool = True) -> None:
    """Writes `brain_0000.nii.gz`, `brain_0001.nii.gz`, ... into a folder; what is there already is kept.

    Brain number i depends on i alone, never on `count` or on the number of processors.
    Work is spread over processes.

    Args:
        out: The folder; made if it is missing.
        count: Number of brains.
        progress: Whether to show a progress bar.

    Raises:
        UserError: If nilearn is not installed.
    """
    _template_folder()
    missing = [index for index in range(count) if not _path(out, index).exists()]
    if not missing:
        return
    # Each process spends a second on the template, so many would not pay.
    workers = min(len(missing), os.cpu_count() or 1, 8)
    with ProcessPoolExecutor(workers, mp_context=SPAWN) as pool, shown_progress(progress) as display:
        for number, _ in enumerate(pool.map(partial(_write_brain, out), missing), 1):
            display("making brains", number, len(missing))


def make_brain(index: int) -> npt.NDArray[np.int16]:
    """One brain of the population: a skull-stripped T1-weighted scan, background 0.

    Args:
        index: Number of the brain in the population, from 0.

    Returns:
        int16, (32, 32, 32) in RAS+ order, in the arbitrary unit that MR scanners use; its brightest tissue
        lies between about 200 and 2,000.

    Raises:
        UserError: If nilearn is not installed.
    """
    template = _load_template()
    generator = np.random.default_rng([0, index])
    age = generator.uniform()
    voxels, inside = _bent_grid(template, age, generator)
    grey, white, csf, texture = (
        ndimage.map_coordinates(channel, voxels[:, inside], order=1, prefilter=False)
        for channel in template.maps
    )
    # Atrophy: fluid grows where fluid is, at the cost of the cortex beside it.
    widening = np.clip(0.1 + 1.5 * age + generator.normal(0, 0.4), -0.5, 2.5)
    grown = np.clip(csf * widening, -csf, grey)
    grey, csf = grey - grown, csf + grown

    # T1 weighting: white matter is brightest (1), fluid darkest.
    grey_level, csf_level = generator.uniform(0.55, 0.72), generator.uniform(0.12, 0.28)
    detail = generator.uniform(0.4, 1.0) * (1 - grey_level) * texture
    signal = np.zeros(inside.shape)
    signal[inside] = np.maximum(white + grey * grey_level + csf * csf_level + detail, 0)
    signal *= np.exp(_smooth_field(generator, 2, 0.06))
    brain = np.zeros_like(signal)
    brain[inside] = grey + white + csf

    scan, cover = _block_mean(signal), _block_mean(brain)
    noise = generator.normal(0, generator.uniform(0.004, 0.012), scan.shape)
    scan = np.maximum(scan + noise * cover, 0)
    unit = np.exp(generator.uniform(np.log(200), np.log(1800)))
    return np.rint(scan * unit).astype(np.int16)


def _bent_grid(
    template: _Template, age: float, generator: np.random.Generator
) -> tuple[Points, npt.NDArray[np.bool_]]:
    """Where in the template each fine voxel of the scan looks, and whether that may be brain.

    Returns:
        Template voxel indices, float64 (3, 64, 64, 64), and bool (64, 64, 64).
    """
    axis = (np.arange(_FINE_SIZE) + 0.5) * (FIELD_OF_VIEW_MM / _FINE_SIZE) - FIELD_OF_VIEW_MM / 2
    grid = np.stack(np.meshgrid(axis, axis, axis, indexing="ij"))
    # MNI152 is larger than most heads, hence the mean below 1.
    scale = generator.normal(0.93, 0.035) * generator.normal(1, 0.025, 3)
    angles = np.clip(generator.normal(0, 3, 3), -7, 7)
    turn = Rotation.from_euler("xyz", angles, degrees=True).as_matrix()
    shift = np.clip(generator.normal(0, 1.5, 3), -3, 3)
    # Lobes of another shape, and gyri that lie elsewhere.
    bend = np.stack([_smooth_field(generator, 4, 3.0) for _ in range(3)])
    bend += np.stack([_smooth_field(generator, 10, 1.8) for _ in range(3)])
    growth = np.clip(-0.2 + 0.7 * age + generator.normal(0, 0.12), -0.4, 0.6)
    while True:
        points = np.einsum("ij,jxyz->ixyz", turn / scale, grid - _column(shift)) + bend
        points += _column(template.centre_mm)
        # Reading nearer to the centre of the lateral ventricles than the voxel lies shows them larger.
        offset = points - _column(_VENTRICLES_MM)
        weight = np.exp(-0.5 * ((offset / _column(_VENTRICLES_REACH_MM)) ** 2).sum(axis=0))
        voxels = points - growth * weight * offset - _column(template.origin_mm)
        inside = _lookup(template.inside, voxels)
        if not any(np.take(inside, (0, -1), axis=number).any() for number in range(3)):
            return voxels, inside
        # No scan may cut its brain: a large one shrinks until it fits.
        scale *= 0.97


def _column(vector: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A vector (3,) shaped to broadcast over (3, X, Y, Z)."""
    return vector[:, None, None, None]


def _smooth_field(generator: np.random.Generator, intervals: int, deviation: float) -> Points:
    """A random cubic B-spline field, float64 (64, 64, 64), of about the standard deviation given."""
    control = generator.normal(0, 1, (intervals + 3,) * 3)
    distance = np.abs(np.linspace(0, intervals, _FINE_SIZE)[:, None] - np.arange(-1, intervals + 2))
    far = np.clip(2 - distance, 0, None) ** 3 / 6
    basis = np.where(distance < 1, 2 / 3 - distance**2 + distance**3 / 2, far)
    # Averaging neighbouring controls shrinks their deviation by this much along each axis.
    basis /= np.sqrt((basis**2).sum(axis=1).mean())
    # One axis at a time, and without BLAS, whose threads would fight those of the other processes.
    field: Points = deviation * control
    for _ in range(3):
        field = np.einsum("ax,xyz->yza", basis, field)
    return field


def _lookup(inside: npt.NDArray[np.bool_], voxels: Points) -> npt.NDArray[np.bool_]:
    """Value of the mask at the nearest voxel, False outside the array."""
    nearest = np.rint(voxels).astype(np.int32)
    within = ((nearest >= 0) & (nearest < _column(np.array(inside.shape)))).all(axis=0)
    found = np.zeros(within.shape, dtype=bool)
    found[within] = inside[tuple(nearest[:, within])]
    return found


def _block_mean(array: Points) -> Points:
    factor = _FINE_SIZE // SIZE
    return np.asarray(array.reshape(SIZE, factor, SIZE, factor, SIZE, factor).mean(axis=(1, 3, 5)))


def _path(out: Path, index: int) -> Path:
    return out / f"brain_{index:04d}.nii.gz"


def _write_brain(out: Path, index: int) -> None:
    spacing = FIELD_OF_VIEW_MM / SIZE
    affine = np.diag([spacing, spacing, spacing, 1.0])
    affine[:3, 3] = -(SIZE - 1) / 2 * spacing
    image = nib.Nifti1Image(make_brain(index), affine)
    image.header.set_xyzt_units("mm")
    with (
        atomic_path(_path(out, index)) as temporary,
        temporary.open("wb") as file,
        # Neither time nor name in the gzip header: equal brains are equal bytes, and equal hashes.
        gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed,
    ):
        packed.write(image.to_bytes())


def _template_folder() -> Path:
    # Looked up, not imported: nilearn.datasets would need pandas for these three files.
    spec = importlib.util.find_spec("nilearn")
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            "the demo's brains are made from the MNI152 template, which the package nilearn carries and "
            "which is not installed: run  pip install 'anatogen[demo]'"
        )
    return Path(spec.submodule_search_locations[0]) / "datasets" / "data"


@lru_cache(maxsize=1)
def _load_template() -> _Template:
    folder = _template_folder()
    arrays: list[Array] = []
    for name in ("t1", "gm", "wm"):
        path = folder / f"mni_icbm152_{name}_tal_nlin_sym_09a_converted.nii.gz"
        if not path.is_file():
            raise UserError(
                f"the installed nilearn has no {path.name}: run  pip install --upgrade 'anatogen[demo]'"
            )
        image = nib.load(path)
        arrays.append(np.asarray(image.dataobj, dtype=np.float32))
    t1, grey, white = arrays
    brain = t1 > 0
    corner, end = (edge(np.argwhere(brain), axis=0) for edge in (np.min, np.max))
    start = np.maximum(corner - 4, 0)
    crop = tuple(slice(a, b + 5) for a, b in zip(start, end, strict=True))
    t1, brain = t1[crop], brain[crop]
    grey, white = (fraction[crop] * brain / np.float32(255) for fraction in (grey, white))
    csf = np.clip(brain - grey - white, 0, 1)
    # The template's mean grey, white and CSF levels, by least squares.
    texture = (t1 - 168 * grey - 224 * white - 70 * csf) / (224 - 168)
    # Low-passed by 1 mm, which is what a grid of 3 mm can hold.
    maps = [ndimage.gaussian_filter(m, 1.0) for m in (grey, white, csf, np.clip(texture, -1, 1))]
    offset = image.affine[:3, 3]
    if not np.array_equal(image.affine[:3, :3], np.eye(3)):
        raise UserError("the installed nilearn carries a template on another grid: install nilearn>=0.11")
    return _Template(
        maps=np.stack(maps).astype(np.float32),
        inside=ndimage.binary_dilation(brain, iterations=3),
        origin_mm=offset + start,
        centre_mm=offset + (corner + end) / 2,
    )
