"""Annotators' labels as codes: a row an item, a column an annotator, -1 where there is none."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError
from workbench.metrics.coefficients import Level, numbered
from workbench.metrics.intervals import Array
from workbench.pairing.pairs import Groups, Pairs
from workbench.scale import ABSTAIN, Scale, no_rating
from workbench.vocabulary import (
    ABSTENTIONS,
    as_numbers,
    check_people,
    fold,
    is_missing,
    no_ratings,
    scalar,
    truth_side,
)

LEVELS: dict[str, Level] = {"ordinal": "ordinal", "numeric": "interval"}
"""Kind of scale -> level of measurement, where it is not nominal."""


@dataclass(frozen=True)
class Votes:
    """Annotators' labels as codes, shape (items, annotators): positions in ``values``, or -1.

    Items with the same number in ``groups`` belong together.
    """

    annotators: tuple[str, ...]
    items: pd.Index[Any]
    codes: Array
    values: list[Any]
    scale: Scale
    groups: Array
    notes: list[str]

    @classmethod
    def of(cls, given: Any, scale: Scale | None, groups: Groups = None) -> Votes:
        """Read pairs or a table; by default on the scale of the pairs, or of the values seen."""
        notes: list[str] = []
        if isinstance(given, Pairs):
            table, known = given.votes, scale or given.scale
            together = numbered(given.grouped(groups).clusters_of(table.index))
        else:
            table = votes_table("annotator_agreement", given)
            cells = list(map(scalar, table.to_numpy(dtype=object).ravel().tolist()))
            cells, notes = (cells, []) if scale else labels_of(cells)
            known = scale or _scale_of([v for v in cells if v is not ABSTAIN])
            if isinstance(groups, str):
                raise ArgumentError(f"groups={groups!r}: of a table it maps items to groups.")
            rows = enumerate(table.index)
            together = numbered((groups or {}).get(item, (row,)) for row, item in rows)
        check_people("The table", table.columns)

        @lru_cache(maxsize=None, typed=True)  # each writing once
        def read(raw: Any) -> Any:
            return ABSTAIN if no_rating(raw, known) else known.normalise(raw)

        votes = [read(raw) for raw in table.to_numpy(dtype=object).ravel().tolist()]
        values = list(known.values) or sorted(set(votes) - {ABSTAIN})
        number = {ABSTAIN: -1} | {value: k for k, value in enumerate(values)}
        codes = np.array([number[v] for v in votes], dtype=int).reshape(table.shape)
        names = tuple(map(str, table.columns))
        return cls(names, table.index, codes, values, known, together, notes)

    @property
    def level(self) -> Level:
        """The level of measurement."""
        return LEVELS.get(self.scale.kind, "nominal")

    @cached_property
    def positions(self) -> Array:
        """Rank of each value from worst to best; a number is its own rank."""
        return np.array([self.scale.rank(v) for v in self.values] or [0.0])

    @cached_property
    def labels(self) -> Array:
        """How many labels each item has."""
        return np.asarray((self.codes >= 0).sum(axis=1))

    @cached_property
    def within(self) -> Array:
        """Codes that count from 0 within each item: equal ones stay equal."""
        votes = pd.DataFrame(np.where(self.codes < 0, math.nan, self.codes))
        return votes.rank(axis=1, method="dense").fillna(0).to_numpy(dtype=int) - 1


def votes_table(function: str, given: Any) -> pd.DataFrame:
    """Return a table of votes by item, as a function was given it."""
    if not isinstance(given, pd.DataFrame):
        raise ArgumentError(
            f"{function} takes Pairs or a table with a column an annotator, got "
            f"{type(given).__name__}. workbench.pair(judge) gives Pairs."
        )
    return given.set_index("trace_id") if "trace_id" in given.columns else given


def labels_of(cells: list[Any]) -> tuple[list[Any], list[str]]:
    """Return the cells of a table, `ABSTAIN` where there is no label, and notes on doubtful words.

    Among words "unknown" or "none" is a label, as nobody says that it is none; among numbers it is
    none. pandas writes nan for a missing cell.
    """
    words = ["" if is_missing(v) or v is ABSTAIN else fold(v) for v in cells]
    times = Counter(filter(None, words))
    doubtful = no_ratings(times) | ABSTENTIONS & times.keys()
    none = doubtful if as_numbers(times.keys() - doubtful) else doubtful & {"nan"}
    notes = []
    for said, found in (("Counted as labels", doubtful - none), ("Left out", none)):
        listed = ", ".join(f"{word!r} ({times[word]:,})" for word in sorted(found))
        notes += [f"{said}: {listed}. Leave a cell empty where there is no label."] * bool(found)
    without = none | {""}
    return [ABSTAIN if w in without else v for v, w in zip(cells, words, strict=True)], notes


def _scale_of(seen: list[Any]) -> Scale:
    """The scale of the values seen; if all are one value, however written, one that has it."""
    sides = [(truth_side(word), word) for word in map(fold, seen)]
    several = {word if side is None else side for side, word in sides}
    if len(several) > 1:
        return Scale.from_values(seen, every=True)
    if several <= {0, 1}:
        return Scale.of(["no", "yes"])
    return Scale("nominal", (seen[0], f"not {seen[0]}"))


def counts_of(codes: Array, size: int) -> Array:
    """How many annotators gave each item each category, shape (items, categories)."""
    return np.stack([(codes == k).sum(axis=1) for k in range(size)], axis=1)


def equally_rated(codes: Array) -> tuple[Array, Array]:
    """Which items `AnnotatorAgreement.fleiss` covers, two labels at least: codes and a mask."""
    given = codes >= 0
    labels = given.sum(axis=1)
    if len(set(labels.tolist()) - {0, 1}) <= 1:
        return np.asarray(codes[labels >= 2]), labels >= 2
    by_activity = np.argsort(-given.sum(axis=0), kind="stable")
    groups = [by_activity[:k] for k in range(2, len(by_activity) + 1)]
    group = max(groups, key=lambda g: (given[:, g].all(axis=1).sum() * len(g), len(g)))
    items = np.asarray(given[:, group].all(axis=1))
    return np.asarray(codes[np.ix_(items, group)]), items
