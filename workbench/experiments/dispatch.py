"""Hand the runs of a sweep to processes, here or on a cluster, and take what comes back."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import (
    FIRST_COMPLETED,
    CancelledError,
    Executor,
    Future,
    ProcessPoolExecutor,
    wait,
)
from contextlib import suppress
from pathlib import Path

from workbench.errors import NotebookError
from workbench.experiments.execution import Result, Task, execute

GRACE = 15.0
"""Seconds that an interrupted sweep waits for its kernels to end."""


class Dispatch:
    """Executes tasks by any `concurrent.futures.Executor`, or by processes of this machine.

    Parameters
    ----------
    executor
        None: ``jobs`` processes here. One that dies takes those beside it along, so their runs are
        executed again: once together, then each alone, so that the run that kills is found.
    stop
        A file that is written when the sweep is interrupted; all processes look for it.
    on_result, on_tick
        Called in this thread with each result, and with the number of runs under way.
    """

    def __init__(
        self,
        executor: Executor | None,
        jobs: int | None,
        stop: Path,
        on_result: Callable[[Result], None],
        on_tick: Callable[[int], None],
    ) -> None:
        self.executor, self.jobs, self.stop = executor, jobs or os.cpu_count() or 1, stop
        self.on_result, self.on_tick = on_result, on_tick
        self.why = ""

    def end(self, why: str) -> None:
        """Begin no further run; those under way are finished."""
        self.why = self.why or why

    def run(self, tasks: Iterable[Task]) -> None:
        """Execute the tasks; each has a result in the end, in the order in which they end."""
        waiting = deque(tasks)
        if self.executor is not None:
            lost = self._round(self.executor, waiting, len(waiting))
            # A pool that is broken takes no more.
            for task, error in [*lost, *((task, lost[0][1]) for task in waiting)]:
                said = f"{type(error).__name__}: {error}".splitlines()[0]
                self.on_result(task.result("failed", f"The process that ran it died. {said}"))
            return
        losses: Counter[str] = Counter()
        alone: deque[Task] = deque()
        while waiting or alone:
            batch, jobs = (waiting, self.jobs) if waiting else (deque([alone.popleft()]), 1)
            with _processes(min(jobs, len(batch))) as pool:
                died = [task for task, _ in self._round(pool, batch, jobs)]
            losses.update(task.key for task in died)
            if died and not any(task.is_started for task in died):
                raise NotebookError(
                    "The processes of the sweep died before they began a run. In a script, call "
                    "workbench.sweep below `if __name__ == '__main__':`, since each process "
                    "imports the script."
                )
            for task in died:
                if losses[task.key] <= 2:
                    (waiting if losses[task.key] == 1 else alone).append(task)
                else:
                    why = "The process that ran it died: it was killed, or memory ran out."
                    self.on_result(task.result("failed", why))

    def _round(
        self, executor: Executor, waiting: deque[Task], window: int
    ) -> list[tuple[Task, BaseException]]:
        """Execute what waits, so many at a time; return the runs whose process was lost."""
        futures: dict[Future[Result], Task] = {}
        lost: list[tuple[Task, BaseException]] = []
        ticked = 0.0
        try:
            while futures or (waiting and not lost):
                while waiting and len(futures) < window and not lost:
                    self._submit(executor, waiting.popleft(), futures, lost)
                done, _ = wait(futures, timeout=1.0, return_when=FIRST_COMPLETED)
                for future in done:
                    self._take(future, futures.pop(future), lost)
                for future in futures if self.why else ():
                    future.cancel()  # unless it has begun
                if time.monotonic() - ticked > 1.0:
                    ticked = time.monotonic()
                    self.on_tick(sum(task.is_started for task in futures.values()))
        except BaseException:
            self._interrupt(futures)
            raise
        return lost

    def _submit(
        self,
        executor: Executor,
        task: Task,
        futures: dict[Future[Result], Task],
        lost: list[tuple[Task, BaseException]],
    ) -> None:
        if self.why:
            self.on_result(task.result("cancelled", self.why))
            return
        try:
            futures[executor.submit(execute, task)] = task
        except RuntimeError as error:  # the pool is broken, or was shut down
            lost.append((task, error))

    def _take(
        self, future: Future[Result], task: Task, lost: list[tuple[Task, BaseException]]
    ) -> None:
        try:
            result = future.result()
        except CancelledError:
            self.on_result(task.result("cancelled", self.why or "by the executor"))
        except Exception as error:  # of the process; those of the run are in its result
            lost.append((task, error))
        else:
            self.on_result(result)

    def _interrupt(self, futures: Iterable[Future[Result]]) -> None:
        """Stop the kernels, wherever they run."""
        with suppress(OSError):
            self.stop.touch()
        under_way = [future for future in futures if not future.cancel()]
        wait(under_way, timeout=GRACE)


def _processes(n: int) -> ProcessPoolExecutor:
    # Processes that are forked would share connections and locks of this one.
    spawn = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(n, mp_context=spawn, initializer=_start_process)


def _start_process() -> None:
    """End with the sweep: Python leaves the processes of a pool alone when their parent is killed.

    Ctrl-C reaches all processes of a terminal; the sweep itself stops the runs.
    """
    signal.signal(signal.SIGINT, lambda *_: None)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()
        time.sleep(2.0)  # for the kernel to be stopped (`Task.stopped`)
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=watch, daemon=True).start()
