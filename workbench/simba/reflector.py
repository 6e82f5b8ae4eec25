"""Reflector: asks the reflection model for rules."""

from __future__ import annotations

import functools
import logging
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, urlsplit, urlunsplit

from tenacity import (
    Retrying,
    retry_if_exception,
    sleep_using_event,
    stop_after_attempt,
    wait_random_exponential,
)

from workbench.credentials import scrub
from workbench.errors import BudgetError, CancelledError, ModelError, ReplayError
from workbench.judging.requests import answers_from
from workbench.models.budget import Bill, Budget, Receipt
from workbench.models.cache import CANCELLED, AnswerCache, Claims, question_key
from workbench.models.faults import cause_of_type, classify
from workbench.models.offline import MODEL, SCHEME, register
from workbench.models.recording import Batch, Line, Recorder, active, charged, refuse_calls
from workbench.models.runner import Workers
from workbench.scale import Scale

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


from workbench.simba.reflection import (
    MOST_RULES,
    TASK,
    TASK_DIGEST,
    Reflection,
    Request,
    is_refusal,
    rules_in,
)

SECONDS_TO_LEAVE = 5.0
"""What is waited, at most, for requests under way when a run is interrupted or fails."""


ATTEMPTS = 4
"""Requests that one question to the reflection model may take."""


_ENDED: Final = (BudgetError, CancelledError, ReplayError)
"""What ends a run, and is no failure of the model."""


class Reflector:
    """Asks the reflection model, several requests in parallel.

    Parameters
    ----------
    judge
        Whose model, base URL, headers and parameters are used where ``model`` is None.
    model
        Another model URI for the reflection.
    cache
        Where answers are kept; the same request with the same ``sample`` is paid once.
    max_failure_share
        Share of failed requests, in [0, 1], above which it gives up.
    stop
        Once it is set no request is begun any more.

    Attributes
    ----------
    asked, failures
        Requests so far, known ones included, and those of them without a usable answer.
    """

    def __init__(
        self,
        judge: Judge,
        scale: Scale,
        *,
        model: str | None = None,
        cache: AnswerCache | None = None,
        concurrency: int = 8,
        max_failure_share: float = 0.05,
        stop: threading.Event | None = None,
    ) -> None:
        self.scale, self.cache, self.concurrency = scale, cache, concurrency
        self.stop = stop or threading.Event()
        self.max_failure_share = max_failure_share
        self.asked = self.failures = 0
        self.judge = judge
        self.model = model or getattr(judge, "model", None) or MODEL
        self._own = model is None or model == getattr(judge, "model", None)

    def is_known(self, request: Request, sample: int) -> bool:
        """Whether the answer is in the cache, so that asking costs nothing."""
        return self.cache is not None and self.cache.get(self._key(request, sample)) is not None

    def propose(
        self, requests: Sequence[tuple[Request, int]], *, budget: Budget | None = None
    ) -> list[Reflection]:
        """Rules for each (request, sample number), in order.

        A request that the model refuses, or answers with what holds no rule, has an ``error`` and
        is not kept, so that another run asks again. ``budget`` counts every request to the model
        before it is made, repeated ones included.

        Raises
        ------
        BudgetError
            When the budget ends; answers that came before are kept in the cache.
        CancelledError
            When ``stop`` is set; the same holds.
        ModelError
            When the model cannot be reached, refuses the key or does not exist, when none of the
            first requests had a usable answer, or when more failed than are allowed; what the
            model said is part of the message.
        ReplayError
            While a file of answers is replayed that lacks one.
        """
        answers = self._answers(requests, budget or Budget())
        self._count(answers)
        return answers

    def _answers(self, requests: Sequence[tuple[Request, int]], purse: Budget) -> list[Reflection]:
        batch = ReflectionBatch([self._tape_key(*each) for each in requests], self.model)
        replayed = batch.replayed(purse, lambda _: f"The reflection model {self.model}")
        if replayed is not None:
            return self._closed([_of_line(line) for line in replayed], purse)
        pool = Workers[Reflection](min(self.concurrency, max(1, len(requests))), "reflect")
        running = [pool.submit(self._answer, asked, sample, purse) for asked, sample in requests]
        try:
            with batch.noted(purse):
                return self._closed(batch.keep(running, self.judge), purse)
        finally:
            # An answer that is still under way when this is left is kept for the next run.
            pool.stop(SECONDS_TO_LEAVE)

    def _count(self, answers: Sequence[Reflection]) -> None:
        """Count answers and failures; raise where there are too many of these."""
        first = not self.asked
        said = [answer.error for answer in answers if answer.error]
        self.asked += len(answers)
        self.failures += len(said)
        if not said:
            return
        if first and len(said) == len(answers):
            raise self._unanswered(said[0])
        # A single one of few is no sign that the next will fail as well.
        if self.failures > self.max_failure_share * max(20, self.asked):
            raise ModelError(
                f"{self.failures} of {self.asked} requests to the reflection model {self.model} "
                f"had no usable answer, more than the {self.max_failure_share:.0%} allowed. One of "
                f"them: {said[0]}. Name another model with SIMBA(model=...), or allow more with "
                "SIMBA(max_failure_share=...). Run again to go on from here: answers that were "
                "paid for are kept."
            )

    def _unanswered(self, said: str) -> ModelError:
        return ModelError(
            f"The reflection model {self.model} gave no usable answer: {said}. Check the model, "
            "its key and its endpoint, or name another with SIMBA(model=...). Run again to go on "
            "from here: answers that were paid for are kept."
        )

    def _key(self, request: Request, sample: int) -> str:
        base_url = getattr(self.judge, "_base_url", None) if self._own else None
        source = answers_from(self.model, base_url)
        asked = request.as_inputs(self.scale)
        return question_key("reflection", self.model, source, TASK_DIGEST, asked, sample)

    def _tape_key(self, request: Request, sample: int) -> str:
        """What the answer has in a file of answers, wherever the model is reached."""
        asked = request.as_inputs(self.scale)
        return question_key("reflection", self.model, TASK_DIGEST, asked, sample)

    def _closed(self, answers: list[Reflection], purse: Budget) -> list[Reflection]:
        purse.close((a.receipt, self.model) for a in answers if a.receipt is not None)
        return answers

    def _answer(self, request: Request, sample: int, budget: Budget) -> Reflection:
        """What is known, or asked by another run now, else what the model says."""
        key = self._key(request, sample)
        with Claims(self.cache) as claims:
            read = functools.partial(self.cache.get, key) if self.cache else lambda: None
            stored = claims.known_or_mine(key, read, self.stop)
            if stored is not None:
                receipt = Receipt.of(stored.get("paid"))
                budget.charge(receipt, self.model)
                return Reflection(tuple(stored["rules"]), calls=0, receipt=receipt)
            bill = Bill(self.cache.owed(key) if self.cache else None)
            budget.charge(bill.before, self.model)
            try:
                return replace(self._ask(request, key, budget, bill), receipt=bill.receipt)
            except (BudgetError, CancelledError):
                if self.cache and bill.calls:
                    self.cache.owe(key, bill.own)
                raise

    def _ask(self, request: Request, key: str, budget: Budget, bill: Bill) -> Reflection:
        lm = self._language_model(budget, bill)
        try:
            stated = _asked(lm, request.as_inputs(self.scale))
        except _ENDED:
            raise
        except Exception as error:
            ended = cause_of_type(error, _ENDED)
            if ended is not None:
                raise ended from None
            said = scrub(str(error), self.judge)[:600] or type(error).__name__
            if classify(error).permanent:
                # Not chained: the provider's own words may repeat a key.
                raise self._unanswered(said) from None
            return Reflection((), lm.made, *_paid(lm), error=said)
        # Rules are shown, logged and registered; a gateway may put into them what it was sent.
        told = (scrub(str(rule), self.judge).strip() for rule in stated)
        rules = tuple(rule for rule in told if rule)
        if rules and all(map(is_refusal, rules)):
            return Reflection((), lm.made, *_paid(lm), error=f"it said {rules[0][:300]!r}")
        rules = rules[:MOST_RULES]
        if self.cache is not None:
            answer = {"rules": list(rules), "paid": bill.receipt.to_dict()}
            # Where another run was faster, its answer holds for both.
            rules = tuple(self.cache.put(key, answer)["rules"])
        return Reflection(rules, lm.made, *_paid(lm))

    def _language_model(self, budget: Budget, bill: Bill) -> Any:
        provider, _, name = self.model.partition(":/")
        options: dict[str, Any] = {}
        if self._own:
            options = _endpoint_options(self.judge)
        if provider == "openai" and "api_base" not in options and os.environ.get("OPENAI_API_BASE"):
            options["api_base"] = os.environ["OPENAI_API_BASE"]
        if provider + ":/" == SCHEME:
            register()
        # The workbench keeps answers itself, beside those of the judge, and repeats requests
        # itself, so that each is counted.
        return _counted_lm()(
            f"{provider}/{name.lstrip('/')}",
            self.model,
            budget,
            bill,
            self.stop,
            cache=False,
            num_retries=0,
            **options,
        )


class ReflectionBatch(Batch):
    """Questions to the reflection model that are asked together (see `workbench.tape.Batch`)."""

    kinds = ("reflection",)

    def __init__(self, keys: Sequence[str], model: str) -> None:
        super().__init__(keys, active())
        self.model = model

    def keep(self, running: Sequence[Future[Reflection]], judge: Judge) -> list[Reflection]:
        """The answers as they come, noted, and then without secrets that the model repeated."""
        if not isinstance(self.tape, Recorder):
            return [future.result() for future in running]
        kept: list[Reflection] = []
        stopped: BaseException | None = None
        for index, future in enumerate(running):
            try:
                answer = future.result()
            except Exception as error:
                # Those that were asked at the same time have been paid for.
                stopped = stopped or error
                continue
            clean = replace(answer, rules=tuple(scrub(rule, judge) for rule in answer.rules))
            paid: dict[str, Any] = {"calls": clean.calls, "tokens": clean.tokens}
            paid |= {"cost": clean.cost, "charged": (clean.receipt or Receipt()).to_dict()}
            told: dict[str, Any] = {"rules": list(clean.rules)}
            if clean.error:
                told["error"] = clean.error
            about = {"model": self.model}
            known = clean.calls == 0 and not clean.error
            self.note(index, "reflection", about, told, paid, repeated=known)
            kept.append(clean)
        if stopped is not None:
            raise stopped
        return kept


def _of_line(line: Line) -> Reflection:
    rules = line.answer.get("rules", [])
    paid = line.paid
    return Reflection(
        tuple(rules) if isinstance(rules, list) else (rules,),
        calls=paid.get("calls", 0),
        tokens=paid.get("tokens"),
        cost=paid.get("cost"),
        receipt=charged(paid),
        error=str(line.answer.get("error", "")),
    )


def _paid(lm: Any) -> tuple[int | None, float | None]:
    """Tokens and US dollars of all requests of a language model, as far as they are known."""
    usage = [entry.get("usage") or {} for entry in lm.history]
    costs = [entry["cost"] for entry in lm.history if entry.get("cost") is not None]
    tokens = sum(int(u.get("total_tokens") or 0) for u in usage)
    return tokens or None, sum(costs) if costs else None


def _endpoint_options(judge: Judge) -> dict[str, Any]:
    """Where and as whom the judge's model is reached, in dspy's terms.

    Sampling parameters of the judge are not taken over: a verdict of few words at temperature 0
    and a reflection are asked for differently.
    """
    options: dict[str, Any] = {}
    base_url = getattr(judge, "_base_url", None)
    if base_url:
        parts = urlsplit(base_url)
        root = parts.path.rstrip("/").removesuffix("/chat/completions")
        options["api_base"] = urlunsplit(parts._replace(path=root, query="", fragment=""))
        if parts.query:
            options["extra_query"] = dict(parse_qsl(parts.query))
    headers = getattr(judge, "_extra_headers", None)
    if headers:
        options["extra_headers"] = dict(headers)
    given = getattr(judge, "_inference_params", None) or {}
    return options | {k: given[k] for k in ("api_key", "timeout") if k in given}


@functools.cache
def _counted_lm() -> Any:
    """dspy's language model, each request of which is counted before it is made."""
    import dspy

    class CountedLM(dspy.LM):  # type: ignore[misc]  # dspy publishes no types
        def __init__(
            self,
            model: str,
            uri: str,
            budget: Budget,
            bill: Bill,
            stop: threading.Event,
            **options: Any,
        ) -> None:
            super().__init__(model, **options)
            self.uri, self.budget, self.bill, self.stopped = uri, budget, bill, stop

        @property
        def made(self) -> int:
            return self.bill.calls

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            retrying = Retrying(
                retry=retry_if_exception(_passing),
                stop=stop_after_attempt(ATTEMPTS),
                wait=wait_random_exponential(multiplier=0.5, max=20),
                sleep=sleep_using_event(self.stopped),
                reraise=True,
            )
            return retrying(self._once, *args, **kwargs)

        def _once(self, *args: Any, **kwargs: Any) -> Any:
            refuse_calls(f"The reflection model {self.model}")
            if self.stopped.is_set():
                raise CancelledError(CANCELLED)
            self.budget.take()
            self.bill.calls += 1
            request = {**self.kwargs, **kwargs}
            request["messages"] = kwargs.get("messages") or [*args, kwargs.get("prompt")]
            before = len(self.history)
            with self.budget.measuring(self.uri, request, bill=self.bill) as used:
                answer = super().__call__(*args, **kwargs)
                used(self.history[-1] if len(self.history) > before else None)
            return answer

    return CountedLM


def _passing(error: BaseException) -> bool:
    return not isinstance(error, _ENDED) and classify(error).fault in ("rate", "transient")


def _asked(lm: Any, inputs: dict[str, str]) -> Sequence[Any]:
    """The rules that the model states, in the form that was asked for or in another."""
    import dspy
    from dspy.utils.exceptions import AdapterParseError

    try:
        # Else dspy asks a second time for an answer that can be read as it is.
        with dspy.context(adapter=dspy.ChatAdapter(use_json_adapter_fallback=False)):
            return program()(**inputs, lm=lm).rules or ()
    except AdapterParseError:
        # The error's own text may be what a model thought where it said nothing.
        said = lm.history[-1]["outputs"][0] if lm.history else None
        stated = rules_in((said.get("text") if isinstance(said, dict) else said) or "")
        if stated is None:
            raise
        return stated


@functools.cache
def program() -> Any:
    """The dspy program, made when it is first needed since dspy takes seconds to import."""
    import dspy

    logging.getLogger("dspy").setLevel(logging.ERROR)

    class ProposeRules(dspy.Signature):  # type: ignore[misc]  # dspy publishes no types
        __doc__ = TASK

        judge_instructions: str = dspy.InputField(desc="what the judge is told now")
        allowed_values: str = dspy.InputField(desc="the rating scale; values from worst to best")
        disagreements: str = dspy.InputField(desc="cases to learn from, one JSON object a line")
        agreements: str = dspy.InputField(desc="cases that are right and must stay so")
        focus: str = dspy.InputField(desc="which disagreements to explain")
        rules: list[str] = dspy.OutputField(desc=f"at most {MOST_RULES} rules, the strongest first")

    return dspy.Predict(ProposeRules)
