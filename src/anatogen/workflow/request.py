"""What `anatogen run` was asked for, and where its stages put what they make."""

from collections.abc import Mapping
from dataclasses import dataclass
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
    """What the user asked for: the arguments of `anatogen.run`, where they are described."""

    scans: Path
    out: Path
    overrides: Mapping[str, Any]
    hours: float
    memory_gb: float | None
    num_samples: int
    seed: int
    recipe: str | None
    preset: str
    device: str
    workers: int | None
    progress: bool

    def folder(self, stage: str) -> Path:
        """Where a stage's output lies."""
        return self.out / FOLDERS[stage]

    @property
    def training_file(self) -> Path:
        """The settings of the training that was planned, once there are any."""
        return self.folder("plan") / "train.yaml"

    @property
    def prepare_overrides(self) -> dict[str, Any]:
        """Those of the overrides that are for `prepare`."""
        return split_overrides(self.overrides)[0]
