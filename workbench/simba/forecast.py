"""Forecast: how many calls, tokens and dollars learning takes at most."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from workbench.judging.verdicts import Verdict
from workbench.models.budget import Budget, cost
from workbench.scale import Scale
from workbench.simba.candidate import Candidate
from workbench.simba.items import Case, judge_fields
from workbench.simba.proposals import MAX_BLAMED
from workbench.simba.reflection import (
    ANSWER_TOKENS,
    FRAME_TOKENS,
    MAX_RULES,
    TASK,
    Request,
    tokens_in,
)
from workbench.simba.search import FEW, FOLDS, Settings
from workbench.simba.selection import MAX_ABLATED, SECOND_RUNG, first_rung

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

RULE_TOKENS: Final = 50
"""Assumed length of a rule; twice `MAX_RULES` of them are assumed to be added."""

VERDICT_TOKENS: Final = 200
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
    """Upper bound of (judge calls, reflections); `workbench.simba.optimizer` has the formula.

    ``train`` and ``dev`` are numbers of items, ``rules`` is the number of rules that an aligned
    judge has already.
    """
    items = train + dev
    selected = items if items < FEW else min(settings.max_dev, items)
    ablated = min(MAX_BLAMED, rules) * min(selected, 2 * settings.batch_size)
    revised = ablated + 3 * selected if rules else 0
    if items < FEW:  # the original, four kinds of candidates, and the winner made from all items
        return 6 * items + revised, 2 * (FOLDS + 1)
    batch = min(settings.batch_size, items - selected)
    first = first_rung(selected)
    second = min(math.ceil(selected * SECOND_RUNG), selected - first)
    race = 8 * first + 4 * second + 2 * (selected - first - second)
    pruning = MAX_BLAMED * 3 * MAX_ABLATED + 3 * selected
    judge_calls = selected + batch + revised + settings.max_steps * (batch + race + pruning)
    directions = len(scale.values) if scale.kind == "nominal" else 2
    return judge_calls, 1 + settings.max_steps * (2 + directions)


def forecast(
    judge: Judge,
    cases: Sequence[Case],
    dev: int,
    settings: Settings,
    scale: Scale,
    *,
    reflection_model: str | None = None,
    probe: Verdict | None = None,
) -> Forecast:
    """Estimate what learning takes at most; ``dev`` of the cases are selected on.

    ``probe`` is a verdict of the judge, whose tokens are used.
    """
    instructions = str(getattr(judge, "instructions", ""))
    rules = len(Candidate.from_instructions(instructions).rules)
    calls, reflections = most_calls(len(cases) - dev, dev, settings, scale, rules)

    shown = Request(instructions, tuple(cases), (), judge_fields(judge)).as_inputs(scale)
    a_case = tokens_in(shown["disagreements"]) / max(1, len(cases))
    learned = 2 * MAX_RULES * RULE_TOKENS + settings.max_examples * a_case
    fixed = tokens_in(instructions) + FRAME_TOKENS + learned
    read, written = fixed + a_case, VERDICT_TOKENS
    if probe is not None and probe.input_tokens:
        read = probe.input_tokens + learned
        written = 2 * (probe.output_tokens or VERDICT_TOKENS)
    prompt = tokens_in(TASK) + fixed + min(len(cases), 3 * settings.batch_size) * a_case

    model = str(getattr(judge, "model", None) or "")
    used = (math.ceil(read), written), (math.ceil(prompt), ANSWER_TOKENS)
    judged, reflected = cost(model, *used[0]), cost(reflection_model or model, *used[1])
    known = judged is not None and reflected is not None
    return Forecast(
        calls,
        reflections,
        tokens=calls * sum(used[0]) + reflections * sum(used[1]),
        usd=calls * (judged or 0) + reflections * (reflected or 0) if known else None,
    )


def announcement(found: Forecast, budget: Budget) -> str:
    """The forecast in a line, limited to what is left of the budget."""
    parts = [f"at most {min(found.calls, budget.left):,.0f} calls of models (retries not counted)"]
    parts.append(f"about {min(found.tokens, budget.left_tokens):,.0f} tokens")
    if found.usd is not None:
        parts.append(f"${min(found.usd, budget.left_usd):.2f}")
    note = "; the budget is never exceeded" if budget.is_limited else ""
    return ", ".join(parts) + note + ". Usually it is far less."
