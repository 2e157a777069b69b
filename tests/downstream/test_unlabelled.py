"""Unlabelled scans are stored as they would be read, however many there are."""

import math
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from synthetic_dataset import write_dataset

import anatogen.dataset.scan_sets as scan_sets_module
from anatogen.core.files import sha256_json
from anatogen.dataset.scan_sets import load_scans
from anatogen.dataset.volumes import VolumeDataset
from anatogen.downstream.unlabelled import store_scans

SHAPE = (32, 40, 32)


def _export(dataset: Path, folder: Path) -> Path:
    """Training scans of a dataset as files."""
    scans = VolumeDataset(dataset, "train")
    for index in range(len(scans)):
        scans.volume(index).save(folder / f"{index}.nii.gz")
    return folder


@pytest.mark.parametrize("is_like", [False, True])
def test_what_is_stored_is_what_is_read(tmp_path, monkeypatch, is_like):
    monkeypatch.setattr(scan_sets_module, "_BYTES_AT_ONCE", 3 * 4 * math.prod(SHAPE))
    data = write_dataset(tmp_path / "data", 8, 2, shape=SHAPE, modality="MR")
    target = write_dataset(tmp_path / "target", 2, 2, seed=5, shape=SHAPE, modality="MR") if is_like else None
    plain = _export(data, tmp_path / "plain")
    stored = store_scans([data, plain], target, tmp_path / "scans.npy")
    first = load_scans(data, "pre-training", target and load_scans(target, "target"))
    sets = [first, load_scans(plain, "pre-training", first)]
    arrays = stored.arrays()
    assert arrays.dtype == np.float16 and isinstance(arrays, np.memmap)
    assert np.array_equal(arrays.astype(np.float32), np.concatenate([part.arrays for part in sets]))
    assert stored.grid == sets[0].grid and stored.num_scans == len(arrays) == 18
    assert stored.sha256 == sha256_json([part.sha256 for part in sets])


def test_memory_does_not_grow_with_the_number_of_scans(tmp_path, monkeypatch):
    monkeypatch.setattr(scan_sets_module, "_BYTES_AT_ONCE", 3 * 4 * math.prod(SHAPE))
    target = write_dataset(tmp_path / "target", 2, 4, seed=500, shape=SHAPE)
    peaks = []
    for number in (10, 50):
        data = write_dataset(tmp_path / str(number), number, 2, shape=SHAPE)
        tracemalloc.start()
        store_scans([data], target, tmp_path / "scans.npy")
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # What the manifest says of a scan takes 9 kB, its voxels as they are read 164 kB.
    assert peaks[1] - peaks[0] < 0.1 * 40 * 4 * math.prod(SHAPE)
