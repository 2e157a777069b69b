"""`experiments/downstream.py`: its plans can be run, and its tables say what the rows do."""

from pathlib import Path

import downstream
import numpy as np
import pytest
from simulated import FRACTIONS, simulated_rows

from anatogen.config.resolving import resolve, save_yaml
from anatogen.core.files import write_text
from anatogen.downstream.experiment.plan import ExperimentPlan
from anatogen.downstream.experiment.results import rows_text
from anatogen.downstream.experiment.trials import RESULTS_NAME


@pytest.mark.parametrize("name", downstream.VARIANTS)
def test_a_variant_changes_what_it_names_in_the_plan_of_five_percent(name):
    whole = resolve(ExperimentPlan, downstream.plan(Path("work"), 400))
    variant = resolve(ExperimentPlan, downstream.variants(Path("work"), 400)[name])
    assert variant.fractions == whole.fractions[:1] and list(variant.arms) == ["scratch", "synthetic"]
    assert variant.pretraining.network == variant.finetuning.network
    changed = {
        field
        for field in ("seeds", "pretraining", "finetuning")
        if getattr(variant, field) != getattr(whole, field)
    }
    assert changed == set(downstream.VARIANTS[name])


def test_the_tables_hold_means_and_differences_of_what_is_done(tmp_path):
    gains = {"scratch": (0, 0, 0, 0), "synthetic": (0.02, 0.01, 0, 0)}
    rows = simulated_rows(gains)
    save_yaml(resolve(ExperimentPlan, downstream.plan(tmp_path, 4)), tmp_path / "plan.yaml")
    write_text(tmp_path / RESULTS_NAME, rows_text(rows))
    dice, differences = downstream.table_text(tmp_path).split("\n\n")
    heading, _, *lines = dice.splitlines()
    assert heading == "|  | 5% | 10% | 20% | 100% |"
    for arm, line in zip(gains, lines, strict=False):
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        assert cells[0] == arm
        for fraction, cell in zip(FRACTIONS, cells[1:], strict=True):
            values = [
                np.mean(list(row.dice.values())) for row in rows if (row.arm, row.fraction) == (arm, fraction)
            ]
            assert float(cell.split(" ")[0]) == pytest.approx(np.mean(values), abs=6e-4)
    assert all(line.endswith("| – | – | – | – |") for line in lines[2:]), "arms that are not done"
    assert differences.splitlines()[2].startswith("| synthetic − scratch | +0.02")
