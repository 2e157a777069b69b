"""The experiment's jobs: each done once, by whomever, and the same whatever happened on the way."""

import json
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from synthetic_dataset import write_dataset

from anatogen.config.resolving import resolve
from anatogen.core.errors import ConfigError, UserError
from anatogen.dataset.manifest import load_manifest
from anatogen.dataset.scan_sets import load_scans
from anatogen.downstream.experiment import run as experiment_module
from anatogen.downstream.experiment.plan import Arm, ExperimentPlan
from anatogen.downstream.experiment.results import ResultRow, read_results, rows_text, write_results
from anatogen.downstream.experiment.run import run_experiment
from anatogen.downstream.experiment.shapes import random_shapes
from anatogen.downstream.experiment.trials import Pretraining, Trial, pretrainings, trials
from anatogen.downstream.inpainting import InpaintingQuality, save_inpainting_quality
from anatogen.downstream.labelled import load_labelled


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


@pytest.fixture
def data(labelled) -> Path:
    return labelled


def test_trials_come_small_fractions_first_with_all_arms(data):
    plan = plan_of(data, fractions=(0.25, 0.5), seeds=(3, 4))
    assert pretrainings(plan) == [Pretraining("shapes")]
    found = trials(plan)
    assert found[:4] == [
        Trial("scratch", 0.25, 3),
        Trial("shapes", 0.25, 3),
        Trial("scratch", 0.25, 4),
        Trial("shapes", 0.25, 4),
    ]
    assert len(found) == len(set(found)) == 8
    assert len({job.folder(Path("out")) for job in (*pretrainings(plan), *found)}) == 9


def pretend(job, plan: ExperimentPlan, out: Path) -> None:
    """Makes a job's last file without any training."""
    if isinstance(job, Pretraining):
        weights = job.folder(out) / "inpainter" / "weights.safetensors"
        weights.parent.mkdir(parents=True, exist_ok=True)
        weights.write_bytes(b"")
        return
    scores = {"1": 0.5 + job.fraction / 3, "2": 0.7}
    rows = [
        ResultRow(
            arm=job.arm,
            fraction=job.fraction,
            seed=job.seed,
            num_training_scans=round(4 * job.fraction),
            case=case.id,
            patient=case.patient,
            dice=scores,
            surface_dice=scores,
            hausdorff95_mm=scores,
        )
        for case in load_labelled(plan.data).test.cases
    ]
    (job.folder(out) / "results.jsonl").write_text(rows_text(rows))


def test_an_experiment_goes_the_whole_way(data, tmp_path, one_thread, small_network):
    out = tmp_path / "out"
    page = run_experiment(plan_of(data, fractions=(0.5,)), out)
    assert "2 volumes of random shapes; fills in hidden voxels with a loss of" in page.read_text()
    warning = "Pre-training on shapes taught next to nothing"
    for loss, warned in ((0.4, True), (0.3, False)):
        save_inpainting_quality(
            InpaintingQuality(network=loss, copying=0.4), Pretraining("shapes").folder(out)
        )
        page = run_experiment(plan_of(data, fractions=(0.5,)), out)
        assert (warning in page.read_text()) is warned
    rows = read_results(out / "results.jsonl")
    assert [(row.arm, row.num_training_scans) for row in rows] == 2 * [("scratch", 2)] + 2 * [("shapes", 2)]
    assert {row.case for row in rows} == {case.id for case in load_labelled(data).test.cases}
    transfer = Trial("shapes", 0.5, 0).folder(out) / "segmenter" / "transfer.json"
    assert len(json.loads(transfer.read_text())["loaded"]) == 6
    assert not (Trial("scratch", 0.5, 0).folder(out) / "segmenter" / "transfer.json").exists()
    assert len(list(out.rglob("predictions/case_*.npy"))) == 4
    assert not list(out.rglob("checkpoint.pt"))


def test_a_stopped_experiment_repeats_nothing_and_ends_with_the_same_results(data, tmp_path, monkeypatch):
    plan = plan_of(data)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    made: list[str] = []
    stops_at = [None]

    def make(job, plan, out):
        if len(made) == stops_at[0]:
            raise KeyboardInterrupt
        pretend(job, plan, out)
        made.append(str(job))

    monkeypatch.setattr(experiment_module, "_do", make)
    run_experiment(plan, whole)
    assert len(set(made)) == len(made) == 5
    made.clear()
    stops_at[0] = 3
    with pytest.raises(KeyboardInterrupt):
        run_experiment(plan, stopped)
    rows = read_results(stopped / "results.jsonl")
    assert len(rows) == 2 * 2  # two fine-tunings, two test scans
    assert rows == write_results(plan, stopped)
    stops_at[0] = None
    run_experiment(plan, stopped)
    assert len(set(made)) == len(made) == 5
    assert (stopped / "results.jsonl").read_bytes() == (whole / "results.jsonl").read_bytes()

    # A plan may grow, but not change what is finished.
    run_experiment(plan_of(data, seeds=(0, 1), fractions=(0.25,)), stopped)
    assert len(made) == 7
    with pytest.raises(UserError, match="other settings \\(tolerance_mm changed\\)"):
        run_experiment(plan_of(data, tolerance_mm=2), stopped)
    with pytest.raises(UserError, match="arm shapes changed"):
        run_experiment(plan_of(data, arms={"scratch": {}, "shapes": {"shapes": 3}}), stopped)


@pytest.mark.parametrize(("seconds_between", "drawn"), [(0.0, 6), (3600.0, 2)])
def test_the_page_is_drawn_at_first_when_it_is_old_and_at_the_end(
    data, tmp_path, monkeypatch, seconds_between, drawn
):
    pages = []

    def draw(plan, splits, rows, out):
        pages.append(out / "experiment.html")
        pages[-1].touch()
        return pages[-1]

    monkeypatch.setattr(experiment_module, "_do", pretend)
    monkeypatch.setattr(experiment_module, "write_experiment_page", draw)
    monkeypatch.setattr(experiment_module, "_SECONDS_BETWEEN_PAGES", seconds_between)
    run_experiment(plan_of(data), tmp_path / "out")  # five jobs
    assert len(pages) == drawn


@pytest.mark.parametrize("error", [UserError, torch.OutOfMemoryError])
def test_a_failed_job_keeps_no_other_from_being_done(data, tmp_path, monkeypatch, capfd, error):
    plan, out = (
        plan_of(data, arms={"scratch": {}, "shapes": {"shapes": 1}, "more": {"shapes": 2}}),
        tmp_path / "out",
    )

    def make(job, plan, out):
        if job == Pretraining("shapes"):
            raise error("the scans are no scans: use others")
        pretend(job, plan, out)

    monkeypatch.setattr(experiment_module, "_do", make)
    with pytest.raises(UserError, match=r"jobs of .* failed, see above"):
        run_experiment(plan, out)
    assert "pre-training shapes failed: the scans are no scans: use others\n" in capfd.readouterr().err
    rows = read_results(out / "results.jsonl")
    assert {row.arm for row in rows} == {"scratch", "more"}
    assert len(rows) == 2 * 2 * 2
    assert (out / "experiment.html").is_file()


def test_an_arm_keeps_its_meaning_while_a_plan_leaves_it_out(data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    monkeypatch.setattr(experiment_module, "_do", pretend)
    run_experiment(plan_of(data), out)
    run_experiment(plan_of(data, arms={"scratch": {}}), out)
    with pytest.raises(UserError, match="arm shapes changed"):
        run_experiment(plan_of(data, arms={"scratch": {}, "shapes": {"shapes": 7}}), out)


def test_a_folder_may_be_written_in_two_ways(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Arm(scans=("a:train",)).resolved() == Arm(scans=(str(tmp_path / "a:train"),)).resolved()


def test_what_a_killed_start_left_keeps_nobody_out(data, tmp_path, monkeypatch):
    out = tmp_path / "out"
    out.mkdir()
    for name in ("dataset.sha256", ".part-abc.yaml", ".claim.lock"):
        (out / name).write_text("")
    monkeypatch.setattr(experiment_module, "_do", pretend)
    assert run_experiment(plan_of(data), out).is_file()


@pytest.mark.parametrize("modality", ["CT", "MR"])
def test_shapes_span_the_range_that_networks_see(tmp_path, monkeypatch, modality):
    target = write_dataset(tmp_path / "target", modality=modality)
    plan = plan_of(target, arms={"shapes": {"shapes": 3}})
    experiment_module._write_shapes(plan, load_manifest(target), tmp_path)
    arrays = load_scans(tmp_path / "shapes_3", "pre-training", load_scans(target, "target")).arrays
    assert arrays.shape == (3, 16, 16, 16)
    assert arrays.min() == -1
    assert arrays.max() > 0.5
    assert arrays.std() > 0.2


def test_arms_have_equal_budgets_unless_patience_is_asked_for(data):
    assert plan_of(data).finetuning.patience is None
    network = {"feature_size": 12}
    patient = plan_of(data, finetuning={"network": network, "patience": 3})
    assert patient.finetuning.patience == 3


def test_a_trial_that_another_process_does_is_left_to_it(data, tmp_path, monkeypatch):
    plan, out = plan_of(data, arms={"scratch": {}}, fractions=(1.0,)), tmp_path / "out"
    trial = Trial("scratch", 1.0, 0)
    made = []
    monkeypatch.setattr(experiment_module, "_SECONDS_BETWEEN_LOOKS", 0.05)
    monkeypatch.setattr(experiment_module, "_do", lambda *_: made.append(1))
    trial.folder(out).mkdir(parents=True)
    looks = threading.Event()
    monkeypatch.setattr(experiment_module.time, "sleep", lambda _: looks.set())
    lock = FileLock(trial.folder(out).with_suffix(".lock"))
    with lock:
        worker = threading.Thread(target=experiment_module._work, args=(plan, out), daemon=True)
        worker.start()
        assert looks.wait(timeout=30)
        assert not made
        (trial.folder(out) / "results.jsonl").write_text("")
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
