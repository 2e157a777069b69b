"""What a study shows, in plain sentences; each says how sure it is."""

from collections import Counter
from collections.abc import Callable, Sequence

from anatogen.report.numbers import p_text
from anatogen.report.verdicts import Answer, Tone
from anatogen.study.analysis import Analysis
from anatogen.study.numbers import Number, pick, pick_one

MAIN = "synthetic - real"
_MOSTLY_RIGHT = 0.75
_TONES: dict[str, Tone] = {"equivalent": Tone.GOOD, "worse": Tone.BAD}
# What a question that is not equivalent may be instead.
_OTHERS = {
    "better": "better by more",
    "higher": "rated higher",
    "lower": "rated lower",
    "undecided": "undecided",
}


def headlines(analysis: Analysis) -> list[Answer]:
    """The answers to the study's questions, those of the protocols that were read."""
    found: list[Answer] = []
    if analysis.ordinal:
        found += [_rated_alike(analysis), _best_answers(analysis)]
    for ratings, _ in analysis.turing:
        found.append(_told_apart(analysis, ratings.protocol))
    for ratings in analysis.pairs:
        found.append(_chosen(analysis, ratings.protocol))
    found.append(_agreement(analysis))
    return found


def summary(analysis: Analysis) -> str:
    """Who read what, and what is missing, in two sentences."""
    sources: dict[str, set[str]] = {}
    for row in analysis.rows:
        sources.setdefault(row.source, set()).add(row.case)
        if row.other_case is not None and row.other_source is not None:
            sources.setdefault(row.other_source, set()).add(row.other_case)
    order = ("real", "reconstructed", "synthetic")
    cases = ", ".join(f"{len(sources[source])} {source}" for source in order if source in sources)
    given = sum(row.value is not None for row in analysis.rows)
    readers = f"{len(analysis.readers)} reader{'s' if len(analysis.readers) > 1 else ''}"
    missing = len(analysis.rows) - given
    count = (
        f"All {given:,} answers were given."
        if not missing
        else f"{missing:,} of {len(analysis.rows):,} answers are missing; numbers rest on those given."
    )
    return f"{readers} read {cases} scans. {count}"


def percent(value: float | None) -> str:
    """A share in whole percent, or a dash."""
    return "–" if value is None else f"{100 * value:.0f}%"


def points(value: float | None) -> str:
    """A difference with its sign, or a dash."""
    return "–" if value is None else f"{value:+.2f}".replace("-", "−")


def short_title(analysis: Analysis, number: Number) -> str:
    """The question that a number is of, without its question mark."""
    return analysis.question(number).text.rstrip("?").rstrip()


def _rated_alike(analysis: Analysis) -> Answer:
    question = "Are synthetic scans rated as real ones are?"
    rows = pick(analysis.numbers, section="equivalence", name="mean_difference", group=MAIN)
    tested = [row for row in rows if row.value is not None]
    if not tested:
        why = rows[0].note if rows else "there are no real scans to compare with"
        return Answer(question, Tone.OPEN, "This can't be told.", f"{why[:1].upper()}{why[1:]}.")
    listed = "; ".join(
        f"{short_title(analysis, row)}: {points(row.value)} ({points(row.low)} to {points(row.high)}), "
        f"{row.note}"
        for row in tested
    )
    detail = f"Synthetic less real, in points, with the 90% interval of the equivalence test. {listed}."
    margin = f"{analysis.margin:g} points"
    found = Counter(row.note for row in tested)
    count = f"{len(tested)} question{'s' if len(tested) > 1 else ''}"
    if found["equivalent"] == len(tested):
        every = "the question" if len(tested) == 1 else f"all {count}"
        lower = sum(row.high is not None and row.high < 0 for row in tested)
        yet = f", though rated a little lower on {lower}" if lower else ""
        return Answer(question, Tone.GOOD, f"Equivalent to within {margin} on {every}{yet}.", detail)
    if found["worse"]:
        headline = f"No: worse by more than {margin} on {found['worse']} of {count}."
        return Answer(question, Tone.BAD, headline, detail)
    same = found["equivalent"]
    lead = (
        f"Equivalent to within {margin} on {same} of {count}"
        if same
        else f"Equivalence to within {margin} is not shown"
    )
    others = ", ".join(f"{text} on {found[verdict]}" for verdict, text in _OTHERS.items() if found[verdict])
    return Answer(question, Tone.MIXED, f"{lead}: {others}{'' if same else f' of {count}'}.", detail)


def _best_answers(analysis: Analysis) -> Answer:
    """Shares of the best answer to the first question, the others in the detail."""
    question = "How often did they get the best answer?"
    lines: list[str] = []
    headline = ""
    tone = Tone.OPEN
    for ratings in analysis.ordinal:
        mine = pick(analysis.numbers, protocol=ratings.protocol, question=ratings.question.id, reader="")
        best = ratings.values[-1]
        shares = {
            source: pick_one(mine, name="share", option=best, group=source) for source in ratings.present
        }
        known = {source: row for source, row in shares.items() if row is not None and row.value is not None}
        if not known:
            continue
        text = next(option.text for option in ratings.question.options if option.value == best)
        if not headline:
            said = ", ".join(
                f"{percent(row.value)} of {source} scans" for source, row in reversed(known.items())
            )
            headline = f"“{text}”: {said}."
            test = pick_one(mine, name="best_share_difference", group=MAIN)
            tone = Tone.OPEN if test is None or test.value is None else _TONES.get(test.note, Tone.MIXED)
        listed = ", ".join(
            f"{source} {percent(row.value)} ({percent(row.low)} to {percent(row.high)})"
            for source, row in known.items()
        )
        lines.append(f"{ratings.question.text.rstrip('?')}: {listed}.")
    return Answer(question, tone, headline or "There are no answers.", " ".join(lines))


def _told_apart(analysis: Analysis, protocol: str) -> Answer:
    question = "Can readers tell real from synthetic?"
    place = {"section": "turing", "protocol": protocol, "reader": "", "group": MAIN}
    accuracy = pick_one(analysis.numbers, name="accuracy", **place)
    area = pick_one(analysis.numbers, name="auc", **place)
    if accuracy is None or accuracy.value is None or area is None or area.value is None:
        return Answer(
            question, Tone.OPEN, "This can't be told.", "It takes answers to real and synthetic cases."
        )
    headline = (
        f"They were right in {percent(accuracy.value)} of cases ({percent(accuracy.low)} to "
        f"{percent(accuracy.high)}); guessing gives 50%."
    )
    interval = "" if area.low is None else f" ({area.low:.2f} to {area.high:.2f})"
    said = pick_one(analysis.numbers, name="called_real", **(place | {"group": "synthetic"}))
    real = pick_one(analysis.numbers, name="called_real", **(place | {"group": "real"}))
    assert said is not None and real is not None
    detail = (
        f"AUC {area.value:.2f}{interval}, where 0.5 is guessing: the mean of the readers' own. "
        f"“Real” was said of {percent(said.value)} of synthetic and {percent(real.value)} of real scans."
    )
    return Answer(question, _guessing_tone(area.value, area.low, area.high), headline, detail)


def _chosen(analysis: Analysis, protocol: str) -> Answer:
    question = "Side by side, can they pick the real one?"
    rows = pick(analysis.numbers, section="pairs", protocol=protocol, reader="")
    row = pick_one(rows, group=MAIN)
    if row is None or row.value is None or row.p is None:
        return Answer(question, Tone.OPEN, "This can't be told.", "There are no answers to such pairs.")
    headline = (
        f"They picked the real one in {percent(row.value)} of pairs ({percent(row.low)} to "
        f"{percent(row.high)}); guessing gives 50%."
    )
    others = "".join(
        f" Against {other.group.split(' - ')[0]} scans: {percent(other.value)}."
        for other in rows
        if other.group != MAIN and other.value is not None
    )
    test = f"{p_text(row.p)} for guessing" + (
        ": the answers fit guessing, which does not prove it." if row.p >= 0.05 else "."
    )
    return Answer(question, _guessing_tone(row.value, row.low, row.high), headline, f"{test}{others}")


def _agreement(analysis: Analysis) -> Answer:
    question = "Do readers agree?"
    # Of different kinds of questions, the ratings are what agreement is asked for.
    asked = {(each.protocol, each.question.id) for each in analysis.ordinal}
    numbers = [
        number
        for number in pick(analysis.numbers, section="agreement", reader="")
        if not asked or (number.protocol, number.question) in asked
    ]
    ac2 = _values(pick(numbers, name="ac2_quadratic", group=""))
    shares = _values(pick(numbers, name="agreement", group=""))
    own = _values(pick(numbers, name="agreement", group="repeats"))
    detail = (
        f"The same reader, shown a case again, answered the same in {_range(own, percent)}." if own else ""
    )
    if not ac2:
        why = "one reader alone can't be compared" if len(analysis.readers) < 2 else "too few common cases"
        return Answer(question, Tone.OPEN, f"Between readers this can't be told: {why}.", detail)
    # AC2 is generous to answers one step apart, so it does not decide alone.
    kappas = [n for n in pick(numbers, name="kappa_quadratic", group="") if n.value is not None]
    beyond_chance = bool(kappas) and all((number.low or 0.0) > 0 for number in kappas)
    tone = Tone.MIXED if min(ac2) >= 0.4 else Tone.BAD
    if min(ac2) >= 0.8 and min(shares) >= 0.75 and beyond_chance:
        tone = Tone.GOOD
    headline = f"Two readers gave the same answer in {_range(shares, percent)} of cases."
    kappa = _values(pick(numbers, name="kappa_quadratic", group=""))
    coefficients = f"AC2 {_range(ac2, _two_digits)}" + (
        f", kappa {_range(kappa, _two_digits)}" if kappa else ""
    )
    explained = "1 is full agreement, 0 is chance; kappa fails where nearly all answers are alike."
    return Answer(question, tone, headline, f"{coefficients}: {explained} {detail}".strip())


def _values(numbers: Sequence[Number]) -> list[float]:
    return [number.value for number in numbers if number.value is not None]


def _range(values: Sequence[float], text: Callable[[float], str]) -> str:
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low} to {high}"


def _two_digits(value: float) -> str:
    return f"{value:.2f}".replace("-", "−")


def _guessing_tone(value: float, low: float | None, high: float | None) -> Tone:
    """What an interval says of guessing, which is 1/2; being right three times of four is bad.

    Good takes evidence: an interval that holds guessing and being right three times of four too, as that of
    few cases does, leaves it open. Readers who are mostly wrong tell sources apart, though they mix them up.
    """
    if low is None or high is None:
        return Tone.OPEN
    if low <= 0.5 <= high:
        return Tone.GOOD if high < _MOSTLY_RIGHT else Tone.OPEN
    return Tone.BAD if value >= _MOSTLY_RIGHT else Tone.MIXED
