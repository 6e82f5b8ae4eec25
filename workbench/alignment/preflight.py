"""The checks before an alignment: what it will do, and what it takes at most."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.errors import ModelError, TooFewPairsError
from workbench.judging.requests import judge_examples
from workbench.judging.verdicts import Verdict
from workbench.models.budget import ASSUMED_OUTPUT, Budget, cost
from workbench.models.cache import AnswerCache
from workbench.models.runner import Runner
from workbench.pairing.pairs import Pairs, Split
from workbench.simba.forecast import Forecast, forecast
from workbench.simba.items import MINIMUM_LABELS, Case, Item
from workbench.simba.optimizer import SIMBA
from workbench.store.traces import Example

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

    from workbench.metrics.annotators import AnnotatorAgreement


ADVISED_PAIRS = 50

ADVISED_SHARE = 0.3

PROBE = -1
"""Number of the sample that only a probe asks for, so that no other answer stands in for it."""


def check_pairs(pairs: Pairs) -> None:
    """Raise `TooFewPairsError` where there is too little to learn from."""
    if len(pairs) >= MINIMUM_LABELS:
        return
    lost = "; ".join(f"{row.traces} traces: {row.reason}" for row in pairs.reasons.itertuples())
    raise TooFewPairsError(
        f"{len(pairs)} usable pairs under {pairs.name!r}; alignment needs at least "
        f"{MINIMUM_LABELS}, and {ADVISED_PAIRS} to 100 make a difference that can be trusted. "
        + (f"Left out: {lost}. " if lost else "")
        + "Label more traces, or mend the reasons above."
    )


def probed(
    judge: Judge,
    example: Example,
    pairs: Pairs,
    *,
    budget: Budget | None = None,
    cache: bool = True,
) -> Verdict:
    """Return the verdict of one judge call, made now or in an earlier run of the same alignment.

    Raises
    ------
    ModelError
        When the judge does not answer, or not with a usable verdict.
    """
    with (
        AnswerCache() if cache else nullcontext() as answers,
        Runner(cache=answers, budget=budget) as runner,
    ):
        verdict = judge_examples(judge, [example], runner, sample=PROBE, scale=pairs.scale)[0]
    if verdict.error is not None:
        raise ModelError(
            f"A first call of judge {judge.name!r} failed on trace {example.trace_id}: "
            f"{verdict.error}. Mend this before aligning; nothing was changed."
        )
    return verdict


def preflight(
    judge: Judge,
    pairs: Pairs,
    split: Split,
    by_id: Mapping[str, Example],
    probe: Verdict,
    annotators: AnnotatorAgreement | None = None,
    *,
    simba: SIMBA | None,
    budget: Budget,
    whole: bool,
) -> pd.DataFrame:
    """Return the checks as a table with the columns ``check``, ``finding`` and ``advice``.

    ``probe`` is the verdict of a first call (`probed`). ``simba`` is None where another optimizer
    is used, whose calls cannot be foretold. ``budget`` is that of learning, and ``whole`` tells
    that the held-out test is paid from it too.
    """
    few = "" if len(pairs) >= ADVISED_PAIRS else f"{ADVISED_PAIRS} to 100 are advised"
    rows = [("usable pairs", str(len(pairs)), few)]
    rows += [
        (f"left out: {row.reason}", f"{row.traces} traces", "")
        for row in pairs.reasons.itertuples()
    ]
    rows.append(_balance(pairs))
    if annotators is not None and len(annotators.annotators) > 1:
        found = f"alpha {annotators.alpha:.2f}, ceiling {annotators.ceiling:.2f}"
        low = "people hardly agree: settle the rubric first" if annotators.alpha < 0.4 else ""
        rows.append(("annotators among themselves", found, low))
    parts = f"train {len(split.train)}, dev {len(split.dev)}, test {len(split.test)}"
    small = "too few held-out pairs to prove much" if len(split.test) < 30 else ""
    rows.append(("split", parts, small))
    rows.append(("judge answers", f"yes: {probe.value!r}", ""))
    ends = "the budget ends it" if budget.is_limited else "budget= sets a limit"
    if simba is None:
        rows.append(("calls", "not known: the optimizer does not say", ends))
    else:
        most = forecast_of(judge, split, by_id, simba, probe)
        rows += _cost(judge, most, len(split.test), probe, budget, ends, whole=whole)
    return pd.DataFrame(rows, columns=["check", "finding", "advice"])


def forecast_of(
    judge: Judge, split: Split, by_id: Mapping[str, Example], simba: SIMBA, probe: Verdict
) -> Forecast:
    """Return what learning on the split takes at most."""
    cases = [
        Case(
            Item(by_id[row["trace_id"]], row["human"], row["human_rationale"] or ""),
            Verdict(row["trace_id"], row["judge"], row["judge_rationale"] or ""),
        )
        for part in (split.train, split.dev)
        for row in part.table.to_dict("records")
    ]
    return forecast(
        judge, cases, len(split.dev), simba.settings, split.train.scale,
        reflection_model=simba.model, probe=probe,
    )  # fmt: skip


def _balance(pairs: Pairs) -> tuple[str, str, str]:
    counts = Counter(map(str, pairs.table["human"]))
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:6]
    shown = ", ".join(f"{value} {count / len(pairs):.0%}" for value, count in most)
    advice = ""
    if len(counts) == 1:
        advice = "only one value is labelled: there is nothing to tell apart"
    elif pairs.scale.kind == "binary" and min(counts.values()) / len(pairs) < ADVISED_SHARE:
        advice = f"at least {ADVISED_SHARE:.0%} of each side is advised"
    return "balance of labels", shown, advice


def _cost(
    judge: Judge,
    most: Forecast,
    test: int,
    probe: Verdict,
    budget: Budget,
    ends: str,
    *,
    whole: bool,
) -> list[tuple[str, str, str]]:
    """Return the rows of calls, tokens and money, limited to what is left of the budget."""
    reserved = to_keep(judge, test if whole else 0, probe, budget)
    calls = int(max(0, min(most.calls, budget.left - reserved["calls"])))
    free = f"repeated ones after failures not counted; {ends}"
    read, written = _tokens_of(probe)
    a_test = math.ceil(1.5 * read), 2 * written
    tokens = int(min(most.tokens, max(0, budget.left_tokens - reserved["tokens"])))
    price = "unknown"
    if most.usd is not None:
        usd = min(most.usd, max(0.0, budget.left_usd - reserved["usd"]))
        usd += (cost(str(judge.model), *a_test) or 0.0) * test
        price = f"${usd:.2f}" if usd >= 0.01 or usd == 0 else f"${usd:.4f}"
    limits = [
        "" if limit is None else f"the budget: {words.format(limit)}"
        for limit, words in ((budget.tokens, "{:,}"), (budget.usd, "${:.2f}"))
    ]
    return [
        ("calls at most", f"{calls + test} ({calls} to learn, {test} to test)", free),
        ("tokens at most, about", f"{tokens + sum(a_test) * test:,}", limits[0]),
        ("money at most, about", price, limits[1]),
    ]


def to_keep(
    judge: Judge, test: int, probe: Verdict, budget: Budget, *, requests: int = 1
) -> dict[str, Any]:
    """Return what the held-out test of so many pairs may use, as `Budget.keeping` takes it.

    A tenth more than one call a pair, since some are repeated, with instructions half as long
    again as those of the probe. ``requests`` tells how many one verdict takes.
    """
    if not test:
        return {"calls": 0, "tokens": 0, "usd": 0.0}
    calls = math.ceil(1.1 * test) * requests
    used, written = _tokens_of(probe)
    read = math.ceil(1.5 * used)
    # The last request is reserved at the most that it can use, which is far more than it does.
    last = 6 * used
    usd = 0.0
    if budget.usd is not None:
        usd = calls * (cost(str(judge.model), read, written) or 0.0)
        usd += cost(str(judge.model), last, ASSUMED_OUTPUT) or 0.0
    tokens = calls * (read + written) + last + ASSUMED_OUTPUT
    return {"calls": calls, "tokens": tokens, "usd": usd}


def _tokens_of(probe: Verdict) -> tuple[int, int]:
    """Return the tokens that one request of the judge reads and writes; 0 where unknown."""
    requests = max(1, probe.usage.requests)
    return (probe.usage.read or 0) // requests, (probe.usage.written or 0) // requests
