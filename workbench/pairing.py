"""Verdicts joined with human labels: `Pairs`, consensus among annotators, and splits."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from workbench.scale import Scale


@dataclass(frozen=True)
class Pairs:
    """Judge verdicts and human labels on the same traces.

    Attributes
    ----------
    name
        The name under which verdicts and labels are stored.
    table
        One row a trace, sorted by ``trace_id``: ``trace_id``, ``human`` (canonical consensus
        value), ``judge`` (canonical value), ``human_rationale``, ``judge_rationale``, ``votes``
        (dict annotator -> canonical value or `ABSTAIN`).
    excluded
        One row a trace that makes no pair: ``trace_id``, ``reason``.
    scale
        The rating scale that both sides are on.
    fingerprint
        Fingerprint of the judge version that gave the verdicts; "" where unknown.
    """

    name: str
    table: pd.DataFrame
    excluded: pd.DataFrame
    scale: Scale
    fingerprint: str = ""
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.table)

    @property
    def votes(self) -> pd.DataFrame:
        """Votes of the single annotators: index trace_id, one column an annotator, nan if none."""
        raise NotImplementedError

    def subset(self, trace_ids: Any) -> Pairs:
        """The pairs of the given traces."""
        raise NotImplementedError
