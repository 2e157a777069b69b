"""Stages in several processes: what ends one of them ends the call, as the error that it was."""

import math
import os
import signal

import pytest

from anatogen.core.errors import ScanError, UserError
from anatogen.core.reasons import Reason
from anatogen.training.devices import build_fabric, bytes_within_limit, launch


def _refuse(fabric):
    if fabric.global_rank == 1:
        raise ScanError(Reason.TOO_FEW_SLICES(num=3, least=4))
    fabric.barrier()


def _die(fabric):
    if fabric.global_rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    fabric.barrier()


@pytest.mark.parametrize(
    ("line", "root", "names"),
    [
        ("0::/jobs/7/step", "", ("memory.max", "memory.current", "inactive_file")),
        (
            "4:cpu,memory:/jobs/7/step",
            "memory",
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ),
    ],
    ids=["version 2", "version 1"],
)
def test_a_jobs_limit_is_the_least_that_it_and_those_above_it_leave(tmp_path, line, root, names):
    own, groups = tmp_path / "own", tmp_path / "groups"
    own.write_text(f"7:pids:/jobs/7\n{line}\n")
    assert bytes_within_limit(own, groups) == math.inf

    def limit(group: str, *values: object) -> None:
        folder = groups / root / group
        folder.mkdir(parents=True, exist_ok=True)
        (folder / names[0]).write_text(f"{values[0]}\n")
        (folder / names[1]).write_text(f"{values[1]}\n")
        (folder / "memory.stat").write_text(f"anon 5\n{names[2]} {values[2]}\nother 9\n")

    limit("jobs/7/step", "max" if root == "" else 2**62, 10, 3)
    assert bytes_within_limit(own, groups) > 2**60
    limit("jobs/7", 1000, 300, 50)
    limit("jobs", 9000, 300, 50)
    assert bytes_within_limit(own, groups) == 750
    limit("jobs", 500, 400, 0)
    assert bytes_within_limit(own, groups) == 100
    assert bytes_within_limit(tmp_path / "none", groups) == math.inf


@pytest.mark.usefixtures("forked_processes")
def test_a_process_that_is_killed_is_one_clear_line():
    with pytest.raises(UserError, match=r"one of 2 processes that trained died .* most likely memory"):
        launch(build_fabric("cpu", 2), _die)


def test_an_error_of_the_users_crosses_the_spawned_process_as_an_object():
    with pytest.raises(ScanError, match="only 3 slices, at least 4") as caught:
        launch(build_fabric("cpu", 2), _refuse)
    assert caught.value.refusal == Reason.TOO_FEW_SLICES(num=3, least=4)
