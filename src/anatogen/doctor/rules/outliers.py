"""Rules about scans that are unlike the others: planes, spacing, size, values."""

from collections import Counter
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from anatogen.dataset.common_grid import PLANE_NAMES, usual_plane
from anatogen.doctor.diagnosis import Facts, Finding, Severity, exclude, of_scans
from anatogen.report.numbers import count_of


def outliers(facts: Facts) -> dict[str, list[str]]:
    """For each scan that is far from the median of all, in what: "spacing", "size" or "intensity".

    Spacing and size by a factor of 1.5 along an axis of the body, range of intensities by a factor of 10 (the
    unit of MR is arbitrary, and `prepare` scales each scan); see `far_from_median`.
    """
    measured = [(scan.name, record) for scan, record in facts.measured()]
    found: dict[str, list[str]] = {}
    if len(measured) < 5:
        return found
    # Along right, anterior and superior, whatever the order of a file's axes.
    affines = np.array([np.array(record.affine)[:3, :3] for _, record in measured])
    spacing = np.linalg.norm(affines, axis=1)
    fields = spacing * np.array([record.shape for _, record in measured])
    body = np.argmax(np.abs(affines), axis=1)
    ordered = np.argsort(body, axis=1)
    spacing, fields = (np.take_along_axis(values, ordered, axis=1) for values in (spacing, fields))
    contrast = np.array([record.high - record.low for _, record in measured])
    for what, values, factor in (
        ("spacing", spacing, 1.5),
        ("size", fields, 1.5),
        ("intensity", contrast[:, None], 10),
    ):
        far = np.any([far_from_median(column, factor) for column in values.T], axis=0)
        for index in np.flatnonzero(far):
            found.setdefault(measured[index][0], []).append(what)
    return found


def far_from_median(values: npt.NDArray[np.float64], factor: float) -> npt.NDArray[np.bool_]:
    """Which positive values lie far from the others: by more than a factor, and rarely for their spread.

    Both are asked for: 3.5 robust standard deviations (Iglewicz and Hoaglin 1993) mean nothing where nearly
    all values are equal, and a factor means nothing where values spread that much anyway.

    Args:
        values: (N,), positive.
        factor: Above 1.
    """
    logs = np.log(values)
    distance = np.abs(logs - np.median(logs))
    spread = 1.4826 * float(np.median(distance))
    return np.asarray((distance > np.log(factor)) & (distance > 3.5 * spread))


def orientations(facts: Facts) -> Iterator[Finding]:
    """Slices in several planes."""
    planes = Counter(plane for scan in facts.usable if (plane := scan.plane) is not None)
    if len(planes) > 1:
        usual, _ = usual_plane(planes.elements())
        listing = ", ".join(f"{count} {PLANE_NAMES[plane]}" for plane, count in planes.most_common())
        names = tuple(scan.name for scan in facts.usable if scan.plane not in (usual, None))
        yield of_scans(
            "orientations",
            Severity.NOTE,
            f"Slices lie in several planes: {listing}",
            names,
            "Prepare turns all to that of most. Thick slices of another plane get blurred: leave them out "
            "if so.",
            f"orientation={usual}",
        )


def far_from_the_median(facts: Facts) -> Iterator[Finding]:
    """Spacing, size or values far from those of the others."""
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
            typed = option or exclude(facts, names)
            yield of_scans(f"{what}_outliers", severity, told, names, advice, typed)


def not_hounsfield(facts: Facts) -> Iterator[Finding]:
    """CT whose values are no Hounsfield units."""
    told = facts.config.modality
    names = tuple(
        scan.name
        for scan, record in facts.measured()
        if (scan.source.modality or told) == "CT" and not record.looks_like_ct
    )
    if names:
        yield of_scans(
            "not_hounsfield",
            Severity.WARNING,
            f"{count_of(len(names), 'CT scan')} with values that are no Hounsfield units, or without air",
            names,
            "If they are shifted (air at 0), export them with their rescale intercept; if they are "
            "cropped to soft tissue, all is well.",
            exclude(facts, names),
        )
