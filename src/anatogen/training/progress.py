"""How a running stage shows itself: a live line on a terminal, a plain line now and then in a log file."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

_SECONDS_PER_PLAIN_LINE = 20.0
_NOT_SHOWN = ("step", "minutes", "scans_per_second", "learning_rate")


class StageProgress:
    """Shows losses, speed and time left of one stage.

    Args:
        name: The stage.
        enabled: False shows nothing, for all processes but the first.
    """

    def __init__(self, name: str, enabled: bool = True) -> None:
        self.name = name
        self.enabled = enabled
        console = Console()
        self._plain_next = 0.0
        self._bar = None
        if enabled and console.is_terminal:
            columns = (
                TextColumn("[bold]{task.description}"),
                BarColumn(24),
                TextColumn("{task.fields[text]}"),
            )
            self._bar = Progress(*columns, console=console)
            self._task = self._bar.add_task(name, total=1.0, text="starting")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def show(self, progress: float, seconds: float, record: Mapping[str, float], epoch: int) -> None:
        """Shows the latest record.

        Args:
            progress: Share of the budget used, in [0, 1].
            seconds: Seconds spent on the stage.
            record: Step, losses and speed.
            epoch: Passes over the data.
        """
        if not self.enabled:
            return
        left = max(0.0, seconds * (1 / max(progress, 1e-6) - 1))
        losses = " ".join(f"{name} {value:.4g}" for name, value in record.items() if name not in _NOT_SHOWN)
        text = (
            f"step {record['step']:.0f} · epoch {epoch} · {losses} · "
            f"{record['scans_per_second']:.1f} scans/s · {clock(left)} left"
        )
        if self._bar is not None:
            self._bar.update(self._task, completed=min(progress, 1.0), text=text)
        elif time.perf_counter() >= self._plain_next or progress >= 1:
            print(f"{self.name} {min(progress, 1):4.0%} · {text}", flush=True)
            self._plain_next = time.perf_counter() + _SECONDS_PER_PLAIN_LINE


def clock(seconds: float) -> str:
    """Seconds as h:mm:ss or m:ss."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
