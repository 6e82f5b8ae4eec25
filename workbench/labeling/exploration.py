"""`Exploration`: the items behind a confusion matrix read, labelled and sent on, without a view.

A session (see `workbench.labeling.session`) that also answers:

- ``hello``: ``slices`` (field -> pairs of value and items), as soon as all texts are read;
- ``page`` (a `Query`, and ``ask``, which comes back): ``page``, with ``rows`` from ``start`` of
  ``total``, and the ``matrix`` of the ``left`` items that search, slice and change leave;
- ``item`` (``trace_id``): ``items``, with one item;
- ``send`` (``trace_id``): ``sent``, once the trace is in the label queue.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Annotated, Any, Final, Literal

import numpy as np
import pandas as pd
from mlflow.entities import TraceInfo
from pydantic import BaseModel, Field

from workbench.errors import ArgumentError
from workbench.formatting import check_text, counted, excerpt
from workbench.labeling.annotations import (
    Action,
    Draw,
    Item,
    item_json,
    parsed,
    plain,
    read_annotations,
)
from workbench.labeling.questions import LabelQuestion, read_answers
from workbench.labeling.review_queue import ReviewQueue, review_queue
from workbench.labeling.session import Message, Session
from workbench.labeling.writer import TraceDeletedError, TraceStore, save
from workbench.metrics.comparison import compare
from workbench.metrics.figures import Coded
from workbench.metrics.intervals import Array
from workbench.metrics.slices import by_annotator, short_fields, slice_names
from workbench.pairing.pairs import Pairs
from workbench.store.database import store_message
from workbench.store.traces import Example, as_example, fetch_traces
from workbench.vocabulary import folded

PAGE: Final = 50
"""Items that are sent at once."""

NOTE: Final = "reviewer_note"
"""Notes are feedback in free text under this name, whatever the judge's."""

_CHUNK = 200
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
    judge's verdict and the label), of two judges ``change``, and ``annotator``. Below the pairs,
    where that is "", come the same verdicts with each annotator's own label. ``slices`` (name ->
    slice by item, "" for none) are empty until `read` is called.
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
        rows = []
        for one in self.pairs:
            own = by_annotator(one).table
            table = one.table.assign(annotator="")[[*own.columns]].astype(object)
            rows.append(pd.concat([table, own], ignore_index=True))
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
        kept = np.array(self.table["annotator"] == (query.value if is_own else ""))
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

        def noted() -> Iterator[Example]:
            for one in examples:
                row = self.place[one.trace_id]
                self._texts[row] = self._text(row, [one.inputs, one.outputs, one.expectations])
                yield one

        short = short_fields(noted())
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


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, (list, tuple, dict)):
        for one in value.values() if isinstance(value, dict) else value:
            yield from _strings(one)
    elif value is not None:
        yield str(value)


class Exploration(Session):
    """What stands behind `workbench.Explorer`; what is labelled here changes no figure."""

    def __init__(
        self,
        before: Pairs,
        after: Pairs | None = None,
        *,
        annotator: str | None = None,
        queue: ReviewQueue | str | None = None,
    ) -> None:
        if annotator is not None:
            check_text("annotator", annotator)
        super().__init__(annotator or "", TraceStore())
        self.title, self.pairs, self._queue = before.name, before, queue
        self.found = Items(before, after)
        label = LabelQuestion(before.name, self.found.pairs[0].scale, required=False)
        self.ask([label, LabelQuestion(NOTE, None, title="Note", required=False)])
        # In the order of the view's first question: by the last judge, whose distance it shows.
        self._shown = self.found.find(Query(judge=len(self.found.names) - 1))[0]

    @property
    def shown(self) -> pd.DataFrame:
        """The items that were asked for last (see `Items`)."""
        return self.found.table.iloc[self._shown].drop(columns="annotator").reset_index(drop=True)

    def setup(self) -> Message:
        found, word = self.found, self.questions[0].shown
        pairs = found.table[: len(found.place)]
        counts = Counter(pairs.get("change", ()))
        more = {
            "values": [word(value) for value in found.values],
            "judges": found.names,
            "changes": {change: counts[change] for change in found.changes},
            "ordered": self.pairs.scale.ordered,
            "page": PAGE,
            "total": len(pairs),
        }
        return {**super().setup(), **plain(more)}

    def answer(self, kind: Any, message: Any) -> list[Message]:
        if kind == "hello":
            return [self.slices()]  # only where there is a view that searches
        if kind == "page":
            return [{**self.page(parsed(Query, message)), "ask": message.get("ask")}]
        if kind == "item":
            return [self.item(message["trace_id"])]
        if kind == "send":
            return [self.send(message["trace_id"])]
        return super().answer(kind, message)

    def reload(self) -> None:
        raise ArgumentError("These are the pairs as they were read. Pair again to see new labels.")

    def page(self, query: Query) -> Message:
        """Return a page of the items of a query, and the matrix that its filters leave."""
        self._shown, matrix, left = self.found.find(query)
        part = self._shown[query.start : query.start + PAGE]
        rows = [self._row(row) for row in self.found.table.iloc[part].to_dict("records")]
        page = {"type": "page", "rows": rows, "matrix": matrix.tolist(), "left": left}
        return {**page, "total": len(self._shown), "start": query.start}

    def _row(self, row: dict[Any, Any]) -> Message:
        inputs, outputs = self.pairs.previews.get(row["trace_id"], ("", ""))
        said = {side: self.questions[0].shown(row[side]) for side in ("human", *self.found.names)}
        return {**row, **said, "inputs": excerpt(inputs, 90), "outputs": excerpt(outputs, 160)}

    def slices(self) -> Message:
        """Read the texts of all items, and return what these can be sliced by; ``problem`` says
        why some could not be read."""
        problem = ""
        try:
            self.check_store()
            if lost := len(self.found.place) - self.found.read(self._examples()):
                problem = f"{counted(lost, 'trace')} missing from the store"
        except Exception as error:
            problem = store_message(error)
        fields = sorted(self.found.slices.items())
        counts = {name: sorted(Counter(filter(None, each)).items()) for name, each in fields}
        if len(self.found.annotators) > 1:
            counts["annotator"] = sorted(self.found.annotators.items())
        return {"type": "slices", "slices": counts, "problem": problem}

    def _examples(self) -> Iterator[Example]:
        ids, where = list(self.found.place), self.store.experiment
        for start in range(0, len(ids), _CHUNK):
            part = ids[start : start + _CHUNK]
            yield from map(as_example, fetch_traces(part, experiment=where, missing_ok=True))

    def item(self, trace_id: str) -> Message:
        """Return an item as the store has it, what was said about it, and one's own label."""
        try:
            info = self.store.get(trace_id)
            made = Item(info)
            if self.annotator:
                made.annotations = read_annotations(info, self.questions, self.annotator)
                self.store.record_look(info, self.questions[:1], self.annotator)
            shown = item_json(made, self.store.spans([info]), self.rubrics)
        except TraceDeletedError:
            inputs, outputs = self.pairs.previews.get(trace_id, ("", ""))
            fault = "This trace is not in the store: only the beginnings of its texts are known."
            shown = {"trace_id": trace_id, "inputs": inputs, "outputs": outputs, "fault": fault}
        voices = self._voices(self.found.place[trace_id])
        return {"type": "items", "items": [{**shown, "voices": voices}]}

    def _voices(self, row: int) -> list[Message]:
        """What people said, and then each judge."""
        word = self.questions[0].shown
        given = [one.table.iloc[row] for one in self.found.pairs]
        names = ["judge"] if len(given) == 1 else [f"judge {name}" for name in self.found.names]
        said = [("people", "human", given[0])]
        said += [(name, "judge", one) for name, one in zip(names, given, strict=True)]
        votes = [[who, word(value)] for who, value in given[0]["votes"].items()]
        return [
            {
                "who": who,
                "value": word(one[side]),
                "rationale": one[f"{side}_rationale"] or "",
                "votes": votes if side == "human" else [],
            }
            for who, side, one in said
        ]

    def prepare(self, action: Action) -> Callable[[], TraceInfo]:
        if not self.annotator or action.kind != "save":
            raise ArgumentError(
                "Labels and notes are given by an annotator: Explorer(pairs, annotator='you')."
            )
        given = read_answers(self.questions, action.answers, ())
        # The verdict stands beside the item, so no label given here is blind.
        seen = action.model_copy(update={"after_reveal": True})
        draw = Draw("picked", None, 1, len(self.found.place))
        return lambda: save(self.store, seen, given, self.annotator, draw)

    def send(self, trace_id: str) -> Message:
        """Put a trace into the label queue, and tell what came of it."""
        self.check_store()
        queue = self._label_queue(trace_id)
        told = "Now in" if queue.add([trace_id]) else "Already in"
        text = f"{told} the queue {queue.name!r}."
        return {"type": "sent", "trace_id": trace_id, "text": text}

    def _label_queue(self, trace_id: str) -> ReviewQueue:
        """The queue, which holds traces of one experiment only; one that is made here asks for a
        label more than any trace has."""
        if not isinstance(self._queue, ReviewQueue):
            name = self._queue or self.pairs.name
            where = self.store.get(trace_id).experiment_id
            try:
                self._queue = review_queue(name, experiment=where)
            except ArgumentError:  # there is none of this name
                most = max(map(len, self.pairs.all_votes.values()), default=0)
                asked = LabelQuestion(self.pairs.name, self.questions[0].scale)
                self._queue = review_queue(name, [asked], each=most + 1, experiment=where)
        return self._queue
