"""Many judge calls at once: in parallel, cached, retried, slowed down, stopped when in vain.

`run` calls one judge on many examples, `run_many` several judges. Each returns a verdict for
every question, failures included: a failure is data, and only when no call can be expected
to succeed is it an exception.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager, nullcontext, suppress
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from workbench.credentials import scrub, without_credentials
from workbench.errors import (
    ArgumentError,
    BudgetError,
    CancelledError,
    CredentialError,
    ModelError,
    StoreError,
    UnreachableModelError,
)
from workbench.formatting import bar
from workbench.judging.requests import AnswerError, Plan, Question, answer_of
from workbench.judging.verdicts import Verdict
from workbench.models.budget import Bill, Budget, Receipt
from workbench.models.cache import CANCELLED, AnswerCache, Claims
from workbench.models.client import MISSING, Transport
from workbench.models.faults import PERMANENT, Failure, Fault, cause_of_type, classify
from workbench.models.recording import Batch, Kind, Player, Recorder, active
from workbench.models.runner import Throttle, Workers
from workbench.scale import Scale
from workbench.store.traces import Example

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


class JudgeBatch(Batch):
    """Questions to judges that are asked together (see `workbench.tape.Batch`).

    ``cached`` tells whether answers that are known already may be taken.
    """

    kinds = ("judge", "uncached")

    def __init__(self, questions: Sequence[Question], *, cached: bool) -> None:
        tape = active()
        self.questions, self.cached = questions, cached
        keys = [] if tape is None else [q.tape_key(kept=self._kept(q)) for q in questions]
        super().__init__(keys, tape)

    def _kept(self, question: Question) -> bool:
        return self.cached and question.plan.lasting

    def verdicts(self, budget: Budget) -> list[Verdict] | None:
        """All verdicts from the file that is replayed; None where models are called."""
        lines = self.replayed(budget, lambda index: str(self.questions[index]))
        if lines is None:
            return None
        return [q.of_line(line) for q, line in zip(self.questions, lines, strict=True)]

    def keep(self, index: int, verdict: Verdict) -> Verdict:
        """Note a verdict; what is used and noted holds no secret that the model repeated."""
        if not isinstance(self.tape, Recorder):
            return verdict
        question = self.questions[index]
        clean = replace(verdict, rationale=scrub(verdict.rationale, question.plan.judge))
        answer, paid = answer_of(clean)
        kind: Kind = "judge" if self._kept(question) else "uncached"
        self.note(index, kind, question.told(), answer, paid, repeated=verdict.cached)
        return clean


def note_known(known: Iterable[tuple[Question, Verdict]]) -> None:
    """Note verdicts that the store has already, in whose stead nobody is asked."""
    tape = active()
    if tape is None:
        return
    asked = [(question, verdict) for question, verdict in known if verdict.value is not None]
    batch = JudgeBatch([question for question, _ in asked], cached=True)
    for index, (_, verdict) in enumerate(asked):
        batch.keep(index, verdict)
    if not isinstance(tape, Player):
        tape.save()


TRANSIENT_ATTEMPTS = 4

RATE_LIMIT_ATTEMPTS = 12

PERMANENT_FAILURES_TO_STOP = 3
"""In a row; one is enough where nothing was answered yet."""


SECONDS_AFTER_INTERRUPT = 5.0
"""How long Ctrl-C waits for calls under way; what they bring later is still kept in the cache."""


SECONDS_AFTER_CANCEL = 60.0
"""How long a run that was cancelled waits for calls under way; as above, no answer is lost."""


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
    stop: threading.Event | None = None,
) -> list[Verdict]:
    """Call the judge on every item, in parallel, and return the verdicts in their order.

    Parameters
    ----------
    cache
        Where answers to equal questions are looked up and kept; failures are never kept. What
        another run asks at the same time is waited for and not asked twice.
    sample
        Number of the sample, from 0: the same item may be judged several times.
    progress
        Text before the progress bar; None for no bar.
    on_verdict
        Called in this thread with each verdict as it comes, cached ones first.
    scale
        Values off this scale are failures; the judge's own scale when None.
    budget
        Counts the requests, and what they use, before they are made, and charges known answers
        with what they cost.
    stop
        Once it is set no call is begun any more; those under way are waited for, a minute at most.

    Raises
    ------
    UnreachableModelError, CredentialError, ModelError
        When the first call, or several calls in a row, failed in a way that no other call
        can be expected to survive.
    BudgetError
        When the budget is spent. Answers that were paid for have been given to ``on_verdict``.
    CancelledError
        When ``stop`` is set. Answers that came have been given to ``on_verdict`` and are kept.
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
        stop=stop,
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
    stop: threading.Event | None = None,
) -> list[Verdict]:
    """As `run`, for (judge, item, sample number) triples of several judges at once.

    ``session`` is what runs that follow each other share (see `Session`), ``stop`` among it.
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
    replayed = batch.verdicts(budget)
    stored: Sequence[Verdict | None]
    if replayed is not None:
        stored = replayed
    else:
        stored = [q.stored(cache) if cache is not None else None for q in firsts]

    found: list[Verdict | None] = [None] * len(asked)
    with (
        bar(total=len(asked), desc=progress, disable=progress is None) as shown,
        Session(concurrency, stop) if session is None else nullcontext(session) as shared,
    ):
        tally = _Tally(shown, on_verdict)

        def settle(same: Sequence[int], verdict: Verdict) -> None:
            for position in same:
                own = replace(verdict, trace_id=asked[position].item.trace_id)
                if position != same[0]:
                    own = replace(own, cached=own.error is None, calls=0, **_UNPAID)
                found[position] = own
                tally.add(own)

        def known(index: int, verdict: Verdict) -> None:
            if replayed is None:
                budget.charge(verdict.receipt or Receipt(), firsts[index].model)
            settle(positions[index], batch.keep(index, verdict))

        def answered(index: int, verdict: Verdict) -> None:
            settle(positions[index], batch.keep(index, verdict))

        pending = [index for index, read in enumerate(stored) if read is None]
        if budget.measures and pending:
            for plan in plans.values():
                check_measurable(plan.judge)
        with batch.noted(budget):
            for index, read in enumerate(stored):
                if read is not None:
                    known(index, read)
            asking = _Asking(firsts, concurrency, cache, budget, shared, stop or shared.stop)
            asking.ask(pending, known, answered)
            budget.close(
                (verdict.receipt, question.model)
                for same, question in zip(positions, firsts, strict=True)
                if (verdict := found[same[0]]) is not None and verdict.receipt is not None
            )
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
    """What several runs share: connections, whether the model has answered, who can stop them.

    The first call of all goes alone; once something was answered, later runs start with all
    their calls at once. Once ``stop`` is set, no call is begun any more. A context manager that
    closes the connections.
    """

    def __init__(self, concurrency: int = 64, stop: threading.Event | None = None) -> None:
        self.transport = Transport(concurrency)
        self.stop = stop or threading.Event()
        self.answered = 0

    def close(self) -> None:
        self.transport.close()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _StoppedError(Exception):
    """The run has ended before this request was made."""


class _Asking:
    """Asks what this run has claimed, and waits for what others ask at the same time."""

    def __init__(
        self,
        questions: Sequence[Question],
        concurrency: int,
        cache: AnswerCache | None,
        budget: Budget,
        session: Session,
        stop: threading.Event,
    ) -> None:
        if concurrency < 1:
            raise ArgumentError(f"concurrency={concurrency} must be at least 1.")
        self.questions, self.concurrency, self.cache = questions, concurrency, cache
        self.budget, self.session, self.stop = budget, session, stop

    def ask(
        self,
        pending: Sequence[int],
        known: Callable[[int, Verdict], None],
        answered: Callable[[int, Verdict], None],
    ) -> None:
        """Get all ``pending`` questions settled: ``known(index, verdict)`` by others."""
        with Claims(self.cache) as claims:
            while pending:
                if self.stop.is_set():
                    raise CancelledError(CANCELLED)
                mine = self._mine(pending, claims)
                owed = {index: self._owed(index) for index in pending if index in mine}
                self._make(owed, claims, answered)
                left = [index for index in pending if index not in mine]
                if left:
                    claims.wait([self.questions[index].key for index in left], self.stop)
                pending = []
                for index in left:
                    read = self.questions[index].stored(self.cache) if self.cache else None
                    if read is None:
                        pending.append(index)
                    else:
                        known(index, read)

    def _mine(self, pending: Sequence[int], claims: Claims) -> set[int]:
        """The questions that this run has to ask."""
        if self.cache is None:
            return set(pending)
        keys = {i: self.questions[i].key for i in pending if self.questions[i].plan.lasting}
        had = claims.take([*keys.values()])
        free = {index for index in pending if index not in keys or keys[index] in had}
        # What is there, and off this run's scale, must be asked anew.
        return free | {i for i in keys.keys() - free if self.cache.get(keys[i]) is not None
                       and self.questions[i].stored(self.cache) is None}  # fmt: skip

    def _owed(self, index: int) -> Receipt:
        """What the question has cost a run that was ended before it was answered."""
        question = self.questions[index]
        owed = self.cache.owed(question.key) if self.cache and question.plan.lasting else None
        if owed is None:
            return Receipt(0)
        self.budget.charge(owed, question.model)
        return owed

    def _make(
        self,
        owed: Mapping[int, Receipt],
        claims: Claims,
        answered: Callable[[int, Verdict], None],
    ) -> None:
        mine = list(owed)
        calls = _Calls(
            [(self.questions[index], owed[index]) for index in mine],
            self.concurrency,
            self.cache,
            self.budget,
            self.session,
            self.stop,
            claims.renew,
        )
        calls.make(lambda which, verdict: answered(mine[which], verdict))


class _Calls:
    """The calls of one run: in parallel, slowed by rate limits, stopped when all is in vain."""

    def __init__(
        self,
        questions: Sequence[tuple[Question, Receipt]],
        concurrency: int,
        cache: AnswerCache | None,
        budget: Budget,
        session: Session,
        stop: threading.Event,
        renew: Callable[[], None],
    ) -> None:
        self.questions = questions
        self.concurrency = min(concurrency, max(1, len(questions)))
        self.cache = cache
        self.budget = budget
        self.throttle = Throttle(self.concurrency)
        self.stopped = threading.Event()
        self.session, self.stop, self.renew = session, stop, renew
        self.answered = session.answered
        self._held: list[tuple[int, _Outcome]] = []
        self._in_a_row: list[_Outcome] = []

    def make(self, settle: Callable[[int, Verdict], None]) -> None:
        """Call ``settle(index, verdict)`` in this thread as answers come.

        Where nothing was answered yet the first call goes alone: a dead endpoint or a wrong key
        then costs one call, and nothing of it is kept.
        """
        if not self.questions:
            return
        transport = self.session.transport
        workers = Workers[_Outcome](self.concurrency, "judge")
        patience: float | None = None
        running: dict[Future[_Outcome], int] = {}
        done: queue.SimpleQueue[Future[_Outcome]] = queue.SimpleQueue()
        try:
            alone = 0 if self.answered else 1
            self._check()
            if alone:
                first = self._answer(*self.questions[0], transport)
                if first.verdict.error is not None:
                    self._check()
                self._take(0, first, settle)
            for index, (question, owed) in enumerate(self.questions[alone:], start=alone):
                future = workers.submit(self._answer, question, owed, transport)
                running[future] = index
                future.add_done_callback(done.put)
            while running:
                future = self._next(done)
                self._take(running.pop(future), future.result(), settle)
            self._give_up(settle)
        except BaseException as error:
            # Whoever interrupts is not kept waiting by a call that hangs.
            if isinstance(error, CancelledError):
                patience = SECONDS_AFTER_CANCEL
            elif not isinstance(error, Exception):
                patience = SECONDS_AFTER_INTERRUPT
            raise
        finally:
            # Calls under way end in their threads, nothing new is started, and what came too
            # late for the loop above has been paid for: it is kept.
            self.stopped.set()
            self.throttle.release()
            workers.stop(patience)
            self.session.answered = self.answered
            self._keep(running, settle)

    def _check(self) -> None:
        if self.stop.is_set():
            raise CancelledError(CANCELLED)

    def _next(self, done: queue.SimpleQueue[Future[_Outcome]]) -> Future[_Outcome]:
        while True:
            self._check()
            self.renew()
            try:
                # Woken now and then to see that it is over. Where a wait without an end cannot be
                # interrupted, Ctrl-C is seen in between as well.
                future = done.get(timeout=0.2)
            except queue.Empty:
                continue
            self._check()
            return future

    def _take(self, index: int, outcome: _Outcome, settle: Callable[[int, Verdict], None]) -> None:
        if outcome.fault not in (None, "answer"):
            self._held.append((index, outcome))
            self._in_a_row.append(outcome)
            permanent = [one for one in self._in_a_row if one.fault in PERMANENT]
            enough = PERMANENT_FAILURES_TO_STOP if self.answered else 1
            if len(permanent) >= enough:
                raise self._refusal(self.questions[index][0], permanent[-1])
            if len(self._in_a_row) >= FAILURES_TO_STOP:
                raise self._refusal(self.questions[index][0], outcome)
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

    def _answer(self, question: Question, owed: Receipt, transport: Transport) -> _Outcome:
        """Ask until there is an answer or no hope of one; runs in a thread of the pool.

        ``owed`` is what the question has cost before, and is put on its receipt.
        """
        asked_at, bill = 0.0, Bill(owed)

        def count() -> None:
            if self.stopped.is_set() or self.stop.is_set():
                raise _StoppedError
            self.budget.take()
            bill.calls += 1

        def measured(request: Mapping[str, Any]) -> AbstractContextManager[Callable[[Any], None]]:
            return self.budget.measuring(question.model, request, self.stopped.is_set, bill)

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
            ended = cause_of_type(error, (BudgetError, _StoppedError))
            if ended and bill.calls and self.cache is not None and question.plan.lasting:
                with suppress(StoreError):  # what ended the run is on its way already
                    self.cache.owe(question.key, bill.own)
            # MLflow's adapters wrap whatever is raised within them.
            if spent := cause_of_type(error, BudgetError):
                raise spent from None
            unusable = isinstance(error, AnswerError)
            failure = Failure("answer", str(error)) if unusable else classify(error)
            failed = Verdict(
                trace_id=question.item.trace_id,
                error=scrub(failure.message, question.plan.judge)[:2000],
                fingerprint=question.plan.mark,
                calls=bill.calls,
                receipt=bill.receipt,
            )
            return _Outcome(failed, failure.fault, asked_at, time.monotonic())
        self.throttle.speed_up()
        verdict = replace(verdict, calls=bill.calls, receipt=bill.receipt)
        if self.cache is not None:
            verdict = question.keep(self.cache, value, verdict)
        return _Outcome(verdict, None, asked_at)

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
