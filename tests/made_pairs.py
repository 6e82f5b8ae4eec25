"""Pairs made of two lists, for tests that need no store."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from workbench.pairing.pairs import Pairs
from workbench.scale import Scale

YES_NO = Scale.of(["no", "yes"])
GRADES = Scale.of(["poor", "fair", "good", "excellent"])
COLOURS = Scale.of(["red", "green", "blue"], ordered=False)
NOTHING = pd.DataFrame(columns=["trace_id", "reason"])


def make_pairs(
    human: Sequence[Any],
    judge: Sequence[Any],
    scale: Scale = YES_NO,
    votes: Sequence[dict[str, Any]] | None = None,
) -> Pairs:
    """Pairs on traces t000, t001, ..."""
    table = pd.DataFrame(
        {
            "trace_id": [f"t{i:03}" for i in range(len(human))],
            "human": pd.Series(human, dtype=object),
            "judge": pd.Series(judge, dtype=object),
            "human_rationale": "",
            "judge_rationale": "",
            "votes": pd.Series(votes or [{} for _ in human], dtype=object),
        }
    )
    return Pairs(name="q", table=table, excluded=NOTHING, scale=scale)


def from_confusion(table: Sequence[Sequence[int]], scale: Scale = YES_NO) -> Pairs:
    """Pairs with these counts: human labels on rows, verdicts on columns."""
    cells = [
        (scale.values[i], scale.values[j])
        for i, row in enumerate(table)
        for j, count in enumerate(row)
        for _ in range(count)
    ]
    return make_pairs([h for h, _ in cells], [j for _, j in cells], scale)
