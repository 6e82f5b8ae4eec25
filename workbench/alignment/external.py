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

import copy
import functools
import importlib.util
import io
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import (
    AbstractContextManager,
    ExitStack,
    contextmanager,
    nullcontext,
    redirect_stderr,
    redirect_stdout,
)
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal

from mlflow.entities import AssessmentSource, Feedback, Trace
from mlflow.genai.judges.base import AlignmentOptimizer
from mlflow.genai.judges.instructions_judge import InstructionsJudge
from mlflow.tracing.constant import AssessmentMetadataKey
from tenacity import RetryCallState, Retrying, retry_if_exception, wait_random_exponential

from workbench.alignment.watch import CANCELLED
from workbench.credentials import scrub, without_secret_params
from workbench.errors import (
    BudgetError,
    CancelledError,
    CredentialError,
    ModelError,
    ReplayError,
    ScaleError,
    UnreachableModelError,
)
from workbench.formatting import say
from workbench.judging.judge import fingerprint, with_instructions
from workbench.judging.requests import Plan, Question
from workbench.judging.runner import after_the_first
from workbench.models.budget import Bill, Budget, Receipt
from workbench.models.cache import AnswerCache, question_key
from workbench.models.client import Transport, is_carrying
from workbench.models.faults import Failure, cause_of_type, classify
from workbench.models.recording import Line, Player, Recorder, active
from workbench.models.runner import Throttle
from workbench.pairing.pairs import Pairs, Split
from workbench.scale import Scale, is_missing
from workbench.simba.reflector import _endpoint_options
from workbench.store.traces import Example, fetch_traces, item_digest

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


def learn(
    judge: Judge,
    optimizer: AlignmentOptimizer,
    split: Split,
    *,
    budget: Budget | None = None,
    max_failure_share: float = 0.05,
    progress: bool = True,
    stop: threading.Event | None = None,
) -> tuple[Judge, Meter]:
    """The judge that the optimizer proposes, with all options of the original, and the calls.

    ``progress`` lets the optimizer write what it writes. Once ``stop`` is set, each further call
    of a model fails at once. Requests of judges, reflection and embedding models are taken from
    ``budget`` before they are made, and what is known already is charged with what it cost.

    Raises
    ------
    BudgetError
        When the budget did not suffice, whatever the optimizer made of that.
    CancelledError
        When ``stop`` was set, whatever the optimizer made of that.
    ModelError
        When more than ``max_failure_share`` of the judge's, the reflection model's or the
        embedding model's answers were lost, whatever the optimizer made of that.
    """
    who = type(optimizer).__name__
    traces = [_with_consensus(part, t) for part in (split.train, split.dev) for t in _traces(part)]
    scale = split.train.scale
    purse = budget or Budget()
    purse.check(str(judge.model))
    cache = AnswerCache()
    try:
        with (
            metering(
                max_failure_share=max_failure_share,
                scale=scale,
                cache=cache,
                stop=stop,
                budget=purse,
            ) as meter,
            _options_kept(optimizer, judge),
            _endpoint_kept(judge),
            nullcontext() if progress else _silence(),
        ):
            proposed = judge.align(traces, optimizer)
    except Exception as error:
        _unless_cancelled(stop)
        _unless_exhausted(meter, who)
        if failure := meter.failure(who, error):
            # Not chained: the provider's own words may repeat a key.
            raise failure from None
        raise
    finally:
        cache.close()
    _unless_cancelled(stop)
    _unless_exhausted(meter, who)
    if failure := meter.failure(who):
        raise failure
    if type(proposed) is InstructionsJudge:
        # They are shown, logged and registered; a gateway may put into them what it was sent.
        proposed = with_instructions(judge, scrub(proposed.instructions, judge))
    return proposed, meter


def _unless_cancelled(stop: threading.Event | None) -> None:
    if stop is not None and stop.is_set():
        raise CancelledError(CANCELLED) from None


def _unless_exhausted(meter: Meter, who: str) -> None:
    """An optimizer that calls on may take the failures for disagreements, so none is heard."""
    if meter.exhausted is None:
        return
    asked = ", ".join(
        f"{meter.count(kind).requests} {kind}" for kind in KINDS if meter.count(kind).requests
    )
    raise BudgetError(
        f"{who} was stopped, since what it wanted to ask goes beyond the budget; it cannot say "
        f"what is best until then, so the judge stays as it was. {meter.exhausted} Requests made "
        f"now: {asked or 'none'}. The same call with a higher budget goes on from what is kept."
    ) from None


def requests_of_a_verdict(optimizer: AlignmentOptimizer) -> int:
    """Requests that one verdict of a judge takes that the optimizer makes, as far as is known.

    MemAlign's judges look up examples by an embedding before they answer.
    """
    return 2 if getattr(optimizer, "_embedding_model", None) else 1


@contextmanager
def others_counted(judge: Judge, budget: Budget | None = None) -> Iterator[Meter | None]:
    """Within it requests of the judge to other models than its own are counted as well.

    Such a judge is none that is made from instructions alone, and came of an optimizer that has
    loaded a library to ask by. None where there is nothing to count.
    """
    loaded = {"dspy", "litellm"} & set(sys.modules)
    if type(judge) is InstructionsJudge or not loaded:
        yield None
        return
    with metering(max_failure_share=1.0, budget=budget) as meter:
        yield meter


@contextmanager
def _silence() -> Iterator[None]:
    """Keep the optimizer's bars and remarks back; what is logged is logged."""
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _traces(pairs: Pairs) -> list[Trace]:
    return fetch_traces(pairs.trace_ids) if len(pairs) else []


def _with_consensus(pairs: Pairs, trace: Trace) -> Trace:
    """The trace with one human label: the consensus that the judge is tested on as well.

    MLflow's optimizers would choose one among several annotators' labels by a rule of their own.
    """
    rows = pairs.table.set_index("trace_id")
    row = rows.loc[trace.info.trace_id]
    label = Feedback(
        name=pairs.name,
        value=row["human"],
        rationale=row["human_rationale"] or None,
        source=AssessmentSource(source_type="HUMAN", source_id="consensus"),
        trace_id=trace.info.trace_id,
    )
    info = copy.copy(trace.info)
    others = [a for a in info.assessments if a.name != pairs.name or a.expectation is not None]
    info.assessments = [*others, label]
    return Trace(info, trace.data)


@contextmanager
def _options_kept(optimizer: AlignmentOptimizer, judge: Judge) -> Iterator[None]:
    """Let MLflow's dspy optimizers try candidates with all options of the judge.

    They rebuild the judge from name, instructions, model and type alone, and would so call the
    provider's public address where the judge has a base URL of its own.
    """
    make = getattr(optimizer, "_create_judge_from_dspy_program", None)
    if make is None:
        yield
        return

    def keeping(optimized_program: Any, original_judge: Judge) -> Judge:
        return with_instructions(judge, make(optimized_program, original_judge).instructions)

    optimizer._create_judge_from_dspy_program = keeping
    try:
        yield
    finally:
        del optimizer._create_judge_from_dspy_program


@contextmanager
def _endpoint_kept(judge: Judge) -> Iterator[None]:
    """Let MLflow's optimizers that reflect with the judge's own model reach it where it is.

    They know the model by its name alone, and would send what people wrote to the provider's
    public address where the judge has a base URL of its own.
    """
    options = _endpoint_options(judge) if isinstance(judge, InstructionsJudge) else {}
    places = [m for name in _MAKERS if (m := sys.modules.get(name)) and hasattr(m, _MAKE_LM)]
    if not options or not places:
        yield
        return
    import dspy

    made = [getattr(place, _MAKE_LM) for place in places]

    def reaching(model: str) -> Any:
        if model != judge.model:
            return made[0](model)
        return dspy.LM(model.replace(":/", "/", 1), **options)

    for place in places:
        setattr(place, _MAKE_LM, reaching)
    try:
        yield
    finally:
        for place, make in zip(places, made, strict=True):
            setattr(place, _MAKE_LM, make)


_MAKE_LM = "construct_dspy_lm"

_MAKERS = (
    "mlflow.genai.judges.optimizers.dspy",
    "mlflow.genai.judges.optimizers.memalign.utils",
)


ERRORS: Final = {
    kind.__name__: kind for kind in (BudgetError, CredentialError, UnreachableModelError)
}
"""Errors that are replayed as what they were; any other is a `ModelError`."""


COUNTS: Final = ("calls", "reflection_calls", "embedding_calls", "known")
"""What a `Proposal` counts."""


@dataclass(frozen=True)
class Proposal:
    """The judge that an optimizer proposes, and the requests that it took.

    ``known`` answers more were known from before. ``tokens`` and ``cost`` (US dollars) are None
    where they are not known.
    """

    judge: Judge
    calls: int = 0
    reflection_calls: int = 0
    embedding_calls: int = 0
    known: int = 0
    tokens: int | None = None
    cost: float | None = None
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, judge: Judge, meter: Meter, who: str) -> Proposal:
        """The proposal, and what the meter counted."""
        return cls(
            judge,
            calls=meter.judge.requests,
            reflection_calls=meter.reflection.requests,
            embedding_calls=meter.embedding.requests,
            known=meter.judge.known + meter.reflection.known,
            tokens=meter.tokens,
            cost=meter.cost,
            notes=meter.notes(who),
        )


def propose(
    judge: Judge,
    optimizer: AlignmentOptimizer,
    split: Split,
    by_id: Mapping[str, Example],
    *,
    budget: Budget,
    max_failure_share: float = 0.05,
    progress: bool = True,
    stop: threading.Event | None = None,
) -> Proposal:
    """What the optimizer proposes (see `foreign.learn`), from the file where one is replayed.

    Raises
    ------
    ReplayError
        While a file of answers is replayed that does not hold it.
    """
    noted = _Noted(judge, optimizer, split, by_id)
    if isinstance(noted.tape, Player):
        return noted.replayed(noted.tape, budget)
    before = _spent_of(budget)
    try:
        found, meter = learn(
            judge,
            optimizer,
            split,
            budget=budget,
            max_failure_share=max_failure_share,
            progress=progress,
            stop=stop,
        )
    except CancelledError:
        raise
    except Exception as error:
        noted.keep(
            {"error": scrub(str(error), judge), "kind": type(error).__name__}, before, budget
        )
        raise
    proposal = Proposal.of(found, meter, noted.who)
    noted.keep_proposal(proposal, before, budget)
    return proposal


class _Noted:
    """One optimizer at work on one judge and split, as the file of answers has it."""

    def __init__(
        self,
        judge: Judge,
        optimizer: AlignmentOptimizer,
        split: Split,
        by_id: Mapping[str, Example],
    ) -> None:
        self.judge, self.who, self.tape = judge, type(optimizer).__name__, active()
        self.key, self.turn = "", 0
        if self.tape is not None:
            parts = [_content(part, by_id) for part in (split.train, split.dev)]
            mark = fingerprint(judge, place=False)
            self.key = question_key("optimizer", self.who, _settings(optimizer), mark, parts)
            self.turn = self.tape.turn(self.key)

    def replayed(self, player: Player, budget: Budget) -> Proposal:
        """The proposal that the file holds, taken from the budget; its error where it is one."""
        line = player.find(self.key, self.turn, "optimizer")
        if line is None:
            raise ReplayError(
                f"What {self.who} came to is not in {player.path}, which is replayed, so that no "
                "model is called. Either this run is not the recorded one (judge, data, split, "
                "seed or settings differ), or its judges hold more than instructions, as "
                "MemAlign's do, which cannot be recorded. Run it outside workbench.replaying(...)."
            )
        budget.burn(line.paid, known=line.answer.get("known_before", 0))
        answer = line.answer
        if "error" in answer:
            kind = answer.get("kind", "")
            raise ERRORS.get(kind, ModelError)(answer["error"] or kind)
        if budget.is_exceeded:
            raise budget.exhausted()
        return Proposal(
            with_instructions(self.judge, answer["instructions"]),
            **{name: answer.get(name, 0) for name in COUNTS},
            tokens=answer.get("tokens"),
            cost=answer.get("cost"),
            notes=tuple(answer.get("notes", ())),
        )

    def keep_proposal(self, proposal: Proposal, before: dict[str, float], budget: Budget) -> None:
        """Note it where it is a judge of instructions alone; else say that it is not noted."""
        if not isinstance(self.tape, Recorder):
            return
        if type(proposal.judge) is not InstructionsJudge:
            warnings.warn(
                f"{self.who} makes judges that hold more than instructions, which "
                f"{self.tape.path} cannot hold: what it came to cannot be replayed.",
                stacklevel=4,
            )
            return
        answer: dict[str, Any] = {
            "instructions": proposal.judge.instructions,
            "notes": list(proposal.notes),
        }
        answer |= {name: getattr(proposal, name) for name in (*COUNTS, "tokens", "cost")}
        self.keep({k: v for k, v in answer.items() if v is not None}, before, budget)

    def keep(self, answer: dict[str, Any], before: dict[str, float], budget: Budget) -> None:
        """Note the answer with what the budget was charged for it, and write the file."""
        if not isinstance(self.tape, Recorder):
            return
        paid = {name: amount - before[name] for name, amount in _spent_of(budget).items()}
        known = int(paid.pop("known"))
        paid = {name: amount for name, amount in paid.items() if amount}
        about = {"optimizer": self.who, "model": str(self.judge.model or "")}
        answer |= {"known_before": known} if known else {}
        self.tape.keep(Line(self.key, self.turn, "optimizer", about, answer, paid))
        self.tape.save()


def _spent_of(budget: Budget) -> dict[str, float]:
    return {**budget.state(), "known": budget.known}


def _content(part: Pairs, by_id: Mapping[str, Example]) -> list[Any]:
    """Items and labels as they are the same in every store."""
    rows = part.table.to_dict("records")
    told = [
        (item_digest(by_id[row["trace_id"]]), row["human"], row["human_rationale"]) for row in rows
    ]
    return sorted(told, key=str)


def _settings(optimizer: AlignmentOptimizer) -> dict[str, Any]:
    """What an optimizer was made with, without secrets; of what is no plain data, what it is."""
    return dict(without_secret_params(_plain(vars(optimizer))))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    named = value if isinstance(value, type) or callable(value) else type(value)
    name = getattr(named, "__qualname__", type(value).__qualname__)
    return f"<{type(value).__module__}.{name}>"
