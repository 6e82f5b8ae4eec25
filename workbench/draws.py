"""How an item came to be labelled: told with the item, sent back with the rating, kept with it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from workbench.errors import ArgumentError

CHOSEN_KEY: Final = "workbench.chosen"
PROBABILITY_KEY: Final = "workbench.probability"
DRAW_KEY: Final = "workbench.draw"
POOL_KEY: Final = "workbench.pool"

_LONGEST = 40
_MOST = 10**9


@dataclass(frozen=True)
class Draw:
    """One draw: the ``number`` of it (from 1) out of ``pool`` items, those drawn before counted in.

    ``how`` is "random", the name of a rule, "picked" (gone to by hand, past several open items),
    "elsewhere" (labelled before it was drawn) or "not in the queue". ``probability`` is that of the
    item among those that were left; None unless it was drawn at random.
    """

    how: str
    probability: float | None
    number: int
    pool: int

    def to_metadata(self) -> dict[str, str]:
        """As it is kept with a label."""
        made = {CHOSEN_KEY: self.how, DRAW_KEY: str(self.number), POOL_KEY: str(self.pool)}
        if self.probability is not None:
            made[PROBABILITY_KEY] = f"{self.probability:.9g}"
        return made

    @classmethod
    def of_metadata(cls, told: Mapping[str, Any]) -> Draw | None:
        """As it was kept; None where it was not."""
        try:
            probability = told.get(PROBABILITY_KEY)
            return cls(
                str(told[CHOSEN_KEY]),
                None if probability is None else float(probability),
                int(told[DRAW_KEY]),
                int(told[POOL_KEY]),
            )
        except (KeyError, TypeError, ValueError):
            return None

    def to_json(self) -> dict[str, Any]:
        """As it is told to the view, which sends it back with a rating."""
        return {
            "how": self.how,
            "probability": self.probability,
            "number": self.number,
            "pool": self.pool,
        }

    @classmethod
    def of_json(cls, raw: Any) -> Draw | None:
        """As the view sends it; None where it sends none, or one without number and pool.

        Raises
        ------
        ArgumentError
            For anything that `to_json` does not make.
        """
        if raw is None:
            return None
        if not isinstance(raw, Mapping):
            raise ArgumentError(f"chosen must be an object or null, not {raw!r:.80}.")
        how, probability = raw.get("how"), raw.get("probability")
        if not isinstance(how, str) or not 0 < len(how) <= _LONGEST:
            raise ArgumentError(f"chosen.how must be a short text, not {how!r:.80}.")
        if raw.get("number") is None and raw.get("pool") is None:
            return None
        number, pool = (_count(name, raw.get(name)) for name in ("number", "pool"))
        if (how == "random") != (probability is not None):
            raise ArgumentError(
                f"chosen.probability={probability!r:.40} does not go with how={how!r}: a random "
                "draw has one, and no other has."
            )
        if probability is not None:
            if isinstance(probability, bool) or not isinstance(probability, (int, float)):
                raise ArgumentError(f"chosen.probability is no number: {probability!r:.80}.")
            if not math.isfinite(probability) or not 0 < probability <= 1:
                raise ArgumentError(f"chosen.probability={probability!r} must lie in (0, 1].")
            probability = float(probability)
        return cls(how, probability, number, pool)


def _count(name: str, raw: Any) -> int:
    if isinstance(raw, bool) or not isinstance(raw, int) or not 0 <= raw <= _MOST:
        raise ArgumentError(f"chosen.{name} must be a count, not {raw!r:.80}.")
    return raw
