"""What must be written is written in a thread, tried again until it is: `Saver`.

The store may be locked, or down for a minute; what was put meanwhile waits and is written when
it answers again. What the store will never take is given back.
"""

from __future__ import annotations

import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from mlflow.exceptions import MlflowException

from workbench.errors import WorkbenchError
from workbench.store import told

_FIRST_WAIT = 0.1
_LONGEST_WAIT = 5.0
_PATIENCE = 3.0
_IDLE = 2.0
_TRIES_OF_A_REFUSAL = 8

# What MLflow answers to a request that it may refuse the next time, too; but also to a write
# that another one has overtaken, and where rights are being changed.
_DOUBTFUL = {"BAD_REQUEST", "RESOURCE_DOES_NOT_EXIST", "RESOURCE_ALREADY_EXISTS",
             "PERMISSION_DENIED", "FEATURE_DISABLED"}  # fmt: skip


class TraceGone(WorkbenchError):
    """The trace was deleted, so that nothing can be written to it any more."""


@dataclass
class Job:
    """One thing to write: ``run`` may be called again until it returns."""

    key: str
    trace_id: str
    run: Callable[[], Any]
    tries: int = field(default=0, compare=False)


class Listener(Protocol):
    """Who is told what became of jobs, from the thread that writes."""

    def written(self, job: Job, result: Any) -> None:
        """``job`` has returned ``result``."""

    def delayed(self, error: str) -> None:
        """Nothing is written just now, for the reason given; it is tried again."""

    def refused(self, job: Job, error: str) -> None:
        """``job`` will never be written."""


class Saver:
    """Runs jobs in a thread of its own: those of one trace in the order in which they were put.

    A job that fails is run again after a while, until it returns, the trace is gone or the
    store refuses it for good; the jobs of other traces go on meanwhile. The thread ends when
    there is nothing left to do, and with the process.
    """

    def __init__(self, listener: Listener) -> None:
        self._listener = listener
        self._change = threading.Condition()
        self._waiting: dict[str, deque[Job]] = {}
        self._not_before: dict[str, float] = {}
        self._pause_until = 0.0
        self._failures = 0
        self._running: Job | None = None
        self._thread: threading.Thread | None = None
        self._dice = random.Random()  # spreads retries, decides nothing

    def put(self, job: Job) -> None:
        """Hand over a job; returns at once."""
        with self._change:
            self._waiting.setdefault(job.trace_id, deque()).append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="labels", daemon=True)
                self._thread.start()
            self._change.notify_all()

    def __len__(self) -> int:
        """How many jobs are not done."""
        with self._change:
            return sum(map(len, self._waiting.values()))

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until all is done, or so long at most; whether all is done."""
        deadline = None if seconds is None else time.monotonic() + seconds
        with self._change:
            # Whoever waits wants it tried now, not after the pause.
            self._pause_until = 0.0
            self._not_before.clear()
            self._change.notify_all()
            while self._waiting:
                left = 1.0 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return False
                self._change.wait(min(left, 1.0))
        return True

    # -- the thread ---------------------------------------------------------------------

    def _work(self) -> None:
        while (job := self._next()) is not None:
            watch = threading.Timer(
                _PATIENCE, self._listener.delayed, ["the store has not answered yet"]
            )
            watch.daemon = True
            watch.start()
            try:
                result = job.run()
            except BaseException as error:
                watch.cancel()
                self._failed(job, error)
            else:
                watch.cancel()
                # Told before it leaves, so that what was flushed was told, too.
                self._listener.written(job, result)
                with self._change:
                    self._failures = 0
                    self._leave(job)

    def _next(self) -> Job | None:
        """The next job whose time has come; None when there was nothing to do for a while."""
        with self._change:
            idle_since = time.monotonic()
            while True:
                now = time.monotonic()
                due = {i: max(self._pause_until, self._not_before.get(i, 0)) for i in self._waiting}
                for trace_id, when in due.items():
                    if when <= now:
                        return self._waiting[trace_id][0]
                if not due and now - idle_since >= _IDLE:
                    self._thread = None
                    return None
                idle_since = now if due else idle_since
                self._change.wait(max(0.001, min(due.values()) - now) if due else _IDLE)

    def _failed(self, job: Job, error: BaseException) -> None:
        job.tries += 1
        if is_refusal(error, job.tries):
            self._listener.refused(job, told(error))
            with self._change:
                self._leave(job)
            return
        self._listener.delayed(told(error))
        with self._change:
            self._failures += 1
            now = time.monotonic()
            self._pause_until = now + self._wait(self._failures)
            self._not_before[job.trace_id] = now + self._wait(job.tries)
            # Another trace is tried first the next time: it may be this one that is ill.
            self._waiting[job.trace_id] = self._waiting.pop(job.trace_id)

    def _leave(self, job: Job) -> None:
        jobs = self._waiting[job.trace_id]
        jobs.popleft()
        self._not_before.pop(job.trace_id, None)
        if not jobs:
            del self._waiting[job.trace_id]
        self._change.notify_all()

    def _wait(self, failures: int) -> float:
        longest: float = min(_LONGEST_WAIT, _FIRST_WAIT * 2.0 ** min(failures, 16))
        return longest * self._dice.uniform(0.5, 1.0)


def is_refusal(error: BaseException, tries: int = 1) -> bool:
    """Whether trying again is of no use.

    What the workbench itself raises is final. Of what the store says some is final at once and
    some only when it says it again and again, since a write that was overtaken by another one
    is answered alike. Anything else may pass: a lost connection, a lock, a server's own error.
    """
    if isinstance(error, WorkbenchError):
        return True
    if isinstance(error, MlflowException):
        if error.error_code == "INVALID_PARAMETER_VALUE":
            return True
        return error.error_code in _DOUBTFUL and tries >= _TRIES_OF_A_REFUSAL
    return isinstance(error, (TypeError, ValueError)) and tries >= _TRIES_OF_A_REFUSAL
