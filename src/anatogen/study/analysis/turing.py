"""Can readers tell real from synthetic?

One volume at a time: accuracy, and the ROC of their confidence. Side by side: two-alternative forced choice.
"""

from dataclasses import replace

import numpy as np

from anatogen.study.analysis.intervals import case_weights, with_counts, with_resamples, with_share
from anatogen.study.analysis.ratings import Flags, Floats, Ratings
from anatogen.study.analysis.statistic import Statistic
from anatogen.study.spec import Source

REAL = 1.0


def turing_statistics(ratings: Ratings, confidence: Ratings | None, seed: int) -> list[Statistic]:
    """All that a visual Turing test says, for each reader and all together.

    Args:
        ratings: Answers to the question real (1) or synthetic (0).
        confidence: Answers from 0 to 100 on the same cases, if it was asked.
        seed: Random seed of the resamples.

    Returns:
        "called_real" of each source; "accuracy" over real and synthetic cases; "auc" and "auc_pooled" of real
        against each other source.
    """
    statistics: list[Statistic] = []
    scores = signed_scores(ratings, confidence)
    both = ratings.of("real") | ratings.of("synthetic")
    for reader, lines in ratings.readings:
        answers = ratings.first[lines]
        place = Statistic("turing", "", ratings.protocol, ratings.question.id, reader)
        for source in ratings.present:
            called = replace(place, name="called_real", source=source)
            statistics.append(with_share(called, answers[:, ratings.of(source)], "exact"))
        right = np.where(np.isfinite(answers), answers == np.where(ratings.of("real"), REAL, 0.0), np.nan)
        accuracy = replace(place, name="accuracy", source="synthetic", reference="real")
        statistics.append(with_share(accuracy, right[:, both], "exact"))
        for source in ratings.present:
            if source != "real":
                statistics += _auc_statistics(ratings, scores[lines], source, place, seed)
    return statistics


def pair_statistics(ratings: Ratings) -> list[Statistic]:
    """How often the real one of a pair was chosen, against each other source, with the test of guessing.

    Args:
        ratings: Answers to a protocol of pairs: 1 for the real one, 0 for the other.

    Returns:
        "chosen_real" for each other source and each reader, then all together.
    """
    statistics = []
    for place, right in ratings.groups("pairs", "chosen_real"):
        share = with_share(replace(place, reference="real"), right, "exact")
        statistics.append(replace(share, p=guessing_p(right)) if share.num_answers else share)
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


def signed_scores(ratings: Ratings, confidence: Ratings | None) -> Floats:
    """How sure a reader is that a case is real, (R, C): confidence, negative if "synthetic" was answered.

    From -100 to 100; NaN without an answer or its confidence. Where confidence was not asked, 1 or -1.
    """
    sign = np.where(ratings.first == REAL, 1.0, -1.0)
    size = 1.0 if confidence is None else confidence.first
    return np.where(np.isfinite(ratings.first), sign * size, np.nan)


def auc(scores: Floats, weights: Floats, real: Flags, other: Flags) -> Floats:
    """Area under the ROC curve, (B,): the chance that a real case scores above another, ties counting half.

    The Mann-Whitney statistic (Hanley and McNeil 1982). NaN where a resample has no answered case of one.

    Args:
        scores: (C,), NaN without an answer.
        weights: (B, C), how often each case counts in each resample.
        real: (C,), which cases are real.
        other: (C,), which are what they are compared with.
    """
    known = np.isfinite(scores)
    left, right = real & known, other & known
    wins = np.sign(scores[left][:, None] - scores[right]) / 2 + 0.5
    w, v = weights[:, left].astype(np.float64), weights[:, right].astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.asarray(((w @ wins) * v).sum(axis=1) / (w.sum(axis=1) * v.sum(axis=1)))


def roc_curve(scores: Floats, real: Flags, other: Flags) -> tuple[Floats, Floats]:
    """The ROC curve of answers (R, C) together: false and true "real" rates, from (0, 0) to (1, 1)."""
    from sklearn import metrics

    members = (real | other) & np.isfinite(scores)
    truth = np.broadcast_to(real, scores.shape)[members]
    false_rate, true_rate, _ = metrics.roc_curve(truth, scores[members], drop_intermediate=False)
    return np.asarray(false_rate), np.asarray(true_rate)


def _auc_statistics(
    ratings: Ratings, scores: Floats, source: Source, place: Statistic, seed: int
) -> list[Statistic]:
    """The mean of the readers' AUCs, and for several readers that of all their scores together."""
    real, other = ratings.of("real"), ratings.of(source)
    place = replace(place, name="auc", source=source, reference="real")
    place = with_counts(place, scores[:, real | other])
    weights = case_weights(ratings.sources, [seed, len(ratings.cases)]).astype(np.float64)
    each = np.stack([auc(line, weights, real, other) for line in scores])
    # Readers who have answered nothing of one source have no AUC.
    each = each[np.isfinite(each[:, 0])]
    if not len(each):
        return [replace(place, note="no reader has answered cases of both")]
    statistics = [with_resamples(place, each.mean(axis=0))]
    if len(scores) > 1:
        # Readers side by side, as if one reader had read each case several times.
        tiled = [np.tile(part, len(scores)) for part in (real, other)]
        pooled = auc(scores.ravel(), np.tile(weights, len(scores)), *tiled)
        statistics.append(with_resamples(replace(place, name="auc_pooled"), pooled))
    return statistics
