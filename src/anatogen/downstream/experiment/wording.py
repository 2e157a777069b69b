"""The experiment's verdict in plain sentences."""

from collections.abc import Mapping, Sequence

from anatogen.downstream.experiment.statistics import ArmComparison
from anatogen.downstream.experiment.verdict import (
    LEAST_GAIN,
    SIGNIFICANCE,
    BesideControl,
    Control,
    ExperimentVerdict,
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
_CONTROLS: Mapping[Control, str] = {Control.SHAPES: "random shapes", Control.REAL: "real scans"}

_CLAUSES: Mapping[Outcome, str] = {
    Outcome.BETTER: "{subject} helps at {where} ({effect})",
    Outcome.WORSE: "{subject} hurts at {where} ({effect})",
    Outcome.OPEN: "whether {subject} helps at {where} can't be told ({effect}; {numbers})",
    Outcome.NO_GAIN: "{subject} adds less than {least:g} at {where} ({effect})",
}
_BESIDE_CONTROLS: Mapping[Control, Mapping[BesideControl, str]] = {
    Control.SHAPES: {
        BesideControl.BETTER: "{name} do worse at {where} ({effect}), so what the synthetic scans show "
        "matters",
        BesideControl.WORSE: "{name} do even better at {where} ({effect}), so the gain there is not due to "
        "the synthetic scans' anatomy",
        BesideControl.EQUAL: "{name} do as well at {where} ({effect}), so the gain there is not due to the "
        "synthetic scans' anatomy",
        BesideControl.OPEN: "synthetic scans are not shown to beat {name} at {where} ({effect}), so the gain "
        "there can't be put down to their anatomy",
    },
    Control.REAL: {
        BesideControl.BETTER: "{name} do worse at {where} ({effect})",
        BesideControl.WORSE: "{name} help more at {where} ({effect})",
        BesideControl.EQUAL: "{name} would not have gained {least:g} more at {where} ({effect})",
        BesideControl.OPEN: "whether {name} would help more at {where} can't be told ({effect})",
    },
}


def answer(verdict: ExperimentVerdict) -> Answer:
    """The answer in a few words, and with its numbers."""
    return Answer(QUESTION, verdict.tone, _headline(verdict), _detail(verdict))


def _headline(verdict: ExperimentVerdict) -> str:
    if not verdict.effect:
        return f"Can't tell yet whether {_SUBJECT} helps"
    outcome, group = next(iter(verdict.effect.items()))
    where = f" at {_where(group, verdict)} of the labels"
    return capitalised(
        {
            Outcome.BETTER: f"{_SUBJECT} helps{where}",
            Outcome.WORSE: f"{_SUBJECT} hurts{where}",
            Outcome.OPEN: f"can't tell whether {_SUBJECT} helps{where if len(verdict.effect) > 1 else ''}",
            Outcome.NO_GAIN: f"{_SUBJECT} does not help",
        }[outcome]
    )


def _detail(verdict: ExperimentVerdict) -> str:
    if not verdict.effect:
        return "No share of labelled scans has results of both synthetic pre-training and none yet."
    clauses = [
        _CLAUSES[outcome].format(
            subject="it" if number else _SUBJECT,
            where=_where(group, verdict) + ("" if number else " of the labelled scans"),
            effect=_effect_text(group),
            numbers=_numbers_text(group[0]),
            least=LEAST_GAIN,
        )
        for number, (outcome, group) in enumerate(verdict.effect.items())
    ]
    return f"{capitalised('; '.join(clauses))}."


def controls_text(verdict: ExperimentVerdict) -> str:
    """What a gain is due to, or whether anything would have helped; empty without the controls' arms."""
    sentences = [
        _BESIDE_CONTROLS[control][kind].format(
            name=_CONTROLS[control],
            where=_where(group, verdict),
            effect=_effect_text(group, " for synthetic ones"),
            least=LEAST_GAIN,
        )
        for control, groups in verdict.beside.items()
        for kind, group in groups.items()
    ]
    for control, found in verdict.controls.items():
        outcome, group = next(iter(found.items()))
        helps = (
            f"help at {_where(group, verdict)}"
            if outcome is Outcome.BETTER
            else "are not shown to help either"
        )
        sentences.append(f"{_CONTROLS[control]} {helps} ({_effect_text(group)})")
    return " ".join(f"{capitalised(sentence)}." for sentence in sentences)


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


def _effect_text(group: Sequence[ArmComparison], whose: str = "") -> str:
    """The effect at the group's smallest fraction, with its interval over seeds and patients."""
    first = group[0]
    place = f"at {fraction_text(first.fraction)}: " if len(group) > 1 else ""
    text = f"{place}Dice {dice_text(first.difference.mean)}{whose}"
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
