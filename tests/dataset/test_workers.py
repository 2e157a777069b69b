"""Workers: results in order, and the scan that brought a process down by name."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anatogen.core.errors import UserError
from anatogen.dataset import workers
from anatogen.dataset.workers import Workers
from anatogen.io.volume import Volume

NAMES = [f"scan {number}" for number in range(12)]


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


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


_CALL = """
from pathlib import Path
from anatogen.dataset.prepare import PrepareConfig, prepare
from multiprocessing import current_process
assert current_process().name == "MainProcess", "a worker ran the script"
summary = prepare(Path({scans!r}), Path({out!r}), PrepareConfig(), workers=2, progress=False)
print(len(summary.manifest.cases), __name__, globals().get("__file__"))
"""


@pytest.mark.parametrize("way", ["script", "standard input", "argument", "notebook"])
def test_a_script_without_a_guard_or_a_file_is_no_obstacle(tmp_path: Path, way: str) -> None:
    for seed in range(4):
        array = np.random.default_rng(seed).normal(100, 30, (8, 9, 10)).astype(np.float32)
        Volume(array, np.eye(4)).save(tmp_path / "scans" / f"{seed}.nii.gz")
    code = _CALL.format(scans=str(tmp_path / "scans"), out=str(tmp_path / "out"))
    script = tmp_path / "call.py"
    script.write_text(code)
    words, given = {
        "script": ([str(script)], None),
        "standard input": (["-"], code),
        "argument": (["-c", code], None),
        "notebook": (["-i", "-c", ""], f"exec({code!r})\n"),
    }[way]
    done = subprocess.run([sys.executable, *words], input=given, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    file = {"script": str(script), "standard input": "<stdin>"}.get(way)
    assert f"4 __main__ {file}" in done.stdout


def test_no_scan_is_blamed_where_no_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(workers, "_start_worker", die)
    with Workers(2, progress=False) as pool:
        assert pool.map(square, range(12), NAMES, "") == [number**2 for number in range(12)]


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
