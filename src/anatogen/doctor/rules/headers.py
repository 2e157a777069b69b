"""Rules about what headers tell: pictures of screens, localisers, geometry, people."""

import re
from collections.abc import Iterator

from anatogen.doctor.diagnosis import Facts, Finding, Severity, exclude, scans_are
from anatogen.report.numbers import count_of

_DATE = re.compile(r"(?<!\d)(?:19|20)\d\d([-_.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?!\d)")


def burned_in(facts: Facts) -> Iterator[Finding]:
    """Patient data in the pixels, and pictures of screens."""
    for hint, title, advice in (
        (
            "burned_in",
            "DICOM headers say that patient data is burned into the pixels of {}",
            "Look at them. A generator can learn to write names: mask the text, or leave them out.",
        ),
        (
            "screen_capture",
            "{} secondary captures: pictures of a screen, which often show names and have no geometry",
            "Leave them out, and get the original series from the archive.",
        ),
    ):
        names = _with_hint(facts, hint)
        if names:
            told = (
                title.format(scans_are(names))
                if hint == "screen_capture"
                else title.format(count_of(len(names), "scan"))
            )
            yield Finding(hint, Severity.WARNING, told, len(names), names, advice, exclude(facts, names))


def localisers(facts: Facts) -> Iterator[Finding]:
    """Scouts for planning."""
    names = _with_hint(facts, "localiser")
    if names:
        yield Finding(
            "localisers",
            Severity.WARNING,
            f"{scans_are(names)} localisers (scouts): a few slices for planning",
            len(names),
            names,
            "They are no scans of their own; leave them out.",
            exclude(facts, names),
        )


def several_series(facts: Facts) -> Iterator[Finding]:
    """Folders with several DICOM series."""
    folders: dict[str, list[str]] = {}
    for scan in facts.images:
        if scan.source.is_dicom:
            folders.setdefault(str(scan.source.files[0].parent), []).append(scan.name)
    shared = [names for names in folders.values() if len(names) > 1]
    if shared:
        yield Finding(
            "several_series",
            Severity.NOTE,
            f"{count_of(len(shared), 'folder')} with several DICOM series",
            len(shared),
            tuple(name for names in shared for name in names),
            "They are told apart by their headers, and each is a scan named by its first file. Where one "
            "alone is wanted, exclude the others.",
            exclude(facts, (names[0] for names in (group[1:] for group in shared) if names)),
        )


def geometry(facts: Facts) -> Iterator[Finding]:
    """Headers without a place in the patient."""
    arrays = tuple(scan.name for scan in facts.images if scan.name.lower().endswith(".npy"))
    if arrays and facts.config.npy_spacing_mm == (1.0, 1.0, 1.0):
        yield Finding(
            "npy",
            Severity.NOTE,
            f"{count_of(len(arrays), '.npy file')} without spacing and orientation",
            len(arrays),
            arrays,
            "They are taken for axial slices of 1 mm; name the spacing along (slices, rows, columns).",
            "'npy_spacing_mm=[3,1,1]'",
        )
    names = tuple(name for name in _with_hint(facts, "no_geometry") if name not in arrays)
    if names:
        yield Finding(
            "no_geometry",
            Severity.WARNING,
            f"{count_of(len(names), 'NIfTI header')} without a place in the patient (no affine, or identity)",
            len(names),
            names,
            "Left and right, spacing and orientation may be wrong: convert them again from DICOM.",
        )


def people(facts: Facts) -> Iterator[Finding]:
    """Names and dates in headers and in names of files."""
    headers = _with_hint(facts, "person")
    if headers:
        yield Finding(
            "names_in_headers",
            Severity.NOTE,
            f"{count_of(len(headers), 'header')} with what looks like a name or a date of birth",
            len(headers),
            headers,
            "Prepared datasets hold no header fields. The scans themselves are not de-identified: do not "
            "pass them on.",
        )
    dates = tuple(scan.name for scan in facts.scans if _DATE.search(scan.name))
    if dates:
        yield Finding(
            "dates_in_names",
            Severity.NOTE,
            f"{count_of(len(dates), 'name')} of files with what looks like a date",
            len(dates),
            dates,
            "Names of files are in left_out.json and on this page only, never in a prepared dataset.",
        )


def _with_hint(facts: Facts, hint: str) -> tuple[str, ...]:
    return tuple(scan.name for scan in facts.images if hint in scan.header.hints)
