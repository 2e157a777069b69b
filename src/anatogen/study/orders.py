"""What each reader is shown in which order: shuffled cases, repeats far from their original, sides of pairs.

Protocols come one after the other, so that no reader jumps between questions. Everything follows from the
study's seed.
"""

from collections.abc import Mapping, Sequence

import torch

from anatogen.core.seeding import derived_generator
from anatogen.study.questions import Protocol
from anatogen.study.spec import Source
from anatogen.study.store import Item

# The source of a case and the case; of a pair the source that is not real, the left and the right case.
_Shown = tuple[str, str, str | None]


def random_names(number: int, *parts: int | str) -> list[str]:
    """Names of 16 hex digits, all different, that follow from the parts."""
    generator = derived_generator(*parts)
    names: dict[str, None] = {}
    while len(names) < number:
        names[f"{int(torch.randint(1 << 62, (1,), generator=generator)):016x}"] = None
    return list(names)


def shuffled(number: int, *parts: int | str) -> list[int]:
    """The numbers from 0 in an order that follows from the parts."""
    return torch.randperm(number, generator=derived_generator(*parts)).tolist()


def pairs_of(cases: Mapping[str, Source], seed: int) -> dict[Source, list[tuple[str, str]]]:
    """Pairs of a real case and another one, no case in two of them: what comes back would be known as real.

    Args:
        cases: Source of each case. Each source gets an equal part of the real ones, so with two of them half
            of their cases are in no pair.
        seed: Random seed of the study.

    Returns:
        For each source that is not real the pairs of its cases, the real case first.
    """
    by_source: dict[Source, list[str]] = {}
    for case, source in cases.items():
        by_source.setdefault(source, []).append(case)
    real = by_source.pop("real")
    order = shuffled(len(real), seed, "pairs")
    pairs = {}
    for number, (source, others) in enumerate(by_source.items()):
        mine = [real[index] for index in order[number :: len(by_source)]]
        theirs = [others[index] for index in shuffled(len(others), seed, "pairs", source)]
        pairs[source] = list(zip(mine, theirs, strict=False))
    return pairs


def reader_items(
    reader_id: int,
    name: str,
    cases: Mapping[str, Source],
    protocols: Sequence[Protocol],
    *,
    repeat: float,
    seed: int,
) -> list[Item]:
    """Everything that one reader is shown, in order.

    Args:
        reader_id: Id of the reader in the store.
        name: Name of the reader.
        cases: Source of each case.
        protocols: Protocols in the order in which the reader goes through them.
        repeat: Fraction of cases that come twice, at least a third of the protocol's cases later.
        seed: Random seed of the study.
    """
    items: list[Item] = []
    for protocol in protocols:
        parts = (seed, name, protocol.id)
        shown: list[_Shown] = [(source, case, None) for case, source in cases.items()]
        if protocol.kind == "pair":
            shown = _sided_pairs(cases, seed, parts)
        order = shuffled(len(shown), *parts, "order")
        places = _with_repeats([shown[index][0] for index in order], repeat, parts)
        names = random_names(len(places), *parts, "items")
        first: dict[int, str] = {}
        for item_id, place in zip(names, places, strict=True):
            _, case, other = shown[order[place]]
            items.append(
                Item(
                    id=item_id,
                    reader_id=reader_id,
                    position=len(items),
                    protocol=protocol.id,
                    case=case,
                    other_case=other,
                    repeat_of=first.get(place),
                )
            )
            first.setdefault(place, item_id)
    return items


def _sided_pairs(cases: Mapping[str, Source], seed: int, parts: tuple[int | str, ...]) -> list[_Shown]:
    """The pairs, the real case at the left in half of those of each source, by chance."""
    shown: list[_Shown] = []
    for source, pairs in pairs_of(cases, seed).items():
        # Of an odd number, which side has one more is by chance too.
        first = shuffled(2, *parts, "first side", source)[0]
        for rank, index in enumerate(shuffled(len(pairs), *parts, "sides", source)):
            real, other = pairs[index]
            left, right = (real, other) if (rank + first) % 2 else (other, real)
            shown.append((source, left, right))
    return shown


def _with_repeats(groups: Sequence[str], repeat: float, parts: tuple[int | str, ...]) -> list[int]:
    """Places 0 to N - 1 in order, some of them a second time, at least N // 3 places after the first.

    Every group repeats its share, as far as it has members early enough.
    """
    number = len(groups)
    gap = max(number // 3, 1)
    early: dict[str, list[int]] = {}
    for place in range(number - gap):
        early.setdefault(groups[place], []).append(place)
    keys = [(float(place), place) for place in range(number)]
    generator = derived_generator(*parts, "repeats")
    for group, places in sorted(early.items()):
        wanted = min(round(repeat * groups.count(group)), len(places))
        for index in torch.randperm(len(places), generator=generator).tolist()[:wanted]:
            place = places[index]
            # Between two originals, of which the first is at least `gap` after its own.
            slot = int(torch.randint(place + gap, number, (1,), generator=generator))
            keys.append((slot + 0.1 + 0.8 * float(torch.rand(1, generator=generator)), place))
    return [place for _, place in sorted(keys)]
