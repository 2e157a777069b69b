"""The `anatogen study` commands, one after the other as a user would type them."""

import numpy as np
import pytest
from click.testing import CliRunner
from study_maker import answer

from anatogen.cli.app import app
from anatogen.core.errors import UserError
from anatogen.study.store import open_study


def _run(*arguments):
    result = CliRunner().invoke(app, ["study", *map(str, arguments)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


@pytest.fixture
def synthetic(tmp_path):
    folder = tmp_path / "synthetic"
    folder.mkdir()
    generator = np.random.default_rng(0)
    for number in range(4):
        np.save(folder / f"{number}.npy", generator.normal(100, 20, (6, 7, 8)).astype(np.float32))
    return folder


def test_a_study_is_made_sent_read_and_brought_back(synthetic, tmp_path):
    study, copy = tmp_path / "study", tmp_path / "copy"
    told = _run("new", study, synthetic, "--readers", "ada, bo", "--repeat", "0")
    assert "4 synthetic; 4 cases for each of 2 readers" in told
    links = _run("links", study, "--url", "https://host/").splitlines()
    assert [line.split()[0] for line in links] == ["ada", "bo", "(organiser)"]
    assert all("https://host/" in line for line in links)
    _run("export", study, tmp_path / "ada.zip", "--reader", "ada")
    assert "study of ada" in _run("import", copy, tmp_path / "ada.zip")
    answer(open_study(copy), "ada", {0: 1, 1: 2})
    assert "2 answers" in _run("export", copy, tmp_path / "back.zip")
    assert "2 new of 2" in _run("import", study, tmp_path / "back.zip")
    assert "0 new of 2" in _run("import", study, tmp_path / "back.zip")
    status = _run("status", study).splitlines()
    assert "0 of 4 cases done" in status[0] and "last answer" in status[0]
    assert "last answer" not in status[1]


def test_a_folder_that_is_no_study_is_told(tmp_path):
    for command in ("links", "status"):
        with pytest.raises(UserError, match="is no study"):
            _run(command, tmp_path)
