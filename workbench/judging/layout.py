"""Layout of a table that is scored: which columns hold what, and its rows as items."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import pandas as pd

from workbench.errors import ArgumentError, TableError
from workbench.judging.verdict_folder import COLUMNS
from workbench.store.files import Record
from workbench.store.tables import columns_by_key, plain, read_row
from workbench.store.traces import Example
from workbench.vocabulary import is_missing


@dataclass(frozen=True)
class Layout:
    """Which columns hold what; ``single`` where the output is a cell, and no dict."""

    sides: dict[str, dict[str, str]]
    single: bool
    keep: tuple[str, ...]
    time: str | None

    @classmethod
    def of(cls, inputs: Any, outputs: Any, expectations: Any, keep: Any, time: Any) -> Layout:
        given = {"inputs": inputs, "outputs": outputs, "expectations": expectations, "tags": None}
        sides = {argument: columns_by_key(argument, spec) for argument, spec in given.items()}
        keep = (keep,) if isinstance(keep, str) else tuple(keep or ())
        if taken := set(keep) & set(COLUMNS):
            raise ArgumentError(
                f"keep={list(keep)!r}: {', '.join(sorted(taken))} is a column of the verdicts "
                "themselves. Rename it in the table."
            )
        return cls(sides, not isinstance(outputs, (list, tuple, Mapping)), keep, time)

    @property
    def beside(self) -> list[str]:
        """What is copied, and the time."""
        return [*self.keep, *([self.time] if self.time else [])]

    @property
    def columns(self) -> list[str]:
        """All that are read."""
        return [*(c for by_key in self.sides.values() for c in by_key.values()), *self.beside]

    def read(self, number: int, record: Record) -> tuple[Record, Example, list[Any]]:
        """What is known of a row before it is judged (an error bars it), item, and content."""
        cells, problems = read_row(number, record, self.sides, {})
        outputs = next(iter(cells.outputs.values()), None) if self.single else cells.outputs
        expected = cells.expectations if self.sides["expectations"] else None
        item = Example(f"row {number}", cells.inputs, outputs, expected)
        beside = self._copied(number, record)
        row = {"row": number, **dict(zip(self.keep, beside, strict=False))}
        time = self._time(number, beside[-1]) if self.time else None
        row |= dict.fromkeys(COLUMNS[1:]) | {"calls": 0, "time": time}
        content = [item.inputs, item.outputs, item.expectations, beside]
        return row | {"error": "; ".join(problems) or None}, item, content

    def _copied(self, number: int, record: Record) -> list[Any]:
        """The plain cells of what is copied, and the time."""
        cells = []
        for column in self.beside:
            cell = record[column]
            try:
                cells.append(plain(cell))
            except ValueError as error:
                raise TableError(
                    f"Column {column!r}, row {number}: it holds {error}. Make the column text, or "
                    "leave it out of keep and time."
                ) from None
        return cells

    def _time(self, number: int, given: Any) -> datetime | None:
        if is_missing(given):
            return None
        # pandas guesses at others, each cell for itself, and reads "now" as ISO 8601.
        iso = given if re.match(r"\s*\d{4}-\d\d-\d\d", str(given)) else ""
        when = pd.to_datetime(iso, format="ISO8601", utc=True, errors="coerce")
        if pd.isna(when):
            raise TableError(
                f"time={self.time!r}: row {number} holds {given!r}, which is no date of ISO 8601. "
                "Give dates (pandas.to_datetime(column, format=...) reads others), texts such as "
                "2026-03-31 or 2026-03-31T10:00:00+02:00, or leave time out."
            )
        at: datetime = when.to_pydatetime()
        return at
