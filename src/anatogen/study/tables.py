"""The tables of a study's analysis page."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from anatogen.report.numbers import duration_text, p_text
from anatogen.study.agreement import COEFFICIENTS
from anatogen.study.analysis import Analysis
from anatogen.study.headlines import percent, points
from anatogen.study.numbers import Number, pick, pick_one
from anatogen.study.ratings import Ratings

COEFFICIENT_NAMES = dict(
    zip(COEFFICIENTS, ("Same answer", "Kappa, quadratic", "Gwet's AC2", "Krippendorff's alpha"), strict=True)
)


# A difference that is there, and may be smaller or greater than the margin.
_VERDICTS = {"lower": "not shown: lower", "higher": "not shown: higher"}


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table.

    Attributes:
        text: The number.
        small: Below it: its interval, or the reason why there is no number.
    """

    text: str
    small: str = ""


@dataclass(frozen=True)
class Table:
    """A table of numbers.

    Attributes:
        title: Above it; empty for none.
        heads: Of its columns.
        rows: Each a label, and a cell for every further column.
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
        place = {
            "section": "shares",
            "protocol": ratings.protocol,
            "question": ratings.question.id,
            "reader": reader,
        }
        mine = pick(analysis.numbers, **place)
        rows: list[tuple[str, list[Cell]]] = []
        for option in sorted(ratings.question.options, key=lambda each: -each.value):
            cells = []
            for source in ratings.present:
                share = pick_one(mine, name="share", option=option.value, group=source)
                cells.append(_share_cell(share, with_count=True))
            rows.append((option.text, cells))
        means = [pick_one(mine, name="mean", group=source) for source in ratings.present]
        rows.append(("Mean answer", [_cell(mean, "{:.2f}") for mean in means]))
        who = f": {reader}" if reader else ""
        title = f"{ratings.question.text}{who}"
        tables.append(Table(title, ["Answer", *ratings.present], rows, is_folded=bool(reader)))
    return tables


def score_table(analysis: Analysis) -> list[Table]:
    """Medians and quartiles of scores."""
    numbers = pick(analysis.numbers, section="scores")
    tables = []
    for protocol, question in dict.fromkeys((number.protocol, number.question) for number in numbers):
        mine = pick(numbers, protocol=protocol, question=question)
        sources = list(dict.fromkeys(number.group for number in mine))
        rows = []
        for reader in _readers(analysis):
            found = [pick_one(mine, reader=reader, group=source) for source in sources]
            rows.append((reader or "all readers", [_cell(number, "{:.0f}") for number in found]))
        title = f"{analysis.question(mine[0]).text} (0 to 100; median and quartiles)"
        tables.append(Table(title, ["Reader", *sources], rows))
    return tables


def equivalence_table(analysis: Analysis) -> Table:
    """Differences between sources and what the test says of them."""
    rows: list[tuple[str, list[Cell]]] = []
    numbers = pick(analysis.numbers, section="equivalence")
    for protocol, question, group in dict.fromkeys(
        (row.protocol, row.question, row.group) for row in numbers
    ):
        cells: list[Cell] = []
        place = {"protocol": protocol, "question": question, "group": group}
        for name in ("mean_difference", "best_share_difference"):
            number = pick_one(numbers, name=name, **place)
            assert number is not None
            if number.value is None or number.p is None:
                cells += [Cell("–", number.note), Cell("")]
                continue
            unit = points if name == "mean_difference" else _percentage_points
            cells.append(Cell(unit(number.value), f"{unit(number.low)} to {unit(number.high)}"))
            cells.append(Cell(_VERDICTS.get(number.note, number.note), p_text(number.p)))
        text = analysis.question(pick(numbers, **place)[0]).text.rstrip("?")
        rows.append((f"{text}: {group.replace(' - ', ' − ')}", cells))
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
    for number in pick(analysis.numbers, section="model"):
        label = analysis.question(number).text.rstrip("?")
        if number.group:
            label = f"{label}: {number.group.replace(' - ', ' against ')}"
        p = "" if number.p is None else p_text(number.p)
        rows.append((label, [_cell(number, "{:.2f}"), Cell(p)]))
    return Table("", ["Question and sources", "Odds ratio", "Test of 1"], rows)


def turing_tables(analysis: Analysis, ratings: Ratings) -> list[Table]:
    """What was called real, how often that was right, and the areas under the ROC curves."""
    mine = pick(analysis.numbers, section="turing", protocol=ratings.protocol)
    others = [source for source in ratings.present if source != "real"]
    rows = []
    for reader in _readers(analysis):
        called = [
            pick_one(mine, name="called_real", reader=reader, group=source) for source in ratings.present
        ]
        accuracy = pick_one(mine, name="accuracy", reader=reader)
        areas = [pick_one(mine, name="auc", reader=reader, group=f"{source} - real") for source in others]
        cells = [_share_cell(number) for number in [*called, accuracy]]
        rows.append((reader or "all readers", cells + [_cell(area, "{:.2f}") for area in areas]))
    pooled = [pick_one(mine, name="auc_pooled", group=f"{source} - real") for source in others]
    if any(pooled):
        blank = [Cell("")] * (len(ratings.present) + 1)
        rows.append(("all answers together", blank + [_cell(number, "{:.2f}") for number in pooled]))
    heads = [f"{source.capitalize()} called real" for source in ratings.present]
    heads += ["Right, real and synthetic", *(f"AUC, {source} against real" for source in others)]
    return [Table("", ["Reader", *heads], rows)]


def pair_table(analysis: Analysis, ratings: Ratings) -> Table:
    """How often the real one of a pair was chosen."""
    mine = pick(analysis.numbers, section="pairs", protocol=ratings.protocol)
    rows = []
    for reader in _readers(analysis):
        cells = []
        for source in ratings.present:
            number = pick_one(mine, reader=reader, group=f"{source} - real")
            cells.append(_share_cell(number, with_count=True))
            cells.append(Cell("" if number is None or number.p is None else p_text(number.p)))
        rows.append((reader or "all readers", cells))
    heads = [
        head
        for source in ratings.present
        for head in (f"Real one chosen against {source}", "Test of guessing")
    ]
    return Table("", ["Reader", *heads], rows)


def agreement_tables(analysis: Analysis) -> list[Table]:
    """Agreement between readers over all cases, with themselves, and between readers for each source."""
    numbers = pick(analysis.numbers, section="agreement")
    places = list(dict.fromkeys((row.protocol, row.question, row.reader, row.group) for row in numbers))
    between: list[tuple[str, list[Cell]]] = []
    own: list[tuple[str, list[Cell]]] = []
    by_source: list[tuple[str, list[Cell]]] = []
    for protocol, question, reader, group in places:
        found = pick(numbers, protocol=protocol, question=question, reader=reader, group=group)
        cells = [_cell(number, "{:.2f}") for number in found]
        cells[0] = _share_cell(found[0])
        cells.append(Cell(str(found[0].num_cases)))
        text = analysis.question(found[0]).text.rstrip("?")
        if group == "repeats":
            own.append((f"{text}: {reader or 'all readers'}", cells))
        elif group:
            by_source.append((f"{text}: {group}", cells))
        else:
            between.append((text, cells))
    heads = ["Question", *COEFFICIENT_NAMES.values(), "Cases"]
    return [
        Table("Between readers, all cases", heads, between),
        Table("With themselves, when a case came again", heads, own),
        Table("Between readers, the cases of each source", heads, by_source, is_folded=True),
    ]


def time_table(analysis: Analysis) -> Table:
    """Time per case of each source, and the hours of each reader."""
    numbers = pick(analysis.numbers, section="times")
    medians = pick(numbers, name="seconds_median")
    sources = list(dict.fromkeys(number.group for number in medians))
    rows = []
    for protocol in dict.fromkeys(number.protocol for number in numbers):
        title = next(each.title for each in analysis.protocols if each.id == protocol).rstrip("?")
        for reader in _readers(analysis):
            cells = []
            for source in sources:
                number = pick_one(medians, protocol=protocol, reader=reader, group=source)
                cells.append(_duration_cell(number))
            for name in ("hours_active", "hours_idle"):
                total = pick_one(numbers, name=name, protocol=protocol, reader=reader)
                cells.append(Cell("–" if total is None else duration_text(3600 * (total.value or 0.0))))
            rows.append((f"{title}: {reader or 'all readers'}", cells))
    return Table("", ["Reader", *sources, "In all", "Idle, apart"], rows)


def missing_table(analysis: Analysis) -> Table:
    """Answers that are missing, of each reader to each question that has any missing."""
    rows = []
    for number in pick(analysis.numbers, section="answers"):
        if number.value:
            asked = int(number.value) + number.num_answers
            label = f"{analysis.question(number).text.rstrip('?')}: {number.reader}"
            rows.append((label, [Cell(f"{number.value:.0f} of {asked}", percent(number.value / asked))]))
    return Table("", ["Question and reader", "Answers missing"], rows)


def _readers(analysis: Analysis) -> list[str]:
    return [*analysis.readers, ""] if len(analysis.readers) > 1 else list(analysis.readers)


def _cell(number: Number | None, form: str) -> Cell:
    if number is None:
        return Cell("")
    if number.value is None:
        return Cell("–", number.note)
    if number.low is None or number.high is None:
        return Cell(form.format(number.value).replace("-", "−"), number.note)
    value, low, high = (form.format(end).replace("-", "−") for end in (number.value, number.low, number.high))
    return Cell(value, f"{low} to {high}")


def _share_cell(number: Number | None, with_count: bool = False) -> Cell:
    if number is None:
        return Cell("")
    if number.value is None:
        return Cell("–", number.note)
    count = f"{number.value * number.num_answers:.0f} of {number.num_answers}" if with_count else ""
    interval = number.note
    if number.low is not None and number.high is not None:
        interval = f"{percent(number.low)} to {percent(number.high)}"
    return Cell(percent(number.value), "; ".join(part for part in (count, interval) if part))


def _duration_cell(number: Number | None) -> Cell:
    if number is None:
        return Cell("")
    if number.value is None or number.low is None or number.high is None:
        return Cell("–", number.note)
    return Cell(duration_text(number.value), f"{duration_text(number.low)} to {duration_text(number.high)}")


def _percentage_points(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:+.0f}%".replace("-", "−")
