"""Workers: results in order, and the scan that brought a process down by name."""

import os
import signal
from pathlib import Path

import pytest

from anatogen.core.errors import UserError
from anatogen.dataset.workers import Workers

NAMES = [f"scan {number}" for number in range(12)]


def square(number: int) -> int:
    return number * number


def die_at_seven(number: int) -> int:
    if number == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def die_once(task: tuple[int, Path]) -> int:
    number, mark = task
    if number == 7 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return number * number


def fail_at_three(number: int) -> int:
    if number == 3:
        raise OSError(28, "No space left on device")
    return number


def bug_at_three(number: int) -> int:
    return 1 // (number - 3)


@pytest.mark.parametrize("num_workers", [1, 2])
def test_results_keep_the_order(num_workers: int) -> None:
    with Workers(num_workers, progress=False) as pool:
        assert pool.map(square, range(12), NAMES, "") == [number**2 for number in range(12)]


def test_a_process_that_dies_names_its_scan() -> None:
    with (
        pytest.raises(UserError, match=r"^scan 7: .* died; most likely memory ran out"),
        Workers(2, progress=False) as pool,
    ):
        pool.map(die_at_seven, range(12), NAMES, "")


def test_a_scan_that_gets_through_alone_is_kept(tmp_path: Path) -> None:
    tasks = [(number, tmp_path / "mark") for number in range(12)]
    with Workers(2, progress=False) as pool:
        assert pool.map(die_once, tasks, NAMES, "") == [number**2 for number in range(12)]


@pytest.mark.parametrize("num_workers", [1, 2])
def test_errors_name_the_scan(num_workers: int) -> None:
    with (
        Workers(num_workers, progress=False) as pool,
        pytest.raises(UserError, match="scan 3: No space left"),
    ):
        pool.map(fail_at_three, range(12), NAMES, "")
    with Workers(num_workers, progress=False) as pool, pytest.raises(ZeroDivisionError) as caught:
        pool.map(bug_at_three, range(12), NAMES, "")
    assert caught.value.__notes__ == ["while working on scan 3"]
