"""Processes beside this one: they import this package's functions, never the script that called it.

A started Python process runs the caller's script again, to find functions in it. A script that has no
`if __name__ == "__main__":` would then start everything again, and one read from standard input isn't there
to be run. All that processes work on here is in this package, so they need no script.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnContext, SpawnProcess
from typing import Any

# Two threads that start processes must not put back what the other one hid.
_LOCK = threading.RLock()
_ABSENT = object()


class _Process(SpawnProcess):
    def start(self) -> None:
        with without_script():
            super().start()


class _Context(SpawnContext):
    Process = _Process


# Spawn, not fork: forking a process that has threads (torch, a GPU) can hang.
SPAWN = _Context()


@contextmanager
def without_script() -> Iterator[None]:
    """Lets processes that are started within begin without the caller's script."""
    with _LOCK:
        main: Any = sys.modules["__main__"]
        hidden = {name: getattr(main, name, _ABSENT) for name in ("__file__", "__spec__")}
        main.__spec__ = None
        if hidden["__file__"] is not _ABSENT:
            del main.__file__
        try:
            yield
        finally:
            for name, value in hidden.items():
                if value is not _ABSENT:
                    setattr(main, name, value)
