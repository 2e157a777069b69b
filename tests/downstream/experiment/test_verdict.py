import pytest
from simulated import FRACTIONS, simulated_rows

from anatogen.downstream.experiment.statistics import Comparison, Estimate, compare, scores_by_arm
from anatogen.downstream.experiment.verdict import comparison_pairs, fractions_text, outcomes, verdict

NONE = (0, 0, 0, 0)
SMALL = (0.03, 0.02, 0, 0)


def _verdict(gains, **options):
    gains = {"scratch": NONE} | gains
    scores = scores_by_arm(simulated_rows(gains, **options), "dice")
    return verdict(compare(scores, comparison_pairs(list(gains))))


def _comparison(low, high, fraction=0.05, p=0.001, pair=("synthetic", "scratch")):
    mean = None if low is None else (low + high) / 2
    found = Estimate(mean or 0.0, 0.01, 0.0, 0.0, low, high, 1 if low is None else 3, 40, 0)
    return Comparison(*pair, fraction, found, p, p)


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        (0.01, 0.05, 0.001, "better"),
        (-0.05, -0.01, 0.001, "worse"),
        (0.01, 0.05, 0.06, "open"),
        (-0.05, -0.01, 0.06, "no gain"),
        (-0.005, 0.005, 1.0, "no gain"),
        (-0.03, 0.009, 1.0, "no gain"),
        (-0.009, 0.011, 0.001, "open"),
        (None, None, 0.001, "open"),
    ],
)
def test_an_outcome_follows_from_interval_and_corrected_p(low, high, p, expected):
    assert outcomes([_comparison(low, high, p=p)]) == [expected]


def test_a_fraction_is_decided_only_where_all_smaller_ones_are():
    intervals = {0.2: (0.01, 0.03), 0.05: (0.02, 0.04), 0.4: (-0.02, 0.03), 1.0: (0.01, 0.02)}
    comparisons = [_comparison(*interval, fraction) for fraction, interval in intervals.items()]
    comparisons.append(_comparison(0.01, 0.02, 1.0, pair=("real", "scratch")))
    # 100% of another pair is not concerned.
    assert outcomes(comparisons) == ["better", "better", "open", "open", "better"]
    text = verdict([_comparison(-0.004, 0.002), _comparison(0.01, 0.02, 0.1)]).text
    assert "a smaller share shows no such difference" in text


def test_a_gain_with_few_labels_is_found_and_its_numbers_said():
    found = _verdict({"synthetic": SMALL, "shapes": NONE, "real": (0.06, 0.04, 0, 0)})
    assert found.tone == "good"
    assert found.title == "Synthetic pre-training helps at 5-10% of the labels"
    assert found.text.startswith(
        "Synthetic pre-training helps at 5-10% of the labelled scans (at 5%: Dice +0.0"
    )
    assert "it adds less than 0.01 at 20% and above" in found.text
    assert "Random shapes do worse at 5-10%" in found.controls
    assert "Real scans help more at 5-10%" in found.controls


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (SMALL, "Random shapes do as well at 5-10%"),
        ((0.05, 0.04, 0, 0), "Random shapes do even better at 5-10%"),
    ],
)
def test_a_gain_that_shapes_give_too_is_not_due_to_anatomy(shapes, expected):
    found = _verdict({"synthetic": SMALL, "shapes": shapes})
    assert expected in found.controls
    assert "not due to the synthetic scans' anatomy" in found.controls


def test_a_gain_on_shapes_that_chance_may_explain_is_not_put_down_to_anatomy():
    better = _comparison(0.02, 0.04)
    found = verdict([better, _comparison(-0.01, 0.02, pair=("synthetic", "shapes"))])
    assert "not shown to beat random shapes at 5%" in found.controls
    found = verdict([better, _comparison(-0.02, 0.005, pair=("synthetic", "real"))])
    assert "Whether real scans would help more at 5% can't be told" in found.controls
    found = verdict([better, _comparison(-0.005, 0.015, pair=("synthetic", "real"))])
    assert "Real scans would not have gained 0.01 more at 5%" in found.controls


def test_no_gain_is_said_plainly():
    found = _verdict({"synthetic": NONE, "shapes": NONE, "real": SMALL}, seed_deviation=0.0)
    assert found.tone == "bad"
    assert found.title == "Synthetic pre-training does not help"
    assert "adds less than 0.01 at 5-100% of the labelled scans" in found.text
    assert "Real scans help at 5-10%" in found.controls
    assert "Random shapes are not shown to help either" in found.controls


def test_harm_is_said_plainly():
    assert _verdict({"synthetic": (-0.03, -0.02, 0, 0)}).title == (
        "Synthetic pre-training hurts at 5-10% of the labels"
    )
    both = _verdict({"synthetic": (-0.03, 0.02, 0, 0)})
    assert both.tone == "mixed"
    assert "helps at 10% of the labelled scans" in both.text and "it hurts at 5%" in both.text


def test_what_can_t_be_told_is_said_with_its_numbers():
    one_seed = _verdict({"synthetic": SMALL}, num_seeds=1)
    assert one_seed.tone == "open"
    assert one_seed.title == "Can't tell whether synthetic pre-training helps"
    assert "no interval; 1 seed, 40 patients" in one_seed.text
    few = _verdict({"synthetic": SMALL}, num_patients=5)
    assert few.tone == "open", "5 patients can flip their signs in 32 ways: never significant"
    assert "3 seeds, 5 patients" in few.text
    noisy = _verdict({"synthetic": SMALL}, seed_deviation=0.05)
    assert noisy.tone == "open"


def test_without_results_there_is_no_verdict_yet():
    assert verdict([]).tone == "open"
    assert _verdict({"real": SMALL}).title == "Can't tell yet whether synthetic pre-training helps"
    assert _verdict({"synthetic": SMALL}).controls == ""


def test_experiments_without_an_effect_seldom_claim_one():
    claims = [
        _verdict({"synthetic": NONE, "real": NONE}, num_patients=15, seed_deviation=0.004, seed=seed).tone
        in ("good", "mixed")
        for seed in range(40)
    ]
    # 2.5% are expected; more than 4 of 40 happen once in 300 such tests.
    assert sum(claims) <= 4


@pytest.mark.parametrize(
    ("fractions", "expected"),
    [
        ([0.05], "5%"),
        ([0.05, 0.1], "5-10%"),
        ([0.05, 0.2], "5% and 20%"),
        ([0.2, 1.0], "20% and above"),
        ([1.0], "100%"),
        ([0.05, 0.2, 1.0], "5% and 20% and above"),
        (FRACTIONS, "5-100%"),
    ],
)
def test_fractions_are_said_as_people_say_them(fractions, expected):
    assert fractions_text(fractions, FRACTIONS) == expected


def test_every_arm_is_compared_with_scratch_and_synthetic_scans_with_the_controls():
    assert comparison_pairs(["scratch", "synthetic", "real", "shapes"]) == [
        ("synthetic", "scratch"),
        ("real", "scratch"),
        ("shapes", "scratch"),
        ("synthetic", "shapes"),
        ("synthetic", "real"),
    ]
    assert comparison_pairs(["real", "shapes"]) == []
