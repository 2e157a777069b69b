"""Whose scan is it, and which split may use it: a patient is in one split only, by construction."""

import csv
import posixpath
import re
from collections.abc import Iterable, Mapping
from pathlib import Path

from anatogen.core.errors import UserError
from anatogen.core.files import sha256_json
from anatogen.core.reasons import Reason
from anatogen.dataset.discover import LeftOut, Source
from anatogen.dataset.manifest import Split

# The naming of BIDS, the one wide-spread way to write the subject into a path.
_BIDS_SUBJECT = re.compile(r"(?:^|/)sub-([A-Za-z0-9]+)(?=[_/.])")


def own_patient(source: Source) -> str:
    """What a scan says of its patient: DICOM's PatientID, a BIDS subject, else the file is the patient."""
    subject = _BIDS_SUBJECT.search(source.name)
    return source.patient or (subject.group(1) if subject else source.name)


def identify(
    sources: Iterable[Source], folder: Path, pattern: str | None, table: Path | None
) -> tuple[dict[str, str], list[LeftOut]]:
    """The patient of each scan, from the user's table, or a pattern of their paths.

    Args:
        sources: The scans.
        folder: The folder that their names are relative to.
        pattern: Regular expression with one group, searched in the relative path.
        table: CSV file with columns `file` (relative path; for a series its folder or any of its files)
            and `patient`, instead of a pattern.

    Returns:
        Patient by name of scan, and the scans that table or pattern say nothing of. Holds what identifies
        patients: keep it in memory.

    Raises:
        UserError: If the table can't be read, lacks a column, or gives a scan to several patients.
    """
    rows = _read_table(table) if table is not None else {}
    patients: dict[str, str] = {}
    left_out = []
    for source in sources:
        if table is not None:
            names = [source.name, *(file.relative_to(folder).as_posix() for file in source.files)]
            names.append(source.files[0].parent.relative_to(folder).as_posix())
            told = {rows[name]: name for name in names if name in rows}
            if len(told) > 1:
                raise UserError(_two_patients(table, source.name, told))
            patient = next(iter(told), None)
            refusal = Reason.NO_LINE_FOR_PATIENT()
        else:
            match = re.search(pattern or "", source.name)
            patient = match.group(1) if match else None
            refusal = Reason.PATTERN_WITHOUT_MATCH(pattern=pattern or "")
        if patient:
            patients[source.name] = patient
        else:
            left_out.append(LeftOut(source.name, refusal))
    return patients, left_out


def patient_hash(patient: str, seed: int) -> str:
    """Hash of who it is, 64 hex digits, to deal patients by. Keep it in memory.

    The seed is published with the dataset, so who has a list of identifiers could find their hashes in it.

    Args:
        patient: What identifies the patient.
        seed: The dataset's seed, so that the same preparation gives the same order.
    """
    return sha256_json([seed, patient])


def serial_names(patients: Iterable[str]) -> dict[str, str]:
    """What patients are called in the dataset, which tells nothing of them: "patient_00000" and so on.

    Args:
        patients: Hashes of `patient_hash`, repeated as often as they have scans; their order decides.
    """
    return {patient: f"patient_{rank:05d}" for rank, patient in enumerate(sorted(set(patients)))}


def assign_splits(
    patients: Iterable[str], validation: float, test: float, given: Mapping[str, Split] | None = None
) -> dict[str, Split]:
    """Deals patients to splits in the order of their hashes, which the seed decides.

    Args:
        patients: Hashes of `patient_hash`, repeated as often as they have scans.
        validation: Fraction of patients, rounded; if not 0, at least one patient where there are two.
        test: Fraction of patients, rounded.
        given: The provider's split of some patients. Who is held back by it stays so; the others are dealt,
            to training and to what it leaves out: validation is taken from training where it has none.

    Returns:
        The split of each patient. Training keeps at least one of those that are dealt.
    """
    everyone = set(patients)
    held_back = {
        patient: split
        for patient, split in (given or {}).items()
        if split is not Split.TRAIN and patient in everyone
    }
    validation = 0 if Split.VALIDATION in held_back.values() else validation
    test = 0 if Split.TEST in held_back.values() else test
    order = sorted(everyone - set(held_back))
    num_validation = round(validation * len(order))
    if validation > 0 and len(order) >= 2:
        num_validation = max(1, num_validation)
    num_validation = min(num_validation, max(0, len(order) - 1))
    num_test = min(round(test * len(order)), max(0, len(order) - 1 - num_validation))
    splits = dict.fromkeys(order, Split.TRAIN)
    splits.update(dict.fromkeys(order[:num_validation], Split.VALIDATION))
    splits.update(dict.fromkeys(order[num_validation : num_validation + num_test], Split.TEST))
    return splits | held_back


def _read_table(path: Path) -> dict[str, str]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            if not {"file", "patient"} <= set(reader.fieldnames or ()):
                raise UserError(f"{path} has columns {reader.fieldnames}: it needs `file` and `patient`")
            patients: dict[str, str] = {}
            for row in reader:
                if row["file"] and row["patient"]:
                    name, patient = posixpath.normpath(row["file"].strip()), row["patient"].strip()
                    if patients.setdefault(name, patient) != patient:
                        raise UserError(_two_patients(path, name, (patients[name], patient)))
            return patients
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"the patient table {path} can't be read ({error})") from error


def _two_patients(table: Path, name: str, patients: Iterable[str]) -> str:
    given = " and ".join(f"{patient!r}" for patient in patients)
    return f"the patient table {table} gives {name} to the patients {given}: keep the right one"
