"""Divide traces among annotators, without a list that is stored anywhere.

Each trace ranks the annotators by a hash of the seed, the trace and the annotator (rendezvous
hashing: Thaler and Ravishankar, "Using name-based mappings to increase hit rates", IEEE/ACM
Transactions on Networking 6(1), 1998), and goes to those that rank first. New traces move no other
trace, and a new annotator takes over a share of each other's work. Shares are equal on average
only: of 500 traces one of five annotators gets 100 +- 8.9.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import pandas as pd

from workbench.errors import ArgumentError, check_share, check_whole, one_of
from workbench.formatting import counted, html_table, html_text
from workbench.store.labels import same_person
from workbench.store.traces import fetch_traces
from workbench.vocabulary import check_people


@dataclass(frozen=True, repr=False)
class Assignment:
    """Which traces each annotator labels, with the arguments given to `workbench.assign`."""

    trace_ids: tuple[str, ...]
    annotators: tuple[str, ...]
    each: int = 1
    share: float = 0.0
    batch_size: int | None = None
    seed: int = 0

    def of(self, annotator: str, *, batch: int | None = None) -> list[str]:
        """Return the traces of one annotator, in order; with ``batch`` those of one, from 0."""
        named = next((who for who in self.annotators if same_person(who, annotator)), annotator)
        one_of("annotator", named, self.annotators)
        if batch is not None and batch not in range(self.batches):
            known = f"{counted(self.batches, 'batch', 'batches')}, counted from 0"
            raise ArgumentError(f"batch={batch!r} does not exist: the queue has {known}.")
        table = self.table[self.table["annotator"] == named]
        return list(table["trace_id"] if batch is None else table["trace_id"][table.batch == batch])

    def annotators_of(self, trace_id: str) -> tuple[str, ...]:
        """Return who labels a trace, by rank."""
        ranked = sorted(self.annotators, key=lambda who: (_hash(self.seed, trace_id, who), who))
        # A number in [0, 1) that the trace and the seed determine.
        chance = int.from_bytes(_hash("all", self.seed, trace_id)[:7], "big") / 2**56
        return tuple(ranked if chance < self.share else ranked[: self.each])

    def batch_of(self, trace_id: str) -> int:
        """Return the batch of a trace, counted from 0; an unknown trace comes behind all others."""
        return self._places.get(trace_id, len(self.trace_ids)) // self._size

    @property
    def batches(self) -> int:
        """How many batches there are."""
        return -(-len(self.trace_ids) // self._size)

    @property
    def _size(self) -> int:
        # Where all are one batch, what comes later belongs to it.
        return self.batch_size or len(self.trace_ids) + 1

    @cached_property
    def _places(self) -> dict[str, int]:
        return {trace_id: place for place, trace_id in enumerate(self.trace_ids)}

    @cached_property
    def table(self) -> pd.DataFrame:
        """One row a trace and annotator: ``trace_id``, ``annotator``, ``batch``."""
        rows = [
            (trace_id, annotator, self.batch_of(trace_id))
            for trace_id in self.trace_ids
            for annotator in sorted(self.annotators_of(trace_id))
        ]
        return pd.DataFrame(rows, columns=["trace_id", "annotator", "batch"])

    @property
    def shares(self) -> pd.DataFrame:
        """How much each has to do: index ``annotator``; ``traces``, ``with_others``."""
        is_shared = self.table["trace_id"].duplicated(keep=False)
        by_annotator = is_shared.groupby(self.table["annotator"])
        counts = pd.DataFrame({"traces": by_annotator.size(), "with_others": by_annotator.sum()})
        return counts.reindex(pd.Index(self.annotators, name="annotator"), fill_value=0).astype(int)

    def __repr__(self) -> str:
        overlap = f"{self.each} each" + (f", {self.share:.0%} by all" if self.share else "")
        people = counted(len(self.annotators), "annotator")
        batches = counted(self.batches, "batch", "batches")
        traces = counted(len(self.trace_ids), "trace")
        return f"<Assignment: {traces}, {people}, {overlap}, {batches}>"

    def _repr_html_(self) -> str:
        return f"<div>{html_text(repr(self)[1:-1])}</div>{html_table(self.shares)}"


def assign(
    traces: Any = None,
    annotators: Iterable[str] = (),
    *,
    each: int = 1,
    share: float = 0.0,
    batch_size: int | None = None,
    seed: int = 0,
) -> Assignment:
    """Divide traces among annotators.

    Every trace goes to ``each`` annotators, and a ``share`` of the traces to all of them. Who
    gets a trace depends on the seed, the trace and the annotators' names alone, so each
    annotator can ask for their own part in a notebook of their own.

    Parameters
    ----------
    traces
        None (the active experiment), traces, trace ids, or an MLflow filter string. Their order
        makes the batches: all work on the first one at the same time, then on the next.
    annotators
        The names under which they label.
    each
        How many annotators label a trace, from 1 to their number; 2 is double labelling.
    share
        Share of the traces that all annotators label, in [0, 1]; the rest goes to ``each``.
    batch_size
        Traces a batch; None: no batches.
    seed
        Another seed gives other shares; 0 is a seed like any other.

    Raises
    ------
    ArgumentError
        For no annotators, one named twice, and numbers out of range.

    Examples
    --------
    >>> parts = assign(["tr-1", "tr-2", "tr-3", "tr-4"], ["ana", "ben", "chloe"], each=2)
    >>> sum(len(parts.of(who)) for who in parts.annotators)
    8
    """
    made = shared_out((), annotators, each, share, batch_size, seed)
    if not made.annotators:
        raise ArgumentError("annotators=[] must be names, at least one.")
    if isinstance(traces, (list, tuple)) and all(isinstance(one, str) for one in traces):
        ids = tuple(dict.fromkeys(traces))  # nothing of them is needed from the store
    else:
        ids = tuple(trace.info.trace_id for trace in fetch_traces(traces, spans=False))
    return replace(made, trace_ids=ids)


def shared_out(
    trace_ids: Iterable[str],
    annotators: Iterable[str],
    each: int,
    share: float,
    batch_size: int | None,
    seed: int,
) -> Assignment:
    """Return a checked `Assignment`, which may be among no annotators (see `assign`)."""
    if isinstance(annotators, str):
        raise ArgumentError(f"annotators={annotators!r} is one text. Give a list of names.")
    names = tuple(annotators)
    if any(not isinstance(name, str) or not name.strip() for name in names):
        raise ArgumentError(f"annotators={list(names)!r} must be names.")
    check_people(f"annotators={list(names)!r}", names)
    if names and check_whole("each", each) > len(names):
        raise ArgumentError(
            f"each={each!r} must be a whole number from 1 to {len(names)}, the number of "
            "annotators. For a part of the traces by all, use share=."
        )
    if share and not names:
        raise ArgumentError(f"share={share!r} needs annotators.")
    return Assignment(
        tuple(trace_ids),
        names,
        check_whole("each", each),
        check_share("share", share),
        batch_size if batch_size is None else check_whole("batch_size", batch_size),
        check_whole("seed", seed, None),
    )


def _hash(*parts: object) -> bytes:
    return hashlib.blake2b(json.dumps(parts).encode(), digest_size=16).digest()
