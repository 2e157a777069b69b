"""Row: one measured number with all it takes to judge it; what tables, report.json and report.html are of."""

from dataclasses import dataclass
from typing import Literal

Better = Literal["lower", "higher", "reference", "none"]
# How an answer computed from rows sounds; "open" where the numbers can't tell.
Tone = Literal["good", "mixed", "bad", "open"]


@dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
        group: "fidelity", "diversity", "privacy" or "reconstruction".
        name: For machines, e.g. "frechet_slices_axial".
        label: For people, e.g. "Fréchet distance, axial slices".
        value: The number; None where it could not be measured, and `note` says why.
        low: Lower end of its 95% interval.
        high: Upper end.
        reference: The same number of real scans against other real scans (the floor), or the real set's own.
        reference_low: Lower end of the reference's 95% interval.
        reference_high: Upper end.
        better: Which way is good: "lower", "higher", closest to "reference", or "none".
        unit: Of value and reference; empty for pure numbers.
        note: What a reader must know: too few scans (and how many would do), constant scans, ...
    """

    group: str
    name: str
    label: str
    value: float | None
    low: float | None = None
    high: float | None = None
    reference: float | None = None
    reference_low: float | None = None
    reference_high: float | None = None
    better: Better = "lower"
    unit: str = ""
    note: str = ""
