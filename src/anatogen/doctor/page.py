"""`doctor.html` and `doctor.json`: what was found in a folder of scans. Both stay with the user."""

import tempfile
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from anatogen.core.errors import UserError
from anatogen.core.files import write_json
from anatogen.dataset.common_grid import PLANE_NAMES
from anatogen.dataset.discover import ignored_text
from anatogen.doctor.charts import sheet_figure, spread_figure
from anatogen.doctor.diagnosis import Diagnosis, Facts
from anatogen.doctor.examine import as_json
from anatogen.io.formats import ending
from anatogen.report.numbers import times
from anatogen.report.page import data_url, write_page

PAGE_NAME, JSON_NAME = "doctor.html", "doctor.json"
# What was learned of each scan, beside the page.
RECORDS_NAME = ".examined"
MOST_EXAMPLES = 5


def check_out(scans: Path, out: Path) -> None:
    """Checks that the page can go into a folder.

    Raises:
        UserError: If it is a file, or lies inside the folder of scans, which is left as it is.
    """
    if out.is_file():
        raise UserError(f"{out} is a file: name a folder for doctor.html")
    if out.resolve().is_relative_to(scans.resolve()):
        raise UserError(f"{out} lies inside {scans}, which is left as it is: choose another folder")


def write_doctor_page(diagnosis: Diagnosis, out: Path) -> Path:
    """Writes `doctor.html` and `doctor.json` into a folder, each atomically.

    Args:
        diagnosis: Result of `examine`.
        out: Made if it is missing.

    Returns:
        The page.
    """
    with tempfile.TemporaryDirectory() as scratch:
        file = Path(scratch) / "picture.png"
        spread = data_url(file) if spread_figure(diagnosis, file) else ""
        sheet = ""
        if diagnosis.shown:
            sheet_figure(diagnosis.shown, file)
            sheet = data_url(file)
    write_json(out / JSON_NAME, as_json(diagnosis))
    write_page(
        out / PAGE_NAME,
        "doctor.html",
        usable=len(diagnosis.facts.usable),
        total=diagnosis.facts.num_candidates,
        looked_at_pixels=diagnosis.facts.looked_at_pixels,
        findings=diagnosis.findings,
        most_examples=MOST_EXAMPLES,
        numbers=summary(diagnosis.facts),
        spread=spread,
        sheet=sheet,
        captions=[(scan.name, scan.why, times(scan.size_mm[::-1], "×")) for scan in diagnosis.shown],
        outliers=diagnosis.outliers,
    )
    return out / PAGE_NAME


def summary(facts: Facts) -> Mapping[str, str]:
    """What the folder holds, in a few words each: label and value, medians of the usable scans."""
    scans = facts.usable
    numbers = {"scans that can be used": f"{len(scans)} of {facts.num_candidates}"}
    if facts.masks.masks:
        numbers["masks"] = str(len(facts.masks.masks))
    if facts.ignored:
        numbers["files ignored"] = ignored_text(facts.ignored)
    if not scans:
        return numbers
    formats = Counter(
        "DICOM" if scan.source.is_dicom else ending(scan.source.files[0]).lstrip(".") for scan in scans
    )
    numbers["format"] = ", ".join(name for name, _ in formats.most_common(3))
    modalities = Counter(scan.source.modality for scan in scans if scan.source.modality)
    if modalities:
        numbers["modality, as DICOM tells"] = ", ".join(name for name, _ in modalities.most_common(3))
    elif facts.looked_at_pixels:
        num_ct = sum(record.looks_like_ct for _, record in facts.measured())
        counts = {"CT": num_ct, "MR": len(scans) - num_ct}
        numbers["modality, by its values"] = ", ".join(
            name if num == len(scans) else f"{num} {name}" for name, num in counts.items() if num
        )
    spacings = [scan.spacing_mm for scan in scans if scan.spacing_mm and len(scan.spacing_mm) == 3]
    shapes = [scan.shape for scan in scans if scan.shape is not None and len(scan.shape) == 3]
    if spacings:
        numbers["median spacing (mm)"] = times(np.median(spacings, axis=0), "×")
    if shapes:
        numbers["median size (voxels)"] = times(np.median(shapes, axis=0), "×")
    planes = Counter(PLANE_NAMES.get(scan.plane, scan.plane) for scan in scans if scan.plane)
    if planes:
        numbers["slices"] = ", ".join(name for name, _ in planes.most_common())
    patients = {scan.patient or scan.name for scan in scans}
    numbers["patients"] = str(len(patients))
    return numbers
