from collections import Counter
from itertools import pairwise

import pytest

from anatogen.study.orders import pairs_of, random_names, reader_items
from anatogen.study.questions import load_protocols

SOURCES = ("real", "reconstructed", "synthetic")


def _cases(per_source, sources=SOURCES):
    names = random_names(per_source * len(sources), "test")
    return {name: sources[index % len(sources)] for index, name in enumerate(names)}


def _items(cases, protocols=("paper",), *, name="ada", repeat=0.15, seed=1):
    return reader_items(1, name, cases, load_protocols(protocols), repeat=repeat, seed=seed)


@pytest.mark.parametrize("per_source", [1, 2, 5, 20, 67])
@pytest.mark.parametrize("repeat", [0.0, 0.1, 0.2, 0.5])
def test_every_case_comes_once_and_repeats_come_far_from_their_original(per_source, repeat):
    cases = _cases(per_source)
    items = _items(cases, repeat=repeat)
    originals = [item for item in items if item.repeat_of is None]
    repeats = [item for item in items if item.repeat_of is not None]
    assert sorted(item.case for item in originals) == sorted(cases)
    assert [item.position for item in items] == list(range(len(items)))
    by_id = {item.id: item for item in items}
    for item in repeats:
        original = by_id[item.repeat_of]
        assert (original.case, original.repeat_of) == (item.case, None)
        assert item.position - original.position > max(len(cases) // 3, 1)
    assert max(Counter(item.case for item in items).values()) <= 2
    if per_source == 20:
        # The same share of every source.
        assert Counter(cases[item.case] for item in repeats) == {
            source: count for source in SOURCES if (count := round(repeat * per_source))
        }


def test_readers_see_the_same_cases_in_orders_of_their_own():
    cases = _cases(20)
    ada, bo = (_items(cases, name=name) for name in ("ada", "bo"))
    assert [item.case for item in ada] != [item.case for item in bo]
    assert {item.id for item in ada}.isdisjoint(item.id for item in bo)


def test_the_seed_fixes_everything():
    cases = _cases(10)
    everything = ("paper", "turing", "2afc")
    first, again, other = (_items(cases, everything, seed=seed) for seed in (3, 3, 4))
    assert first == again
    assert [item.case for item in first] != [item.case for item in other]


def test_the_order_does_not_tell_the_source():
    """Early places hold every source about equally often, over many seeds."""
    cases = _cases(10)
    early = Counter(cases[i.case] for seed in range(100) for i in _items(cases, repeat=0, seed=seed)[:10])
    # 1,000 places, a third each: 333 with a standard deviation below 15.
    assert all(abs(count - 1000 / 3) < 60 for count in early.values())
    runs = [
        sum(cases[a.case] == cases[b.case] for a, b in pairwise(_items(cases, repeat=0, seed=seed)))
        for seed in range(100)
    ]
    assert abs(sum(runs) / len(runs) - 29 * 9 / 29) < 1


@pytest.mark.parametrize("per_source", [4, 7])
@pytest.mark.parametrize("sources", [SOURCES, ("real", "synthetic")])
def test_pairs_hold_one_real_case_and_sides_are_balanced_for_each_source(sources, per_source):
    cases = _cases(per_source, sources)
    items = _items(cases, ("2afc",), repeat=0)
    assert len(items) == per_source
    shown = [case for item in items for case in (item.case, item.other_case)]
    assert len(set(shown)) == len(shown), "a case that comes twice in pairs gives itself away as real"
    left, pairs = Counter(), Counter()
    for item in items:
        found = {cases[item.case], cases[item.other_case]}
        assert len(found) == 2 and "real" in found
        (other,) = found - {"real"}
        pairs[other] += 1
        left[other] += cases[item.case] == "real"
    assert set(pairs) == set(sources) - {"real"}
    assert max(pairs.values()) - min(pairs.values()) <= 1
    assert all(left[source] in (pairs[source] // 2, (pairs[source] + 1) // 2) for source in pairs)


def test_pairs_are_the_same_for_all_readers_but_sides_are_not():
    cases = _cases(20)
    ada, bo = (_items(cases, ("2afc",), name=name) for name in ("ada", "bo"))
    assert {frozenset((i.case, i.other_case)) for i in ada} == {frozenset((i.case, i.other_case)) for i in bo}
    assert {(i.case, i.other_case) for i in ada} != {(i.case, i.other_case) for i in bo}
    pairs = [pair for pairs in pairs_of(cases, 1).values() for pair in pairs]
    assert {frozenset(pair) for pair in pairs} == {frozenset((i.case, i.other_case)) for i in ada}


def test_repeated_pairs_keep_their_sides():
    items = _items(_cases(20), ("2afc",), repeat=0.5)
    by_id = {item.id: item for item in items}
    repeats = [item for item in items if item.repeat_of]
    assert repeats
    assert all(
        (item.case, item.other_case) == (by_id[item.repeat_of].case, by_id[item.repeat_of].other_case)
        for item in repeats
    )


def test_protocols_come_one_after_the_other():
    items = _items(_cases(5), ("turing", "2afc", "paper"))
    order = [item.protocol for item in items]
    assert list(dict.fromkeys(order)) == ["turing", "2afc", "paper"]
    assert sum(a != b for a, b in pairwise(order)) == 2
