"""One way to write each kind of number."""

import math

import pytest

from anatogen.report.numbers import (
    capitalised,
    count_of,
    interval_text,
    joined,
    number_text,
    p_text,
    percent_text,
    signed_text,
)


@pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
def test_what_is_no_number_is_a_dash(value: float | None) -> None:
    assert number_text(value) == "–"


@pytest.mark.parametrize(
    ("p", "text"), [(0.0, "p < 0.001"), (0.0009, "p < 0.001"), (0.0123, "p = 0.012"), (0.337, "p = 0.34")]
)
def test_p_values_say_no_more_digits_than_matter(p: float, text: str) -> None:
    assert p_text(p) == text


def test_percentages_round_to_the_decimals_asked_for() -> None:
    assert [percent_text(share) for share in (0.0, 0.125, 0.996, 1.0, None)] == [
        "0%",
        "12%",
        "100%",
        "100%",
        "–",
    ]
    assert [percent_text(share, 1) for share in (0.05, 0.125)] == ["5%", "12.5%"]


def test_differences_have_a_sign_and_no_negative_zero() -> None:
    assert [signed_text(value) for value in (0.031, -0.04, -0.001, None)] == ["+0.03", "−0.04", "+0.00", "–"]
    assert signed_text(-0.0041, 3) == "−0.004"


def test_intervals_need_both_ends() -> None:
    assert interval_text(0.2, 0.4, percent_text) == "20% to 40%"
    assert interval_text(1, 2) == "1 to 2"
    assert interval_text(None, 2) == ""


def test_words_agree_with_their_numbers() -> None:
    assert [count_of(number, "scan") for number in (0, 1, 2)] == ["0 scans", "1 scan", "2 scans"]
    assert [joined(names) for names in (["a"], ["a", "b"], ["a", "b", "c"])] == ["a", "a and b", "a, b and c"]
    assert capitalised("fréchet distance, KID") == "Fréchet distance, KID"
