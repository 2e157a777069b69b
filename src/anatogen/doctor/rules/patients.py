"""Rules about patients: several scans of one, and the same one on both sides of a split."""

import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from pathlib import PurePosixPath

from anatogen.doctor.diagnosis import Facts, Finding, Severity, of_scans
from anatogen.report.numbers import count_of

_SPLIT = re.compile(
    r"(?:images|labels)?[-_]?(tr|train|training|val|valid|validation|ts|test|testing)[-_]?(?:set|data|images)?",
    re.I,
)
_SIDE = {
    "tr": "train",
    "training": "train",
    "valid": "val",
    "validation": "val",
    "ts": "test",
    "testing": "test",
}
# What a path may call a patient, the likeliest first: a folder, or the start of a file's name, with a
# number in it.
_GUESSES = (
    r"(?:^|/)((?:sub|subject|subj|patient|pat|case|p)[-_]?[0-9]+)(?=[^0-9])",
    r"(?:^|/)([A-Za-z]+[-_]?[0-9]+)(?=[^0-9/][^/]*$)",
    r"(?:^|/)([0-9]{2,})(?=[-_][^/]*$)",
    r"(?:^|/)([^/]*[0-9][^/]*)/[^/]*$",
)


def guess_pattern(names: Sequence[str]) -> tuple[str, dict[str, list[str]]] | None:
    """A `patient_pattern` that sees several scans of one patient in these paths.

    Args:
        names: Relative paths of scans.

    Returns:
        The pattern and the names by patient; None where no pattern fits all names and finds a patient twice.
    """
    for pattern in _GUESSES:
        groups: dict[str, list[str]] = {}
        for name in names:
            match = re.search(pattern, name)
            if match is None:
                break
            groups.setdefault(match.group(1), []).append(name)
        else:
            # One "patient" in all, or a few with dozens each, is a name of the study.
            if 1 < len(groups) < len(names) and len(names) <= 20 * len(groups):
                return pattern, groups
    return None


def side(name: str) -> str | None:
    """The provider's split that a path tells: "train", "val", "test", or None."""
    for part in PurePosixPath(name).parts[:-1]:
        match = _SPLIT.fullmatch(part)
        if match:
            found = match.group(1).lower()
            return _SIDE.get(found, found)
    return None


def _by_patient(facts: Facts) -> dict[str, list[str]]:
    groups: dict[str, list[str]] = {}
    for scan in facts.usable:
        groups.setdefault(scan.patient or scan.name, []).append(scan.name)
    return groups


def _told(facts: Facts) -> bool:
    """Whether anything but the files themselves says who is who."""
    return any(scan.patient != scan.name for scan in facts.usable)


def several_scans(facts: Facts) -> Iterator[Finding]:
    """Patients with several scans, as told or guessed from names."""
    silent = tuple(scan.name for scan in facts.usable if scan.patient is None)
    if silent:
        yield of_scans(
            "unknown_patient",
            Severity.WARNING,
            f"patient_pattern or patient_csv says nothing of {count_of(len(silent), 'scan')}",
            silent,
            "Prepare leaves them out: widen the pattern, or complete the table.",
        )
    repeated = [names for names in _by_patient(facts).values() if len(names) > 1]
    if repeated and _told(facts):
        names = tuple(name for group in repeated for name in group)
        yield Finding(
            "several_scans",
            Severity.NOTE,
            f"{count_of(len(repeated), 'patient')} with several scans, {len(names)} in all",
            len(repeated),
            names,
            "Prepare keeps all scans of a patient in one split. Nothing needs to be done.",
        )
    if not _told(facts) and (guess := guess_pattern([scan.name for scan in facts.usable])):
        pattern, groups = guess
        repeated = [names for names in groups.values() if len(names) > 1]
        yield Finding(
            "patients_by_name",
            Severity.WARNING,
            f"Names look like {len(groups)} patients with {len(facts.usable)} scans, and each scan counts "
            "as a patient",
            len(repeated),
            tuple(name for names in repeated for name in names),
            "If so, name the part of the path that is the patient, so that no split separates a patient's "
            "scans.",
            shlex.quote(f"patient_pattern={pattern}"),
        )


def leakage(facts: Facts) -> Iterator[Finding]:
    """Patients and copies on both sides of the provider's split."""
    if len({side(scan.name) for scan in facts.usable} - {None}) < 2:
        return
    groups = _by_patient(facts)
    if not _told(facts) and (guess := guess_pattern([scan.name for scan in facts.usable])):
        groups = guess[1]
    contents: dict[str, list[str]] = {}
    for scan, record in facts.measured():
        contents.setdefault(record.content_sha256, []).append(scan.name)
    pairs = ([pair.first, pair.second] for pair in facts.alike)
    for code, noun, what, found in (
        ("leaking_patients", "patient", "with scans", _across(groups.values())),
        ("leaking_copies", "group", "of copies or near-copies", _across([*contents.values(), *pairs])),
    ):
        if found:
            yield Finding(
                code,
                Severity.WARNING,
                f"{count_of(len(found), noun)} {what} on both sides of the folders' split",
                len(found),
                tuple(name for group in found for name in group),
                "Results on such a test set would be too good. Prepare deals patients anew and keeps each "
                "in one split where it is told who is who (patient_pattern, patient_csv); copies must be "
                "excluded.",
            )


def _across(groups: Iterable[list[str]]) -> list[list[str]]:
    return [names for names in groups if len({side(name) for name in names} - {None}) > 1]
