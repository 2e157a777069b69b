"""How long readers took: a hint of how hard cases were, and of readings that were no readings."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from anatogen.study.analysis.answers import AnswerRow
from anatogen.study.analysis.intervals import with_counts, with_quartiles
from anatogen.study.analysis.ratings import SOURCES, Floats, source_of
from anatogen.study.analysis.statistic import Statistic


def time_statistics(rows: Sequence[AnswerRow]) -> list[Statistic]:
    """Seconds spent at a case by protocol, reader and source; repeats are left out, idle time is apart.

    Every answer of an item tells the time spent there so far, so the last one's is the item's.

    Args:
        rows: Answers of the whole study; of a pair the source is what is not real.

    Returns:
        "seconds_median", whose interval is the quartiles, for each source; for each reader and for all
        together "hours_active" and "hours_idle", repeats included.
    """
    statistics = []
    readers = list(dict.fromkeys(row.reader for row in rows))
    for protocol in dict.fromkeys(row.protocol for row in rows):
        asked = [row for row in rows if row.protocol == protocol]
        sources = {source_of(row) for row in asked}
        for reader in [*readers, ""]:
            shown = [row for row in asked if reader in ("", row.reader)]
            for source in SOURCES:
                if source in sources:
                    place = Statistic("times", "seconds_median", protocol, reader=reader, source=source)
                    first = [row for row in shown if row.repeat_of is None and source_of(row) == source]
                    statistics.append(with_quartiles(place, item_seconds(first)[None]))
            for name, idle in (("hours_active", False), ("hours_idle", True)):
                seconds = item_seconds(shown, idle=idle)
                total = with_counts(Statistic("times", name, protocol, reader=reader), seconds[None])
                statistics.append(replace(total, value=float(seconds.sum()) / 3600, note=""))
    return statistics


def item_seconds(rows: Sequence[AnswerRow], *, idle: bool = False) -> Floats:
    """The time of each item that has an answer, float64 (N,), active or idle."""
    items: dict[str, float] = {}
    for row in rows:
        if row.seconds_active is not None:
            seconds = (row.seconds_idle or 0.0) if idle else row.seconds_active
            items[row.item] = max(items.get(row.item, 0.0), seconds)
    return np.array(list(items.values()), dtype=np.float64)
