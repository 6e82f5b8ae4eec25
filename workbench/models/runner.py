"""Asks models many questions: in parallel, cached, retried, slowed down, stopped when in vain.

Every question gets an outcome, failures included: a failure is data, and only when no call can
be expected to succeed is it an exception. This is the only place where requests are retried.
"""

from __future__ import annotations

import contextvars
import itertools
import queue
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, Final

from workbench.compat import intercepted
from workbench.errors import ArgumentError, BudgetError, CancelledError, ReplayError, StoreError
from workbench.formatting import bar
from workbench.models import recording
from workbench.models.budget import UNPAID, Budget, Usage
from workbench.models.cache import AnswerCache
from workbench.models.client import Client, Outcome, Request, StoppedError
from workbench.models.faults import AnswerError, Fault, no_answer, no_usable_answer
from workbench.models.throttle import Throttle

ATTEMPTS: Final = {"rate_limit": 12, "transient": 4, "timeout": 2}
"""Of one question, by the kind of fault; any other is not tried again."""

LONGEST_BACKOFF: Final = 20.0
"""Seconds between two attempts, where the provider does not say how long to wait."""

PATIENCE: Final = 90.0
"""Seconds of rate limits without a single success after which a run gives up."""

PERMANENT_FAILURES_TO_STOP: Final = 3
"""In a row; one is enough where nothing was answered yet."""

FAILURES_TO_STOP: Final = 10
"""In a row, each after all its attempts; unusable answers only where no answer was usable."""

SECONDS_AFTER_INTERRUPT: Final = 5.0
"""How long Ctrl-C waits for calls under way; what they bring later is still kept in the cache."""

SECONDS_AFTER_CANCEL: Final = 60.0
"""The same for a run that was cancelled."""


class Runner:
    """Asks questions, in as many runs as follow each other. A context manager that closes itself.

    Its runs share connections, the throttle, and whether the model has answered at all.

    Parameters
    ----------
    cache
        Where answers are looked up and kept; failures are never kept. What another run or process
        asks at the same time is waited for and not asked twice. None: nothing is kept.
    budget
        Counts requests, and what they use, before they are made. Answers from the cache are free.
    concurrency
        Calls under way at the same time, at most.
    stop
        Once it is set no call is begun any more; those under way are waited for, a minute at most.
    patience
        Seconds of rate limits without a single success after which a run gives up.
    proven
        The model is known to answer: all calls go at once, and unusable answers end no run.
    """

    def __init__(
        self,
        *,
        cache: AnswerCache | None = None,
        budget: Budget | None = None,
        concurrency: int = 64,
        stop: threading.Event | None = None,
        patience: float = PATIENCE,
        proven: bool = False,
    ) -> None:
        if concurrency < 1:
            raise ArgumentError(f"concurrency={concurrency} must be at least 1.")
        self.cache, self.budget, self.concurrency = cache, budget or Budget(), concurrency
        self.stop, self.patience = stop or threading.Event(), patience
        self.client, self.throttle = Client(concurrency), Throttle(concurrency)
        self.answered, self.unusable = int(proven), 0
        if proven:
            self.throttle.speed_up()
        self.last_progress = time.monotonic()
        self.unkept: StoreError | None = None
        self._lock = threading.Lock()

    def run(
        self,
        requests: Sequence[Request],
        *,
        on_outcome: Callable[[int, Outcome], None] = lambda index, outcome: None,
        progress: str | None = None,
    ) -> list[Outcome]:
        """Ask every question and return the outcomes in their order.

        Equal questions whose answers are kept are asked once.

        Parameters
        ----------
        on_outcome
            Called in this thread with index and outcome of each as it comes, known ones first.
        progress
            Text before the progress bar; None for no bar.

        Raises
        ------
        UnreachableModelError, CredentialError, ModelError
            When the first call, or several calls in a row, failed in a way that no other call
            can be expected to survive, or when none of the first answers was usable.
        BudgetError, CancelledError, StoreError
            When the budget is spent, `stop` is set, or answers cannot be kept. Those that came have
            been given to ``on_outcome``.
        ReplayError
            While a recording is replayed that lacks an answer.
        """
        with bar(total=len(requests), desc=progress, disable=progress is None) as shown:
            run = _Run(self, requests, shown, on_outcome)
            player, recorder = recording.replayed(), recording.recorder()
            if player is not None:
                run.replay(player)
                return run.outcomes()
            try:
                run.look_up()
                with intercepted(None):
                    run.ask()
            finally:
                if recorder is not None:
                    recorder.save()
        return run.outcomes()

    def ask(self, request: Request, stopped: threading.Event | None = None) -> Outcome:
        """Get one answer, from the cache or after as many attempts as make sense.

        May be called from any thread. Where the budget does not allow a request, the outcome's
        fault is of the kind ``budget``. Nothing is sent once ``stopped`` is set, which is done here
        where the model cannot answer, or not usably, and has never done so.

        Raises
        ------
        StoppedError
            When ``stopped`` or `stop` was set before the answer came.
        """
        key, stopped = request.key, stopped or threading.Event()
        if self.cache is None or key is None:
            return self._attempts(request, stopped)
        with self.cache.locked(key, lambda: self._is_over(stopped)):
            outcome = self.known(request)
            if outcome is not None:
                return outcome
            outcome = self._attempts(request, stopped)
            if outcome.answer is not None:
                used = outcome.usage
                paid = {"calls": used.requests, "read": used.read, "written": used.written}
                try:
                    self.cache.put(key, {**outcome.answer, "paid": paid})
                except StoreError as error:  # the answer is paid for: it is handed on first
                    self.unkept = error
            return outcome

    def known(self, request: Request) -> Outcome | None:
        """The answer that the cache has; None where it has none that is usable."""
        stored = self.cache.get(request.key) if self.cache is not None and request.key else None
        if stored is None:
            return None
        paid = stored.pop("paid", None)
        try:
            request.check(stored)
        except (AnswerError, KeyError, TypeError):
            return None
        told = paid if isinstance(paid, dict) else {}
        calls, read, written = (
            n if isinstance(n := told.get(name), int) and n > 0 else None
            for name in ("calls", "read", "written")
        )
        return Outcome(stored, usage=Usage(calls or 1, read, written), cached=True)

    def _is_over(self, stopped: threading.Event) -> bool:
        return stopped.is_set() or self.stop.is_set()

    def _attempts(self, request: Request, stopped: threading.Event) -> Outcome:
        """Send the request until it is answered, refused, or tried often enough."""
        usage, begun = UNPAID, time.monotonic()

        def is_over() -> bool:
            return self._is_over(stopped)

        def is_over_or_sent() -> bool:
            self.throttle.sent()
            return self._is_over(stopped)

        for attempt in itertools.count(1):
            with self.throttle.slot(is_over) as asked_at:
                if is_over():
                    raise StoppedError
                outcome = self.client.send(request, self.budget, is_over=is_over_or_sent)
                self._note(outcome, stopped)
            usage += outcome.usage
            fault = outcome.fault
            if fault is None or attempt >= ATTEMPTS.get(fault.kind, 1):
                break
            backoff = random.uniform(0, min(LONGEST_BACKOFF, 0.5 * 2**attempt))
            seconds = fault.retry_after or backoff
            if fault.kind != "rate_limit":
                stopped.wait(seconds)
                continue
            silence = time.monotonic() - max(begun, self.last_progress)
            if silence + (fault.retry_after or 0) > self.patience:
                break
            # All calls wait together, so a limit that one met is not met by every other.
            self.throttle.slow_down(seconds, asked_at)
        return replace(outcome, usage=usage)

    def _note(self, outcome: Outcome, stopped: threading.Event) -> None:
        """Open slots after a usable answer; stop where the very first calls were in vain."""
        fault = outcome.fault
        with self._lock:
            self.answered += fault is None
            self.unusable += fault is not None and fault.kind == "answer"
        if fault is None:
            self.last_progress = time.monotonic()
            self.throttle.speed_up()
        permanent = fault is not None and fault.permanent
        if not self.answered and (permanent or self.unusable >= FAILURES_TO_STOP):
            stopped.set()

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Run:
    """One `Runner.run`: which questions are open, and when all is in vain."""

    def __init__(
        self,
        runner: Runner,
        requests: Sequence[Request],
        shown: Any,
        on_outcome: Callable[[int, Outcome], None],
    ) -> None:
        self.runner, self.requests = runner, requests
        self.shown, self.on_outcome = shown, on_outcome
        self.found: dict[int, Outcome] = {}
        # Equal questions are asked once where answers are kept, else as often as they stand here.
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            key = request.key if runner.cache is not None else None
            groups.setdefault(key or str(index), []).append(index)
        self.equal = {indices[0]: indices for indices in groups.values()}
        self.open = list(self.equal)
        self.waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        self.done: queue.SimpleQueue[tuple[int, Outcome | BaseException]] = queue.SimpleQueue()
        self.stopped = threading.Event()
        self.failed: list[tuple[int, Outcome]] = []
        self.in_a_row: list[Fault] = []
        self.failures, self.cached, self.cost = 0, 0, 0.0

    def outcomes(self) -> list[Outcome]:
        """Return the outcomes in the order of the requests."""
        return [self.found[index] for index in range(len(self.requests))]

    def replay(self, player: recording.Player) -> None:
        """Take every answer from a recording, and charge the budget as its run did."""
        missing: list[int] = []
        refused = False
        for index in self.open:
            request, entry = self.requests[index], player.get(self.requests[index].portable_key)
            if entry is None or (entry.failed is not None and entry.failed.kind == "budget"):
                missing.append(index)
                refused = refused or entry is not None
                continue
            self.runner.budget.charge(entry.paid)
            try:
                request.check(entry.answer or {}) if entry.failed is None else None
            except AnswerError as error:
                raise ReplayError(
                    f"{request} has an answer in {player.path} that is none: {error}."
                ) from None
            known = entry.failed is None and entry.paid.requests == 0
            self._settle(index, Outcome(entry.answer, entry.failed, entry.paid, known))
        if refused and self.runner.budget.is_limited:
            raise self.runner.budget.exhausted()
        if missing:
            more = f" (and {len(missing) - 1} more of {len(self.open)})" if missing[1:] else ""
            raise player.missing(f"{self.requests[missing[0]]}{more}")

    def look_up(self) -> None:
        """Settle the questions that the cache knows."""
        for index in self.open:
            known = self.runner.known(self.requests[index])
            if known is not None:
                self._settle(index, known)
        self.open = [index for index in self.open if index not in self.found]

    def ask(self) -> None:
        """Ask the open questions in threads, and settle outcomes in this one as they come."""
        for index in self.open:
            self.waiting.put(index)
        # Daemons, since Python waits at its end for others, however long a call hangs.
        threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(self._work,), daemon=True)
            for _ in range(min(self.runner.concurrency, len(self.open)))
        ]
        seconds: float | None = None
        self.runner.last_progress = time.monotonic()
        try:
            self._check()
            for thread in threads:
                thread.start()
            for _ in self.open:
                self._take(*self._next())
            # Failures are those of their questions once it is known that others succeed.
            for index, outcome in self.failed:
                self._settle(index, outcome)
        except BaseException as error:
            # Whoever interrupts is not kept waiting by a call that hangs.
            if isinstance(error, CancelledError):
                seconds = SECONDS_AFTER_CANCEL
            elif not isinstance(error, Exception):
                seconds = SECONDS_AFTER_INTERRUPT
            raise
        finally:
            self.stopped.set()
            self.runner.throttle.wake()
            _join([thread for thread in threads if thread.ident], seconds)
            self._settle_late()

    def _work(self) -> None:
        while not self.stopped.is_set():
            try:
                index = self.waiting.get_nowait()
                self.done.put((index, self.runner.ask(self.requests[index], self.stopped)))
            except (queue.Empty, StoppedError):
                return
            except BaseException as error:
                self.done.put((index, error))

    def _check(self) -> None:
        if self.runner.stop.is_set():
            raise CancelledError("This was cancelled. Answers that were paid for are kept.")

    def _next(self) -> tuple[int, Outcome]:
        while True:
            self._check()
            try:
                # Woken now and then to see that it is over, or that it was interrupted.
                index, outcome = self.done.get(timeout=0.2)
            except queue.Empty:
                continue
            if isinstance(outcome, BaseException):
                raise outcome
            return index, outcome

    def _take(self, index: int, outcome: Outcome) -> None:
        """Settle an outcome, or end the run where no other call can be expected to succeed."""
        request, fault = self.requests[index], outcome.fault
        if fault is None or fault.kind == "answer":
            self.in_a_row.clear()
            self._settle(index, outcome)
            if self.runner.unkept is not None:
                raise self.runner.unkept
            if fault is not None and self.stopped.is_set():
                raise no_usable_answer(request, fault, self.runner.unusable)
            return
        if fault.kind == "budget":
            self._record(index, outcome)
            raise BudgetError(fault.message)
        self.failed.append((index, outcome))
        self.in_a_row.append(fault)
        some = self.runner.answered > 0
        permanent = sum(one.permanent for one in self.in_a_row)
        silence = time.monotonic() - self.runner.last_progress
        if (
            permanent >= (PERMANENT_FAILURES_TO_STOP if some else 1)
            or len(self.in_a_row) >= FAILURES_TO_STOP
            or (fault.kind == "rate_limit" and silence > self.runner.patience)
        ):
            raise no_answer(request, fault, some, FAILURES_TO_STOP)

    def _settle_late(self) -> None:
        """Settle what came after the end, since it has been paid for."""
        while not self.done.empty():
            index, outcome = self.done.get()
            if isinstance(outcome, Outcome) and outcome.answer is None:
                self._record(index, outcome)
            elif isinstance(outcome, Outcome):
                with suppress(Exception):  # the error that ended the run is on its way already
                    self._settle(index, outcome)

    def _settle(self, index: int, outcome: Outcome) -> None:
        """Hand on the outcome of a question, and of those equal to it: they are free."""
        self._record(index, outcome)
        free = outcome.answer is not None
        for position in self.equal[index]:
            if position != index:
                usage = outcome.usage if free else UNPAID
                outcome = replace(outcome, cached=outcome.cached or free, usage=usage)
            self.found[position] = outcome
            self._show(outcome)
            self.on_outcome(position, outcome)

    def _show(self, outcome: Outcome) -> None:
        self.failures += outcome.fault is not None
        self.cached += outcome.cached
        self.cost += 0.0 if outcome.cached else outcome.usage.cost or 0.0
        notes = [f"{self.failures} failed"] if self.failures else []
        notes += [f"{self.cached} cached"] if self.cached else []
        notes += [f"${self.cost:.4f}"] if self.cost else []
        self.shown.set_postfix_str(", ".join(notes), refresh=False)
        self.shown.update()

    def _record(self, index: int, outcome: Outcome) -> None:
        recorder, request, fault = recording.recorder(), self.requests[index], outcome.fault
        if recorder is not None and request.portable_key:
            failed = None if fault is None else Fault(fault.kind, fault.message)
            paid = UNPAID if outcome.cached else outcome.usage
            about = request.recorded_about
            recorder.put(
                recording.Entry(
                    key=request.portable_key,
                    about=about,
                    answer=outcome.answer,
                    failed=failed,
                    paid=paid,
                )
            )


def _join(threads: Sequence[threading.Thread], seconds: float | None) -> None:
    """Wait for threads, so long at most, in short turns so that Ctrl-C is seen in between."""
    deadline = None if seconds is None else time.monotonic() + seconds
    for thread in threads:
        while thread.is_alive() and (deadline is None or time.monotonic() < deadline):
            thread.join(1.0 if deadline is None else min(1.0, deadline - time.monotonic()))
