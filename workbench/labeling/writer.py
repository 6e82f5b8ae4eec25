"""The threads of a session: one writes each job until it is done or refused, one reads again."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

from mlflow.exceptions import MlflowException
from tenacity import Retrying, retry_if_exception_type, wait_exponential

from workbench.errors import WorkbenchError
from workbench.labeling.review_queue import ReviewQueue, Snapshot
from workbench.store.traces import store_message

_log = logging.getLogger(__name__)

_IDLE_SECONDS: Final = 2.0

_ATTEMPTS_OF_DOUBTFUL: Final = 8

_READING_SHARE: Final = 0.05
"""Of its time that a thread may spend on reading again."""

# MLflow answers so to a request that it may refuse the next time, too, but also to a write that
# another one has overtaken, and while rights are being changed.
_DOUBTFUL: Final = {
    "BAD_REQUEST",
    "RESOURCE_DOES_NOT_EXIST",
    "RESOURCE_ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "FEATURE_DISABLED",
}


@dataclass(eq=False)
class Job:
    """One thing to write; ``write`` may be called again until it returns."""

    key: str
    trace_id: str
    write: Callable[[], Any]
    attempts: int = 0


class Listener(Protocol):
    """What hears of the outcome of jobs, from the thread that writes."""

    def written(self, job: Job, result: Any) -> None:
        """Called when ``job`` has returned ``result``."""

    def delayed(self, job: Job, error: str) -> None:
        """Called when ``job`` has failed, or takes long, and is tried again."""

    def refused(self, job: Job, error: BaseException) -> None:
        """Called when ``job`` will never be written."""


class Writer:
    """Runs jobs in a thread, those of one trace in the order in which they were put.

    A job that fails is tried again until it returns or is refused (`is_refusal`); jobs of other
    traces go first meanwhile. The thread ends when there is nothing to do, and with the process.

    Parameters
    ----------
    listener
        Hears of each job. An exception that it raises is logged and ends nothing.
    slow_after
        Seconds after which a job that is still running is reported as delayed.
    """

    def __init__(self, listener: Listener, *, slow_after: float = 3.0) -> None:
        self._listener = listener
        self._slow_after = slow_after
        self._jobs: deque[Job] = deque()
        self._changed = threading.Condition()
        self._hurry = threading.Event()
        self._thread: threading.Thread | None = None
        self._retrying = Retrying(
            retry=retry_if_exception_type(Exception),
            wait=wait_exponential(multiplier=0.1, max=5),
            sleep=self._sleep,
        )

    def put(self, job: Job) -> None:
        """Hand over a job; returns at once."""
        with self._changed:
            self._jobs.append(job)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name="labels", daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def __len__(self) -> int:
        return len(self._jobs)

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until all is written, ``seconds`` at most; return whether all is written."""
        deadline = None if seconds is None else time.monotonic() + seconds
        self._hurry.set()
        with self._changed:
            while self._jobs:
                left = 1.0 if deadline is None else deadline - time.monotonic()
                if left <= 0:
                    return False
                self._changed.wait(min(left, 1.0))
        return True

    def _work(self) -> None:
        while True:
            with self._changed:
                if not self._changed.wait_for(lambda: bool(self._jobs), _IDLE_SECONDS):
                    self._thread = None
                    return
            self._retrying(self._write_next)

    def _write_next(self) -> None:
        job = self._jobs[0]
        job.attempts += 1
        slow = partial(self._listener.delayed, job, "the store has not answered yet")
        timer = threading.Timer(self._slow_after, self._tell, [slow])
        timer.daemon = True
        timer.start()
        try:
            result = job.write()
        except Exception as error:
            if not is_refusal(error, job.attempts):
                self._tell(partial(self._listener.delayed, job, store_message(error)))
                self._let_others_go_first(job.trace_id)
                raise
            outcome = partial(self._listener.refused, job, error)
        else:
            outcome = partial(self._listener.written, job, result)
        finally:
            timer.cancel()
        # Told before the job leaves the queue: what was flushed has been told, too.
        self._tell(outcome)
        with self._changed:
            self._jobs.remove(job)
            self._changed.notify_all()

    def _let_others_go_first(self, trace_id: str) -> None:
        with self._changed:
            same = [job for job in self._jobs if job.trace_id == trace_id]
            others = [job for job in self._jobs if job.trace_id != trace_id]
            self._jobs = deque([*others, *same])

    def _sleep(self, seconds: float) -> None:
        self._hurry.wait(seconds)
        self._hurry.clear()

    @staticmethod
    def _tell(outcome: Callable[[], None]) -> None:
        try:
            outcome()
        except Exception:
            _log.exception("The outcome of a write could not be handled")


class Rereader:
    """Calls ``reread`` of a session every so many seconds, in a thread that ends with it.

    What fails is tried again the next time.
    """

    def __init__(self, session: Any, every: float) -> None:
        self._session = weakref.ref(session)
        self._every = every
        self._stopped = threading.Event()
        self.thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin, unless it has begun or was stopped."""
        if self.thread is None and not self._stopped.is_set():
            self.thread = threading.Thread(target=self._work, name="rereading", daemon=True)
            self.thread.start()

    def stop(self) -> None:
        """End; a call that is under way is not waited for."""
        self._stopped.set()

    def _work(self) -> None:
        wait = self._every
        while not self._stopped.wait(wait) and (session := self._session()) is not None:
            began = time.monotonic()
            try:
                session.reread()
            except Exception:
                _log.debug("the store could not be read again", exc_info=True)
            session = None  # it must not live on while this thread waits
            wait = max(self._every, (time.monotonic() - began) / _READING_SHARE)


class QueueSync:
    """Keeps MLflow's status of a review queue's items in step with what one annotator does.

    It works in a thread of its own and tries again until the store answers. What it could not do,
    `ReviewQueue.sync` does. ``note`` says what keeps the status from being written, "" for
    nothing; ``on_change`` is called, from that thread, when it has changed.
    """

    def __init__(self, queue: ReviewQueue, annotator: str, on_change: Callable[[], None]) -> None:
        self.queue, self.note = queue, ""
        self._annotator, self._on_change = annotator, on_change
        self._added: dict[str, int] = {}
        self._writer = Writer(self)

    def sync(self, snapshot: Snapshot) -> None:
        """Set the status of all items as they were just read; returns at once."""
        self._added = {item.trace_id: item.added_ms for item in snapshot.items}
        self._writer.put(Job("sync", "sync", partial(self.queue.sync, snapshot)))

    def labelled(self, trace_id: str) -> None:
        """Set the status of an item that has a new label, or lost one; returns at once."""
        if trace_id in self._added:
            added_ms = self._added[trace_id]
            write = partial(self.queue.sync_item, trace_id, added_ms, self._annotator)
            self._writer.put(Job(trace_id, trace_id, write))

    def flush(self, seconds: float | None = None) -> bool:
        """Wait until MLflow's status is in step, ``seconds`` at most; return whether it is."""
        return self._writer.flush(seconds)

    def written(self, job: Job, result: Any) -> None:
        """The status of an item, or of all, is in step."""
        self._set_note("")

    def delayed(self, job: Job, error: str) -> None:
        """The store does not answer just now."""
        self._set_note(f"The queue {self.queue.name!r} in MLflow's page lags behind: {error}")

    def refused(self, job: Job, error: BaseException) -> None:
        """The status stays as it is, for instance of an item that was taken out of the queue."""
        text = store_message(error)
        _log.info("the status of %s in queue %r stays: %s", job.trace_id, self.queue.name, text)
        if job.key == "sync":
            where = f"The queue {self.queue.name!r} in MLflow's page"
            self._set_note(f"{where} was not updated: {text}")

    def _set_note(self, note: str) -> None:
        if note != self.note:
            self.note = note
            self._on_change()


def is_refusal(error: BaseException, attempts: int = 1) -> bool:
    """Return whether trying again is of no use.

    Errors of the workbench are final. Some errors of the store are final at once, others only
    when they come again and again. Anything else may pass: a lost connection, a lock, a server's
    own error.
    """
    if isinstance(error, WorkbenchError):
        return True
    if isinstance(error, MlflowException):
        if error.error_code == "INVALID_PARAMETER_VALUE":
            return True
        return error.error_code in _DOUBTFUL and attempts >= _ATTEMPTS_OF_DOUBTFUL
    return isinstance(error, (TypeError, ValueError)) and attempts >= _ATTEMPTS_OF_DOUBTFUL
