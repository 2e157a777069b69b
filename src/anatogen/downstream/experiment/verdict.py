"""What the experiment's paired comparisons say: outcomes and what follows from them, without texts."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from anatogen.downstream.experiment.statistics import ArmComparison
from anatogen.report.verdicts import Tone

SCRATCH, TREATMENT, SHAPES, REAL = "scratch", "synthetic", "shapes", "real"
LEAST_GAIN = 0.01
SIGNIFICANCE = 0.05

# What the gain of synthetic scans is due to, and whether real scans would give more.
CONTROLS_OF_GAIN = ((TREATMENT, SHAPES), (REAL, TREATMENT))
# Where there is no gain: whether anything would have helped.
CONTROLS_OF_NONE = ((SHAPES, SCRATCH), (REAL, SCRATCH))


class Outcome(StrEnum):
    """What a comparison of mean Dice says about its first arm; see `outcomes`."""

    BETTER = "better"
    WORSE = "worse"
    OPEN = "open"
    NO_GAIN = "no gain"


Groups = Mapping[Outcome, Sequence[ArmComparison]]


@dataclass(frozen=True)
class ExperimentVerdict:
    """What the experiment says of synthetic pre-training; comparisons are sorted by fraction.

    Attributes:
        tested: Fractions at which anything was compared.
        effect: Comparisons of the synthetic arm with training from scratch by outcome, in the order of
            `Outcome`; empty without results of both.
        controls: Comparisons of `CONTROLS_OF_GAIN` at fractions where synthetic scans help, by pair of arms;
            those of `CONTROLS_OF_NONE` if they help nowhere.
    """

    tested: Sequence[float]
    effect: Groups
    controls: Mapping[tuple[str, str], Groups]

    @property
    def tone(self) -> Tone:
        """Good if it helps and hurts nowhere, mixed if it does both, bad if it does not help."""
        if Outcome.BETTER in self.effect:
            return Tone.MIXED if Outcome.WORSE in self.effect else Tone.GOOD
        if not self.effect or (Outcome.OPEN in self.effect and Outcome.WORSE not in self.effect):
            return Tone.OPEN
        return Tone.BAD


def comparison_pairs(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Every arm against scratch, then the synthetic one and its controls, as far as they are there."""
    pairs = [(arm, SCRATCH) for arm in arms if arm != SCRATCH and SCRATCH in arms]
    return pairs + [pair for pair in CONTROLS_OF_GAIN if set(pair) <= set(arms)]


def outcomes(comparisons: Sequence[ArmComparison]) -> list[Outcome]:
    """What each comparison of mean Dice says about its first arm.

    * Better or worse: the 95% interval over seeds and patients leaves out 0; so does chance among all
      comparisons (p after Holm's correction below 0.05); and the same pair was decided at every smaller
      fraction. Few labels are where pre-training should show, so fractions are tested in this order, and
      each pair errs in 5% of experiments however many fractions it has (fixed-sequence test: Maurer et al.
      1995, Westfall and Krishen 2001).
    * No gain: the interval ends below 0.01, so that whatever is gained is too little to matter.
    * Open: all else, and whatever has one seed or one patient only.

    Args:
        comparisons: All that were made, in any order; the outcomes have the same.
    """
    found: dict[int, Outcome] = {}
    undecided: set[tuple[str, str]] = set()
    for number in sorted(range(len(comparisons)), key=lambda number: comparisons[number].fraction):
        comparison = comparisons[number]
        pair, interval = (comparison.arm, comparison.other), comparison.difference.over_seeds
        if is_significant(comparison) and pair not in undecided:
            found[number] = Outcome.BETTER if comparison.difference.mean > 0 else Outcome.WORSE
            continue
        undecided.add(pair)
        has_no_gain = interval is not None and interval[1] < LEAST_GAIN
        found[number] = Outcome.NO_GAIN if has_no_gain else Outcome.OPEN
    return [found[number] for number in range(len(comparisons))]


def leaves_out_zero(comparison: ArmComparison) -> bool:
    """Whether the interval over seeds and patients does; False where there is none."""
    interval = comparison.difference.over_seeds
    return interval is not None and not interval[0] <= 0 <= interval[1]


def is_significant(comparison: ArmComparison) -> bool:
    """Whether neither the interval over seeds and patients nor the corrected p allows for chance alone."""
    return leaves_out_zero(comparison) and comparison.p_corrected < SIGNIFICANCE


def verdict(comparisons: Sequence[ArmComparison]) -> ExperimentVerdict:
    """The verdict from the comparisons of mean Dice, those of `comparison_pairs`."""
    tested = sorted({item.fraction for item in comparisons})
    effect = _by_outcome(comparisons, (TREATMENT, SCRATCH), tested)
    helped = [item.fraction for item in effect.get(Outcome.BETTER, ())]
    controls = {}
    if effect:
        # A pair's smaller fractions, where synthetic scans don't help, leave none of these undecided.
        for pair in CONTROLS_OF_GAIN if helped else CONTROLS_OF_NONE:
            controls[pair] = _by_outcome(comparisons, pair, helped or tested)
    return ExperimentVerdict(tested, effect, controls)


def _by_outcome(
    comparisons: Sequence[ArmComparison], pair: tuple[str, str], fractions: Sequence[float]
) -> dict[Outcome, list[ArmComparison]]:
    """The comparisons of a pair of arms at some fractions, sorted by fraction."""
    own = [item for item in comparisons if (item.arm, item.other) == pair and item.fraction in fractions]
    own.sort(key=lambda item: item.fraction)
    found = list(zip(own, outcomes(own), strict=True))
    groups = {outcome: [item for item, its in found if its is outcome] for outcome in Outcome}
    return {outcome: group for outcome, group in groups.items() if group}
