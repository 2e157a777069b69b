"""The rows of the privacy audit, each from embeddings' correlations to what a reader must know."""

import numpy as np
import numpy.typing as npt

from anatogen.dataset.scan_sets import ScanSet
from anatogen.evaluation.privacy import neighbours, planted
from anatogen.evaluation.privacy.copy_detector import CopyDetector
from anatogen.evaluation.privacy.membership import decoded
from anatogen.evaluation.privacy.neighbours import RATE
from anatogen.generators.bundle import Bundle
from anatogen.report.progress import Progress
from anatogen.report.rows import Row

Array = npt.NDArray[np.float32]
Values = npt.NDArray[np.floating]

# Names of rows.
COPIES, COPIES_P = "copies", "copies_p"
CLOSER, CLOSER_P = "closer_to_train", "closer_to_train_p"

ENOUGH_HOLDOUT = 40
ENOUGH_SYNTHETIC = 50
_NUM_PLANTED = 50
_REFERENCE = "the reference is that of held-out scans"


def copies_rows(nearest: Values, null: Values, seed: int) -> list[Row]:
    """The share of synthetic scans that are flagged, from correlations with the nearest training scan.

    Args:
        nearest: (M,) of synthetic scans.
        null: (n,) of held-out scans.
        seed: Random seed of the bootstrap.
    """
    share = neighbours.share_above(nearest, null, seed)
    notes = []
    if len(null) < ENOUGH_HOLDOUT:
        notes.append(f"{len(null)} held-out scans hardly define a 95th percentile: {ENOUGH_HOLDOUT} would do")
    if RATE * (len(null) + 1) < 1:
        notes.append(f"with so few, chance flags {1 / (len(null) + 1):.0%}")
    if len(nearest) < ENOUGH_SYNTHETIC:
        notes.append(f"{len(nearest)} synthetic scans are few: {ENOUGH_SYNTHETIC} would do")
    flagged = int((nearest > neighbours.upper_threshold(null)).sum())
    return [
        Row(
            "privacy",
            COPIES,
            "Synthetic scans closer to a training scan than 95% of unseen scans are",
            *share,
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
    ]


def memorised_row(known: Array, made: Array, unseen: Array, seed: int) -> Row:
    """The share of training scans that were copied, from embeddings of all three sets."""
    share = neighbours.memorised_share(known @ made.T, known @ unseen.T, seed)
    return Row(
        "privacy",
        "memorised",
        "Training scans with a synthetic scan closer than 95% of unseen scans come",
        *share,
        reference=RATE,
        notes=(f"sets of {min(len(made), len(unseen))} synthetic and held-out scans",),
    )


def closest_rows(
    to_train: Values, to_holdout: Values, null_to_train: Values, null: Values, seed: int
) -> list[Row]:
    """Whether the closest record is a training scan, from similarities to training and to held-out scans.

    Not those of the audit's encoder: it has seen the training scans alone, and draws whatever is like no scan
    to their side.

    Args:
        to_train: (M, N) of synthetic to training scans.
        to_holdout: (M, n) of synthetic to held-out scans.
        null_to_train: (n, N) of held-out to training scans.
        null: (n, n) among held-out scans.
        seed: Random seed of the draws.
    """
    share, p_value = neighbours.closer_to_train(to_train, to_holdout, seed)
    floor = neighbours.unseen_closer_to_train(null_to_train, null, seed)
    size = min(to_train.shape[1], to_holdout.shape[1])
    return [
        Row(
            "privacy",
            CLOSER,
            "Synthetic scans whose closest record is a training scan, not a held-out one",
            *share,
            *floor,
            notes=(
                f"by correlations of coarse voxels, sets of {size} records each",
                "one half is expected where nothing leaks",
                _REFERENCE,
            ),
        ),
        Row(
            "privacy",
            CLOSER_P,
            "The same: p-value, one-sided binomial against one half",
            p_value,
            better="higher",
        ),
    ]


def ratio_row(to_train: Values, null_to_train: Values, seed: int) -> Row:
    """Nearest over second nearest distance, of synthetic and of held-out scans (similarities to training)."""
    return Row(
        "privacy",
        "distance_ratio",
        "Distance to the nearest over the second nearest training scan, median",
        *neighbours.bootstrapped_median(neighbours.distance_ratios(to_train), seed),
        *neighbours.bootstrapped_median(neighbours.distance_ratios(null_to_train), seed),
        better="higher",
        notes=(_REFERENCE, "a copy of one scan is near 0"),
    )


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
    sets = {kind.name: planted.plant(kind, originals, seed) for kind in planted.KINDS}
    autoencoder = None if bundle is None else bundle.autoencoder
    if autoencoder is not None:
        sets[planted.DECODED] = np.stack([decoded(autoencoder, scan) for scan in originals])
    rows = []
    for number, (kind, copies) in enumerate(sets.items(), 1):
        count = int((detector.nearest(copies) > detector.threshold).sum()), len(copies)
        rows.append(
            Row(
                "privacy",
                planted.row_name(kind),
                f"Found of planted {planted.KIND_TEXTS[kind]}",
                *neighbours.binomial_estimate(*count),
                reference=1.0,
                better="higher",
                count=count,
                is_detail=True,
            )
        )
        progress("planting copies", number, len(sets))
    cleared = [("", "", neighbours.cross_fitted_share(null, seed))]
    if autoencoder is not None:
        through = np.stack([decoded(autoencoder, scan) for scan in holdout.arrays])
        share = float((detector.nearest(through) > detector.threshold).mean())
        cleared.append(("_decoded", " out of the bundle's autoencoder", share))
    for name, text, share in cleared:
        count = round(share * len(holdout)), len(holdout)
        rows.append(
            Row(
                "privacy",
                planted.row_name(f"independent{name}"),
                f"Flagged of held-out scans{text}, which are no copies",
                *neighbours.binomial_estimate(*count),
                reference=RATE,
                count=count,
                notes=() if name else ("each judged by a threshold that was set without it",),
                is_detail=True,
            )
        )
    return rows
