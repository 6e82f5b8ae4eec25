"""Asks models many questions: in parallel, cached, retried, slowed down, stopped when in vain.

Every question gets an outcome, failures included: a failure is data, and only when no call can
be expected to succeed is it an exception. This is the only place where requests are retried.
"""

from __future__ import annotations

import contextvars
import math
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final

from tenacity import RetryCallState, Retrying, retry_if_result, wait_random_exponential

from workbench.compat import intercepted
from workbench.errors import (
    ArgumentError,
    BudgetError,
    CancelledError,
    CredentialError,
    ModelError,
    ReplayError,
    StoreError,
    UnreachableModelError,
)
from workbench.formatting import bar
from workbench.models import recording
from workbench.models.budget import UNPAID, Budget, Usage
from workbench.models.cache import AnswerCache
from workbench.models.client import Client, Outcome, Request, StoppedError
from workbench.models.faults import AnswerError, Fault

ATTEMPTS: Final = {"rate_limit": 12, "transient": 4, "timeout": 2}
"""Of one question, by the kind of fault; any other is not tried again."""

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

CANCELLED: Final = "This was cancelled. Answers that were paid for are kept."

FIRST_CALLS: Final = 16
"""Calls under way at most until something was answered."""

HEAD_START: Final = 0.1
"""Seconds from the first request to the others, unless it is answered before."""

_backoff = wait_random_exponential(multiplier=0.5, max=20)


class Throttle:
    """Slots for calls, shared by the threads of a run: additive increase, halved by rate limits.

    Until something was answered there are few slots, and the very first call has a head start, so
    that a wrong key or a dead endpoint usually costs one call. A call that meets a rate limit lets
    all calls wait together.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._limit = float(min(most, FIRST_CALLS))
        self._opened = False
        self._sent_at = math.inf
        self._active = 0
        self._resume_at = self._slowed_at = 0.0
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """How many calls may be under way now."""
        alone = not self._opened and time.monotonic() < self._sent_at + HEAD_START
        return 1 if alone else int(self._limit)

    @contextmanager
    def slot(self, is_over: Callable[[], bool] = lambda: False) -> Iterator[float]:
        """Wait for a slot, or until it is over, and hold it; gives the time it was had."""
        with self._changed:
            while not is_over():
                pause = self._resume_at - time.monotonic()
                if self._active < self.limit and pause <= 0:
                    break
                self._changed.wait(min(max(pause, 0.02), 0.5) if self._opened else 0.02)
            self._active += 1
        try:
            yield time.monotonic()
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify()

    def sent(self) -> None:
        """The head start of the first call begins when its request goes out."""
        self._sent_at = min(self._sent_at, time.monotonic())

    def slow_down(self, seconds: float, asked_at: float) -> None:
        """Pause all calls, and halve the slots unless that was done since ``asked_at``.

        All that were under way with the call that met the limit meet the same, and count once.
        """
        with self._changed:
            now = time.monotonic()
            if asked_at >= self._slowed_at:
                self._limit = max(1.0, self._limit / 2)
                self._slowed_at = now
            self._resume_at = max(self._resume_at, now + seconds)

    def speed_up(self) -> None:
        """After the first usable answer open all slots, later one for as many as there are."""
        with self._changed:
            more = self._limit + 1.0 / self._limit if self._opened else math.inf
            self._limit, self._opened = min(float(self.most), more), True
            self._changed.notify_all()

    def wake(self) -> None:
        """Let those who wait see whether it is over."""
        with self._changed:
            self._changed.notify_all()


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
                paid = {name: getattr(outcome.usage, of) or 0 for name, of in _PAID.items()}
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
        counts = {of: paid.get(n) for n, of in _PAID.items()} if isinstance(paid, dict) else {}
        known = {of: n for of, n in counts.items() if type(n) is int and n > 0}
        return Outcome(stored, usage=Usage(**{"requests": 1, **known}), cached=True)

    def _is_over(self, stopped: threading.Event) -> bool:
        return stopped.is_set() or self.stop.is_set()

    def _attempts(self, request: Request, stopped: threading.Event) -> Outcome:
        asked_at = begun = time.monotonic()
        usage = UNPAID

        def is_over() -> bool:
            return self._is_over(stopped)

        def is_over_or_sent() -> bool:
            self.throttle.sent()
            return self._is_over(stopped)

        def once() -> Outcome:
            nonlocal asked_at, usage
            with self.throttle.slot(is_over) as asked_at:
                if is_over():
                    raise StoppedError
                outcome = self.client.send(request, self.budget, is_over=is_over_or_sent)
                self._note(outcome, stopped)
            usage += outcome.usage
            return outcome

        def wait(state: RetryCallState) -> float:
            fault = _fault_of(state)
            seconds = fault.retry_after or _backoff(state)
            if fault.kind != "rate_limit":
                return seconds
            # All calls wait together, so a limit that one met is not met by every other.
            self.throttle.slow_down(seconds, asked_at)
            return 0.0

        def is_enough(state: RetryCallState) -> bool:
            fault = _fault_of(state)
            silence = time.monotonic() - max(begun, self.last_progress) + (fault.retry_after or 0)
            in_vain = fault.kind == "rate_limit" and silence > self.patience
            return in_vain or state.attempt_number >= ATTEMPTS[fault.kind]

        def sleep(seconds: float) -> None:
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0 and not is_over():
                time.sleep(min(left, 0.1))

        retrying = Retrying(
            retry=retry_if_result(lambda outcome: outcome.fault and outcome.fault.kind in ATTEMPTS),
            stop=is_enough,
            wait=wait,
            sleep=sleep,
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        return replace(retrying(once), usage=usage)

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


_PAID: Final = {"calls": "requests", "read": "read", "written": "written"}
"""Names in the cache of what an answer has cost, and those of `Usage`."""


def _fault_of(state: RetryCallState) -> Fault:
    fault = state.outcome.result().fault if state.outcome is not None else None
    assert isinstance(fault, Fault)
    return fault


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
        self.equal: dict[str, list[int]] = {}
        for index in range(len(requests)):
            self.equal.setdefault(self._group(index), []).append(index)
        self.open = [indices[0] for indices in self.equal.values()]
        self.stopped = threading.Event()
        self.failed: list[tuple[int, Outcome]] = []
        self.in_a_row: list[Fault] = []
        self.failures, self.cached, self.cost = 0, 0, 0.0

    def _group(self, index: int) -> str:
        key = self.requests[index].key if self.runner.cache is not None else None
        return key or str(index)

    def outcomes(self) -> list[Outcome]:
        """In the order of the requests."""
        return [self.found[index] for index in range(len(self.requests))]

    def replay(self, player: recording.Player) -> None:
        """Take every answer from a recording, and charge the budget as its run did."""
        missing: list[int] = []
        refused: list[int] = []
        for index in self.open:
            request = self.requests[index]
            entry = player.get(request.portable_key)
            if entry is None:
                missing.append(index)
                continue
            usage, fault = entry.paid, entry.failed
            self.runner.budget.charge(usage)
            if fault is not None and fault.kind == "budget":
                refused.append(index)
                continue
            try:
                request.check(entry.answer or {}) if fault is None else None
            except AnswerError as error:
                raise ReplayError(
                    f"{request} has an answer in {player.path} that is none: {error}."
                ) from None
            known = fault is None and usage.requests == 0
            self._settle(index, Outcome(entry.answer, fault, usage, known))
        if refused and self.runner.budget.is_limited:
            raise self.runner.budget.exhausted()
        missing = sorted([*missing, *refused])
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
        waiting: queue.SimpleQueue[int] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[int, Outcome | BaseException]] = queue.SimpleQueue()
        for index in self.open:
            waiting.put(index)
        # Daemons, since Python waits at its end for others, however long a call hangs.
        threads = [
            threading.Thread(
                target=contextvars.copy_context().run,
                args=(self._work, waiting, done),
                name=f"ask_{number}",
                daemon=True,
            )
            for number in range(min(self.runner.concurrency, len(self.open)))
        ]
        seconds: float | None = None
        self.runner.last_progress = time.monotonic()
        try:
            self._check()
            for thread in threads:
                thread.start()
            for _ in self.open:
                self._take(*self._next(done))
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
            self._settle_late(done)

    def _work(
        self,
        waiting: queue.SimpleQueue[int],
        done: queue.SimpleQueue[tuple[int, Outcome | BaseException]],
    ) -> None:
        while not self.stopped.is_set():
            try:
                index = waiting.get_nowait()
                done.put((index, self.runner.ask(self.requests[index], self.stopped)))
            except (queue.Empty, StoppedError):
                return
            except BaseException as error:
                done.put((index, error))

    def _check(self) -> None:
        if self.runner.stop.is_set():
            raise CancelledError(CANCELLED)

    def _next(
        self, done: queue.SimpleQueue[tuple[int, Outcome | BaseException]]
    ) -> tuple[int, Outcome]:
        while True:
            self._check()
            try:
                # Woken now and then to see that it is over, or that it was interrupted.
                index, outcome = done.get(timeout=0.2)
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
                raise _unusable(request, fault, self.runner.unusable)
            return
        if fault.kind == "budget":
            self._record(request, outcome)
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
            raise _refusal(request, fault, some)

    def _settle_late(self, done: queue.SimpleQueue[tuple[int, Outcome | BaseException]]) -> None:
        """Settle what came after the end, since it has been paid for."""
        while not done.empty():
            index, outcome = done.get()
            if isinstance(outcome, BaseException):
                continue
            if outcome.answer is None:
                self._record(self.requests[index], outcome)
                continue
            try:
                self._settle(index, outcome)
            except Exception:
                return  # the error that ended the run is on its way already

    def _settle(self, index: int, outcome: Outcome) -> None:
        self._record(self.requests[index], outcome)
        for position in self.equal[self._group(index)]:
            own = outcome
            if position != index and outcome.answer is not None:
                own = replace(outcome, cached=True)
            elif position != index:
                own = replace(outcome, usage=UNPAID)
            self.found[position] = own
            self._show(own)
            self.on_outcome(position, own)

    def _show(self, outcome: Outcome) -> None:
        self.failures += outcome.fault is not None
        self.cached += outcome.cached
        self.cost += 0.0 if outcome.cached else outcome.usage.cost or 0.0
        notes = [f"{self.failures} failed"] if self.failures else []
        notes += [f"{self.cached} cached"] if self.cached else []
        notes += [f"${self.cost:.4f}"] if self.cost else []
        self.shown.set_postfix_str(", ".join(notes), refresh=False)
        self.shown.update()

    def _record(self, request: Request, outcome: Outcome) -> None:
        recorder, fault = recording.recorder(), outcome.fault
        if recorder is None or not request.portable_key:
            return
        paid = UNPAID if outcome.cached else outcome.usage
        recorder.put(
            recording.Entry(
                key=request.portable_key,
                about=request.recorded_about,
                answer=outcome.answer,
                failed=None if fault is None else Fault(fault.kind, fault.message),
                paid=paid,
            )
        )


def _join(threads: Sequence[threading.Thread], seconds: float | None) -> None:
    """Wait for threads, so long at most, in short turns so that Ctrl-C is seen in between."""
    deadline = None if seconds is None else time.monotonic() + seconds
    for thread in threads:
        while thread.is_alive() and (deadline is None or time.monotonic() < deadline):
            thread.join(1.0 if deadline is None else min(1.0, deadline - time.monotonic()))


_ADVICE: Final = {
    "credential": "Check the key: providers read it from the environment (for openai:/ models "
    "OPENAI_API_KEY; a local server that asks for none takes any value).",
    "unreachable": "Check that the server runs and that base_url names it.",
    "refused": "Check the model's name, the endpoint and the quota.",
    "rate_limit": "Nothing was answered for so long that the run was ended. Run again later, or "
    "ask for a higher rate limit.",
    "timeout": "Allow more time with a timeout in seconds among inference_params, limit answers "
    "with max_tokens, or lower the concurrency.",
}


def _refusal(request: Request, fault: Fault, some: bool) -> ModelError:
    """The error that ends a run in which no call can be expected to succeed."""
    where = f" at {request.place}" if request.place else ""
    kept = "Nothing was answered."
    if some:
        kept = "What was answered before is kept; run again for the rest."
    advice = _ADVICE.get(fault.kind, f"So did {FAILURES_TO_STOP} calls in a row.")
    kinds = {"credential": CredentialError, "unreachable": UnreachableModelError}
    return kinds.get(fault.kind, ModelError)(
        f"{request.sender} got no answer from {request.model}{where}: "
        f"{fault.message.rstrip('.')}. {advice} {kept}"
    )


def _unusable(request: Request, fault: Fault, count: int) -> ModelError:
    return ModelError(
        f"{request.sender} got no usable answer from {request.model}: none of the first {count}. "
        f"The last one: {fault.message.rstrip('.')}. Check that the model can follow the "
        "instructions, that its value type fits, and that max_tokens does not cut its answers."
    )
