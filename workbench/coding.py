"""Pairs as numbers: each value its category's position; intervals by drawing from these."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from workbench.coefficients import (
    UNDEFINED,
    Array,
    Interval,
    cells,
    cohen_kappa,
    percentile_interval,
    resample,
    wilson,
)
from workbench.errors import ArgumentError
from workbench.scale import Scale

if TYPE_CHECKING:
    from workbench.pairing import Pairs

MOST_CATEGORIES = 20
"""With more distinct numbers than this, a numeric scale is shown in bins."""


@dataclass(frozen=True)
class Coded:
    """Pairs as numbers: each side the position of its value in ``values``."""

    scale: Scale
    values: list[Any]
    human: Array
    judge: Array

    @classmethod
    def of(cls, pairs: Pairs, *more: Pairs) -> Coded:
        """Codes of ``pairs``; ``more`` only adds its values, so that codes can be compared."""
        tables = [p.table for p in (pairs, *more)]
        seen = [v for t in tables for side in ("human", "judge") for v in t[side]]
        scale = pairs.scale.with_range(seen)
        values = list(scale.values) or sorted(
            {v.item() if isinstance(v, np.generic) else v for v in seen}, key=float_or_text
        )
        position = {value: k for k, value in enumerate(values)}

        def codes(side: str) -> Array:
            try:
                return np.array([position[v] for v in pairs.table[side]], dtype=int)
            except KeyError as error:
                raise ArgumentError(
                    f"The pairs of {pairs.name!r} hold the {side} value {error}, which is not on "
                    f"their scale ({scale.describe()}). workbench.pair gives canonical values."
                ) from None

        return cls(scale, values, codes("human"), codes("judge"))

    @property
    def positions(self) -> Array:
        """What each value is worth in worst-to-best order; a number is its own worth."""
        return np.array([self.scale.rank(v) for v in self.values] or [0.0])

    @property
    def binned(self) -> bool:
        return self.scale.kind == "numeric" and len(self.values) > MOST_CATEGORIES

    def distances(self, human: Array, judge: Array) -> Array:
        """`Scale.distance` of each cell."""
        pairs = zip(human, judge, strict=True)
        return np.array(
            [self.scale.distance(self.values[h], self.values[j]) for h, j in pairs], dtype=float
        )


@dataclass(frozen=True)
class Bootstrap:
    """Statistics of one judge with their intervals, from resampled cells (human, judge)."""

    human: Array
    judge: Array
    counts: Array
    draws: Array
    confidence: float

    @classmethod
    def of(cls, coded: Coded, *, seed: int, resamples: int, confidence: float) -> Bootstrap:
        (human, judge), counts = cells(coded.human, coded.judge)
        draws = resample(counts, resamples, seed) if counts.size else counts[None]
        return cls(human, judge, counts, draws, confidence)

    @property
    def _open_share(self) -> float:
        """What Wilson's interval leaves open for disagreements where there is none.

        No resample of items that all agree can disagree, so the bootstrap would claim certainty.
        """
        n = int(self.counts.sum())
        return 1 - wilson(n, n, self.confidence).low

    def kappa(self, weights: Array) -> tuple[float, Interval]:
        value = float(cohen_kappa(self.human, self.judge, self.counts, weights))
        if math.isnan(value):
            return value, UNDEFINED
        if (self.human == self.judge).all():
            shares = np.bincount(self.human, self.counts) / self.counts.sum()
            by_chance = 1 - float(shares @ shares)
            return value, Interval(max(-1.0, 1 - self._open_share / by_chance), 1.0)
        draws = cohen_kappa(self.human, self.judge, self.draws, weights)
        return value, percentile_interval(draws, self.confidence)

    def mean(self, distances: Callable[[Array, Array], Array]) -> tuple[float, Interval]:
        """Mean distance, each at most 1."""
        if not self.counts.size:
            return math.nan, UNDEFINED
        each, n = distances(self.human, self.judge), self.counts.sum()
        if not each.any():
            return 0.0, Interval(0.0, self._open_share)
        interval = percentile_interval(self.draws @ each / n, self.confidence)
        return float(self.counts @ each / n), interval


def float_or_text(value: Any) -> tuple[float, str]:
    """Sort key: numbers by size, all else by its text."""
    return (float(value), "") if isinstance(value, (int, float)) else (math.inf, str(value))


def check_confidence(confidence: float) -> None:
    """Raise `ArgumentError` unless ``confidence`` lies in (0, 1)."""
    if not 0 < confidence < 1:
        raise ArgumentError(
            f"confidence={confidence!r} must lie between 0 and 1, for instance 0.95."
        )
