"""Every command and every Python line of the README runs as it stands, on small scans and small networks."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from anatogen.config.resolving import parse_overrides
from anatogen.config.settings import Settings
from anatogen.io.nifti import write_nifti
from anatogen.io.volume import Volume

README = Path(__file__).parents[1] / "README.md"
PROGRAM = Path(sys.executable).with_name("anatogen")
SMALL = [
    "autoencoder.base_width=8",
    "autoencoder.decoder_width=8",
    "autoencoder.num_codes=32",
    "denoiser.width=8",
    "denoiser.head_dim=8",
    "losses.perceptual=0",
    "training.require_fit_autoencoder=false",
]


def commands() -> list[list[str]]:
    lines = re.findall(r"^    (anatogen .*)$", README.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [shlex.split(line, comments=True) for line in lines]


def python_snippet() -> str:
    return re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), flags=re.DOTALL)[0]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A working folder with MY_SCANS in it, each of another patient; a tenth become test scans."""
    (tmp_path / "MY_SCANS").mkdir()
    d, h, w = np.meshgrid(*[np.linspace(-1, 1, 16)] * 3, indexing="ij")
    for patient in range(40):
        array = 1000 * np.exp(-3 * (d**2 + h**2 + (1 + 0.05 * patient) * w**2)).astype(np.float32)
        write_nifti(Volume(array, np.eye(4)), tmp_path / "MY_SCANS" / f"P{patient}_t1.nii.gz")
    return tmp_path


def shortened(command: list[str], settings: list[str]) -> list[str]:
    """The command with a budget, a number of scans and networks that a test has time for."""
    text = " ".join(shlex.quote(word) for word in command)
    text = re.sub(r"--minutes 60", "--steps 2", text)
    text = re.sub(r"-n 100", "-n 4", text)
    words = shlex.split(text)
    if words[1] == "train-gan":
        words += ["gan.width=2", "gan.latent_dim=4"]
    elif words[1] == "plan":
        words += settings
    elif words[1] == "train":
        words += settings + ([] if "--steps" in words else ["--steps", "2"])
    return words


def test_the_commands_run_one_after_the_other(folder: Path) -> None:
    seen = set()
    for command in commands():
        words = shortened(command, SMALL)
        result = subprocess.run([str(PROGRAM), *words[1:]], cwd=folder, capture_output=True, text=True)
        assert result.returncode == 0, f"{' '.join(words)}\n{result.stdout}\n{result.stderr}"
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


def test_the_python_lines_run(folder: Path) -> None:
    snippet = python_snippet()
    assert "minutes=60" in snippet and "sample(4" in snippet
    snippet = snippet.replace("minutes=60", "steps=2")
    snippet = snippet.replace('{"denoiser": {"width": 96}}', repr(parse_overrides(SMALL, Settings)))
    snippet = snippet.replace("sample(4", "sample(2, steps=2")
    snippet += "        print('volume', volume.array.shape, volume.spacing_mm)\n"
    (folder / "script.py").write_text(snippet, encoding="utf-8")
    result = subprocess.run([sys.executable, "script.py"], cwd=folder, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("volume (16, 16, 16) (1.0, 1.0, 1.0)") == 2
