from dataclasses import replace

import pytest
from simulated_readers import simulated_rows

from anatogen.study.analysis.statistic import pick, pick_one
from anatogen.study.analysis.times import time_statistics


def test_the_last_answer_of_an_item_tells_its_time():
    rows = simulated_rows(["paper"], ["Ada"], 3, sources=("real",), repeat=0)
    timed = []
    for index, row in enumerate(rows):
        item, part = divmod(index, 3)
        timed.append(replace(row, seconds_active=(item + 1) * 10.0 + part, seconds_idle=60.0))
    numbers = time_statistics(timed)
    median = pick_one(numbers, name="seconds_median", reader="Ada", source="real")
    assert (median.low, median.value, median.high) == (17, 22, 27)
    assert pick_one(numbers, name="hours_active", reader="").value == pytest.approx((12 + 22 + 32) / 3600)
    assert pick_one(numbers, name="hours_idle", reader="").value == pytest.approx(3 / 60)


def test_repeats_count_for_the_hours_only():
    rows = simulated_rows(["paper"], number=20, repeat=0.2)
    numbers = time_statistics(rows)
    assert sum(number.num_cases for number in pick(numbers, name="seconds_median", reader="")) == 120
    assert pick_one(numbers, name="hours_active", reader="").num_cases == 144


def test_a_reader_who_has_not_begun_has_no_times():
    rows = simulated_rows(["paper"], ["Ada", "Bo"], 5)
    rows = [
        replace(row, value=None, seconds_active=None, seconds_idle=None) if row.reader == "Bo" else row
        for row in rows
    ]
    found = pick(time_statistics(rows), name="seconds_median", reader="Bo")
    assert len(found) == 3 and all(number.value is None and number.note == "no answers" for number in found)
