"""Settings of a search, and what it takes at most, which is told before anything is paid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final, Literal

from mlflow.genai.judges import Judge

from workbench.errors import check_share, check_whole, one_of
from workbench.judging.verdicts import Verdict
from workbench.models.budget import Budget, cost
from workbench.scale import Scale
from workbench.simba.candidate import Candidate, Case, judge_fields
from workbench.simba.proposals import MAX_REQUESTS
from workbench.simba.reflection import (
    ANSWER_TOKENS,
    FRAME_TOKENS,
    MAX_RULES,
    TASK,
    Request,
    tokens_in,
)
from workbench.simba.selection import MAX_TRIED

MINIMUM_LABELS: Final = 10  # labelled traces needed; MLflow's optimizers ask for as many
FEW: Final = 30  # labels below which all are learned from, and none is kept apart for selection
FIRST_RUNG, SECOND_RUNG = 0.15, 0.3  # shares of the items on which candidates are first scored
MIN_RUNG: Final = 8  # items of the first rung at least
MAX_RACING: Final = 7  # candidates that a step makes at most
MAX_PRUNED: Final = 3  # times that the best candidate is pruned at most


@dataclass(frozen=True)
class Settings:
    """Settings of the search; see `workbench.SIMBA`."""

    max_steps: int = 4
    batch_size: int = 40
    patience: int = 2
    max_examples: int = 8
    max_dev: int = 80
    class_weight: Literal["balanced"] | None = None
    max_failure_share: float = 0.05

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "patience", "max_dev"):
            check_whole(name, getattr(self, name))
        check_whole("max_examples", self.max_examples, 0)
        check_share("max_failure_share", self.max_failure_share)
        one_of("class_weight", self.class_weight, [None, "balanced"])


def rung_sizes(items: int) -> tuple[int, int, int]:
    """Numbers of items in the rungs of a race on so many items."""
    first = min(items, max(MIN_RUNG, math.ceil(items * FIRST_RUNG)))
    second = min(items - first, math.ceil(items * SECOND_RUNG))
    return first, second, items - first - second


@dataclass(frozen=True)
class Forecast:
    """Upper bounds for learning; ``usd`` is None if a price is not known."""

    calls: int
    tokens: int
    usd: float | None

    def told(self, budget: Budget) -> str:
        """The forecast in a line, limited to what is left of the budget."""
        calls = f"at most {min(self.calls, budget.left):,.0f} calls of models, retries not counted"
        parts = [calls, f"about {min(self.tokens, budget.left_tokens):,.0f} tokens"]
        if self.usd is not None:
            most = min(self.usd, budget.left_usd)
            parts.append(f"${most:.2f}" if self.usd else "which cost nothing")
        note = "; the budget is never exceeded" if budget.is_limited else ""
        # Of runs on 40 to 90 labels, by docs/results.md and the simulation: 14 to 28 %.
        return ", ".join(parts) + note + ". Usually it is about a fifth of that."


def forecast(
    judge: Judge,
    cases: Sequence[Case],
    dev: int,
    settings: Settings,
    scale: Scale,
    reflection_model: str | None = None,
    probe: Verdict | None = None,
) -> Forecast:
    """Estimate what learning takes at most: ``dev`` cases are selected on, the probe was paid."""
    instructions = str(getattr(judge, "instructions", ""))
    rules = len(Candidate.from_instructions(instructions).rules)
    judged, reflected = most_calls(len(cases) - dev, dev, settings, rules)
    shown = Request(instructions, tuple(cases), (), judge_fields(judge)).as_inputs(scale)
    a_case = tokens_in(shown["disagreements"]) / max(1, len(cases))
    # Twice as many rules as an answer has, of 50 tokens each.
    learned = 2 * MAX_RULES * 50 + settings.max_examples * a_case
    fixed = tokens_in(instructions) + FRAME_TOKENS + learned
    used = math.ceil(fixed + a_case), 200
    if probe is not None and (read := probe.paid.read):
        used = math.ceil(read + learned), 2 * (probe.paid.written or 200)
    most_shown = min(len(cases), 2 * settings.batch_size)
    prompt = math.ceil(tokens_in(TASK) + fixed + most_shown * a_case), ANSWER_TOKENS
    model = str(getattr(judge, "model", None) or "")
    one, other = cost(model, *used), cost(reflection_model or model, *prompt)
    known = one is not None and other is not None
    return Forecast(
        judged + reflected,
        judged * sum(used) + reflected * sum(prompt),
        judged * (one or 0) + reflected * (other or 0) if known else None,
    )


def most_calls(train: int, dev: int, settings: Settings, rules: int = 0) -> tuple[int, int]:
    """Upper bounds of judge calls and reflections; an aligned judge has ``rules`` already."""
    items = train + dev
    selected = items if items < FEW else min(settings.max_dev, items)
    batch = min(settings.batch_size, items - selected)
    first, second, rest = rung_sizes(selected)
    a_race = MAX_RACING * first + MAX_RACING // 2 * second + rest
    learned = rules + MAX_RULES * settings.max_steps
    # At the end, and at first where there are rules already.
    pruned = [learned, *([rules] if rules else [])]
    pruning = sum(MAX_PRUNED * (2 * MAX_TRIED * n + selected) for n in pruned)
    judge_calls = selected + batch + settings.max_steps * (batch + a_race) + pruning
    return judge_calls, MAX_REQUESTS * settings.max_steps
