"""The demo population is reproducible, varied, whole and anatomically plausible."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scipy import ndimage

from anatogen.core.errors import UserError
from anatogen.workflow import brains
from anatogen.workflow.brains import FIELD_OF_VIEW_MM, make_brain, make_brains

needs_template = pytest.mark.skipif(
    importlib.util.find_spec("nilearn") is None,
    reason="nilearn, which carries the MNI152 template, is not installed (the 'demo' extra)",
)


@pytest.fixture(scope="module")
def population() -> np.ndarray:
    return np.stack([make_brain(index) for index in range(12)])


@needs_template
def test_files_do_not_depend_on_count_or_process_and_are_resumed(tmp_path: Path) -> None:
    make_brains(tmp_path / "few", 1, progress=False)
    first = tmp_path / "few" / "brain_0000.nii.gz"
    before = (first.read_bytes(), first.stat().st_mtime_ns)
    make_brains(tmp_path / "few", 2, progress=False)
    make_brains(tmp_path / "many", 2, progress=False)
    assert (first.read_bytes(), first.stat().st_mtime_ns) == before
    names = [f"brain_{index:04d}.nii.gz" for index in range(2)]
    assert sorted(path.name for path in (tmp_path / "few").iterdir()) == names
    for index, name in enumerate(names):
        assert (tmp_path / "few" / name).read_bytes() == (tmp_path / "many" / name).read_bytes()
        stored = np.asarray(nib.load(tmp_path / "few" / name).dataobj)
        assert np.array_equal(stored, make_brain(index))


@needs_template
def test_geometry_is_ras_and_centred_on_the_brain(tmp_path: Path, population: np.ndarray) -> None:
    make_brains(tmp_path, 1, progress=False)
    image = nib.load(tmp_path / "brain_0000.nii.gz")
    assert image.shape == (32, 32, 32)
    assert nib.aff2axcodes(image.affine) == ("R", "A", "S")
    assert image.header.get_zooms() == pytest.approx([FIELD_OF_VIEW_MM / 32] * 3)
    assert image.affine @ [15.5, 15.5, 15.5, 1] == pytest.approx([0, 0, 0, 1])
    for brain in population:
        place = np.argwhere(brain > 0.2 * brain.max())
        assert np.all(np.abs((place.min(axis=0) + place.max(axis=0)) / 2 - 15.5) < 2.5)


@needs_template
def test_no_brain_is_cut_by_the_field_of_view(population: np.ndarray) -> None:
    for brain in population:
        for axis in range(3):
            assert np.take(brain, (0, -1), axis=axis).max() < 0.5 * brain.max()


@needs_template
def test_brains_differ_in_shape_and_contrast(population: np.ndarray) -> None:
    scaled = population / np.percentile(population, 99.5, axis=(1, 2, 3), keepdims=True)
    for one in range(len(scaled)):
        for other in range(one):
            correlation = np.corrcoef(scaled[one].ravel(), scaled[other].ravel())[0, 1]
            assert 0.6 < correlation < 0.98
    units = population.max(axis=(1, 2, 3))
    assert units.min() >= 150
    assert units.max() / units.min() > 2


@needs_template
def test_tissues_are_plausible(population: np.ndarray) -> None:
    voxel_ml = (FIELD_OF_VIEW_MM / 32) ** 3 / 1000
    for brain in population:
        scaled = brain / np.percentile(brain[brain > 0], 98)
        volume_ml = (scaled > 0.3).sum() * voxel_ml
        assert 1000 < volume_ml < 2000
        core = ndimage.binary_erosion(scaled > 0.3, iterations=2)
        # White matter is deep and bright, the cortex around it darker: what T1 weighting shows.
        rim = ndimage.binary_erosion(scaled > 0.3) & ~core
        assert scaled[core].mean() > scaled[rim].mean() + 0.03
        assert 0.1 < (scaled[core] > 0.85).mean() < 0.7


def test_without_nilearn_the_error_names_the_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brains.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'anatogen\[demo\]'"):
        make_brains(tmp_path, 1)


def test_importing_the_recipe_imports_neither_torch_nor_pandas() -> None:
    code = "import sys, anatogen.workflow.brains; sys.exit(bool({'torch', 'pandas'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
