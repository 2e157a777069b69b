"""What `anatogen run` was asked for, and where its stages put what they make."""

from dataclasses import dataclass
from pathlib import Path

from anatogen.config.settings import Settings

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
class Wishes:
    """What the user asked for; what is None is decided by the plan.

    Attributes:
        scans: Folder or archive of scans.
        out: Folder of everything.
        overrides: Strings "key.sub=value" of `prepare` or `train`.
        hours: For planning and training, about.
        memory_gb: Of the GPU, or of the machine without one, in 10^9 bytes.
        number: Of synthetic scans.
        seed: Of the set of synthetic scans.
        recipe: Of `prepare`.
        preset: Of `train`, for what the plan does not decide.
        accelerator: "auto", "cpu" or "cuda".
        workers: Processes that look at scans; default one per core.
        progress: Whether to show progress bars.
    """

    scans: Path
    out: Path
    overrides: tuple[str, ...] = ()
    hours: float = 24.0
    memory_gb: float | None = None
    number: int = 100
    seed: int = 0
    recipe: str | None = None
    preset: str = "default"
    accelerator: str = "auto"
    workers: int | None = None
    progress: bool = True

    def folder(self, stage: str) -> Path:
        """Where a stage's output lies."""
        return self.out / FOLDERS[stage]

    def prepare_overrides(self) -> list[str]:
        """Those of the overrides that `prepare` takes; the others are for `train`."""
        sections = Settings.model_fields
        return [text for text in self.overrides if text.partition("=")[0].split(".")[0] not in sections]
