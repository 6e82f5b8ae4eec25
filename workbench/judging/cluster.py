"""Partitions judged by the workers of a Dask cluster, which slow down together.

Only what Dask has is used: tasks, and a ``distributed.Variable`` that all workers read. One that
dies loses its partition, which another one takes over.
"""

from __future__ import annotations

import functools
import itertools
import sys
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import Any, Final

from mlflow.genai.judges import Judge

from workbench.errors import ReplayError
from workbench.judging.requests import judge_examples
from workbench.judging.verdict_folder import Task
from workbench.judging.verdicts import Verdict
from workbench.models.offline import register
from workbench.models.recording import current
from workbench.models.runner import Runner
from workbench.models.throttle import Throttle
from workbench.store.traces import Example, collector_paused

WORKER_SECONDS: Final = 120  # that a worker is waited for, as clusters start them

HEARD_EVERY: Final = 0.25  # seconds: whether another worker has met a rate limit


def ask_on_cluster(
    tasks: Iterator[Task], judge: Judge, client: Any, concurrency: int, answered: int
) -> Generator[tuple[Task, list[Verdict]]]:
    """Have each worker of a cluster judge a partition at a time; give them as they come."""
    import distributed

    if current() is not None:
        raise ReplayError(
            "client: what the workers of a cluster are answered is neither recorded nor replayed. "
            "Leave out client=, or score outside workbench.recording and workbench.replaying."
        )
    name = f"workbench-score-{uuid.uuid4().hex}"
    shared = distributed.Variable(name, client=client)
    shared.set(_NEWS)
    under_way: dict[Any, Task] = {}
    try:
        while True:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
            workers = len(client.nthreads())
            most = max(0, min(workers, concurrency) - len(under_way))
            # Not read ahead: a budget allows a partition by what the ones before it took.
            for task in itertools.islice(tasks, most):
                share, items = max(1, concurrency // workers), list(task.items.values())
                future = client.submit(_ask, name, share, judge, items, answered, pure=False)
                under_way[future] = task
            if workers and not under_way:
                break
            # Woken now and then, since workers may have joined.
            with suppress(distributed.TimeoutError):
                distributed.wait(list(under_way), timeout=5, return_when="FIRST_COMPLETED")
            for future in [one for one in under_way if one.done()]:
                yield under_way.pop(future), future.result()
    except BaseException:
        shared.set({**_NEWS, "over": True})  # what is under way ends at its next call
        raise
    shared.delete()


_NEWS: Final = {"slowed": 0.0, "resume": 0.0, "over": False}


# -- on a worker ----------------------------------------------------------------------------


class SharedThrottle(Throttle):
    """A worker's share of the slots of a cluster, halved when any of its workers meets a limit.

    ``shared`` holds when that last was, and until when all wait, in seconds since 1970.
    """

    def __init__(self, most: int, shared: Any, stop: Callable[[], None]) -> None:
        super().__init__(most)
        self._shared, self._stop = shared, stop
        self._heard = self._asked_at = 0.0

    @contextmanager
    def slot(self, is_over: Callable[[], bool] = lambda: False) -> Iterator[float]:
        """Wait for a slot, hearing before it what other workers have met."""
        if time.monotonic() > self._asked_at + HEARD_EVERY:
            self._hear()
        with super().slot(is_over) as asked_at:
            yield asked_at

    def slow_down(self, seconds: float, asked_at: float) -> None:
        """Slow down, and let the other workers do so, unless one of them did meanwhile."""
        self._hear()
        is_news = asked_at >= self._slowed_at
        super().slow_down(seconds, asked_at)
        if is_news:
            now = self._heard = time.time()
            self._shared.set({"slowed": now, "resume": now + seconds, "over": False})

    def _hear(self) -> None:
        self._asked_at = time.monotonic()
        news = self._shared.get(timeout=30)
        if news["over"]:
            self._stop()
        if news["slowed"] > self._heard:
            self._heard = news["slowed"]
            asked_at = time.monotonic() - max(0.0, time.time() - news["slowed"])
            super().slow_down(max(0.0, news["resume"] - time.time()), asked_at)


_asking = threading.Lock()  # a worker of several threads has one partition at a time as well


@functools.lru_cache(maxsize=1)
def _runner(name: str, share: int, answered: int) -> Runner:
    """The runner that this worker has for the run, with its connections."""
    from distributed import Variable, get_client

    stop = threading.Event()
    throttle = SharedThrottle(share, Variable(name, client=get_client()), stop.set)
    return Runner(concurrency=share, stop=stop, throttle=throttle, answered=answered)


def _ask(name: str, share: int, judge: Judge, items: list[Example], answered: int) -> list[Verdict]:
    """Judge a partition on this worker."""
    register(str(getattr(judge, "model", None) or ""))
    # Before Python 3.12 a collection within ``sys._current_frames``, with which Dask's profiler
    # looks at threads, deadlocks a process of many (CPython's issue 106883).
    with _asking, collector_paused() if sys.version_info < (3, 12) else nullcontext():
        return judge_examples(judge, items, _runner(name, share, answered))
