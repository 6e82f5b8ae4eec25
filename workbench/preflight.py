"""What an alignment will do and cost, said before it starts."""

from __future__ import annotations

import math
from collections import Counter
from typing import TYPE_CHECKING

import pandas as pd

from workbench.ascent import Settings
from workbench.calls import run
from workbench.errors import ModelError, TooFewPairsError
from workbench.judge import Verdict
from workbench.pairing import Pairs, Split
from workbench.scale import Scale
from workbench.simba import MINIMUM_LABELS
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
    budget: int | None = None,
) -> tuple[pd.DataFrame, Verdict]:
    """What an alignment will do, and the verdict of one real judge call on ``example``.

    ``settings`` are those of SIMBA, None where another optimizer is used, whose calls cannot be
    foretold. The table has the columns ``check``, ``finding``, ``advice``.

    Raises
    ------
    ModelError
        When the judge does not answer, or not with a usable verdict.
    """
    probe = run(judge, [example], cache=None, scale=pairs.scale)[0]
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
    rows += _cost(split, probe, settings, budget)
    return pd.DataFrame(rows, columns=["check", "finding", "advice"]), probe


def most_calls(train: int, dev: int, settings: Settings, scale: Scale) -> tuple[int, int]:
    """Upper bound of (judge calls, reflections) of SIMBA, by the formula of its docstring.

    Disagreements are reflected on by direction, or by label where values have no order, and all
    together; each gives two candidates, and four more come from merging, dropping and examples.
    """
    groups = (len(scale.values) if scale.kind == "nominal" else 2) + 1
    batch, dev = min(settings.batch_size, train), min(settings.max_dev, dev)
    judge_calls = dev + settings.max_steps * (batch + (2 * groups + 4) * dev)
    return judge_calls, settings.max_steps * groups


def _pairs_advice(n: int) -> str:
    return "" if n >= ADVISED_PAIRS else f"{ADVISED_PAIRS} to 100 are advised"


def _balance(pairs: Pairs) -> tuple[str, str, str]:
    counts = Counter(map(str, pairs.table["human"]))
    shown = ", ".join(f"{value} {count / len(pairs):.0%}" for value, count in counts.most_common(6))
    least = min(counts.values()) / len(pairs)
    binary = pairs.scale.kind == "binary"
    advice = ""
    if len(counts) == 1:
        advice = "only one value is labelled: there is nothing to tell apart"
    elif binary and least < ADVISED_SHARE:
        advice = f"at least {ADVISED_SHARE:.0%} of each side is advised"
    return "balance of labels", shown, advice


def _cost(
    split: Split, probe: Verdict, settings: Settings | None, budget: int | None
) -> list[tuple[str, str, str]]:
    if settings is None:
        return [("calls", "not known: the optimizer does not say", "")]
    test = len(split.test)
    judge_calls, reflections = most_calls(
        len(split.train), len(split.dev), settings, split.train.scale
    )
    most = judge_calls + reflections
    if budget is not None:
        most = min(most, budget)
    rows = [
        (
            "calls at most",
            f"{most + test} ({most} to learn, {test} to test)",
            "" if budget is not None else "budget= sets a limit; answers known already are free",
        )
    ]
    read, written = probe.input_tokens, probe.output_tokens
    if read is not None and written is not None:
        # Instructions grow while rules are added; half as much again covers that.
        tokens = math.ceil(1.5 * read + written) * (most + test)
        rows.append(("tokens at most, about", f"{tokens:,}", ""))
    price = "unknown" if probe.cost is None else f"${1.5 * probe.cost * (most + test):.2f}"
    rows.append(("money at most, about", price, ""))
    return rows
