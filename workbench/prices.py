"""What a model's answers cost, where litellm's price list knows the model."""

from __future__ import annotations

import functools

from workbench import offline
from workbench.errors import BudgetError


def cost(model: str, prompt_tokens: int, output_tokens: int) -> float | None:
    """US dollars for one answer of the model (a URI such as ``openai:/gpt-4.1-mini``).

    None where no price is known. The embedded model costs nothing. It is the list price: discounts
    for repeated prompts are not counted.
    """
    if model.startswith(offline.SCHEME):
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
