"""Many judge calls at once: in parallel, cached, retried, slowed down, stopped when in vain.

`run` calls one judge on many examples, `run_many` several judges. Each returns a verdict for
every question, failures included: a failure is data, and only when no call can be expected
to succeed is it an exception.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from workbench.budget import Budget
from workbench.cache import AnswerCache
from workbench.errors import (
    ArgumentError,
    BudgetError,
    CredentialError,
    ModelError,
    UnreachableModelError,
)
from workbench.faults import PERMANENT, Failure, Fault, cause_of_type, classify
from workbench.judge import Verdict, scrub, without_credentials
from workbench.progress import bar
from workbench.question import AnswerError, Plan, Question
from workbench.replay import JudgeBatch
from workbench.scale import Scale
from workbench.throttle import Throttle
from workbench.traces import Example
from workbench.transport import MISSING, Transport
from workbench.workers import Workers

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

TRANSIENT_ATTEMPTS = 4
RATE_LIMIT_ATTEMPTS = 12
PERMANENT_FAILURES_TO_STOP = 3
"""In a row; one is enough where nothing was answered yet."""

SECONDS_AFTER_INTERRUPT = 5.0
"""How long Ctrl-C waits for calls under way; what they bring later is still kept in the cache."""

FAILURES_TO_STOP = 10
"""In a row, of any fault but unusable answers, each after all its attempts."""


def run(
    judge: Judge,
    items: Sequence[Example],
    *,
    concurrency: int = 64,
    cache: AnswerCache | None = None,
    sample: int = 0,
    progress: str | None = None,
    on_verdict: Callable[[Verdict], None] | None = None,
    scale: Scale | None = None,
    budget: Budget | None = None,
) -> list[Verdict]:
    """Call the judge on every item, in parallel, and return the verdicts in their order.

    Parameters
    ----------
    cache
        Where answers to equal questions are looked up and kept; failures are never kept.
    sample
        Number of the sample, from 0: the same item may be judged several times.
    progress
        Text before the progress bar; None for no bar.
    on_verdict
        Called in this thread with each verdict as it comes, cached ones first.
    scale
        Values off this scale are failures; the judge's own scale when None.
    budget
        Counts the requests, and what they use, before they are made.

    Raises
    ------
    UnreachableModelError, CredentialError, ModelError
        When the first call, or several calls in a row, failed in a way that no other call
        can be expected to survive.
    BudgetError
        When the budget is spent. Answers that were paid for have been given to ``on_verdict``.
    ReplayError
        While a file of answers is replayed (`workbench.replaying`) that lacks one.
    """
    return run_many(
        [(judge, item, sample) for item in items],
        concurrency=concurrency,
        cache=cache,
        progress=progress,
        on_verdict=on_verdict,
        scale=scale,
        budget=budget,
    )


def run_many(
    questions: Sequence[tuple[Judge, Example, int]],
    *,
    concurrency: int = 64,
    cache: AnswerCache | None = None,
    progress: str | None = None,
    on_verdict: Callable[[Verdict], None] | None = None,
    scale: Scale | None = None,
    budget: Budget | None = None,
    session: Session | None = None,
) -> list[Verdict]:
    """As `run`, for (judge, item, sample number) triples of several judges at once.

    ``session`` is what runs that follow each other share (see `Session`).
    """
    plans: dict[int, Plan] = {}
    asked = []
    for judge, item, sample in questions:
        if id(judge) not in plans:
            plans[id(judge)] = Plan.of(judge, scale)
        asked.append(Question(plans[id(judge)], item, sample))
    # Equal questions are asked once where answers are kept, else as often as they stand here.
    alike: dict[str, list[int]] = {}
    for position, question in enumerate(asked):
        kept = cache is not None and question.plan.lasting
        alike.setdefault(question.key if kept else str(position), []).append(position)
    positions = list(alike.values())
    firsts = [asked[same[0]] for same in positions]
    budget = budget or Budget()
    batch = JudgeBatch(firsts, cached=cache is not None)
    stored: Sequence[Verdict | None] | None = batch.verdicts(budget)
    if stored is None:
        stored = [q.stored(cache) if cache is not None else None for q in firsts]

    found: list[Verdict | None] = [None] * len(asked)
    with bar(total=len(asked), desc=progress, disable=progress is None) as shown:
        tally = _Tally(shown, on_verdict)

        def settle(same: Sequence[int], verdict: Verdict) -> None:
            for position in same:
                own = replace(verdict, trace_id=asked[position].item.trace_id)
                if position != same[0]:
                    own = replace(own, cached=own.error is None, calls=0, **_UNPAID)
                found[position] = own
                tally.add(own)

        for index, read in enumerate(stored):
            if read is not None:
                settle(positions[index], batch.keep(index, read))
        pending = [index for index, read in enumerate(stored) if read is None]
        if budget.measures and pending:
            for plan in plans.values():
                check_measurable(plan.judge)
        calls = _Calls([firsts[i] for i in pending], concurrency, cache, budget, session)

        def answered(which: int, verdict: Verdict) -> None:
            index = pending[which]
            settle(positions[index], batch.keep(index, verdict))

        with batch.noted(budget):
            calls.make(answered)
    return [verdict for verdict in found if verdict is not None]


def check_measurable(judge: Judge) -> None:
    """Raise `BudgetError` where tokens of the judge's requests cannot be counted beforehand."""
    model = str(getattr(judge, "model", None) or "")
    why = ""
    if MISSING:
        why = f"this version of MLflow has no {', '.join(MISSING)}"
    elif not type(judge).__module__.startswith(("mlflow.", "workbench.")):
        why = f"how {type(judge).__name__} calls its model is its own affair"
    elif model == "databricks" or model.partition(":/")[0] in ("databricks", "endpoints"):
        why = f"requests to {model} are made by Databricks' own client"
    if why:
        raise BudgetError(
            f"A budget in tokens or money cannot be kept for judge {judge.name!r}: {why}. Nothing "
            "was spent. Set the budget in calls instead."
        )


_UNPAID: dict[str, Any] = {"input_tokens": None, "output_tokens": None, "cost": None}


class Session:
    """What several runs share: connections, and whether the model has answered.

    The first call of all goes alone; once something was answered, later runs start with all
    their calls at once. A context manager that closes the connections.
    """

    def __init__(self, concurrency: int = 64) -> None:
        self.transport = Transport(concurrency)
        self.answered = 0

    def close(self) -> None:
        self.transport.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _StoppedError(Exception):
    """The run has ended before this request was made."""


class _Calls:
    """The calls of one run: in parallel, slowed by rate limits, stopped when all is in vain."""

    def __init__(
        self,
        questions: Sequence[Question],
        concurrency: int,
        cache: AnswerCache | None,
        budget: Budget,
        session: Session | None,
    ) -> None:
        if concurrency < 1:
            raise ArgumentError(f"concurrency={concurrency} must be at least 1.")
        self.questions = questions
        self.concurrency = min(concurrency, max(1, len(questions)))
        self.cache = cache
        self.budget = budget
        self.throttle = Throttle(self.concurrency)
        self.stopped = threading.Event()
        self.session = session
        self.answered = session.answered if session is not None else 0
        self._held: list[tuple[int, _Outcome]] = []
        self._in_a_row: list[_Outcome] = []

    def make(self, settle: Callable[[int, Verdict], None]) -> None:
        """Call ``settle(index, verdict)`` in this thread as answers come.

        Where nothing was answered yet the first call goes alone: a dead endpoint or a wrong key
        then costs one call, and nothing of it is kept.
        """
        if not self.questions:
            return
        session = self.session or Session(self.concurrency)
        transport = session.transport
        workers = Workers[_Outcome](self.concurrency, "judge")
        patience: float | None = None
        running: dict[Future[_Outcome], int] = {}
        done: queue.SimpleQueue[Future[_Outcome]] = queue.SimpleQueue()
        try:
            alone = 0 if self.answered else 1
            if alone:
                self._take(0, self._answer(self.questions[0], transport), settle)
            for index, question in enumerate(self.questions[alone:], start=alone):
                future = workers.submit(self._answer, question, transport)
                running[future] = index
                future.add_done_callback(done.put)
            while running:
                future = _next(done)
                self._take(running.pop(future), future.result(), settle)
            self._give_up(settle)
        except BaseException as error:
            # Whoever interrupts is not kept waiting by a call that hangs.
            patience = None if isinstance(error, Exception) else SECONDS_AFTER_INTERRUPT
            raise
        finally:
            # Calls under way end in their threads, nothing new is started, and what came too
            # late for the loop above has been paid for: it is kept.
            self.stopped.set()
            self.throttle.release()
            workers.stop(patience)
            session.answered = self.answered
            if self.session is None:
                session.close()
            self._keep(running, settle)

    def _take(self, index: int, outcome: _Outcome, settle: Callable[[int, Verdict], None]) -> None:
        if outcome.fault not in (None, "answer"):
            self._held.append((index, outcome))
            self._in_a_row.append(outcome)
            permanent = [one for one in self._in_a_row if one.fault in PERMANENT]
            enough = PERMANENT_FAILURES_TO_STOP if self.answered else 1
            if len(permanent) >= enough:
                raise self._refusal(self.questions[index], permanent[-1])
            if len(self._in_a_row) >= FAILURES_TO_STOP:
                raise self._refusal(self.questions[index], outcome)
            return
        self._in_a_row.clear()
        # A model that answers what was asked after a failure has not failed for good.
        self._give_up(settle, before=outcome.asked_at)
        self.answered += outcome.verdict.error is None
        settle(index, outcome.verdict)

    def _give_up(
        self, settle: Callable[[int, Verdict], None], before: float = float("inf")
    ) -> None:
        """Settle the failures from before the given time as those of their items."""
        held, self._held = self._held, []
        for index, outcome in held:
            if outcome.failed_at < before:
                settle(index, outcome.verdict)
            else:
                self._held.append((index, outcome))

    def _keep(
        self, running: dict[Future[_Outcome], int], settle: Callable[[int, Verdict], None]
    ) -> None:
        for future, index in running.items():
            if not future.done() or future.cancelled() or future.exception() is not None:
                continue
            verdict = future.result().verdict
            if verdict.error is None:
                try:
                    settle(index, verdict)
                except Exception:
                    return  # the error that ended the run is on its way already

    def _answer(self, question: Question, transport: Transport) -> _Outcome:
        """Ask until there is an answer or no hope of one; runs in a thread of the pool."""
        requests, asked_at = 0, 0.0

        def count() -> None:
            nonlocal requests
            if self.stopped.is_set():
                raise _StoppedError
            self.budget.take()
            requests += 1

        model = str(getattr(question.plan.judge, "model", None) or "")

        def measured(request: Mapping[str, Any]) -> AbstractContextManager[Callable[[Any], None]]:
            return self.budget.measuring(model, request, self.stopped.is_set)

        def once() -> tuple[Verdict, Any]:
            nonlocal asked_at
            with self.throttle.slot() as asked_at:
                # Counted here, for judges whose requests pass by the transport; what a judge
                # asks beyond its first request is counted there.
                count()
                with transport.carrying(after_the_first(count), measured):
                    return question.ask()

        def pause(state: RetryCallState) -> float:
            failure = classify(_error_of(state))
            seconds = failure.wait or _backoff(state)
            if failure.fault != "rate":
                return seconds
            # All calls wait together, so a limit that one call met is not met by every other.
            self.throttle.slow_down(seconds, asked_at)
            return 0.0

        def sleep(seconds: float) -> None:
            self.stopped.wait(seconds)

        retrying = Retrying(
            retry=retry_if_exception(_worth_retrying),
            stop=_stop,
            wait=pause,
            sleep=sleep,
            reraise=True,
        )
        try:
            verdict, value = retrying(once)
        except Exception as error:
            # MLflow's adapters wrap whatever is raised within them.
            if spent := cause_of_type(error, BudgetError):
                raise spent from None
            unusable = isinstance(error, AnswerError)
            failure = Failure("answer", str(error)) if unusable else classify(error)
            failed = Verdict(
                trace_id=question.item.trace_id,
                error=scrub(failure.message, question.plan.judge)[:2000],
                fingerprint=question.plan.mark,
                calls=requests,
            )
            return _Outcome(failed, failure.fault, asked_at, time.monotonic())
        self.throttle.speed_up()
        if self.cache is not None:
            question.keep(self.cache, value, verdict.rationale)
        return _Outcome(replace(verdict, calls=requests), None, asked_at)

    def _refusal(self, question: Question, outcome: _Outcome) -> ModelError:
        judge = question.plan.judge
        model = getattr(judge, "model", None) or type(judge).__name__
        base_url = getattr(judge, "_base_url", None)
        where = f" at {without_credentials(base_url)}" if base_url else ""
        kept = (
            "What was judged before is kept; run again to judge the rest."
            if self.answered
            else "Nothing was judged."
        )
        message = (outcome.verdict.error or "").rstrip(".")
        said = f"Judge {judge.name!r} got no answer from {model}{where}: {message}."
        if outcome.fault == "credential":
            return CredentialError(
                f"{said} Check the key: providers read it from the environment (for openai:/ "
                f"models OPENAI_API_KEY; a local server that asks for none takes any value). {kept}"
            )
        if outcome.fault == "unreachable":
            return UnreachableModelError(
                f"{said} Check that the server runs and that base_url names it. {kept}"
            )
        if outcome.fault == "refused":
            return ModelError(f"{said} Check the model's name, the endpoint and the quota. {kept}")
        return ModelError(f"{said} So did {FAILURES_TO_STOP} calls in a row. {kept}")


_backoff = wait_random_exponential(multiplier=0.5, max=20)


@dataclass(frozen=True)
class _Outcome:
    """``asked_at`` and ``failed_at`` are monotonic times of the last attempt."""

    verdict: Verdict
    fault: Fault | None
    asked_at: float
    failed_at: float = 0.0


def _next(done: queue.SimpleQueue[Future[_Outcome]]) -> Future[_Outcome]:
    while True:
        try:
            # Where a wait without an end cannot be interrupted, Ctrl-C is seen in between.
            return done.get(timeout=1.0)
        except queue.Empty:
            continue


def after_the_first(count: Callable[[], None]) -> Callable[[], None]:
    """A function that calls ``count`` each time but the first."""
    first = True

    def counted() -> None:
        nonlocal first
        if not first:
            count()
        first = False

    return counted


def _error_of(state: RetryCallState) -> BaseException:
    error = state.outcome.exception() if state.outcome is not None else None
    assert error is not None
    return error


def _worth_retrying(error: BaseException) -> bool:
    if isinstance(error, AnswerError) or cause_of_type(error, (BudgetError, _StoppedError)):
        return False
    return classify(error).fault in ("rate", "transient")


def _stop(state: RetryCallState) -> bool:
    limited = classify(_error_of(state)).fault == "rate"
    return state.attempt_number >= (RATE_LIMIT_ATTEMPTS if limited else TRANSIENT_ATTEMPTS)


class _Tally:
    """Progress bar and callback, fed with each verdict."""

    def __init__(self, shown: Any, on_verdict: Callable[[Verdict], None] | None) -> None:
        self.shown, self.on_verdict = shown, on_verdict
        self.failures, self.cached, self.cost = 0, 0, 0.0

    def add(self, verdict: Verdict) -> None:
        self.failures += verdict.error is not None
        self.cached += verdict.cached
        self.cost += verdict.cost or 0.0
        notes = [f"{self.failures} failed"] if self.failures else []
        notes += [f"{self.cached} cached"] if self.cached else []
        notes += [f"${self.cost:.4f}"] if self.cost else []
        self.shown.set_postfix_str(", ".join(notes), refresh=False)
        self.shown.update()
        if self.on_verdict is not None:
            self.on_verdict(verdict)
