"""Membership inference by a generator's loss: how well it tells which scans the generator has learned from.

After Matsumoto et al. 2023, "Membership inference attacks against diffusion models".
"""

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt
from scipy.stats import rankdata
from torch import Tensor

from anatogen.generators.bundle import Bundle


def membership_auc(
    bundle: Bundle, members: Iterable[Tensor], others: Iterable[Tensor], seed: int = 0
) -> float:
    """The probability that a member's loss is below another scan's: 0.5 where nothing is given away.

    Args:
        bundle: A bundle that `has_loss`.
        members: float32 (1, 1, D, H, W) in [-1, 1] each, scans that it has learned from.
        others: Scans that it has not.
        seed: Random seed of the noises.
    """
    scores = [np.array([-bundle.loss(x, seed=seed) for x in scans]) for scans in (members, others)]
    return auc(scores[0], scores[1])


def auc(members: npt.NDArray[np.floating], others: npt.NDArray[np.floating]) -> float:
    """The probability that a member's score is above another's, ties counted half (Mann-Whitney).

    Args:
        members: (N,) scores, higher for likelier members.
        others: (n,) scores.
    """
    ranks = rankdata(np.concatenate([members, others]))
    number = len(members)
    return float((ranks[:number].sum() - number * (number + 1) / 2) / (number * len(others)))
