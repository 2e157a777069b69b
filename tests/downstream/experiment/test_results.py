import json

import pytest
from pydantic import ValidationError

from anatogen.core.errors import UserError
from anatogen.downstream.experiment.results import ResultRow, read_results, rows_text
from anatogen.downstream.metrics import mean_over_labels


def _row(case=1, **changes):
    values = {
        "arm": "scratch",
        "fraction": 0.05,
        "seed": 0,
        "num_training_scans": 5,
        "case": f"case_{case:05d}",
        "patient": f"patient_{case:05d}",
        "dice": {"1": 0.9, "2": None},
        "surface_dice": {"1": 0.95, "2": None},
        "hausdorff95_mm": {"1": 1.414214, "2": None},
    }
    return ResultRow(**(values | changes))


def _damaged(tmp_path, text):
    path = tmp_path / "results.jsonl"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UserError) as error:
        read_results(path)
    assert "\n" not in str(error.value)
    return str(error.value)


def test_what_is_written_is_read_back(tmp_path):
    rows = [
        _row(case, arm=arm, seed=seed) for arm in ("scratch", "real") for seed in (0, 1) for case in (1, 2)
    ]
    path = tmp_path / "results.jsonl"
    path.write_text(rows_text(rows))
    assert read_results(path) == rows
    assert len(path.read_text().splitlines()) == 8
    assert json.loads(path.read_text().splitlines()[0])["hausdorff95_mm"] == {"1": 1.414214, "2": None}


def test_no_rows_are_an_empty_file(tmp_path):
    path = tmp_path / "results.jsonl"
    path.write_text(rows_text([]))
    assert read_results(path) == []


def test_damage_is_named_by_its_line(tmp_path):
    whole = rows_text([_row(1)])
    assert "line 1" in _damaged(tmp_path, whole[:50] + "\n" + whole)
    assert "line 2" in _damaged(tmp_path, whole + "\0\0\0\n")
    assert "line 1" in _damaged(tmp_path, b"\xff\xfe" + whole.encode())
    assert "line 2" in _damaged(tmp_path, whole + whole[:50])
    assert "line 2" in _damaged(tmp_path, whole + '{"arm": "scratch"}')
    assert "dice" in _damaged(tmp_path, whole.replace("0.9,", "NaN,"))
    assert "seed" in _damaged(tmp_path, whole.replace('"seed":0', '"seed":"0"'))
    assert "Extra" in _damaged(tmp_path, whole.replace('"seed":0', '"seed":0,"name":"Miller"'))


def test_results_that_are_not_there_are_named(tmp_path):
    with pytest.raises(UserError, match="can't be read"):
        read_results(tmp_path / "absent.jsonl")


@pytest.mark.parametrize(
    "change",
    [
        {"fraction": 0.0},
        {"fraction": 5.0},
        {"dice": {"1": 1.1, "2": None}},
        {"dice": {"1": float("nan"), "2": None}},
        {"hausdorff95_mm": {"1": -1.0, "2": None}},
        {"hausdorff95_mm": {"1": float("inf")}},
        {"num_training_scans": 0},
        {"arm": ""},
    ],
)
def test_impossible_values_are_no_row(change):
    with pytest.raises(ValidationError):
        _row(**change)


def test_the_mean_is_over_defined_labels():
    assert mean_over_labels({"1": 0.5, "2": None, "3": 1.0}) == 0.75
    assert mean_over_labels({"1": None}) is None
