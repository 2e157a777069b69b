"""`anatogen run`: killed anywhere and called again, it goes on, and ends as if it had not been."""

import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from decodes import count_decodes
from quick_machine import make_quick
from scan_makers import head
from synthetic_dataset import TINY

import anatogen
from anatogen.config.resolving import merged, parse_overrides
from anatogen.config.settings import LatentDiffusionSettings
from anatogen.core.errors import UserError
from anatogen.io import archives
from anatogen.io.nifti import write_nifti
from anatogen.workflow.request import FOLDERS, RunRequest
from anatogen.workflow.run import run, scans_fingerprint, stages

pytestmark = pytest.mark.usefixtures("one_thread")

SCANS: dict[str, Any] = {"shape": [16, 16, 16], "split": {"test": 0.35}}
OVERRIDES: dict[str, Any] = SCANS | {
    "coarse": {"width": 16, "multipliers": [1, 2], "num_blocks": 1},
    "details": {"width": 16, "multipliers": [1], "num_blocks": 1},
    "pyramid": {"crop": 8},
    "flow_training": {"batch_size": 2, "steps": 6},
    "flow": {"sampling_steps": 2},
    "training": {"checkpoint_minutes": 0.00001, "check_steps": 4},
}
LATENT_OVERRIDES: dict[str, Any] = merged(
    SCANS | parse_overrides(TINY, LatentDiffusionSettings), {"training": {"checkpoint_minutes": 0.00001}}
)


OPTIONS: dict[str, Any] = {
    "overrides": OVERRIDES,
    "hours": 0.01,
    "num_samples": 4,
    "memory_gb": 4.0,
    "workers": 1,
    "device": "cpu",
    "progress": False,
}


class Killed(BaseException):
    """Stands for a kill: nothing in the program catches it."""


@pytest.fixture(scope="module", autouse=True)
def quick() -> Any:
    with pytest.MonkeyPatch.context() as patch:
        make_quick(patch)
        yield


@pytest.fixture(scope="module")
def scans(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run") / "scans"
    for seed in range(12):
        write_nifti(head(seed, (16, 16, 16)), folder / f"scan{'abcdefghijkl'[seed]}.nii.gz")
    return folder


def request_for(scans: Path, out: Path, **changed: Any) -> RunRequest:
    return RunRequest(scans, out, **(OPTIONS | {"recipe": None, "preset": "default", "seed": 0} | changed))


def result(out: Path) -> dict[str, bytes]:
    """What is there of all that must not depend on where a run was stopped; times and dates do."""
    kept = {}
    for folder in ("plan", "data", "model/bundle", "synthetic"):
        for path in sorted((out / folder).rglob("*")):
            if path.is_file() and not any(part.startswith(".") for part in path.relative_to(out).parts):
                kept[path.relative_to(out).as_posix()] = path.read_bytes()
    for name in ("report/report.json", "doctor/doctor.json"):
        if (out / name).is_file():
            content = json.loads((out / name).read_text(encoding="utf-8"))
            content.pop("created", None)
            kept[name] = json.dumps(content, sort_keys=True).encode()
    return kept


@pytest.fixture(scope="module")
def whole(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "out"
    page = run(request_for(scans, out))
    assert page == out / "index.html"
    return out


def count_work(patch: pytest.MonkeyPatch) -> list[str]:
    """Records each stage whose work is done, as it begins."""
    done: list[str] = []
    for name in FOLDERS:
        function = getattr(sys.modules["anatogen.workflow.run"], f"_{name}")

        def work(
            given: RunRequest, name: str = name, function: Callable[[RunRequest], None] = function
        ) -> None:
            done.append(name)
            function(given)

        patch.setattr(f"anatogen.workflow.run._{name}", work)
    return done


def kill_at_call(patch: pytest.MonkeyPatch, target: str, number: int) -> None:
    """Makes the function of that name kill the program when it is called for the number-th time."""
    module, name = target.rsplit(".", 1)
    __import__(module)
    function = getattr(sys.modules[module], name)
    calls = []

    def call(*arguments: Any, **named: Any) -> Any:
        calls.append(1)
        if len(calls) == number:
            raise Killed
        return function(*arguments, **named)

    patch.setattr(target, call)


# The stage that is killed, and where within it.
KILLS = [
    ("doctor", "anatogen.dataset.survey.record_scan", 5),
    ("doctor", "anatogen.doctor.page.write_page", 1),
    ("plan", "anatogen.planning.plan.take_fingerprint", 1),
    ("plan", "anatogen.planning.plan.write_json", 1),
    ("prepare", "anatogen.dataset.prepare.convert_scan", 4),
    ("prepare", "anatogen.dataset.prepare.publish", 1),
    ("train", "anatogen.training.flow.checked_losses", 1),
    ("train", "anatogen.training.wavelet_flow._write_bundle", 1),
    ("sample", "anatogen.io.formats.write_scan", 3),
    ("evaluate", "anatogen.evaluation.evaluate.measure_diversity", 1),
    ("evaluate", "anatogen.evaluation.evaluate.write_report", 1),
]


def begun(whole: Path, out: Path, stage: str) -> list[str]:
    """Copies what a run had made when the stage was to begin; returns the stages before it."""
    before = list(FOLDERS)[: list(FOLDERS).index(stage)]
    out.mkdir()
    for name in before:
        shutil.copytree(whole / FOLDERS[name], out / FOLDERS[name])
    state = json.loads((whole / "run.json").read_text(encoding="utf-8"))
    state["stages"] = {name: state["stages"][name] for name in before}
    (out / "run.json").write_text(json.dumps(state), encoding="utf-8")
    return before


def run_through(asked: RunRequest, stage: str) -> list[str]:
    """Runs until the stage after this one begins; returns the stages that were worked on."""
    following = [*FOLDERS, "end"][list(FOLDERS).index(stage) + 1]
    with pytest.MonkeyPatch.context() as patch:
        done = count_work(patch)
        if following != "end":
            kill_at_call(patch, f"anatogen.workflow.run._{following}", 1)
        try:
            run(asked)
        except Killed:
            assert following != "end"
    return done


@pytest.mark.parametrize(("stage", "target", "number"), KILLS, ids=lambda value: str(value).rsplit(".")[-1])
def test_a_run_killed_within_a_stage_goes_on_and_ends_in_the_same(
    scans: Path, whole: Path, tmp_path: Path, stage: str, target: str, number: int
) -> None:
    out = tmp_path / "out"
    asked = request_for(scans, out)
    before = begun(whole, out, stage)
    with pytest.MonkeyPatch.context() as patch:
        done = count_work(patch)
        kill_at_call(patch, target, number)
        with pytest.raises(Killed):
            run(asked)
    assert done == [stage]
    recorded = json.loads((out / "run.json").read_text(encoding="utf-8"))["stages"]
    assert recorded.keys() == set(before)
    assert run_through(asked, stage) == [stage]
    made = result(out)
    assert made and made == {name: result(whole)[name] for name in made}
    assert made.keys() >= {name for name in result(whole) if name.startswith(FOLDERS[stage])}


def test_scans_are_decoded_twice_on_the_whole_way(scans: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        decodes = count_decodes(patch)
        kill_at_call(patch, "anatogen.workflow.run._train", 1)
        with pytest.raises(Killed):
            run(request_for(scans, tmp_path / "out"))
    assert decodes == {path.name: 2 for path in scans.iterdir()}


@pytest.mark.parametrize("stage", FOLDERS)
def test_a_run_killed_before_or_after_a_stage_is_recorded(
    scans: Path, whole: Path, tmp_path: Path, stage: str
) -> None:
    out = tmp_path / "out"
    asked = request_for(scans, out)
    begun(whole, out, stage)
    if stage != "evaluate":  # minutes on a slow machine, and its folder is whole all the same
        with pytest.MonkeyPatch.context() as patch:
            # The stage is done and its record is not written: it must find its own output whole.
            kill_at_call(patch, "anatogen.workflow.run.write_json", 2)
            with pytest.raises(Killed):
                run(asked)
    with pytest.MonkeyPatch.context() as patch:
        done = count_work(patch)
        kill_at_call(patch, "anatogen.workflow.run.write_index", 1)
        with pytest.raises(Killed):
            run(asked)
    assert done == [stage]
    made = result(out)
    assert made == {name: result(whole)[name] for name in made}
    # Recorded now: the next call begins with the stage after it.
    following = list(FOLDERS)[list(FOLDERS).index(stage) + 1 :][:1]
    with pytest.MonkeyPatch.context() as patch:
        done = count_work(patch)
        if following:
            kill_at_call(patch, f"anatogen.workflow.run._{following[0]}", 1)
            with pytest.raises(Killed):
                run(asked)
        else:
            run(asked)
    assert done == []


def test_a_process_killed_in_training_goes_on(scans: Path, whole: Path, tmp_path: Path) -> None:
    asked = request_for(scans, tmp_path / "out")
    begun(whole, tmp_path / "out", "train")
    code = (
        "import sys; from pathlib import Path; import torch\n"
        "from anatogen.config.presets import training_settings\n"
        "from anatogen.training.train import train\n"
        "if __name__ == '__main__':\n"
        "    torch.set_num_threads(1)\n"
        f"    out = Path({str(tmp_path / 'out')!r})\n"
        "    settings = training_settings(config=out / 'plan' / 'train.yaml')\n"
        "    train(out / 'data', out / 'model', settings, device='cpu')\n"
    )
    (tmp_path / "train.py").write_text(code)
    process = subprocess.Popen([sys.executable, str(tmp_path / "train.py")], stdout=subprocess.DEVNULL)
    log = tmp_path / "out" / "model" / "flow" / "log.jsonl"
    while process.poll() is None and not (log.is_file() and log.stat().st_size):
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not (tmp_path / "out" / "model" / "bundle").exists()
    assert run_through(asked, "train") == ["train"]
    bundle = {name: content for name, content in result(whole).items() if name.startswith("model/bundle")}
    assert bundle and bundle.items() <= result(tmp_path / "out").items()


@pytest.fixture(scope="module")
def latent(scans: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of latent diffusion up to its sampling."""
    out = tmp_path_factory.mktemp("latent") / "out"
    run_through(request_for(scans, out, overrides=LATENT_OVERRIDES, preset="paper"), "train")
    return out


def test_a_run_of_latent_diffusion_goes_on(scans: Path, latent: Path, tmp_path: Path) -> None:
    asked = request_for(scans, tmp_path / "out", overrides=LATENT_OVERRIDES, preset="paper")
    begun(latent, tmp_path / "out", "train")
    for place in ("_require_fit", "_write_bundle"):
        with pytest.MonkeyPatch.context() as patch:
            kill_at_call(patch, f"anatogen.training.latent_diffusion.{place}", 1)
            with pytest.raises(Killed):
                run(asked)
    assert run_through(asked, "train") == ["train"]
    assert result(tmp_path / "out") == result(latent)
    page = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "Train autoencoder and diffusion model" in page


def test_only_what_depends_on_a_change_is_done_again(scans: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)

    def redone(**changed: Any) -> list[str]:
        with pytest.MonkeyPatch.context() as patch:
            done = count_work(patch)
            run(request_for(scans, out, **changed))
        return done

    assert redone() == []
    assert redone(num_samples=5) == ["sample", "evaluate"]
    assert len(list((out / "synthetic").glob("*.nii.gz"))) == 5
    assert redone(num_samples=4) == ["sample", "evaluate"]
    assert result(out) == result(whole)
    assert redone(seed=1) == ["sample", "evaluate"]
    assert result(out)["synthetic/synthetic_000000.json"] != result(whole)["synthetic/synthetic_000000.json"]
    assert redone() == ["sample", "evaluate"]
    assert result(out) == result(whole)
    next((out / "data" / "volumes").iterdir()).unlink()
    # The dataset comes out as it was, so that nothing after it has other inputs.
    assert redone() == ["prepare"]
    next((out / "model" / "bundle").glob("*.safetensors")).unlink()
    assert redone() == ["train"]
    next((out / "synthetic").glob("*.nii.gz")).unlink()
    assert redone() == ["sample"]
    assert result(out) == result(whole)
    # Files that were cut short are there, and are no more taken for whole.
    for damaged, stage in (("data/volumes", "prepare"), ("model/bundle", "train"), ("synthetic", "sample")):
        path = next(path for path in sorted((out / damaged).iterdir()) if path.suffix != ".json")
        path.write_bytes(path.read_bytes()[:-9])
        assert redone() == [stage]
        assert result(out) == result(whole)


def test_a_changed_setting_of_training_sets_the_old_model_aside(
    scans: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    bundle = {path.name: path.read_bytes() for path in (out / "model" / "bundle").iterdir()}
    changed = merged(OVERRIDES, {"details": {"width": 32}})
    run(request_for(scans, out, overrides=changed))
    aside = {path.name: path.read_bytes() for path in (out / "model_1" / "bundle").iterdir()}
    assert aside == bundle
    now = {path.name: path.read_bytes() for path in (out / "model" / "bundle").iterdir()}
    assert now.keys() == bundle.keys() and now != bundle


def test_the_fingerprint_sees_every_change_also_behind_links(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "scans", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "link").symlink_to(elsewhere)
    (elsewhere / "circle").symlink_to(folder)
    seen = {scans_fingerprint(folder)}
    (elsewhere / "a.nii").write_bytes(b"1")
    seen.add(scans_fingerprint(folder))
    (elsewhere / "a.nii").write_bytes(b"12")
    seen.add(scans_fingerprint(folder))
    os.utime(elsewhere / "a.nii", (1, 1))
    seen.add(scans_fingerprint(folder))
    (elsewhere / "a.nii").rename(elsewhere / "b.nii")
    seen.add(scans_fingerprint(folder))
    assert len(seen) == 5 and scans_fingerprint(folder) in seen


def test_another_table_of_patients_is_another_source(scans: Path, tmp_path: Path) -> None:
    table = tmp_path / "patients.csv"
    asked = request_for(scans, tmp_path / "out", overrides={"patient_csv": table})
    with pytest.raises(UserError, match="can't be read"):
        run(asked)
    keys = set()
    for text in ("file,patient\n", "file,patient\nscana.nii.gz,P1\n"):
        table.write_text(text, encoding="utf-8")
        keys.add(json.dumps(stages(asked)[0].inputs(), default=str))
    assert len(keys) == 2 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["table.csv", "Table.XLSX"])
def test_a_table_beside_the_download_is_a_source_of_a_recipe(tmp_path: Path, name: str) -> None:
    (tmp_path / "scans").mkdir()
    archive = Path(shutil.make_archive(str(tmp_path / "scans"), "zip", tmp_path / "scans"))

    def inputs(scans: Path, recipe: str | None) -> Any:
        return stages(request_for(scans, tmp_path / "out", recipe=recipe))[0].inputs()

    for scans in (tmp_path / "scans", archive):
        (tmp_path / name).unlink(missing_ok=True)
        without, plain = inputs(scans, "adni"), inputs(scans, None)
        (tmp_path / name).write_text("subject,group")
        first = inputs(scans, "adni")
        (tmp_path / name).write_text("subject,group,sex")
        assert without != first != inputs(scans, "adni")
        assert plain == inputs(scans, None)


def test_a_dry_run_shows_the_plan_and_stops(
    scans: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(request_for(scans, tmp_path / "out"), dry_run=True) is None
    assert "12 MR scans of 12 patients" in capsys.readouterr().out
    assert not (tmp_path / "out" / "data").exists()
    with pytest.MonkeyPatch.context() as patch:
        done = count_work(patch)
        run(request_for(scans, tmp_path / "out"), dry_run=True)
    assert done == []
    assert "12 MR scans of 12 patients" in capsys.readouterr().out


def test_the_page_tells_what_was_decided_and_judged(whole: Path) -> None:
    text = (whole / "index.html").read_text(encoding="utf-8")
    plan = json.loads((whole / "plan" / "plan.json").read_text(encoding="utf-8"))
    for part in (
        "4 synthetic ones",
        "doctor/doctor.html",
        "report/report.html",
        "data:image/png",
        "stays in your",
        "Train a wavelet flow",
    ):
        assert part in text
    assert all(reason.split("'")[0][:30] in text for reason in plan["reasons"])
    assert "http:" not in text and "https:" not in text and "<script" not in text


def test_what_can_not_be_judged_is_told_and_the_run_ends(scans: Path, whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    run(request_for(scans, out, num_samples=2))
    assert "4 are needed at least" in (out / "report" / "not_evaluated.txt").read_text(encoding="utf-8")
    assert "4 are needed at least" in (out / "index.html").read_text(encoding="utf-8")
    run(request_for(scans, out))
    assert not (out / "report" / "not_evaluated.txt").exists()
    assert result(out) == result(whole)


def test_scans_are_judged_on_the_device_that_was_asked_for_and_errors_are_not_hidden(
    scans: Path, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    shutil.copytree(whole, out)
    (out / "report" / "report.json").unlink()
    asked = []

    def fails(*_: object, device: str, **__: object) -> None:
        asked.append(device)
        raise UserError("the bundle is damaged")

    monkeypatch.setattr("anatogen.evaluation.evaluate.evaluate", fails)
    for _ in range(2):
        with pytest.raises(UserError, match="the bundle is damaged"):
            run(request_for(scans, out))
    assert asked == ["cpu", "cpu"]


def test_an_archive_is_unpacked_once_and_gives_what_its_folder_gives(
    scans: Path, whole: Path, tmp_path: Path
) -> None:
    archive = Path(shutil.make_archive(str(tmp_path / "scans"), "zip", scans))
    asked = request_for(archive, tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch:
        unpacked: list[Path] = []
        real = archives._unpack
        patch.setattr(archives, "_unpack", lambda path, folder: (unpacked.append(path), real(path, folder)))
        run(asked)
        assert unpacked == [archive]
        done = count_work(patch)
        run(asked)
        assert not done and len(unpacked) == 1
    assert not list((tmp_path / "out").rglob(".unpacked"))
    found, wanted = result(tmp_path / "out"), result(whole)
    # Holds a hash of the sources' times, which an archive tells to two seconds.
    assert found.pop("data/prepare.json") and wanted.pop("data/prepare.json")
    assert found == wanted


@pytest.mark.parametrize(
    "stage", ["anatogen.dataset.survey.record_scan", "anatogen.planning.plan.take_fingerprint"]
)
def test_no_unpacked_scans_stay_when_a_run_ends(scans: Path, tmp_path: Path, stage: str) -> None:
    asked = request_for(Path(shutil.make_archive(str(tmp_path / "scans"), "zip", scans)), tmp_path / "out")
    with pytest.MonkeyPatch.context() as patch, pytest.raises(Killed):
        kill_at_call(patch, stage, 1)
        run(asked)
    assert not (tmp_path / "out" / ".unpacked").exists()
    run(asked, dry_run=True)
    assert not (tmp_path / "out" / ".unpacked").exists()


def test_what_can_not_be_is_refused_before_anything_is_made(scans: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("mine")
    (tmp_path / "flat").mkdir()
    np.save(tmp_path / "flat" / "a.npy", np.zeros((2, 8, 8), np.float32))
    for asked, message in (
        (request_for(tmp_path / "none", tmp_path / "out"), "is no folder and no archive"),
        (request_for(scans, tmp_path / "mine"), "not empty and holds no run"),
        (request_for(scans, scans / "out"), "lie inside one another"),
        (request_for(scans, tmp_path / "out", num_samples=0), "num_samples is 0"),
        (request_for(scans, tmp_path / "out", hours=0), "hours is 0"),
        (request_for(scans, tmp_path / "out", hours=math.inf), "hours is inf"),
        (request_for(scans, tmp_path / "out", seed=-1), "seed is -1"),
        (request_for(scans, tmp_path / "out", overrides={"spacing": 1}), "unknown key"),
        (
            request_for(scans, tmp_path / "out", overrides={"details": {"widht": 1}}),
            "did you mean details.width",
        ),
    ):
        with pytest.raises(UserError, match=message):
            run(asked)
        assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match=r"nothing in .* can be prepared"):
        run(request_for(tmp_path / "flat", tmp_path / "out"))
    assert (tmp_path / "out" / "doctor" / "doctor.html").is_file()


def test_the_python_call_is_the_same(scans: Path, whole: Path) -> None:
    page = anatogen.run(scans, whole, **OPTIONS)
    assert page == whole / "index.html"
