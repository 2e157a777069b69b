"""The privacy audit: are synthetic scans copies of training scans, and is the audit able to see copies?

After Dar et al. (Nature BME 2025, arXiv 2307.01148). A scan is called a copy if it is more like its nearest
training scan, by the correlation of contrastive embeddings, than 95% of unseen scans are like theirs. No
audit is a guarantee.
"""

from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

from anatogen.core.errors import UserError
from anatogen.core.files import write_json
from anatogen.core.version import __version__
from anatogen.dataset.scan_sets import ScanSet, identical_scans
from anatogen.evaluation.fidelity.descriptors import mirrored_correlations
from anatogen.evaluation.privacy import neighbours
from anatogen.evaluation.privacy.closest_pairs import FIGURE_NAME, Pair, pairs_figure
from anatogen.evaluation.privacy.contrastive import (
    DEFAULT_SETTINGS,
    ContrastiveSettings,
    cached_encoder,
    embeddings,
)
from anatogen.evaluation.privacy.copy_detector import (
    AUDIT_NAME,
    FORMAT_VERSION,
    CopyDetector,
)
from anatogen.evaluation.privacy.finding import PrivacyFinding, privacy_finding
from anatogen.evaluation.privacy.membership import membership_rows
from anatogen.evaluation.privacy.rows import closest_rows, copies_rows, memorised_row, planted_rows, ratio_row
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
        train: What the generator was trained on.
        holdout: Scans of other patients, of the same source; decide what "too close" means.
        synthetic: What is audited.
        bundle: The generator, for membership inference and for planted copies out of its autoencoder.
        seed: Random seed of everything.
        out: Folder for `audit.json`, the detector's files and the figure.
        progress: Called with (what, done, total).
        cache: Folder of trained encoders.
        settings: Settings of the encoder.
        device: Device of the encoder.

    Raises:
        UserError: If held-out scans lie among the training scans, a set is too small, or grids differ.
    """
    check_inputs(train, holdout, synthetic, bundle)
    encoder = cached_encoder(
        train,
        cache,
        seed=seed,
        settings=settings,
        device=device,
        progress=progress,
    )
    known = embeddings(encoder, train.arrays, settings)
    unseen = embeddings(encoder, holdout.arrays, settings)
    made = embeddings(encoder, synthetic.arrays, settings)
    to_train, null_to_train = made @ known.T, unseen @ known.T
    nearest, null = to_train.max(axis=1), null_to_train.max(axis=1)
    threshold = neighbours.upper_threshold(null)
    detector = CopyDetector(encoder, settings, known, threshold, train.grid)

    rows = [
        *copies_rows(nearest, null, seed),
        memorised_row(known, made, unseen, seed),
        *closest_rows(
            mirrored_correlations(synthetic, train),
            mirrored_correlations(synthetic, holdout),
            mirrored_correlations(holdout, train),
            mirrored_correlations(holdout, holdout),
            seed,
        ),
        ratio_row(to_train, null_to_train, seed),
        *planted_rows(detector, train, holdout, null, bundle, seed, progress),
    ]
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


def check_inputs(train: ScanSet, holdout: ScanSet, synthetic: ScanSet, bundle: Bundle | None) -> None:
    """Refuses what no audit can be made of; takes no time.

    Raises:
        UserError: If held-out scans lie among the training scans, a set is too small, or grids differ.
    """
    for scans, least in ((train, 2), (holdout, 4), (synthetic, 1)):
        if len(scans) < least:
            raise UserError(f"the audit got {len(scans)} {scans.role} scans: give at least {least}")
        if scans.grid.shape != train.grid.shape:
            raise UserError(
                f"{scans.role} scans have shape {scans.grid.shape}, {train.role} scans {train.grid.shape}: "
                "prepare all on one grid"
            )
    shared = identical_scans(holdout, train)
    if shared:
        raise UserError(
            f"{shared} of {len(holdout)} held-out scans lie among the training scans: give scans that the "
            "generator has not seen, or every copy looks harmless"
        )
    if bundle is not None and bundle.grid.shape != train.grid.shape:
        raise UserError(
            f"the bundle makes scans of shape {bundle.grid.shape}, the training scans have "
            f"{train.grid.shape}: give the scans that it was trained on"
        )
