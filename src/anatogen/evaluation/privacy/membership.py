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

from anatogen.core.seeding import derived_generator
from anatogen.diffusion.process import denoising_loss
from anatogen.generators.latent_diffusion import Bundle, build_schedule
from anatogen.report.intervals import percentile_interval
from anatogen.report.progress import Progress, silent
from anatogen.report.rows import Row

Values = npt.NDArray[np.floating]
Array = npt.NDArray[np.float32]

TIMES = (0.1, 0.3, 0.5, 0.7, 0.9)
NUM_DRAWS = 2
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


@torch.inference_mode()
def denoiser_loss(bundle: Bundle, array: Array, seed: int) -> float:
    """Mean denoising loss of a scan, over the same times and noises for every scan.

    Args:
        bundle: Of a diffusion model.
        array: float32 (D, H, W) in [-1, 1].
        seed: Of the noises.
    """
    settings = bundle.description.diffusion
    x_0 = bundle.encode(_batch(bundle, array)).float()
    shape = (len(TIMES) * NUM_DRAWS, *x_0.shape[1:])
    eps = torch.randn(shape, generator=derived_generator(seed, "membership")).to(x_0.device)
    t = torch.tensor(TIMES * NUM_DRAWS, device=x_0.device)
    loss = denoising_loss(
        bundle.denoiser,
        x_0.expand(shape),
        eps,
        t,
        build_schedule(settings),
        settings.prediction,
        "l2",
    )
    return float(loss)


@torch.inference_mode()
def decoded(bundle: Bundle, array: Array) -> Array:
    """A scan (D, H, W) in [-1, 1] as the bundle's autoencoder gives it back."""
    autoencoder = bundle.autoencoder
    quantised = autoencoder.codebook.quantise(autoencoder.encode(_batch(bundle, array)))
    out = autoencoder.decode(quantised, array.shape)[0, 0].float().clamp(-1, 1)
    return np.asarray(out.cpu().numpy(), np.float32)


def membership_rows(
    bundle: object, train: Array, holdout: Array, *, seed: int, progress: Progress = silent
) -> list[Row]:
    """How well the bundle's losses tell training from held-out scans.

    Args:
        bundle: Any bundle; only that of a diffusion model has losses, and others get rows without values.
        train: float32 (N, D, H, W) in [-1, 1].
        holdout: float32 (n, D, H, W).
        seed: Of noises and bootstrap.
        progress: Told (what, done, total).
    """
    if not isinstance(bundle, Bundle):
        note = "this bundle is a GAN: it has no loss, and its critic stays with the training run"
        return [row for source in SOURCES for row in _rows(source, None, None, seed, note)]
    model = bundle
    scores: dict[str, Callable[[Array], float]] = {
        "denoiser": lambda array: -denoiser_loss(model, array, seed),
        "autoencoder": lambda array: -float(np.abs(decoded(model, array) - array).mean()),
    }
    rows = []
    for source, score in scores.items():
        found: list[list[float]] = [[], []]
        total = len(train) + len(holdout)
        for number, array in enumerate((*train, *holdout)):
            found[number >= len(train)].append(score(array))
            progress(f"membership by {SOURCES[source]}", number + 1, total)
        rows += _rows(source, np.array(found[0]), np.array(found[1]), seed)
    return rows


def _batch(bundle: Bundle, array: Array) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))[None, None].to(bundle.device)


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
