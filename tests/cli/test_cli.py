"""The command line: light, one line an error, and each command a library call."""

import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from synthetic_dataset import TINY, write_dataset

import anatogen
from anatogen.cli import app as cli
from anatogen.core.errors import UserError
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_dataset(tmp_path_factory.mktemp("cli") / "data", num_train=3, num_validation=1)


def _call(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Runs `anatogen ARGUMENTS` in this process and returns its exit code."""
    monkeypatch.setattr(sys, "argv", ["anatogen", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    return int(stopped.value.code or 0)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_what_a_terminal_can_not_show_is_printed_with_backslashes(tmp_path: Path, encoding: str) -> None:
    latin = os.fsdecode(b"Caf\xe9")
    for seed in range(4):
        array = np.random.default_rng(seed).normal(100, 30, (8, 9, 10)).astype(np.float32)
        Volume(array, np.eye(4)).save(tmp_path / "scans" / f"{seed}.nii.gz")
    (tmp_path / "scans" / f"{latin}.nii.gz").write_bytes(b"damaged")
    done = subprocess.run(
        [sys.executable, "-m", "anatogen", "prepare", tmp_path / "scans", tmp_path / latin],
        capture_output=True,
        text=True,
        errors="strict",
        env=os.environ | {"PYTHONIOENCODING": f"{encoding}:strict"},
    )
    assert done.returncode == 0, done.stderr
    assert "Caf\\udce9.nii.gz" in done.stdout and "4 scans" in done.stdout


def test_a_full_disk_is_one_line_and_the_same_command_goes_on(tmp_path: Path) -> None:
    for seed in range(4):
        array = np.random.default_rng(seed).normal(100, 30, (24, 24, 24)).astype(np.float32)
        Volume(array, np.eye(4)).save(tmp_path / "scans" / f"{seed}.nii.gz")
    command = [sys.executable, "-m", "anatogen", "prepare", tmp_path / "scans", tmp_path / "out"]

    def full() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (12_000, resource.RLIM_INFINITY))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=full)
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if "after" not in line)
    assert line.startswith(f"anatogen: {tmp_path / 'out'}") and "can't be written to (File too large)" in line
    assert "nii.gz" not in line and "Traceback" not in done.stderr
    assert not list((tmp_path / "out").rglob(".part-*"))
    assert subprocess.run(command, capture_output=True).returncode == 0


HEAVY = [
    "torch",
    "numpy",
    "pydantic",
    "yaml",
    "rich",
    "nibabel",
    "pydicom",
    "matplotlib",
    "monai",
    "fastapi",
    "lightning_fabric",
]


def _heavy_modules_after(*arguments: str) -> tuple[str, str]:
    code = (
        "import sys; sys.argv = ['anatogen', *sys.argv[1:]]\n"
        "from anatogen.cli.app import main\n"
        "try:\n    main()\n"
        "finally:\n"
        f"    print('LOADED', [name for name in {HEAVY!r} if name in sys.modules])\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    ).stdout
    return found.rsplit("LOADED ", 1)[1].strip(), found


@pytest.mark.parametrize(
    "arguments",
    [["--help"], ["train", "--help"], ["sample", "--help"], ["study", "new", "--help"], ["--version"]],
)
def test_help_imports_nothing_heavy(arguments):
    loaded, shown = _heavy_modules_after(*arguments)
    assert loaded == "[]"
    assert "anatogen" in shown.lower() or "Usage" in shown


@pytest.mark.parametrize("debug", [False, True])
def test_an_error_of_the_user_is_one_line_and_with_debug_a_traceback(tmp_path, debug):
    arguments = [*(["--debug"] if debug else []), "sample", str(tmp_path / "none"), str(tmp_path / "out")]
    found = subprocess.run(
        [sys.executable, "-c", "from anatogen.cli.app import main; main()", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    assert ("Traceback" in found.stderr) == debug
    assert "is not a model bundle" in found.stderr
    if not debug:
        assert found.stderr.count("\n") == 1 and found.stderr.startswith("anatogen: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "DATA", "OUT", "--preset", "papr"], "preset 'papr' is unknown"),
        (["train", "DATA", "OUT", "details.widht=3"], "did you mean details.width?"),
        (["train", "DATA", "OUT", "--preset", "paper", "denoiser.widht=3"], "did you mean denoiser.width?"),
        (["train", "DATA", "OUT", "--config", "absent.yaml"], "can't be read"),
        (["train", "OUT", "DATA"], "is not a prepared dataset"),
        (["prepare", "DATA", "OUT", "--recipe", "mrnett"], "recipe 'mrnett' is unknown: known are folder, "),
        (["prepare", "DATA", "OUT", "--limit", "0"], "limit: "),
        (["train", "DATA", "OUT", "--device", "tpu"], "device 'tpu' is unknown"),
        (["train", "DATA", "OUT", "--steps", "0"], "flow_training.steps"),
        (["train", "DATA", "OUT", "--preset", "paper", "--steps", "0"], "autoencoder_training.steps"),
        (
            [
                "train",
                "DATA",
                "OUT",
                "--preset",
                "paper",
                "--stages",
                "diffusion",
                "--autoencoder-run",
                "DATA",
            ],
            "holds no autoencoder",
        ),
        (["train", "DATA", "OUT", "--stages", "gan"], "stage 'gan' is none of the family wavelet_flow"),
        (["train", "DATA", "OUT", "--stages", "autoencoder,diffusion"], "stage 'autoencoder' is none of"),
        (
            ["train", "DATA", "OUT", "--stages", "autoencoder", "--minutes", "3"],
            "stage 'autoencoder' is none",
        ),
        (["train", "DATA", "OUT", "--stages", "autoencoder", "--dry-run"], "stage 'autoencoder' is none of"),
        (["train", "DATA", "OUT", "--preset", "paper", "--stages", "flow"], "stage 'flow' is none of"),
        (["train", "DATA", "OUT", "--autoencoder-run", "DATA"], "has no autoencoder: leave out --autoenc"),
        (["train", "DATA", "OUT", "--autoencoder-run", "DATA", "--dry-run"], "has no autoencoder: leave out"),
        (["train", "DATA", "OUT", "--dry-run", "details.widht=3"], "did you mean details.width?"),
        (["train", "DATA", "OUT", "--dry-run", "flow_training.steps=null"], "flow_training has no budget"),
        (
            ["train", "DATA", "OUT", "--dry-run", "--preset", "paper", "autoencoder_training.steps=null"],
            "autoencoder_training has no budget",
        ),
        (["train", "DATA", "OUT", "pyramid.num_levels=5"], "halved 4 times: set pyramid.num_levels=4"),
        (["train", "DATA", "OUT", "--dry-run", "pyramid.num_levels=5"], "halved 4 times: set pyramid.num_l"),
        (["sample", "hippocampus-mr", "OUT", "--sampler", "plms"], "sampler 'plms' is unknown"),
        (["sample", "hippocampus-mr", "OUT", "--file-format", "mp4"], "format 'mp4' is unknown"),
        (["sample", "hippocampus-mr", "OUT", "-n", "0"], "num_samples is 0"),
    ],
)
def test_what_is_wrong_is_said_without_a_traceback(arguments, message, data, tmp_path, monkeypatch, capsys):
    places = {"DATA": data, "OUT": tmp_path / "out"}
    assert _call(monkeypatch, *(places.get(word, word) for word in arguments)) == 1
    errors = capsys.readouterr().err
    assert errors.startswith("anatogen: ") and message in errors
    assert not (tmp_path / "out").exists()


def test_a_failure_that_is_ours_keeps_its_traceback(data, tmp_path, monkeypatch):
    monkeypatch.setattr("anatogen.training.train.train", lambda *_, **__: 1 / 0)
    monkeypatch.setattr(sys, "argv", ["anatogen", "train", str(data), str(tmp_path / "run")])
    with pytest.raises(ZeroDivisionError):
        cli.main()


def _train_calls(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> list:
    calls = []
    monkeypatch.setattr(
        "anatogen.training.train.train", lambda *args, **options: calls.append((args, options))
    )
    assert _call(monkeypatch, "train", *arguments) == 0
    return calls


@pytest.mark.parametrize(
    ("options", "stages"),
    [
        (["--preset", "paper"], "autoencoder,diffusion"),
        (["--preset", "paper", "--minutes", "3"], "diffusion,autoencoder"),
        (["--minutes", "3"], "flow"),
        ([], "flow"),
    ],
)
def test_training_without_a_stage_trains_all(data, tmp_path, monkeypatch, options, stages):
    places = [data, tmp_path, "training.seed=5"]
    (((_, _, settings), given),) = plain = _train_calls(monkeypatch, *places, *options)
    assert settings.training.seed == 5
    assert plain == _train_calls(monkeypatch, *options, *places), "options may come first"
    (((_, _, named), _),) = _train_calls(monkeypatch, *places, *options, "--stages", stages)
    assert given["stages"] is None and named == settings


@pytest.mark.parametrize("stage", ["autoencoder", "diffusion"])
def test_one_stage_is_trained_by_its_name_with_its_own_budget(data, tmp_path, monkeypatch, stage):
    options = ["--preset", "paper", "--stages", stage, "--minutes", "7"]
    (((_, _, settings), given),) = _train_calls(monkeypatch, data, tmp_path, *options)
    other = {"autoencoder": "diffusion", "diffusion": "autoencoder"}[stage]
    assert given["stages"] == (stage,)
    budget = getattr(settings, f"{stage}_training")
    assert (budget.minutes, budget.steps) == (7, None)
    assert getattr(settings, f"{other}_training").minutes is None


@pytest.mark.parametrize(
    ("preset", "section"), [("paper", "diffusion_training"), ("default", "flow_training")]
)
def test_both_kinds_of_budget_hold_together(data, tmp_path, monkeypatch, preset, section):
    options = ["--preset", preset, "--minutes", "7", "--steps", "9"]
    (((_, _, settings), _),) = _train_calls(monkeypatch, data, tmp_path, *options)
    budget = getattr(settings, section)
    assert (budget.minutes, budget.steps) == (7, 9)


def test_a_dry_run_shows_the_networks_sizes_and_the_passes_and_writes_nothing(
    data, tmp_path, monkeypatch, capsys
):
    from synthetic_dataset import tiny_settings

    from anatogen.models.denoiser import Denoiser
    from anatogen.models.vqgan import VQGAN

    before = sorted(data.rglob("*"))
    assert _call(monkeypatch, "train", data, tmp_path / "run", "--dry-run", "--preset", "paper", *TINY) == 0
    shown = capsys.readouterr().out
    assert "num_codes:" in shown and "3 training scans of (16, 16, 16)" in shown
    settings = tiny_settings()
    networks = {
        "autoencoder": ("autoencoder", VQGAN(settings.autoencoder)),
        "diffusion": ("denoiser", Denoiser(settings.denoiser, settings.autoencoder.code_dim, (8, 8, 8))),
    }
    passes = {"autoencoder": "6 steps, 4.0 passes over", "diffusion": "6 steps, 8.0 passes over"}
    for stage, (name, network) in networks.items():
        count = sum(parameter.numel() for parameter in network.parameters())
        (found,) = [text for text in shown.splitlines() if text.startswith(f"{stage}: parameters")]
        assert f"{name} {count:,};" in found
        assert passes[stage] in found
    assert not (tmp_path / "run").exists() and sorted(data.rglob("*")) == before


def test_train_and_sample_from_the_command_line(data, tmp_path, monkeypatch, capsys):
    run = tmp_path / "run"
    arguments = ["--preset", "paper", "--device", "cpu", "--steps", 2, *TINY]
    assert _call(monkeypatch, "train", data, run, *arguments) == 0
    assert f"finished: {run / 'bundle'}" in capsys.readouterr().out
    assert _call(monkeypatch, "sample", run / "bundle", tmp_path / "out", "-n", 2, "--device", "cpu") == 0
    assert "2 synthetic scans" in capsys.readouterr().out
    assert len(list((tmp_path / "out").glob("*.nii.gz"))) == 2


def test_recipes_are_listed_and_used_by_name(tmp_path, monkeypatch, capsys):
    import numpy as np
    from scan_makers import head

    from anatogen.dataset.recipes import RECIPES
    from anatogen.io.nifti import write_nifti
    from anatogen.io.volume import Volume

    assert _call(monkeypatch, "recipes") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(RECIPES)
    for seed in range(3):
        volume = head(seed)
        write_nifti(volume, tmp_path / "scans" / f"{seed}.nii")
        mask = np.digitize(volume.array, [200, 500]).astype(np.float32)
        write_nifti(Volume(mask, volume.affine), tmp_path / "scans" / f"{seed}_seg.nii")
    out = tmp_path / "out"
    options = ["--recipe", "folder_with_masks", "--limit", "2"]
    assert _call(monkeypatch, "prepare", *options, tmp_path / "scans", out) == 0
    shown = capsys.readouterr().out
    assert "2 of 2 cases have a mask" in shown and "prepared: 2 scans" in shown
    assert len(list((out / "masks").iterdir())) == 2


def test_help_is_whole_sentences(monkeypatch, capsys):
    assert _call(monkeypatch, "--help") == 0
    shown = " ".join(capsys.readouterr().out.partition("Commands:")[2].split())
    assert "pre-train on them, segment with few labels, compare." in shown and "..." not in shown
    assert _call(monkeypatch, "prepare", "--help") == 0
    assert "Don't show progress bars on the terminal." in " ".join(capsys.readouterr().out.split())


def test_user_errors_are_value_errors():
    assert issubclass(UserError, ValueError)


def test_doctor_tells_what_to_type_and_its_exit_code_whether_anything_can_be_prepared(
    monkeypatch, capsys, tmp_path
):
    monkeypatch.setenv("COLUMNS", "120")
    scans = tmp_path / "scans"
    write_nifti(
        Volume(np.random.default_rng(0).normal(size=(8, 8, 8)).astype(np.float32), np.eye(4)), scans / "a.nii"
    )
    shutil.copy(scans / "a.nii", scans / "b[1].nii")
    assert _call(monkeypatch, "doctor", scans, tmp_path / "out") == 0
    shown = capsys.readouterr().out
    assert "'exclude=[\"b[[]1].nii\"]'" in shown and "doctor.html" in shown
    assert f"anatogen prepare {scans} DATA --records {tmp_path / 'out' / '.examined'}" in shown
    assert (tmp_path / "out" / "doctor.html").is_file()
    assert _call(monkeypatch, "doctor", scans, tmp_path / "none", "exclude=*.nii") == 1
    assert "nothing can be prepared" in capsys.readouterr().out
    assert _call(monkeypatch, "doctor", scans / "absent", tmp_path / "none") == 1
    assert "is no folder and no archive of scans" in capsys.readouterr().err


def test_the_package_imports_nothing_heavy_and_has_all_its_names():
    code = (
        "import sys, anatogen\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules])\n"
        "assert all(hasattr(anatogen, name) for name in anatogen.__all__)\n"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout == "[]\n"


def test_the_module_is_the_command():
    command = [sys.executable, "-m", "anatogen", "--version"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == (
        f"anatogen {anatogen.__version__}\n"
    )
