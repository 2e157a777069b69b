"""What a report's numbers say, in plain sentences: do scans look real, are they diverse, do they leak?"""

from collections.abc import Iterator, Sequence

from anatogen.evaluation.fidelity.measure import CONSTANT_SCANS, HEADLINES
from anatogen.evaluation.privacy.finding import Copying, PrivacyFinding
from anatogen.evaluation.privacy.neighbours import RATE
from anatogen.evaluation.privacy.planted import KIND_TEXTS
from anatogen.report.numbers import interval_text, joined, number_text, p_text
from anatogen.report.rows import Row, label_text, overlap_floor, ratio_to_floor, tells_apart
from anatogen.report.verdicts import Answer, Tone

NO_GUARANTEE = (
    "An audit is no guarantee: it finds copies like those that it planted, and a patient may be recognised "
    "by other means."
)
HOW_TO_AUDIT = (
    "To make one, give the generator's training scans and scans that it has not seen: --train and --holdout; "
    "a prepared dataset as REAL gives both by itself."
)
NOT_QUICK = "The quick evaluation has none: evaluate without --quick."


def judged_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows of fidelity that judge the scans: with a floor, and not said in short by another row."""
    return [
        row
        for row in rows
        if not row.is_detail and row.name != CONSTANT_SCANS and None not in (row.value, row.reference)
    ]


def fidelity_answer(rows: Sequence[Row]) -> Answer:
    """Do the scans look real? A measure tells them apart where its interval lies beyond the floor's."""
    question = "Do they look real?"
    judged = judged_rows(rows)
    if not judged:
        return Answer(
            question, Tone.OPEN, "This was not measured.", "No distance has a floor to compare with."
        )
    apart = [row for row in judged if tells_apart(row)]
    with_ratio = {row.name: row for row in judged if (ratio_to_floor(row) or 0) > 0}
    headline = next((with_ratio[name] for name in HEADLINES if name in with_ratio), None)
    count = f"{len(apart)} of {len(judged)} measures tell synthetic from real scans"
    tone = Tone.GOOD if not apart else Tone.MIXED if 2 * len(apart) <= len(judged) else Tone.BAD
    if headline is None:
        return Answer(question, tone, f"{count}.", _worst_ratio(judged))
    ratio = ratio_to_floor(headline)
    assert headline.value is not None and headline.reference is not None and ratio is not None
    return Answer(
        question,
        tone,
        f"Synthetic scans lie {ratio:.2g} times as far from real scans as real scans lie from each other"
        + ("." if tells_apart(headline) else ", which is within chance."),
        f"{label_text(headline)}: {number_text(headline.value)} ({_interval(headline)}), real against real "
        f"{number_text(headline.reference)}. {count}. {_worst_ratio(judged)}".strip(),
    )


def diversity_answer(rows: Sequence[Row]) -> Answer:
    """Are the scans as diverse as real ones? What counts is the gap to the real scans' own similarity."""
    question = "Are they diverse?"
    found = {row.name: row for row in rows if row.value is not None}
    similarity, gap = found.get("ms_ssim"), found.get("ms_ssim_gap")
    if similarity is None or gap is None or similarity.reference is None:
        return Answer(
            question, Tone.OPEN, "This was not measured.", "No similarity of random pairs is known."
        )
    assert similarity.value is not None and gap.value is not None
    floor = "" if gap.reference is None else f"; two halves of the real set differ by {gap.reference:.2g}"
    detail = (
        f"MS-SSIM within random pairs: synthetic {number_text(similarity.value)} ({_interval(similarity)}), "
        f"real {number_text(similarity.reference)}. A gap of {gap.value:.2g}{floor}."
    )
    same = overlap_floor(similarity) if gap.reference is None else not tells_apart(gap)
    if same:
        return Answer(question, Tone.GOOD, "They differ from each other as much as real scans do.", detail)
    if similarity.value < similarity.reference:
        headline = "They differ from each other more than real scans do; noise alone can do that."
        return Answer(question, Tone.MIXED, headline, detail)
    # Similarity ends at 1, where every scan is the same.
    lost = gap.value / (1 - similarity.reference)
    headline = f"They are more alike than real scans: {lost:.0%} of the way to one scan repeated."
    return Answer(question, Tone.BAD if lost > 0.5 else Tone.MIXED, headline, detail)


def privacy_answer(finding: PrivacyFinding | None, quick: bool = False) -> Answer:
    """Do the scans leak patients? What the audit found, or how to make one where none was made."""
    question = "Do they leak patients?"
    if finding is None:
        return Answer(question, Tone.OPEN, "No privacy audit was made.", NOT_QUICK if quick else HOW_TO_AUDIT)
    details = () if finding.copying is Copying.CANNOT_SEE else _privacy_details(finding)
    return Answer(question, finding.tone, _privacy_headline(finding), " ".join([*details, NO_GUARANTEE]))


def _privacy_headline(finding: PrivacyFinding) -> str:
    flagged = (
        f"{finding.num_flagged} of {finding.num_synthetic} synthetic scans are closer to a training scan "
        f"than {1 - RATE:.0%} of unseen scans are"
    )
    match finding.copying:
        case Copying.CANNOT_SEE:
            missed = joined(
                [
                    f"{finding.recall[kind]:.0%} of planted {kind} copies"
                    for kind in ("exact", "flipped")
                    if kind in finding.missed
                ]
            )
            return f"This audit proves nothing: it finds only {missed}, so it is not able to see copies here."
        case Copying.COPIED if finding.num_identical:
            return (
                f"Synthetic scans copy training patients: {finding.num_identical} of {finding.num_synthetic} "
                f"are training scans, voxel for voxel; {flagged}."
            )
        case Copying.COPIED:
            return f"Synthetic scans copy training patients: {flagged}, where {RATE:.0%} are expected."
        case Copying.CANNOT_TELL:
            return (
                f"Too few scans to say whether patients are copied: {flagged}, where {RATE:.0%} are expected."
            )
        case Copying.NOT_FOUND:
            found = (
                "No copies found, but a sign of a leak" if finding.leans_to_train else "No sign of copying"
            )
            return f"{found}: {flagged}, and {RATE:.0%} are expected."


def _privacy_details(finding: PrivacyFinding) -> Iterator[str]:
    """What else is known where the audit is able to see copies."""
    if finding.copying is Copying.CANNOT_TELL:
        yield f"The threshold is too uncertain to tell that from chance ({p_text(finding.flagged_p)})."
    if finding.leans_to_train:
        yield (
            f"{finding.closer_share:.0%} of them are closer to training than to held-out scans "
            f"({p_text(finding.closer_p)}); look at the closest pairs."
        )
    if finding.missed and finding.copying is not Copying.COPIED:
        yield f"It would miss many {joined([KIND_TEXTS[kind] for kind in finding.missed])}."
    if finding.membership_auc is not None:
        yield (
            f"The bundle's loss tells who was in the training set (AUC {finding.membership_auc:.2f}): keep "
            "the bundle, and share scans only."
        )


def _worst_ratio(rows: Sequence[Row]) -> str:
    distances = [row for row in rows if row.better == "lower" and (ratio_to_floor(row) or 0) > 0]
    if not distances:
        return ""
    worst = max(distances, key=lambda row: ratio_to_floor(row) or 0)
    return f"Largest ratio: {ratio_to_floor(worst):.2g} ({worst.label})."


def _interval(row: Row) -> str:
    ends = interval_text(row.low, row.high)
    return f"95% interval {ends}" if ends else "no interval"
