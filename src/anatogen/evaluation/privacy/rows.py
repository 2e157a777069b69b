"""The rows of the privacy audit, each from embeddings' correlations to what a reader must know."""

import numpy as np
import numpy.typing as npt
from scipy.stats import binomtest

from anatogen.dataset.scan_sets import ScanSet
from anatogen.evaluation.privacy import neighbours, planted
from anatogen.evaluation.privacy.copy_detector import CopyDetector
from anatogen.evaluation.privacy.membership import decoded
from anatogen.evaluation.privacy.verdict import RATE
from anatogen.generators.latent_diffusion import Bundle
from anatogen.generators.wgan_gp import GANBundle
from anatogen.report.progress import Progress
from anatogen.report.rows import Row

Array = npt.NDArray[np.float32]
Values = npt.NDArray[np.floating]

ENOUGH_HOLDOUT = 40
ENOUGH_SYNTHETIC = 50
_NUM_PLANTED = 50


def copies_rows(nearest: Values, null: Values, seed: int) -> list[Row]:
    """The share of synthetic scans that are flagged, from correlations with the nearest training scan.

    Args:
        nearest: (M,) of synthetic scans.
        null: (n,) of held-out scans.
        seed: Of the bootstrap.
    """
    share = neighbours.share_above(nearest, null, seed, RATE)
    notes = []
    if len(null) < ENOUGH_HOLDOUT:
        notes.append(f"{len(null)} held-out scans hardly define a 95th percentile: {ENOUGH_HOLDOUT} would do")
    if RATE * (len(null) + 1) < 1:
        notes.append(f"with so few, chance flags {1 / (len(null) + 1):.0%}")
    if len(nearest) < ENOUGH_SYNTHETIC:
        notes.append(f"{len(nearest)} synthetic scans are few: {ENOUGH_SYNTHETIC} would do")
    flagged = int((nearest > neighbours.upper_threshold(null, RATE)).sum())
    notes.append(f"{flagged} of {len(nearest)}")
    return [
        Row(
            "privacy",
            "copies",
            "Synthetic scans closer to a training scan than 95% of unseen scans are",
            *share,
            reference=RATE,
            note="; ".join(notes),
        ),
        Row(
            "privacy",
            "copies_p",
            "The same: p-value, the chance of as many if they were unseen scans",
            neighbours.exceedance_p_value(flagged, len(nearest), len(null), RATE),
            better="higher",
            note="beta-binomial: the threshold's own uncertainty is in it",
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
        note=f"sets of {min(len(made), len(unseen))} synthetic and held-out scans",
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
        seed: Of the draws.
    """
    share, p_value = neighbours.closer_to_train(to_train, to_holdout, seed)
    floor = neighbours.unseen_closer_to_train(null_to_train, null, seed)
    size = min(to_train.shape[1], to_holdout.shape[1])
    return [
        Row(
            "privacy",
            "closer_to_train",
            "Synthetic scans whose closest record is a training scan, not a held-out one",
            *share,
            *floor,
            note=f"by correlations of coarse voxels, sets of {size} records each; one half is expected where "
            "nothing leaks; the reference is that of held-out scans",
        ),
        Row(
            "privacy",
            "closer_to_train_p",
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
        note="the reference is that of held-out scans; a copy of one scan is near 0",
    )


def planted_rows(
    detector: CopyDetector,
    train: ScanSet,
    holdout: ScanSet,
    null: Values,
    bundle: Bundle | GANBundle | None,
    seed: int,
    progress: Progress,
) -> list[Row]:
    """Recall of planted copies, and how often scans that are none are flagged.

    Args:
        detector: Of the audit.
        train: Copies are planted of up to 50 of these.
        holdout: The scans that are no copies.
        null: Held-out scans' correlations with their nearest training scan.
        bundle: Of a diffusion model, adds scans that went through its autoencoder, as its samples have.
        seed: Decides which scans are copied, and how.
        progress: Told (what, done, total).
    """
    chosen = np.random.default_rng([seed, 8]).permutation(len(train))[:_NUM_PLANTED]
    originals = train.arrays[chosen]
    sets = [(kind.name, kind.text, planted.plant(kind, originals, seed)) for kind in planted.KINDS]
    if isinstance(bundle, Bundle):
        text = "copies out of the bundle's autoencoder"
        sets.append(("decoded", text, np.stack([decoded(bundle, scan) for scan in originals])))
    rows = []
    for number, (name, text, copies) in enumerate(sets):
        found = detector.nearest(copies) > detector.threshold
        rows.append(
            Row(
                "privacy",
                f"planted_{name}",
                f"Found of planted {text}",
                *_binomial_share(found),
                reference=1.0,
                better="higher",
                note=f"{int(found.sum())} of {len(found)}",
            )
        )
        progress("planting copies", number + 1, len(sets))
    cleared = [("", "", neighbours.cross_fitted_share(null, seed, RATE))]
    if isinstance(bundle, Bundle):
        through = np.stack([decoded(bundle, scan) for scan in holdout.arrays])
        share = float((detector.nearest(through) > detector.threshold).mean())
        cleared.append(("_decoded", " out of the bundle's autoencoder", share))
    for name, text, share in cleared:
        rows.append(
            Row(
                "privacy",
                f"planted_independent{name}",
                f"Flagged of held-out scans{text}, which are no copies",
                *_binomial_share(np.arange(len(holdout)) < round(share * len(holdout))),
                reference=RATE,
                note="" if name else "each judged by a threshold that was set without it",
            )
        )
    return rows


def _binomial_share(found: npt.NDArray[np.bool_]) -> neighbours.Share:
    """A share with its exact 95% interval (Clopper and Pearson 1934)."""
    interval = binomtest(int(found.sum()), len(found)).proportion_ci()
    return neighbours.Share(float(found.mean()), float(interval.low), float(interval.high))
