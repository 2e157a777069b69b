"""How much likelier is a better answer for synthetic than for real scans? A cumulative-link model."""

import warnings
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import stats

from anatogen.study.analysis.ratings import Flags, Floats, Ratings
from anatogen.study.analysis.statistic import Statistic

# Answers that each coefficient of the model takes.
_LEAST_ANSWERS = 10
# A log odds ratio beyond it (odds of 1 to 3,000) is a model that runs away.
_MOST_LOG_ODDS = 8.0


def model_statistics(ratings: Ratings) -> list[Statistic]:
    """Proportional odds of a better answer for each source against real, adjusted for readers.

    McCullagh 1980: logit P(answer <= k) = threshold_k - source - reader, both fixed effects; statsmodels'
    OrderedModel with standard errors clustered by case. That readers differ in how they see one case, and
    that cases differ among themselves, is in the standard errors but not in the odds ratio, which is of the
    average case (a mixed model's, of a given case, would be further from 1).

    Args:
        ratings: Answers to a question whose options are ordinal; first answers count.

    Returns:
        "odds_ratio" of each source against real; or one without a value, that says why.
    """
    place = Statistic("model", "odds_ratio", ratings.protocol, ratings.question.id)
    if "real" not in ratings.present or len(ratings.present) < 2:
        return [replace(place, note="it takes real cases and others")]
    others = [source for source in ratings.present if source != "real"]
    answered = np.isfinite(ratings.first)
    answers = ratings.first[answered]
    line, column = np.nonzero(answered)
    readers = [reader for reader in range(len(ratings.readers)) if answered[reader].any()]
    design = np.stack(
        [ratings.of(source)[column] for source in others] + [line == reader for reader in readers[1:]],
        axis=1,
    ).astype(np.float64)
    base = ratings.of("real")[column]
    why = _why_not(answers, [base, *design[:, : len(others)].T.astype(bool)], design.shape[1])
    if why:
        return [replace(place, note=why)]
    fitted = _fit(answers, design, column)
    if isinstance(fitted, str):
        return [replace(place, note=fitted)]
    coefficients, errors = fitted
    reach = 1.96 * errors
    return [
        replace(
            place,
            source=source,
            reference="real",
            value=float(np.exp(coefficients[index])),
            low=float(np.exp(coefficients[index] - reach[index])),
            high=float(np.exp(coefficients[index] + reach[index])),
            p=float(2 * stats.norm.sf(abs(coefficients[index] / errors[index]))),
            num_cases=len(set(column[(base | (design[:, index] == 1))].tolist())),
            num_answers=int((base | (design[:, index] == 1)).sum()),
        )
        for index, source in enumerate(others)
    ]


def _why_not(answers: Floats, groups: list[Flags], num_effects: int) -> str:
    """Why the model can't be fitted; empty if it can."""
    options = np.unique(answers)
    if len(options) < 2:
        return "every answer is the same" if len(options) else "no answers"
    needed = _LEAST_ANSWERS * (num_effects + len(options) - 1)
    if len(answers) < needed:
        return f"it takes {needed} answers, and there are {len(answers)}"
    for members in groups:
        given = np.unique(answers[members])
        if not len(given):
            return "a source has no answers"
        if len(given) == 1 and given[0] in (options[0], options[-1]):
            return "a source got one and the same answer throughout: the odds have no limit"
    return ""


def _fit(answers: Floats, design: Floats, cases: npt.NDArray[np.int64]) -> tuple[Floats, Floats] | str:
    from statsmodels.miscmodels.ordinal_model import OrderedModel

    codes = np.unique(answers, return_inverse=True)[1]
    with warnings.catch_warnings():
        # What warnings say is judged below.
        warnings.simplefilter("ignore")
        try:
            fitted = OrderedModel(codes, design, distr="logit").fit(
                method="bfgs", maxiter=500, disp=0, cov_type="cluster", cov_kwds={"groups": cases}
            )
        except (ValueError, np.linalg.LinAlgError) as error:
            return f"the model could not be fitted: {error}"
    number = design.shape[1]
    coefficients, errors = np.asarray(fitted.params)[:number], np.asarray(fitted.bse)[:number]
    if not fitted.mle_retvals["converged"]:
        return "the model did not converge"
    if not np.isfinite(errors).all() or (np.abs(coefficients) > _MOST_LOG_ODDS).any():
        return "sources or readers are separated by their answers: the odds have no limit"
    return coefficients, errors
