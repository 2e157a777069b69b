"""Volumes are mapped when they are asked for, and no file stays open."""

from pathlib import Path

import numpy as np
import pytest
import torch
from synthetic_dataset import write_dataset
from torch.utils.data import DataLoader

from anatogen.core.errors import UserError
from anatogen.dataset.manifest import Split
from anatogen.dataset.volumes import VolumeDataset


def open_files() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_data_loader_takes_it_as_it_is(tmp_path, num_workers):
    write_dataset(tmp_path)
    dataset = VolumeDataset(tmp_path, "train")
    batches = list(DataLoader(dataset, batch_size=2, num_workers=num_workers))
    assert torch.equal(torch.cat(batches), dataset.batch(range(len(dataset))))
    assert torch.equal(torch.stack(list(dataset)), dataset.batch(range(len(dataset))))


def test_a_volume_comes_back_in_the_unit_and_place_of_its_scan(tmp_path):
    write_dataset(tmp_path)
    dataset = VolumeDataset(tmp_path, Split.TRAIN)
    volume, case = dataset.volume(1), dataset.cases[1]
    assert np.allclose(case.intensity.normalise(volume.array), dataset[1][0].numpy(), atol=1e-5)
    assert np.array_equal(volume.affine, case.affine)


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
