"""What `anatogen study analyse` writes: a page for people, JSON and CSV for programs, figures beside them."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from anatogen.core.errors import UserError
from anatogen.core.files import remove_parts, write_json, write_text
from anatogen.core.provenance import versions
from anatogen.report.page import write_page
from anatogen.study.analysis.analyse import SEED, Analysis
from anatogen.study.analysis.answers import AnswerRow
from anatogen.study.analysis.headlines import headlines, summary
from anatogen.study.analysis.intervals import NUM_RESAMPLES
from anatogen.study.analysis.parts import BLINDING_TEXTS, limits, page_parts
from anatogen.study.analysis.statistic import Statistic
from anatogen.study.leaks import BlindingStatus, blinding_status
from anatogen.study.spec import LEAKS_NAME, StudySpec

PAGE_NAME = "analysis.html"
JSON_NAME = "analysis.json"
CSV_NAME = "analysis.csv"
ANSWERS_NAME = "answers.csv"
FIGURES = "figures"
FORMAT_VERSION = 1


def read_blinding(study: Path) -> BlindingStatus:
    """What the study's leaks.json says of its blinding."""
    try:
        check = json.loads((study / LEAKS_NAME).read_text(encoding="utf-8"))
        return blinding_status(check["num_scans"], check["passed"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return BlindingStatus.UNKNOWN


def write_analysis(analysis: Analysis, spec: StudySpec, out: Path, blinding: BlindingStatus) -> Path:
    """Writes the files of an analysis, each atomically; `analysis.json` comes last.

    Args:
        analysis: Analysis to be written.
        spec: What study.yaml says.
        out: Folder for the files, made if it is missing.
        blinding: Whether blinding was achieved.

    Returns:
        The page.

    Raises:
        UserError: If `out` is a file.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{out} is a file: name a folder")
    (out / FIGURES).mkdir(parents=True, exist_ok=True)
    remove_parts(out)
    remove_parts(out / FIGURES)
    created = datetime.now(UTC).isoformat(timespec="seconds")
    answers = headlines(analysis)
    shared = {
        "study": spec.id,
        "title": spec.title,
        "settings": {
            "margin": analysis.margin,
            "share_margin": analysis.share_margin,
            "resamples": NUM_RESAMPLES,
            "seed": SEED,
            "blinding": BLINDING_TEXTS[blinding],
        },
        "versions": versions("numpy", "scipy", "scikit-learn", "statsmodels"),
        "summary": summary(analysis),
        "limits": limits(analysis, blinding),
    }
    write_text(out / CSV_NAME, _csv_text(Statistic, analysis.statistics))
    write_text(out / ANSWERS_NAME, _csv_text(AnswerRow, analysis.rows))
    page = out / PAGE_NAME
    parts = page_parts(analysis, out / FIGURES)
    write_page(page, "analysis.html", **shared, created=created[:10], answers=answers, parts=parts)
    content = shared | {
        "format_version": FORMAT_VERSION,
        "created": created,
        "readers": list(analysis.readers),
        "answers": [asdict(answer) for answer in answers],
        "numbers": [asdict(statistic) for statistic in analysis.statistics],
    }
    write_json(out / JSON_NAME, content)
    return page


def _csv_text(kind: type, rows: Sequence[Any]) -> str:
    text = io.StringIO()
    names = [each.name for each in fields(kind)]
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(names)
    writer.writerows([[getattr(row, name) for name in names] for row in rows])
    return text.getvalue()
