"""Can readers tell which of two volumes is the real one? Two-alternative forced choice."""

from dataclasses import replace

import numpy as np

from anatogen.study.analysis.intervals import with_share
from anatogen.study.analysis.ratings import Floats, Ratings
from anatogen.study.analysis.statistic import Statistic


def pair_statistics(ratings: Ratings) -> list[Statistic]:
    """How often the real one of a pair was chosen, against each other source, with the test of guessing.

    Args:
        ratings: Answers to a protocol of pairs: 1 for the real one, 0 for the other.

    Returns:
        "chosen_real" for each other source and each reader, then all together.
    """
    statistics = []
    for source in ratings.present:
        for reader, lines in ratings.readings:
            right = ratings.first[lines][:, ratings.of(source)]
            place = Statistic(
                "pairs", "chosen_real", ratings.protocol, ratings.question.id, reader, source, "real"
            )
            share = with_share(place, right, "exact")
            statistics.append(share if share.value is None else replace(share, p=guessing_p(right)))
    return statistics


def guessing_p(right: Floats) -> float:
    """The exact two-sided p of the hypothesis that nothing tells the real one of a pair.

    Under it, the two volumes of a pair could change places: all readers' answers to that pair would be right
    where they were wrong. Every such change of any pairs is counted, so readers who err together are no more
    evidence than they are. With one reader it is the binomial test at 1/2.

    Args:
        right: (R, C), 1 or 0, NaN where there is no answer.
    """
    answered = np.isfinite(right)
    # Of each pair: right answers less wrong ones.
    surplus = np.abs(np.where(answered, 2 * right - 1, 0).sum(axis=0)).astype(int)
    observed = abs(int(np.where(answered, 2 * right - 1, 0).sum()))
    # The distribution of a sum of +-surplus, pair by pair: exact, in as many steps as there are pairs.
    reach = int(surplus.sum())
    chances = np.zeros(2 * reach + 1)
    chances[reach] = 1.0
    for size in surplus[surplus > 0]:
        chances = (np.roll(chances, size) + np.roll(chances, -size)) / 2
    sums = np.abs(np.arange(-reach, reach + 1))
    return float(min(chances[sums >= observed].sum(), 1.0))
