"""Membership inference: does the model's own loss tell which scans it was trained on?

After Matsumoto et al. 2023 ("Membership inference attacks against diffusion models"): a denoiser that has
learned scans by heart has a lower loss on them. This is about giving away the *bundle*; scans made with it
carry no loss.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from scipy.stats import rankdata
from torch import Tensor

from anatogen.generators.bundle import Bundle
from anatogen.models.vqgan import VQGAN
from anatogen.report.intervals import percentile_interval
from anatogen.report.progress import Progress, silent
from anatogen.report.rows import Row

Values = npt.NDArray[np.floating]
Array = npt.NDArray[np.float32]

SOURCES = {"denoiser": "the denoiser's loss", "autoencoder": "the autoencoder's error"}
AUC_NAMES = {source: f"membership_{source}_auc" for source in SOURCES}
_NUM_BOOTSTRAPS = 500
_ENOUGH_SCANS = 200


def auc(members: Values, others: Values) -> float:
    """The probability that a member's score is above another's, ties counted half (Mann-Whitney).

    Args:
        members: (N,) scores, higher for likelier members.
        others: (n,) scores.
    """
    ranks = rankdata(np.concatenate([members, others]))
    number = len(members)
    return float((ranks[:number].sum() - number * (number + 1) / 2) / (number * len(others)))


def true_positive_rate(members: Values, others: Values, false_positive_rate: float = 0.01) -> float:
    """The share of members above the score that at most this share of others exceed (Carlini et al. 2022)."""
    allowed = int(np.floor(false_positive_rate * len(others) + 1e-9))
    return float((members > np.sort(others)[len(others) - 1 - allowed]).mean())


def decoded(autoencoder: VQGAN, array: Array) -> Array:
    """A scan (D, H, W) in [-1, 1] as an autoencoder gives it back."""
    return autoencoder.reconstruct(_batch(array))[0, 0].numpy()


def membership_rows(
    bundle: Bundle, train: Array, holdout: Array, *, seed: int, progress: Progress = silent
) -> list[Row]:
    """How well the bundle's losses tell training from held-out scans.

    Args:
        bundle: Bundle of any family; where it has no loss or no autoencoder, rows have no value.
        train: float32 (N, D, H, W) in [-1, 1].
        holdout: float32 (n, D, H, W).
        seed: Random seed of noises and bootstrap.
        progress: Called with (what, done, total).
    """
    autoencoder = bundle.autoencoder
    scores: dict[str, Callable[[Array], float]] = {}
    if bundle.has_loss:
        scores["denoiser"] = lambda array: -bundle.loss(_batch(array), seed=seed)
    if autoencoder is not None:
        scores["autoencoder"] = lambda array: -float(np.abs(decoded(autoencoder, array) - array).mean())
    rows = []
    for source in SOURCES:
        if source not in scores:
            note = f"this bundle is a {bundle.family}, which has none"
            rows += _rows(source, None, None, seed, note)
            continue
        found: list[list[float]] = [[], []]
        total = len(train) + len(holdout)
        for number, array in enumerate((*train, *holdout)):
            found[number >= len(train)].append(scores[source](array))
            progress(f"membership by {SOURCES[source]}", number + 1, total)
        rows += _rows(source, np.array(found[0]), np.array(found[1]), seed)
    return rows


def _batch(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))[None, None]


def _rows(source: str, members: Values | None, others: Values | None, seed: int, note: str = "") -> list[Row]:
    text = SOURCES[source]
    labels = (f"Membership by {text}: AUC", f"Membership by {text}: true positives at 1% false ones")
    names = (AUC_NAMES[source], f"membership_{source}_tpr")
    references = (0.5, 0.01)
    if members is None or others is None:
        return [
            Row("privacy", row, label, None, reference=reference, notes=(note,))
            for row, label, reference in zip(names, labels, references, strict=True)
        ]
    generator = np.random.default_rng([seed, 7])
    rows = []
    for row, label, reference, measure in zip(
        names, labels, references, (auc, true_positive_rate), strict=True
    ):
        draws = [
            measure(generator.choice(members, len(members)), generator.choice(others, len(others)))
            for _ in range(_NUM_BOOTSTRAPS)
        ]
        low, high = percentile_interval(draws)
        notes: tuple[str, ...] = ()
        if measure is true_positive_rate and len(others) < _ENOUGH_SCANS:
            notes = (f"{len(others)} held-out scans hardly define 1%: {_ENOUGH_SCANS} would do",)
        value = measure(members, others)
        # Repeated values lower the highest scores of others, and no draw shows fewer true positives.
        ends = min(low, value), max(high, value)
        rows.append(Row("privacy", row, label, value, *ends, reference, notes=notes))
    return rows
