"""The parts of a study's page: what each is about, its figures and its tables."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from anatogen.report.page import data_url
from anatogen.study.analysis import charts, tables
from anatogen.study.analysis.analyse import Analysis
from anatogen.study.analysis.statistic import pick
from anatogen.study.leaks import BlindingStatus

BLINDING_TEXTS = {
    BlindingStatus.PASSED: "passed: nothing but the picture told sources apart",
    BlindingStatus.FAILED: "not achieved: when the study was made, storage told sources apart",
    BlindingStatus.UNTESTED: "not tested: too few scans, or one source only",
    BlindingStatus.UNKNOWN: "not known: the study has no readable leaks.json",
}


@dataclass(frozen=True)
class Part:
    """A part of the page: text, figures, then tables.

    Attributes:
        title: Heading.
        lead: Sentences on what it shows and how to read it.
        figures: Address, text for those who don't see it, and caption of each.
        tables: Tables below the figures.
    """

    title: str
    lead: str
    figures: Sequence[tuple[str, str, str]]
    tables: Sequence[tables.Table]


def page_parts(analysis: Analysis, folder: Path) -> list[Part]:
    """The parts of the page, in order.

    Args:
        analysis: Analysis to be shown.
        folder: Folder where the figures are written, too.
    """

    def drawn(name: str, draw: Callable[[Path], None], alt: str, caption: str) -> tuple[str, str, str]:
        draw(folder / name)
        return data_url(folder / name), alt, caption

    parts = []
    if analysis.ordinal:
        figure = drawn(
            "answers.png",
            partial(charts.answers_figure, {"": analysis}),
            "Stacked bars of the answers to each question, by source and reader",
            "First answers, as in the paper's Fig. 2. Bars are of one reader or of all; numbers are counts.",
        )
        shares = [table for ratings in analysis.ordinal for table in tables.share_tables(analysis, ratings)]
        parts.append(Part("Ratings", _RATINGS, [figure], shares))
        if differences := pick(analysis.statistics, section="equivalence"):
            figures = []
            if any(difference.value is not None for difference in differences):
                figure = drawn(
                    "equivalence.png",
                    partial(charts.equivalence_figure, analysis),
                    "Differences between sources with intervals, beside the margin of equivalence",
                    "Difference and 90% interval. Equivalent where it lies in the margin, which is shaded.",
                )
                figures.append(figure)
            lead = _EQUIVALENCE.format(points=analysis.margin, share=100 * analysis.share_margin)
            parts.append(Part("Synthetic beside real", lead, figures, [tables.equivalence_table(analysis)]))
        parts.append(Part("Odds of a better answer", _MODEL, [], [tables.model_table(analysis)]))
    for index, (ratings, confidence) in enumerate(analysis.turing):
        figure = drawn(
            f"turing{index or ''}.png",
            partial(charts.turing_figure, analysis, ratings, confidence),
            "ROC curves of the readers, and how often each source was called real",
            "Left: real against synthetic, a thin line for each reader. Right: exact 95% intervals.",
        )
        parts.append(Part("Real or synthetic?", _TURING, [figure], [tables.turing_table(analysis, ratings)]))
    parts += [
        Part("Which of the two is real?", _PAIRS, [], [tables.pair_table(analysis, ratings)])
        for ratings in analysis.pairs
    ]
    parts.append(Part("Agreement", _AGREEMENT, [], tables.agreement_tables(analysis)))
    if scores := tables.score_tables(analysis):
        parts.append(Part("Scores", "Answers on a scale from 0 to 100, as given.", [], scores))
    times = drawn(
        "times.png",
        partial(charts.times_figure, analysis),
        "Seconds spent at each case by reader and source",
        "Each dot is a case when it was first shown; ring and bar are median and quartiles.",
    )
    parts.append(Part("Reading times", _TIMES, [times], [tables.time_table(analysis)]))
    missing = tables.missing_table(analysis)
    if missing.rows:
        parts.append(Part("Missing answers", _MISSING, [], [missing]))
    return parts


def limits(analysis: Analysis, blinding: BlindingStatus) -> list[str]:
    """What the numbers don't show.

    Args:
        analysis: Analysis to be shown.
        blinding: Whether blinding was achieved.
    """
    found = [
        "Intervals and tests are for other cases read by these readers. Other readers may differ, and "
        f"{'one reader says' if len(analysis.readers) == 1 else 'few readers say'} little about that.",
        "No correction is made for the number of tests: of twenty comparisons without a difference, one is "
        "expected to look like one. Name the main one before the study.",
        "Guessing that can't be ruled out is no proof that scans can't be told apart: see how far the "
        "interval goes.",
        "Cases of different sources are taken as independent, even where reconstructions are of the same "
        "real scans.",
        "Ratings say what readers saw in these sizes, windows and minutes; they say nothing of privacy, or "
        "of use in training.",
    ]
    if any(row.value is None for row in analysis.rows):
        found.insert(0, "Missing answers are left out, as if they were missing by chance.")
    if blinding is not BlindingStatus.PASSED:
        found.insert(0, f"Blinding was {BLINDING_TEXTS[blinding]}.")
    return found


_RATINGS = (
    "How often each answer was given, in counts, shares and 95% Wilson intervals. For all readers "
    "together the interval is that of the effective number of answers, because two ratings of one case "
    "are not two cases."
)
_EQUIVALENCE = (
    "Two one-sided tests: sources are equivalent where the 90% interval of their difference lies within "
    "the margin ({points:g} points, {share:g} percentage points of best answers; --margin and "
    "--share-margin change it). Each reader is compared with themselves, and cases are counted, not "
    "answers. Undecided means too few cases for this margin. Lower or higher means a difference of which "
    "it is open whether it is beyond the margin. Equivalent does not mean equal."
)
_MODEL = (
    "A proportional-odds model with source and reader as fixed effects: the odds of a better answer, "
    "divided by those of a real scan that the same reader sees. Below 1 is worse. Standard errors are "
    "clustered by case; that readers differ on single cases is not modelled."
)
_TURING = (
    "Right is “real” for real scans and “synthetic” for synthetic ones; reconstructed scans stand "
    "apart. AUC takes the confidence, counted as negative where “synthetic” was answered: the chance "
    "that a real scan seems more real than another; 0.5 is guessing. For all readers it is the mean of "
    "their own, as scales differ between readers. Intervals of AUC come from resampling cases."
)
_PAIRS = (
    "How often the real one of two was chosen, with exact 95% intervals. For one reader the test is the "
    "binomial one; for all together it changes pairs around, so that readers who err on the same pair "
    "are no more evidence than they are."
)
_AGREEMENT = (
    "Kappa and alpha take for chance what the answers' own frequencies give, so they fall to 0 when "
    "nearly all scans get the same answer, however well readers agree. Gwet's AC2 does not. But it is "
    "generous there: two readers who answer at random, three times of four the best of four answers, "
    "have an AC2 of 0.89. Trust agreement that all of them show. Kappa and AC2 have quadratic weights, "
    "alpha the ordinal metric; 95% intervals come from resampling cases."
)
_TIMES = (
    "Active time per case, median and quartiles; cases shown again are left out, "
    "but count in the hours. Idle time (another window, no key or mouse for 30 s) is apart."
)
_MISSING = "Answers that were asked for and not given, cases shown again included."
