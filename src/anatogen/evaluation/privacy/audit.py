"""The privacy audit: are synthetic scans copies of training scans, and is the audit able to see copies?

After Dar et al. (Nature BME 2025, arXiv 2307.01148). A scan is called a copy if it is more like its nearest
training scan, by the correlation of contrastive embeddings, than 95% of unseen scans are like theirs. No
audit is a guarantee.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from anatogen.core.files import write_json
from anatogen.core.version import __version__
from anatogen.dataset.scan_sets import ScanSet, identical_scans
from anatogen.evaluation.privacy.closest_pairs import FIGURE_NAME, Pair, pairs_figure
from anatogen.evaluation.privacy.contrastive import (
    DEFAULT_SETTINGS,
    ContrastiveSettings,
    cached_encoder,
    embeddings,
)
from anatogen.evaluation.privacy.copy_detector import AUDIT_NAME, FORMAT_VERSION, CopyDetector
from anatogen.evaluation.privacy.finding import PrivacyFinding, privacy_finding
from anatogen.evaluation.privacy.membership import membership_rows
from anatogen.evaluation.privacy.neighbours import upper_threshold
from anatogen.evaluation.privacy.rows import neighbour_rows, planted_rows
from anatogen.generators.bundle import Bundle
from anatogen.report.progress import Progress, silent
from anatogen.report.rows import Row

_NUM_PAIRS = 8


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes:
        rows: The numbers, of group "privacy".
        finding: What they amount to.
        pairs: The synthetic scans most like a training scan, the likest first.
        detector: Flags scans; what `anatogen sample --reject-copies` uses.
        nearest: "synthetic" and "holdout": each scan's correlation with its nearest training scan.
        folder: Where all of it lies, with the figure of the pairs. Shows patients: stays in the institution.
    """

    rows: list[Row]
    finding: PrivacyFinding
    pairs: list[Pair]
    detector: CopyDetector
    nearest: dict[str, list[float]]
    folder: Path


def audit(
    train: ScanSet,
    holdout: ScanSet,
    synthetic: ScanSet,
    *,
    bundle: Bundle | None = None,
    seed: int = 0,
    out: Path,
    progress: Progress = silent,
    cache: Path,
    settings: ContrastiveSettings = DEFAULT_SETTINGS,
    device: str | torch.device = "cpu",
) -> Audit:
    """Looks for copies of training scans, shows that it would see them, and writes `out`.

    Args:
        train: What the generator was trained on, at least 2 scans.
        holdout: Scans of other patients, of the same source and on the same grid, at least 4; decide what
            "too close" means.
        synthetic: What is audited.
        bundle: The generator, for membership inference and for planted copies out of its autoencoder.
        seed: Random seed of everything.
        out: Folder for `audit.json`, the detector's files and the figure.
        progress: Called with (what, done, total).
        cache: Folder of trained encoders.
        settings: Settings of the encoder.
        device: Device of the encoder.
    """
    encoder = cached_encoder(train, cache, seed=seed, settings=settings, device=device, progress=progress)
    known, unseen, made = (embeddings(encoder, scans.arrays) for scans in (train, holdout, synthetic))
    to_train = made @ known.T
    nearest, null = to_train.max(axis=1), (unseen @ known.T).max(axis=1)
    threshold = upper_threshold(null)
    detector = CopyDetector(encoder, known, threshold, train.grid)
    rows = neighbour_rows(train, holdout, synthetic, known, unseen, made, seed)
    rows += planted_rows(detector, train, holdout, null, bundle, seed, progress)
    if bundle is not None:
        rows += membership_rows(bundle, train.arrays, holdout.arrays, seed=seed, progress=progress)
    finding = privacy_finding(rows, identical_scans(synthetic, train))
    pairs = [
        Pair(
            int(index), int(to_train[index].argmax()), float(nearest[index]), bool(nearest[index] > threshold)
        )
        for index in np.argsort(-nearest, kind="stable")[:_NUM_PAIRS]
    ]
    pairs_figure(pairs, synthetic.arrays, train.arrays, train.grid, out / FIGURE_NAME)
    progress("registering the closest pairs", 1, 1)
    found = {"synthetic": nearest.tolist(), "holdout": null.tolist()}
    content = {
        "format_version": FORMAT_VERSION,
        "anatogen_version": __version__,
        "detector": detector.save(out),
        "seed": seed,
        "scans": {scans.role: len(scans) for scans in (train, holdout, synthetic)},
        "hashes": {scans.role: scans.sha256 for scans in (train, holdout, synthetic)}
        | ({"bundle": bundle.sha256} if bundle is not None else {}),
        "rows": [asdict(row) for row in rows],
        "finding": asdict(finding) | {"tone": finding.tone},
        "pairs": [asdict(pair) for pair in pairs],
        "nearest": found,
    }
    write_json(out / AUDIT_NAME, content)
    return Audit(rows, finding, pairs, detector, found, out)
