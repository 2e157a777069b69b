"""The results of an experiment: one line of JSON per test case, network and share of labelled scans.

The runner writes them, statistics and page read them. They hold anonymous names and numbers only.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Self

from pydantic import Field, ValidationError, model_validator

from anatogen.config.resolving import Section
from anatogen.core.errors import UserError
from anatogen.downstream.experiment.plan import ExperimentPlan
from anatogen.downstream.experiment.trials import RESULTS_NAME, Trial, trials
from anatogen.downstream.metrics import METRICS


class ResultRow(Section):
    """How well one network segments one test case.

    Attributes:
        arm: Name of the arm, such as "scratch" or "synthetic".
        fraction: Fraction of the labelled training scans that it was fine-tuned with, above 0, at most 1.
        seed: Random seed of the trial: draws the training scans and the order of steps.
        num_training_scans: Number of scans that the fraction came to.
        case: Anonymous name of the test scan.
        patient: Anonymous name of its patient, who may have several cases.
        dice: Dice by label, 0 to 1; None where it is undefined, as for the others (see `case_metrics`).
        surface_dice: Normalised surface distance by label, 0 to 1.
        hausdorff95_mm: 95% Hausdorff distance by label, in mm.
    """

    arm: str = Field(min_length=1)
    fraction: float = Field(gt=0, le=1)
    seed: int
    num_training_scans: int = Field(ge=1)
    case: str = Field(min_length=1)
    patient: str = Field(min_length=1)
    dice: dict[str, float | None] = Field(min_length=1)
    surface_dice: dict[str, float | None]
    hausdorff95_mm: dict[str, float | None]

    @model_validator(mode="after")
    def _agrees(self) -> Self:
        if not self.dice.keys() == self.surface_dice.keys() == self.hausdorff95_mm.keys():
            raise ValueError("the three metrics must name the same labels")
        for metric in METRICS:
            most = float("inf") if metric == "hausdorff95_mm" else 1.0
            for label, value in getattr(self, metric).items():
                if value is not None and not 0 <= value <= most:
                    raise ValueError(f"{metric} of label {label} can't be {value}")
        return self

    @property
    def trial(self) -> Trial:
        """The trial that this row belongs to."""
        return Trial(self.arm, self.fraction, self.seed)


def rows_text(rows: Iterable[ResultRow]) -> str:
    """The rows as lines of JSON, each ended by a newline."""
    return "".join(row.model_dump_json() + "\n" for row in rows)


def read_results(path: Path) -> list[ResultRow]:
    """Reads what `rows_text` gave.

    Args:
        path: The file of lines.

    Raises:
        UserError: If the file can't be read, a line is damaged, a case stands twice in a trial, or cases
            differ in their labels or patients.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(f"the results {path} can't be read: {error.strerror}") from error
    rows: list[ResultRow] = []
    lines_by_key: dict[tuple[Trial, str], int] = {}
    patients: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"line {number} of the results {path}"
        try:
            row = ResultRow.model_validate_json(line, strict=True)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            key = ".".join(map(str, problem["loc"]))
            reason = problem["msg"].removeprefix("Value error, ")
            raise UserError(
                f"{where} is damaged ({f'{key}: ' if key else ''}{reason}): remove it and run the experiment "
                "again, which fills the gap"
            ) from error
        first = lines_by_key.setdefault((row.trial, row.case), number)
        if first != number:
            raise UserError(
                f"{where} repeats line {first} ({row.case} of the same trial): remove one of them"
            )
        if rows and row.dice.keys() != rows[0].dice.keys():
            raise UserError(
                f"{where} has labels {', '.join(row.dice)}, the first {', '.join(rows[0].dice)}: "
                "the results of two experiments are mixed"
            )
        if patients.setdefault(row.case, row.patient) != row.patient:
            raise UserError(f"{where} gives {row.case} to another patient than before: it is damaged")
        rows.append(row)
    return rows


def collect_results(plan: ExperimentPlan, out: Path) -> list[ResultRow]:
    """The rows of all finished trials of a plan."""
    rows: list[ResultRow] = []
    for trial in trials(plan):
        if trial.is_done(out):
            rows += read_results(trial.folder(out) / RESULTS_NAME)
    return rows
