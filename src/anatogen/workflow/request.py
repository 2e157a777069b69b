"""What `anatogen run` was asked for, and where its stages put what they make."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from anatogen.config.presets import split_overrides

INDEX_NAME = "index.html"
# Stands in the report's place where there are too few scans for one, and says so.
NOT_EVALUATED_NAME = "not_evaluated.txt"
FOLDERS = {
    "doctor": "doctor",
    "plan": "plan",
    "prepare": "data",
    "train": "model",
    "sample": "synthetic",
    "evaluate": "report",
}


@dataclass(frozen=True)
class RunRequest:
    """What the user asked for; what is None is decided by the plan.

    Attributes:
        scans: Folder or archive of scans.
        out: Folder of everything.
        overrides: Nested values of the settings of `prepare` or `train` that differ.
        hours: Time for planning and training, about.
        memory_gb: Memory of the GPU, or of the machine without one, in 10^9 bytes.
        num_samples: Number of synthetic scans.
        seed: Random seed of the set of synthetic scans.
        recipe: Name of the recipe of `prepare`.
        preset: Preset of `train`, for what the plan does not decide.
        device: "cpu", "cuda", "cuda:1", or "auto" for a GPU where there is one.
        workers: Number of processes that look at scans; default one per core.
        progress: Whether to show progress bars.
    """

    scans: Path
    out: Path
    overrides: Mapping[str, Any] = field(default_factory=dict)
    hours: float = 24.0
    memory_gb: float | None = None
    num_samples: int = 100
    seed: int = 0
    recipe: str | None = None
    preset: str = "default"
    device: str = "auto"
    workers: int | None = None
    progress: bool = True

    def folder(self, stage: str) -> Path:
        """Where a stage's output lies."""
        return self.out / FOLDERS[stage]

    @property
    def prepare_overrides(self) -> dict[str, Any]:
        """Those of the overrides that are for `prepare`."""
        return split_overrides(self.overrides)[0]
