"""The experiment's verdict in plain sentences."""

from collections.abc import Mapping, Sequence

from anatogen.downstream.experiment.statistics import ArmComparison
from anatogen.downstream.experiment.verdict import (
    LEAST_GAIN,
    REAL,
    SCRATCH,
    SHAPES,
    SIGNIFICANCE,
    TREATMENT,
    ExperimentVerdict,
    Groups,
    Outcome,
    is_significant,
    leaves_out_zero,
)
from anatogen.report.numbers import (
    capitalised,
    count_of,
    interval_text,
    joined,
    p_text,
    percent_text,
    signed_text,
)
from anatogen.report.verdicts import Answer

QUESTION = "Does pre-training on synthetic scans help?"
_SUBJECT = "synthetic pre-training"

_HEADLINES: Mapping[Outcome, str] = {
    Outcome.BETTER: "{subject} helps at {where} of the labels",
    Outcome.WORSE: "{subject} hurts at {where} of the labels",
    Outcome.OPEN: "can't tell whether {subject} helps at {where} of the labels",
    Outcome.NO_GAIN: "{subject} does not help",
}
_CLAUSES: Mapping[Outcome, str] = {
    Outcome.BETTER: "{subject} helps at {where} ({effect})",
    Outcome.WORSE: "{subject} hurts at {where} ({effect})",
    Outcome.OPEN: "whether {subject} helps at {where} can't be told ({effect}; {numbers})",
    Outcome.NO_GAIN: "{subject} adds less than {least:g} at {where} ({effect})",
}
_SUBJECTS: Mapping[tuple[str, str], str] = {
    (SHAPES, SCRATCH): "pre-training on random shapes",
    (REAL, SCRATCH): "pre-training on real scans",
    (TREATMENT, SHAPES): "taking synthetic scans instead of random shapes",
    (REAL, TREATMENT): "taking real scans instead of synthetic ones",
}
_NOT_ANATOMY = (
    "Where they do not beat random shapes, the gain can't be put down to the synthetic scans' anatomy."
)


def answer(verdict: ExperimentVerdict) -> Answer:
    """The answer in a few words, and with its numbers."""
    if not verdict.effect:
        headline = f"Can't tell yet whether {_SUBJECT} helps"
        detail = "No share of labelled scans has results of both synthetic pre-training and none yet."
        return Answer(QUESTION, verdict.tone, headline, detail)
    outcome, group = next(iter(verdict.effect.items()))
    headline = _HEADLINES[outcome].format(subject=_SUBJECT, where=_where(group, verdict))
    detail = _effect_sentence(_SUBJECT, verdict.effect, verdict)
    return Answer(QUESTION, verdict.tone, capitalised(headline), detail)


def controls_text(verdict: ExperimentVerdict) -> str:
    """What a gain is due to, or whether anything would have helped; empty without the controls' arms."""
    sentences = []
    for pair, groups in verdict.controls.items():
        if groups:
            sentences.append(_effect_sentence(_SUBJECTS[pair], groups, verdict))
        if pair == (TREATMENT, SHAPES) and set(groups) - {Outcome.BETTER}:
            sentences.append(_NOT_ANATOMY)
    return " ".join(sentences)


def _effect_sentence(subject: str, groups: Groups, verdict: ExperimentVerdict) -> str:
    """At which fractions a pre-training helps, hurts, or neither."""
    clauses = [
        _CLAUSES[outcome].format(
            subject="it" if number else subject,
            where=_where(group, verdict) + ("" if number else " of the labelled scans"),
            effect=_effect_text(group),
            numbers=_numbers_text(group[0]),
            least=LEAST_GAIN,
        )
        for number, (outcome, group) in enumerate(groups.items())
    ]
    return f"{capitalised('; '.join(clauses))}."


def arm_text(arm: str) -> str:
    """An arm's name as people read it."""
    return arm.replace("_", " ")


def fractions_text(fractions: Sequence[float], tested: Sequence[float]) -> str:
    """Fractions as people say them: "5-10%", "20% and above", "5% and 40%", "5%".

    Args:
        fractions: Those to be named, some of those tested.
        tested: All of the experiment: a range says that nothing tested lies between.
    """
    order = sorted(set(tested))
    places = sorted(order.index(fraction) for fraction in set(fractions))
    runs: list[list[int]] = []
    for place in places:
        if runs and place == runs[-1][-1] + 1:
            runs[-1].append(place)
        else:
            runs.append([place])
    parts = []
    for run in runs:
        first, last = fraction_text(order[run[0]]), fraction_text(order[run[-1]])
        if len(run) == 1:
            parts.append(first)
        elif run[-1] == len(order) - 1 and run[0] > 0:
            parts.append(f"{first} and above")
        else:
            parts.append(f"{first[:-1]}-{last}")
    return joined(parts)


def fraction_text(fraction: float) -> str:
    """A fraction of the labelled scans as a percentage: "5%", "12.5%"."""
    return percent_text(fraction, 2)


def dice_text(difference: float | None) -> str:
    """A difference of Dice with its sign and three decimals: "+0.031", "−0.004"."""
    return signed_text(difference, 3)


def _where(group: Sequence[ArmComparison], verdict: ExperimentVerdict) -> str:
    return fractions_text([item.fraction for item in group], verdict.tested)


def _effect_text(group: Sequence[ArmComparison]) -> str:
    """The effect at the group's smallest fraction, with its interval over seeds and patients."""
    first = group[0]
    place = f"at {fraction_text(first.fraction)}: " if len(group) > 1 else ""
    text = f"{place}Dice {dice_text(first.difference.mean)}"
    if first.difference.over_seeds is None:
        return f"{text}, no interval"
    text += f", 95% interval {interval_text(*first.difference.over_seeds, dice_text)}"
    if leaves_out_zero(first) and first.p_corrected >= SIGNIFICANCE:
        # Otherwise the interval alone would seem to rule out chance.
        text += f", corrected {p_text(first.p_corrected)}"
    return text


def _numbers_text(comparison: ArmComparison) -> str:
    found = comparison.difference
    text = f"{count_of(found.num_seeds, 'seed')}, {count_of(found.num_patients, 'patient')}"
    if is_significant(comparison):
        text += ", and a smaller share shows no such difference"
    return text
