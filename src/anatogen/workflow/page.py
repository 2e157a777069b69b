"""`OUT/index.html` of `anatogen run`: what was found, decided, made and judged, with links to more.

A page is one HTML file without scripts or network access, so that it can be mailed or archived.
"""

import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from anatogen.config.presets import family_of, preset_named
from anatogen.config.resolving import read_yaml
from anatogen.config.settings import GeneratorSettings, LatentDiffusionSettings, WaveletFlowSettings
from anatogen.dataset.manifest import Grid, Split, load_manifest
from anatogen.io.nifti import read_nifti
from anatogen.report.numbers import duration_text, times
from anatogen.report.page import data_url, write_page
from anatogen.report.volume_figures import planes_figure
from anatogen.workflow.request import FOLDERS, INDEX_NAME, NOT_EVALUATED_NAME, RunRequest

_NUM_SHOWN = 6
_ABOUT = {
    "doctor": "Look for what is wrong with the scans",
    "plan": "Decide how to prepare and train",
    "prepare": "Bring the scans to one grid",
    "sample": "Make synthetic scans",
    "evaluate": "Judge them beside real ones",
}
_ABOUT_TRAINING: dict[type[GeneratorSettings], str] = {
    LatentDiffusionSettings: "Train autoencoder and diffusion model",
    WaveletFlowSettings: "Train a wavelet flow",
}
_LINKS = {"doctor": "doctor/doctor.html", "plan": "plan/plan.txt", "evaluate": "report/report.html"}


def write_index(request: RunRequest, finished: Mapping[str, Mapping[str, Any]]) -> None:
    """Writes the page of what is finished so far, atomically.

    Args:
        request: What was asked for.
        finished: By stage, as `run.json` has it.
    """
    out = request.out
    not_evaluated = request.folder("evaluate") / NOT_EVALUATED_NAME
    about = _ABOUT | {"train": _about_training(request)}
    write_page(
        out / INDEX_NAME,
        "run.html",
        is_whole=all(name in finished for name in FOLDERS),
        stages=[
            {
                "name": name,
                "about": about[name],
                "time": duration_text(finished[name]["seconds"]) if name in finished else "",
                "folder": f"{FOLDERS[name]}/",
                "link": _LINKS.get(name, "") if (out / _LINKS.get(name, "none")).is_file() else "",
            }
            for name in FOLDERS
        ],
        findings=_json(out / "doctor" / "doctor.json").get("findings", []) if "doctor" in finished else [],
        plan=_json(out / "plan" / "plan.json") if "plan" in finished else {},
        counts=_counts(request) if "prepare" in finished else {},
        number=request.num_samples if "sample" in finished else 0,
        planes=_planes(request) if "sample" in finished else "",
        answers=_json(out / "report" / "report.json").get("answers", []) if "evaluate" in finished else [],
        not_evaluated=not_evaluated.read_text(encoding="utf-8").strip() if not_evaluated.is_file() else "",
    )


def planes_of(groups: Sequence[tuple[str, Sequence[npt.NDArray[Any]]]], grid: Grid) -> str:
    """Volumes (D, H, W) in [-1, 1], a row for each group, in their three planes: a picture's address."""
    with tempfile.TemporaryDirectory() as scratch:
        picture = Path(scratch) / "planes.png"
        planes_figure(groups, picture, spacing_mm=grid.spacing_mm, axis_codes=grid.axis_codes)
        return data_url(picture)


def _about_training(request: RunRequest) -> str:
    planned = request.training_file
    if planned.is_file():
        return _ABOUT_TRAINING[family_of(read_yaml(planned))]
    return _ABOUT_TRAINING[type(preset_named(request.preset))]


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def _counts(request: RunRequest) -> dict[str, str]:
    manifest = load_manifest(request.folder("prepare"))
    counts = {f"{split} scans": str(len(manifest.split(split))) for split in Split if manifest.split(split)}
    return counts | {
        "voxels": times(manifest.grid.shape, "×"),
        "mm": times(manifest.grid.spacing_mm, "×"),
    }


def _planes(request: RunRequest) -> str:
    """Real and synthetic scans in their three planes, as the address of a picture."""
    data = request.folder("prepare")
    manifest = load_manifest(data)
    # Scans that were not trained on, where there are some.
    shown = manifest.split(Split.TEST) or manifest.split(Split.TRAIN)
    real = [np.load(data / case.file, mmap_mode="r") for case in shown[:_NUM_SHOWN]]
    paths = sorted(request.folder("sample").glob("synthetic_*.nii.gz"))[:_NUM_SHOWN]
    synthetic = [manifest.intensity.normalise(read_nifti(path).array) for path in paths]
    return planes_of([("Real scans", real), ("Synthetic scans", synthetic)], manifest.grid)
