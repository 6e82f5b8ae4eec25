"""What a run may spend on models in calls, tokens and money, never exceeded by a single call."""

from __future__ import annotations

import functools
import json
import math
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Final

from workbench.errors import ArgumentError, BudgetError
from workbench.models.faults import classify
from workbench.models.offline import SCHEME


@dataclass(frozen=True)
class Receipt:
    """Requests made for an answer, repeated ones included, and the tokens that they took.

    ``read`` and ``written`` count tokens; ``spare_read`` and ``spare_written`` those that were
    set aside for its largest request and not used (see `workbench.budget.Budget`). All are at
    least 0.
    """

    calls: int = 1
    read: int = 0
    written: int = 0
    spare_read: int = 0
    spare_written: int = 0

    @property
    def tokens(self) -> int:
        """Read and written."""
        return self.read + self.written

    @property
    def spare(self) -> int:
        """Tokens that were set aside and not used."""
        return self.spare_read + self.spare_written

    def __add__(self, other: Receipt) -> Receipt:
        spare = max(
            (self.spare_read, self.spare_written), (other.spare_read, other.spare_written), key=sum
        )
        return Receipt(
            self.calls + other.calls, self.read + other.read, self.written + other.written, *spare
        )

    def to_dict(self) -> dict[str, int]:
        """As JSON holds it; what is 0 is left out, but for the calls."""
        return {k: v for k, v in asdict(self).items() if v or k == "calls"}

    @classmethod
    def of(cls, stored: Any) -> Receipt:
        """The receipt that `to_dict` wrote.

        An answer that has none, or one that is damaged, cost one call, and nobody knows how many
        tokens.
        """
        if not isinstance(stored, Mapping):
            return cls()
        told = {name: stored.get(name, 0) for name in cls.__dataclass_fields__}
        if not all(
            isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in told.values()
        ):
            return cls()
        return cls(**told)


class Bill:
    """Adds up what is paid for one answer while it is asked for.

    ``before`` is what an earlier run paid for it without getting it.
    """

    def __init__(self, before: Receipt | None = None) -> None:
        self.before = before or Receipt(0)
        self.calls = self.read = self.written = 0
        self._spare = (0, 0)

    def add(self, most: tuple[int, int], used: tuple[int, int]) -> None:
        """One request: tokens (read, written) that it could use at most, and that it used."""
        self.read += used[0]
        self.written += used[1]
        spare = max(0, most[0] - used[0]), max(0, most[1] - used[1])
        self._spare = max(self._spare, spare, key=sum)

    @property
    def own(self) -> Receipt:
        """What was paid now."""
        return Receipt(self.calls, self.read, self.written, *self._spare)

    @property
    def receipt(self) -> Receipt:
        """What was paid at whatever time."""
        return self.before + self.own


def cost(model: str, prompt_tokens: int, output_tokens: int) -> float | None:
    """US dollars for one answer of the model (a URI such as ``openai:/gpt-4.1-mini``).

    None where no price is known. The embedded model costs nothing. It is the list price: discounts
    for repeated prompts are not counted.
    """
    if model.startswith(SCHEME):
        return 0.0
    name = _known(model)
    if name is None:
        return None
    import litellm

    read, written = litellm.cost_per_token(
        model=name, prompt_tokens=prompt_tokens, completion_tokens=output_tokens
    )
    return float(read + written)


@functools.lru_cache(maxsize=256)
def _known(model: str) -> str | None:
    """The name under which litellm knows a price of the model."""
    import litellm

    provider, mark, name = model.partition(":/")
    full = f"{provider}/{name.lstrip('/')}" if mark else model
    try:
        read, written = litellm.cost_per_token(
            model=full, prompt_tokens=1_000_000, completion_tokens=1_000_000
        )
    except Exception:  # litellm raises plain exceptions for what it does not know
        return None
    return full if read + written > 0 else None


def check_priced(model: str) -> None:
    """Raise `BudgetError` where no price of the model is known, so that no money is counted."""
    if cost(model, 1, 1) is None:
        raise BudgetError(
            f"A budget in money cannot be kept: litellm knows no price of {model}. Nothing was "
            "spent. Set the budget in tokens or calls instead: workbench.Budget(tokens=...)."
        )


ASSUMED_OUTPUT: Final = 4096
"""Tokens that an answer is taken to have at most where the request sets no limit to it."""


_OVERHEAD: Final = 64
"""Tokens that a provider may add to a request, beside 16 for each of its messages."""


_OUTPUT_LIMITS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")


@dataclass
class Held:
    """What is set aside for one request until it is known what it used."""

    model: str
    prompt: int
    output: int
    usd: float = 0.0
    open: bool = True

    @property
    def tokens(self) -> int:
        """At most."""
        return self.prompt + self.output


class Budget:
    """What may be spent, shared by all threads and by all who are given the same object.

    Parameters
    ----------
    calls
        Requests to models at most, those that failed and were repeated included.
    tokens
        Tokens read and written at most, of judge and reflection model together.
    usd
        US dollars at most, by litellm's price list. Where it does not know the model, a budget
        in money is refused before anything is spent.

    None of them is a limit where it is None. Before a request is made, the most that it can use
    is set aside: a token for each byte of its prompt, and as many for the answer as its
    ``max_tokens`` allow, or 4,096 where it has none (set it in a judge's ``inference_params`` to
    get closer to the limit). What is left over is given back once the provider has told what
    it used; where it does not tell, it counts in full. A request for which not enough is left
    waits for those under way, and is not made if their leftovers do not suffice. Only where
    an answer without ``max_tokens`` is longer than 4,096 tokens, as those of reasoning models may
    be, more can be used than was set aside, which a warning tells and later requests heed.

    A budget is of a run, not of a process: an answer that is known already is charged with what
    it cost when it was paid for (one call where that is not known), so that a run that is
    repeated, or resumed with the same budget, takes the course that it took or would have taken.
    What is really paid now is ``spent`` less ``known``.

    Attributes
    ----------
    spent, spent_tokens, spent_usd
        Until now.
    known, known_tokens, known_usd
        Of these, what was paid before, for answers that were known already.

    Raises
    ------
    ArgumentError
        For a limit that is negative or no number.

    >>> Budget(calls=200, tokens=100_000)
    Budget(0 of 200 calls, 0 of 100,000 tokens)
    """

    def __init__(
        self, calls: int | None = None, *, tokens: int | None = None, usd: float | None = None
    ) -> None:
        for name, limit in (("calls", calls), ("tokens", tokens), ("usd", usd)):
            if limit is None:
                continue
            number = isinstance(limit, (int, float)) and not isinstance(limit, bool)
            if not number or math.isnan(limit):
                raise ArgumentError(f"budget={limit!r} ({name}) must be a number.")
            if limit < 0:
                raise ArgumentError(f"budget={limit} ({name}) must not be negative.")
        self.limit, self.tokens, self.usd = calls, tokens, usd
        self.spent, self.spent_tokens, self.spent_usd = 0, 0, 0.0
        self.known, self.known_tokens, self.known_usd = 0, 0, 0.0
        self._kept = {"calls": 0, "tokens": 0, "usd": 0.0}
        self._requests, self._answers = 0, 0
        self._held: list[Held] = []
        self._excess = 1.0
        self._settled = threading.Condition()

    @classmethod
    def of(cls, budget: Budget | int | None) -> Budget:
        """The budget itself; a number is one of calls, None one without limits."""
        return budget if isinstance(budget, Budget) else cls(budget)

    def afresh(self) -> Budget:
        """Another budget with the same limits, of which nothing is spent."""
        return Budget(self.limit, tokens=self.tokens, usd=self.usd)

    @property
    def made(self) -> int:
        """Requests that were really made with it, those that failed included."""
        return self.spent - self.known

    @property
    def left(self) -> float:
        """Calls; infinite without a limit."""
        if self.limit is None:
            return math.inf
        return max(0, self.limit - self.spent - self._kept_calls)

    @property
    def left_tokens(self) -> float:
        """Tokens; infinite without a limit."""
        if self.tokens is None:
            return math.inf
        return max(0, self.tokens - self.spent_tokens - self._kept["tokens"])

    @property
    def left_usd(self) -> float:
        """US dollars; infinite without a limit."""
        if self.usd is None:
            return math.inf
        return max(0.0, self.usd - self.spent_usd - self._kept["usd"])

    @property
    def _kept_calls(self) -> int:
        """What is kept back, and more of it the more requests have failed until now.

        Twenty answers without a failure are assumed beforehand, since the first few tell little.
        """
        calls = self._kept["calls"]
        each = (self._requests + 20) / (self._answers + 20)
        if calls == 0 or each <= 1:
            return int(calls)
        # One standard deviation of the number of failures above their mean.
        return math.ceil(calls * each + math.sqrt(calls * each * (each - 1)))

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return self.limit is not None or self.measures

    @property
    def measures(self) -> bool:
        """Whether tokens or money are limited, so that each request must be measured."""
        return self.tokens is not None or self.usd is not None

    def check(self, *models: str) -> None:
        """Raise `BudgetError` where the cost of one of the models cannot be told."""
        if self.usd is not None:
            for model in models:
                check_priced(model)

    def take(self) -> None:
        """Count one call before it is made.

        Raises
        ------
        BudgetError
            When no call is left.
        """
        with self._settled:
            if self.left < 1:
                raise self.exhausted()
            self.spent += 1

    @contextmanager
    def keeping(self, *, calls: int = 0, tokens: int = 0, usd: float = 0.0) -> Iterator[None]:
        """Within it so much is kept back for what comes later, where there is a limit.

        ``calls`` are answers that will be asked for; as some take several requests, more is kept
        back the more have failed until now.

        Raises
        ------
        BudgetError
            When there is not so much left, or nothing beside it.
        """
        if self.left <= calls or self.left_tokens <= tokens or self.left_usd <= usd:
            raise BudgetError(
                f"The budget of {self._limits()} is too small: {self.told()} are used, and "
                f"{calls} calls, {tokens:,} tokens and ${usd:.2f} are kept back for the held-out "
                "test, so that nothing is left to learn with. Raise budget=."
            )
        kept = {"calls": calls, "tokens": tokens, "usd": usd}
        for name, amount in kept.items():
            self._kept[name] += amount
        try:
            yield
        finally:
            for name, amount in kept.items():
                self._kept[name] -= amount

    def give_back(self) -> None:
        """A call that was taken is not made after all."""
        with self._settled:
            self.spent -= 1

    def hold(
        self, model: str, request: Mapping[str, Any], is_over: Callable[[], bool] | None = None
    ) -> Held:
        """Set aside the most that a request can use; `settle` must follow.

        ``request`` is what is sent, ``is_over`` tells that it need not be made any more.

        Raises
        ------
        BudgetError
            When not enough is left for it, or no price is known.
        """
        prompt, output = most_tokens(request)
        with self._settled:
            while True:
                held = Held(model, prompt, math.ceil(output * self._excess))
                if self.usd is not None:
                    check_priced(model)
                    held.usd = cost(model, held.prompt, held.output) or 0.0
                if self._fits(held, self._held):
                    self._held.append(held)
                    return held
                if not self._held or not self._fits(held, ()) or (is_over and is_over()):
                    raise self.exhausted(held)
                # Others under way may leave something over. Woken now and then for `is_over`.
                self._settled.wait(0.5)

    def _fits(self, wanted: Held, held: list[Held] | tuple[()]) -> bool:
        tokens = wanted.tokens + sum(one.tokens for one in held)
        usd = wanted.usd + sum(one.usd for one in held)
        return tokens <= self.left_tokens and usd <= self.left_usd

    def settle(self, held: Held, prompt: int | None = None, output: int | None = None) -> None:
        """Replace what was set aside by what was used; all of it where that is not known."""
        prompt, output = (
            set_aside if used is None else used
            for used, set_aside in ((prompt, held.prompt), (output, held.output))
        )
        used = prompt + output
        with self._settled:
            if not held.open:
                return
            held.open = False
            self._held.remove(held)
            self.spent_tokens += used
            self.spent_usd += cost(held.model, prompt, output) or 0.0
            exceeded = self.measures and used > held.tokens
            if exceeded:
                self._excess = max(self._excess, used / max(1, held.output))
            self._settled.notify_all()
        if exceeded:
            warnings.warn(
                f"A request to {held.model} used {used:,} tokens, where {held.tokens:,} were set "
                "aside as the most, so that the budget may be exceeded by the difference. Set "
                "max_tokens in the judge's inference_params.",
                stacklevel=2,
            )

    @contextmanager
    def measuring(
        self,
        model: str,
        request: Mapping[str, Any],
        is_over: Callable[[], bool] | None = None,
        bill: Bill | None = None,
    ) -> Iterator[Callable[[Any], None]]:
        """Within it a request is made, for which `take`, and the bill, have counted a call already.

        Gives a function that takes the answer, a dict or an object, and reads what was used. What
        the provider refused has used nothing; what got lost on its way counts in full. All of it
        is put on the bill, also where nothing is limited.
        """
        if self.measures:
            try:
                held = self.hold(model, request, is_over)
            except BudgetError:
                self.give_back()
                if bill is not None:
                    bill.calls -= 1
                raise
        else:
            held = Held(model, *most_tokens(request))
        used: tuple[int | None, int | None] = (None, None)

        def read(answer: Any) -> None:
            nonlocal used
            used = usage(answer)

        try:
            yield read
        except BaseException as error:
            if _was_refused(error):
                used = (0, 0)
            raise
        finally:
            most = held.prompt, held.output
            if bill is not None:
                bill.add(most, (_or(used[0], most[0]), _or(used[1], most[1])))
            if self.measures:
                self.settle(held, *used)

    # -- answers that are known already ---------------------------------------------------

    def charge(self, receipt: Receipt, model: str, *, made: int = 0) -> None:
        """Count what an answer of the model cost that is known already.

        ``made`` of its calls count as made: those that a recorded run made, when it is replayed.

        Raises
        ------
        BudgetError
            When a run that had to pay for it could not have.
        """
        with self._settled:
            calls = int(min(receipt.calls, self.left))
            usd = self._price(model, receipt.read, receipt.written)
            self.spent += calls
            self.known += max(0, calls - made)
            fits = receipt.tokens <= self.left_tokens and usd <= self.left_usd
            if calls < receipt.calls or not fits:
                raise self.exhausted()
            self.spent_tokens += receipt.tokens
            self.known_tokens += receipt.tokens
            self.spent_usd += usd
            self.known_usd += usd

    def close(self, answers: Iterable[tuple[Receipt, str]]) -> None:
        """Answers that were asked for together are there: (receipt, model) of each.

        Which of them is asked last is left to chance, and whether what is set aside for a request
        is still there depends on it. So that the same run always ends at the same place, it goes
        on only where any of them could have been the last.

        Raises
        ------
        BudgetError
            When one of them could not; all are there nevertheless.
        """
        told = [(receipt, model) for receipt, model in answers if receipt.calls]
        with self._settled:
            self._requests += sum(receipt.calls for receipt, _ in told)
            self._answers += len(told)
            if not self.measures or not told:
                return
            spare = max(receipt.spare for receipt, _ in told)
            usd = max(self._price(m, r.spare_read, r.spare_written) for r, m in told)
            if spare > self.left_tokens or usd > self.left_usd + 1e-12:
                raise self.exhausted()

    def _price(self, model: str, read: int, written: int) -> float:
        return 0.0 if self.usd is None else cost(model, read, written) or 0.0

    # -- what a recorded run spent -------------------------------------------------------

    def state(self) -> dict[str, float]:
        """What is spent, by the names of `amounts`."""
        return {"calls": self.spent, "tokens": self.spent_tokens, "cost": self.spent_usd}

    def burn(self, paid: Mapping[str, Any], *, known: int = 0) -> None:
        """Count what a recorded run paid; never an error. ``known`` of its calls were not made."""
        told = amounts(paid)
        with self._settled:
            self.spent += int(told["calls"])
            self.known += known
            self.spent_tokens += int(told["tokens"])
            self.spent_usd += told["cost"]

    @property
    def is_exceeded(self) -> bool:
        """Whether more was burnt than there was."""
        spent = (
            (self.limit, self.spent),
            (self.tokens, self.spent_tokens),
            (self.usd, self.spent_usd),
        )
        return any(limit is not None and used > limit for limit, used in spent)

    # -- in words -------------------------------------------------------------------------

    def exhausted(self, wanted: Held | None = None) -> BudgetError:
        """The error that says that the budget is spent, and for what too little is left."""
        if wanted is None:
            return BudgetError(
                f"The budget of {self._limits()} is spent. Raise budget= to go on; answers that "
                "were paid for are kept."
            )
        money = f" and ${wanted.usd:.4f}" if self.usd is not None else ""
        return BudgetError(
            f"The budget of {self._limits()} is spent: {self.told()} are used, and the next "
            f"request may use up to {wanted.tokens:,} tokens{money}. Raise budget= to go on, or "
            "set max_tokens in the judge's inference_params; answers that were paid for are kept."
        )

    def _limits(self) -> str:
        parts = [] if self.limit is None else [f"{self.limit} calls"]
        parts += [] if self.tokens is None else [f"{self.tokens:,} tokens"]
        parts += [] if self.usd is None else [f"${self.usd:.2f}"]
        return ", ".join(parts)

    def told(self) -> str:
        """Spent of each limit, in words."""
        parts = []
        if self.limit is not None:
            parts.append(f"{self.spent} of {self.limit} calls")
        if self.tokens is not None:
            parts.append(f"{self.spent_tokens:,} of {self.tokens:,} tokens")
        if self.usd is not None:
            parts.append(f"${self.spent_usd:.4f} of ${self.usd:.2f}")
        told = ", ".join(parts) or f"{self.spent} calls, no limit"
        return f"{told} ({self.known} of the calls were paid before)" if self.known else told

    def __repr__(self) -> str:
        return f"Budget({self.told()})"


def amounts(paid: Mapping[str, Any]) -> dict[str, float]:
    """Calls, tokens and US dollars of what was paid for an answer."""
    tokens = sum(paid.get(name) or 0 for name in ("tokens", "input_tokens", "output_tokens"))
    return {"calls": paid.get("calls") or 0, "tokens": tokens, "cost": paid.get("cost") or 0.0}


def _or(told: int | None, otherwise: int) -> int:
    return otherwise if told is None else told


_READ: Final = (
    "prompt_tokens",
    "input_tokens",
    "cache_creation_input_tokens",
    "cache_read_input_tokens",
    "promptTokenCount",
)

_WRITTEN: Final = (
    "completion_tokens",
    "output_tokens",
    "candidatesTokenCount",
    "thoughtsTokenCount",
)


def usage(answer: Any) -> tuple[int | None, int | None]:
    """Tokens read and written, as providers tell them; None where they do not."""
    found = _part(answer, "usage") or _part(answer, "usageMetadata")

    def told(names: tuple[str, ...]) -> int | None:
        counts = [n for name in names if isinstance(n := _part(found, name), int) and n >= 0]
        return sum(counts) if counts else None

    return told(_READ), told(_WRITTEN)


def _part(whole: Any, name: str) -> Any:
    return whole.get(name) if isinstance(whole, Mapping) else getattr(whole, name, None)


_LOST: Final = (408, 504)
"""Status of requests that a provider may have worked on before they were given up."""


def _was_refused(error: BaseException) -> bool:
    links: list[BaseException | None] = [error]
    while (last := links[-1]) is not None and len(links) < 50:
        status = getattr(last, "status_code", None)
        if isinstance(status, int):
            return status >= 400 and status not in _LOST
        links.append(last.__cause__ or last.__context__)
    return classify(error).fault == "unreachable"


def most_tokens(request: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens that a chat request can read and write at most.

    No tokenizer makes more tokens of a text than it has bytes.
    """
    sent = {key: value for key, value in request.items() if key not in _OUTPUT_LIMITS}
    text = json.dumps(sent, ensure_ascii=False, default=_plain)
    messages = request.get("messages") or ()
    prompt = len(text.encode("utf-8", "surrogatepass")) + 16 * len(messages) + _OVERHEAD
    told = [request.get(name) for name in _OUTPUT_LIMITS]
    told.append(_part(request.get("generationConfig"), "maxOutputTokens"))
    limits = [limit for limit in told if isinstance(limit, int)]
    answers = request.get("n")
    times = answers if isinstance(answers, int) and answers > 1 else 1
    return prompt, times * (max(limits) if limits else ASSUMED_OUTPUT)


def _plain(value: Any) -> Any:
    if isinstance(value, type) and hasattr(value, "model_json_schema"):
        return _schema(value)
    dumped = getattr(value, "model_dump", None)
    return dumped() if callable(dumped) else str(value)


@functools.lru_cache(maxsize=64)
def _schema(kind: Any) -> Any:
    """Made once, since every request of a judge has the same."""
    return kind.model_json_schema()
