"""Sets of scans: every way in ends on one grid, in one range; what can't be compared is told in one line."""

import json
import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from synthetic_dataset import AFFINE, SPACING_MM, write_dataset

import anatogen.dataset.scan_sets as scan_sets_module
from anatogen.api.scans import prepare
from anatogen.core.errors import UserError
from anatogen.dataset.manifest import MANIFEST_NAME
from anatogen.dataset.measures import own_window
from anatogen.dataset.scan_sets import (
    ScanFolder,
    ScanSet,
    content_hash,
    count_scans,
    identical_scans,
    load_scans,
    num_constant,
)
from anatogen.io.dicom.writing import write_dicom
from anatogen.io.geometry import centred_affine, orient
from anatogen.io.nifti import write_nifti
from anatogen.io.npy import write_npy
from anatogen.io.volume import Volume

NO_SPLIT = {"validation": 0.0, "test": 0.0}


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return write_dataset(tmp_path / "data", 4, 2)


@pytest.fixture
def real(dataset: Path) -> ScanSet:
    return load_scans(dataset, "real")


def _export(scans: ScanSet, folder: Path) -> Path:
    folder.mkdir()
    for index, array in enumerate(scans.arrays):
        volume = Volume(scans.intensity.restore(array), np.asarray(scans.grid.affine))
        write_nifti(volume, folder / f"scan_{index}.nii.gz")
    return folder


def _write(folder: Path, array: np.ndarray, affine: np.ndarray | None = None, name: str = "a") -> None:
    folder.mkdir(exist_ok=True)
    affine = centred_affine("SPL", array.shape, (1, 1, 1)) if affine is None else affine
    write_nifti(Volume(array.astype(np.float32), affine), folder / f"{name}.nii.gz")


def test_a_dataset_gives_all_its_scans_or_those_of_a_split(dataset, real):
    train = load_scans(Path(f"{dataset}:train"), "train")
    assert (len(real), len(train), len(load_scans(Path(f"{dataset}:validation"), "holdout"))) == (6, 4, 2)
    assert identical_scans(train, real) == 4
    stored = np.load(dataset / "volumes" / "case_00000.npy").astype(np.float32)
    assert np.array_equal(train.arrays[0], stored)
    assert real.arrays.dtype == np.float32 and real.grid.spacing_mm == SPACING_MM


def test_exported_scans_are_the_same_scans_again(real, tmp_path):
    again = load_scans(_export(real, tmp_path / "out"), "synthetic", like=real)
    assert again.hashes == real.hashes and identical_scans(again, real) == len(real)
    assert np.abs(again.arrays - real.arrays).max() < 1e-6


def test_some_of_the_scans_are_those_of_all_of_them(dataset, real, tmp_path):
    folder = _export(real, tmp_path / "out")
    for path in (dataset, folder):
        everything = load_scans(path, "real")
        assert count_scans(path, "real") == len(everything) == 6
        # Beyond the first split too.
        some = load_scans(path, "real", indices=[5, 0])
        assert some.hashes == (everything.hashes[5], everything.hashes[0])
    with pytest.raises(UserError, match="is not a folder"):
        count_scans(tmp_path / "none", "real")


def test_axes_in_another_order_are_put_back(real, tmp_path):
    folder = tmp_path / "turned"
    for index, array in enumerate(real.arrays):
        volume = Volume(real.intensity.restore(array), np.asarray(real.grid.affine))
        _write(folder, (turned := orient(volume, "RAS")).array, turned.affine, f"scan_{index}")
    assert load_scans(folder, "synthetic", like=real).hashes == real.hashes


@pytest.mark.parametrize("file_format", ["npy", "dicom"])
def test_what_sample_writes_is_read_and_its_sidecars_are_not(real, tmp_path, file_format):
    folder = tmp_path / "samples"
    for index, array in enumerate(real.arrays[:2]):
        volume = Volume(real.intensity.restore(array), np.asarray(real.grid.affine))
        if file_format == "npy":
            folder.mkdir(exist_ok=True)
            write_npy(volume, folder / f"scan_{index}.npy")
        else:
            write_dicom(volume, folder / f"scan_{index}", "CT", uid_from=f"{index}", patient_id="SYNTHETIC")
        (folder / f"scan_{index}.json").write_text(json.dumps({"synthetic": True}))
    found = load_scans(folder, "synthetic", like=real)
    # DICOM rounds to whole Hounsfield units: 800 of them span the range of 2.
    assert np.abs(found.arrays - real.arrays[:2]).max() < (1e-6 if file_format == "npy" else 2 / 800)


def _with_spot(seed: int) -> np.ndarray:
    """A smooth scan of values about 500 with one voxel that outshines all others."""
    array = gaussian_filter(np.random.default_rng(seed).normal(size=(16, 24, 16)), 2)
    array = 500 + 400 * array / np.abs(array).max()
    array[3, 4, 5] = 9000
    return array


@pytest.mark.parametrize("percentiles", [(0, 100), (2, 98)])
def test_a_plain_folder_beside_a_dataset_gets_windows_by_the_rule_of_the_dataset(tmp_path, percentiles):
    for seed in range(3):
        _write(tmp_path / "scans", _with_spot(seed), name=f"scan_{seed}")
    prepare(tmp_path / "scans", tmp_path / "data", overrides={"percentiles": percentiles, "split": NO_SPLIT})
    target = load_scans(tmp_path / "data", "target")
    found = load_scans(tmp_path / "scans", "pre-training", like=target)
    assert set(found.hashes) == set(target.hashes) and found.percentiles == target.percentiles == percentiles
    alone = load_scans(tmp_path / "scans", "real")
    assert not set(alone.hashes) & set(target.hashes), "by the rule of prepare"


@pytest.mark.parametrize("kind", ["dataset", "split", "MR", "CT", "both"])
def test_parts_are_the_whole_and_take_no_more_memory_for_more_scans(tmp_path, monkeypatch, kind):
    """Reading 2,000 scans of 256 x 256 x 32 to pre-train took 72 GB: 4.3 times their float32 size."""
    shape, peaks = (32, 40, 32), {}
    monkeypatch.setattr(scan_sets_module, "_BYTES_AT_ONCE", 3 * 4 * math.prod(shape))
    for number in (10, 40):
        path = folder = tmp_path / str(number)
        if kind in ("dataset", "split"):
            write_dataset(folder, number - 2, 2, shape=shape)
            path = Path(f"{folder}:train") if kind == "split" else folder
        else:
            for index in range(number):
                # The first is CT, and no more of them than a set of MR may hold.
                is_ct = kind == "CT" or (kind == "both" and index % 10 == 0)
                low, high = (-1000, 900) if is_ct else (0, 500)
                _write(folder, np.random.default_rng(index).uniform(low, high, shape), name=f"{index:02d}")
        whole = load_scans(path, "real")
        assert whole.modality == {"CT": "CT", "MR": "MR", "both": "MR"}.get(kind, whole.modality)
        arrays, hashes = [], []
        for part in ScanFolder(path, "real").parts():
            assert len(part) <= 3 and part.modality == whole.modality
            arrays.append(part.arrays)
            hashes += part.hashes
        assert np.array_equal(np.concatenate(arrays), whole.arrays) and tuple(hashes) == whole.hashes
        del arrays, part
        tracemalloc.start()
        for _ in ScanFolder(path, "real").parts():
            pass
        peaks[number] = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    # What the manifest says of a scan takes 9 kB, its voxels as they are read 164 kB.
    assert peaks[40] - peaks[10] < 0.1 * 30 * 4 * math.prod(shape)


def test_reading_takes_little_more_memory_than_the_scans(tmp_path):
    shape = (32, 40, 32)
    for index in range(20):
        _write(tmp_path, np.random.default_rng(index).uniform(0, 500, shape), name=f"{index:02d}")
    tracemalloc.start()
    load_scans(tmp_path, "real")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1.7 * 20 * 4 * math.prod(shape)


def test_ct_gets_the_fixed_window(tmp_path):
    hounsfield = np.linspace(-1200, 1400, 6**3).reshape(6, 6, 6)
    _write(tmp_path / "ct", hounsfield)
    found = load_scans(tmp_path / "ct", "real")
    assert found.modality == "CT" and not found.own_windows
    np.testing.assert_allclose(found.arrays[0], np.clip(hounsfield / 1000, -1, 1), atol=1e-3)


def test_mr_without_a_dataset_gets_one_window_a_scan_on_both_sides(tmp_path):
    generator = np.random.default_rng(0)
    base = generator.gamma(2, 50, (8, 8, 8)).astype(np.float32)
    _write(tmp_path / "real", base, name="a")
    _write(tmp_path / "real", 3 * base, name="b")
    _write(tmp_path / "synthetic", 7 * base)
    real = load_scans(tmp_path / "real", "real")
    synthetic = load_scans(tmp_path / "synthetic", "synthetic", like=real)
    assert real.modality == "MR" and real.own_windows and synthetic.own_windows
    # The scale of a scan cancels.
    assert np.abs(real.arrays[0] - real.arrays[1]).max() < 1e-3
    assert np.abs(real.arrays[0] - synthetic.arrays[0]).max() < 1e-3
    low, high = own_window(base, (0.5, 99.5))
    np.testing.assert_allclose(real.arrays[0].max(), 1)
    np.testing.assert_allclose(real.intensity.low, (low + 3 * low) / 2, rtol=1e-4)
    assert high > low


def test_synthetic_mr_beside_a_dataset_keeps_its_brightness(tmp_path):
    data = load_scans(write_dataset(tmp_path / "data", 2, 1, modality="MR"), "real")
    dim = data.with_arrays(data.arrays * 0.5)
    synthetic = load_scans(_export(dim, tmp_path / "dim"), "synthetic", like=data)
    np.testing.assert_allclose(synthetic.arrays, dim.arrays, atol=1e-3)
    holdout = load_scans(_export(dim, tmp_path / "dim2"), "holdout", like=data)
    assert holdout.own_windows and holdout.arrays.max() == 1


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_constant_scans_are_counted_and_no_error(tmp_path, modality):
    data = load_scans(write_dataset(tmp_path / "data", 2, 1, modality=modality), "real")
    arrays = data.arrays.copy()
    arrays[1] = 0.25
    found = load_scans(_export(data.with_arrays(arrays), tmp_path / "out"), "synthetic", like=data)
    assert num_constant(found) == 1 and num_constant(data) == 0
    np.testing.assert_allclose(found.arrays[1], 0.25, atol=1e-3)
    assert num_constant(load_scans(tmp_path / "out", "real")) == 1


def test_taking_scans_keeps_hashes_with_them(real):
    taken = real.take([4, 1, 4])
    assert taken.hashes == (real.hashes[4], real.hashes[1], real.hashes[4])
    assert taken.sha256 != real.take([1, 4, 4]).sha256
    assert real.with_arrays(real.arrays).sha256 == real.sha256


def test_the_hash_sees_content_and_not_its_last_bits():
    array = np.random.default_rng(0).uniform(-1, 1, (6, 6, 6)).astype(np.float16).astype(np.float32)
    assert content_hash(array) == content_hash(array + np.float32(1e-7))
    assert content_hash(array) != content_hash(array[::-1])
    changed = array.copy()
    changed[0, 0, 0] += 0.01
    assert content_hash(changed) != content_hash(array)
    assert content_hash(np.zeros((2, 3, 4), np.float32)) != content_hash(np.zeros((4, 3, 2), np.float32))


class TestBadInput:
    """Each ends in one line that says what to mend."""

    def _fails(self, match: str, path: Path, like: ScanSet | None = None) -> None:
        with pytest.raises(UserError, match=match) as caught:
            load_scans(path, "synthetic", like)
        assert "\n" not in str(caught.value)

    def test_no_folder(self, tmp_path):
        self._fails("is not a folder", tmp_path / "nowhere")

    def test_empty_folder(self, tmp_path):
        self._fails("holds no scans", tmp_path)

    def test_empty_and_unknown_split(self, dataset):
        self._fails("the split 'test' .* is empty", Path(f"{dataset}:test"))
        self._fails("no split 'tset'; use train, validation, test", Path(f"{dataset}:tset"))

    def test_a_split_of_a_plain_folder(self, tmp_path):
        _write(tmp_path / "plain", np.arange(125).reshape(5, 5, 5))
        self._fails("not a prepared dataset", Path(f"{tmp_path / 'plain'}:train"))

    def test_mixed_grids(self, tmp_path):
        _write(tmp_path / "mixed", np.arange(125.0).reshape(5, 5, 5), name="a")
        _write(tmp_path / "mixed", np.arange(150.0).reshape(5, 5, 6), name="b")
        self._fails("5 x 5 x 6 voxels of .*, and .*: 5 x 5 x 5 voxels of", tmp_path / "mixed")

    def test_another_shape_or_spacing(self, real, tmp_path):
        affine = np.asarray(AFFINE)
        _write(tmp_path / "small", real.arrays[0][:8], affine)
        self._fails(
            "8 x 16 x 16 voxels of .*, and the real scans: 16 x 16 x 16 voxels", tmp_path / "small", real
        )
        _write(tmp_path / "fine", real.arrays[0], affine @ np.diag([0.5, 1, 1, 1]))
        self._fails("of 1 x 1 x 1.5 mm, .* and the real scans: .* of 2 x 1 x 1.5 mm", tmp_path / "fine", real)

    def test_another_dataset(self, real, tmp_path):
        other = write_dataset(tmp_path / "other", 2, 1, shape=(16, 16, 8))
        self._fails("16 x 16 x 8 voxels of", other, real)
        other = write_dataset(tmp_path / "mr", 2, 1, modality="MR")
        self._fails("are MR, and the real scans are CT", other, real)

    def test_another_window_of_ct(self, dataset, real, tmp_path):
        other = write_dataset(tmp_path / "wide", 2, 1)
        manifest = json.loads((other / MANIFEST_NAME).read_text())
        manifest["intensity"]["high"] = 1000.0
        (other / MANIFEST_NAME).write_text(json.dumps(manifest))
        self._fails("the window -200 to 1000 HU, and the real scans -200 to 600 HU", other, real)

    def test_an_unreadable_scan(self, tmp_path, real):
        (tmp_path / "a.nii.gz").write_bytes(b"nothing")
        self._fails("a.nii.gz.*truncated, damaged", tmp_path, real)

    def test_values_that_are_not_finite(self, tmp_path, real):
        array = real.arrays[0].copy()
        array[0, 0, 0] = np.nan
        write_npy(Volume(array, np.asarray(AFFINE)), tmp_path / "a.npy")
        self._fails("1 of 4096 voxels are NaN or infinite", tmp_path, real)
