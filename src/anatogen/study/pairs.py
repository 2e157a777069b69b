"""Can readers tell which of two volumes is the real one? Two-alternative forced choice."""

from dataclasses import replace

import numpy as np
from scipy import stats

from anatogen.study.intervals import share_interval
from anatogen.study.numbers import Number
from anatogen.study.ratings import Floats, Ratings


def pair_numbers(ratings: Ratings) -> list[Number]:
    """How often the real one of a pair was chosen, against each other source, with the test of guessing.

    Args:
        ratings: Of a protocol of pairs: 1 for the real one, 0 for the other.

    Returns:
        "chosen_real" for each other source and each reader, then all together.
    """
    numbers = []
    for source in ratings.present:
        for reader, chosen in ratings.readings:
            right = ratings.first[chosen][:, ratings.of(source)]
            answered = np.isfinite(right)
            place = Number(
                section="pairs",
                name="chosen_real",
                protocol=ratings.protocol,
                question=ratings.question.id,
                reader=reader,
                group=f"{source} - real",
                num_cases=int(answered.any(axis=0).sum()),
                num_answers=int(answered.sum()),
            )
            if not answered.any():
                numbers.append(replace(place, note="no answers"))
                continue
            low, high = share_interval(right, "exact")
            value = float(right[answered].mean())
            numbers.append(replace(place, value=value, low=low, high=high, p=guessing_p(right)))
    return numbers


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
    if len(right) == 1:
        return float(stats.binomtest(int(np.nansum(right)), int(answered.sum()), 0.5).pvalue)
    observed = abs(int(np.where(answered, 2 * right - 1, 0).sum()))
    # The distribution of a sum of +-surplus, pair by pair: exact, in as many steps as there are pairs.
    reach = int(surplus.sum())
    chances = np.zeros(2 * reach + 1)
    chances[reach] = 1.0
    for size in surplus[surplus > 0]:
        chances = (np.roll(chances, size) + np.roll(chances, -size)) / 2
    sums = np.abs(np.arange(-reach, reach + 1))
    return float(min(chances[sums >= observed].sum(), 1.0))
