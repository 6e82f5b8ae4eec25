"""Settings of a search, and what limits its races."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Literal

from workbench.errors import check_whole, one_of

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
        one_of("class_weight", self.class_weight, [None, "balanced"])


def rung_sizes(items: int) -> tuple[int, int, int]:
    """Numbers of items in the rungs of a race on so many items."""
    first = min(items, max(MIN_RUNG, math.ceil(items * FIRST_RUNG)))
    second = min(items - first, math.ceil(items * SECOND_RUNG))
    return first, second, items - first - second
