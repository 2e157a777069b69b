"""What a report's numbers say, in plain sentences: do scans look real, are they diverse, do they leak?"""

from collections.abc import Sequence

from anatogen.evaluation.privacy.verdict import Verdict
from anatogen.report.numbers import number_text
from anatogen.report.rows import (
    Row,
    is_detail,
    label_text,
    overlap_floor,
    ratio_to_floor,
    tells_apart,
)
from anatogen.report.verdicts import Answer, Tone

# The answer quotes the first of these that was measured: features that see anatomy come first.
_FIDELITY_HEADLINES = ("frechet_volumes", "frechet_slices", "frechet")
HOW_TO_AUDIT = (
    "To make one, give the generator's training scans and scans that it has not seen: --train and --holdout; "
    "a prepared dataset as REAL gives both by itself."
)


def fidelity_answer(rows: Sequence[Row]) -> Answer:
    """Do the scans look real? A measure tells them apart where its interval lies beyond the floor's."""
    question = "Do they look real?"
    judged = [row for row in rows if row.group == "fidelity" and _is_judged(row)]
    if not judged:
        return Answer(
            question, Tone.OPEN, "This was not measured.", "No distance has a floor to compare with."
        )
    apart = [row for row in judged if tells_apart(row)]
    headline = _first(_FIDELITY_HEADLINES, [row for row in judged if (ratio_to_floor(row) or 0) > 0])
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


def privacy_answer(verdict: Verdict | None) -> Answer:
    """Do the scans leak patients? The audit's verdict, or how to make one where none was made."""
    question = "Do they leak patients?"
    if verdict is None:
        return Answer(question, Tone.OPEN, "No privacy audit was made.", HOW_TO_AUDIT)
    headline, _, detail = verdict.text.partition(". ")
    return Answer(question, verdict.tone, f"{headline}.", detail)


def _is_judged(row: Row) -> bool:
    return not is_detail(row) and row.name != "constant_scans" and None not in (row.value, row.reference)


def _first(prefixes: Sequence[str], rows: Sequence[Row]) -> Row | None:
    """The first row whose name starts with the first prefix that fits any."""
    return next((row for prefix in prefixes for row in rows if row.name.startswith(prefix)), None)


def _worst_ratio(rows: Sequence[Row]) -> str:
    distances = [row for row in rows if row.better == "lower" and (ratio_to_floor(row) or 0) > 0]
    if not distances:
        return ""
    worst = max(distances, key=lambda row: ratio_to_floor(row) or 0)
    return f"Largest ratio: {ratio_to_floor(worst):.2g} ({worst.label})."


def _interval(row: Row) -> str:
    if row.low is None or row.high is None:
        return "no interval"
    return f"95% interval {number_text(row.low)} to {number_text(row.high)}"
