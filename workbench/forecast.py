"""What learning with SIMBA can take at most, said before it begins.

Calls are bounded by what the loop does at most. Tokens and money are bounded by the sizes of
what is sent: a judge sees its instructions, one item, and as many rules and worked examples as
learning can be expected to add; the reflection model sees the instructions and up to three
times ``batch_size`` cases, the largest there are. Answers are taken to be twice as long as the one
known, and reflections as long as a `workbench.budget.Budget` takes them to be. Requests that are
repeated after a failure come on top, which no one can foretell.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from workbench.ascent import most_calls as ascent_calls
from workbench.budget import ASSUMED_OUTPUT, Budget
from workbench.candidate import Candidate
from workbench.crossfit import FEW
from workbench.crossfit import most_calls as crossfit_calls
from workbench.judge import Verdict
from workbench.optimised import Settings
from workbench.prices import cost
from workbench.reflection import MOST_RULES, TASK, Case, Request
from workbench.scale import Scale

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

RULE_BYTES: Final = 160
"""Of a learned rule, of which twice `MOST_RULES` are taken to be added at most."""

TOKENS_PER_BYTE: Final = 1 / 3
"""Where no request was made yet; languages and tokenizers differ."""

_FRAME_BYTES: Final = 3000
"""What dspy writes around the fields of a reflection."""

_ANSWER_TOKENS: Final = 200
"""Of a judge's answer where none is known."""


@dataclass(frozen=True)
class Forecast:
    """Upper bounds for learning; ``usd`` is None where no price is known."""

    judge_calls: int
    reflections: int
    tokens: int
    usd: float | None

    @property
    def calls(self) -> int:
        """Of both models."""
        return self.judge_calls + self.reflections


def most_calls(
    train: int, dev: int, settings: Settings, scale: Scale, rules: int = 0
) -> tuple[int, int]:
    """Upper bound of (judge calls, reflections) of `SIMBA.learn` on so many labels.

    ``rules`` is how many the judge has learned before.
    """
    if train + dev < FEW:
        return crossfit_calls(train + dev, rules)
    return ascent_calls(train, dev, settings, scale, rules)


def forecast(
    judge: Judge,
    cases: Sequence[Case],
    dev: int,
    settings: Settings,
    scale: Scale,
    *,
    fields: tuple[str, ...],
    reflection_model: str | None = None,
    probe: Verdict | None = None,
    with_price: bool = True,
) -> Forecast:
    """What learning takes at most.

    Parameters
    ----------
    cases
        All items to learn and select from, with the judge's verdicts; their sizes count.
    dev
        How many of them are to select on.
    fields
        Which of inputs, outputs and expectations the judge sees.
    reflection_model
        Another model than the judge's.
    probe
        A verdict of the judge, from which it is read how many tokens a byte makes.
    with_price
        Whether a price is looked up, for which litellm must be loaded.
    """
    instructions = str(getattr(judge, "instructions", ""))
    rules = len(Candidate.from_instructions(instructions).rules)
    calls, reflections = most_calls(len(cases) - dev, dev, settings, scale, rules)
    sizes = sorted((_bytes_of(case, fields, scale) for case in cases), reverse=True)
    ratio = _tokens_per_byte(probe)
    shown = settings.max_examples * sum(sizes) / max(1, len(sizes))
    added = 2 * MOST_RULES * RULE_BYTES + shown
    told = probe.receipt if probe is not None else None
    if told is not None and told.read:
        read, written = told.read, 2 * told.written
    else:
        read = math.ceil(ratio * (len(instructions.encode()) + max(sizes, default=0) + 1000))
        written = _ANSWER_TOKENS
    read = math.ceil(read + ratio * added)
    most = len(cases) if len(cases) < FEW else min(3 * settings.batch_size, len(cases))
    prompt = len(TASK.encode()) + _FRAME_BYTES + added + sum(sizes[:most])
    prompt += len(instructions.encode())
    prompt = math.ceil(ratio * prompt)
    model = str(getattr(judge, "model", None) or "")
    usd = None
    if with_price:
        judged = cost(model, read, written)
        reflected = cost(reflection_model or model, prompt, ASSUMED_OUTPUT)
        if judged is not None and reflected is not None:
            usd = calls * judged + reflections * reflected
    tokens = calls * (read + written) + reflections * (prompt + ASSUMED_OUTPUT)
    return Forecast(calls, reflections, tokens, usd)


def announcement(found: Forecast, budget: Budget | None = None) -> str:
    """The forecast in a line, held to what is left of the budget."""
    purse = budget or Budget()
    calls = min(found.calls, purse.left)
    tokens = min(found.tokens, purse.left_tokens)
    parts = [f"at most {calls:,.0f} calls of models (repeated ones after failures not counted)"]
    parts.append(f"about {tokens:,.0f} tokens")
    if found.usd is not None:
        parts.append(f"${min(found.usd, purse.left_usd):.2f}")
    kept = "; the budget is kept to the single call" if purse.is_limited else ""
    return ", ".join(parts) + kept + ". Usual is a small part of it."


def _tokens_per_byte(probe: Verdict | None) -> float:
    told = probe.receipt if probe is not None else None
    if told is None or not told.read or not told.spare_read:
        return TOKENS_PER_BYTE
    # What is set aside for a prompt is a token for each of its bytes.
    return min(1.0, max(0.2, 1.25 * told.read / (told.read + told.spare_read)))


def _bytes_of(case: Case, fields: tuple[str, ...], scale: Scale) -> int:
    """Of a case as the reflection model is shown it."""
    line: Any = Request("", (case,), (), fields).as_inputs(scale)["disagreements"]
    return len(json.dumps(line, ensure_ascii=False).encode("utf-8", "surrogatepass"))
