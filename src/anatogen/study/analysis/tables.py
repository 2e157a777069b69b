"""The tables of a study's analysis page."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from anatogen.report.numbers import MISSING, duration_text, interval_text, p_text, percent_text, signed_text
from anatogen.study.analysis.agreement import COEFFICIENTS
from anatogen.study.analysis.analyse import ALL_READERS, Analysis
from anatogen.study.analysis.headlines import two_digits
from anatogen.study.analysis.ratings import Ratings
from anatogen.study.analysis.statistic import Equivalence, Statistic, pick, pick_one

_COEFFICIENT_NAMES = dict(
    zip(COEFFICIENTS, ("Same answer", "Kappa, quadratic", "Gwet's AC2", "Krippendorff's alpha"), strict=True)
)
_OUTCOMES = {outcome: outcome.value for outcome in Equivalence} | {
    Equivalence.LOWER: "not shown: lower",
    Equivalence.HIGHER: "not shown: higher",
}


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table.

    Attributes:
        text: Number.
        small: Interval below it, or the reason why there is no number.
    """

    text: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A table of numbers.

    Attributes:
        title: Title above it; empty for none.
        heads: Heads of the columns.
        rows: Labels, each with a cell for every further column.
        is_folded: Whether it has to be opened, being details.
    """

    title: str
    heads: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]] = field(default_factory=tuple)
    is_folded: bool = False


def share_tables(analysis: Analysis, ratings: Ratings) -> list[Table]:
    """The answers to one question, sources side by side: of all readers, then of each."""
    tables = []
    readers = ["", *analysis.readers] if len(analysis.readers) > 1 else [""]
    for reader in readers:
        mine = pick(
            analysis.statistics,
            section="shares",
            protocol=ratings.protocol,
            question=ratings.question.id,
            reader=reader,
        )
        rows: list[tuple[str, list[Cell]]] = []
        for option in sorted(ratings.question.options, key=lambda each: -each.value):
            shares = [
                pick_one(mine, name="share", option=option.value, source=source) for source in ratings.present
            ]
            rows.append((option.text, [_cell(share, percent_text, with_count=True) for share in shares]))
        means = [pick_one(mine, name="mean", source=source) for source in ratings.present]
        rows.append(("Mean answer", [_cell(mean, two_digits) for mean in means]))
        who = f": {reader}" if reader else ""
        title = f"{ratings.question.text}{who}"
        tables.append(Table(title, ["Answer", *ratings.present], rows, is_folded=bool(reader)))
    return tables


def score_tables(analysis: Analysis) -> list[Table]:
    """Medians and quartiles of scores, a table for each question."""
    scores = pick(analysis.statistics, section="scores")
    tables = []
    for protocol, question in dict.fromkeys((score.protocol, score.question) for score in scores):
        mine = pick(scores, protocol=protocol, question=question)
        sources = list(dict.fromkeys(score.source for score in mine))
        rows = []
        for reader in analysis.lines:
            cells = [
                _cell(pick_one(mine, reader=reader, source=source), "{:.0f}".format) for source in sources
            ]
            rows.append((reader or ALL_READERS, cells))
        title = f"{analysis.question(mine[0]).text} (0 to 100; median and quartiles)"
        tables.append(Table(title, ["Reader", *sources], rows))
    return tables


def equivalence_table(analysis: Analysis) -> Table:
    """Differences between sources and what the test says of them."""
    differences = pick(analysis.statistics, section="equivalence")
    rows = []
    for mean, best in zip(
        pick(differences, name="mean_difference"),
        pick(differences, name="best_share_difference"),
        strict=True,
    ):
        cells: list[Cell] = []
        for statistic, text in ((mean, signed_text), (best, _percentage_points)):
            cells.append(_cell(statistic, text))
            if statistic.outcome is None or statistic.p is None:
                cells.append(Cell(""))
            else:
                cells.append(Cell(_OUTCOMES[statistic.outcome], p_text(statistic.p)))
        rows.append((f"{analysis.title(mean)}: {mean.source} − {mean.reference}", cells))
    heads = [
        "Question and sources",
        "Mean answer, points",
        f"Within ±{analysis.margin:g}?",
        "Best answers",
        f"Within ±{100 * analysis.share_margin:g}%?",
    ]
    return Table("", heads, rows)


def model_table(analysis: Analysis) -> Table:
    """Odds of a better answer."""
    rows = []
    for odds in pick(analysis.statistics, section="model"):
        label = analysis.title(odds)
        if odds.source:
            label = f"{label}: {odds.source} against {odds.reference}"
        rows.append((label, [_cell(odds, two_digits), _p_cell(odds)]))
    return Table("", ["Question and sources", "Odds ratio", "Test of 1"], rows)


def turing_table(analysis: Analysis, ratings: Ratings) -> Table:
    """What was called real, how often that was right, and the areas under the ROC curves."""
    mine = pick(analysis.statistics, section="turing", protocol=ratings.protocol)
    others = [source for source in ratings.present if source != "real"]
    rows = []
    for reader in analysis.lines:
        called = [
            pick_one(mine, name="called_real", reader=reader, source=source) for source in ratings.present
        ]
        shares = [*called, pick_one(mine, name="accuracy", reader=reader)]
        areas = [pick_one(mine, name="auc", reader=reader, source=source) for source in others]
        cells = [_cell(share, percent_text) for share in shares] + [_cell(area, two_digits) for area in areas]
        rows.append((reader or ALL_READERS, cells))
    pooled = [pick_one(mine, name="auc_pooled", source=source) for source in others]
    if any(pooled):
        blank = [Cell("")] * (len(ratings.present) + 1)
        rows.append(("all answers together", blank + [_cell(area, two_digits) for area in pooled]))
    heads = [f"{source.capitalize()} called real" for source in ratings.present]
    heads += ["Right, real and synthetic", *(f"AUC, {source} against real" for source in others)]
    return Table("", ["Reader", *heads], rows)


def pair_table(analysis: Analysis, ratings: Ratings) -> Table:
    """How often the real one of a pair was chosen."""
    mine = pick(analysis.statistics, section="pairs", protocol=ratings.protocol)
    rows = []
    for reader in analysis.lines:
        cells = []
        for source in ratings.present:
            chosen = pick_one(mine, reader=reader, source=source)
            cells += [_cell(chosen, percent_text, with_count=True), _p_cell(chosen)]
        rows.append((reader or ALL_READERS, cells))
    heads = [
        head
        for source in ratings.present
        for head in (f"Real one chosen against {source}", "Test of guessing")
    ]
    return Table("", ["Reader", *heads], rows)


def agreement_tables(analysis: Analysis) -> list[Table]:
    """Agreement between readers over all cases, with themselves, and between readers for each source."""
    between, by_source, own = [], [], []
    for found in _coefficients(analysis, "agreement"):
        label = analysis.title(found[0])
        if found[0].source:
            by_source.append((f"{label}: {found[0].source}", _agreement_cells(found)))
        else:
            between.append((label, _agreement_cells(found)))
    for found in _coefficients(analysis, "repeatability"):
        label = f"{analysis.title(found[0])}: {found[0].reader or ALL_READERS}"
        own.append((label, _agreement_cells(found)))
    heads = ["Question", *_COEFFICIENT_NAMES.values(), "Cases"]
    return [
        Table("Between readers, all cases", heads, between),
        Table("With themselves, when a case came again", heads, own),
        Table("Between readers, the cases of each source", heads, by_source, is_folded=True),
    ]


def _coefficients(
    analysis: Analysis, section: Literal["agreement", "repeatability"]
) -> list[tuple[Statistic, ...]]:
    """The statistics of a section, all coefficients of the same answers together."""
    mine = pick(analysis.statistics, section=section)
    return list(zip(*(pick(mine, name=name) for name in _COEFFICIENT_NAMES), strict=True))


def _agreement_cells(found: Sequence[Statistic]) -> list[Cell]:
    same, *others = found
    return [
        _cell(same, percent_text),
        *(_cell(other, two_digits) for other in others),
        Cell(str(same.num_cases)),
    ]


def time_table(analysis: Analysis) -> Table:
    """Time per case of each source, and the hours of each reader."""
    times = pick(analysis.statistics, section="times")
    medians = pick(times, name="seconds_median")
    sources = list(dict.fromkeys(median.source for median in medians))
    rows = []
    for protocol in analysis.protocols:
        for reader in analysis.lines:
            found = [
                pick_one(medians, protocol=protocol.id, reader=reader, source=source) for source in sources
            ]
            cells = [_cell(median, _seconds) for median in found]
            for name in ("hours_active", "hours_idle"):
                total = pick_one(times, name=name, protocol=protocol.id, reader=reader)
                assert total is not None and total.value is not None
                cells.append(Cell(duration_text(3600 * total.value)))
            rows.append((f"{protocol.title.rstrip('?')}: {reader or ALL_READERS}", cells))
    return Table("", ["Reader", *sources, "In all", "Idle, apart"], rows)


def missing_table(analysis: Analysis) -> Table:
    """Answers that are missing, of each reader to each question that has any missing."""
    rows = []
    for missing in pick(analysis.statistics, section="answers"):
        if missing.value:
            asked = int(missing.value) + missing.num_answers
            cell = Cell(f"{missing.value:.0f} of {asked}", percent_text(missing.value / asked))
            rows.append((f"{analysis.title(missing)}: {missing.reader}", [cell]))
    return Table("", ["Question and reader", "Answers missing"], rows)


def _cell(
    statistic: Statistic | None, text: Callable[[float | None], str], *, with_count: bool = False
) -> Cell:
    """A statistic as the text writes numbers; below it its interval, or why there is none."""
    if statistic is None:
        return Cell("")
    if statistic.value is None:
        return Cell(MISSING, statistic.note)
    small = []
    if with_count:
        small.append(f"{statistic.value * statistic.num_answers:.0f} of {statistic.num_answers}")
    small.append(interval_text(statistic.low, statistic.high, text) or statistic.note)
    return Cell(text(statistic.value), "; ".join(filter(None, small)))


def _p_cell(statistic: Statistic | None) -> Cell:
    return Cell("" if statistic is None or statistic.p is None else p_text(statistic.p))


def _percentage_points(value: float | None) -> str:
    return MISSING if value is None else f"{signed_text(100 * value, 0)}%"


def _seconds(value: float | None) -> str:
    return MISSING if value is None else duration_text(value)
