"""The tables of a study's analysis page: for each the places of its rows and columns, and how cells look."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from anatogen.report.numbers import MISSING, p_text, percent_text
from anatogen.study.analysis.agreement import COEFFICIENTS
from anatogen.study.analysis.analyse import ALL_READERS, Analysis
from anatogen.study.analysis.ratings import Ratings
from anatogen.study.analysis.statistic import Equivalence, Place, Statistic, pick, pick_one

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
    rows: Sequence[tuple[str, Sequence[Cell]]]
    is_folded: bool = False


# A row's label and the place of its statistics; a column's head, what its cells show, and their place.
_Row = tuple[str, Place]
_Column = tuple[str, Callable[[Statistic], Cell], Place]


def share_tables(analysis: Analysis, ratings: Ratings) -> list[Table]:
    """The answers to one question, sources side by side: of all readers, then of each."""
    question = ratings.question
    options = sorted(question.options, key=lambda each: -each.value)
    rows: list[_Row] = [(option.text, Place(name="share", option=option.value)) for option in options]
    if len(options) > 2:
        rows.append((f"{options[1].text}, or better", Place(name="share_at_least")))
    rows.append(("Mean answer", Place(name="mean")))
    columns: list[_Column] = [(source, _cell, Place(source=source)) for source in ratings.present]
    shares = pick(
        analysis.statistics, section="shares", protocol=ratings.protocol, question=ratings.question.id
    )
    tables = [_table(question.text, "Answer", pick(shares, reader=""), rows, columns)]
    if len(analysis.readers) > 1:
        for reader in analysis.readers:
            title = f"{question.text}: {reader}"
            mine = pick(shares, reader=reader)
            tables.append(_table(title, "Answer", mine, rows, columns, is_folded=True))
    return tables


def score_tables(analysis: Analysis) -> list[Table]:
    """Medians and quartiles of scores, a table for each question."""
    scores = pick(analysis.statistics, section="scores")
    tables = []
    for protocol, question in dict.fromkeys((score.protocol, score.question) for score in scores):
        mine = pick(scores, protocol=protocol, question=question)
        title = f"{analysis.question(mine[0]).text} (0 to 100; median and quartiles)"
        tables.append(_table(title, "Reader", mine, _reader_rows(analysis), _source_columns(mine)))
    return tables


def equivalence_table(analysis: Analysis) -> Table:
    """Differences between sources and what the test says of them."""
    differences = pick(analysis.statistics, section="equivalence")
    rows = [
        (f"{analysis.title(mean)}: {mean.source} − {mean.reference}", _place(mean))
        for mean in pick(differences, name="mean_difference")
    ]
    mean, best = Place(name="mean_difference"), Place(name="best_share_difference")
    columns: list[_Column] = [
        ("Mean answer, points", _cell, mean),
        (f"Within ±{analysis.margin:g}?", _outcome_cell, mean),
        ("Best answers", _cell, best),
        (f"Within ±{100 * analysis.share_margin:g}%?", _outcome_cell, best),
    ]
    return _table("", "Question and sources", differences, rows, columns)


def model_table(analysis: Analysis) -> Table:
    """Odds of a better answer."""
    odds = pick(analysis.statistics, section="model")
    rows = []
    for each in odds:
        sources = f": {each.source} against {each.reference}" if each.source else ""
        rows.append((f"{analysis.title(each)}{sources}", _place(each)))
    columns: list[_Column] = [("Odds ratio", _cell, Place()), ("Test of 1", _p_cell, Place())]
    return _table("", "Question and sources", odds, rows, columns)


def turing_table(analysis: Analysis, ratings: Ratings) -> Table:
    """What was called real, how often that was right, and the areas under the ROC curves."""
    mine = pick(analysis.statistics, section="turing", protocol=ratings.protocol)
    shares: list[_Column] = [
        (f"{source.capitalize()} called real", _cell, Place(name="called_real", source=source))
        for source in ratings.present
    ]
    shares.append(("Right, real and synthetic", _cell, Place(name="accuracy")))
    others = [source for source in ratings.present if source != "real"]
    areas: list[_Column] = [
        (f"AUC, {source} against real", _cell, Place(name="auc", source=source)) for source in others
    ]
    table = _table("", "Reader", mine, _reader_rows(analysis), [*shares, *areas])
    pooled = [pick_one(mine, name="auc_pooled", source=source) for source in others]
    if not any(pooled):
        return table
    cells = [Cell("")] * len(shares) + [Cell("") if area is None else _cell(area) for area in pooled]
    return Table("", table.heads, [*table.rows, ("all answers together", cells)])


def pair_table(analysis: Analysis, ratings: Ratings) -> Table:
    """How often the real one of a pair was chosen."""
    mine = pick(analysis.statistics, section="pairs", protocol=ratings.protocol)
    columns: list[_Column] = []
    for source in ratings.present:
        columns.append((f"Real one chosen against {source}", _cell, Place(source=source)))
        columns.append(("Test of guessing", _p_cell, Place(source=source)))
    return _table("", "Reader", mine, _reader_rows(analysis), columns)


def agreement_tables(analysis: Analysis) -> list[Table]:
    """Agreement between readers over all cases, with themselves, and between readers for each source."""
    columns: list[_Column] = [
        *((head, _cell, Place(name=name)) for name, head in _COEFFICIENT_NAMES.items()),
        ("Cases", lambda same: Cell(str(same.num_cases)), Place(name="agreement")),
    ]
    groups: dict[str, list[_Row]] = {"all": [], "own": [], "sources": []}
    for same in pick(analysis.statistics, name="agreement"):
        title = analysis.title(same)
        if same.section == "repeatability":
            groups["own"].append((f"{title}: {same.reader or ALL_READERS}", _place(same)))
        elif same.source:
            groups["sources"].append((f"{title}: {same.source}", _place(same)))
        else:
            groups["all"].append((title, _place(same)))

    def table(title: str, group: str, *, is_folded: bool = False) -> Table:
        return _table(title, "Question", analysis.statistics, groups[group], columns, is_folded=is_folded)

    return [
        table("Between readers, all cases", "all"),
        table("With themselves, when a case came again", "own"),
        table("Between readers, the cases of each source", "sources", is_folded=True),
    ]


def time_table(analysis: Analysis) -> Table:
    """Time per case of each source, and the hours of each reader."""
    times = pick(analysis.statistics, section="times")
    rows = [
        (f"{protocol.title.rstrip('?')}: {reader}", Place(protocol=protocol.id, **place))
        for protocol in analysis.protocols
        for reader, place in _reader_rows(analysis)
    ]
    columns: list[_Column] = [
        *_source_columns(pick(times, name="seconds_median")),
        ("In all", _cell, Place(name="hours_active")),
        ("Idle, apart", _cell, Place(name="hours_idle")),
    ]
    return _table("", "Reader", times, rows, columns)


def missing_table(analysis: Analysis) -> Table:
    """Answers that are missing, of each reader to each question that has any missing."""
    rows = []
    for missing in pick(analysis.statistics, section="answers"):
        if missing.value:
            asked = int(missing.value) + missing.num_answers
            cell = Cell(f"{missing.text} of {asked}", percent_text(missing.value / asked))
            rows.append((f"{analysis.title(missing)}: {missing.reader}", [cell]))
    return Table("", ["Question and reader", "Answers missing"], rows)


def _table(
    title: str,
    head: str,
    statistics: Sequence[Statistic],
    rows: Sequence[_Row],
    columns: Sequence[_Column],
    *,
    is_folded: bool = False,
) -> Table:
    """A table of the statistics in the places of its rows and columns; blank where there is none."""
    lines = []
    for label, place in rows:
        mine = pick(statistics, **place)
        found = [(cell, pick_one(mine, **column)) for _, cell, column in columns]
        lines.append((label, [Cell("") if each is None else cell(each) for cell, each in found]))
    return Table(title, [head, *(column for column, _, _ in columns)], lines, is_folded)


def _reader_rows(analysis: Analysis) -> list[_Row]:
    return [(reader or ALL_READERS, Place(reader=reader)) for reader in analysis.lines]


def _source_columns(statistics: Sequence[Statistic]) -> list[_Column]:
    """A column for each source of the statistics, which are of one name."""
    sources = dict.fromkeys(each.source for each in statistics)
    return [(source, _cell, Place(name=statistics[0].name, source=source)) for source in sources]


def _place(statistic: Statistic) -> Place:
    """The place of a statistic and of those that differ from it by name alone."""
    return Place(
        section=statistic.section,
        protocol=statistic.protocol,
        question=statistic.question,
        reader=statistic.reader,
        source=statistic.source,
        reference=statistic.reference,
    )


def _cell(statistic: Statistic) -> Cell:
    """A number; below it, of what is counted how many that is, and its interval, or why it is missing."""
    if statistic.value is None:
        return Cell(MISSING, statistic.note)
    small = [statistic.interval or statistic.note]
    if statistic.name in ("share", "share_at_least", "chosen_real"):
        small.insert(0, f"{statistic.value * statistic.num_answers:.0f} of {statistic.num_answers}")
    return Cell(statistic.text, "; ".join(filter(None, small)))


def _p_cell(statistic: Statistic) -> Cell:
    return Cell("" if statistic.p is None else p_text(statistic.p))


def _outcome_cell(statistic: Statistic) -> Cell:
    if statistic.outcome is None or statistic.p is None:
        return Cell("")
    return Cell(_OUTCOMES[statistic.outcome], p_text(statistic.p))
