"""The parts of the report on synthetic scans: what each says, shows and warns of."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from anatogen.dataset.scan_sets import ScanSet
from anatogen.evaluation.answers import HOW_TO_AUDIT, NO_GUARANTEE, NOT_QUICK, judged_rows
from anatogen.evaluation.charts import bars_figure, forest_figure, histogram_figure, spectra_figure
from anatogen.evaluation.fidelity.descriptors import intensity_histograms, radial_power
from anatogen.evaluation.privacy.audit import Audit
from anatogen.evaluation.privacy.closest_pairs import FIGURE_NAME
from anatogen.evaluation.report import Picture, Section
from anatogen.report.rows import Row, label_text
from anatogen.report.volume_figures import planes_figure, slices_figure

LIMITS = (
    "Features of networks see what they were trained to see. No number here replaces a look at the scans, "
    "a reading by radiologists, or a test in the task that the scans are for.",
    "Distances depend on the number of scans, the grid and the features: compare them with the "
    "real-against-real value beside them, and with other reports on the same real scans only.",
    "A 95% interval shows what other draws of scans from the same source would give, not what scans of "
    "another hospital would.",
    NO_GUARANTEE,
)
_NUM_SHOWN = 8
_NUM_IN_SLICES = 2
_NUM_BINS = 64


def scans_section(real: ScanSet, synthetic: ScanSet, figures: Path, seed: int) -> Section:
    """Eight scans of each set, drawn at random, and neighbouring slices of the first two of them."""
    groups, neighbours = [], []
    for name, scans in (("Real", real), ("Synthetic", synthetic)):
        drawn = np.random.default_rng([seed, len(scans)]).permutation(len(scans))[:_NUM_SHOWN]
        groups.append((f"{name} scans", list(scans.arrays[drawn])))
        neighbours += [(name, scans.arrays[index]) for index in drawn[:_NUM_IN_SLICES]]
    path, slices = figures / "scans.png", figures / "slices.png"
    planes_figure(groups, path, spacing_mm=real.grid.spacing_mm, axis_codes=real.grid.axis_codes)
    slices_figure(neighbours, slices, spacing_mm=real.grid.spacing_mm, axis_codes=real.grid.axis_codes)
    return Section(
        "Real and synthetic scans",
        "Drawn at random from both sets. Each column is one scan in its three central planes.",
        pictures=[
            Picture(
                path,
                "Real and synthetic scans: central axial, coronal and sagittal planes",
                "Voxels are interpolated for display. R: the patient's right. A: anterior. The real scans "
                "are of patients: share this page only where those may be shared.",
                black=True,
            ),
            Picture(
                slices,
                "Neighbouring slices of real and synthetic scans",
                "Of the first two scans of each set above, around the middle: does anatomy go on from one "
                "slice to the next?",
                black=True,
            ),
        ],
    )


def fidelity_section(rows: Sequence[Row], real: ScanSet, synthetic: ScanSet, figures: Path) -> Section:
    """Distances beside their floors, intensities and power spectra."""
    pictures = []
    drawn = judged_rows(rows)
    if drawn:
        path = figures / "fidelity.png"
        forest_figure(drawn, path)
        pictures.append(
            Picture(
                path,
                "Each measure of fidelity with its interval, beside that of real against real",
                "Bars are 95% intervals. Each line has its own scale. Where the two intervals overlap, the "
                "measure does not tell the sets apart.",
            )
        )
    path = figures / "intensities_and_spectra.png"
    longest_mm = max(np.multiply(real.grid.shape, real.grid.spacing_mm))
    spectra_figure(_profile(real), _profile(synthetic), longest_mm, path)
    pictures.append(
        Picture(
            path,
            "Intensity histograms and radial power spectra of real and synthetic scans",
            "Means over each set. Less power at high frequencies than real scans have is blur, more is "
            "noise.",
        )
    )
    return Section(
        "Do they look real?",
        "Distances of the synthetic set to the real one. Beside them the floor: the same distance between "
        "real scans and other real scans, below which no generator can be expected to come.",
        rows,
        pictures,
    )


def diversity_section(rows: Sequence[Row], details: dict[str, Any], figures: Path) -> Section:
    """How similar random pairs of one set are; `details` as `measure_diversity` gives them."""
    pictures, notes = [], []
    if details:
        pairs = {name: np.asarray(values) for name, values in details["pairs"]["standard"].items()}
        path = figures / "pairs.png"
        histogram_figure(
            pairs, path, title="MS-SSIM of random pairs of one set", label="MS-SSIM (1: equal scans)"
        )
        pictures.append(
            Picture(
                path,
                "Histograms of the MS-SSIM of random pairs of real and of synthetic scans",
                "Synthetic pairs further to the right than real ones are too much alike.",
            )
        )
        share = details["foreground"]
        over = "whole volumes" if share is None else f"the real scans' foreground ({share:.0%} of voxels)"
        notes.append(f"Standard MS-SSIM: {details['scales']}, over {over}.")
    return Section(
        "Are they diverse?",
        "Similarity of two scans of one set, over random pairs. What counts is the gap to the real set's "
        "own: a generator that repeats itself lies above it, noise below.",
        rows,
        pictures,
        reference="Real",
        notes=notes,
    )


def privacy_section(rows: Sequence[Row], found: Audit | None, figures: Path, quick: bool = False) -> Section:
    """How close synthetic scans come to training scans, what the audit is able to find, the closest pairs."""
    title = "Do they leak patients?"
    if found is None:
        how = NOT_QUICK if quick else HOW_TO_AUDIT
        return Section(title, f"No privacy audit was made. {how}", rows, reference="Expected")
    nearest, recall = figures / "nearest.png", figures / "planted.png"
    histogram_figure(
        {
            "held-out scans, not seen in training": np.asarray(found.nearest["holdout"]),
            "synthetic scans": np.asarray(found.nearest["synthetic"]),
        },
        nearest,
        title="Correlation with the nearest training scan",
        label="correlation of embeddings (1: the same scan)",
        threshold=(found.detector.threshold, "threshold: 95% of unseen scans are below"),
    )
    bars_figure(
        {label_text(row): row.value for row in rows if row.is_detail and row.value is not None},
        recall,
        title="What the audit flags",
    )
    return Section(
        title,
        "Is a synthetic scan closer to a training scan than scans of unseen patients are? Closeness is the "
        "correlation of embeddings, by an encoder that was trained to know a scan again after flips, small "
        "movements, blur and noise.",
        rows,
        [
            Picture(
                nearest,
                "Histograms of the correlation with the nearest training scan, held-out and synthetic scans",
                "Where nothing is copied, both lie alike. Scans to the right of the threshold are flagged.",
            ),
            Picture(
                recall,
                "Shares of planted copies and of unseen scans that the audit flags",
                "Planted copies should be flagged, held-out scans should not, but for 5%.",
            ),
            Picture(
                found.folder / FIGURE_NAME,
                "Synthetic scans above the training scans that they are most like, and their difference",
                "The synthetic scans closest to a training scan, the closest first; the training scan is "
                "registered to it. Do they show one patient?",
                black=True,
            ),
        ],
        reference="Expected",
    )


def _profile(scans: ScanSet) -> tuple[Any, Any]:
    """Share of voxels in each of 64 bins, and power at each frequency; means over the set."""
    histogram = intensity_histograms(scans).mean(axis=0)
    return histogram.reshape(_NUM_BINS, -1).sum(axis=1), radial_power(scans).mean(axis=0)
