"""What a study shows, in plain sentences; each says how sure it is."""

from collections import Counter
from collections.abc import Callable, Sequence

from anatogen.report.numbers import capitalised, count_of, p_text, percent_text
from anatogen.report.verdicts import Answer, Tone
from anatogen.study.analysis.analyse import Analysis
from anatogen.study.analysis.ratings import SOURCES
from anatogen.study.analysis.statistic import Equivalence, Statistic, pick, pick_one, two_digits

_MOSTLY_RIGHT = 0.75
_TONES: dict[Equivalence, Tone] = {Equivalence.EQUIVALENT: Tone.GOOD, Equivalence.WORSE: Tone.BAD}
# What a question that is not equivalent may be instead.
_OTHERS = {
    Equivalence.BETTER: "better by more",
    Equivalence.HIGHER: "rated higher",
    Equivalence.LOWER: "rated lower",
    Equivalence.UNDECIDED: "undecided",
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
    cases = ", ".join(f"{len(sources[source])} {source}" for source in SOURCES if source in sources)
    given = sum(row.value is not None for row in analysis.rows)
    readers = count_of(len(analysis.readers), "reader")
    missing = len(analysis.rows) - given
    count = (
        f"All {given:,} answers were given."
        if not missing
        else f"{missing:,} of {len(analysis.rows):,} answers are missing; numbers rest on those given."
    )
    return f"{readers} read {cases} scans. {count}"


def _rated_alike(analysis: Analysis) -> Answer:
    question = "Are synthetic scans rated as real ones are?"
    rows = pick(analysis.statistics, name="mean_difference", source="synthetic", reference="real")
    tested = [row for row in rows if row.value is not None]
    if not tested:
        why = rows[0].note if rows else "there are no real scans to compare with"
        return _untold(question, f"{capitalised(why)}.")
    listed = "; ".join(f"{analysis.title(row)}: {_with_interval(row)}, {row.outcome}" for row in tested)
    detail = f"Synthetic less real, in points, with the 90% interval of the equivalence test. {listed}."
    margin = f"{analysis.margin:g} points"
    found = Counter(row.outcome for row in tested)
    count = count_of(len(tested), "question")
    if found[Equivalence.EQUIVALENT] == len(tested):
        every = "the question" if len(tested) == 1 else f"all {count}"
        lower = sum(row.high is not None and row.high < 0 for row in tested)
        yet = f", though rated a little lower on {lower}" if lower else ""
        return Answer(question, Tone.GOOD, f"Equivalent to within {margin} on {every}{yet}.", detail)
    if found[Equivalence.WORSE]:
        headline = f"No: worse by more than {margin} on {found[Equivalence.WORSE]} of {count}."
        return Answer(question, Tone.BAD, headline, detail)
    same = found[Equivalence.EQUIVALENT]
    lead = (
        f"Equivalent to within {margin} on {same} of {count}"
        if same
        else f"Equivalence to within {margin} is not shown"
    )
    others = ", ".join(f"{text} on {found[outcome]}" for outcome, text in _OTHERS.items() if found[outcome])
    return Answer(question, Tone.MIXED, f"{lead}: {others}{'' if same else f' of {count}'}.", detail)


def _best_answers(analysis: Analysis) -> Answer:
    """Shares of the best answer to the first question, the others in the detail."""
    question = "How often did they get the best answer?"
    lines: list[str] = []
    headline = ""
    tone = Tone.OPEN
    for ratings in analysis.ordinal:
        mine = pick(analysis.statistics, protocol=ratings.protocol, question=ratings.question.id, reader="")
        best = ratings.values[-1]
        shares = {
            source: pick_one(mine, name="share", option=best, source=source) for source in ratings.present
        }
        known = {source: row for source, row in shares.items() if row is not None and row.value is not None}
        if not known:
            continue
        text = next(option.text for option in ratings.question.options if option.value == best)
        if not headline:
            said = ", ".join(f"{row.text} of {source} scans" for source, row in reversed(known.items()))
            headline = f"“{text}”: {said}."
            test = pick_one(mine, name="best_share_difference", source="synthetic", reference="real")
            tone = Tone.OPEN if test is None or test.outcome is None else _TONES.get(test.outcome, Tone.MIXED)
        listed = ", ".join(f"{source} {_with_interval(row)}" for source, row in known.items())
        lines.append(f"{ratings.question.text.rstrip('?')}: {listed}.")
    return Answer(question, tone, headline or "There are no answers.", " ".join(lines))


def _told_apart(analysis: Analysis, protocol: str) -> Answer:
    question = "Can readers tell real from synthetic?"
    mine = pick(analysis.statistics, section="turing", protocol=protocol, reader="")
    accuracy = pick_one(mine, name="accuracy", source="synthetic", reference="real")
    area = pick_one(mine, name="auc", source="synthetic", reference="real")
    if accuracy is None or accuracy.value is None or area is None or area.value is None:
        return _untold(question, "It takes answers to real and synthetic cases.")
    headline = f"They were right in {accuracy.text} of cases ({accuracy.interval}); guessing gives 50%."
    said = pick_one(mine, name="called_real", source="synthetic")
    real = pick_one(mine, name="called_real", source="real")
    assert said is not None and real is not None
    detail = (
        f"AUC {_with_interval(area)}, where 0.5 is guessing: the mean of the readers' own. "
        f"“Real” was said of {said.text} of synthetic and {real.text} of real scans."
    )
    return Answer(question, _guessing_tone(area.value, area.low, area.high), headline, detail)


def _chosen(analysis: Analysis, protocol: str) -> Answer:
    question = "Side by side, can they pick the real one?"
    rows = pick(analysis.statistics, section="pairs", protocol=protocol, reader="")
    row = pick_one(rows, source="synthetic", reference="real")
    if row is None or row.value is None or row.p is None:
        return _untold(question, "There are no answers to such pairs.")
    headline = f"They picked the real one in {row.text} of pairs ({row.interval}); guessing gives 50%."
    others = "".join(
        f" Against {other.source} scans: {other.text}."
        for other in rows
        if other is not row and other.value is not None
    )
    test = f"{p_text(row.p)} for guessing" + (
        ": the answers fit guessing, which does not prove it." if row.p >= 0.05 else "."
    )
    return Answer(question, _guessing_tone(row.value, row.low, row.high), headline, f"{test}{others}")


def _agreement(analysis: Analysis) -> Answer:
    question = "Do readers agree?"
    # Of different kinds of questions, the ratings are what agreement is asked for.
    asked = {(each.protocol, each.question.id) for each in analysis.ordinal}
    mine = [
        each
        for each in pick(analysis.statistics, reader="", source="")
        if each.value is not None and (not asked or (each.protocol, each.question) in asked)
    ]
    between = pick(mine, section="agreement")
    ac2 = _values(pick(between, name="ac2_quadratic"))
    shares = _values(pick(between, name="agreement"))
    own = _values(pick(mine, section="repeatability", name="agreement"))
    detail = (
        f"The same reader, shown a case again, answered the same in {_range(own, percent_text)}."
        if own
        else ""
    )
    if not ac2:
        why = "one reader alone can't be compared" if len(analysis.readers) < 2 else "too few common cases"
        return Answer(question, Tone.OPEN, f"Between readers this can't be told: {why}.", detail)
    # AC2 is generous to answers one step apart, so it does not decide alone.
    kappas = pick(between, name="kappa_quadratic")
    beyond_chance = bool(kappas) and all((kappa.low or 0.0) > 0 for kappa in kappas)
    tone = Tone.MIXED if min(ac2) >= 0.4 else Tone.BAD
    if min(ac2) >= 0.8 and min(shares) >= 0.75 and beyond_chance:
        tone = Tone.GOOD
    headline = f"Two readers gave the same answer in {_range(shares, percent_text)} of cases."
    coefficients = f"AC2 {_range(ac2, two_digits)}" + (
        f", kappa {_range(_values(kappas), two_digits)}" if kappas else ""
    )
    explained = "1 is full agreement, 0 is chance; kappa fails where nearly all answers are alike."
    return Answer(question, tone, headline, f"{coefficients}: {explained} {detail}".strip())


def _untold(question: str, why: str) -> Answer:
    return Answer(question, Tone.OPEN, "This can't be told.", why)


def _with_interval(row: Statistic) -> str:
    """A number and its interval, such as "54% (40% to 68%)"."""
    return f"{row.text} ({row.interval})" if row.interval else row.text


def _values(statistics: Sequence[Statistic]) -> list[float]:
    return [each.value for each in statistics if each.value is not None]


def _range(values: Sequence[float], text: Callable[[float], str]) -> str:
    low, high = text(min(values)), text(max(values))
    return low if low == high else f"{low} to {high}"


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
