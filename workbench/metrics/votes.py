"""Annotators' labels as codes: a row an item, a column an annotator, -1 where there is none."""

from __future__ import annotations

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
from workbench.scale import ABSTAIN, MOST_CATEGORIES, Scale, no_rating
from workbench.store.tables import check_division
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

MOST_WORDS = 100  # more different ones in a table are texts and no labels


@dataclass(frozen=True)
class Votes:
    """Annotators' labels as codes, shape (items, annotators): positions in ``values``, or -1."""

    annotators: tuple[str, ...]
    items: pd.Index[Any]
    codes: Array
    values: list[Any]
    scale: Scale
    groups: Array  # items with the same number belong together
    notes: list[str]

    @classmethod
    def of(
        cls,
        given: Pairs | pd.DataFrame,
        scale: Scale | None,
        groups: Groups = None,
        most_words: float = MOST_WORDS,
    ) -> Votes:
        """Read pairs or a table; by default on the scale of the pairs, or of the values seen."""
        if isinstance(given, Pairs):
            table, scale = given.votes, scale or given.scale
            together = given.grouped(groups).clusters_of(table.index)
        else:
            table = votes_table(given)
            check_division("groups", groups)
            if isinstance(groups, str):
                raise ArgumentError(f"groups={groups!r}: of a table it maps items to groups.")
            rows = enumerate(table.index)
            together = [(groups or {}).get(item, (row,)) for row, item in rows]
        check_people("The table", table.columns)
        cells = list(map(scalar, table.to_numpy(dtype=object).ravel().tolist()))
        cells, notes = (cells, []) if scale else _labels_of(cells)
        known = scale or _scale_of([cell for cell in cells if cell is not ABSTAIN], most_words)

        @lru_cache(maxsize=None, typed=True)  # each writing once
        def read(raw: Any) -> Any:
            return ABSTAIN if no_rating(raw, known) else known.normalise(raw)

        votes = list(map(read, cells))
        values = list(known.values) or sorted(set(votes) - {ABSTAIN})
        number = {ABSTAIN: -1} | {value: k for k, value in enumerate(values)}
        codes = np.array([number[vote] for vote in votes], dtype=int).reshape(table.shape)
        names = tuple(map(str, table.columns))
        return cls(names, table.index, codes, values, known, numbered(together), notes)

    @property
    def level(self) -> Level:
        """The level of measurement."""
        levels: dict[str, Level] = {"ordinal": "ordinal", "numeric": "interval"}
        return levels.get(self.scale.kind, "nominal")

    @cached_property
    def positions(self) -> Array:
        """Rank of each value from worst to best; a number is its own rank."""
        return np.array([self.scale.rank(v) for v in self.values] or [0.0])

    @property
    def labels(self) -> Array:
        """How many labels each item has."""
        return np.asarray((self.codes >= 0).sum(axis=1))


def votes_table(given: Any) -> pd.DataFrame:
    """Return a table of votes by item, as a user gives it."""
    if not isinstance(given, pd.DataFrame):
        raise ArgumentError(
            f"Labels are given as Pairs or a table with a column an annotator, not as "
            f"{type(given).__name__}. workbench.pair(judge) gives Pairs."
        )
    return given.set_index("trace_id") if "trace_id" in given.columns else given


def _labels_of(cells: list[Any]) -> tuple[list[Any], list[str]]:
    """Return the cells, `ABSTAIN` where they hold no label, and a note on words read as none."""
    words = ["" if is_missing(v) or v is ABSTAIN else fold(v) for v in cells]
    times = Counter(filter(None, words))
    doubtful = no_ratings(times) | ABSTENTIONS & times.keys()
    # Among words, *unknown* is a label like others, but for nan, which pandas writes.
    none = doubtful if as_numbers(times.keys() - doubtful) else doubtful & {"nan"}
    listed = ", ".join(f"{word!r} ({times[word]:,})" for word in sorted(none))
    notes = [f"Left out, since they are no labels: {listed}."] * bool(none)
    pairs = zip(cells, words, strict=True)
    return [ABSTAIN if not word or word in none else cell for cell, word in pairs], notes


def _scale_of(seen: list[Any], most_words: float) -> Scale:
    """The scale of the values seen: also of one alone, and of more words than a judge may have."""
    by_word = {fold(value): value for value in seen}
    sides = set(map(truth_side, by_word))
    if len(sides) < 2 and None not in sides:
        return Scale.of(["no", "yes"])
    if len(by_word) == 1:
        return Scale("nominal", (seen[0], f"not {seen[0]}"))
    if MOST_CATEGORIES < len(by_word) <= most_words and not as_numbers(by_word):
        return Scale("nominal", tuple(by_word.values()))
    return Scale.from_values(seen, every=True)
