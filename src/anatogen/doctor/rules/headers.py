"""Rules about what headers tell: pictures of screens, localisers, geometry, people."""

import re
from collections.abc import Iterator

from anatogen.doctor.diagnosis import Facts, Finding, Severity, exclude, of_scans
from anatogen.report.numbers import count_of

_DATE = re.compile(r"(?<!\d)(?:19|20)\d\d([-_.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?!\d)")


# What headers tell of scans one by one: hint, severity, title, advice, and whether to leave them out.
_HINTS = (
    (
        "burned_in",
        Severity.WARNING,
        "DICOM headers say that patient data is burned into the pixels of {number}",
        "Look at them. A generator can learn to write names: mask the text, or leave them out.",
        True,
    ),
    (
        "screen_capture",
        Severity.WARNING,
        "{number} {are} secondary captures: pictures of a screen, which often show names",
        "Leave them out, and get the original series from the archive.",
        True,
    ),
    (
        "localisers",
        Severity.WARNING,
        "{number} {are} localisers (scouts): a few slices for planning",
        "They are no scans of their own; leave them out.",
        True,
    ),
    (
        "no_geometry",
        Severity.WARNING,
        "{number} without a place in the patient by the NIfTI header (no affine, or identity)",
        "Left and right, spacing and orientation may be wrong: convert them again from DICOM.",
        False,
    ),
    (
        "names_in_headers",
        Severity.NOTE,
        "{number} with what looks like a name or a date of birth in the header",
        "Prepared datasets hold no header fields. The scans themselves are not de-identified: do not pass "
        "them on.",
        False,
    ),
)


def hints(facts: Facts) -> Iterator[Finding]:
    """Patient data in the pixels, pictures of screens, scouts, headers without geometry or with names."""
    for hint, severity, title, advice, leave_out in _HINTS:
        names = tuple(scan.name for scan in facts.images if hint in scan.header.hints)
        if names:
            told = title.format(number=count_of(len(names), "scan"), are="is" if len(names) == 1 else "are")
            yield of_scans(hint, severity, told, names, advice, exclude(facts, names) if leave_out else "")


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


def arrays(facts: Facts) -> Iterator[Finding]:
    """Arrays, which hold no geometry."""
    names = tuple(scan.name for scan in facts.images if scan.name.lower().endswith(".npy"))
    if names and facts.config.npy_spacing_mm == (1.0, 1.0, 1.0):
        yield of_scans(
            "npy",
            Severity.NOTE,
            f"{count_of(len(names), '.npy file')} without spacing and orientation",
            names,
            "They are taken for axial slices of 1 mm; name the spacing along (slices, rows, columns).",
            "'npy_spacing_mm=[3,1,1]'",
        )


def dates(facts: Facts) -> Iterator[Finding]:
    """Dates in names of files."""
    names = tuple(scan.name for scan in facts.scans if _DATE.search(scan.name))
    if names:
        yield of_scans(
            "dates_in_names",
            Severity.NOTE,
            f"{count_of(len(names), 'name')} of files with what looks like a date",
            names,
            "Names of files are in left_out.json and on this page only, never in a prepared dataset.",
        )
