"""What an alignment will do and cost, said before it starts."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.ascent import Settings
from workbench.budget import ASSUMED_OUTPUT, Budget
from workbench.calls import run
from workbench.errors import ModelError, TooFewPairsError
from workbench.judge import Verdict
from workbench.pairing import Pairs, Split
from workbench.simba import MINIMUM_LABELS, most_calls
from workbench.traces import Example

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

    from workbench.annotators import AnnotatorAgreement

ADVISED_PAIRS = 50
ADVISED_SHARE = 0.3


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


def preflight(
    judge: Judge,
    pairs: Pairs,
    split: Split,
    example: Example,
    annotators: AnnotatorAgreement | None = None,
    *,
    settings: Settings | None = None,
    budget: Budget | None = None,
    purse: Budget | None = None,
) -> tuple[pd.DataFrame, Verdict]:
    """What an alignment will do, and the verdict of one real judge call on ``example``.

    ``settings`` are those of SIMBA, None where another optimizer is used, whose calls cannot be
    foretold. The table has the columns ``check``, ``finding``, ``advice``.

    Raises
    ------
    ModelError
        When the judge does not answer, or not with a usable verdict.
    """
    probe = run(judge, [example], cache=None, scale=pairs.scale, budget=purse)[0]
    if probe.error is not None:
        raise ModelError(
            f"A first call of judge {judge.name!r} failed on trace {example.trace_id}: "
            f"{probe.error}. Mend this before aligning; nothing was changed."
        )
    rows = [("usable pairs", str(len(pairs)), _pairs_advice(len(pairs)))]
    rows += [
        (f"left out: {row.reason}", f"{row.traces} traces", "")
        for row in pairs.reasons.itertuples()
    ]
    rows.append(_balance(pairs))
    if annotators is not None and len(annotators.annotators) > 1:
        rows.append(
            (
                "annotators among themselves",
                f"alpha {annotators.alpha:.2f}, ceiling {annotators.ceiling:.2f}",
                ""
                if not annotators.alpha < 0.4
                else "people hardly agree: settle the rubric first",
            )
        )
    parts = f"train {len(split.train)}, dev {len(split.dev)}, test {len(split.test)}"
    small = "too few held-out pairs to prove much" if len(split.test) < 30 else ""
    rows.append(("split", parts, small))
    rows.append(("judge answers", f"yes: {probe.value!r}", ""))
    rows += _cost(split, probe, settings, budget, budget is purse)
    return pd.DataFrame(rows, columns=["check", "finding", "advice"]), probe


def _pairs_advice(n: int) -> str:
    return "" if n >= ADVISED_PAIRS else f"{ADVISED_PAIRS} to 100 are advised"


def _balance(pairs: Pairs) -> tuple[str, str, str]:
    counts = Counter(map(str, pairs.table["human"]))
    most = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:6]
    shown = ", ".join(f"{value} {count / len(pairs):.0%}" for value, count in most)
    least = min(counts.values()) / len(pairs)
    binary = pairs.scale.kind == "binary"
    advice = ""
    if len(counts) == 1:
        advice = "only one value is labelled: there is nothing to tell apart"
    elif binary and least < ADVISED_SHARE:
        advice = f"at least {ADVISED_SHARE:.0%} of each side is advised"
    return "balance of labels", shown, advice


def _cost(
    split: Split, probe: Verdict, settings: Settings | None, budget: Budget | None, whole: bool
) -> list[tuple[str, str, str]]:
    if settings is None:
        return [("calls", "not known: the optimizer does not say", "")]
    test = len(split.test)
    judge_calls, reflections = most_calls(
        len(split.train), len(split.dev), settings, split.train.scale
    )
    most = judge_calls + reflections
    purse = Budget.of(budget)
    kept = to_keep(test, probe) if whole else to_keep(0, probe)
    most = int(max(0, min(most, purse.left - kept["calls"])))
    rows = [
        (
            "calls at most",
            f"{most + test} ({most} to learn, {test} to test)",
            "" if purse.is_limited else "budget= sets a limit; answers known already are free",
        )
    ]
    read, written = probe.input_tokens, probe.output_tokens
    if read is not None and written is not None:
        # Instructions grow while rules are added; half as much again covers that.
        each = math.ceil(1.5 * read + written)
        tokens = int(min(each * most, max(0, purse.left_tokens - kept["tokens"]))) + each * test
        rows.append(("tokens at most, about", f"{tokens:,}", _limit(purse.tokens, "{:,}")))
    price = "unknown"
    if probe.cost is not None:
        each_usd = 1.5 * probe.cost
        most_usd = min(each_usd * most, max(0.0, purse.left_usd - kept["usd"]))
        price = f"${most_usd + each_usd * test:.2f}"
    rows.append(("money at most, about", price, _limit(purse.usd, "${:.2f}")))
    return rows


def to_keep(test: int, probe: Verdict) -> dict[str, Any]:
    """What the held-out test of so many pairs may use, as `Budget.keeping` takes it.

    A tenth more than one call a pair, since some are repeated, with instructions half as long
    again as those of the probe.
    """
    if not test:
        return {"calls": 0, "tokens": 0, "usd": 0.0}
    calls = math.ceil(1.1 * test)
    read, written = probe.input_tokens or 0, probe.output_tokens or 0
    # The last request is set aside at the most that it can use, which is far more than it does.
    last = 6 * read + ASSUMED_OUTPUT
    tokens = calls * math.ceil(1.5 * read + written) + last
    each = 1.5 * (probe.cost or 0.0)
    return {"calls": calls, "tokens": tokens, "usd": each * (calls + last / max(1, read + written))}


def _limit(limit: float | None, words: str) -> str:
    return "" if limit is None else f"the budget: {words.format(limit)}"
