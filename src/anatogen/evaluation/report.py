"""The report of an evaluation: one page for people, one JSON for programs, figures as PNG beside them.

The page holds its pictures and needs no scripts and no network. Both name scans by role and number only.
"""

import math
import shutil
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anatogen.core.errors import UserError
from anatogen.core.files import remove_parts, write_json
from anatogen.core.provenance import versions
from anatogen.dataset.scan_sets import ScanSet
from anatogen.report.numbers import interval_text, number_text
from anatogen.report.page import write_page
from anatogen.report.rows import Row, label_text, ratio_to_floor, tells_apart
from anatogen.report.verdicts import Answer

PAGE_NAME = "report.html"
JSON_NAME = "report.json"
FIGURES = "figures"
CACHE = "cache"
AUDIT = "audit"
FORMAT_VERSION = 1
_KNOWN = frozenset({PAGE_NAME, JSON_NAME, FIGURES, CACHE, AUDIT})


@dataclass(frozen=True)
class Picture:
    """A figure of the page.

    Attributes:
        path: The PNG file.
        alt: What is to be seen, for those who don't see it.
        caption: How it is to be read.
        black: Whether its ground is black (scans) and not white (charts).
    """

    path: Path
    alt: str
    caption: str
    black: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the page: text, pictures, then a table of rows.

    Attributes:
        title: Its heading.
        lead: What it is about.
        rows: Shown as a table where there are any.
        pictures: Shown above the table.
        reference: What the rows' references are, as the head of their column.
        notes: Shown below the table.
        columns: Rows of the same measures by the name of what was measured, to be read side by side.
    """

    title: str
    lead: str
    rows: Sequence[Row] = ()
    pictures: Sequence[Picture] = ()
    reference: str = "Real against real"
    notes: Sequence[str] = ()
    columns: Mapping[str, Sequence[Row]] = field(default_factory=dict)


@dataclass(frozen=True)
class Report:
    """All that a report says.

    Attributes:
        title: The page's heading.
        summary: One or two sentences below it.
        answers: The questions and their answers; none for a reconstruction report.
        sections: In order.
        settings: Settings of the evaluation, by name; in the JSON as they are.
        inputs: Sets of scans that went in by role, as `about_scans` describes them.
        input_hashes: Hashes of the other files that went in, by name.
        limits: What the numbers don't show.
        details: More for the JSON, such as the scales of MS-SSIM.
    """

    title: str
    summary: str
    answers: Sequence[Answer]
    sections: Sequence[Section]
    settings: Mapping[str, Any]
    inputs: Mapping[str, Mapping[str, Any]]
    input_hashes: Mapping[str, str] = field(default_factory=dict)
    limits: Sequence[str] = ()
    details: Mapping[str, Any] = field(default_factory=dict)


def open_report_folder(out: Path) -> None:
    """Makes the folder of a report if it is not there.

    Raises:
        UserError: If it is a file, or holds anything that is not a report's.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder for the report")
    entries = list(out.iterdir()) if out.exists() else []
    names = {entry.name for entry in entries if not entry.name.startswith(".part-")}
    foreign = sorted(names - _KNOWN)
    # A folder of figures alone may be someone's own: a report's has its cache from the beginning.
    if foreign or (names and CACHE not in names):
        raise UserError(
            f"{out} is not empty and no report's folder ({(foreign or sorted(names))[0]} lies in it): "
            "name an empty or a new folder"
        )
    (out / CACHE).mkdir(parents=True, exist_ok=True)
    remove_parts(out)


def clear_report(out: Path, keep: Collection[str] = ()) -> Path:
    """Takes away the report that lies in the folder, and returns the folder for the next one's figures.

    So pictures, numbers and audits of two evaluations are never mixed. The cache stays.

    Args:
        out: The folder of the report.
        keep: Names of what the next report's own evaluation has written there already.
    """
    for name in _KNOWN - {CACHE, *keep}:
        if (out / name).is_dir():
            shutil.rmtree(out / name)
        else:
            (out / name).unlink(missing_ok=True)
    figures = out / FIGURES
    figures.mkdir()
    return figures


def about_scans(scans: ScanSet) -> dict[str, Any]:
    """What a report says of a set of scans: how many on which grid, and the hash of their content."""
    return {
        "num_scans": len(scans),
        "modality": scans.modality,
        "shape": list(scans.grid.shape),
        "spacing_mm": list(scans.grid.spacing_mm),
        "sha256": scans.sha256,
    }


def write_report(report: Report, out: Path) -> Path:
    """Writes `report.html` and `report.json`, which comes last and makes the report whole.

    Equal content gives an equal `report.json` but for "created", the time in UTC.

    Args:
        report: What it says.
        out: The folder, after `open_report_folder` and `clear_report`.

    Returns:
        The path of the page.
    """
    created = datetime.now(UTC).isoformat(timespec="seconds")
    used = versions("numpy", "scipy", "torch")
    content = {
        "format_version": FORMAT_VERSION,
        "created": created,
        "title": report.title,
        "answers": [asdict(answer) for answer in report.answers],
        "rows": [asdict(row) for section in report.sections for row in section.rows],
        "columns": {
            name: [asdict(row) for row in rows]
            for section in report.sections
            for name, rows in section.columns.items()
        },
        "settings": dict(report.settings),
        "inputs": {**report.inputs, **report.input_hashes},
        "limits": list(report.limits),
        "details": dict(report.details),
        "versions": used,
    }
    page = out / PAGE_NAME
    write_page(
        page,
        "report.html",
        report=report,
        created=created[:10],
        sections=[
            {
                "about": section,
                "tables": _tables(section.rows),
                "notes": [*_shared_notes(section.rows), *section.notes],
                "columns": {name: [_cells(row) for row in rows] for name, rows in section.columns.items()},
            }
            for section in report.sections
        ],
        shows_scans=any(picture.black for section in report.sections for picture in section.pictures),
        versions=used,
    )
    write_json(out / JSON_NAME, _finite(content))
    return page


def _tables(rows: Sequence[Row]) -> list[list[dict[str, Any]]]:
    """The rows that say most, then their details."""
    shared = _shared_notes(rows)
    parts = [[row for row in rows if row.is_detail is detail] for detail in (False, True)]
    return [[_cells(row, shared) for row in part] for part in parts if part]


def _shared_notes(rows: Sequence[Row]) -> list[str]:
    """Notes that most rows have, to be said once."""
    counts = Counter(note for row in rows for note in row.notes)
    return [note for note, count in counts.items() if count >= 3 and 2 * count >= len(rows)]


def _cells(row: Row, shared: Sequence[str] = ()) -> dict[str, Any]:
    """A row as the table shows it, without the notes that the whole table shares."""
    judged = row.group == "fidelity" and row.better != "none" and None not in (row.value, row.reference)
    # An extrapolation has no interval: chance can't be ruled out.
    apart = judged and tells_apart(row) and not (row.is_detail and row.low is None)
    # A longer unit would push the numbers out of their column.
    is_short = len(row.unit) <= 5
    remarks = [] if is_short else [row.unit]
    if row.count is not None:
        remarks.append(f"{row.count[0]} of {row.count[1]}")
    remarks += [note for note in row.notes if note not in shared]
    return {
        "label": label_text(row),
        "note": "; ".join(remarks),
        "unit": row.unit if is_short else "",
        "value": number_text(row.value),
        "interval": interval_text(row.low, row.high),
        "reference": number_text(row.reference),
        "reference_interval": interval_text(row.reference_low, row.reference_high),
        "ratio": _ratio_text(ratio_to_floor(row) if judged else None, apart),
        "apart": apart,
    }


def _ratio_text(ratio: float | None, apart: bool) -> str:
    """How many times worse; in words where the floor is not above 0, as an unbiased distance's may be."""
    if ratio is None:
        return "differs" if apart else ""
    return f"{ratio:.2g}×" if ratio < 100 else f"{ratio:.0f}×"


def _finite(content: Any) -> Any:
    """The content with null for what JSON has no number for."""
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [_finite(value) for value in content]
    if isinstance(content, float) and not math.isfinite(content):
        return None
    return content
