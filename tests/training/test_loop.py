"""The loop that all stages share: budget, learning rate, logs, and stopping before harm."""

import json
import math
from pathlib import Path

import pytest
import torch
from lightning_fabric import Fabric
from synthetic_dataset import AFFINE, SPACING_MM
from torch import nn

from anatogen.config.settings import OptimiserSettings, TrainingSettings
from anatogen.core.errors import UserError
from anatogen.dataset.manifest import Grid
from anatogen.training import loop as module
from anatogen.training.loop import (
    CHECKPOINT_NAME,
    Loop,
    NonFiniteLossError,
    load_checkpoint,
    read_log,
    save_checkpoint,
    still_falling,
)


def _loop(folder: Path, network: nn.Module | None = None, **options: object) -> Loop:
    network = network or nn.Linear(1, 1)
    optimiser = torch.optim.SGD(network.parameters(), lr=1.0)
    settings = OptimiserSettings(**({"batch_size": 2, "steps": 10, "learning_rate": 0.5} | options))
    return Loop(
        Fabric(accelerator="cpu"),
        folder / "autoencoder",
        settings,
        TrainingSettings(checkpoint_minutes=0),
        {"network": network, "optimiser": optimiser},
        5,
        lambda: {"noise": torch.rand(1, 4, 4, 4)},
        Grid(shape=(4, 4, 4), spacing_mm=SPACING_MM, affine=AFFINE),
    )


@pytest.fixture(autouse=True)
def _without_tensorboard(monkeypatch):
    class Board:
        def add_scalar(self, *_: object) -> None: ...

        def close(self) -> None: ...

    monkeypatch.setattr(module, "_tensorboard", lambda folder, step: Board())


def _rates(loop: Loop) -> list[float]:
    rates = []
    for _ in loop.steps():
        rates.append(loop.optimisers[0].param_groups[0]["lr"])
        loop.record({"loss": 1.0})
    return rates


def test_the_budget_is_counted_in_steps_of_the_loop(tmp_path):
    assert list(_steps(_loop(tmp_path, steps=7))) == list(range(7))


def _steps(loop: Loop):
    for step in loop.steps():
        yield step
        loop.record({"loss": float(step)})


def test_a_finished_loop_makes_no_further_step_and_a_larger_budget_goes_on(tmp_path):
    list(_steps(_loop(tmp_path, steps=3)))
    assert list(_steps(_loop(tmp_path, steps=3))) == []
    assert list(_steps(_loop(tmp_path, steps=5))) == [3, 4]


def test_minutes_count_over_all_resumptions(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(module.time, "perf_counter", lambda: now[0])

    def run() -> list[int]:
        made = []
        for step in _loop(tmp_path, steps=None, minutes=1).steps():
            made.append(step)
            now[0] += 10
            if len(made) == 4:
                break
        return made

    # Breaking off in the fourth step loses it: its checkpoint is not written.
    assert run() == [0, 1, 2, 3]
    now[0] += 1e6
    assert run() == [3, 4, 5]
    assert run() == []


def test_what_the_settings_say_is_the_learning_rate(tmp_path):
    assert _rates(_loop(tmp_path)) == [0.5] * 10


def test_the_learning_rate_rises_over_the_warm_up_and_falls_along_a_cosine(tmp_path):
    rates = _rates(_loop(tmp_path, warmup_steps=3, decay="cosine"))
    cosine = [0.5 * (1 + math.cos(math.pi * step / 10)) / 2 for step in range(10)]
    warm = [min(1, (step + 1) / 4) for step in range(10)]
    assert rates == pytest.approx([a * b for a, b in zip(cosine, warm, strict=True)])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_with_its_name_and_a_remedy(tmp_path, value):
    loop = _loop(tmp_path)
    next(loop.steps())
    with pytest.raises(NonFiniteLossError, match=r"step 0: the loss l1 is not finite") as caught:
        loop.require_finite({"l1": torch.tensor(value), "commitment": torch.tensor(1.0)})
    assert "autoencoder_training.learning_rate=2e-01" in str(caught.value)


def test_the_log_holds_the_mean_of_each_loss_where_it_was_recorded(tmp_path):
    loop = _loop(tmp_path, steps=4)
    for step in loop.steps():
        loop.record({"loss": torch.tensor(float(step))} | ({"late": 10.0 * step} if step >= 2 else {}))
    (record,) = read_log(tmp_path / "autoencoder")
    assert record["step"] == 4 and record["loss"] == 1.5 and record["late"] == 25
    assert record["scans_per_second"] > 0 and record["learning_rate"] == 0.5


def test_records_after_the_checkpoint_are_dropped_on_resumption(tmp_path):
    list(_steps(_loop(tmp_path, steps=3)))
    path = tmp_path / "autoencoder" / "log.jsonl"
    with path.open("a") as log:
        log.write(json.dumps({"step": 9, "loss": 1.0}) + '\n{"step": 10, "lo')
    assert [record["step"] for record in read_log(path.parent)] == [3, 9]
    list(_steps(_loop(tmp_path, steps=4)))
    assert [record["step"] for record in read_log(path.parent)] == [3, 4]


def test_what_a_kill_left_of_files_being_written_is_removed_on_resumption(tmp_path):
    list(_steps(_loop(tmp_path, steps=3)))
    part = tmp_path / "autoencoder" / ".part-abc.pt"
    part.write_bytes(b"half a checkpoint")
    list(_steps(_loop(tmp_path, steps=4)))
    assert not part.exists()


def test_weights_that_are_not_finite_never_replace_a_checkpoint(tmp_path):
    """A step may overflow the weights with a finite loss: the checkpoint of before is the one to keep."""
    network = nn.Linear(1, 1)
    loop = _loop(tmp_path, network)
    with pytest.raises(NonFiniteLossError, match="weights"):
        for step in loop.steps():
            loop.record({"loss": 1.0})
            nn.init.constant_(network.weight, math.inf if step == 3 else float(step))
    saved = torch.load(tmp_path / "autoencoder" / CHECKPOINT_NAME, weights_only=True)
    assert saved["counters"]["step"] == 3 and float(saved["parts"]["network"]["weight"]) == 2


def test_still_falling_compares_the_last_two_quarters():
    flat = [{"loss": 1.0}] * 40
    falling = [{"loss": 1.0 - index / 60} for index in range(40)]
    assert not still_falling(flat) and still_falling(falling)
    assert still_falling([{"loss": 1.0}]), "too short to tell"


def test_a_checkpoint_gives_back_networks_optimisers_and_counters(tmp_path):
    def parts() -> dict:
        network = nn.Linear(3, 3)
        return {"network": network, "optimiser": torch.optim.AdamW(network.parameters())}

    before, after = parts(), parts()
    before["network"](torch.ones(1, 3)).sum().backward()
    before["optimiser"].step()
    save_checkpoint(tmp_path / "c.pt", before, {"step": 3.0, "seconds": 1.5})
    assert load_checkpoint(tmp_path / "c.pt", after) == {"step": 3.0, "seconds": 1.5}
    assert torch.equal(before["network"].weight, after["network"].weight)
    state = [part["optimiser"].state_dict()["state"][0]["exp_avg"] for part in (before, after)]
    assert torch.equal(*state)


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_or_foreign_checkpoint_is_a_clear_error(tmp_path, content):
    path = tmp_path / "c.pt"
    save_checkpoint(path, {"network": nn.Linear(2, 2)}, {"step": 0.0})
    path.write_bytes(path.read_bytes()[:300] if content is None else content)
    with pytest.raises(UserError, match=r"c\.pt can't be used"):
        load_checkpoint(path, {"network": nn.Linear(2, 2)})
    save_checkpoint(path, {"network": nn.Linear(3, 2)}, {"step": 0.0})
    with pytest.raises(UserError, match="delete it to start anew"):
        load_checkpoint(path, {"network": nn.Linear(2, 2)})


def test_loading_a_checkpoint_runs_no_code_of_it(tmp_path):
    class Evil:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"counters": {}, "parts": Evil()}, tmp_path / "c.pt")
    with pytest.raises(UserError):
        load_checkpoint(tmp_path / "c.pt", {})
    assert not (tmp_path / "ran").exists()


def test_a_kill_while_the_checkpoint_is_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "c.pt"
    network = nn.Linear(2, 2)
    save_checkpoint(path, {"network": network}, {"step": 1.0})
    before = path.read_bytes()

    def half(content: object, target: Path) -> None:
        target.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(torch, "save", half)
    with pytest.raises(KeyboardInterrupt):
        save_checkpoint(path, {"network": network}, {"step": 2.0})
    assert path.read_bytes() == before


def test_without_tensorboard_the_log_is_kept_and_told(monkeypatch, tmp_path, capsys):
    monkeypatch.undo()
    monkeypatch.setattr(module, "missing_modules", lambda extra: [extra])
    assert module._tensorboard(tmp_path / "diffusion", 0) is None
    assert "pip install 'anatogen[tensorboard]'" in capsys.readouterr().out
