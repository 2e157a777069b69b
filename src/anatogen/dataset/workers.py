"""Worker processes: results in order, progress with time left, and a cause when one dies."""

import itertools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from multiprocessing.connection import wait
from types import TracebackType
from typing import TypeVar

from anatogen.core.errors import UserError
from anatogen.core.processes import SPAWN
from anatogen.report.progress import shown_progress

TaskT = TypeVar("TaskT")
ResultT = TypeVar("ResultT")


def available_cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class Workers:
    """A pool of processes that serves several passes; a context manager.

    Args:
        num_workers: Processes; None for one per core. With 1 everything runs in the calling process.
        progress: Whether to show it.

    Raises:
        UserError: If there would be no worker.
    """

    def __init__(self, num_workers: int | None, progress: bool) -> None:
        if num_workers is not None and num_workers < 1:
            raise UserError(f"workers is {num_workers}: it must be at least 1")
        self._num_workers = num_workers or available_cores()
        self._progress = progress
        self._pool: ProcessPoolExecutor | None = None

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=kind is None, cancel_futures=True)

    def map(
        self,
        function: Callable[[TaskT], ResultT],
        tasks: Sequence[TaskT],
        names: Sequence[str],
        description: str,
    ) -> list[ResultT]:
        """Applies a function of this package to each task; results in the tasks' order.

        Args:
            function: Top level of a module, so that processes can find it.
            tasks: Arguments that can be pickled.
            names: What each task works on, for the message when it fails.
            description: Stands before the progress bar.

        Raises:
            UserError: If a process died, or memory or disk ran out, naming the scan it worked on.
        """
        with shown_progress(self._progress) as display:
            counter = itertools.count()

            def advance() -> None:
                display(description, next(counter), len(tasks))

            advance()
            if self._num_workers == 1 or len(tasks) <= 1:
                results = []
                for task, name in zip(tasks, names, strict=True):
                    results.append(_outcome(partial(function, task), name))
                    advance()
                return results
            results_by_task: dict[int, ResultT] = {}
            pending = list(range(len(tasks)))
            while pending:
                broken = self._run_in_pool(function, tasks, names, pending, results_by_task, advance)
                pending = [index for index in pending if index not in results_by_task]
                if broken:
                    # The pool can't tell whose task killed it, but it was among the first unfinished. Alone,
                    # the guilty one shows itself, and one that only lacked memory beside others passes.
                    if not _processes_start():
                        self._num_workers = 1
                        for index in pending:
                            results_by_task[index] = _outcome(partial(function, tasks[index]), names[index])
                            advance()
                        break
                    for index in pending[: self._num_workers]:
                        results_by_task[index] = _run_alone(function, tasks[index], names[index])
                        advance()
                    pending = pending[self._num_workers :]
            return [results_by_task[index] for index in range(len(tasks))]

    def _run_in_pool(
        self,
        function: Callable[[TaskT], ResultT],
        tasks: Sequence[TaskT],
        names: Sequence[str],
        pending: Sequence[int],
        results: dict[int, ResultT],
        advance: Callable[[], None],
    ) -> bool:
        """Fills in results; whether the pool broke before all were there."""

        def done(future: Future[ResultT]) -> None:
            if not future.cancelled() and future.exception() is None:
                advance()

        if self._pool is None:
            self._pool = ProcessPoolExecutor(self._num_workers, SPAWN, initializer=_start_worker)
        futures: dict[int, Future[ResultT]] = {}
        broken = False
        try:
            for index in pending:
                futures[index] = self._pool.submit(function, tasks[index])
                futures[index].add_done_callback(done)
        except BrokenProcessPool:
            broken = True
        for index, future in futures.items():
            try:
                results[index] = _outcome(future.result, names[index])
            except BrokenProcessPool:
                broken = True
        if broken:
            self._pool.shutdown(wait=True)
            self._pool = None
        return broken


def _outcome(compute: Callable[[], ResultT], name: str) -> ResultT:
    try:
        return compute()
    except (UserError, BrokenProcessPool):
        raise
    except MemoryError as error:
        raise UserError(f"{name}: memory ran out; use fewer workers, or leave this scan out") from error
    except OSError as error:
        raise UserError(f"{name}: {error.strerror or error}") from error
    except Exception as error:
        error.add_note(f"while working on {name}")
        raise


def _processes_start() -> bool:
    """Whether a process gets as far as to take a task: where none does, no scan is to blame."""
    with ProcessPoolExecutor(1, SPAWN, initializer=_start_worker) as pool:
        try:
            pool.submit(available_cores).result()
        except BrokenProcessPool:
            return False
    return True


def _run_alone(function: Callable[[TaskT], ResultT], task: TaskT, name: str) -> ResultT:
    with ProcessPoolExecutor(1, SPAWN, initializer=_start_worker) as pool:
        try:
            return _outcome(pool.submit(function, task).result, name)
        except BrokenProcessPool:
            raise UserError(
                f"{name}: the process that worked on it died; most likely memory ran out. Leave this scan "
                "out, or use fewer workers or a machine with more memory"
            ) from None


def _start_worker() -> None:
    # Ctrl-C is the parent's to handle: it stops the workers, which would each print a traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    end_with_parent()


def end_with_parent() -> None:
    """Makes this worker process end when its parent does.

    A killed parent can't stop its workers, which would wait for tasks for ever.
    """
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)
