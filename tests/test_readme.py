"""Every command and every Python line of the README runs as it stands, on small scans and small networks."""

import contextlib
import re
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from quick_machine import make_quick
from synthetic_dataset import TINY_FLOW

from anatogen.cli.app import main
from anatogen.config.resolving import parse_overrides
from anatogen.config.settings import WaveletFlowSettings
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume

pytestmark = pytest.mark.usefixtures("one_thread")

README = Path(__file__).parents[1] / "README.md"
SMALL_LATENT = [
    "autoencoder.base_width=8",
    "autoencoder.decoder_width=8",
    "autoencoder.num_codes=32",
    "denoiser.width=8",
    "denoiser.head_dim=8",
    "denoiser.multipliers=[1,2]",
    "losses.perceptual=0",
    "losses.discriminator_width=4",
    "training.require_fit_autoencoder=false",
]


SMALL = [text for text in TINY_FLOW if not text.startswith(("pyramid.num_levels", "flow_training"))]


def commands() -> list[list[str]]:
    lines = re.findall(r"^    (anatogen .*)$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def python_snippet() -> str:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with MY_SCANS in it, each of another patient; a tenth become test scans."""
    folder = tmp_path_factory.mktemp("readme")
    d, h, w = np.meshgrid(*[np.linspace(-1, 1, 16)] * 3, indexing="ij")
    for patient in range(40):
        array = 1000 * np.exp(-3 * (d**2 + h**2 + (1 + 0.05 * patient) * w**2)).astype(np.float32)
        write_nifti(Volume(array, np.eye(4)), folder / "MY_SCANS" / f"P{patient}_t1.nii.gz")
    return folder


@pytest.fixture(autouse=True)
def quick(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One process on a quick machine."""
    make_quick(monkeypatch)
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0})
    with contextlib.chdir(folder):
        yield


def shortened(command: list[str]) -> list[str]:
    """The command with a budget, a number of scans and networks that a test has time for."""
    text = " ".join(shlex.quote(word) for word in command)
    text = re.sub(r"--minutes 60", "--steps 2", text)
    text = re.sub(r"-n 100", "-n 4", text)
    words = shlex.split(text)
    if words[1] == "train-gan":
        words += ["gan.width=2", "gan.latent_dim=4"]
    elif words[1] in ("plan", "run"):
        words += SMALL
    elif words[1] == "train":
        words += SMALL_LATENT if "paper" in words else SMALL
        words += [] if "--steps" in words else ["--steps", "2"]
    return words


def test_the_commands_run_one_after_the_other(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = set()
    for command in commands():
        words = shortened(command)
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as stopped:
            main()
        assert not stopped.value.code, f"{' '.join(words)}\n{capsys.readouterr().err}"
        seen.add(words[1])
    assert seen == {
        "run",
        "doctor",
        "plan",
        "prepare",
        "train",
        "train-gan",
        "sample",
        "evaluate",
        "compare-autoencoders",
        "study",
    }
    assert len(list((folder / "synthetic").glob("*.nii.gz"))) == 4
    assert (folder / "report" / "report.html").exists() and (folder / "report_autoencoders").exists()
    assert len(list((folder / "synthetic_dicom").glob("*/*.dcm"))) > 2


def test_the_python_lines_run(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "MY_SCANS").symlink_to(folder / "MY_SCANS")
    snippet = python_snippet()
    assert "minutes=60" in snippet and "sample(4" in snippet
    snippet = snippet.replace("minutes=60", "steps=2")
    snippet = snippet.replace('{"details": {"width": 96}}', repr(parse_overrides(SMALL, WaveletFlowSettings)))
    snippet = snippet.replace("sample(4", "sample(2, steps=2")
    snippet += "    shown.append((volume.array.shape, volume.spacing_mm))\n"
    shown: list[tuple[tuple[int, ...], tuple[float, ...]]] = []
    exec(snippet, {"__name__": "__main__", "shown": shown})
    assert shown == [((16, 16, 16), (1.0, 1.0, 1.0))] * 2
