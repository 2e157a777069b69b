"""How long steps of an evaluation show themselves, and its rows as a table on the terminal."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import (
    Progress as Bar,
)
from rich.table import Table

from anatogen.report.rows import Row, is_detail, label_text, number_text

Progress = Callable[[str, int, int], None]
_SECONDS_PER_PLAIN_LINE = 20.0


def silent(what: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


@contextmanager
def shown_progress(console: Console) -> Iterator[Progress]:
    """A progress callback that draws a bar for every step; in a log file, a line now and then."""
    if not console.is_terminal:
        last = started = time.perf_counter()

        def line(what: str, done: int, total: int) -> None:
            nonlocal last
            now = time.perf_counter()
            if done >= total or now > last + _SECONDS_PER_PLAIN_LINE:
                last = now
                print(f"{what}: {done} of {total} after {now - started:.0f} s", flush=True)

        yield line
        return
    columns = (TextColumn("{task.description}"), BarColumn(24), MofNCompleteColumn(), TimeElapsedColumn())
    with Bar(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def advance(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what, total=total)
            bars.update(tasks[what], completed=done, total=total)

        yield advance


def rows_table(rows: Sequence[Row]) -> Table:
    """The rows as a table, a group below the other; details and notes are left to the report."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("")
    for heading in ("value", "95% interval", "reference"):
        table.add_column(heading, justify="right", no_wrap=True)
    group = None
    for row in rows:
        if is_detail(row) and row.group == "fidelity":
            continue
        if row.group != group:
            group = row.group
            table.add_row(f"[bold]{group.capitalize()}[/bold]")
        # A longer unit is a remark, which the report has room for.
        unit = row.unit if len(row.unit) <= 5 else ""
        interval = "" if row.low is None else f"{number_text(row.low)} to {number_text(row.high)}"
        reference = "" if row.reference is None else number_text(row.reference)
        table.add_row(f"  {label_text(row)}", f"{number_text(row.value)} {unit}".strip(), interval, reference)
    return table
