"""What there is to label for one annotator: which traces, in which batches."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from mlflow.entities import TraceInfo

from workbench import store
from workbench.assignment import Assignment
from workbench.errors import one_of
from workbench.reviews import ReviewQueue
from workbench.standing import same_person

Assign = Assignment | Callable[[list[str]], Iterable[str]]
"""Who labels what: an assignment, or a function from all trace ids to the annotator's."""


@dataclass(frozen=True)
class Work:
    """The annotator's traces by id, the batch of each, and whether those that are not among them
    are no longer the annotator's."""

    infos: dict[str, TraceInfo]
    batches: Mapping[str, int] = field(default_factory=dict)
    is_share: bool = True


def in_common(traces: Any, assign: Assign | None) -> bool:
    """Whether all annotators label in the same order: where it is settled who labels what, or how
    many label an item. What several of them label then comes to them early, and to all alike, so
    that it can be compared soon. Elsewhere they would all label the same items at the same time.
    """
    if assign is not None:
        return True
    return isinstance(traces, ReviewQueue) and (bool(traces.annotators) or traces.each > 1)


def work_of(
    annotator: str,
    traces: Any,
    assign: Assign | None,
    experiment: str | None,
    *,
    missing_ok: bool = False,
) -> Work:
    """Read from the store what the annotator is to label.

    ``traces`` as `workbench.store.fetch_traces` takes them, or a `workbench.review_queue`, whose
    own shares hold where ``assign`` is None. With an `Assignment` None takes its traces and no
    others of the experiment; those that are no longer in the store are left out, with
    ``missing_ok`` also of traces that are named one by one.

    Raises
    ------
    ArgumentError
        For an annotator whom the assignment or the queue's team does not name.
    StoreError
        When the traces cannot be read.
    """
    if isinstance(assign, Assignment) and not any(
        same_person(annotator, who) for who in assign.annotators
    ):
        # A name with a typing error would have nothing to do, and look as if all was done.
        one_of("annotator", annotator, assign.annotators)
    if isinstance(traces, ReviewQueue) and assign is None:
        share = traces.share_of(annotator)
        return Work({i: share.infos[i] for i in share.trace_ids}, share.batches)
    if traces is None and isinstance(assign, Assignment):
        infos = store.trace_infos(assign.trace_ids, experiment=experiment)
        infos = {i: infos[i] for i in assign.trace_ids if i in infos}
    else:
        found = store.fetch_traces(
            traces, spans=False, experiment=experiment, missing_ok=missing_ok
        )
        infos = {trace.info.trace_id: trace.info for trace in found}
    if assign is None:
        return Work(infos, is_share=False)
    if not isinstance(assign, Assignment):
        return Work({i: infos[i] for i in assign(list(infos)) if i in infos})
    own = [i for i in infos if any(same_person(annotator, who) for who in assign.annotators_of(i))]
    return Work({i: infos[i] for i in own}, {i: assign.batch_of(i) for i in own})
