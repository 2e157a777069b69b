"""Membership inference: does the model's own loss tell which scans it was trained on?

After Matsumoto et al. 2023 ("Membership inference attacks against diffusion models"): a denoiser that has
learned scans by heart has a lower loss on them. This is about giving away the *bundle*; scans made with it
carry no loss.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from anatogen.generators.bundle import Bundle
from anatogen.generators.membership import auc
from anatogen.models.vqgan import VQGAN
from anatogen.report.intervals import Estimate, percentile_interval
from anatogen.report.progress import Progress, silent
from anatogen.report.rows import Row

Values = npt.NDArray[np.floating]
Array = npt.NDArray[np.float32]

SOURCES = {"denoiser": "the generator's loss", "autoencoder": "the autoencoder's error"}
AUC_NAMES = {source: f"membership_{source}_auc" for source in SOURCES}
_NUM_BOOTSTRAPS = 500
_ENOUGH_SCANS = 200


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
    for source, text in SOURCES.items():
        if source not in scores:
            note = f"this bundle is a {bundle.family}, which has none"
            rows += [row.missing(note) for row in _rows(source)]
            continue
        found: list[list[float]] = [[], []]
        total = len(train) + len(holdout)
        for number, array in enumerate((*train, *holdout)):
            found[number >= len(train)].append(scores[source](array))
            progress(f"membership by {text}", number + 1, total)
        rows += _measured(_rows(source), np.array(found[0]), np.array(found[1]), seed)
    return rows


def _batch(array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))[None, None]


def _rows(source: str) -> list[Row]:
    """Rows of a source of scores, but for their numbers: AUC, and true positives."""
    text = f"Membership by {SOURCES[source]}"
    return [
        Row("privacy", AUC_NAMES[source], f"{text}: AUC", None, reference=0.5),
        Row(
            "privacy",
            f"membership_{source}_tpr",
            f"{text}: true positives at 1% false ones",
            None,
            reference=0.01,
        ),
    ]


def _measured(rows: list[Row], members: Values, others: Values, seed: int) -> list[Row]:
    notes: list[tuple[str, ...]] = [(), ()]
    if len(others) < _ENOUGH_SCANS:
        notes[1] = (f"{len(others)} held-out scans hardly define 1%: {_ENOUGH_SCANS} would do",)
    generator = np.random.default_rng([seed, 7])
    measured = []
    for row, measure, told in zip(rows, (auc, true_positive_rate), notes, strict=True):
        draws = [
            measure(generator.choice(members, len(members)), generator.choice(others, len(others)))
            for _ in range(_NUM_BOOTSTRAPS)
        ]
        low, high = percentile_interval(draws)
        value = measure(members, others)
        # Repeated values lower the highest scores of others, and no draw shows fewer true positives.
        measured.append(row.measured(Estimate(value, min(low, value), max(high, value)), notes=told))
    return measured
