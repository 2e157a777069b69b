"""Progress in a log file, on a terminal, and where none is wanted."""

import pytest

import anatogen.report.progress
from anatogen.report.progress import shown_progress


def test_log_file_gets_the_end_of_each_step_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress() as display:
        for done in (1, 2, 3):
            display("reading", done, 3)
        display("training", 1.0, 1.0, "step 7")
    found = capsys.readouterr()
    assert found.out == ""
    assert found.err == "reading: 3 of 3 after 0.0 s\ntraining: 100% · step 7 after 0.0 s\n"


def test_long_step_says_now_and_then_how_much_is_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 1000, 10))
    monkeypatch.setattr(anatogen.report.progress.time, "perf_counter", lambda: float(next(clock)))
    with shown_progress() as display:
        for done in range(1, 6):
            display("reading", done, 10)
    assert capsys.readouterr().err == (
        "reading: 2 of 10, 1 min 20 s left\nreading: 4 of 10, 1 min 00 s left\n"
    )


def test_terminal_gets_a_bar(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "100")
    with shown_progress() as display:
        display("reading", 0, 2)
        display("reading", 2, 2)
        display("training", 0.5, 1.0, "step 7")
    found = capsys.readouterr()
    assert found.out == ""
    assert "reading" in found.err and "2 of 2" in found.err and "step 7" in found.err


def test_unwanted_progress_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with shown_progress(False) as display:
        display("reading", 3, 3)
    assert capsys.readouterr() == ("", "")
