"""The items behind a confusion matrix: which of them search, slice and change leave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
import pandas as pd
from pydantic import BaseModel, Field

from workbench.metrics.comparison import compare
from workbench.metrics.figures import Coded
from workbench.metrics.intervals import Array
from workbench.metrics.slices import by_annotator, short_fields, slice_names
from workbench.pairing.pairs import Pairs
from workbench.store.traces import Example
from workbench.vocabulary import folded

_MOST_VALUES = 30  # that the matrix has, the most frequent ones
_MOST_SLICES = 50


class Query(BaseModel):
    """Which items, in which order; ``judge`` is the number of the one whose ``cell`` it is."""

    judge: Annotated[int, Field(ge=0, le=1)] = 0
    cell: tuple[int, int] | None = None
    change: str = ""
    search: str = ""
    field: str = ""
    value: str = ""
    order: Literal["far", "near", "id"] = "far"
    start: Annotated[int, Field(ge=0)] = 0


class Items:
    """The pairs of a judge, or of two judges on the same traces, sorted by trace id.

    ``table`` has ``trace_id``, ``human``, a column a judge (``names``), ``distance`` (of the last
    judge's verdict and the label, in [0, 1]), of two judges ``change``, and ``annotator``. Below
    the pairs, where that is "", come the same verdicts with each annotator's own label. ``values``
    are rows and columns of the matrix. ``slices`` (name -> slice by item, "" for none) are empty
    until `read` is called.
    """

    def __init__(self, before: Pairs, after: Pairs | None = None) -> None:
        given = [before] if after is None else [before, after]
        common = set.intersection(*({*one.trace_ids} for one in given))
        self.names = ["judge"] if after is None else ["before", "after"]
        self.pairs = [
            replace(one, table=one.subset(common).table.sort_values("trace_id", ignore_index=True))
            for one in given
        ]
        self.place = {trace_id: row for row, trace_id in enumerate(self.pairs[0].table["trace_id"])}
        rows = [_with_annotators(one) for one in self.pairs]
        judged = {name: table["judge"] for name, table in zip(self.names, rows, strict=True)}
        self.table = rows[0][["trace_id", "human"]].assign(**judged)
        self._items = self.table["trace_id"].map(self.place).to_numpy(dtype=int)
        self._code([replace(one, table=t) for one, t in zip(self.pairs, rows, strict=True)])
        self.table["distance"] = self._distances[-1]
        self.changes: list[str] = []
        if after is not None:
            self._compare(before, after)
        self.table["annotator"] = rows[0]["annotator"]
        self.annotators = Counter(filter(None, self.table["annotator"]))
        columns = [self.pairs[0].table["human_rationale"]]
        columns += [one.table["judge_rationale"] for one in self.pairs]
        self._said = list(zip(self.place, *columns, strict=True))
        # What is searched, as names are compared; at first the beginnings of inputs and outputs.
        self._texts = [self._text(row, before.previews.get(i)) for i, row in self.place.items()]
        self.slices: dict[str, list[str]] = {}

    def _code(self, rated: list[Pairs]) -> None:
        """Put each label and verdict in its row and column of the matrix, -1 where it has none."""
        coded = [Coded.of(one, *rated) for one in rated]
        self._distances = [one.distances(one.human, one.judge) for one in coded]
        values, human, _ = coded[0].shown()
        judged = [one.shown()[2] for one in coded]
        order = list(values if coded[0].binned else coded[0].scale.shown or values)
        counts = np.bincount(np.concatenate([human, *judged]), minlength=len(values))
        often = {values[k] for k in np.argsort(-counts, kind="stable")[:_MOST_VALUES]}
        self.values = [value for value in order if value in often]
        shown = {value: k for k, value in enumerate(self.values)}
        place = np.array([shown.get(value, -1) for value in values], dtype=int)
        self._human, self._judged = place[human], [place[one] for one in judged]

    def _compare(self, before: Pairs, after: Pairs) -> None:
        """Say what became of each item, in the words of a comparison."""
        found = compare(before, after, resamples=2)
        self.changes = ["fixed", "broken", "still wrong", "right before and after"]
        if before.scale.kind == "numeric":
            self.changes[:3] = ["nearer", "farther", "as far as before"]
        sides = (found.fixed, found.broken, found.still_wrong)
        held = [self.table["trace_id"].isin(set(one["trace_id"])).to_numpy() for one in sides]
        self.table["change"] = np.select(held, self.changes[:3], self.changes[3])

    def find(self, query: Query) -> tuple[Array, Array, int]:
        """Return the rows of a query in its order, the matrix of what its filters but the cell
        leave, and how many items these leave."""
        judge = min(query.judge, len(self.names) - 1)
        human, judged, distances = self._human, self._judged[judge], self._distances[judge]
        is_own = query.field == "annotator"
        kept = np.asarray(self.table["annotator"] == (query.value if is_own else ""))
        if query.change:
            kept &= np.asarray(self.table.get("change", "")) == query.change
        if query.field and not is_own:
            here = np.array(self.slices.get(query.field, [""] * len(self.place)), dtype=object)
            kept &= (here == query.value)[self._items]
        if needle := folded(query.search):
            here = np.fromiter((needle in text for text in self._texts), bool, len(self.place))
            kept &= here[self._items]
        inside = kept & (human >= 0) & (judged >= 0)
        matrix = np.zeros((len(self.values),) * 2, dtype=int)
        np.add.at(matrix, (human[inside], judged[inside]), 1)
        left = int(kept.sum())
        if query.cell is not None:
            kept &= (human == query.cell[0]) & (judged == query.cell[1])
        found = np.flatnonzero(kept)
        if query.order != "id":
            far = -distances[found]
            found = found[np.argsort(far if query.order == "far" else -far, kind="stable")]
        return found, matrix, left

    def read(self, examples: Iterable[Example]) -> int:
        """Take over the whole texts of traces, and what these can be sliced by; return how many
        were read."""
        texts = list(self._texts)

        def noted() -> Iterator[Example]:
            for one in examples:
                row = self.place[one.trace_id]
                texts[row] = self._text(row, [one.inputs, one.outputs, one.expectations])
                yield one

        short = short_fields(noted())
        self._texts = texts
        for name, given in short.items():
            values = slice_names(map(given.get, self.place), nothing="")
            counts = Counter(filter(None, values))
            # Several, not too many to choose from, of two items and more.
            is_division = 2 <= len(counts) <= _MOST_SLICES and counts.total() >= 2 * len(counts)
            if is_division and name != "annotator":  # which is by the labels' annotators
                self.slices[name] = values
        return len(short["length"])

    def _text(self, row: int, content: Any) -> str:
        return "\n".join(map(folded, _strings([self._said[row], content])))


def _with_annotators(pairs: Pairs) -> pd.DataFrame:
    """The rows of pairs, and below them those of `by_annotator`."""
    own = by_annotator(pairs).table
    table = pairs.table.assign(annotator="")[[*own.columns]].astype(object)
    return pd.concat([table, own], ignore_index=True)


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, (list, tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)
    elif value is not None:
        yield str(value)
