"""How everything that takes long shows itself: bars on a terminal, a line now and then in a log file."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars

from anatogen.report.numbers import duration_text

# What a computation tells: what runs, how much is done, and of how much.
Progress = Callable[[str, int, int], None]

_SECONDS_PER_PLAIN_LINE = 20.0


class Display(Protocol):
    """What shows progress; a `Progress` whose text can stand beside or instead of the count."""

    def __call__(self, what: str, done: float, total: float, text: str = "") -> None:
        """Shows the latest state.

        Args:
            what: The step that runs; each has a bar of its own.
            done: How much of it is done.
            total: How much there is to do.
            text: In place of "`done` of `total`".
        """


def silent(what: str, done: float, total: float, text: str = "") -> None:
    """A display that shows nothing."""


@contextmanager
def shown_progress(wanted: bool = True) -> Iterator[Display]:
    """A display on standard error, which leaves standard output to results.

    Args:
        wanted: False shows nothing.
    """
    console = Console(stderr=True)
    if not wanted:
        yield silent
        return
    if not console.is_terminal:
        yield _plain_display()
        return
    columns = (
        TextColumn("[bold]{task.description}"),
        BarColumn(24),
        TextColumn("{task.fields[count]}"),
        TimeRemainingColumn(compact=True, elapsed_when_finished=True),
    )
    with Bars(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: float, total: float, text: str = "") -> None:
            count = text or f"{done:g} of {total:g}"
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total, count=count)
            bars.update(tasks[what], total=total, completed=done, count=count)

        yield advance


def _plain_display() -> Display:
    started: dict[str, tuple[float, float]] = {}
    last = time.perf_counter()

    def line(what: str, done: float, total: float, text: str = "") -> None:
        nonlocal last
        now = time.perf_counter()
        start, done_at_start = started.setdefault(what, (now, done))
        if done < total and now < last + _SECONDS_PER_PLAIN_LINE:
            return
        last = now
        count = f"{done / total:.0%} · {text}" if text else f"{done:g} of {total:g}"
        if done >= total:
            count += f" after {duration_text(now - start)}"
        elif done > done_at_start:
            left = (now - start) * (total - done) / (done - done_at_start)
            count += f", {duration_text(left)} left"
        print(f"{what}: {count}", file=sys.stderr, flush=True)

    return line
