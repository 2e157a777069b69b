"""Can readers tell real from synthetic, one volume at a time? Accuracy, and the ROC of their confidence."""

from dataclasses import replace

import numpy as np

from anatogen.study.intervals import case_weights, percentile_interval, share_interval
from anatogen.study.numbers import Number
from anatogen.study.ratings import Flags, Floats, Ratings
from anatogen.study.spec import Source

REAL = 1.0


def turing_numbers(ratings: Ratings, confidence: Ratings | None, seed: int) -> list[Number]:
    """All that a visual Turing test says, for each reader and all together.

    Args:
        ratings: Of the question real (1) or synthetic (0).
        confidence: 0 to 100, of the same cases, if it was asked.
        seed: Of the resamples.

    Returns:
        "called_real" of each source; "accuracy" over real and synthetic cases; "auc" and "auc_pooled" of real
        against each other source.
    """
    numbers: list[Number] = []
    scores = signed_scores(ratings, confidence)
    for reader, chosen in ratings.readings:
        answers = ratings.first[chosen]
        place = Number("turing", "", ratings.protocol, ratings.question.id, reader)
        for source in ratings.present:
            members = ratings.of(source)
            numbers.append(_share(answers[:, members], replace(place, name="called_real", group=source)))
        both = ratings.of("real") | ratings.of("synthetic")
        right = np.where(np.isfinite(answers), answers == np.where(ratings.of("real"), REAL, 0.0), np.nan)
        numbers.append(_share(right[:, both], replace(place, name="accuracy", group="synthetic - real")))
        for source in ratings.present:
            if source != "real":
                numbers += _auc_numbers(ratings, scores[chosen], source, place, seed)
    return numbers


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


def _share(successes: Floats, place: Number) -> Number:
    answered = np.isfinite(successes)
    if not answered.any():
        return replace(place, note="no answers")
    low, high = share_interval(successes, "exact")
    return replace(
        place,
        value=float(successes[answered].mean()),
        low=low,
        high=high,
        num_cases=int(answered.any(axis=0).sum()),
        num_answers=int(answered.sum()),
    )


def _auc_numbers(ratings: Ratings, scores: Floats, source: Source, place: Number, seed: int) -> list[Number]:
    """The mean of the readers' AUCs, and for several readers that of all their scores together."""
    real, other = ratings.of("real"), ratings.of(source)
    answered = np.isfinite(scores) & (real | other)
    place = replace(
        place,
        name="auc",
        group=f"{source} - real",
        num_cases=int(answered.any(axis=0).sum()),
        num_answers=int(answered.sum()),
    )
    resamples = case_weights(ratings.sources, [seed, len(ratings.cases)])
    weights = np.concatenate([np.ones((1, len(ratings.cases)), dtype=np.int64), resamples]).astype(np.float64)
    each = np.stack([auc(line, weights, real, other) for line in scores])
    # Readers who have answered nothing of one source have no AUC.
    each = each[np.isfinite(each[:, 0])]
    if not len(each):
        return [replace(place, note="no reader has answered cases of both")]
    numbers = [_resampled(each.mean(axis=0), place)]
    if len(scores) > 1:
        # Readers side by side, as if one reader had read each case several times.
        tiled = [np.tile(part, len(scores)) for part in (real, other)]
        pooled = auc(scores.ravel(), np.tile(weights, len(scores)), *tiled)
        numbers.append(_resampled(pooled, replace(place, name="auc_pooled")))
    return numbers


def _resampled(draws: Floats, place: Number) -> Number:
    low, high, note = percentile_interval(draws[1:])
    return replace(place, value=float(draws[0]), low=low, high=high, note=note)
