"""The rows of the privacy audit, each with what a reader must know to judge it."""

import numpy as np
import numpy.typing as npt

from anatogen.dataset.scan_sets import ScanSet
from anatogen.evaluation.fidelity.descriptors import mirrored_correlations
from anatogen.evaluation.privacy import neighbours, planted
from anatogen.evaluation.privacy.copy_detector import CopyDetector
from anatogen.evaluation.privacy.membership import decoded
from anatogen.evaluation.privacy.neighbours import RATE
from anatogen.generators.bundle import Bundle
from anatogen.report.intervals import bootstrapped
from anatogen.report.progress import Progress
from anatogen.report.rows import Row

Values = npt.NDArray[np.floating]

# Names of rows.
COPIES, COPIES_P = "copies", "copies_p"
CLOSER, CLOSER_P = "closer_to_train", "closer_to_train_p"

ENOUGH_HOLDOUT = 40
ENOUGH_SYNTHETIC = 50
_NUM_PLANTED = 50
_REFERENCE = "the reference is that of held-out scans"


def neighbour_rows(
    train: ScanSet,
    holdout: ScanSet,
    synthetic: ScanSet,
    known: Values,
    unseen: Values,
    made: Values,
    seed: int,
) -> list[Row]:
    """How close synthetic scans come to training scans, beside how close held-out scans come.

    Whether the closest record is a training scan is told by coarse voxels, not by the audit's encoder: that
    has seen the training scans alone, and draws whatever is like no scan to their side.

    Args:
        train: N scans.
        holdout: n scans.
        synthetic: M scans.
        known: (N, K) embeddings of the training scans.
        unseen: (n, K) those of the held-out scans.
        made: (M, K) those of the synthetic scans.
        seed: Random seed of the draws.
    """
    to_train, null_to_train = made @ known.T, unseen @ known.T
    nearest, null = to_train.max(axis=1), null_to_train.max(axis=1)
    flagged = int((nearest > neighbours.upper_threshold(null)).sum())
    notes = []
    if len(null) < ENOUGH_HOLDOUT:
        notes.append(f"{len(null)} held-out scans hardly define a 95th percentile: {ENOUGH_HOLDOUT} would do")
    if RATE * (len(null) + 1) < 1:
        notes.append(f"with so few, chance flags {1 / (len(null) + 1):.0%}")
    if len(nearest) < ENOUGH_SYNTHETIC:
        notes.append(f"{len(nearest)} synthetic scans are few: {ENOUGH_SYNTHETIC} would do")
    closer, closer_p = neighbours.closer_to_train(
        mirrored_correlations(synthetic, train), mirrored_correlations(synthetic, holdout), seed
    )
    closer_floor = neighbours.unseen_closer_to_train(
        mirrored_correlations(holdout, train), mirrored_correlations(holdout, holdout), seed
    )
    ratios, null_ratios = (
        bootstrapped(neighbours.distance_ratios(found), np.median, np.random.default_rng([seed, 3]))
        for found in (to_train, null_to_train)
    )
    return [
        Row(
            "privacy",
            COPIES,
            "Synthetic scans closer to a training scan than 95% of unseen scans are",
            *neighbours.share_above(nearest, null, seed),
            reference=RATE,
            count=(flagged, len(nearest)),
            notes=tuple(notes),
        ),
        Row(
            "privacy",
            COPIES_P,
            "The same: p-value, the chance of as many if they were unseen scans",
            neighbours.exceedance_p_value(flagged, len(nearest), len(null)),
            better="higher",
            notes=("beta-binomial: the threshold's own uncertainty is in it",),
        ),
        Row(
            "privacy",
            "memorised",
            "Training scans with a synthetic scan closer than 95% of unseen scans come",
            *neighbours.memorised_share(known @ made.T, known @ unseen.T, seed),
            reference=RATE,
            notes=(f"sets of {min(len(made), len(unseen))} synthetic and held-out scans",),
        ),
        Row(
            "privacy",
            CLOSER,
            "Synthetic scans whose closest record is a training scan, not a held-out one",
            *closer,
            *closer_floor,
            notes=(
                f"by correlations of coarse voxels, sets of {min(len(train), len(holdout))} records each",
                "one half is expected where nothing leaks",
                _REFERENCE,
            ),
        ),
        Row(
            "privacy",
            CLOSER_P,
            "The same: p-value, one-sided binomial against one half",
            closer_p,
            better="higher",
        ),
        Row(
            "privacy",
            "distance_ratio",
            "Distance to the nearest over the second nearest training scan, median",
            *ratios,
            *null_ratios,
            better="higher",
            notes=(_REFERENCE, "a copy of one scan is near 0"),
        ),
    ]


def planted_rows(
    detector: CopyDetector,
    train: ScanSet,
    holdout: ScanSet,
    null: Values,
    bundle: Bundle | None,
    seed: int,
    progress: Progress,
) -> list[Row]:
    """Recall of planted copies, and how often scans that are none are flagged.

    Args:
        detector: Detector of the audit.
        train: Copies are planted of up to 50 of these.
        holdout: The scans that are no copies.
        null: Held-out scans' correlations with their nearest training scan.
        bundle: One with an autoencoder adds scans that went through its autoencoder, as its samples have.
        seed: Decides which scans are copied, and how.
        progress: Called with (what, done, total).
    """
    chosen = np.random.default_rng([seed, 8]).permutation(len(train))[:_NUM_PLANTED]
    originals = train.arrays[chosen]
    sets = {kind: planted.plant(kind, originals, seed) for kind in planted.KINDS}
    autoencoder = None if bundle is None else bundle.autoencoder
    if autoencoder is not None:
        sets[planted.DECODED] = np.stack([decoded(autoencoder, scan) for scan in originals])
    rows = []
    for number, (kind, copies) in enumerate(sets.items(), 1):
        label = f"Found of planted {planted.KIND_TEXTS[kind]}"
        rows.append(_flagged_row(kind, label, detector.num_flagged(copies), len(copies), is_copy=True))
        progress("planting copies", number, len(sets))
    judged = neighbours.num_cross_fitted(null, seed)
    notes = ("each judged by a threshold that was set without it",)
    label = "Flagged of held-out scans{}, which are no copies"
    rows.append(_flagged_row("independent", label.format(""), judged, len(holdout), notes=notes))
    if autoencoder is not None:
        through = np.stack([decoded(autoencoder, scan) for scan in holdout.arrays])
        label = label.format(" out of the bundle's autoencoder")
        rows.append(_flagged_row("independent_decoded", label, detector.num_flagged(through), len(through)))
    return rows


def _flagged_row(
    kind: str,
    label: str,
    num_flagged: int,
    number: int,
    *,
    is_copy: bool = False,
    notes: tuple[str, ...] = (),
) -> Row:
    """Share of scans that are flagged: all should be of copies, and few of other scans."""
    return Row(
        "privacy",
        planted.row_name(kind),
        label,
        *neighbours.binomial_estimate(num_flagged, number),
        reference=1.0 if is_copy else RATE,
        better="higher" if is_copy else "lower",
        count=(num_flagged, number),
        notes=notes,
        is_detail=True,
    )
