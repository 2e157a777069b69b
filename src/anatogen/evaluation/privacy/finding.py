"""What the privacy audit's numbers amount to: facts and how they sound, without a sentence."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from anatogen.evaluation.privacy.membership import AUC_NAMES
from anatogen.evaluation.privacy.neighbours import RATE
from anatogen.evaluation.privacy.planted import KIND_TEXTS, row_name
from anatogen.evaluation.privacy.rows import CLOSER, CLOSER_P, COPIES, COPIES_P
from anatogen.report.rows import Row
from anatogen.report.verdicts import Tone

_LEAST_RECALL = 0.9
_MEMBERSHIP_AUC = 0.6
# One-sided, as the lower end of a 95% interval is.
_COPIES_P = 0.025
_CLOSER_P = 0.01


class Copying(StrEnum):
    """Whether synthetic scans copy training scans."""

    CANNOT_SEE = "cannot see"  # the audit misses copies that it planted itself
    COPIED = "copied"
    CANNOT_TELL = "cannot tell"  # more are flagged than expected, but with so few scans that may be chance
    NOT_FOUND = "not found"


@dataclass(frozen=True)
class PrivacyFinding:
    """What an audit found out.

    Attributes:
        copying: Whether scans are copied.
        num_synthetic: Scans that were audited.
        num_flagged: Those closer to a training scan than 95% of unseen scans are.
        num_identical: Those that are training scans, voxel for voxel: no share of them is chance.
        flagged_p: p-value of as many flagged scans.
        leans_to_train: Whether more synthetic scans are closer to training than to held-out scans than chance
            and the difference of these two sets explain.
        closer_share: Share of synthetic scans that are closer to training scans.
        closer_p: p-value of that share.
        recall: Share of the copies planted by the audit that it found, by kind.
        membership_auc: How well the bundle's loss tells who was in the training set, where it does.
    """

    copying: Copying
    num_synthetic: int
    num_flagged: int
    num_identical: int
    flagged_p: float
    leans_to_train: bool
    closer_share: float
    closer_p: float
    recall: dict[str, float]
    membership_auc: float | None

    @property
    def missed(self) -> list[str]:
        """Kinds of planted copies that the audit finds too few of."""
        return [kind for kind, share in self.recall.items() if share < _LEAST_RECALL]

    @property
    def tone(self) -> Tone:
        """How the audit sounds."""
        if self.copying in (Copying.CANNOT_SEE, Copying.CANNOT_TELL):
            return Tone.OPEN
        if self.copying is Copying.COPIED or self.leans_to_train:
            return Tone.BAD
        return Tone.GOOD if self.membership_auc is None else Tone.MIXED


def privacy_finding(rows: Sequence[Row], num_identical: int = 0) -> PrivacyFinding:
    """What an audit's rows amount to.

    Args:
        rows: Rows of the audit.
        num_identical: Synthetic scans that are training scans, voxel for voxel.
    """
    found = {row.name: row for row in rows}
    copies, closer = found[COPIES], found[CLOSER]
    flagged_p, closer_share, closer_p = found[COPIES_P].value, closer.value, found[CLOSER_P].value
    assert copies.count is not None and copies.low is not None
    assert flagged_p is not None and closer_share is not None and closer_p is not None
    recall = {kind: found[row_name(kind)].value or 0.0 for kind in KIND_TEXTS if row_name(kind) in found}
    above = copies.low > RATE
    if num_identical or (above and flagged_p < _COPIES_P):
        copying = Copying.COPIED
    elif above:
        copying = Copying.CANNOT_TELL
    else:
        copying = Copying.NOT_FOUND
    if min(recall["exact"], recall["flipped"]) < _LEAST_RECALL and not num_identical:
        copying = Copying.CANNOT_SEE
    # The two sets may differ in themselves; held-out scans show how much.
    floor = closer.reference_high
    told = [
        row.value
        for row in rows
        if row.name in AUC_NAMES.values()
        and row.value is not None
        and row.value > _MEMBERSHIP_AUC
        and (row.low or 0) > 0.5
    ]
    return PrivacyFinding(
        copying=copying,
        num_synthetic=copies.count[1],
        num_flagged=copies.count[0],
        num_identical=num_identical,
        flagged_p=flagged_p,
        leans_to_train=closer_p < _CLOSER_P and (floor is None or closer_share > floor),
        closer_share=closer_share,
        closer_p=closer_p,
        recall=recall,
        membership_auc=max(told, default=None),
    )
