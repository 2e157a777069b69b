"""Every reason has its message, remedy and facts; refusals go through files and processes unharmed."""

import ast
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from pydantic import BaseModel

import anatogen
from anatogen.core.errors import ScanError
from anatogen.core.reasons import Reason, Refusal
from anatogen.io.checks import ConstantScanError
from anatogen.io.volume import Volume

SOURCES = sorted(Path(anatogen.__path__[0]).rglob("*.py"))


class Record(BaseModel):
    refusal: Refusal | None


def uses():
    """Each place in the sources that refuses a scan: file, reason, names of its facts."""
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("Reason."):
                facts = {str(keyword.arg) for keyword in node.keywords}
                yield path.name, ast.unparse(node.func).removeprefix("Reason."), facts


def test_every_reason_is_given_with_exactly_its_facts():
    found = list(uses())
    assert not [(path, name) for path, name, facts in found if Reason[name].facts != facts]
    assert {name for _, name, _ in found} == set(Reason.__members__)


@pytest.mark.parametrize("reason", Reason)
def test_every_reason_has_message_and_remedy(reason):
    assert reason.message
    assert reason.remedy.advice.endswith(".")


def test_facts_that_are_not_the_reasons_are_refused():
    with pytest.raises(ValueError, match="no reason too_few_slices with the facts num"):
        Reason.TOO_FEW_SLICES(num=3)
    with pytest.raises(ValueError, match="no reason magic"):
        Refusal("magic")


def test_the_message_tells_the_facts():
    error = ScanError(Reason.TILT(degrees=16.71))
    assert str(error) == "its slices are sheared by 16.7 degrees (gantry tilt): set allow_tilt to resample it"
    assert error.refusal.code == "tilt"
    assert error.refusal.remedy.option == "allow_tilt=true"


@pytest.mark.parametrize(
    "error",
    [
        ScanError(Reason.EMPTY(shape=(0, 3, 4))),
        ConstantScanError(Volume(np.full((4, 4, 4), 7, np.float32), np.eye(4))),
    ],
)
def test_an_error_crosses_processes_with_its_facts(error):
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert (str(copy), copy.refusal) == (str(error), error.refusal)


@pytest.mark.parametrize(
    "refusal", [Reason.NOT_3D(num=2, shape=(9, 8)), Reason.CONSTANT(value=2.0), Reason.COLOUR()]
)
def test_a_refusal_goes_through_json(refusal):
    assert Refusal.from_json(json.loads(json.dumps(refusal.as_json()))) == refusal
    record = Record.model_validate_json(Record(refusal=refusal).model_dump_json())
    assert record.refusal == refusal
    assert str(record.refusal) == str(refusal)
