"""The findings of `doctor` on the terminal."""

from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from anatogen.doctor.diagnosis import Diagnosis
from anatogen.doctor.page import PAGE_NAME, summary

_COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}
_MOST_EXAMPLES = 3


def print_diagnosis(diagnosis: Diagnosis, out: Path | None, console: Console | None = None) -> None:
    """Prints what the folder holds, a table of findings, and where the page is.

    Args:
        diagnosis: Result of `examine`.
        out: Folder of the page, or None where none was written.
        console: Where to; default the terminal.
    """
    console = console or Console()
    # Text, not markup: names of files may hold brackets.
    for label, value in summary(diagnosis.facts).items():
        console.print(Text(f"  {label}: {value}"))
    if diagnosis.findings:
        table = Table(show_lines=True)
        table.add_column("")
        table.add_column("found", ratio=3, overflow="fold")
        table.add_column("what to do", ratio=3, overflow="fold")
        for finding in diagnosis.findings:
            examples = ", ".join(finding.names[:_MOST_EXAMPLES])
            more = len(finding.names) - _MOST_EXAMPLES
            found = Text(finding.title)
            if examples:
                found.append(f"\n{examples}{f' and {more} more' if more > 0 else ''}", "dim")
            todo = Text(finding.advice)
            for option in filter(None, (finding.option, finding.alternative)):
                todo.append(f"\n{option}", "bold")
            table.add_row(Text(finding.severity, _COLOURS[finding.severity]), found, todo)
        console.print(table)
    else:
        console.print("nothing was found that needs to be mended")
    if not diagnosis.is_usable:
        console.print("nothing can be prepared")
    if out is not None:
        console.print(Text(f"open {out / PAGE_NAME} (it names files: it stays with you)"))
