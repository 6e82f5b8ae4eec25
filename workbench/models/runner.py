"""Asks models many questions: in parallel, cached, retried, slowed down, stopped when in vain.

Every question gets an outcome, failures included: a failure is data, and only when no call can
be expected to succeed is it an exception. This is the only place where requests are retried.
"""

from __future__ import annotations

import contextvars
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Final, Generic, TypeVar

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

T = TypeVar("T")

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
"""How long a run that was cancelled waits for calls under way; as above, no answer is lost."""

CANCELLED: Final = "This was cancelled. Answers that were paid for are kept."

_backoff = wait_random_exponential(multiplier=0.5, max=20)


class Throttle:
    """Slots for calls, shared by the threads of a run.

    It starts with one slot, until something was answered: a dead endpoint or a wrong key then
    costs one call. A call that meets a rate limit halves the number of slots and lets all calls
    wait together, so that a limit met by one is not met by every other; calls that succeed bring
    the slots back one by one.

    Parameters
    ----------
    most
        Never more slots than this.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._limit = 1.0
        self._opened = False
        self._active = 0
        self._resume_at = 0.0
        self._slowed_at = 0.0
        self._changed = threading.Condition()

    @property
    def limit(self) -> int:
        """How many calls may be under way now."""
        return int(self._limit)

    @contextmanager
    def slot(self, is_over: Callable[[], bool] = lambda: False) -> Iterator[float]:
        """Wait for a slot, or until it is over, and hold it; gives the time it was had."""
        with self._changed:
            while not is_over():
                pause = self._resume_at - time.monotonic()
                if self._active < self.limit and pause <= 0:
                    break
                self._changed.wait(min(pause, 0.5) if pause > 0 else 0.5)
            self._active += 1
        try:
            yield time.monotonic()
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify()

    def slow_down(self, seconds: float, asked_at: float) -> None:
        """Pause all calls, and halve the slots unless that was done since ``asked_at``.

        ``asked_at`` is when the call that met the limit had its slot: all that were under way
        with it meet the same limit, and count once.
        """
        with self._changed:
            now = time.monotonic()
            if asked_at >= self._slowed_at:
                self._limit = max(1.0, self._limit / 2)
                self._slowed_at = now
            self._resume_at = max(self._resume_at, now + seconds)

    def speed_up(self, *, usable: bool = True) -> None:
        """A call was answered: a slot more for as many answers as there are slots.

        The first usable answer opens all slots, each unusable one before it a slot more.
        """
        with self._changed:
            if self._opened:
                self._limit = min(float(self.most), self._limit + 1.0 / self._limit)
            else:
                self._opened = usable
                self._limit = float(self.most) if usable else min(self.most, self._limit + 1)
            self._changed.notify_all()

    def wake(self) -> None:
        """Let those who wait see whether it is over."""
        with self._changed:
            self._changed.notify_all()


class Workers(Generic[T]):
    """Up to ``count`` daemon threads, started as there is work.

    Those of `concurrent.futures` are waited for when Python ends, however long a call hangs.
    """

    def __init__(self, count: int, name: str) -> None:
        self.count, self.name = count, name
        self._tasks: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._waiting: list[Future[T]] = []
        self._threads: list[threading.Thread] = []

    def submit(self, function: Callable[..., T], *arguments: Any) -> Future[T]:
        """Call ``function(*arguments)`` in a thread, in a copy of the current context."""
        future: Future[T] = Future()
        context = contextvars.copy_context()

        def task() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = context.run(function, *arguments)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(result)

        self._waiting.append(future)
        self._tasks.put(task)
        if len(self._threads) < self.count:
            thread = threading.Thread(
                target=self._work, name=f"{self.name}_{len(self._threads)}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return future

    def stop(self, seconds: float | None = None) -> None:
        """Cancel what has not begun, and wait for what has: so long at most, or to its end.

        What still runs then goes on in its thread, as long as the process does.
        """
        for future in self._waiting:
            future.cancel()
        for _ in self._threads:
            self._tasks.put(None)
        deadline = None if seconds is None else time.monotonic() + seconds
        for thread in self._threads:
            # Waited for in short turns, so that Ctrl-C is seen in between everywhere.
            while thread.is_alive() and (deadline is None or time.monotonic() < deadline):
                left = 1.0 if deadline is None else deadline - time.monotonic()
                thread.join(max(0.0, min(1.0, left)))

    def _work(self) -> None:
        while (task := self._tasks.get()) is not None:
            task()


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

    Attributes
    ----------
    answered, unusable
        Usable and unusable answers that were asked for, in all runs.
    """

    def __init__(
        self,
        *,
        cache: AnswerCache | None = None,
        budget: Budget | None = None,
        concurrency: int = 64,
        stop: threading.Event | None = None,
        patience: float = PATIENCE,
    ) -> None:
        if concurrency < 1:
            raise ArgumentError(f"concurrency={concurrency} must be at least 1.")
        self.cache, self.budget, self.concurrency = cache, budget or Budget(), concurrency
        self.stop, self.patience = stop or threading.Event(), patience
        self.client = Client(concurrency)
        self.throttle = Throttle(concurrency)
        self.answered = 0
        self.last_progress = time.monotonic()
        self.unkept: StoreError | None = None
        self.unusable = 0
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
        BudgetError
            When the budget is spent. Answers that came have been given to ``on_outcome``.
        CancelledError
            When ``stop`` is set. Answers that came have been given to ``on_outcome``.
        StoreError
            When answers cannot be kept. They have been given to ``on_outcome``.
        ReplayError
            While a recording is replayed that lacks an answer.
        """
        with bar(total=len(requests), desc=progress, disable=progress is None) as shown:
            run = _Run(self, requests, _Progress(shown, on_outcome))
            player, recorder = recording.replayed(), recording.recorder()
            if player is not None:
                run.replay(player)
            else:
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

        May be called from any thread. Once ``stopped`` is set nothing is sent any more; it is set
        here where the model cannot answer, or not usably, and has never done so. Where the budget
        does not allow a request, the outcome's fault is of the kind ``budget``.

        Raises
        ------
        StoppedError
            When ``stopped`` or `stop` was set before the answer came.
        """
        key, stopped = request.key, stopped or threading.Event()
        if self.cache is None or key is None:
            return self._attempts(request, stopped)
        with self.cache.locked(key, lambda: self._is_over(stopped)):
            known = self.known(request)
            if known is not None:
                return known
            outcome = self._attempts(request, stopped)
            if outcome.answer is not None:
                try:
                    self.cache.put(key, {**outcome.answer, "paid": _paid_to_dict(outcome.usage)})
                except StoreError as error:  # the answer is paid for: it is handed on first
                    self.unkept = error
            return outcome

    def known(self, request: Request) -> Outcome | None:
        """The answer that the cache has; None where it has none that is usable."""
        stored = self.cache.get(request.key) if self.cache is not None and request.key else None
        if stored is None:
            return None
        answer = {name: value for name, value in stored.items() if name != "paid"}
        try:
            request.check(answer)
        except (AnswerError, KeyError, TypeError):
            return None
        return Outcome(answer, usage=_paid_of_dict(stored.get("paid")), cached=True)

    def _is_over(self, stopped: threading.Event) -> bool:
        return stopped.is_set() or self.stop.is_set()

    def _attempts(self, request: Request, stopped: threading.Event) -> Outcome:
        asked_at = begun = time.monotonic()
        usage = Usage()

        def is_over() -> bool:
            return self._is_over(stopped)

        def once() -> Outcome:
            nonlocal asked_at, usage
            with self.throttle.slot(is_over) as asked_at:
                if is_over():
                    raise StoppedError
                outcome = self.client.send(request, self.budget, is_over=is_over)
                self._note(outcome, stopped)
            usage += outcome.usage
            return outcome

        def pause(state: RetryCallState) -> float:
            fault = _fault_of(state)
            seconds = fault.retry_after or _backoff(state)
            if fault.kind != "rate_limit":
                return seconds
            # All calls wait together, so a limit that one met is not met by every other.
            self.throttle.slow_down(seconds, asked_at)
            return 0.0

        def is_enough(state: RetryCallState) -> bool:
            fault = _fault_of(state)
            if state.attempt_number >= ATTEMPTS[fault.kind]:
                return True
            since = time.monotonic() - max(begun, self.last_progress)
            return fault.kind == "rate_limit" and since + (fault.retry_after or 0) > self.patience

        def sleep(seconds: float) -> None:
            end = time.monotonic() + seconds
            while (left := end - time.monotonic()) > 0 and not is_over():
                time.sleep(min(left, 0.1))

        retrying = Retrying(
            retry=retry_if_result(lambda outcome: outcome.fault and outcome.fault.kind in ATTEMPTS),
            stop=is_enough,
            wait=pause,
            sleep=sleep,
            retry_error_callback=lambda state: state.outcome.result() if state.outcome else None,
        )
        outcome: Outcome = retrying(once)
        return replace(outcome, usage=usage)

    def _note(self, outcome: Outcome, stopped: threading.Event) -> None:
        """Open slots after an answer; close all where the very first call was in vain."""
        fault = outcome.fault
        if fault is None:
            with self._lock:
                self.answered += 1
            self.last_progress = time.monotonic()
        elif fault.kind == "answer":
            with self._lock:
                self.unusable += 1
        if fault is None or fault.kind == "answer":
            self.throttle.speed_up(usable=fault is None)
        if not self.answered and (
            self.unusable >= FAILURES_TO_STOP or (fault is not None and fault.permanent)
        ):
            stopped.set()

    def close(self) -> None:
        """Close the connections."""
        self.client.close()

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _fault_of(state: RetryCallState) -> Fault:
    fault = state.outcome.result().fault if state.outcome is not None else None
    assert isinstance(fault, Fault)
    return fault


def _paid_to_dict(usage: Usage) -> dict[str, int]:
    return {"calls": usage.requests, "read": usage.read or 0, "written": usage.written or 0}


def _paid_of_dict(stored: Any) -> Usage:
    """What a stored answer has cost; one request where that is not known."""
    paid = stored if isinstance(stored, dict) else {}
    counts = [paid.get(name) for name in ("calls", "read", "written")]
    calls, read, written = (n if type(n) is int and n >= 0 else None for n in counts)
    return Usage(1 if calls is None else calls, read or None, written or None)


class _Run:
    """One `Runner.run`: which questions are open, and when all is in vain."""

    def __init__(self, runner: Runner, requests: Sequence[Request], progress: _Progress) -> None:
        self.runner, self.requests, self.progress = runner, requests, progress
        self.found: dict[int, Outcome] = {}
        # Equal questions are asked once where answers are kept, else as often as they stand here.
        self.equal: dict[str, list[int]] = {}
        for index in range(len(requests)):
            self.equal.setdefault(self._kept_key(index), []).append(index)
        self.open = [indices[0] for indices in self.equal.values()]
        self.stopped = threading.Event()
        self._failed: list[tuple[int, Outcome]] = []
        self._in_a_row: list[Fault] = []

    def _kept_key(self, index: int) -> str:
        key = self.requests[index].key if self.runner.cache is not None else None
        return key or str(index)

    def outcomes(self) -> list[Outcome]:
        """In the order of the requests."""
        return [self.found[index] for index in range(len(self.requests))]

    # -- what is known --------------------------------------------------------------------

    def replay(self, player: recording.Player) -> None:
        """Take every answer from a recording, and charge the budget as its run did."""
        missing: list[int] = []
        budget_ended = False
        for index in self.open:
            request = self.requests[index]
            entry = player.get(request.portable_key)
            if entry is None:
                missing.append(index)
                continue
            usage = Usage(**entry.paid.model_dump())
            self.runner.budget.charge(usage)
            failed, fault = entry.failed, None
            if failed is not None:
                if failed.kind == "budget":
                    budget_ended = True
                    continue
                fault = Fault(failed.kind, failed.message)
            if entry.answer is not None:
                try:
                    request.check(entry.answer)
                except AnswerError as error:
                    raise ReplayError(
                        f"{request} has an answer in {player.path} that is none: {error}."
                    ) from None
            known = fault is None and usage.requests == 0
            self._settle(index, Outcome(entry.answer, fault, usage, known))
        if budget_ended and self.runner.budget.is_limited:
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

    # -- asking ---------------------------------------------------------------------------

    def ask(self) -> None:
        """Ask the open questions in threads, and settle outcomes in this one as they come."""
        if not self.open:
            return
        self.runner.last_progress = time.monotonic()
        workers = Workers[Outcome](min(self.runner.concurrency, len(self.open)), "ask")
        running: dict[Future[Outcome], int] = {}
        done: queue.SimpleQueue[Future[Outcome]] = queue.SimpleQueue()
        seconds: float | None = None
        try:
            self._check()
            for index in self.open:
                future = workers.submit(self.runner.ask, self.requests[index], self.stopped)
                running[future] = index
                future.add_done_callback(done.put)
            while running:
                future = self._next(done)
                index = running.pop(future)
                try:
                    outcome = future.result()
                except StoppedError:  # another outcome says why
                    continue
                self._take(index, outcome)
            self._check()
            self._give_up()
        except BaseException as error:
            # Whoever interrupts is not kept waiting by a call that hangs.
            if isinstance(error, CancelledError):
                seconds = SECONDS_AFTER_CANCEL
            elif not isinstance(error, Exception):
                seconds = SECONDS_AFTER_INTERRUPT
            raise
        finally:
            # Calls under way end in their threads, nothing new is started, and what came too
            # late for the loop above has been paid for: it is kept.
            self.stopped.set()
            self.runner.throttle.wake()
            workers.stop(seconds)
            self._settle_late(running)

    def _check(self) -> None:
        if self.runner.stop.is_set():
            raise CancelledError(CANCELLED)

    def _next(self, done: queue.SimpleQueue[Future[Outcome]]) -> Future[Outcome]:
        while True:
            self._check()
            try:
                # Woken now and then to see that it is over. Where a wait without an end cannot be
                # interrupted, Ctrl-C is seen in between as well.
                future = done.get(timeout=0.2)
            except queue.Empty:
                continue
            self._check()
            return future

    def _take(self, index: int, outcome: Outcome) -> None:
        request, fault = self.requests[index], outcome.fault
        if fault is None:
            self._in_a_row.clear()
            self._give_up()
            self._settle(index, outcome)
            if self.runner.unkept is not None:
                raise self.runner.unkept
        elif fault.kind == "answer":
            self._in_a_row.clear()
            self._settle(index, outcome)
            if self.stopped.is_set() and not self.runner.answered:
                raise _unusable(request, fault, self.runner.unusable)
        elif fault.kind == "budget":
            self._record(request, outcome)
            raise BudgetError(fault.message)
        else:
            self._failed.append((index, outcome))
            self._in_a_row.append(fault)
            self._stop_if_in_vain(request, fault)

    def _stop_if_in_vain(self, request: Request, fault: Fault) -> None:
        permanent = [one for one in self._in_a_row if one.permanent]
        in_vain = self.stopped.is_set() or not self.runner.answered
        if len(permanent) >= (1 if in_vain else PERMANENT_FAILURES_TO_STOP):
            raise _refusal(request, permanent[-1], bool(self.runner.answered))
        silent = time.monotonic() - self.runner.last_progress > self.runner.patience
        if len(self._in_a_row) >= FAILURES_TO_STOP or (fault.kind == "rate_limit" and silent):
            raise _refusal(request, fault, bool(self.runner.answered))

    def _give_up(self) -> None:
        """Settle the failures until now as those of their questions, now that others succeed."""
        failed, self._failed = self._failed, []
        for index, outcome in failed:
            self._settle(index, outcome)

    def _settle_late(self, running: dict[Future[Outcome], int]) -> None:
        for future, index in running.items():
            if not future.done() or future.cancelled() or future.exception() is not None:
                continue
            outcome = future.result()
            if outcome.answer is not None:
                try:
                    self._settle(index, outcome)
                except Exception:
                    return  # the error that ended the run is on its way already
            else:
                self._record(self.requests[index], outcome)

    # -- outcomes -------------------------------------------------------------------------

    def _settle(self, index: int, outcome: Outcome) -> None:
        self._record(self.requests[index], outcome)
        for position in self.equal[self._kept_key(index)]:
            own = outcome
            if position != index and outcome.answer is not None:
                own = replace(outcome, cached=True)
            elif position != index:
                own = replace(outcome, usage=UNPAID)
            self.found[position] = own
            self.progress.add(position, own)

    def _record(self, request: Request, outcome: Outcome) -> None:
        recorder = recording.recorder()
        if recorder is None or not request.portable_key:
            return
        failed, fault = None, outcome.fault
        if fault is not None:
            failed = recording.Failed(kind=fault.kind, message=fault.message)
        recorder.put(
            recording.Entry(
                key=request.portable_key,
                about=request.recorded_about,
                answer=outcome.answer,
                failed=failed,
                paid=recording.Paid(**vars(UNPAID if outcome.cached else outcome.usage)),
            )
        )


def _refusal(request: Request, fault: Fault, some: bool) -> ModelError:
    """The error that ends a run in which no call can be expected to succeed."""
    where = f" at {request.place}" if request.place else ""
    kept = (
        "What was answered before is kept; run again for the rest."
        if some
        else "Nothing was answered."
    )
    said = f"{request.sender} got no answer from {request.model}{where}: "
    said += f"{fault.message.rstrip('.')}."
    if fault.kind == "credential":
        return CredentialError(
            f"{said} Check the key: providers read it from the environment (for openai:/ "
            f"models OPENAI_API_KEY; a local server that asks for none takes any value). {kept}"
        )
    if fault.kind == "unreachable":
        return UnreachableModelError(
            f"{said} Check that the server runs and that base_url names it. {kept}"
        )
    if fault.kind == "refused":
        return ModelError(f"{said} Check the model's name, the endpoint and the quota. {kept}")
    if fault.kind == "rate_limit":
        return ModelError(
            f"{said} Nothing was answered for so long that the run was ended. Run again later, or "
            f"ask for a higher rate limit. {kept}"
        )
    if fault.kind == "timeout":
        return ModelError(
            f"{said} Allow more time with a timeout in seconds among inference_params, limit "
            f"answers with max_tokens, or lower the concurrency. {kept}"
        )
    return ModelError(f"{said} So did {FAILURES_TO_STOP} calls in a row. {kept}")


def _unusable(request: Request, fault: Fault, count: int) -> ModelError:
    return ModelError(
        f"{request.sender} got no usable answer from {request.model}: none of the first {count}. "
        f"The last one: {fault.message.rstrip('.')}. Check that the model can follow the "
        "instructions, that its value type fits, and that max_tokens does not cut its answers."
    )


class _Progress:
    """Progress bar and callback, fed with each outcome."""

    def __init__(self, shown: Any, on_outcome: Callable[[int, Outcome], None]) -> None:
        self.shown, self.on_outcome = shown, on_outcome
        self.failures, self.cached, self.cost = 0, 0, 0.0

    def add(self, index: int, outcome: Outcome) -> None:
        self.failures += outcome.fault is not None
        self.cached += outcome.cached
        self.cost += 0.0 if outcome.cached else outcome.usage.cost or 0.0
        notes = [f"{self.failures} failed"] if self.failures else []
        notes += [f"{self.cached} cached"] if self.cached else []
        notes += [f"${self.cost:.4f}"] if self.cost else []
        self.shown.set_postfix_str(", ".join(notes), refresh=False)
        self.shown.update()
        self.on_outcome(index, outcome)
