"""Many judge calls at once: in parallel, cached, retried, slowed down, stopped when in vain.

`run` calls one judge on many examples, `run_many` several judges. Each returns a verdict for
every question, failures included: a failure is data, and only when no call can be expected
to succeed is it an exception.
"""

from __future__ import annotations

import inspect
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import mlflow
from mlflow.genai.judges.instructions_judge import InstructionsJudge
from mlflow.tracing.constant import AssessmentMetadataKey
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from workbench.cache import AnswerCache, question_key
from workbench.errors import (
    ArgumentError,
    BudgetError,
    CredentialError,
    ModelError,
    ScaleError,
    UnreachableModelError,
)
from workbench.judge import Verdict, fingerprint, scale_of, scrub, without_credentials
from workbench.progress import bar
from workbench.scale import ABSTAIN, Scale, is_missing
from workbench.traces import Example, item_digest
from workbench.transport import Fault, Transport, classify, prepared

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

TRANSIENT_ATTEMPTS = 4
RATE_LIMIT_ATTEMPTS = 12
PERMANENT_FAILURES_TO_STOP = 3
LONGEST_WAIT = 600.0
"""Seconds; a provider that asks for more has, for this run, refused."""


class Budget:
    """A number of model calls that is never exceeded, shared by all threads of a run.

    ``limit`` is the most calls, retries included; None for no limit.
    """

    def __init__(self, limit: int | None = None) -> None:
        if limit is not None and limit < 0:
            raise ArgumentError(f"budget={limit} must not be negative.")
        self.limit = limit
        self.spent = 0
        self._lock = threading.Lock()

    @property
    def left(self) -> float:
        return float("inf") if self.limit is None else self.limit - self.spent

    def take(self) -> None:
        """Count one call before it is made.

        Raises
        ------
        BudgetError
            When nothing is left.
        """
        with self._lock:
            if self.limit is not None and self.spent >= self.limit:
                raise BudgetError(
                    f"The budget of {self.limit} calls is spent. Raise budget= to go on; answers "
                    "that were paid for are kept."
                )
            self.spent += 1


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
        Counts the calls before they are made.

    Raises
    ------
    UnreachableModelError, CredentialError, ModelError
        When the first call, or several calls in a row, failed in a way that no other call
        can be expected to survive.
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
) -> list[Verdict]:
    """As `run`, for (judge, item, sample number) triples of several judges at once."""
    plans: dict[int, _Plan] = {}
    asked = []
    for judge, item, sample in questions:
        if id(judge) not in plans:
            plans[id(judge)] = _Plan.of(judge, scale)
        asked.append(_Question(plans[id(judge)], item, sample))
    # Equal questions are asked once where answers are kept, else as often as they stand here.
    alike: dict[str, list[int]] = {}
    for position, question in enumerate(asked):
        alike.setdefault(question.key if cache is not None else str(position), []).append(position)
    positions = list(alike.values())
    firsts = [asked[same[0]] for same in positions]
    stored = [cache.get(question.key) if cache is not None else None for question in firsts]

    found: list[Verdict | None] = [None] * len(asked)
    with bar(total=len(asked), desc=progress, disable=progress is None) as shown:
        tally = _Tally(shown, on_verdict)

        def settle(same: Sequence[int], verdict: Verdict) -> None:
            for position in same:
                own = replace(verdict, trace_id=asked[position].item.trace_id)
                if position != same[0] and own.error is None:
                    own = replace(own, cached=True, calls=0, **_UNPAID)
                found[position] = own
                tally.add(own)

        for index, answer in enumerate(stored):
            if answer is not None:
                settle(positions[index], firsts[index].read(answer))
        pending = [index for index, answer in enumerate(stored) if answer is None]
        calls = _Calls([firsts[i] for i in pending], concurrency, cache, budget or Budget())
        for which, verdict in calls.make():
            settle(positions[pending[which]], verdict)
    return [verdict for verdict in found if verdict is not None]


_UNPAID: dict[str, Any] = {"input_tokens": None, "output_tokens": None, "cost": None}


@dataclass(frozen=True)
class _Plan:
    """One judge, made ready to be called many times."""

    judge: Judge
    call: Any
    mark: str
    scale: Scale | None
    fields: tuple[str, ...]

    @classmethod
    def of(cls, judge: Judge, scale: Scale | None) -> _Plan:
        own = scale_of(judge)
        if isinstance(judge, InstructionsJudge):
            fields = tuple(sorted(judge.template_variables))
        else:
            accepted = inspect.signature(type(judge).__call__).parameters
            fields = tuple(f for f in ("inputs", "outputs", "expectations") if f in accepted)
            fields = fields or ("trace",)
        return cls(judge, prepared(judge), fingerprint(judge), scale or own, fields)


@dataclass(frozen=True)
class _Question:
    """One judge asked about one item; ``sample`` counts repeated questions from 0."""

    plan: _Plan
    item: Example
    sample: int

    @property
    def key(self) -> str:
        fields = tuple(f for f in self.plan.fields if f != "trace")
        digest = item_digest(self.item, fields) if fields else ""
        # What a judge reads from a whole trace has no digest: it belongs to that trace alone.
        where = self.item.trace_id if "trace" in self.plan.fields else ""
        return question_key(self.plan.mark, digest, where, self.sample)

    def ask(self) -> Verdict:
        """One call. Raises whatever the judge raises, and `_AnswerError` for unusable answers."""
        values = {
            "inputs": self.item.inputs,
            "outputs": self.item.outputs,
            "expectations": self.item.expectations,
        }
        arguments = {f: values[f] for f in self.plan.fields if f in values}
        if "trace" in self.plan.fields:
            arguments["trace"] = mlflow.get_trace(self.item.trace_id)
        feedback = self.plan.call(**arguments)
        if feedback.error is not None:
            raise _AnswerError(feedback.error.error_message or feedback.error.error_code)
        metadata = feedback.metadata or {}
        return Verdict(
            trace_id=self.item.trace_id,
            value=self._canonical(feedback.value),
            rationale=feedback.rationale or "",
            fingerprint=self.plan.mark,
            input_tokens=_as(int, metadata.get(AssessmentMetadataKey.JUDGE_INPUT_TOKENS)),
            output_tokens=_as(int, metadata.get(AssessmentMetadataKey.JUDGE_OUTPUT_TOKENS)),
            cost=_as(float, metadata.get(AssessmentMetadataKey.JUDGE_COST)),
        )

    def _canonical(self, value: Any) -> Any:
        if is_missing(value):
            raise _AnswerError("the judge gave an empty answer")
        if self.plan.scale is None:
            return value
        try:
            canonical = self.plan.scale.normalise(value)
        except ScaleError as error:
            raise _AnswerError(str(error)) from None
        return "N/A" if canonical is ABSTAIN else canonical

    def read(self, stored: dict[str, Any]) -> Verdict:
        """The verdict of a stored answer."""
        return Verdict(
            trace_id=self.item.trace_id,
            value=stored["value"],
            rationale=stored["rationale"],
            fingerprint=self.plan.mark,
            cached=True,
        )


class _AnswerError(Exception):
    """The model answered, but not with a usable verdict."""


class _Calls:
    """The calls of one run: in parallel, slowed by rate limits, stopped when all is in vain."""

    def __init__(
        self,
        questions: Sequence[_Question],
        concurrency: int,
        cache: AnswerCache | None,
        budget: Budget,
    ) -> None:
        if concurrency < 1:
            raise ArgumentError(f"concurrency={concurrency} must be at least 1.")
        self.questions = questions
        self.concurrency = min(concurrency, max(1, len(questions)))
        self.cache = cache
        self.budget = budget
        self.throttle = _Throttle(self.concurrency)
        self.stopped = threading.Event()
        self.answered = 0
        self._held: list[tuple[int, _Outcome]] = []

    def make(self) -> Iterator[tuple[int, Verdict]]:
        """Yield (index, verdict) as answers come.

        The first call goes alone: a dead endpoint or a wrong key then costs one call, and
        nothing of it is kept.
        """
        if not self.questions:
            return
        transport = Transport(self.concurrency)
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="judge")
        running: dict[Future[_Outcome], int] = {}
        try:
            yield from self._settled([(0, self._answer(self.questions[0], transport))])
            for index, question in enumerate(self.questions[1:], start=1):
                running[pool.submit(self._answer, question, transport)] = index
            while running:
                done, _ = wait(running, timeout=1.0, return_when=FIRST_COMPLETED)
                yield from self._settled([(running.pop(f), f.result()) for f in done])
            yield from self._given_up()
        finally:
            # Reached by Ctrl-C as well. Calls under way end in their threads and put what they
            # paid for into the cache; nothing new is started.
            self.stopped.set()
            self.throttle.wake()
            pool.shutdown(wait=True, cancel_futures=True)
            transport.close()

    def _settled(self, outcomes: list[tuple[int, _Outcome]]) -> Iterator[tuple[int, Verdict]]:
        for index, outcome in outcomes:
            if outcome.fault == "permanent":
                self._held.append((index, outcome))
                if len(self._held) >= (PERMANENT_FAILURES_TO_STOP if self.answered else 1):
                    raise self._refusal(self.questions[index], outcome.verdict.error or "")
                continue
            self.answered += outcome.verdict.error is None
            if outcome.verdict.error is None:
                yield from self._given_up()
            yield index, outcome.verdict

    def _given_up(self) -> Iterator[tuple[int, Verdict]]:
        """Failures that looked permanent but were not, since other calls succeed."""
        held, self._held = self._held, []
        for index, outcome in held:
            yield index, outcome.verdict

    def _answer(self, question: _Question, transport: Transport) -> _Outcome:
        """Ask until there is an answer or no hope of one; runs in a thread of the pool."""
        attempts = 0

        def once() -> Verdict:
            nonlocal attempts
            with self.throttle.slot():
                if self.stopped.is_set():
                    raise _AnswerError("stopped")
                self.budget.take()
                attempts += 1
                with transport.carrying():
                    return question.ask()

        retrying = Retrying(
            retry=retry_if_exception(_worth_retrying),
            stop=_stop,
            wait=self._wait,
            sleep=self.stopped.wait,
            reraise=True,
        )
        try:
            verdict = replace(retrying(once), calls=attempts)
        except BudgetError:
            raise
        except Exception as error:
            fault, _, message = ("answer", None, str(error))
            if not isinstance(error, _AnswerError):
                fault, _, message = classify(error)
            verdict = Verdict(
                trace_id=question.item.trace_id,
                error=scrub(message, question.plan.judge)[:2000],
                fingerprint=question.plan.mark,
                calls=attempts,
            )
            return _Outcome(verdict, fault)
        self.throttle.speed_up()
        if self.cache is not None:
            self.cache.put(question.key, {"value": verdict.value, "rationale": verdict.rationale})
        return _Outcome(verdict, None)

    def _wait(self, state: RetryCallState) -> float:
        assert state.outcome is not None
        error = state.outcome.exception()
        assert error is not None
        fault, seconds, _ = classify(error)
        if fault != "rate":
            return _backoff(state)
        # All calls wait together, so a limit that one call met is not met by every other.
        self.throttle.slow_down(seconds if seconds is not None else _backoff(state))
        return 0.0

    def _refusal(self, question: _Question, message: str) -> ModelError:
        judge = question.plan.judge
        model = getattr(judge, "model", type(judge).__name__)
        base_url = getattr(judge, "_base_url", None)
        where = f" at {without_credentials(base_url)}" if base_url else ""
        kept = (
            f"{self.answered} verdicts were kept; run again to judge the rest."
            if self.answered
            else "Nothing was judged."
        )
        said = f"Judge {judge.name!r} got no answer from {model}{where}: {message.rstrip('.')}."
        lower = message.lower()
        if any(word in lower for word in _CREDENTIAL_WORDS):
            return CredentialError(
                f"{said} Check the key: providers read it from the environment (for openai:/ "
                f"models OPENAI_API_KEY; a local server that asks for none takes any value). {kept}"
            )
        if any(word in lower for word in _UNREACHABLE_WORDS):
            return UnreachableModelError(
                f"{said} Check that the server runs and that base_url names it. {kept}"
            )
        return ModelError(f"{said} Check the model's name and the endpoint. {kept}")


_CREDENTIAL_WORDS = ("api key", "api_key", "unauthorized", "authentication", "forbidden", "401",
                     "403", "invalid key", "credential", "permission")  # fmt: skip
_UNREACHABLE_WORDS = ("refused", "connect", "name or service", "resolve", "unreachable")

_backoff = wait_random_exponential(multiplier=0.5, max=20)


@dataclass(frozen=True)
class _Outcome:
    verdict: Verdict
    fault: Fault | None


def _worth_retrying(error: BaseException) -> bool:
    return not isinstance(error, (_AnswerError, BudgetError)) and classify(error)[0] in (
        "rate",
        "transient",
    )


def _stop(state: RetryCallState) -> bool:
    assert state.outcome is not None
    error = state.outcome.exception()
    assert error is not None
    fault, seconds, _ = classify(error)
    if seconds is not None and seconds > LONGEST_WAIT:
        return True
    limit = RATE_LIMIT_ATTEMPTS if fault == "rate" else TRANSIENT_ATTEMPTS
    return state.attempt_number >= limit


class _Throttle:
    """How many calls may be under way: additive increase, multiplicative decrease.

    Chiu and Jain (1989), "Analysis of the increase and decrease algorithms for congestion
    avoidance in computer networks".
    """

    def __init__(self, most: int) -> None:
        self._most = float(most)
        self._limit = float(most)
        self._active = 0
        self._resume_at = 0.0
        self._slowed_at = 0.0
        self._changed = threading.Condition()
        self._awake = False

    @contextmanager
    def slot(self) -> Iterator[None]:
        with self._changed:
            while not self._awake:
                pause = self._resume_at - time.monotonic()
                if self._active < int(self._limit) and pause <= 0:
                    break
                self._changed.wait(pause if pause > 0 else None)
            self._active += 1
        try:
            yield
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify()

    def slow_down(self, seconds: float) -> None:
        """Halve the limit (once for all calls that were under way) and pause ``seconds``."""
        with self._changed:
            now = time.monotonic()
            if now >= self._slowed_at + 1.0:
                self._limit = max(1.0, self._limit / 2)
                self._slowed_at = now
            self._resume_at = max(self._resume_at, now + seconds)

    def speed_up(self) -> None:
        with self._changed:
            if self._limit < self._most:
                self._limit = min(self._most, self._limit + 1.0 / self._limit)
                self._changed.notify()

    def wake(self) -> None:
        """Let all who wait go on, to find that the run has stopped."""
        with self._changed:
            self._awake = True
            self._changed.notify_all()


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


def _as(kind: type, value: Any) -> Any:
    try:
        return kind(value)
    except (TypeError, ValueError):
        return None
