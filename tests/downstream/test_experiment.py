"""The experiment in pieces: each made once, by whomever, and the same whatever happened on the way."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from labelled_dataset import write_labelled

from anatogen.config import resolve
from anatogen.downstream import experiment as experiment_module
from anatogen.downstream.experiment import run_experiment
from anatogen.downstream.labelled import load_labelled
from anatogen.downstream.pieces import Piece, collect_results, pieces
from anatogen.downstream.results import ResultRow, read_results, rows_text
from anatogen.downstream.settings import ExperimentPlan
from anatogen.downstream.shapes import random_shapes
from anatogen.errors import ConfigError, UserError


def plan_of(data: Path, **changes) -> ExperimentPlan:
    network = {"feature_size": 12}
    budget = {"batch_size": 1, "steps": 1}
    content = {
        "data": data,
        "arms": {"scratch": {}, "shapes": {"shapes": 2}},
        "fractions": (0.25, 1.0),
        "seeds": (0,),
        "pretraining": {"network": network, "inpainter_training": budget},
        "finetuning": {"network": network, "segmenter_training": budget},
    }
    return resolve(ExperimentPlan, content | changes)


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_labelled(tmp_path_factory.mktemp("experiment"))


def test_pieces_come_pretrainings_first_then_small_fractions_with_all_arms(data):
    plan = plan_of(data, fractions=(0.25, 0.5), seeds=(3, 4))
    names = [(piece.arm, piece.fraction, piece.seed) for piece in pieces(plan)]
    assert names[0] == ("shapes", None, None)
    assert names[1:5] == [
        ("scratch", 0.25, 3),
        ("shapes", 0.25, 3),
        ("scratch", 0.25, 4),
        ("shapes", 0.25, 4),
    ]
    assert len(names) == len(set(names)) == 9
    folders = {piece.folder(Path("out")) for piece in pieces(plan)}
    assert len(folders) == 9


def pretend(piece: Piece, plan: ExperimentPlan, out: Path) -> None:
    """Makes a piece's last file without any training."""
    if piece.fraction is None:
        weights = piece.folder(out) / "inpainter" / "weights.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(b"")
        return
    scores = {"1": 0.5 + piece.fraction / 3, "2": 0.7}
    rows = [
        ResultRow(
            arm=piece.arm,
            fraction=piece.fraction,
            seed=piece.seed,
            num_training_scans=round(4 * piece.fraction),
            case=case.id,
            patient=case.patient,
            dice=scores,
            surface_dice=scores,
            hausdorff95_mm=scores,
        )
        for case in load_labelled(plan.data).test.cases
    ]
    (piece.folder(out) / "results.jsonl").write_text(rows_text(rows))


def test_an_experiment_goes_the_whole_way(data, tmp_path, one_thread):
    out = tmp_path / "out"
    page = run_experiment(plan_of(data, fractions=(0.5,)), out)
    assert page.is_file()
    rows = read_results(out / "results.jsonl")
    assert [(row.arm, row.num_training_scans) for row in rows] == 2 * [("scratch", 2)] + 2 * [("shapes", 2)]
    assert {row.case for row in rows} == {case.id for case in load_labelled(data).test.cases}
    transfer = Piece("shapes", 0.5, 0).folder(out) / "segmenter" / "transfer.json"
    assert len(json.loads(transfer.read_text())["loaded"]) == 157
    assert not (Piece("scratch", 0.5, 0).folder(out) / "segmenter" / "transfer.json").exists()
    assert len(list(out.rglob("predictions/case_*.npy"))) == 4
    assert not list(out.rglob("checkpoint.pt"))


def test_a_stopped_experiment_repeats_nothing_and_ends_with_the_same_results(data, tmp_path, monkeypatch):
    plan = plan_of(data)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    made: list[str] = []
    stops_at = [None]

    def make(piece, plan, out):
        if len(made) == stops_at[0]:
            raise KeyboardInterrupt
        pretend(piece, plan, out)
        made.append(str(piece))

    monkeypatch.setattr(experiment_module, "_make", make)
    run_experiment(plan, whole)
    assert len(set(made)) == len(made) == 5
    made.clear()
    stops_at[0] = 3
    with pytest.raises(KeyboardInterrupt):
        run_experiment(plan, stopped)
    assert len(collect_results(plan, stopped)) == 2 * 2  # two fine-tunings, two test scans
    stops_at[0] = None
    run_experiment(plan, stopped)
    assert len(set(made)) == len(made) == 5
    assert (stopped / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()

    # A plan may grow, but not change what is finished.
    run_experiment(plan_of(data, seeds=(0, 1), fractions=(0.25,)), stopped)
    assert len(made) == 7
    with pytest.raises(UserError, match="other settings \\(tolerance_mm changed\\)"):
        run_experiment(plan_of(data, tolerance_mm=2), stopped)
    with pytest.raises(UserError, match="an arm changed"):
        run_experiment(plan_of(data, arms={"scratch": {}, "shapes": {"shapes": 3}}), stopped)


def test_a_piece_that_another_process_makes_is_left_to_it(data, tmp_path, monkeypatch):
    plan, out = plan_of(data, arms={"scratch": {}}, fractions=(1.0,)), tmp_path / "out"
    piece = Piece("scratch", 1.0, 0)
    made = []
    monkeypatch.setattr(experiment_module, "_SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(experiment_module, "_make", lambda *_: made.append(1))
    piece.folder(out).mkdir(parents=True)
    looks = threading.Event()
    monkeypatch.setattr(experiment_module.time, "sleep", lambda _: looks.set())
    lock = FileLock(piece.folder(out).with_suffix(".lock"))
    with lock:
        worker = threading.Thread(target=experiment_module._work, args=(plan, out, None), daemon=True)
        worker.start()
        assert looks.wait(timeout=30)
        assert not made
        (piece.folder(out) / "results.jsonl").write_text("")
    worker.join(timeout=30)
    assert not worker.is_alive() and not made


def test_bad_plans_are_named_before_anything_is_made(data, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match=r"fraction 0.05 of 4 training patients is none"):
        run_experiment(plan_of(data, fractions=(0.05, 1.0)), out)
    with pytest.raises(UserError, match=r"arm synthetic: .*nowhere is not a folder"):
        run_experiment(plan_of(data, arms={"synthetic": {"scans": str(tmp_path / "nowhere")}}), out)
    with pytest.raises(UserError, match="processes is 0"):
        run_experiment(plan_of(data), out, processes=0)
    assert not out.exists()
    with pytest.raises(ConfigError, match="names one value twice"):
        plan_of(data, seeds=(1, 1))
    with pytest.raises(ConfigError, match=r"pretraining.network.feature_size 24 differs"):
        plan_of(data, pretraining={"network": {"feature_size": 24}})
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "something").write_text("")
    with pytest.raises(UserError, match="is not empty and holds no experiment"):
        run_experiment(plan_of(data), tmp_path / "full")


def test_shapes_are_their_numbers_alone_and_look_like_scans_in_range():
    first = random_shapes((12, 20, 16), 0, 3)
    np.testing.assert_array_equal(first, random_shapes((12, 20, 16), 0, 3))
    assert first.dtype == np.float32 and first.shape == (12, 20, 16)
    assert first.min() >= -1 and first.max() <= 1 and first.std() > 0.1
    assert not np.array_equal(first, random_shapes((12, 20, 16), 0, 4))
    assert not np.array_equal(first, random_shapes((12, 20, 16), 1, 3))
