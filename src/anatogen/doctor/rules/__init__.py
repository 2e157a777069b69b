"""The rules of `doctor`: pure functions from what was gathered of a folder to findings, one file a subject.

Each says what it found, how many, which, and what to type. What `prepare` would settle by itself (leaving out
copies, damaged scans and label maps) is a note or a warning; an error is what leaves nothing to prepare.
"""

from collections.abc import Callable, Iterable, Sequence

from anatogen.doctor.diagnosis import Facts, Finding, Severity
from anatogen.doctor.rules import headers, masks, outliers, patients, scans

Rule = Callable[[Facts], Iterable[Finding]]

_RULES: Sequence[Rule] = (
    scans.nothing_usable,
    patients.several_scans,
    patients.leakage,
    scans.copies,
    scans.near_copies,
    scans.unreadable,
    scans.left_out,
    scans.flat_images,
    scans.modalities,
    scans.sequences,
    scans.rounded_positions,
    masks.label_maps,
    masks.unpaired,
    masks.mismatched,
    headers.hints,
    headers.several_series,
    headers.arrays,
    headers.dates,
    outliers.orientations,
    outliers.far_from_the_median,
    outliers.not_hounsfield,
    scans.few_scans,
)


def conclude(facts: Facts) -> tuple[Finding, ...]:
    """Every finding, the gravest first and in the order of the rules."""
    found = [finding for rule in _RULES for finding in rule(facts)]
    order = list(Severity)
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))
