"""The rules of `doctor`: pure functions from what was gathered of a folder to findings.

Each says what it found, how many, which, and what to type. What `prepare` would settle by itself (leaving out
copies, damaged scans and label maps) is a note or a warning; an error is what leaves nothing to prepare.
"""

import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import PurePosixPath

import numpy as np

from anatogen.data.checks import MIN_VOXELS
from anatogen.data.diagnosis import (
    Facts,
    Finding,
    ScanFacts,
    Severity,
    count_of,
    exclude,
    far_from_median,
    scans_are,
)
from anatogen.data.mask_findings import mask_rules
from anatogen.data.patient_findings import patient_rules

# With fewer scans a generator learns them by heart.
FEW_SCANS = 50
_PLANES = {"SPL": "axial", "RIP": "sagittal", "PIL": "coronal"}
_SEQUENCE = re.compile(
    r"(?:^|[-_. /])(t1ce|t1c|t1gd|t1w?|t2w?|flair|pdw?|adc|dwi|swi|bold|asl)(?=$|[-_. /])", re.I
)
_DATE = re.compile(r"(?<!\d)(?:19|20)\d\d([-_.]?)(?:0[1-9]|1[0-2])\1(?:0[1-9]|[12]\d|3[01])(?!\d)")

Rule = Callable[[Facts], Iterable[Finding]]


def conclude(facts: Facts) -> tuple[Finding, ...]:
    """Every finding, the gravest first and in the order of the rules."""
    rules: Sequence[Rule] = (
        _nothing_usable,
        *patient_rules,
        _copies,
        _near_copies,
        _burned_in,
        _unreadable,
        _flat_images,
        _modalities,
        _sequences,
        *mask_rules,
        _localisers,
        _several_series,
        _orientations,
        _outliers,
        _not_hounsfield,
        _geometry,
        _few_scans,
        _people,
    )
    found = [finding for rule in rules for finding in rule(facts)]
    order = list(Severity)
    return tuple(sorted(found, key=lambda finding: order.index(finding.severity)))


def outliers(facts: Facts) -> dict[str, list[str]]:
    """For each scan that is far from the median of all, in what: "spacing", "size" or "intensity".

    Spacing and size by a factor of 1.5 along an axis of the body, range of intensities by a factor of 10 (the
    unit of MR is arbitrary, and `prepare` scales each scan); see `far_from_median`.
    """
    measured = [(scan.name, inspection) for scan, inspection in facts.measured()]
    found: dict[str, list[str]] = {}
    if len(measured) < 5:
        return found
    # Along right, anterior and superior, whatever the order of a file's axes.
    affines = np.array([np.array(inspection.affine)[:3, :3] for _, inspection in measured])
    spacing = np.linalg.norm(affines, axis=1)
    fields = spacing * np.array([inspection.shape for _, inspection in measured])
    body = np.argmax(np.abs(affines), axis=1)
    ordered = np.argsort(body, axis=1)
    spacing, fields = (np.take_along_axis(values, ordered, axis=1) for values in (spacing, fields))
    contrast = np.array([inspection.high - inspection.low for _, inspection in measured])
    for what, values, factor in (
        ("spacing", spacing, 1.5),
        ("size", fields, 1.5),
        ("intensity", contrast[:, None], 10),
    ):
        far = np.any([far_from_median(column, factor) for column in values.T], axis=0)
        for index in np.flatnonzero(far):
            found.setdefault(measured[index][0], []).append(what)
    return found


def _nothing_usable(facts: Facts) -> Iterator[Finding]:
    if facts.usable:
        return
    if facts.scans:
        advice = "See the reasons below. Every scan was looked at, and prepare would leave each of them out."
        title = f"None of {count_of(len(facts.scans), 'scan')} can be used"
    elif facts.num_pictures:
        title = f"The folder holds no scans, but {facts.num_pictures} pictures (.png, .jpg, ...)"
        advice = "A picture has no spacing and no third dimension: export the scans as DICOM or NIfTI."
    else:
        title = "The folder holds no scans"
        advice = (
            "Known are .nii, .nii.gz, .nrrd, .mha, .mhd, .npy and DICOM series; check the path, include "
            "and exclude."
        )
    yield Finding("nothing_usable", Severity.ERROR, title, len(facts.scans), (), advice)


def _copies(facts: Facts) -> Iterator[Finding]:
    groups: dict[str, list[ScanFacts]] = {}
    for scan, inspection in facts.measured():
        groups.setdefault(inspection.content_sha256, []).append(scan)
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
            exclude(copies),
        )


def _near_copies(facts: Facts) -> Iterator[Finding]:
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
        exclude(seconds),
    )


def _burned_in(facts: Facts) -> Iterator[Finding]:
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
            yield Finding(hint, Severity.WARNING, told, len(names), names, advice, exclude(names))


def _unreadable(facts: Facts) -> Iterator[Finding]:
    groups: dict[str, list[tuple[str, str]]] = {}
    failed = [(scan.name, scan.look.reason) for scan in facts.scans if scan.look and scan.look.reason]
    for name, reason in [*failed, *((scan.name, scan.reason) for scan in facts.damaged)]:
        scan = facts.by_name.get(name)
        # What a label map or a flat image is told of has rules of its own.
        if scan is not None and ((scan.look and scan.look.num_labels) or _is_flat(scan)):
            continue
        # Reasons that differ in their numbers only are one.
        kind = re.sub(r"\(.*\)|: .*|[-+\d.e]*\d", "#", reason)
        groups.setdefault(kind, []).append((name, reason))
    for found in sorted(groups.values(), key=len, reverse=True):
        names = tuple(name for name, _ in found)
        advice, option = _cure(found[0][1])
        title = f"{len(names)} left out: {found[0][1]}"
        yield Finding("unreadable", Severity.WARNING, title, len(names), names, advice, option)


def _cure(reason: str) -> tuple[str, str]:
    """What to do about a reason that a reader gave, and the option."""
    cures = (
        (r"tilt|sheared", "Have it resampled to upright slices.", "--allow-tilt"),
        (
            r"missing inside",
            "Get the missing slices from the archive; a stack with gaps can't be stacked.",
            "",
        ),
        (r"lie where another", "Export one image per position: one echo, one b-value, one phase.", ""),
        (r"mixed orientations|differ in size", "Export each stack as a series of its own.", ""),
        (r"dimensions", "Split it into 3D volumes and keep one of each, such as the first time point.", ""),
        (r"several values|colour", "Export the grey values: colour is of no use here.", ""),
        (r"NaN", "Replace the bad voxels by the background's value, or export the scan again.", ""),
        (r"constant", "It is empty: leave it out, or export it again.", ""),
        (r"RescaleIntercept", "Export it with its rescale slope and intercept.", ""),
        (r"data file", "Put the header and its data file back together, below the folder of scans.", ""),
        (r"is damaged", "Get the damaged file again, or remove it with its series.", ""),
    )
    for pattern, advice, option in cures:
        if re.search(pattern, reason):
            return advice, option
    return "Copy or export it again; prepare leaves it out.", ""


def _flat_images(facts: Facts) -> Iterator[Finding]:
    names = tuple(scan.name for scan in facts.images if _is_flat(scan))
    if names:
        yield Finding(
            "flat",
            Severity.WARNING,
            f"{scans_are(names)} 2D or nearly: fewer than {MIN_VOXELS} slices, rows or columns",
            len(names),
            names,
            "Prepare leaves them out. If they are slices of one scan, put them together as one series.",
        )


def _is_flat(scan: ScanFacts) -> bool:
    return (
        scan.shape is not None
        and (len(scan.shape) < 3 or min(scan.shape[:3]) < MIN_VOXELS)
        and (len(scan.shape) <= 3)
    )


def _modalities(facts: Facts) -> Iterator[Finding]:
    told = Counter(scan.source.modality for scan in facts.images if scan.source.modality)
    if len(told) > 1:
        usual = told.most_common(1)[0][0]
        listing = ", ".join(f"{count} {name}" for name, count in told.most_common())
        others = tuple(scan.name for scan in facts.images if scan.source.modality not in (usual, None))
        choose = usual if usual in ("CT", "MR") else "MR"
        yield Finding(
            "modalities",
            Severity.WARNING,
            f"Several modalities: {listing}",
            len(others),
            others,
            "One generator learns one modality: choose it, and the others are left out.",
            f"modality={choose}",
        )
        return
    like_ct = [scan.name for scan, inspection in facts.measured() if inspection.looks_like_ct]
    known = [scan.name for scan, _ in facts.measured()]
    if not told and facts.config.modality == "auto" and 0 < len(like_ct) < len(known):
        is_ct = 2 * len(like_ct) > len(known)
        odd = tuple(sorted(set(known) - set(like_ct))) if is_ct else tuple(like_ct)
        modality = "CT" if is_ct else "MR"
        yield Finding(
            "modalities",
            Severity.WARNING,
            f"The values of {len(odd)} scans do not look like {modality}, those of the other "
            f"{len(known) - len(odd)} do",
            len(odd),
            odd,
            "Prepare leaves the fewer ones out. If all are of one modality, name it and all are kept.",
            f"modality={modality}",
        )


def _sequences(facts: Facts) -> Iterator[Finding]:
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
        yield Finding(
            "sequences",
            Severity.WARNING,
            f"Names tell of several MR sequences: {listing}",
            len(others),
            others,
            "A generator learns one contrast best: choose it by a pattern that its names match.",
            shlex.quote(f"include=*{written.pop()}*") if len(written) == 1 else "",
        )


def _localisers(facts: Facts) -> Iterator[Finding]:
    names = _with_hint(facts, "localiser")
    if names:
        yield Finding(
            "localisers",
            Severity.WARNING,
            f"{scans_are(names)} localisers (scouts): a few slices for planning",
            len(names),
            names,
            "They are no scans of their own; leave them out.",
            exclude(names),
        )


def _several_series(facts: Facts) -> Iterator[Finding]:
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
            exclude(names[0] for names in (group[1:] for group in shared) if names),
        )


def _orientations(facts: Facts) -> Iterator[Finding]:
    planes = Counter(plane for scan in facts.usable if (plane := scan.plane) is not None)
    if len(planes) > 1:
        usual = min(planes, key=lambda plane: (-planes[plane], plane))
        listing = ", ".join(f"{count} {_PLANES[plane]}" for plane, count in planes.most_common())
        names = tuple(scan.name for scan in facts.usable if scan.plane not in (usual, None))
        yield Finding(
            "orientations",
            Severity.NOTE,
            f"Slices lie in several planes: {listing}",
            len(names),
            names,
            "Prepare turns all to that of most. Thick slices of another plane get blurred: leave them out "
            "if so.",
            f"orientation={usual}",
        )


def _outliers(facts: Facts) -> Iterator[Finding]:
    far = outliers(facts)
    for what, severity, title, advice, option in (
        (
            "spacing",
            Severity.WARNING,
            "{} a spacing more than 1.5 times off the median",
            "They are resampled to the common grid and look blurred or lose detail there. Leave them out, "
            "or choose a grid that suits all.",
            "",
        ),
        (
            "size",
            Severity.WARNING,
            "{} a field of view more than 1.5 times off the median",
            "They are cropped or padded on the common grid. Leave them out, or stretch each scan to it.",
            "fit=resize",
        ),
        (
            "intensity",
            Severity.NOTE,
            "{} a range of values more than 10 times off the median",
            "Each MR scan is scaled by its own percentiles, so this is harmless unless the scan is "
            "damaged: look at it.",
            "",
        ),
    ):
        names = tuple(name for name, kinds in far.items() if what in kinds)
        if names:
            told = title.format(f"{count_of(len(names), 'scan')} with")
            typed = option or exclude(names)
            yield Finding(f"{what}_outliers", severity, told, len(names), names, advice, typed)


def _not_hounsfield(facts: Facts) -> Iterator[Finding]:
    told = facts.config.modality
    names = tuple(
        scan.name
        for scan, inspection in facts.measured()
        if (scan.source.modality or told) == "CT" and not inspection.looks_like_ct
    )
    if names:
        yield Finding(
            "not_hounsfield",
            Severity.WARNING,
            f"{count_of(len(names), 'CT scan')} with values that are no Hounsfield units, or without air",
            len(names),
            names,
            "If they are shifted (air at 0), export them with their rescale intercept; if they are "
            "cropped to soft tissue, all is well.",
            exclude(names),
        )


def _geometry(facts: Facts) -> Iterator[Finding]:
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


def _few_scans(facts: Facts) -> Iterator[Finding]:
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


def _people(facts: Facts) -> Iterator[Finding]:
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
