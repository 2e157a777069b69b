"""Files and folders are whole or absent, and as readable as the user wants them."""

import errno
import os
import resource
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch

from anatogen.core.errors import StorageError
from anatogen.core.files import atomic_folder, atomic_path, write_text, writes_into
from anatogen.core.weights import save_weights
from anatogen.io.npy import write_array
from anatogen.io.volume import Volume
from anatogen.training.loop import save_checkpoint


@pytest.fixture(params=[0o022, 0o077])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


def test_a_folder_appears_whole_with_the_rights_of_any_other(tmp_path, umask):
    path = tmp_path / "above" / "made"
    with atomic_folder(path) as part:
        (part / "file").write_text("content")
        assert not path.exists()
    assert [entry.name for entry in path.parent.iterdir()] == ["made"]
    assert (path / "file").read_text() == "content"
    assert stat.S_IMODE(path.stat().st_mode) == 0o777 & ~umask
    with atomic_path(path / "other") as temporary:
        temporary.write_text("content")
    assert stat.S_IMODE((path / "other").stat().st_mode) == 0o666 & ~umask


def test_a_folder_belongs_to_the_group_that_shares_the_one_above(tmp_path):
    tmp_path.chmod(0o2775)
    with atomic_folder(tmp_path / "made"):
        pass
    assert (tmp_path / "made").stat().st_mode & stat.S_ISGID


def test_a_folder_whose_making_fails_leaves_nothing(tmp_path):
    with pytest.raises(KeyboardInterrupt), atomic_folder(tmp_path / "made") as part:
        (part / "file").write_text("content")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())


def test_a_folder_takes_the_place_of_an_empty_one_and_of_no_other(tmp_path):
    path: Path = tmp_path / "made"
    path.mkdir()
    with atomic_folder(path) as part:
        (part / "file").write_text("first")
    with pytest.raises(OSError), atomic_folder(path) as part:
        (part / "file").write_text("second")
    assert (path / "file").read_text() == "first"
    assert [entry.name for entry in tmp_path.iterdir()] == ["made"]


@contextmanager
def _no_file_above(num_bytes: int) -> Iterator[None]:
    """Lets the system refuse larger files, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def _with_itk(path: Path) -> None:
    Volume(np.random.default_rng(0).normal(size=(32, 32, 32)).astype(np.float32), np.eye(4)).save(path)


WRITERS = {
    "text": lambda folder: write_text(folder / "a.txt", "x" * 30_000),
    "npy": lambda folder: write_array(np.zeros((32, 32, 32), np.float32), folder / "a.npy"),
    "nifti": lambda folder: _with_itk(folder / "a.nii.gz"),
    "ITK": lambda folder: _with_itk(folder / "a.nrrd"),
    "weights": lambda folder: save_weights(torch.nn.Linear(100, 100), folder / "a.safetensors"),
    "checkpoint": lambda folder: save_checkpoint(folder / "a.pt", {"network": torch.nn.Linear(100, 100)}, {}),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_a_full_disk_is_one_error_whoever_writes_and_leaves_nothing(tmp_path: Path, writer: str) -> None:
    folder = tmp_path / "out"
    with (
        pytest.raises(StorageError, match=r"out can't be written to \(File too large\): .* goes on"),
        _no_file_above(10_000),
    ):
        WRITERS[writer](folder)
    assert list(folder.iterdir()) == []
    WRITERS[writer](folder)
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(("number", "advice"), [(errno.EROFS, "mounted"), (errno.EACCES, "right to write")])
def test_a_folder_without_a_right_to_write_is_named(tmp_path: Path, monkeypatch, number, advice) -> None:
    def refuse(**_: object) -> None:
        raise OSError(number, os.strerror(number), str(tmp_path / "x"))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    with pytest.raises(StorageError, match=f"{tmp_path} .*{os.strerror(number)}.*{advice}"):
        write_text(tmp_path / "a.txt", "")


def test_a_file_that_can_not_be_read_is_no_matter_of_the_folder(tmp_path: Path) -> None:
    error = PermissionError(errno.EACCES, "Permission denied", "/elsewhere/scan.nii")
    with pytest.raises(PermissionError), writes_into(tmp_path):
        raise error
    with pytest.raises(ZeroDivisionError), writes_into(tmp_path):
        raise ZeroDivisionError
