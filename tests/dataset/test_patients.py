"""Patients: never in two splits, always dealt the same way, known by a number."""

import random
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from anatogen.core.errors import UserError
from anatogen.dataset.discover import Source
from anatogen.dataset.manifest import Split
from anatogen.dataset.patients import assign_splits, identify, own_patient, patient_hash, serial_names

names = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=60)
fractions = st.tuples(st.floats(0, 0.49), st.floats(0, 0.49))


@given(names=names, fraction=fractions, seed=st.integers(0, 99))
def test_splits_are_disjoint_and_of_the_right_size(
    names: list[str], fraction: tuple[float, float], seed: int
) -> None:
    patients = [patient_hash(name, seed) for name in names]
    splits = assign_splits(patients, *fraction)
    assert set(splits) == set(patients)
    counts = {split: sum(value is split for value in splits.values()) for split in Split}
    assert counts[Split.TRAIN] >= 1
    if fraction[0] > 0 and len(splits) >= 2:
        assert counts[Split.VALIDATION] >= 1
    assert abs(counts[Split.VALIDATION] - fraction[0] * len(splits)) <= 1
    assert abs(counts[Split.TEST] - fraction[1] * len(splits)) <= 1.5


@given(names=names, order=st.randoms(), seed=st.integers(0, 99))
def test_splits_do_not_depend_on_order_or_repetition(
    names: list[str], order: random.Random, seed: int
) -> None:
    patients = [patient_hash(name, seed) for name in names]
    shuffled = [*patients, *patients]
    order.shuffle(shuffled)
    assert assign_splits(patients, 0.2, 0.1) == assign_splits(shuffled, 0.2, 0.1)


def test_the_seed_decides() -> None:
    patients = [f"patient {number}" for number in range(40)]
    held_back = []
    for seed in (0, 1):
        splits = assign_splits([patient_hash(patient, seed) for patient in patients], 0.2, 0.2)
        held_back.append({p for p in patients if splits[patient_hash(p, seed)] is not Split.TRAIN})
    assert held_back[0] != held_back[1]


@given(names=names, order=st.randoms(), seed=st.integers(0, 99))
def test_serial_names_tell_patients_apart_and_nothing_else(
    names: list[str], order: random.Random, seed: int
) -> None:
    patients = [patient_hash(name, seed) for name in names]
    serial = serial_names(patients)
    assert sorted(serial.values()) == [f"patient_{rank:05d}" for rank in range(len(set(names)))]
    shuffled = [*patients, *patients]
    order.shuffle(shuffled)
    assert serial_names(shuffled) == serial


def source(name: str, patient: str | None = None) -> Source:
    return Source(name, (Path("/scans") / name,), patient=patient)


def test_patient_of_table_pattern_header_and_path(tmp_path: Path) -> None:
    sources = [source("a/x.nii"), source("b/y.nii"), source("sub-07/anat/sub-07_T1w.nii"), source("c", "ID9")]
    folder = Path("/scans")
    assert [own_patient(source) for source in sources] == ["a/x.nii", "b/y.nii", "07", "ID9"]
    by_pattern, unknown = identify(sources, folder, r"^([a-z])/", None)
    assert by_pattern == {"a/x.nii": "a", "b/y.nii": "b"}
    assert [scan.name for scan in unknown] == ["sub-07/anat/sub-07_T1w.nii", "c"]
    table = tmp_path / "table.csv"
    table.write_text("age,file,patient\n40,a/x.nii,P\n41,b/y.nii,P\n,,\n")
    by_table, unknown = identify(sources, folder, None, table)
    assert by_table == {"a/x.nii": "P", "b/y.nii": "P"}
    assert len(unknown) == 2


@pytest.mark.parametrize(
    "line", ["a/x.nii,Q", "./a//x.nii,Q", "a/../a/x.nii,Q", "a,Q"], ids=["file", "dot", "way", "folder"]
)
def test_a_scan_that_the_table_gives_to_two_patients_is_refused(tmp_path: Path, line: str) -> None:
    table = tmp_path / "table.csv"
    table.write_text(f"file,patient\na/x.nii,P\n{line}\n")
    with pytest.raises(UserError, match=r"table.csv gives a/x.nii to the patients 'P' and 'Q'"):
        identify([source("a/x.nii")], Path("/scans"), None, table)
    table.write_text(f"file,patient\na/x.nii,P\n{line.replace('Q', 'P')}\n")
    assert identify([source("a/x.nii")], Path("/scans"), None, table)[0] == {"a/x.nii": "P"}


def test_a_table_needs_its_columns(tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text("path,patient\n")
    with pytest.raises(UserError, match="needs `file` and `patient`"):
        identify([], tmp_path, None, tmp_path / "table.csv")
    with pytest.raises(UserError, match="can't be read"):
        identify([], tmp_path, None, tmp_path / "none.csv")
