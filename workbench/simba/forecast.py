"""Forecast: how many calls, tokens and dollars learning takes at most."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from workbench.judging.verdicts import Verdict
from workbench.models.budget import ASSUMED_OUTPUT, Budget, cost
from workbench.scale import Scale
from workbench.simba.ascent import SECOND_RUNG, first_rung
from workbench.simba.candidate import Candidate
from workbench.simba.crossfit import FEW, FOLDS, KINDS
from workbench.simba.items import Case, judge_fields
from workbench.simba.proposals import MAX_BLAMED, MAX_CLUSTERS
from workbench.simba.reflection import MOST_RULES, TASK, Request
from workbench.simba.search import Settings
from workbench.simba.selection import MAX_ABLATED

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

RULE_BYTES: Final = 160
"""Assumed size of a rule; twice `MOST_RULES` of them are assumed to be added."""

TOKENS_PER_BYTE: Final = 1 / 3
"""An upper estimate: about 1/4 in English, 1/3 in languages with three bytes a character."""

FRAME_BYTES: Final = 3000
"""Assumed size of what is written around the fields of a prompt."""

ANSWER_TOKENS: Final = 200
"""Assumed length of a judge's answer if none is known."""


@dataclass(frozen=True)
class Forecast:
    """Upper bounds for learning; ``usd`` is None if a price is not known."""

    judge_calls: int
    reflections: int
    tokens: int
    usd: float | None

    @property
    def calls(self) -> int:
        """Calls of both models."""
        return self.judge_calls + self.reflections


def most_calls(
    train: int, dev: int, settings: Settings, scale: Scale, rules: int = 0
) -> tuple[int, int]:
    """Upper bound of (judge calls, reflections) of `SIMBA.learn`.

    ``train`` and ``dev`` are numbers of items, ``rules`` is the number of rules that an aligned
    judge has already. `workbench.simba.optimizer` explains the formula.
    """
    items = train + dev
    blamed = min(MAX_BLAMED, rules)
    if items < FEW:
        revised = 1 + blamed if rules else 0
        return (2 + len(KINDS) + revised) * items, 2 * (FOLDS + 1)

    selected = min(settings.max_dev, items)
    batch = min(settings.batch_size, items - selected)
    first = first_rung(selected)
    second = min(math.ceil(selected * SECOND_RUNG), selected - first)
    race = 8 * first + 4 * second + 2 * (selected - first - second)
    pruning = MAX_BLAMED * 3 * MAX_ABLATED + 3 * selected
    revised = blamed * min(selected, 2 * settings.batch_size) + 3 * selected if rules else 0
    judge_calls = selected + batch + revised + settings.max_steps * (batch + race + pruning)
    directions = len(scale.values) if scale.kind == "nominal" else 2
    return judge_calls, 1 + settings.max_steps * (2 + directions * MAX_CLUSTERS)


def forecast(
    judge: Judge,
    cases: Sequence[Case],
    dev: int,
    settings: Settings,
    scale: Scale,
    *,
    reflection_model: str | None = None,
    probe: Verdict | None = None,
    with_price: bool = True,
) -> Forecast:
    """Estimate what learning takes at most.

    Parameters
    ----------
    cases
        All items to learn from and select on, with the judge's verdicts.
    dev
        Number of items to select on.
    reflection_model
        The reflection model, if not the judge's.
    probe
        A verdict of the judge, whose tokens are used.
    with_price
        Look up prices, which loads litellm.
    """
    instructions = str(getattr(judge, "instructions", ""))
    rules = len(Candidate.from_instructions(instructions).rules)
    calls, reflections = most_calls(len(cases) - dev, dev, settings, scale, rules)

    fields = judge_fields(judge)
    sizes = sorted((_size(case, fields, scale) for case in cases), reverse=True)
    fixed = len(instructions.encode()) + FRAME_BYTES
    learned = 2 * MOST_RULES * RULE_BYTES + settings.max_examples * sum(sizes) / max(1, len(sizes))
    if probe is not None and probe.input_tokens:
        read, written = probe.input_tokens, 2 * (probe.output_tokens or ANSWER_TOKENS)
    else:
        read, written = _tokens(fixed + max(sizes, default=0)), ANSWER_TOKENS
    read += _tokens(learned)
    shown = len(cases) if len(cases) < FEW else min(3 * settings.batch_size, len(cases))
    prompt = _tokens(len(TASK.encode()) + fixed + learned + sum(sizes[:shown]))

    usd = None
    if with_price:
        model = str(getattr(judge, "model", None) or "")
        judged = cost(model, read, written)
        reflected = cost(reflection_model or model, prompt, ASSUMED_OUTPUT)
        if judged is not None and reflected is not None:
            usd = calls * judged + reflections * reflected
    tokens = calls * (read + written) + reflections * (prompt + ASSUMED_OUTPUT)
    return Forecast(calls, reflections, tokens, usd)


def announcement(found: Forecast, budget: Budget | None = None) -> str:
    """The forecast in a line, limited to what is left of the budget."""
    budget = budget or Budget()
    calls = min(found.calls, budget.left)
    tokens = min(found.tokens, budget.left_tokens)
    parts = [f"at most {calls:,.0f} calls of models (retries not counted)"]
    parts.append(f"about {tokens:,.0f} tokens")
    if found.usd is not None:
        parts.append(f"${min(found.usd, budget.left_usd):.2f}")
    note = "; the budget is never exceeded" if budget.is_limited else ""
    return ", ".join(parts) + note + ". Usually it is far less."


def _tokens(size: float) -> int:
    return math.ceil(TOKENS_PER_BYTE * size)


def _size(case: Case, fields: tuple[str, ...], scale: Scale) -> int:
    """Bytes of a case as it is shown to the reflection model."""
    line: Any = Request("", (case,), (), fields).as_inputs(scale)["disagreements"]
    return len(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass"))
