"""Volumes are mapped when they are asked for, and no file stays open."""

from pathlib import Path

import numpy as np
import pytest
from synthetic_dataset import write_dataset

from anatogen.core.errors import UserError
from anatogen.dataset.manifest import Split
from anatogen.dataset.volumes import VolumeDataset


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="needs /proc to count open files")
def test_no_file_stays_open(tmp_path):
    write_dataset(tmp_path)
    before = open_files()
    dataset = VolumeDataset(tmp_path, Split.TRAIN)
    batch = dataset.batch(range(len(dataset)))
    assert batch.shape == (len(dataset), 1, *dataset.shape)
    assert open_files() == before


def test_a_missing_or_misshapen_volume_is_named(tmp_path):
    write_dataset(tmp_path)
    path = VolumeDataset(tmp_path, Split.TRAIN).paths[1]
    np.save(path, np.zeros((2, 2, 2), np.float16))
    with pytest.raises(UserError, match=r"has shape \(2, 2, 2\)"):
        VolumeDataset(tmp_path, Split.TRAIN)
    path.unlink()
    with pytest.raises(UserError, match=f"{path.name} is missing"):
        VolumeDataset(tmp_path, Split.TRAIN)
