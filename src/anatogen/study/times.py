"""How long readers took: a hint of how hard cases were, and of readings that were no readings."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from anatogen.study.answers import AnswerRow
from anatogen.study.numbers import Number
from anatogen.study.ratings import SOURCES, source_of


def time_numbers(rows: Sequence[AnswerRow]) -> list[Number]:
    """Seconds spent at a case by protocol, reader and source; repeats are left out, idle time is apart.

    Every answer of an item tells the time spent there so far, so the last one's is the item's.

    Args:
        rows: Of the whole study; of a pair the source is what is not real.

    Returns:
        "seconds_median", whose interval is the quartiles, for each source; for each reader and for all
        together "hours_active" and "hours_idle", repeats included.
    """
    numbers = []
    readers = list(dict.fromkeys(row.reader for row in rows))
    for protocol in dict.fromkeys(row.protocol for row in rows):
        mine = [row for row in rows if row.protocol == protocol and row.seconds_active is not None]
        for reader in [*readers, ""]:
            shown = [row for row in mine if reader in ("", row.reader)]
            for source in SOURCES:
                if any(row.protocol == protocol and source_of(row) == source for row in rows):
                    first = [row for row in shown if row.repeat_of is None and source_of(row) == source]
                    numbers.append(_median(protocol, reader, source, item_seconds(first)))
            numbers.append(_total("hours_active", protocol, reader, item_seconds(shown)))
            numbers.append(_total("hours_idle", protocol, reader, item_seconds(shown, idle=True)))
    return numbers


def item_seconds(rows: Sequence[AnswerRow], *, idle: bool = False) -> list[float]:
    """The time of each item that has an answer, active or idle."""
    items: dict[str, float] = {}
    for row in rows:
        if row.seconds_active is not None:
            seconds = (row.seconds_idle or 0.0) if idle else row.seconds_active
            items[row.item] = max(items.get(row.item, 0.0), seconds)
    return list(items.values())


def _median(protocol: str, reader: str, source: str, seconds: list[float]) -> Number:
    place = Number("times", "seconds_median", protocol, reader=reader, group=source, level=0.5)
    if not seconds:
        return replace(place, note="no answers")
    low, median, high = np.quantile(seconds, [0.25, 0.5, 0.75]).tolist()
    return replace(place, value=median, low=low, high=high, num_cases=len(seconds), num_answers=len(seconds))


def _total(name: str, protocol: str, reader: str, seconds: list[float]) -> Number:
    return Number(
        section="times",
        name=name,
        protocol=protocol,
        reader=reader,
        value=sum(seconds) / 3600,
        num_cases=len(seconds),
        num_answers=len(seconds),
    )
