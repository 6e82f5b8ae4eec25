"""Keep the status of MLflow's review queue in step with what one annotator does."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

from workbench.labeling.review_queue import ReviewQueue, Snapshot
from workbench.labeling.writer import Job, Writer
from workbench.store.traces import store_message

_log = logging.getLogger(__name__)


class QueueSync:
    """Keeps MLflow's status of a review queue's items in step with what one annotator does.

    It works in a thread of its own and tries again until the store answers. What it could not do,
    `ReviewQueue.sync` does.

    Parameters
    ----------
    queue, annotator
        Whose items, and who labels them.
    on_change
        Called, from that thread, when ``note`` has changed: what keeps the status from being
        written, "" for nothing.
    """

    def __init__(
        self, queue: ReviewQueue, annotator: str, on_change: Callable[[], None] | None = None
    ) -> None:
        self.queue = queue
        self.note = ""
        self._annotator = annotator
        self._on_change = on_change
        self._added: dict[str, int] = {}
        self._writer = Writer(self)

    def sync(self, snapshot: Snapshot) -> None:
        """Set the status of all items as they were just read; returns at once."""
        self._added = {item.trace_id: item.added_ms for item in snapshot.items}
        self._writer.put(Job("sync", "sync", partial(self.queue.sync, snapshot)))

    def labelled(self, trace_ids: Iterable[str]) -> None:
        """Set the status of items that have a new label, or lost one; returns at once."""
        for trace_id in trace_ids:
            if trace_id in self._added:
                added = {trace_id: self._added[trace_id]}
                write = partial(self.queue.sync_items, added, self._annotator)
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
        if job.key == "sync":
            self._set_note(
                f"The queue {self.queue.name!r} in MLflow's page was not updated: {text}"
            )
        _log.info("the status of %s in queue %r stays: %s", job.trace_id, self.queue.name, text)

    def _set_note(self, note: str) -> None:
        if note != self.note:
            self.note = note
            if self._on_change is not None:
                self._on_change()
