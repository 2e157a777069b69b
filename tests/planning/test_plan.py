"""A plan as a whole: what it writes is what `prepare` and `train` take, and its estimates hold."""

import json
import math
import shutil
import sys
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from scan_makers import ct_head, head
from synthetic_dataset import TINY, TINY_FLOW

import anatogen
from anatogen.cli.app import main
from anatogen.config.presets import FAMILIES, training_settings
from anatogen.config.resolving import parse_overrides
from anatogen.config.settings import LatentDiffusionSettings, WaveletFlowSettings
from anatogen.core.errors import ConfigError, UserError
from anatogen.dataset.manifest import Split, load_manifest
from anatogen.dataset.prepare_config import PrepareConfig, prepare_settings
from anatogen.io.nifti import write_nifti
from anatogen.planning.fingerprint import take_fingerprint
from anatogen.planning.plan import Plan, make_plan
from anatogen.training.cost.estimate import estimate_stage
from anatogen.training.cost.probe import Measurement
from anatogen.training.diffusion import DIFFUSION
from anatogen.training.flow import FLOW

# Networks of a few thousand weights, so that probe and training take moments.
PAPER = [text for text in TINY if not text.startswith(("autoencoder_training", "diffusion_training"))]
OVERRIDES = {
    "default": parse_overrides(
        [text for text in TINY_FLOW if not text.startswith(("pyramid.num_levels", "flow_training"))],
        WaveletFlowSettings,
    ),
    "paper": parse_overrides(PAPER, LatentDiffusionSettings),
}
of_each_family = pytest.mark.parametrize("preset", OVERRIDES)
NUM_SCANS = 12
QUICK = Measurement(
    seconds_per_step=1e-3,
    steps_between=(1e-3, 1e-3),
    waited=0.0,
    num_parameters={},
    seconds_of_others={"encode": 0.01, "denoise": 0.01, "decode": 0.01},
    peak_gb=0.5,
)


def write_scans(folder: Path, number: int = NUM_SCANS, make=head, name: str = "scan") -> Path:
    folder.mkdir(exist_ok=True)
    for index in range(number):
        write_nifti(make(index), folder / f"{name}_{index}.nii.gz")
    return folder


@pytest.fixture(scope="module")
def scans(tmp_path_factory) -> Path:
    return write_scans(tmp_path_factory.mktemp("plan") / "scans")


@pytest.fixture(scope="module")
def plans(scans) -> dict[str, Plan]:
    """The plan of a preset of each family."""
    # The speed of the machine is made up.
    with pytest.MonkeyPatch.context() as patch:
        for module in ("anatogen.planning.plan", "anatogen.training.cost.estimate"):
            patch.setattr(f"{module}.probe", lambda *_, **__: QUICK)
        return {preset: planned(scans, preset) for preset in OVERRIDES}


@pytest.fixture(scope="module")
def made(plans) -> Plan:
    return plans["default"]


def planned(scans: Path, preset: str = "default", hours: float = 0.01) -> Plan:
    return make_plan(
        scans,
        memory_gb=4,
        hours=hours,
        overrides=OVERRIDES[preset],
        preset=preset,
        device="cpu",
        workers=1,
        progress=False,
    )


@pytest.fixture(scope="module")
def folder(made, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    made.save(folder)
    return folder


@of_each_family
def test_the_saved_configurations_are_the_planned_ones(plans, preset, tmp_path):
    made = plans[preset]
    made.save(tmp_path)
    assert prepare_settings(config=tmp_path / "prepare.yaml") == made.prepare
    assert isinstance(made.training, FAMILIES[made.training.family])
    for name in ("default", "paper"):
        assert training_settings(name, config=tmp_path / "train.yaml") == made.training


def test_the_fingerprint_is_that_of_the_scans(made):
    found = made.fingerprint
    assert (found.num_scans, found.num_patients, found.modality) == (NUM_SCANS, NUM_SCANS, "MR")
    assert found.size.median == (20, 24, 18) and found.spacing_mm.median == (1, 1, 1)
    # The ellipsoid's half axes are sqrt(0.7) of the scan's.
    expected = np.sqrt(0.7) * np.array([19, 23, 17])
    np.testing.assert_allclose(found.foreground_mm.median, expected, atol=2)


def test_an_archive_has_the_fingerprint_of_its_folder(scans, made, tmp_path):
    archive = Path(shutil.make_archive(str(tmp_path / "scans"), "zip", scans))
    assert take_fingerprint(archive, PrepareConfig(), workers=1, progress=False) == made.fingerprint


def test_a_plan_says_nothing_of_files_and_patients(folder):
    text = (folder / "plan.json").read_text()
    assert "scan_" not in text and str(folder.parent) not in text and "nii" not in text
    assert set(json.loads(text)) >= {"fingerprint", "reasons", "warnings", "estimates", "grid"}


@pytest.mark.parametrize(
    ("preset", "stage", "others"),
    [("default", FLOW, {"denoise"}), ("paper", DIFFUSION, {"encode", "denoise", "decode"})],
)
def test_estimated_memory_is_within_a_fifth_of_the_measured(plans, preset, stage, others):
    """The one test that starts processes to probe: of the stages that have most to measure."""
    made = plans[preset]
    estimate = estimate_stage(stage, made.training, made.grid, NUM_SCANS, device="cpu")
    assert estimate.measured is not None and estimate.measured.seconds_per_step > 0
    assert estimate.measured.seconds_of_others.keys() == others
    assert estimate.memory_gb == pytest.approx(estimate.measured.peak_gb, rel=0.2)


def test_the_text_gives_reasons_and_warnings(made):
    text = made.text()
    assert all(reason in text for reason in (*made.reasons, *made.warnings))
    assert "12 MR scans of 12 patients" in text and "GB at most" in text


@of_each_family
def test_scans_are_prepared_and_trained_by_the_plan(scans, plans, preset, tmp_path):
    made, data, run = plans[preset], tmp_path / "data", tmp_path / "run"
    made.save(tmp_path)
    anatogen.prepare(scans, data, config=tmp_path / "prepare.yaml")
    manifest = load_manifest(data)
    assert manifest.grid.shape == made.grid.shape
    np.testing.assert_allclose(manifest.grid.affine, made.grid.affine)
    # Three patients of twelve are enough for the audit, one for validation.
    assert len(manifest.split(Split.TEST)) == round(0.3 * NUM_SCANS)
    bundle = anatogen.train(data, run, config=tmp_path / "train.yaml", steps=2, device="cpu")
    assert anatogen.load_bundle(bundle).generate([0]).shape == (1, *made.grid.shape)


def test_a_plan_depends_on_nothing_but_scans_settings_and_what_was_timed(scans, made, monkeypatch):
    for module in ("anatogen.planning.plan", "anatogen.training.cost.estimate"):
        monkeypatch.setattr(f"{module}.probe", lambda *_, **__: QUICK)
        # Counting is tested to give the same twice, and takes seconds.
        monkeypatch.setattr(f"{module}.peak_memory_gb", lambda *_, **__: 0.5)
    first, second = (planned(scans, hours=1) for _ in range(2))
    assert first == second and first.prepare == made.prepare


def test_a_prepared_dataset_is_not_planned(tmp_path):
    (tmp_path / "dataset.json").write_text("{}")
    with pytest.raises(UserError, match="is a prepared dataset: plan the scans"):
        make_plan(tmp_path, device="cpu")


def test_scans_that_cannot_work_are_told_in_one_line(tmp_path):
    few = write_scans(tmp_path / "few", 3)
    mixed = write_scans(write_scans(tmp_path / "mixed", 6), 5, ct_head, "ct")
    flat = tmp_path / "flat"
    flat.mkdir()
    for index in range(12):
        picture = np.random.default_rng(index).normal(size=(64, 64)).astype(np.float32)
        nib.save(nib.Nifti1Image(picture, np.eye(4)), flat / f"{index}.nii.gz")
    (tmp_path / "empty").mkdir()
    for folder, message in (
        (few, "3 scans of 3 patients are too few"),
        (mixed, "the scans mix modalities: 5 look like CT by their values and 6 like MR"),
        (flat, "none of the 12 scans .* can be used"),
        (tmp_path / "empty", "holds no scans"),
        (tmp_path / "nowhere", "no folder and no archive"),
    ):
        with pytest.raises(UserError, match=message) as error:
            make_plan(folder, device="cpu", workers=1, progress=False)
        assert "\n" not in str(error.value)


def test_settings_that_are_wrong_are_told_before_scans_are_read(tmp_path):
    for overrides, message in (
        ({"spacing_m": 3}, "did you mean spacing_mm"),
        ({"details": {"widht": 3}}, "did you mean details.width"),
        ({"recipe": "none"}, "recipe 'none' is unknown"),
    ):
        with pytest.raises((ConfigError, UserError), match=message):
            make_plan(tmp_path / "nowhere", overrides=overrides)
    for values in (
        {"hours": 0},
        {"hours": math.inf},
        {"memory_gb": -1},
        {"device": "tpu"},
        {"recipe": "nothing"},
    ):
        with pytest.raises(UserError, match=next(iter(values)).removesuffix("_gb")):
            make_plan(tmp_path / "nowhere", **values)


def test_steps_that_are_settled_to_be_without_limit_leave_the_hours(scans, monkeypatch):
    for module in ("anatogen.planning.plan", "anatogen.training.cost.estimate"):
        monkeypatch.setattr(f"{module}.probe", lambda *_, **__: QUICK)
    monkeypatch.setitem(OVERRIDES, "default", OVERRIDES["default"] | {"flow_training": {"steps": None}})
    budget = planned(scans, hours=0.5).training.flow_training
    assert budget.steps is None and budget.minutes == pytest.approx(0.9 * 30)


def test_the_command_prints_and_saves_the_plan(scans, made, tmp_path, monkeypatch, capsys):
    calls = []
    monkeypatch.setattr("anatogen.planning.plan.make_plan", lambda *a, **k: calls.append((a, k)) or made)
    out = tmp_path / "out"
    arguments = ["plan", str(scans), str(out), "spacing_mm=2", "--memory-gb", "24", "--hours", "2"]
    arguments += ["--records", str(tmp_path / "records")]
    monkeypatch.setattr(sys, "argv", ["anatogen", *arguments])
    with pytest.raises(SystemExit) as end:
        main()
    assert end.value.code == 0
    ((positional, named),) = calls
    assert positional == (scans,) and named["overrides"] == {"spacing_mm": 2}
    assert (named["memory_gb"], named["hours"]) == (24, 2)
    shown = capsys.readouterr().out
    assert made.text() in shown and f"anatogen train DATA RUN --config {out / 'train.yaml'}" in shown
    assert f"--config {out / 'prepare.yaml'} --records {tmp_path / 'records'}" in shown
    assert sorted(path.name for path in out.iterdir()) == ["plan.json", "prepare.yaml", "train.yaml"]


def test_the_time_of_a_scan_is_that_of_its_steps(plans):
    # At 0.01 s each: three steps, of latents also a decoding.
    assert plans["paper"].estimates.sample_seconds == pytest.approx(0.04)
    assert plans["default"].estimates.sample_seconds == pytest.approx(0.03)
    assert "a synthetic scan: 0.03 s" in plans["default"].text()


def test_a_stage_that_does_not_fit_is_not_tried(made, monkeypatch):
    monkeypatch.setattr("anatogen.training.cost.estimate.peak_memory_gb", lambda *_, **__: 1e6)
    estimate = estimate_stage(FLOW, made.training, made.grid, 10, device="cpu")
    assert estimate.measured is None and estimate.seconds is None and estimate.memory_gb == 1e6
