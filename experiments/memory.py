"""Estimated against measured memory of trainings.

    python experiments/memory.py measure PEAKS.json
    python experiments/memory.py table PEAKS.json

Each row trains one stage for a few steps in a process of its own, with previews, encoding and all else
that `anatogen train` does, and reads the largest resident set from the system. The table of docs/planning.md
has those of its rows that were measured.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from anatogen.config.presets import STAGES_OF, preset_named, training_settings
from anatogen.config.resolving import parse_overrides
from anatogen.config.settings import GeneratorSettings, LatentDiffusionSettings
from anatogen.dataset.manifest import Case, Grid, Intensity, Manifest, Split
from anatogen.io.geometry import centred_affine
from anatogen.training.cost.memory import peak_memory_gb
from anatogen.training.stages import STAGES

_STEPS = 4
_NUM_SCANS = 6
# With the crops of later steps from the first one.
_MEASURED = """
import sys
from anatogen.cli.app import main
from anatogen.training import flow_batches
from anatogen.training.cost.probe import peak_resident_bytes
flow_batches._EARLY_STEPS = 0
try:
    main()
finally:
    print("PEAK", peak_resident_bytes(), file=sys.stderr)
"""


@dataclass(frozen=True)
class Row:
    """A training to be measured.

    Attributes:
        preset: Name of the preset.
        shape: (D, H, W) of the grid.
        batches: Of each stage.
    """

    preset: str
    shape: tuple[int, int, int]
    batches: tuple[int, ...] = (2, 4)

    @property
    def family(self) -> type[GeneratorSettings]:
        """What the preset's settings are of."""
        return type(preset_named(self.preset))

    @property
    def name(self) -> str:
        """Preset, grid and batches."""
        return f"{self.preset} {self.shape} {self.batches}"


ROWS = (
    Row("default", (32, 32, 32), (4,)),
    Row("default", (40, 56, 40), (4,)),
    Row("default", (64, 64, 64), (4,)),
    Row("default", (64, 64, 64), (8,)),
    Row("default", (96, 96, 96), (4,)),
    Row("paper", (32, 32, 32)),
    Row("paper", (40, 56, 40)),
    Row("paper", (64, 64, 64)),
    Row("paper", (64, 64, 64), (1, 2)),
)


def grid_of(row: Row) -> Grid:
    """The row's grid, of 1 mm."""
    affine = centred_affine("SPL", row.shape, (1, 1, 1))
    return Grid(shape=row.shape, spacing_mm=(1, 1, 1), affine=affine.tolist())


def write_dataset(folder: Path, grid: Grid) -> None:
    """A prepared dataset of noise: what a training learns does not change its memory."""
    generator = np.random.default_rng(0)
    intensity = Intensity(modality="MR", low=0, high=1)
    (folder / "volumes").mkdir(parents=True)
    cases = []
    for index in range(_NUM_SCANS):
        file = f"volumes/case_{index:05d}.npy"
        np.save(folder / file, generator.uniform(-1, 1, grid.shape).astype(np.float16))
        cases.append(
            Case(
                id=f"case_{index:05d}",
                file=file,
                split=Split.VALIDATION if index == 0 else Split.TRAIN,
                patient=f"patient_{index}",
                source_sha256=str(index),
                intensity=intensity,
                source_affine=grid.affine,
                source_shape=grid.shape,
                affine=grid.affine,
            )
        )
    Manifest(anatogen_version="-", grid=grid, intensity=intensity, config={}, cases=cases).save(folder)


def overrides_of(row: Row) -> list[str]:
    """The row's settings: both discriminators at work where the preset has them, held-out scans looked at."""
    stages = zip(STAGES_OF[row.family], row.batches, strict=True)
    batches = [f"{stage}_training.batch_size={batch}" for stage, batch in stages]
    if row.family is LatentDiffusionSettings:
        return [
            *batches,
            "losses.discriminator_start=0",
            "losses.adversarial_start=0",
            "training.require_fit_autoencoder=false",
        ]
    return [*batches, f"training.check_steps={_STEPS}"]


def measured_bytes(row: Row, folder: Path) -> dict[str, int]:
    """Largest resident set of the process that trains each stage."""
    data, run = folder / "data", folder / "run"
    write_dataset(data, grid_of(row))
    peaks: dict[str, int] = {}
    for stage in STAGES_OF[row.family]:
        arguments = [
            "train",
            data,
            run,
            "--stages",
            stage,
            "--preset",
            row.preset,
            "--steps",
            _STEPS,
            "--device",
            "cpu",
        ]
        command = [sys.executable, "-c", _MEASURED, *map(str, arguments), *overrides_of(row)]
        result = subprocess.run(command, capture_output=True, text=True, check=True)
        (line,) = [line for line in result.stderr.splitlines() if line.startswith("PEAK")]
        peaks[stage] = int(line.split()[1])
    return peaks


def measure(out: Path) -> None:
    """Trains all rows that are not in the file yet, and writes their peaks to it."""
    peaks = json.loads(out.read_text(encoding="utf-8")) if out.exists() else {}
    for row in ROWS:
        if row.name not in peaks:
            with tempfile.TemporaryDirectory() as folder:
                peaks[row.name] = measured_bytes(row, Path(folder))
            out.write_text(json.dumps(peaks, indent=2) + "\n", encoding="utf-8")


def print_table(out: Path) -> None:
    """Estimates beside the peaks of the file."""
    print("| preset | grid | stage, batch | estimate, GB | measured, GB | ratio |")
    print("|---|---|---|---|---|---|")
    peaks = json.loads(out.read_text(encoding="utf-8"))
    for row in ROWS:
        settings = training_settings(row.preset, parse_overrides(overrides_of(row), row.family), steps=_STEPS)
        for (stage, peak), batch in zip(peaks.get(row.name, {}).items(), row.batches, strict=False):
            estimate = peak_memory_gb(STAGES[stage], settings, grid_of(row))
            shape = " x ".join(map(str, row.shape))
            print(
                f"| `{row.preset}` | {shape} | {stage}, {batch} | {estimate:.2f} | {peak / 1e9:.2f} | "
                f"{estimate / (peak / 1e9):.2f} |"
            )


if __name__ == "__main__":
    {"measure": measure, "table": print_table}[sys.argv[1]](Path(sys.argv[2]))
