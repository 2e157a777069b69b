"""Row: one measured number with all it takes to judge it; what tables, report.json and report.html are of."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rich.table import Table

from anatogen.report.intervals import Estimate
from anatogen.report.numbers import capitalised, interval_text, number_text

Better = Literal["lower", "higher", "reference", "none"]
Group = Literal["fidelity", "diversity", "privacy", "reconstruction"]


@dataclass(frozen=True)
class Row:
    """One measured number.

    Attributes:
        group: What the number is about.
        name: For machines, e.g. "frechet_slices_axial".
        label: For people, e.g. "Fréchet distance, axial slices".
        value: The number; None where it could not be measured, and a note says why.
        low: Lower end of its 95% interval.
        high: Upper end.
        reference: The same number of real scans against other real scans (the floor), or the real set's own.
        reference_low: Lower end of the reference's 95% interval.
        reference_high: Upper end.
        better: Which way is good: "lower", "higher", closest to "reference", or "none".
        unit: Unit of value and reference; empty for pure numbers.
        count: How many of how many, where the value is such a share.
        notes: What a reader must know: too few scans (and how many would do), constant scans, ...
        is_detail: Whether another row says the same in short: planes, other numbers of scans, planted copies.
    """

    group: Group
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
    count: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()
    is_detail: bool = False

    def measured(
        self, value: Estimate | float, reference: Estimate | None = None, notes: Sequence[str] = ()
    ) -> "Row":
        """The row with its numbers, and with these notes."""
        number, low, high = value if isinstance(value, Estimate) else (value, None, None)
        row = replace(self, value=number, low=low, high=high, notes=tuple(notes))
        if reference is None:
            return row
        floor, floor_low, floor_high = reference
        return replace(row, reference=floor, reference_low=floor_low, reference_high=floor_high)

    def missing(self, why: str) -> "Row":
        """The row of a number that could not be measured, and so has no unit."""
        return replace(self, value=None, unit="", notes=(why,))


def ratio_to_floor(row: Row) -> float | None:
    """How many times worse than real against real; None where a ratio has no meaning (a floor of 0)."""
    if row.value is None or row.reference is None or row.better not in ("lower", "higher"):
        return None
    value, floor = (row.value, row.reference) if row.better == "lower" else (row.reference, row.value)
    return value / floor if floor > 0 and value >= 0 else None


def tells_apart(row: Row) -> bool:
    """Whether the row's interval lies wholly on the worse side of the floor's; on any side where none is."""
    if row.better == "reference":
        return not overlap_floor(row)
    (low, high), (floor_low, floor_high) = _intervals(row)
    return low > floor_high if row.better == "lower" else high < floor_low


def overlap_floor(row: Row) -> bool:
    """Whether the row's interval and that of its reference overlap; a number without one is a point."""
    (low, high), (floor_low, floor_high) = _intervals(row)
    return low <= floor_high and high >= floor_low


def label_text(row: Row) -> str:
    """The row's label as it stands at the beginning of a line."""
    return capitalised(row.label)


def _intervals(row: Row) -> tuple[tuple[float, float], tuple[float, float]]:
    """Those of a measured row and of its reference."""
    assert row.value is not None and row.reference is not None
    return (
        (row.value if row.low is None else row.low, row.value if row.high is None else row.high),
        (
            row.reference if row.reference_low is None else row.reference_low,
            row.reference if row.reference_high is None else row.reference_high,
        ),
    )


def rows_table(rows: Sequence[Row]) -> Table:
    """The rows as a table for the terminal; details of fidelity and notes are left to the report."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for heading in ("value", "95% interval", "reference"):
        table.add_column(heading, justify="right", no_wrap=True)
    group = None
    for row in rows:
        if row.is_detail and row.group == "fidelity":
            continue
        if row.group != group:
            group = row.group
            table.add_row(f"[bold]{group.capitalize()}[/bold]")
        # A longer unit is a remark, which the report has room for.
        unit = row.unit if len(row.unit) <= 5 else ""
        reference = "" if row.reference is None else number_text(row.reference)
        value = f"{number_text(row.value)} {unit}".strip()
        table.add_row(f"  {label_text(row)}", value, interval_text(row.low, row.high), reference)
    return table
