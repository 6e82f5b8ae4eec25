"""What a run may spend on models in calls, tokens and money, never exceeded by a single call."""

from __future__ import annotations

import functools
import json
import math
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from numbers import Real
from pathlib import Path
from typing import Any, Final

from workbench.errors import ArgumentError, BudgetError

FREE: Final = "offline:/"  # begins the URI of the embedded model, which costs nothing
SPENT_VARIABLE: Final = "WORKBENCH_SPENT"
"""Names a file to which each request adds what it used, so that this outlives the process."""

ASSUMED_OUTPUT: Final = 4096  # tokens of an answer at most where the request sets no limit to it
_OVERHEAD: Final = 64  # tokens that a provider may add to a request, beside 16 for each message


@dataclass(frozen=True)
class Usage:
    """Requests made, retries included, their tokens and US dollars; None where not known."""

    requests: int = 0
    read: int | None = None
    written: int | None = None
    cost: float | None = None
    repeated: int | None = None  # of the tokens read, those in the provider's prompt cache

    @property
    def tokens(self) -> int:
        """Read and written, as far as they are known."""
        return (self.read or 0) + (self.written or 0)

    def __add__(self, other: Usage) -> Usage:
        """The sum; what is not known of a request that was made is not known of the sum."""
        if not (self.requests and other.requests):
            return other if other.requests else self
        return Usage(
            self.requests + other.requests,
            _whole(self.read, other.read),
            _whole(self.written, other.written),
            _whole(self.cost, other.cost),
            total(self.repeated, other.repeated),
        )


UNPAID: Final = Usage()
_NOTHING: Final = Usage(0, 0, 0, 0.0)


def total(*amounts: Any) -> Any:
    """Sum of the known amounts; None where none is known."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known else None


def _whole(*amounts: Any) -> Any:
    """Sum of the amounts; None where one is not known."""
    return None if None in amounts else sum(amounts)


def usd_per_1000(usages: Sequence[Usage]) -> float | None:
    """US dollars for 1,000 answers like these; None where the cost of none is known."""
    known = [used.cost for used in usages if used.cost is not None]
    return 1000 * sum(known) / len(known) if known else None


def cost(model: str, read: int | None, written: int | None) -> float | None:
    """US dollars for an answer by the list price of a model (URI); None where it is not known."""
    if model.startswith(FREE):
        return 0.0
    if read is None or written is None:
        return None
    listed = _listed(model)
    prices = [listed.get(f"{side}_cost_per_token") or 0.0 for side in ("input", "output")]
    return read * prices[0] + written * prices[1] if any(prices) else None


def context_window(model: str) -> int | None:
    """Tokens that a model reads at most; None where it is not known."""
    return int(_listed(model).get("max_input_tokens") or 0) or None


@functools.cache
def _listed(model: str) -> Mapping[str, Any]:
    """What litellm lists of a model, else MLflow's catalog."""
    provider, _, name = model.replace(":/", "/", 1).partition("/")
    models = _models()
    found: Mapping[str, Any] = models.get(f"{provider}/{name}") or models.get(name) or {}
    found = models.get(found.get("alias_of", "")) or found
    if str(found.get("litellm_provider")).startswith(provider):
        return found
    from mlflow.utils.providers import get_models

    return next((one for one in get_models(provider) if one["model"] == name), {})


@functools.cache
def _models() -> Mapping[str, Any]:
    """Read litellm 1.110.2's list from its file, since to import litellm takes seconds."""
    folder = Path(getattr(find_spec("litellm"), "origin", "")).parent
    with suppress(OSError, ValueError):
        listed = folder / "model_prices_and_context_window_backup.json"
        return dict(json.loads(listed.read_text("utf-8")))
    return {}


@dataclass(frozen=True)
class Reservation(Usage):
    """The most tokens and money that one request can use."""

    model: str = ""


class Budget:
    """What may be spent, shared by all threads and by all who are given the same object.

    Parameters
    ----------
    calls
        Requests to models at most, those that failed and were repeated included.
    tokens
        Tokens read and written at most, of judge and reflection model together.
    usd
        US dollars at most, by the price lists of litellm and MLflow. Where they do not know the
        model, a budget in money is refused before anything is spent.

    None of them is a limit where it is None. Before a request is made, the most that it can use
    is reserved: a token for each byte of its prompt, and as many for the answer as its
    ``max_tokens`` allow, or 4,096 where it has none (set it in a judge's ``inference_params`` to
    get closer to the limit). What the provider says that the request did not use is refunded; where
    it says nothing, the reservation counts in full. A request for which not enough is left waits
    for those under way, and is not made if their refunds do not suffice. Only an answer without
    ``max_tokens`` that is longer than 4,096 tokens, as of reasoning models, can use more than was
    reserved. Answers from the cache are not charged.

    Attributes
    ----------
    spent, spent_tokens, spent_usd
        Until now.
    left, left_tokens, left_usd
        Infinite without a limit.

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
            number = isinstance(limit, Real) and not isinstance(limit, bool)
            if limit is not None and not (number and limit >= 0):
                raise ArgumentError(f"budget={limit!r} ({name}) must be a number of 0 or more.")
        self.limit, self.tokens, self.usd = calls, tokens, usd
        self.spent, self.spent_tokens, self.spent_usd = 0, 0, 0.0
        self._known = _NOTHING
        self._kept_back: list[tuple[float, float, float]] = []  # by each that shares it
        self._under_way: list[Reservation] = []
        self._changed = threading.Condition()
        _note(UNPAID)  # so that it shows where nothing had to be paid

    @classmethod
    def of(cls, budget: Budget | int | None) -> Budget:
        """Return the budget itself; a number is one of calls, None one without limits."""
        return budget if isinstance(budget, Budget) else cls(budget)

    def afresh(self) -> Budget:
        """Return another budget with the same limits, of which nothing is spent."""
        return Budget(self.limit, tokens=self.tokens, usd=self.usd)

    @property
    def left(self) -> float:
        return self._left(0, self.limit, self.spent)

    @property
    def left_tokens(self) -> float:
        return self._left(1, self.tokens, self.spent_tokens)

    @property
    def left_usd(self) -> float:
        return self._left(2, self.usd, self.spent_usd)

    def _left(self, which: int, limit: float | None, spent: float) -> float:
        kept = sum(one[which] for one in self._kept_back)
        return math.inf if limit is None else max(0, limit - spent - kept)

    @property
    def is_limited(self) -> bool:
        """Whether there is any limit."""
        return self.limit is not None or self.measures

    @property
    def measures(self) -> bool:
        """Whether tokens or money are limited, so that each request must be measured."""
        return self.tokens is not None or self.usd is not None

    def check(self, *models: str) -> None:
        """Raise `BudgetError` where money is limited and the price of a model is not known."""
        for model in models if self.usd is not None else ():
            if cost(model, 1, 1) is None:
                raise BudgetError(
                    "A budget in money cannot be kept: litellm and MLflow know no price of "
                    f"{model}. Nothing was spent. Set the budget in tokens or calls instead: "
                    "workbench.Budget(tokens=...)."
                )

    @contextmanager
    def keeping(self, *, calls: int = 0, tokens: int = 0, usd: float = 0.0) -> Iterator[None]:
        """Keep so much back for what comes later; `BudgetError` when nothing is left beside it."""
        kept = (calls, tokens, usd)
        with self._changed:
            if self.left <= calls or self.left_tokens <= tokens or self.left_usd <= usd:
                raise BudgetError(
                    f"The budget is too small: {self} are used, and {calls} calls, {tokens:,} "
                    f"tokens and ${usd:.2f} are kept back for the held-out test, so that nothing "
                    "is left to learn with. Raise budget=."
                )
            self._kept_back.append(kept)
        try:
            yield
        finally:
            with self._changed:
                self._kept_back.remove(kept)

    def reserve(
        self,
        model: str,
        payload: Mapping[str, Any] | None = None,
        is_over: Callable[[], bool] = lambda: False,
    ) -> Reservation:
        """Count a request, and reserve the most that it can use; `settle` must follow."""
        self.check(model)
        read, written = (0, 0)
        if self.measures:
            read, written = most_tokens(payload or {})
        usd = 0.0 if self.usd is None else cost(model, read, written) or 0.0
        wanted = Reservation(1, read, written, usd, model=model)
        with self._changed:
            while not self._fits(wanted, self._under_way):
                if not self._under_way or not self._fits(wanted, ()) or is_over():
                    raise self._exhausted(wanted)
                # Those under way may leave something over. Woken now and then for `is_over`.
                self._changed.wait(0.5)
            self._under_way.append(wanted)
            self.spent += 1
            return wanted

    def _fits(self, wanted: Reservation, others: Sequence[Reservation]) -> bool:
        tokens = sum(one.tokens for one in (wanted, *others))
        usd = sum(one.cost or 0.0 for one in (wanted, *others))
        return self.left >= 1 and tokens <= self.left_tokens and usd <= self.left_usd

    def _exhausted(self, wanted: Reservation) -> BudgetError:
        needs = (
            f", and the next request may use up to {wanted.tokens:,} tokens; max_tokens in the "
            "judge's inference_params limits that"
        )
        untold = " A request whose tokens the server does not report counts in full."
        return BudgetError(
            f"The budget is spent: {self} are used{needs if self.measures else ''}."
            f"{untold if self.measures and self._known.read is None else ''} Raise budget= "
            "to go on; answers that were paid for are kept."
        )

    def settle(
        self,
        reserved: Reservation,
        read: int | None = None,
        written: int | None = None,
        repeated: int | None = None,
    ) -> Usage:
        """Replace a reservation by what was used, and return that; all of it where not known."""
        model = reserved.model
        known = Usage(1, read, written, cost(model, read, written), repeated)
        read = (reserved.read or 0) if read is None else read
        written = (reserved.written or 0) if written is None else written
        with self._changed:
            self._under_way.remove(reserved)
            self._known += known
            _note(known)
            self.spent_tokens += read + written
            self.spent_usd += cost(model, read, written) or 0.0
            self._changed.notify_all()
        return known

    def charge(self, used: Usage) -> None:
        """Count what a recorded run paid for an answer, while it is replayed."""
        with self._changed:
            self._known += used
            self.spent += used.requests
            self.spent_tokens += used.tokens
            self.spent_usd += used.cost or 0.0

    def figures(self) -> dict[str, Any]:
        """Return what was spent: ``calls``, ``tokens``, ``cost``; None where it is not known."""
        return _figures(self._known) | {"calls": self.spent}

    def __str__(self) -> str:
        parts = [] if self.limit is None else [f"{self.spent} of {self.limit} calls"]
        if self.tokens is not None:
            parts.append(f"{self.spent_tokens:,} of {self.tokens:,} tokens")
        if self.usd is not None:
            parts.append(f"${self.spent_usd:.4f} of ${self.usd:.2f}")
        return ", ".join(parts) or f"{self.spent} calls, no limit"

    def __repr__(self) -> str:
        return f"Budget({self})"


def _note(used: Usage) -> None:
    if path := os.environ.get(SPENT_VARIABLE):
        # An answer that was paid for is worth more than its line on a disk that is full.
        with suppress(OSError), Path(path).open("a", encoding="utf-8") as file:
            file.write(json.dumps([used.requests, used.read, used.written, used.cost]) + "\n")


def read_spent(path: Path) -> dict[str, Any]:
    """Return ``calls``, ``tokens`` and ``cost`` of the requests in a file; None where not known.

    Empty where there is no file. A line that a killed process left half-written does not count.
    """
    used = _NOTHING
    lines = path.read_text("utf-8").splitlines() if path.exists() else []
    for line in lines:
        with suppress(ValueError):
            used += Usage(*json.loads(line))
    return _figures(used) if lines else {}


def _figures(used: Usage) -> dict[str, Any]:
    tokens = _whole(used.read, used.written)
    return {"calls": used.requests, "tokens": tokens, "cost": used.cost}


# Names that are added up; the first group of which one is known counts. Anthropic's `input_tokens`
# are those that were not in the prompt cache, and all others' names hold both.
_READ: Final = (
    ("prompt_tokens",),
    ("input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"),
    ("promptTokenCount",),
)
_WRITTEN: Final = (
    ("completion_tokens",), ("output_tokens",), ("candidatesTokenCount", "thoughtsTokenCount"),
)  # fmt: skip
_REPEATED: Final = (
    ("cache_read_input_tokens",), ("cachedContentTokenCount",), ("prompt_cache_hit_tokens",),
)  # fmt: skip
_OUTPUT_LIMITS: Final = ("max_tokens", "max_completion_tokens", "max_output_tokens")


def tokens_used(answer: Any) -> tuple[int | None, int | None, int | None]:
    """Tokens read, written, and of those read the cached ones; None where nobody reports them."""
    found = _part(answer, "usage") or _part(answer, "usageMetadata")
    details = _part(found, "prompt_tokens_details") or _part(found, "input_tokens_details")

    def count(groups: Sequence[Sequence[str]], whole: Any = found) -> Any:
        counts = ([_part(whole, name) for name in names] for names in groups)
        sums = (total(*(n for n in one if isinstance(n, int) and n >= 0)) for one in counts)
        return next((n for n in sums if n is not None), None)

    cached = count([["cached_tokens"]], details)
    return count(_READ), count(_WRITTEN), count(_REPEATED) if cached is None else cached


def _part(whole: Any, name: str) -> Any:
    return whole.get(name) if isinstance(whole, Mapping) else getattr(whole, name, None)


def most_tokens(payload: Mapping[str, Any]) -> tuple[int, int]:
    """Tokens that a chat request can read, one for each byte, and write at most."""
    sent = {key: value for key, value in payload.items() if key not in _OUTPUT_LIMITS}
    text = json.dumps(sent, ensure_ascii=False, default=_plain)
    messages = payload.get("messages") or ()
    prompt = len(text.encode("utf-8", "surrogatepass")) + 16 * len(messages) + _OVERHEAD
    stated = [payload.get(name) for name in _OUTPUT_LIMITS]
    stated.append(_part(payload.get("generationConfig"), "maxOutputTokens"))
    limits = [limit for limit in stated if isinstance(limit, int)]
    times = payload.get("n") or 1
    return prompt, times * max(limits, default=ASSUMED_OUTPUT)


def _plain(value: Any) -> Any:
    if isinstance(value, type) and hasattr(value, "model_json_schema"):
        return value.model_json_schema()
    return value.model_dump() if hasattr(value, "model_dump") else str(value)
