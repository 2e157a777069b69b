"""Rules about the scans themselves: whether they can be used, copies, what is left out, mixtures, numbers."""

import re
import shlex
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath

import numpy as np

from anatogen.core.errors import UserError
from anatogen.core.reasons import Reason
from anatogen.dataset.common_grid import choose_modality
from anatogen.dataset.discover import LeftOut
from anatogen.dataset.measures import may_lack_intercept
from anatogen.dataset.recipes.recipe import Scan
from anatogen.dataset.records import RefusedRecord
from anatogen.dataset.survey import UsableScan
from anatogen.doctor.diagnosis import Facts, Finding, ScanFacts, Severity, exclude, of_scans, scans_are
from anatogen.io.checks import MIN_VOXELS
from anatogen.io.formats import SCAN_ENDINGS
from anatogen.report.numbers import count_of

# With fewer scans a generator learns them by heart.
FEW_SCANS = 50
# Share of scans like CT up to which the others are taken for MR, and not for CT that is shifted.
_FEW_CT = 0.25
_SEQUENCE = re.compile(
    r"(?:^|[-_. /])(t1ce|t1c|t1gd|t1w?|t2w?|flair|pdw?|adc|dwi|swi|bold|asl)(?=$|[-_. /])", re.I
)


def nothing_usable(facts: Facts) -> Iterator[Finding]:
    """Whether anything can be prepared at all."""
    if facts.usable:
        return
    number = len(facts.scans) + len(facts.damaged) + len(facts.left_out)
    if number:
        advice = "See the reasons below. Every scan was looked at, and prepare would leave each of them out."
        title = f"None of {count_of(number, 'scan')} can be used"
    elif facts.num_pictures:
        title = f"The folder holds no scans, but {facts.num_pictures} pictures (.png, .jpg, ...)"
        advice = "A picture has no spacing and no third dimension: export the scans as DICOM or NIfTI."
    else:
        title = "The folder holds no scans"
        known = ", ".join(SCAN_ENDINGS)
        advice = f"Known are {known} and DICOM series; check the path, include and exclude."
    yield Finding("nothing_usable", Severity.ERROR, title, number, (), advice)


def copies(facts: Facts) -> Iterator[Finding]:
    """Scans that are voxel for voxel another one."""
    groups: dict[str, list[ScanFacts]] = {}
    for scan, record in facts.measured():
        groups.setdefault(record.content_sha256, []).append(scan)
    copies = [scan.name for group in groups.values() for scan in group[1:]]
    if copies:
        yield Finding(
            "copies",
            Severity.WARNING,
            f"{scans_are(copies)} voxel for voxel another one",
            len(copies),
            tuple(
                name for group in groups.values() if len(group) > 1 for name in (scan.name for scan in group)
            ),
            "Prepare keeps the first of those in the same place. Where the header differs, or the patient "
            "does, find out which is right and exclude the other.",
            exclude(facts, copies),
        )


def near_copies(facts: Facts) -> Iterator[Finding]:
    """Pairs that look like the same picture."""
    if not facts.alike:
        return
    mirrored = sum(pair.flipped for pair in facts.alike)
    names = tuple(dict.fromkeys(name for pair in facts.alike for name in (pair.first, pair.second)))
    seconds = list(dict.fromkeys(pair.second for pair in facts.alike))
    note = f", {mirrored} of them mirrored" if mirrored else ""
    yield Finding(
        "near_copies",
        Severity.WARNING,
        f"{count_of(len(facts.alike), 'pair')} of scans look like the same picture with other voxels{note}",
        len(facts.alike),
        names,
        "One is likely a processed copy, or a second scan of the same patient. Keep one of each pair, or "
        "give both the same patient by patient_csv or patient_pattern, so that no split separates them.",
        exclude(facts, seconds),
    )


def unreadable(facts: Facts) -> Iterator[Finding]:
    """Scans whose files or voxels can not be used, by reason."""
    # What a label map, a flat image or a localiser is told of has rules of its own.
    failed = [
        LeftOut(scan.name, scan.record.refusal)
        for scan in facts.scans
        if isinstance(scan.record, RefusedRecord)
        and not (scan.num_labels or scan.is_label_map or _is_flat(scan) or "localisers" in scan.header.hints)
    ]
    # Masks that can't be read are among these, and those on another grid have a rule of their own.
    unknown = [scan for scan in facts.by_mask if scan.refusal.reason is Reason.UNKNOWN_LABEL]
    yield from _by_reason("unreadable", [*failed, *facts.damaged, *unknown])


def left_out(facts: Facts) -> Iterator[Finding]:
    """What recipe, patient table or pattern leave out, by reason."""
    yield from _by_reason("left_out", facts.left_out)


def _by_reason(code: str, left_out: Iterable[LeftOut]) -> Iterator[Finding]:
    """One finding a reason, the commonest first; its title quotes the first scan's facts."""
    groups: dict[str, list[LeftOut]] = {}
    for scan in left_out:
        groups.setdefault(scan.refusal.code, []).append(scan)
    for found in sorted(groups.values(), key=len, reverse=True):
        names = tuple(scan.name for scan in found)
        title = f"{len(names)} left out: {found[0].reason}"
        advice, option = found[0].refusal.remedy
        yield of_scans(code, Severity.WARNING, title, names, advice, option)


def flat_images(facts: Facts) -> Iterator[Finding]:
    """Images without a third dimension."""
    names = tuple(scan.name for scan in facts.images if _is_flat(scan))
    if names:
        yield of_scans(
            "flat",
            Severity.WARNING,
            f"{scans_are(names)} 2D or nearly: fewer than {MIN_VOXELS} slices, rows or columns",
            names,
            "Prepare leaves them out. If they are slices of one scan, put them together as one series.",
        )


def _is_flat(scan: ScanFacts) -> bool:
    return (
        scan.shape is not None
        and (len(scan.shape) < 3 or min(scan.shape[:3]) < MIN_VOXELS)
        and (len(scan.shape) <= 3)
    )


def modalities(facts: Facts) -> Iterator[Finding]:
    """CT among MR, by DICOM headers or by values."""
    told = Counter(scan.source.modality for scan in facts.images if scan.source.modality)
    if len(told) > 1:
        usual = told.most_common(1)[0][0]
        listing = ", ".join(f"{count} {name}" for name, count in told.most_common())
        others = tuple(scan.name for scan in facts.images if scan.source.modality not in (usual, None))
        choose = usual if usual in ("CT", "MR") else "MR"
        yield of_scans(
            "modalities",
            _severity(facts),
            f"Several modalities: {listing}",
            others,
            "One generator learns one modality: choose it, and the others are left out.",
            f"modality={choose}",
        )
        return
    like_ct = [scan.name for scan, record in facts.measured() if record.looks_like_ct]
    known = [scan.name for scan, _ in facts.measured()]
    if not told and facts.config.modality == "auto" and 0 < len(like_ct) < len(known):
        is_ct = 2 * len(like_ct) > len(known)
        odd = tuple(sorted(set(known) - set(like_ct))) if is_ct else tuple(like_ct)
        modality = "CT" if is_ct else "MR"
        severity = _severity(facts)
        option = f"modality={modality}"
        if severity is Severity.ERROR:
            advice = "Exclude the others, or name the modality if all are of one, and all are kept."
        else:
            advice = (
                "Prepare leaves the fewer ones out. If all are of one modality, name it and all are kept."
            )
        shifted = [
            scan.name
            for scan, record in facts.measured()
            if may_lack_intercept(record.minimum, record.maximum)
        ]
        # A few CT among many others are CT among MR; else to name the modality would hide the shift.
        if shifted and (is_ct or len(odd) > _FEW_CT * len(known)):
            advice = (
                f"{len(shifted)} with nothing below 0 are MR, or CT that has lost its rescale intercept: "
                "export such CT again with it. Exclude what is of the other modality."
            )
            option = exclude(facts, shifted) if is_ct else ""
        yield of_scans(
            "modalities",
            severity,
            f"The values of {len(odd)} scans do not look like {modality}, those of the other "
            f"{len(known) - len(odd)} do",
            odd,
            advice,
            option,
        )


def _severity(facts: Facts) -> Severity:
    """How much mixed modalities matter: `prepare` goes on without strays, and refuses a mixture."""
    scans = [UsableScan(Scan(scan.source, scan.name), record, None) for scan, record in facts.measured()]
    try:
        if scans:
            choose_modality(scans, facts.config.modality)
    except UserError:
        return Severity.ERROR
    return Severity.WARNING


def sequences(facts: Facts) -> Iterator[Finding]:
    """Several MR sequences, by names."""
    groups: dict[str, list[tuple[str, str]]] = {}
    for scan in facts.images:
        match = _SEQUENCE.search(PurePosixPath(scan.name).name) or _SEQUENCE.search(scan.name)
        if match:
            # T1 and t1w are one sequence.
            kind = match.group(1).upper().removesuffix("W")
            groups.setdefault(kind, []).append((scan.name, match.group(1)))
    if len(groups) > 1:
        usual = max(groups, key=lambda kind: len(groups[kind]))
        listing = ", ".join(f"{len(found)} {kind}" for kind, found in sorted(groups.items()))
        others = tuple(name for kind, found in groups.items() if kind != usual for name, _ in found)
        written = {word for _, word in groups[usual]}
        yield of_scans(
            "sequences",
            Severity.WARNING,
            f"Names tell of several MR sequences: {listing}",
            others,
            "A generator learns one contrast best: choose it by a pattern that its names match.",
            shlex.quote(f"include=*{written.pop()}*") if len(written) == 1 else "",
        )


def rounded_positions(facts: Facts) -> Iterator[Finding]:
    """Series whose positions of slices are rounded, with the spacing that is taken."""
    found = [(scan.name, record) for scan, record in facts.measured() if record.rounded_mm]
    if found:
        name, record = found[0]
        spacing = float(np.linalg.norm(np.array(record.affine)[:3, 0]))
        yield of_scans(
            "rounded_positions",
            Severity.NOTE,
            f"Positions of slices are rounded in {count_of(len(found), 'scan')}, to {record.rounded_mm:g} mm",
            [name for name, _ in found],
            f"The mean distance of slices is taken: {spacing:.4f} mm in {name}. If that is not right, get "
            "the original series.",
        )


def few_scans(facts: Facts) -> Iterator[Finding]:
    """Too few scans for a generator."""
    number = len({scan.patient or scan.name for scan in facts.usable})
    if 0 < number < FEW_SCANS:
        told = "patients" if any(scan.source.patient for scan in facts.usable) else "scans"
        yield Finding(
            "few_scans",
            Severity.WARNING,
            f"Only {number} {told}",
            number,
            (),
            f"With fewer than {FEW_SCANS}, a generator learns its scans by heart. It can be tried, but its "
            "scans are copies until anatogen evaluate says otherwise.",
        )
