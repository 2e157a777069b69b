"""From the finished pieces of an experiment to its results and its page."""

from pathlib import Path

from anatogen.downstream.labelled import LabelledSplits
from anatogen.downstream.pieces import RESULTS_NAME, collect_results
from anatogen.downstream.results import rows_text
from anatogen.downstream.settings import ExperimentPlan
from anatogen.storage import write_text

# Test scans whose predictions are kept, for the page.
NUM_PICTURES = 4


def report_experiment(plan: ExperimentPlan, splits: LabelledSplits, out: Path) -> Path:
    """Writes `results.jsonl`, a row for each test scan of each finished piece, and the page.

    Args:
        plan: Of the experiment.
        splits: Its labelled scans.
        out: Its folder.

    Returns:
        The page.
    """
    rows = collect_results(plan, out)
    write_text(out / RESULTS_NAME, rows_text(rows))
    return out / RESULTS_NAME
