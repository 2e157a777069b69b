"""Numbers as texts: one way to write each kind, in tables, sentences and on the terminal."""

import math
from collections.abc import Callable, Iterable, Sequence

MISSING = "–"


def number_text(value: float | None) -> str:
    """A number in three or four significant digits; a dash for None, and for what is not finite."""
    if value is None or not math.isfinite(value):
        return MISSING
    if value == round(value) and abs(value) < 1e5:
        return f"{value:,.0f}"
    if 1e-3 <= abs(value) < 1e5:
        return (
            f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}" if abs(value) >= 1 else f"{value:.3f}"
        )
    return f"{value:.2e}"


def percent_text(share: float | None, decimals: int = 0) -> str:
    """A share as a percentage without trailing zeros, "5%" or "12.5%"; a dash for None."""
    return MISSING if share is None else f"{round(100 * share, decimals):g}%"


def signed_text(value: float | None, decimals: int = 2) -> str:
    """A difference with its sign, "+0.03" or "−0.04"; a dash for None."""
    # Rounded first, plus 0, so that no zero is negative.
    return MISSING if value is None else f"{round(value, decimals) + 0.0:+.{decimals}f}".replace("-", "−")


def interval_text(
    low: float | None, high: float | None, text: Callable[[float | None], str] = number_text
) -> str:
    """Both ends of an interval, "0.2 to 0.4"; empty where there is none.

    Args:
        low: Lower end.
        high: Upper end.
        text: Writes each end.
    """
    return "" if low is None or high is None else f"{text(low)} to {text(high)}"


def p_text(p: float) -> str:
    """A p-value with its sign: "p < 0.001", "p = 0.012", "p = 0.34"."""
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}" if p < 0.1 else f"p = {p:.2f}"


def times(values: Iterable[float], sign: str = "x") -> str:
    """Sizes or spacings along several axes with up to four digits each, "32 x 256 x 256".

    Args:
        values: One for each axis.
        sign: Between them; "×" on a page.
    """
    return f" {sign} ".join(f"{value:.4g}" for value in values)


def duration_text(seconds: float) -> str:
    """A duration as people write it: "0.8 s", "42 s", "3 min 05 s", "2 h 10 min"."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def count_of(number: int, noun: str) -> str:
    """A number with its noun: "1 scan", "2 scans"."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def joined(names: Sequence[str]) -> str:
    """Names as a sentence lists them: "a", "a and b", "a, b and c"."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def capitalised(text: str) -> str:
    """The text with its first letter in upper case, the others as they are."""
    return text[:1].upper() + text[1:]
