"""Counts what other people's code asks of models, and stops it when models do not answer.

Optimizers that are not the workbench's own call judges, dspy's language models and litellm as
they please, swallow failures or take them for disagreements, and do not say what they spent.
While `metering` is on, each of these calls passes by a `Meter`:

=====================================  ==================================================
``InstructionsJudge.__call__``         judge calls; repeated when they fail, answers kept
``dspy.clients.execution``             calls of ``dspy.LM``: reflection
``litellm.completion``, ``embedding``  what reaches litellm by itself: reflection, embedding
=====================================  ==================================================

These are replaced for the whole process, since optimizers call from threads of their own, and
put back afterwards. The workbench's own calls in other threads pass by uncounted; one meter is
on at a time, and whoever wants another waits. Publicly, dspy tells of neither repeated requests
nor failures: where a version of it has no such functions, its calls are counted by litellm.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from mlflow.entities import AssessmentSource, Feedback
from mlflow.tracing.constant import AssessmentMetadataKey
from tenacity import (
    RetryCallState,
    Retrying,
    retry_if_exception,
    wait_random_exponential,
)

from workbench.budget import Budget
from workbench.cache import AnswerCache
from workbench.calls import after_the_first
from workbench.errors import (
    BudgetError,
    CredentialError,
    ModelError,
    ScaleError,
    UnreachableModelError,
)
from workbench.faults import Failure, cause_of_type, classify
from workbench.judge import fingerprint, scrub
from workbench.progress import say
from workbench.question import Plan, Question
from workbench.receipt import Bill, Receipt
from workbench.scale import Scale, is_missing
from workbench.throttle import Throttle
from workbench.traces import Example
from workbench.transport import Transport, is_carrying

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

Kind = Literal["judge", "reflection", "embedding"]

KINDS: Final[tuple[Kind, ...]] = ("judge", "reflection", "embedding")

TRANSIENT_ATTEMPTS = 4
RATE_LIMIT_ATTEMPTS = 12
"""For one answer of a judge or an embedding model, with growing pauses between them."""

PERMANENT_FAILURES_TO_STOP = 3
"""In a row; one is enough where nothing was answered yet."""

FAILURES_TO_STOP = 10
"""In a row, or in all where they are more than twice the share that is borne."""

CONCURRENCY = 64


@dataclass
class Count:
    """Calls of one kind.

    ``requests`` went out, repeated ones included, and ``failed`` of them; ``answers`` came and
    were usable, ``known`` more were known from before and not paid for; ``lost`` never came, or
    not usably; ``refused`` were wanted in a form that the model does not take.
    """

    requests: int = 0
    failed: int = 0
    answers: int = 0
    known: int = 0
    lost: int = 0
    refused: int = 0

    @property
    def share_lost(self) -> float:
        """Of the answers that were asked for, in [0, 1]."""
        # Callers try another form after a refusal; it is a loss where none was ever taken.
        lost = self.lost + (0 if self.answers else self.refused)
        return lost / (lost + self.answers) if lost else 0.0


class StoppedError(Exception):
    """Nothing more is asked: the models have failed, the budget is spent, someone has cancelled."""


class Meter:
    """What was asked of models so far.

    Attributes
    ----------
    judge, reflection, embedding
        `Count` of each kind.
    tokens, cost
        Of all answers together, cost in US dollars; None where none was told.
    words
        Of all prompts to judges.
    budget
        What is counted is taken from it before it is asked.
    exhausted
        The error that said that it does not suffice; None where it does.
    """

    def __init__(
        self,
        max_failure_share: float,
        scale: Scale | None,
        cache: AnswerCache | None,
        stop: threading.Event | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.judge, self.reflection, self.embedding = Count(), Count(), Count()
        self.tokens: int | None = None
        self.cost: float | None = None
        self.words = 0
        self.budget = budget or Budget()
        self.exhausted: BudgetError | None = None
        self.max_failure_share, self.scale, self.cache = max_failure_share, scale, cache
        self.failures: dict[Kind, Failure] = {}
        self._causes: list[BaseException] = []
        self._in_a_row: dict[Kind, list[Failure]] = {}
        self._lock = threading.Lock()
        self._stopped, self._cancelled = threading.Event(), stop or threading.Event()
        self._samples: Counter[str] = Counter()
        self._plans: dict[str, Plan] = {}
        self._throttle, self._transport = Throttle(CONCURRENCY), Transport(CONCURRENCY)

    def close(self) -> None:
        """Ask nothing more, on behalf of threads that the optimizer may have left behind."""
        self._stopped.set()
        self._throttle.release()
        self._transport.close()

    def count(self, kind: Kind) -> Count:
        """The count of one kind."""
        found: Count = getattr(self, kind)
        return found

    # -- what is told to it ---------------------------------------------------------------

    def request(self, kind: Kind) -> None:
        """A request is about to be made; raises `StoppedError` when it must not be."""
        if self.exhausted is not None:
            raise StoppedError("The budget is spent, so nothing more is asked.") from self.exhausted
        if self._stopped.is_set():
            raise StoppedError("The models have failed, so nothing more is asked.")
        if self._cancelled.is_set():
            raise StoppedError("This was cancelled, so nothing more is asked.")
        with self._within_budget():
            self.budget.take()
        with self._lock:
            self.count(kind).requests += 1

    @contextmanager
    def measuring(
        self, kind: Kind, model: str, request: Mapping[str, Any], bill: Bill | None = None
    ) -> Iterator[Callable[[Any], None]]:
        """Within it the request that was counted is made; see `Budget.measuring`.

        Raises
        ------
        StoppedError
            When not enough is left for it, so that it is not made.
        """
        made = False
        with self._within_budget():
            try:
                with self.budget.measuring(model, request, self._stopped.is_set, bill) as used:
                    made = True
                    yield used
            except BudgetError:
                if not made:
                    with self._lock:
                        self.count(kind).requests -= 1
                raise

    @contextmanager
    def _within_budget(self) -> Iterator[None]:
        try:
            yield
        except BudgetError as error:
            self.exhausted = self.exhausted or error
            self._stopped.set()
            raise StoppedError("The budget is spent, so nothing more is asked.") from error

    def request_failed(self, kind: Kind) -> None:
        """The request got no answer; another may follow."""
        with self._lock:
            self.count(kind).failed += 1

    def known(self, kind: Kind, model: str = "", receipt: Receipt | None = None) -> None:
        """An answer was known already; raises `StoppedError` when the budget cannot pay for it."""
        with self._within_budget():
            self.budget.charge(receipt or Receipt(), model)
        with self._lock:
            self.count(kind).known += 1

    def answered(self, kind: Kind, tokens: Any = None, cost: Any = None) -> None:
        """A usable answer came."""
        with self._lock:
            self.count(kind).answers += 1
            self._in_a_row.pop(kind, None)
            self._spend(tokens, cost)

    def lost(self, kind: Kind, error: BaseException, judge: Any = None, tokens: Any = None) -> None:
        """An answer will never come, or came and cannot be used."""
        if cause_of_type(error, StoppedError):
            return
        failure = classify(error)
        failure = Failure(failure.fault, scrub(failure.message, judge)[:600], failure.wait)
        with self._lock:
            self._spend(tokens, None)
            count = self.count(kind)
            self.failures[kind] = failure
            self._causes = [*self._causes[-8:], error]
            if failure.fault == "request" and kind != "judge":
                count.refused += 1
                return
            count.lost += 1
            row = self._in_a_row.setdefault(kind, [])
            row.append(failure)
            permanent = sum(one.permanent for one in row)
            bearable = 2 * self.max_failure_share * (count.lost + count.answers)
            if (
                permanent >= (PERMANENT_FAILURES_TO_STOP if count.answers else 1)
                or (len(row) >= FAILURES_TO_STOP and self.max_failure_share < 1)
                or (count.lost >= FAILURES_TO_STOP and count.lost > bearable)
            ):
                self._stopped.set()

    def _spend(self, tokens: Any, cost: Any) -> None:
        if tokens:
            self.tokens = (self.tokens or 0) + int(tokens)
        if cost is not None:
            self.cost = (self.cost or 0.0) + float(cost)

    def add_words(self, words: int) -> None:
        """A prompt of so many words goes to a judge."""
        with self._lock:
            self.words += words

    # -- what it says ---------------------------------------------------------------------

    def failure(self, who: str, error: BaseException | None = None) -> ModelError | None:
        """What to raise: more failed than is borne, or the given error came of a failed call."""
        kind = next(
            (k for k in KINDS if self.count(k).share_lost > self.max_failure_share), None
        ) or next((k for k in KINDS if k in self.failures and self._caused(error)), None)
        if kind is None:
            return None
        count, failure = self.count(kind), self.failures[kind]
        lost = count.lost or count.refused
        said = (
            f"{who} was stopped: {lost} of {lost + count.answers} {kind} calls gave no usable "
            f"answer, more than {self.max_failure_share:.0%} can be borne. What came back: "
            f"{failure.message.rstrip('.')}. "
        )
        kept = "The judge stays as it was; answers that were paid for are kept."
        if failure.fault == "credential":
            return CredentialError(f"{said}Check the key of the model. {kept}")
        if failure.fault == "unreachable":
            return UnreachableModelError(f"{said}Check that the server runs. {kept}")
        return ModelError(f"{said}Check the model, its endpoint and its quota. {kept}")

    def _caused(self, error: BaseException | None) -> bool:
        if error is None:
            return False
        links: list[BaseException | None] = [error]
        while (last := links[-1]) is not None and len(links) < 50:
            if any(last is cause for cause in self._causes) or isinstance(last, StoppedError):
                return True
            links.append(last.__cause__ or last.__context__)
        return False

    def notes(self, who: str) -> tuple[str, ...]:
        """What failed and was borne, in words."""
        notes = []
        for kind in KINDS:
            count = self.count(kind)
            if count.failed or count.lost:
                notes.append(
                    f"{who}: {count.failed} of {count.requests} {kind} requests failed; "
                    f"{count.lost} of {count.answers + count.lost} answers never came or could "
                    "not be used."
                )
        return tuple(notes)

    # -- the calls ------------------------------------------------------------------------

    def ask_judge(self, call: Callable[..., Any], judge: Judge, item: dict[str, Any]) -> Any:
        """One judge call: answered from the cache, or repeated until there is hope no more."""
        question = self._question(judge, item)
        answer = self.cache.get(question.key) if question and self.cache else None
        model = str(judge.model or "")
        if answer is not None:
            self.known("judge", model, Receipt.of(answer.get("paid")))
            return Feedback(
                name=judge.name,
                value=answer.get("value"),
                rationale=str(answer.get("rationale") or ""),
                source=AssessmentSource(source_type="LLM_JUDGE", source_id=str(judge.model)),
            )
        prepared = question.plan.call if question else judge
        asked_at, bill = 0.0, Bill()

        def count() -> None:
            self.request("judge")
            bill.calls += 1

        def measure(request: Mapping[str, Any]) -> AbstractContextManager[Callable[[Any], None]]:
            return self.measuring("judge", model, request, bill)

        def once() -> Any:
            nonlocal asked_at
            with self._throttle.slot() as asked_at:
                # Counted here, for judges whose requests pass by the transport; what a judge
                # asks beyond its first request is counted there.
                count()
                try:
                    with self._transport.carrying(after_the_first(count), measure):
                        return call(prepared, **item)
                except Exception as error:
                    if classify(error).fault != "answer":
                        self.request_failed("judge")
                    raise

        def limited(seconds: float) -> None:
            # All calls wait together, so a limit that one met is not met by every other.
            self._throttle.slow_down(seconds, asked_at)

        try:
            feedback = self._repeated(once, limited)
        except Exception as error:
            self.lost("judge", error, judge)
            raise
        self._throttle.speed_up()
        return self._read(feedback, judge, question, bill.receipt)

    def _read(
        self, feedback: Any, judge: Judge, question: Question | None, receipt: Receipt
    ) -> Any:
        """Count and keep the answer; gives the one that holds."""
        told = getattr(feedback, "metadata", None) or {}
        read = told.get(AssessmentMetadataKey.JUDGE_INPUT_TOKENS)
        written = told.get(AssessmentMetadataKey.JUDGE_OUTPUT_TOKENS)
        tokens = int(float(read or 0)) + int(float(written or 0))
        if problem := self._unusable(feedback):
            self.lost("judge", ValueError(problem), judge, tokens)
            return feedback
        self.answered("judge", tokens, told.get(AssessmentMetadataKey.JUDGE_COST))
        if question and self.cache and question.plan.lasting:
            said = {"value": feedback.value, "rationale": feedback.rationale or ""}
            held = self.cache.put(question.key, {**said, "paid": receipt.to_dict()})
            # Where another run was faster, its answer holds for both.
            feedback.feedback.value = held.get("value")
            feedback.rationale = str(held.get("rationale") or "") or None
        return feedback

    def _unusable(self, feedback: Any) -> str:
        """Why the judge's answer is no rating; "" where it is one."""
        error = getattr(feedback, "error", None)
        if error is not None:
            return str(error.error_message or error.error_code)
        value = getattr(feedback, "value", None)
        if is_missing(value):
            return "the judge gave an empty answer"
        try:
            if self.scale is not None:
                self.scale.normalise(value)
        except ScaleError as problem:
            return str(problem)
        return ""

    def _question(self, judge: Judge, item: dict[str, Any]) -> Question | None:
        """The call as a question whose answer may be kept; None where it may not.

        An optimizer that asks the same again wants another sample, so equal questions are
        numbered: a later run that asks as often gets the same answers.
        """
        if set(item) - {"inputs", "outputs", "expectations"}:
            return None
        mark = fingerprint(judge)
        with self._lock:
            plan = self._plans.get(mark) or self._plans.setdefault(mark, Plan.of(judge, self.scale))
        if not plan.lasting or "trace" in plan.fields or "conversation" in plan.fields:
            return None
        example = Example("", item.get("inputs"), item.get("outputs"), item.get("expectations"))
        first = Question(plan, example, 0)
        with self._lock:
            sample = self._samples[first.key]
            self._samples[first.key] += 1
        return Question(plan, example, sample)

    def embed(self, call: Callable[..., Any], *given: Any, **options: Any) -> Any:
        """One call of an embedding model."""
        options.setdefault("max_retries", 0)
        model = str(options.get("model") or (given[0] if given else ""))
        # An embedding is read and nothing is written.
        sent = {"input": options.get("input") or given[1:], "max_tokens": 0}

        def once() -> Any:
            self.request("embedding")
            with self.measuring("embedding", model, sent) as used:
                try:
                    answer = call(*given, **options)
                except Exception:
                    self.request_failed("embedding")
                    raise
                used(answer)
                return answer

        try:
            answer = self._repeated(once)
        except Exception as error:
            self.lost("embedding", error)
            raise
        self.answered("embedding", *_spent(answer))
        return answer

    def _repeated(
        self, once: Callable[[], Any], limited: Callable[[float], None] | None = None
    ) -> Any:
        def pause(state: RetryCallState) -> float:
            error = state.outcome.exception() if state.outcome is not None else None
            assert error is not None
            failure = classify(error)
            seconds = failure.wait or _backoff(state)
            if failure.fault != "rate" or limited is None:
                return seconds
            limited(seconds)
            return 0.0

        def sleep(seconds: float) -> None:
            self._stopped.wait(seconds)

        retrying = Retrying(
            retry=retry_if_exception(_passing),
            stop=_stop,
            wait=pause,
            sleep=sleep,
            reraise=True,
        )
        return retrying(once)


def _stop(state: RetryCallState) -> bool:
    error = state.outcome.exception() if state.outcome is not None else None
    limited = error is not None and classify(error).fault == "rate"
    return state.attempt_number >= (RATE_LIMIT_ATTEMPTS if limited else TRANSIENT_ATTEMPTS)


_backoff = wait_random_exponential(multiplier=0.25, max=10)


def _passing(error: BaseException) -> bool:
    if cause_of_type(error, StoppedError):
        return False
    return classify(error).fault in ("rate", "transient")


def _spent(answer: Any) -> tuple[Any, Any]:
    """Tokens and cost that litellm tells with an answer; None where it does not."""
    usage = getattr(answer, "usage", None)
    tokens = usage.get("total_tokens") if isinstance(usage, dict) else None
    tokens = tokens or getattr(usage, "total_tokens", None)
    return tokens, (getattr(answer, "_hidden_params", None) or {}).get("response_cost")


# -- where the calls pass by ------------------------------------------------------------------

_ONE_AT_A_TIME = threading.RLock()

_counted: ContextVar[bool] = ContextVar("workbench_counted", default=False)
"""Whether the call that is under way in this thread is counted by whoever made it."""


@contextmanager
def metering(
    *,
    max_failure_share: float = 0.05,
    scale: Scale | None = None,
    cache: AnswerCache | None = None,
    stop: threading.Event | None = None,
    budget: Budget | None = None,
) -> Iterator[Meter]:
    """Count the calls of other people's code within this context.

    Parameters
    ----------
    max_failure_share
        Share of answers, in [0, 1], that may be lost; far above it, or when a model fails for
        good, every further call fails at once, so that the code ends soon.
    scale
        Answers of judges off this scale count as lost.
    cache
        Where answers of judges are looked up and kept.
    stop
        Once it is set, every further call fails at once.
    budget
        Each request is taken from it before it is made; once it does not suffice, every further
        call fails at once (`Meter.exhausted`).
    """
    if not _ONE_AT_A_TIME.acquire(blocking=False):
        say("Another optimizer is at work in this process; waiting for its end.")
        _ONE_AT_A_TIME.acquire()
    meter = Meter(max_failure_share, scale, cache, stop, budget)
    try:
        with ExitStack() as undo:
            for owner, name, wrap in _SEAMS:
                found = _owner(owner)
                original = getattr(found, name, None)
                if original is None:
                    continue
                setattr(found, name, wrap(meter, original))
                undo.callback(setattr, found, name, original)
            yield meter
    finally:
        meter.close()
        _ONE_AT_A_TIME.release()


@contextmanager
def without_dspy_answers() -> Iterator[None]:
    """Within this context dspy asks anew what it was answered before."""
    if importlib.util.find_spec("dspy") is None:
        yield
        return
    dspy: Any = importlib.import_module("dspy")
    kept = dspy.cache
    dspy.configure_cache(enable_disk_cache=False, enable_memory_cache=False)
    try:
        yield
    finally:
        dspy.cache = kept


def _owner(path: str) -> Any:
    """The module, or class within it, of that name; None where it is not installed."""
    module, _, name = path.partition(":")
    try:
        found = importlib.import_module(module)
    except ImportError:
        return None
    return getattr(found, name, None) if name else found


def _judge_call(meter: Meter, original: Any) -> Any:
    @functools.wraps(original)
    def call(judge: Any, **item: Any) -> Any:
        if is_carrying() or _counted.get():
            return original(judge, **item)
        with _counting():
            return meter.ask_judge(original, judge, item)

    return call


def _prompt_words(meter: Meter, original: Any) -> Any:
    @functools.wraps(original)
    def invoke(*given: Any, **options: Any) -> Any:
        prompt = options.get("prompt", "")
        texts = [prompt] if isinstance(prompt, str) else [str(m.content) for m in prompt]
        meter.add_words(sum(len(text.split()) for text in texts))
        return original(*given, **options)

    return invoke


def _own(lm: Any) -> bool:
    return type(lm).__module__.partition(".")[0] == "workbench"


def _lm_call(meter: Meter, original: Any) -> Any:
    @functools.wraps(original)
    def execute(lm: Any, call: Any) -> Any:
        if _own(lm):
            return original(lm, call)
        try:
            with _counting():
                result = original(lm, call)
        except Exception as error:
            meter.lost("reflection", error)
            raise
        return _lm_result(meter, result)

    return execute


def _lm_call_later(meter: Meter, original: Any) -> Any:
    @functools.wraps(original)
    async def execute(lm: Any, call: Any) -> Any:
        if _own(lm):
            return await original(lm, call)
        try:
            with _counting():
                result = await original(lm, call)
        except Exception as error:
            meter.lost("reflection", error)
            raise
        return _lm_result(meter, result)

    return execute


def _lm_result(meter: Meter, result: Any) -> Any:
    if getattr(result, "cache_hit", False):
        meter.known("reflection")
    else:
        usage = getattr(result, "usage", None) or {}
        meter.answered("reflection", usage.get("total_tokens"), getattr(result, "cost", None))
    return result


def _lm_request(meter: Meter, original: Any) -> Any:
    @functools.wraps(original)
    def attempt(lm: Any, *given: Any, **options: Any) -> Any:
        if _own(lm):
            return original(lm, *given, **options)
        meter.request("reflection")
        with meter.measuring("reflection", *_lm_sent(lm, given)) as used:
            try:
                result = original(lm, *given, **options)
            except Exception:
                meter.request_failed("reflection")
                raise
            used(_lm_used(given))
        return result

    return attempt


def _lm_sent(lm: Any, given: tuple[Any, ...]) -> tuple[str, Mapping[str, Any]]:
    """Model and request of dspy's own form of a call."""
    provider, _, name = str(getattr(lm, "model", "")).partition("/")
    sent = getattr(given[0], "legacy", None) if given else None
    return f"{provider}:/{name}" if name else provider, sent if isinstance(sent, dict) else {}


def _lm_used(given: tuple[Any, ...]) -> Any:
    """What dspy notes of the answer; None where it does not say what was used."""
    results = given[-1] if given else None
    return results[-1] if isinstance(results, list) and results else None


def _lm_request_later(meter: Meter, original: Any) -> Any:
    @functools.wraps(original)
    async def attempt(lm: Any, *given: Any, **options: Any) -> Any:
        if _own(lm):
            return await original(lm, *given, **options)
        meter.request("reflection")
        with meter.measuring("reflection", *_lm_sent(lm, given)) as used:
            try:
                result = await original(lm, *given, **options)
            except Exception:
                meter.request_failed("reflection")
                raise
            used(_lm_used(given))
        return result

    return attempt


def _completion(meter: Meter, original: Any) -> Any:
    @functools.wraps(original)
    def completion(*given: Any, **options: Any) -> Any:
        if is_carrying() or _counted.get():
            return original(*given, **options)
        meter.request("reflection")
        model = str(options.get("model") or (given[0] if given else "")).replace("/", ":/", 1)
        with meter.measuring("reflection", model, options) as used:
            try:
                answer = original(*given, **options)
            except Exception as error:
                meter.request_failed("reflection")
                meter.lost("reflection", error)
                raise
            used(answer)
        meter.answered("reflection", *_spent(answer))
        return answer

    return completion


def _embedding(meter: Meter, original: Any) -> Any:
    @functools.wraps(original)
    def embedding(*given: Any, **options: Any) -> Any:
        return meter.embed(original, *given, **options)

    return embedding


@contextmanager
def _counting() -> Iterator[None]:
    token = _counted.set(True)
    try:
        yield
    finally:
        _counted.reset(token)


_SEAMS: tuple[tuple[str, str, Callable[[Meter, Any], Any]], ...] = (
    ("mlflow.genai.judges.instructions_judge:InstructionsJudge", "__call__", _judge_call),
    ("mlflow.genai.judges.instructions_judge", "invoke_judge_model", _prompt_words),
    ("dspy.clients.execution", "execute", _lm_call),
    ("dspy.clients.execution", "aexecute", _lm_call_later),
    ("dspy.clients.execution", "_attempt", _lm_request),
    ("dspy.clients.execution", "_aattempt", _lm_request_later),
    ("litellm", "completion", _completion),
    ("litellm", "embedding", _embedding),
)
"""What is replaced, where, and by what. What a version does not have is left out."""
