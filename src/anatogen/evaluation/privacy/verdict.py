"""The privacy audit's numbers in plain words."""

from collections.abc import Sequence
from typing import NamedTuple

from anatogen.report.rows import Row
from anatogen.report.verdicts import Tone

RATE = 0.05
_LEAST_RECALL = 0.9
_MEMBERSHIP_AUC = 0.6
# One-sided, as the lower end of a 95% interval is.
_COPIES_P = 0.025
_LEANING_P = 0.01
_NO_GUARANTEE = "An audit is no guarantee: a patient may be recognised by other means."


class Verdict(NamedTuple):
    """What an audit says, and how it sounds: "open" where it can't tell."""

    tone: Tone
    text: str


def privacy_verdict(
    rows: Sequence[Row], num_flagged: int, num_synthetic: int, num_identical: int = 0
) -> Verdict:
    """What an audit's rows say; always that no audit is a guarantee.

    Args:
        rows: Of the audit.
        num_flagged: Synthetic scans above the threshold.
        num_synthetic: All of them.
        num_identical: Those that are training scans, voxel for voxel: no share of them is chance.
    """
    found = {row.name: row for row in rows}
    recall = {name: found[f"planted_{name}"].value or 0.0 for name in ("exact", "flipped")}
    blind = [
        f"{value:.0%} of planted {name} copies" for name, value in recall.items() if value < _LEAST_RECALL
    ]
    if blind and not num_identical:
        return Verdict(
            Tone.OPEN,
            f"This audit proves nothing: it finds only {' and '.join(blind)}, so it is not able to see "
            f"copies here. {_NO_GUARANTEE}",
        )
    copies = found["copies"]
    counted = (
        f"{num_flagged} of {num_synthetic} synthetic scans are closer to a training scan than "
        f"{1 - RATE:.0%} of unseen scans are"
    )
    p_value = found["closer_to_train_p"].value
    # The two sets may differ in themselves; held-out scans show how much.
    floor = found["closer_to_train"].reference_high
    share = found["closer_to_train"].value
    leans = (
        p_value is not None
        and p_value < _LEANING_P
        and share is not None
        and (floor is None or share > floor)
    )
    above = copies.low is not None and copies.low > RATE
    chance = found["copies_p"].value
    copied = bool(num_identical) or (above and chance is not None and chance < _COPIES_P)
    if num_identical:
        text = (
            f"Synthetic scans copy training patients: {num_identical} of {num_synthetic} are training scans, "
            f"voxel for voxel; {counted}."
        )
    elif copied:
        text = f"Synthetic scans copy training patients: {counted}, where {RATE:.0%} are expected."
    elif above:
        text = (
            f"Too few scans to say whether patients are copied: {counted}, where {RATE:.0%} are expected. "
            f"The threshold is too uncertain to tell that from chance (p = {chance:.1g})."
        )
    else:
        finding = "No copies found, but a sign of a leak" if leans else "No sign of copying"
        text = f"{finding}: {counted}, and {RATE:.0%} are expected."
    if leans:
        text += (
            f" {share:.0%} of them are closer to training than to held-out scans (p = {p_value:.1g}); look "
            "at the closest pairs."
        )
    if not copied:
        weak = [
            row.label.removeprefix("Found of planted ")
            for row in rows
            if row.name.startswith("planted_") and row.better == "higher" and (row.value or 0) < _LEAST_RECALL
        ]
        if weak:
            text += f" It would miss many {' and '.join(weak)}."
    told = [
        row.value
        for row in rows
        if row.name.startswith("membership_") and row.name.endswith("_auc")
        if row.value is not None and row.value > _MEMBERSHIP_AUC and (row.low or 0) > 0.5
    ]
    if told:
        text += (
            f" The bundle's loss tells who was in the training set (AUC {max(told):.2f}): keep the bundle, "
            "and share scans only."
        )
    if copied:
        tone = Tone.BAD
    elif above:
        tone = Tone.OPEN
    elif leans:
        tone = Tone.BAD
    else:
        tone = Tone.MIXED if told else Tone.GOOD
    return Verdict(tone, f"{text} {_NO_GUARANTEE}")
