"""What a probe says of a machine: times of an idle one, and whether it is busy."""

from pathlib import Path

from synthetic_dataset import tiny_flow_settings

from anatogen.dataset.manifest import Grid
from anatogen.training.cost import probe as probe_module
from anatogen.training.cost.probe import Measurement, _measure, processor_seconds
from anatogen.training.stages import STAGES

GRID = Grid.centred("SPL", (8, 8, 8), (1, 1, 1))


def _found(waited: float) -> Measurement:
    return Measurement(
        seconds_per_step=1.4,
        steps_between=(1.3, 1.6),
        waited=waited,
        num_parameters={},
        seconds_of_others={},
        peak_gb=1,
    )


def test_threads_seconds_are_added_up(tmp_path: Path):
    for name, text in (("1", "2000000000 500000000 7"), ("2", "1000000000 2500000000 9")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "schedstat").write_text(text)
    assert processor_seconds(tmp_path) == (3.0, 3.0)
    assert processor_seconds(tmp_path / "none") == (0.0, 0.0), "another system"


def test_what_was_waited_for_a_processor_is_taken_off(monkeypatch):
    """Of every second three quarters were spent waiting."""
    clock = iter(range(1000))
    monkeypatch.setattr(probe_module.time, "perf_counter", lambda: float(next(clock)))
    seconds = iter(range(1000))
    monkeypatch.setattr(probe_module, "processor_seconds", lambda: (float(now := next(seconds)), 3.0 * now))
    found = _measure(STAGES["flow"], tiny_flow_settings(), GRID, "cpu")
    assert found.seconds_per_step == 0.25 and found.steps_between == (0.25, 0.25) and found.waited == 0.75
    assert found.seconds_of_others == {"denoise": 0.25}


def test_a_busy_machine_is_told_of():
    assert _found(0.05).text() == "1.4 s a step, 1.3 to 1.6"
    assert _found(0.6).text() == (
        "1.4 s a step, 1.3 to 1.6, when the machine is idle; it is busy now: steps waited for a processor in "
        "60% of the time"
    )
