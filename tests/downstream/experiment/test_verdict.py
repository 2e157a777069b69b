import pytest
from simulated import FRACTIONS, simulated_rows

from anatogen.downstream.experiment import statistics
from anatogen.downstream.experiment.statistics import ArmComparison, MeanEstimate, compare, scores_by_arm
from anatogen.downstream.experiment.verdict import Outcome, comparison_pairs, outcomes, verdict
from anatogen.downstream.experiment.wording import answer, controls_text, fractions_text
from anatogen.report.verdicts import Tone

NONE = (0, 0, 0, 0)
SMALL = (0.03, 0.02, 0, 0)


def _verdict(gains, **options):
    gains = {"scratch": NONE} | gains
    scores = scores_by_arm(simulated_rows(gains, **options), "dice")
    return verdict(compare(scores, comparison_pairs(list(gains))))


def _comparison(low, high, fraction=0.05, p=0.001, pair=("synthetic", "scratch")):
    mean = None if low is None else (low + high) / 2
    interval = None if low is None else (low, high)
    found = MeanEstimate(mean or 0.0, 0.01, (0.0, 0.0), interval, 1 if low is None else 3, 40, 0)
    return ArmComparison(*pair, fraction, found, p)


@pytest.mark.parametrize(
    ("low", "high", "p", "expected"),
    [
        (0.01, 0.05, 0.001, Outcome.BETTER),
        (-0.05, -0.01, 0.001, Outcome.WORSE),
        (0.01, 0.05, 0.06, Outcome.OPEN),
        (-0.05, -0.01, 0.06, Outcome.NO_GAIN),
        (-0.005, 0.005, 1.0, Outcome.NO_GAIN),
        (-0.03, 0.009, 1.0, Outcome.NO_GAIN),
        (-0.009, 0.011, 0.001, Outcome.OPEN),
        (None, None, 0.001, Outcome.OPEN),
    ],
)
def test_an_outcome_follows_from_interval_and_corrected_p(low, high, p, expected):
    assert outcomes([_comparison(low, high, p=p)]) == [expected]


def test_a_fraction_is_decided_only_where_all_smaller_ones_are():
    intervals = {0.2: (0.01, 0.03), 0.05: (0.02, 0.04), 0.4: (-0.02, 0.03), 1.0: (0.01, 0.02)}
    comparisons = [_comparison(*interval, fraction) for fraction, interval in intervals.items()]
    comparisons.append(_comparison(0.01, 0.02, 1.0, pair=("real", "scratch")))
    # 100% of another pair is not concerned.
    assert outcomes(comparisons) == [
        Outcome.BETTER,
        Outcome.BETTER,
        Outcome.OPEN,
        Outcome.OPEN,
        Outcome.BETTER,
    ]
    text = answer(verdict([_comparison(-0.004, 0.002), _comparison(0.01, 0.02, 0.1)])).detail
    assert "a smaller share shows no such difference" in text


def test_a_gain_with_few_labels_is_found_and_its_numbers_said():
    found = _verdict({"synthetic": SMALL, "shapes": NONE, "real": (0.06, 0.04, 0, 0)})
    assert found.tone is Tone.GOOD
    assert answer(found).headline == "Synthetic pre-training helps at 5-10% of the labels"
    assert answer(found).detail.startswith(
        "Synthetic pre-training helps at 5-10% of the labelled scans (at 5%: Dice +0.0"
    )
    assert "it adds less than 0.01 at 20% and above" in answer(found).detail
    text = controls_text(found)
    assert "Taking synthetic scans instead of random shapes helps at 5-10% of the labelled scans (at" in text
    assert "Taking real scans instead of synthetic ones helps at 5-10%" in text
    assert "anatomy" not in text


@pytest.mark.parametrize(
    ("shapes", "expected"),
    [
        (SMALL, "random shapes adds less than 0.01 at 5-10%"),
        ((0.06, 0.05, 0, 0), "random shapes hurts at 5-10%"),
    ],
)
def test_a_gain_that_shapes_give_too_is_not_due_to_anatomy(shapes, expected):
    text = controls_text(_verdict({"synthetic": SMALL, "shapes": shapes}))
    assert expected in text
    assert "can't be put down to the synthetic scans' anatomy" in text


def test_a_gain_on_shapes_that_chance_may_explain_is_not_put_down_to_anatomy():
    better = _comparison(0.02, 0.04)
    text = controls_text(verdict([better, _comparison(-0.01, 0.02, pair=("synthetic", "shapes"))]))
    assert "Whether taking synthetic scans instead of random shapes helps at 5% of the" in text
    assert "can't be put down to the synthetic scans' anatomy" in text
    text = controls_text(verdict([better, _comparison(-0.005, 0.02, pair=("real", "synthetic"))]))
    assert (
        "Whether taking real scans instead of synthetic ones helps at 5% of the labelled scans can't be told"
        in text
    )
    text = controls_text(verdict([better, _comparison(-0.015, 0.005, pair=("real", "synthetic"))]))
    assert "Taking real scans instead of synthetic ones adds less than 0.01 at 5%" in text


def test_no_gain_is_said_plainly():
    found = _verdict({"synthetic": NONE, "shapes": NONE, "real": SMALL}, seed_deviation=0.0)
    assert found.tone is Tone.BAD
    assert answer(found).headline == "Synthetic pre-training does not help"
    assert "adds less than 0.01 at 5-100% of the labelled scans" in answer(found).detail
    assert "Pre-training on real scans helps at 5-10%" in controls_text(found)
    assert "Pre-training on random shapes adds less than 0.01 at 5-100%" in controls_text(found)


def test_a_control_may_be_ahead_of_the_synthetic_arm():
    scratch = [_comparison(0.02, 0.04, fraction, pair=("real", "scratch")) for fraction in (0.05, 0.1)]
    found = verdict([_comparison(-0.005, 0.005), *scratch])
    assert (
        "Pre-training on real scans helps at 5-10% of the labelled scans (at 5%: Dice +0.030"
        in controls_text(found)
    )


def test_harm_is_said_plainly():
    assert answer(_verdict({"synthetic": (-0.03, -0.02, 0, 0)})).headline == (
        "Synthetic pre-training hurts at 5-10% of the labels"
    )
    both = _verdict({"synthetic": (-0.03, 0.02, 0, 0)})
    assert both.tone is Tone.MIXED
    assert (
        "helps at 10% of the labelled scans" in answer(both).detail
        and "it hurts at 5%" in answer(both).detail
    )


def test_what_can_t_be_told_is_said_with_its_numbers():
    one_seed = _verdict({"synthetic": SMALL}, num_seeds=1)
    assert one_seed.tone is Tone.OPEN
    assert answer(one_seed).headline.startswith("Can't tell whether synthetic pre-training helps at")
    assert "no interval; 1 seed, 40 patients" in answer(one_seed).detail
    few = _verdict({"synthetic": SMALL}, num_patients=5)
    assert few.tone is Tone.OPEN, "5 patients can flip their signs in 32 ways: never significant"
    assert "3 seeds, 5 patients" in answer(few).detail
    noisy = _verdict({"synthetic": SMALL}, seed_deviation=0.05)
    assert noisy.tone is Tone.OPEN


def test_without_results_there_is_no_verdict_yet():
    assert verdict([]).tone is Tone.OPEN
    assert answer(_verdict({"real": SMALL})).headline == "Can't tell yet whether synthetic pre-training helps"
    assert controls_text(_verdict({"synthetic": SMALL})) == ""


def test_experiments_without_an_effect_seldom_claim_one(monkeypatch):
    monkeypatch.setattr(statistics, "NUM_SIGN_FLIPS", 1000)
    claims = [
        _verdict(
            {"synthetic": NONE, "real": NONE},
            num_patients=15,
            fractions=FRACTIONS[:2],
            seed_deviation=0.004,
            seed=seed,
        ).tone
        in (Tone.GOOD, Tone.MIXED)
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
        ("real", "synthetic"),
    ]
    assert comparison_pairs(["real", "shapes"]) == []
