"""Asks models many questions: in parallel, cached, retried, slowed down, stopped when in vain.

A failure is data, and an exception only when no call can be expected to succeed.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Any, Final

import tenacity

from workbench.compat import intercepted
from workbench.errors import BudgetError, CancelledError, StoreError, check_whole
from workbench.formatting import bar
from workbench.models import recording
from workbench.models.budget import UNPAID, Budget, Usage, cost
from workbench.models.cache import AnswerCache
from workbench.models.client import Client, Outcome, Request
from workbench.models.faults import ATTEMPTS, FAILURES_TO_STOP, Fault, StoppedError
from workbench.models.throttle import Throttle

PATIENCE: Final = 90.0  # seconds of rate limits without a single success

PERMANENT_FAILURES_TO_STOP: Final = 3  # in a row; before anything was answered one is enough

# How long the end of a run waits for calls under way; what they bring later is kept in the cache.
SECONDS_AFTER_INTERRUPT: Final = 5.0
SECONDS_AFTER_ERROR: Final = 60.0

OnOutcome = Callable[[int, Outcome], None]


class Runner(AbstractContextManager["Runner"]):
    """Asks questions, in as many runs as follow each other, which share connections and slots.

    Once ``stop`` is set no call is begun. ``patience`` is how many seconds of rate limits without
    a success are borne, beside the longest pause that the provider asked for. Where a model has
    ``answered`` before, requests that it refuses and unusable answers end no run. ``used`` is what
    all requests so far have cost.
    """

    def __init__(
        self,
        *,
        cache: AnswerCache | None = None,
        budget: Budget | None = None,
        concurrency: int = 64,
        stop: threading.Event | None = None,
        patience: float = PATIENCE,
        answered: int = 0,
        throttle: Throttle | None = None,
    ) -> None:
        check_whole("concurrency", concurrency)
        self.cache, self.budget, self.concurrency = cache, budget or Budget(), concurrency
        self.stop, self.patience = stop or threading.Event(), patience
        self.client, self.throttle = Client(concurrency), throttle or Throttle(concurrency)
        self.answered, self.unusable, self.used = answered, 0, UNPAID
        self.last_progress = time.monotonic()
        self.unkept: StoreError | None = None
        self._lock = threading.Lock()

    def run(
        self,
        requests: Sequence[Request],
        *,
        on_outcome: OnOutcome = lambda index, outcome: None,
        progress: str | None = None,
    ) -> list[Outcome]:
        """Ask every question and return the outcomes in their order.

        ``on_outcome`` is called in this thread with index and outcome of each as it comes, known
        ones first. ``progress`` is the text before a bar. Raises `ModelError` when no call can be
        expected to succeed, else `BudgetError`, `CancelledError`, `StoreError` or `ReplayError`.
        """
        with bar(total=len(requests), desc=progress, disable=progress is None) as shown:
            run = _Run(self, requests, shown, on_outcome)
            try:
                if (player := recording.replayed()) is not None:
                    run.replay(player)
                else:
                    run.ask()
            finally:
                if run.recorder is not None:
                    run.recorder.save()
        return [run.found[index] for index in range(len(requests))]

    def ask(self, request: Request, stopped: threading.Event) -> Outcome:
        """Get one answer; `StoppedError` once ``stopped``, which is set here if all is in vain."""
        if (player := recording.replayed()) is not None:
            player.ask()
        key = request.cache_key
        if self.cache is None or key is None:
            return self._attempts(request, stopped)
        with self.cache.asking(key, lambda: stopped.is_set() or self.stop.is_set()):
            # Another process may have asked meanwhile.
            if (known := self.known(request)) is not None:
                return known
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
        key = request.cache_key
        stored = {} if self.cache is None or key is None else self.cache.get(key) or {}
        paid = stored.pop("paid", None)
        if not isinstance(paid, dict) or not request.is_usable(stored):
            return None
        with self._lock:
            self.answered += 1
        read, written = paid.get("read"), paid.get("written")
        usage = Usage(paid.get("calls", 1), read, written, cost(request.model, read, written))
        return Outcome(stored, usage=usage, cached=True)

    def _attempts(self, request: Request, stopped: threading.Event) -> Outcome:
        """Send the request until it is answered, refused, or tried often enough."""
        usage, begun = UNPAID, time.monotonic()

        def is_over() -> bool:
            return stopped.is_set() or self.stop.is_set()

        def attempt() -> Outcome:
            nonlocal usage
            with self.throttle.slot(is_over) as asked_at:
                if is_over():
                    raise StoppedError
                outcome = self.client.send(request, self.budget, is_over=is_over)
                self._note(outcome, stopped, asked_at)
            usage += outcome.usage
            return outcome

        def in_vain(state: tenacity.RetryCallState) -> bool:
            kind = _fault(state).kind
            limited = kind == "rate_limit" and self.is_silent(begun)
            return limited or state.attempt_number >= ATTEMPTS[kind]

        def rest(seconds: float) -> None:
            end = time.monotonic() + seconds
            while not is_over() and (left := end - time.monotonic()) > 0:
                stopped.wait(min(left, 0.5))  # `stop` is not heard while it waits

        outcome: Outcome = tenacity.Retrying(
            retry=tenacity.retry_if_result(lambda o: o.fault and o.fault.kind in ATTEMPTS),
            # Where the provider does not say how long to wait, it is by chance and ever longer.
            wait=lambda state: _fault(state).retry_after or _backoff(state),
            stop=in_vain,
            sleep=rest,
            retry_error_callback=lambda state: state.outcome and state.outcome.result(),
        )(attempt)
        return replace(outcome, usage=usage)

    def is_silent(self, since: float = 0.0) -> bool:
        """Whether there was no answer for as long as one is patient, since then at least."""
        silence = time.monotonic() - max(since, self.last_progress)
        return silence > self.patience + self.throttle.longest_pause

    def _note(self, outcome: Outcome, stopped: threading.Event, asked_at: float) -> None:
        """Count an outcome, adapt the slots, and stop where the very first calls were in vain."""
        fault = outcome.fault
        with self._lock:
            self.used += outcome.usage
            self.answered += fault is None
            self.unusable += fault is not None and fault.kind == "answer"
        if fault is None:
            self.last_progress = time.monotonic()
            self.throttle.speed_up(asked_at, self.client.timeout)
        elif fault.kind in ("rate_limit", "timeout"):  # all wait, so that not every call meets it
            pause = 1.0 if fault.kind == "rate_limit" else 0.0
            self.throttle.slow_down(fault.retry_after or pause, asked_at)
        elif not self.answered and (fault.permanent or self.unusable >= FAILURES_TO_STOP):
            stopped.set()

    def __exit__(self, *_: object) -> None:
        self.client.close()


_backoff: Final = tenacity.wait_random_exponential(multiplier=1, max=20)


def _fault(state: Any) -> Fault:
    fault: Fault = state.outcome.result().fault
    return fault


class _Run:
    """One `Runner.run`: which questions are open, and when all is in vain."""

    def __init__(
        self, runner: Runner, requests: Sequence[Request], shown: Any, on_outcome: OnOutcome
    ) -> None:
        self.runner, self.requests = runner, requests
        self.shown, self.on_outcome = shown, on_outcome
        self.recorder = recording.recorder()
        self.found: dict[int, Outcome] = {}
        # Equal questions are asked once where answers are kept, else as often as they stand here.
        first: dict[str | int, int] = {}
        self.equal: dict[int, list[int]] = {}
        for index, request in enumerate(requests):
            key = request.cache_key if runner.cache is not None else None
            self.equal.setdefault(first.setdefault(key or index, index), []).append(index)
        # What came back stays here, so that Ctrl-C while it is settled loses nothing.
        self.done: list[tuple[int, Outcome | BaseException]] = []
        self.arrived = threading.Semaphore(0)
        self.stopped = threading.Event()
        self.failed: list[tuple[int, Outcome]] = []
        self.in_a_row = self.refused = 0  # failures since the last answer, and permanent ones
        self.counts, self.cost = Counter[str](), 0.0

    @property
    def open(self) -> list[int]:
        """The first of each group of equal questions that are not settled yet."""
        return [index for index in self.equal if index not in self.found]

    def replay(self, player: recording.Player) -> None:
        """Take every answer from a recording, and charge the budget as its run did."""
        ended = ""
        for index in self.open:
            request = self.requests[index]
            entry = player.get(request.key or "")
            if entry is None or not (entry.answer is None or request.is_usable(entry.answer)):
                continue
            self.runner.budget.charge(entry.paid)
            self.runner.used += entry.paid
            if entry.failed is not None and entry.failed.kind == "budget":
                ended = entry.failed.message
                continue
            known = entry.answer is not None and entry.paid.requests == 0
            usage = entry.before if known else entry.paid
            self._settle(index, Outcome(entry.answer, entry.failed, usage, known))
        if ended:
            raise BudgetError(ended)
        if missing := self.open:
            raise player.missing(str(self.requests[missing[0]]))

    def ask(self) -> None:
        """Settle what the cache knows, and ask the rest in threads; outcomes as they come."""
        for index in self.open:
            if (known := self.runner.known(self.requests[index])) is not None:
                self._settle(index, known)
        questions = self.open
        pending, seconds = iter(questions), SECONDS_AFTER_ERROR
        # Daemons, since Python waits at its end for others, however long a call hangs.
        threads = [
            threading.Thread(
                target=contextvars.copy_context().run, args=(self._work, pending), daemon=True
            )
            for _ in range(min(self.runner.concurrency, len(questions)))
        ]
        self.runner.last_progress = time.monotonic()
        try:
            with intercepted(None):
                for thread in threads:
                    thread.start()
                for position in range(len(questions)):
                    self._wait()
                    untried = len(questions) - position - 1 > len(threads)
                    self._take(*self.done[position], untried)
            # Failures are those of their questions once it is known that others succeed.
            for index, outcome in self.failed:
                self._settle(index, outcome)
        except KeyboardInterrupt:
            seconds = SECONDS_AFTER_INTERRUPT
            raise
        finally:
            self.stopped.set()
            deadline = time.monotonic() + seconds
            for thread in threads:
                if thread.ident:
                    thread.join(max(0.0, deadline - time.monotonic()))
            self._settle_late()

    def _work(self, pending: Iterator[int]) -> None:
        """Ask one question after the other; the iterator of a list may be shared by threads."""
        for index in pending:
            outcome: Outcome | BaseException
            try:
                outcome = self.runner.ask(self.requests[index], self.stopped)
            except StoppedError:
                return
            except BaseException as error:
                outcome = error
            self.done.append((index, outcome))
            self.arrived.release()
            if self.stopped.is_set():
                return

    def _wait(self) -> None:
        """Wait for the next outcome, woken now and then to see that it was cancelled."""
        stop = self.runner.stop
        while not (self.arrived.acquire(timeout=0.2) or stop.is_set()):
            pass
        if stop.is_set():
            raise CancelledError("This was cancelled. Answers that were paid for are kept.")

    def _take(self, index: int, outcome: Outcome | BaseException, untried: bool) -> None:
        """Settle an outcome, or end the run where no other call can be expected to succeed."""
        if isinstance(outcome, BaseException):
            raise outcome
        runner, fault = self.runner, outcome.fault
        if fault is None or fault.kind == "answer":
            self.in_a_row = self.refused = 0
            self._settle(index, outcome)
            if runner.unkept is not None:
                raise runner.unkept
        elif fault.kind == "request" and runner.answered:
            self._settle(index, outcome)  # refused for what is in it, since others are answered
        elif fault.kind == "budget":
            raise BudgetError(fault.message)
        else:
            self.failed.append((index, outcome))
            self.in_a_row += 1
            self.refused += fault.permanent
        if fault is not None and (
            self.stopped.is_set()  # since the very first calls were in vain
            or self.refused >= PERMANENT_FAILURES_TO_STOP
            # They take longest, being tried again, and so come in a row at the end of any run.
            or (self.in_a_row >= FAILURES_TO_STOP and (untried or not runner.answered))
            or (fault.kind == "rate_limit" and runner.is_silent())
        ):
            raise self.requests[index].unanswered(fault, runner.unusable, bool(runner.answered))

    def _settle_late(self) -> None:
        """Settle what came after the end, since it has been paid for."""
        for index, outcome in self.done:
            if isinstance(outcome, BaseException) or index in self.found:
                continue
            if outcome.answer is None:
                self._record(index, outcome)
            else:
                with suppress(Exception):  # the error that ended the run is on its way already
                    self._settle(index, outcome)

    def _settle(self, index: int, outcome: Outcome) -> None:
        """Hand on the outcome of a question, and of those equal to it: they are free."""
        self._record(index, outcome)
        free: dict[str, Any] = {"usage": UNPAID} if outcome.answer is None else {"cached": True}
        for position in self.equal[index]:
            if position != index:
                outcome = replace(outcome, **free)
            self.on_outcome(position, outcome)
            self.found[position] = outcome
            self._show(outcome)

    def _show(self, outcome: Outcome) -> None:
        self.counts.update(failed=outcome.fault is not None, cached=outcome.cached)
        self.cost += outcome.paid.cost or 0.0
        notes = [f"{count} {what}" for what, count in self.counts.items() if count]
        notes += [f"${self.cost:.4f}"] * bool(self.cost)
        self.shown.set_postfix_str(", ".join(notes), refresh=False)
        self.shown.update()

    def _record(self, index: int, outcome: Outcome) -> None:
        request = self.requests[index]
        if self.recorder is not None and request.key is not None:
            entry = recording.Entry(
                key=request.key,
                about=request.asker,
                answer=outcome.answer,
                failed=outcome.fault and outcome.fault.recorded,
                paid=outcome.paid,
                before=outcome.usage if outcome.cached else UNPAID,
            )
            self.recorder.put(entry)
