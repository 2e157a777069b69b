"""Files and folders are whole or absent, and as readable as the user wants them."""

import os
import stat
from pathlib import Path

import pytest

from anatogen.core.files import atomic_folder, atomic_path


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
