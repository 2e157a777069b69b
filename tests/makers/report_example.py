"""A report of made-up numbers on tiny noise scans, for tests of the page."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from anatogen.dataset.manifest import Grid, Intensity
from anatogen.dataset.scan_sets import ScanSet, content_hash
from anatogen.evaluation.answers import diversity_answer, fidelity_answer
from anatogen.evaluation.report import Report, about_scans, clear_report, open_report_folder, write_report
from anatogen.evaluation.sections import LIMITS, diversity_section, fidelity_section, scans_section
from anatogen.report.rows import Row
from anatogen.report.verdicts import Answer

AFFINE = [[0, 0, 3, 0], [0, 3, 0, 0], [4, 0, 0, 0], [0, 0, 0, 1]]
FIDELITY = [
    Row("fidelity", "frechet_slices", "Fréchet distance, slices", 9.0, 8, 10, 3.0, 2.5, 3.5),
    Row(
        "fidelity",
        "kid_slices",
        "Kernel distance <b>&</b> more",
        0.02,
        0.01,
        0.03,
        -0.001,
        -0.004,
        0.003,
    ),
    Row("fidelity", "precision", "Precision", 0.7, 0.6, 0.8, 0.75, 0.7, 0.8, better="higher"),
    Row("fidelity", "frechet_volumes", "Fréchet distance, volumes", None, notes=("no MedicalNet weights",)),
]
DIVERSITY = [
    Row("diversity", "ms_ssim", "MS-SSIM", 0.6, 0.58, 0.62, 0.5, 0.48, 0.52, better="reference"),
    Row("diversity", "ms_ssim_gap", "|MS-SSIM synthetic − real|", 0.1, 0.06, 0.14, 0.01, 0, 0.03),
]


def scan_set(role: str, number: int = 5, seed: int = 0, shape: tuple[int, int, int] = (8, 10, 12)) -> ScanSet:
    """Noise scans of 4 x 3 x 3 mm voxels."""
    generator = np.random.default_rng([seed, number])
    arrays = generator.uniform(-1, 1, (number, *shape)).astype(np.float32)
    grid = Grid(shape=shape, spacing_mm=(4.0, 3.0, 3.0), affine=AFFINE)
    hashes = tuple(content_hash(array) for array in arrays)
    return ScanSet(role, arrays, hashes, grid, "MR", Intensity(modality="MR", low=0, high=100))


def example_report(out: Path, **changed: Any) -> Path:
    """Writes the report and returns the path of its page."""
    real, synthetic = scan_set("real"), scan_set("synthetic", 9)
    values = np.random.default_rng(0).uniform(0.3, 0.7, (2, 40))
    details = {
        "scales": "3 scales, window 5",
        "foreground": 0.4,
        "pairs": {"standard": {"real": values[0].tolist(), "synthetic": values[1].tolist()}},
    }
    open_report_folder(out)
    figures = clear_report(out)
    report = Report(
        title="9 synthetic scans against 5 real ones",
        summary="MR, 8 × 10 × 12 voxels.",
        answers=[
            fidelity_answer(FIDELITY),
            diversity_answer(DIVERSITY),
            Answer(
                "Do they leak patients?", "open", "No privacy audit was made.", "<script>alert(1)</script>"
            ),
        ],
        sections=[
            scans_section(real, synthetic, figures, 0),
            fidelity_section(FIDELITY, real, synthetic, figures),
            diversity_section(DIVERSITY, details, figures),
        ],
        settings={"seed": 0, "pairs": 40},
        inputs={scans.role: about_scans(scans) for scans in (real, synthetic)},
        limits=LIMITS,
        details={"diversity": details, "not finite": [float("nan"), float("inf")]},
    )
    return write_report(replace(report, **changed), out)
