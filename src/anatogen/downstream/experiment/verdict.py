"""The experiment's verdict in plain sentences, computed from the paired comparisons alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from anatogen.downstream.experiment.statistics import Comparison
from anatogen.report.verdicts import Tone

SCRATCH, TREATMENT = "scratch", "synthetic"
# What a control is called in a sentence.
CONTROLS: Mapping[str, str] = {"shapes": "random shapes", "real": "real scans"}
LEAST_GAIN = 0.01
SIGNIFICANCE = 0.05

# What is said where synthetic scans help, by how they do against the control.
_BESIDE_CONTROLS = {
    "shapes": {
        "better": "{name} do worse at {where} ({effect}), so what the synthetic scans show matters",
        "worse": "{name} do even better at {where} ({effect}), so the gain there is not due to the "
        "synthetic scans' anatomy",
        "as good": "{name} do as well at {where} ({effect}), so the gain there is not due to the "
        "synthetic scans' anatomy",
        "open": "synthetic scans are not shown to beat {name} at {where} ({effect}), so the gain there "
        "can't be put down to their anatomy",
    },
    "real": {
        "better": "{name} do worse at {where} ({effect})",
        "worse": "{name} help more at {where} ({effect})",
        "as good": "{name} would not have gained {least:g} more at {where} ({effect})",
        "open": "whether {name} would help more at {where} can't be told ({effect})",
    },
}

Outcome = Literal["better", "worse", "no gain", "open"]


@dataclass(frozen=True)
class Verdict:
    """What the experiment says.

    Attributes:
        tone: "good" if synthetic pre-training helps and nowhere hurts, "mixed" if it does both, "bad" if it
            does not help, "open" if that can't be told.
        title: The answer in a few words.
        text: The answer with its numbers.
        controls: How synthetic scans do beside random shapes and real scans; empty without those arms.
    """

    tone: Tone
    title: str
    text: str
    controls: str


def comparison_pairs(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Every arm against scratch, then the synthetic one against its controls, as far as they are there."""
    pairs = [(arm, SCRATCH) for arm in arms if arm != SCRATCH and SCRATCH in arms]
    return pairs + [(TREATMENT, control) for control in CONTROLS if {TREATMENT, control} <= set(arms)]


def outcomes(comparisons: Sequence[Comparison]) -> list[Outcome]:
    """What each comparison of mean Dice says about its first arm.

    * "better" or "worse": the 95% interval over seeds and patients leaves out 0; so does chance among all
      comparisons (p after Holm's correction below 0.05); and the same pair was decided at every smaller
      fraction. Few labels are where pre-training should show, so fractions are tested in this order, and
      each pair errs in 5% of experiments however many fractions it has (fixed-sequence test: Maurer et al.
      1995, Westfall and Krishen 2001).
    * "no gain": the interval ends below 0.01, so that whatever is gained is too little to matter.
    * "open": all else, and whatever has one seed or one patient only.

    Args:
        comparisons: All that were made, in any order; the outcomes have the same.
    """
    found: dict[int, Outcome] = {}
    closed: set[tuple[str, str]] = set()
    for number in sorted(range(len(comparisons)), key=lambda number: comparisons[number].fraction):
        comparison = comparisons[number]
        low, high = comparison.difference.wide_low, comparison.difference.wide_high
        pair = comparison.arm, comparison.other
        found[number] = "open"
        if _leaves_out_chance(comparison) and pair not in closed:
            found[number] = "better" if comparison.difference.mean > 0 else "worse"
            continue
        closed.add(pair)
        if low is not None and high is not None and high < LEAST_GAIN:
            found[number] = "no gain"
    return [found[number] for number in range(len(comparisons))]


def verdict(comparisons: Sequence[Comparison]) -> Verdict:
    """The verdict from the comparisons of mean Dice, those of `comparison_pairs`."""
    own = _grouped(comparisons, TREATMENT, SCRATCH)
    tested = sorted(item.fraction for group in own.values() for item in group)
    subject = "synthetic pre-training"
    if not tested:
        text = "No share of labelled scans has results of both synthetic pre-training and none yet."
        return Verdict(Tone.OPEN, f"Can't tell yet whether {subject} helps", text, "")
    clauses = {
        "better": "{it} helps at {where} ({effect})",
        "worse": "{it} hurts at {where} ({effect})",
        "open": "whether {it} helps at {where} can't be told ({effect}; {numbers})",
        "no gain": "{it} adds less than {least:g} at {where} ({effect})",
    }
    found = [
        clauses[name].format(
            it="it" if number else subject,
            where=fractions_text([item.fraction for item in group], tested)
            + ("" if number else " of the labelled scans"),
            effect=_effect_text(group),
            numbers=_numbers_text(group[0]),
            least=LEAST_GAIN,
        )
        for number, (name, group) in enumerate(own.items())
    ]
    where = fractions_text([item.fraction for item in next(iter(own.values()))], tested)
    if "better" in own:
        tone, title = Tone.MIXED if "worse" in own else Tone.GOOD, f"{subject} helps at {where} of the labels"
    elif "worse" in own:
        tone, title = Tone.BAD, f"{subject} hurts at {where} of the labels"
    elif "open" in own:
        tone, title = (
            Tone.OPEN,
            f"can't tell whether {subject} helps" + f" at {where} of the labels" * (len(own) > 1),
        )
    else:
        tone, title = Tone.BAD, f"{subject} does not help"
    controls = _controls_text(comparisons, own.get("better", []), tested)
    return Verdict(tone, _capital(title), f"{_capital('; '.join(found))}.", controls)


def fractions_text(fractions: Sequence[float], tested: Sequence[float]) -> str:
    """Fractions as people say them: "5-10%", "20% and above", "5% and 40%", "5%".

    Args:
        fractions: To be named, some of those tested.
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
        first, last = order[run[0]], order[run[-1]]
        if len(run) == 1:
            parts.append(percent_text(first))
        elif run[-1] == len(order) - 1 and run[0] > 0:
            parts.append(f"{percent_text(first)} and above")
        else:
            parts.append(f"{percent_text(first)[:-1]}-{percent_text(last)}")
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def percent_text(fraction: float) -> str:
    """A share as a percentage: "5%", "12.5%"."""
    return f"{100 * fraction:.4g}%"


def _leaves_out_chance(comparison: Comparison) -> bool:
    low, high = comparison.difference.wide_low, comparison.difference.wide_high
    if low is None or high is None:
        return False
    return (low > 0 or high < 0) and comparison.p_corrected < SIGNIFICANCE


def _grouped(comparisons: Sequence[Comparison], arm: str, other: str) -> dict[Outcome, list[Comparison]]:
    """The pair's comparisons by outcome, each by fraction; outcomes in the order of sentences."""
    pair = sorted(
        (item for item in comparisons if (item.arm, item.other) == (arm, other)),
        key=lambda item: item.fraction,
    )
    found = outcomes(pair)
    order: tuple[Outcome, ...] = ("better", "worse", "open", "no gain")
    groups = {name: [item for item, own in zip(pair, found, strict=True) if own == name] for name in order}
    return {name: group for name, group in groups.items() if group}


def _controls_text(
    comparisons: Sequence[Comparison], helped: Sequence[Comparison], tested: Sequence[float]
) -> str:
    """The sentences on the controls: what the gain is due to, or whether anything would have helped."""
    sentences = []
    for control, name in CONTROLS.items():
        if helped:
            # The pair's smaller fractions, where synthetic scans don't help, close none of these.
            where = {item.fraction for item in helped}
            beside = sorted(
                (i for i in comparisons if (i.arm, i.other) == (TREATMENT, control) and i.fraction in where),
                key=lambda item: item.fraction,
            )
            groups: dict[str, list[Comparison]] = {}
            for item, own_outcome in zip(beside, outcomes(beside), strict=True):
                groups.setdefault(_against_control(item, own_outcome), []).append(item)
            sentences += [
                _BESIDE_CONTROLS[control][kind].format(
                    name=name,
                    where=fractions_text([item.fraction for item in group], tested),
                    effect=_effect_text(group, " for synthetic ones"),
                    least=LEAST_GAIN,
                )
                for kind, group in groups.items()
            ]
            continue
        own = _grouped(comparisons, control, SCRATCH)
        if "better" in own:
            places = fractions_text([item.fraction for item in own["better"]], tested)
            sentences.append(f"{name} help at {places} ({_effect_text(own['better'])})")
        elif own:
            first = next(iter(own.values()))
            sentences.append(f"{name} are not shown to help either ({_effect_text(first)})")
    return " ".join(f"{_capital(sentence)}." for sentence in sentences)


def _against_control(comparison: Comparison, found: Outcome) -> Literal["better", "worse", "as good", "open"]:
    """Its outcome, but for what has to be ruled out beside a control.

    Shapes do as well unless synthetic scans may gain 0.01 on them; real scans don't do better unless they may
    gain 0.01 on synthetic ones.
    """
    low, high = comparison.difference.wide_low, comparison.difference.wide_high
    if found in ("better", "worse"):
        return found
    if low is None or high is None:
        return "open"
    equal = high < LEAST_GAIN if comparison.other == "shapes" else low > -LEAST_GAIN
    return "as good" if equal else "open"


def _effect_text(group: Sequence[Comparison], whose: str = "") -> str:
    """The effect at the group's smallest fraction, with its interval over seeds and patients."""
    first = group[0]
    found = first.difference
    place = f"at {percent_text(first.fraction)}: " if len(group) > 1 else ""
    text = f"{place}Dice {signed_text(found.mean)}{whose}"
    if found.wide_low is None or found.wide_high is None:
        return f"{text}, no interval"
    text += f", 95% interval {signed_text(found.wide_low)} to {signed_text(found.wide_high)}"
    if (found.wide_low > 0 or found.wide_high < 0) and first.p_corrected >= SIGNIFICANCE:
        # Otherwise the interval alone would seem to rule out chance.
        text += f", corrected p {p_text(first.p_corrected)}"
    return text


def _numbers_text(comparison: Comparison) -> str:
    seeds, patients = comparison.difference.num_seeds, comparison.difference.num_patients
    text = f"{seeds} seed{'s' * (seeds != 1)}, {patients} patient{'s' * (patients != 1)}"
    if _leaves_out_chance(comparison):
        text += ", and a smaller share shows no such difference"
    return text


def signed_text(value: float) -> str:
    """A difference with its sign and three decimals: "+0.031", "−0.004"."""
    # Rounded first, plus 0, so that no zero is negative.
    return f"{round(value, 3) + 0.0:+.3f}".replace("-", "−")


def p_text(p: float) -> str:
    """A p-value in two digits: "0.12", "0.0024"."""
    return f"{p:.2g}"


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]
