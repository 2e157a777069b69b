"""The results of an experiment: one line of JSON per test case, network and share of labelled scans.

The runner writes them, statistics and page read them. They hold anonymous names and numbers only.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Annotated

from pydantic import Field, ValidationError

from anatogen.config.resolving import Section
from anatogen.core.errors import UserError
from anatogen.core.files import write_text
from anatogen.downstream.experiment.plan import ExperimentPlan
from anatogen.downstream.experiment.trials import RESULTS_NAME, Trial, trials

Name = Annotated[str, Field(min_length=1)]
Share = Annotated[float, Field(ge=0, le=1)]
Distance = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class ResultRow(Section):
    """How well one network segments one test case.

    Attributes:
        arm: Name of the arm, such as "scratch" or "synthetic".
        fraction: Fraction of the labelled training scans that it was fine-tuned with, above 0, at most 1.
        seed: Random seed of the trial: draws the training scans and the order of steps.
        num_training_scans: Number of scans in that fraction.
        case: Anonymous name of the test scan.
        patient: Anonymous name of its patient, who may have several cases.
        dice: Dice by label, 0 to 1; None where it is undefined, as for the others (see `case_metrics`).
        surface_dice: Normalised surface distance by label, 0 to 1.
        hausdorff95_mm: 95% Hausdorff distance by label, in mm.
    """

    arm: Name
    fraction: float = Field(gt=0, le=1)
    seed: int
    num_training_scans: int = Field(ge=1)
    case: Name
    patient: Name
    dice: dict[str, Share | None] = Field(min_length=1)
    surface_dice: dict[str, Share | None]
    hausdorff95_mm: dict[str, Distance | None]

    @property
    def trial(self) -> Trial:
        """The trial that this row belongs to."""
        return Trial(self.arm, self.fraction, self.seed)


def rows_text(rows: Iterable[ResultRow]) -> str:
    """The rows as lines of JSON, each ended by a newline."""
    return "".join(row.model_dump_json() + "\n" for row in rows)


def read_results(path: Path) -> list[ResultRow]:
    """Reads what `rows_text` gave.

    Raises:
        UserError: If the file can't be read or a line is damaged.
    """
    try:
        lines = path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"the results {path} can't be read: {error.strerror}") from error
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            rows.append(ResultRow.model_validate_json(line, strict=True))
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            reason = ": ".join([*map(str, problem["loc"]), problem["msg"]])
            raise UserError(
                f"line {number} of the results {path} is damaged ({reason}): remove the file and run the "
                "experiment again, which makes it anew"
            ) from error
    return rows


def write_results(plan: ExperimentPlan, out: Path) -> list[ResultRow]:
    """Writes `results.jsonl`, a row for each test scan of each finished trial, and returns the rows."""
    rows = []
    for trial in trials(plan):
        if trial.is_done(out):
            rows += read_results(trial.folder(out) / RESULTS_NAME)
    write_text(out / RESULTS_NAME, rows_text(rows))
    return rows
