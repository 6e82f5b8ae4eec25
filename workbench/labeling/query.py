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

    ``names`` are ``["judge"]`` or ``["before", "after"]``. ``table`` has ``trace_id``, ``human``, a
    column a judge, ``distance`` (of the last judge's verdict and the label, in [0, 1]), and of two
    judges ``change``, one of ``changes``. ``values`` are rows and columns of the matrix, of many
    numbers their bins. ``slices`` (name -> slice by row, "" for none) are empty until `read` is
    called. Sliced by ``"annotator"``, an item's label is the annotator's own; a tag or an input of
    that name is left out.
    """

    def __init__(self, before: Pairs, after: Pairs | None = None) -> None:
        given = [before] if after is None else [before, after]
        common = set.intersection(*({*one.trace_ids} for one in given))
        self.names = ["judge"] if after is None else ["before", "after"]
        self.pairs = [
            replace(one, table=one.subset(common).table.sort_values("trace_id", ignore_index=True))
            for one in given
        ]
        judged = {n: one.table["judge"] for n, one in zip(self.names, self.pairs, strict=True)}
        self.table = self.pairs[0].table[["trace_id", "human"]].assign(**judged)
        self.place = {trace_id: row for row, trace_id in enumerate(self.table["trace_id"])}
        self._code()
        self.table["distance"] = self._distances[-1]
        self.changes: list[str] = []
        if after is not None:
            self._compare(before, after)
        columns = [self.table["trace_id"], self.pairs[0].table["human_rationale"]]
        columns += [one.table["judge_rationale"] for one in self.pairs]
        self._said = list(zip(*columns, strict=True))
        # What is searched, as names are compared; at first the beginnings of inputs and outputs.
        self._texts = [self._text(row, before.previews.get(i)) for i, row in self.place.items()]
        self.slices: dict[str, list[str]] = {}
        self.annotators = Counter(self._own["annotator"])

    def _code(self) -> None:
        """Put each label and verdict in its row and column of the matrix, -1 where it has none."""
        own = [by_annotator(one) for one in self.pairs]
        coded = [Coded.of(one, *self.pairs, own[0]) for one in self.pairs]
        of_own = [Coded.of(one, *self.pairs, own[0]) for one in own]
        self._distances = [one.distances(one.human, one.judge) for one in coded]
        values, human, _ = coded[0].shown()
        judged = [one.shown()[2] for one in coded]
        scale = coded[0].scale
        order = list(values if coded[0].binned else scale.shown or values)
        counts = np.bincount(np.concatenate([human, *judged]), minlength=len(values))
        often = {values[k] for k in np.argsort(-counts, kind="stable")[:_MOST_VALUES]}
        self.values = [value for value in order if value in often]
        shown = {value: k for k, value in enumerate(self.values)}
        place = np.array([shown.get(value, -1) for value in values], dtype=int)
        self._human, self._judged = place[human], [place[one] for one in judged]
        self._own = own[0].table.assign(
            row=own[0].table["trace_id"].map(self.place).astype(int),
            place=place[of_own[0].shown()[1]],
            **{f"distance {k}": c.distances(c.human, c.judge) for k, c in enumerate(of_own)},
        )

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
        kept = np.ones(len(self.table), dtype=bool)
        if query.change:
            kept &= np.asarray(self.table.get("change", "")) == query.change
        if (own := self._labels_of(query)) is not None:
            kept &= np.isin(np.arange(len(kept)), own["row"])
            human, distances = human.copy(), distances.copy()
            human[own["row"]], distances[own["row"]] = own["place"], own[f"distance {judge}"]
        elif query.field:
            kept &= np.array(self.slices.get(query.field, ""), dtype=object) == query.value
        if needle := folded(query.search):
            kept &= np.fromiter((needle in text for text in self._texts), bool, len(kept))
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

    def view(self, query: Query, rows: Array) -> pd.DataFrame:
        """Return rows of `table`, with the labels that the query compares."""
        shown = self.table.iloc[rows]
        if (own := self._labels_of(query)) is None:
            return shown
        own = own.set_index("row").loc[rows]
        return shown.assign(human=own["human"], distance=own[f"distance {len(self.names) - 1}"])

    def _labels_of(self, query: Query) -> pd.DataFrame | None:
        """The labels of the annotator whom the query asks for; None where it asks for none."""
        own = self._own[self._own["annotator"] == query.value]
        return own if query.field == "annotator" and self.annotators else None

    def read(self, examples: Iterable[Example]) -> None:
        """Take over the whole texts of traces, and what these can be sliced by."""
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

    def _text(self, row: int, content: Any) -> str:
        return "\n".join(map(folded, _strings([self._said[row], content])))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, (list, tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)
    elif value is not None:
        yield str(value)
