"""Where people differ, and what was decided about it.

A decision is an assessment beside the labels, which stay as they are: human feedback under the
same name by the one who decided, marked in its metadata (`workbench.feedback.DECISION_KEY`). It is
nobody's label, so agreement among annotators does not count it; `workbench.pair` takes it for what
people say about the trace.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from workbench.errors import ArgumentError, ScaleError, StoreError
from workbench.scale import ABSTAIN, Scale
from workbench.store.assessments import (
    AFTER_VERDICT_KEY,
    DECISION_KEY,
    log_assessments,
    make_feedback,
    now_ms,
    signature,
)
from workbench.store.cells import rating_problem
from workbench.store.labels import (
    Decision,
    Label,
    decision_feedback,
    decision_records,
    label_records,
)
from workbench.store.schemas import scale_of_question, schema_scale
from workbench.store.traces import fetch_traces

if TYPE_CHECKING:
    from mlflow.entities import Feedback, Trace
    from mlflow.genai.judges import Judge


VOTES_KEY: Final = "workbench.decided_on"
"""Metadata key of a decision: the labels that were there, JSON of annotator -> value."""


@dataclass(frozen=True)
class Difference:
    """A trace on which annotators differ.

    Attributes
    ----------
    trace_id
        Which.
    labels
        All labels on it, by annotator: also those that abstain or lie off the scale.
    votes
        Annotator -> canonical value of those that lie on the scale, `ABSTAIN` for abstentions.
    distance
        The largest distance between two votes on the scale, in (0, 1].
    decision
        What was decided; None while it is open.
    """

    trace_id: str
    labels: tuple[Label, ...]
    votes: dict[str, Any] = field(default_factory=dict)
    distance: float = 1.0
    decision: Decision | None = None


def disagreements(
    judge_or_name: Judge | str,
    traces: Any = None,
    *,
    scale: Scale | None = None,
    decided: bool = True,
) -> pd.DataFrame:
    """The traces on which annotators differ, their labels and reasons side by side.

    Two annotators differ where their labels are different values of the scale; one who abstains
    differs from nobody.

    Parameters
    ----------
    judge_or_name
        The judge or its name, under which the labels are stored.
    traces
        None (the active experiment), traces, trace ids, or an MLflow filter string.
    scale
        The rating scale; by default the judge's, else that of MLflow's label schema of this
        name, else that of the labels.
    decided
        Whether traces that were decided on are listed too.

    Returns
    -------
    DataFrame
        One row a trace, index ``trace_id``; open ones first, of these those on which people lie
        farthest apart. The columns have two levels: ``label`` and ``rationale`` with a column
        each annotator, ``distance`` in (0, 1], and ``decision`` with ``value``, ``by`` and
        ``rationale``. ``table["label"]`` is a table of the labels alone. None where an annotator
        gave none.

    Examples
    --------
    >>> workbench.disagreements("answer_quality")["label"]  # doctest: +SKIP
    """
    found = differences(judge_or_name, fetch_traces(traces, spans=False), scale=scale)
    found = [one for one in found if decided or one.decision is None]
    annotators = sorted({label.annotator for one in found for label in one.labels})
    columns = [
        *(("label", who) for who in annotators),
        *(("rationale", who) for who in annotators),
        ("distance", ""),
        *(("decision", what) for what in ("value", "by", "rationale")),
    ]
    rows = []
    for one in found:
        by = {label.annotator: label for label in one.labels}
        given = [by.get(who) for who in annotators]
        made = one.decision
        rows.append(
            [
                *(label.value if label else None for label in given),
                *(label.rationale if label else None for label in given),
                one.distance,
                *((made.value, made.by, made.rationale) if made else (None, None, None)),
            ]
        )
    return pd.DataFrame(
        rows,
        columns=pd.MultiIndex.from_tuples(columns),
        index=pd.Index([one.trace_id for one in found], name="trace_id"),
        dtype=object,
    )


def differences(
    judge_or_name: Judge | str, traces: Sequence[Trace], *, scale: Scale | None = None
) -> list[Difference]:
    """The traces on which annotators differ (see `disagreements` for the order and the rest)."""
    name = judge_or_name if isinstance(judge_or_name, str) else judge_or_name.name
    labels: dict[str, list[Label]] = {}
    for label in label_records(traces, name):
        labels.setdefault(label.trace_id, []).append(label)
    scale = scale or told_scale(judge_or_name, traces)
    if scale is None:
        return []
    decisions = {one.trace_id: one for one in decision_records(traces, name)}
    found = []
    for trace_id, given in labels.items():
        votes = _votes(given, scale)
        values = [value for value in votes.values() if value is not ABSTAIN]
        distance = max((scale.distance(a, b) for a in values for b in values), default=0.0)
        if distance > 0:
            decision = decisions.get(trace_id)
            found.append(Difference(trace_id, tuple(given), votes, distance, decision))
    return sorted(found, key=lambda one: (one.decision is not None, -one.distance))


def told_scale(judge_or_name: Judge | str, traces: Sequence[Trace]) -> Scale | None:
    """The scale of the judge, of its label schema or of the labels; None for fewer than two
    values, on which nobody can differ."""
    name = judge_or_name if isinstance(judge_or_name, str) else judge_or_name.name
    experiments = {trace.info.experiment_id for trace in traces}
    where = experiments.pop() if len(experiments) == 1 else None
    scale = scale_of_question(judge_or_name, experiment=where)
    if scale is not None:
        return scale
    try:
        return Scale.from_values(label.value for label in label_records(traces, name))
    except ScaleError:
        return None


def adjudicate(
    trace_id: str,
    value: Any,
    *,
    name: str,
    by: str,
    rationale: str | None = None,
    scale: Scale | None = None,
    after_verdict: bool = False,
) -> Decision:
    """Record what was decided about a trace, and by whom.

    The labels stay. `workbench.pair` takes the decision in place of the consensus. The same
    decision again writes nothing; another one takes the place of the earlier, which stays in
    the store, marked as overridden.

    Parameters
    ----------
    trace_id
        The trace.
    value
        The decision: a value of the scale, or an abstention such as ``"N/A"`` for a trace that
        cannot be judged, which then makes no pair.
    name
        The name under which the labels are stored, exactly.
    by
        Who decided. It may be one of the annotators, whose own label stays as it is.
    rationale
        Why.
    scale
        The rating scale that the value must lie on; by default that of MLflow's label schema of
        this name, and where there is none any value that can be stored.
    after_verdict
        True where the one who decided had seen the judge's verdict.

    Raises
    ------
    ArgumentError
        For empty names and for a value that cannot be stored; `ScaleError` for one off the scale.
    StoreError
        For an unknown trace, or when the store does not take the decision.
    """
    for argument, given in (("name", name), ("by", by)):
        if not isinstance(given, str) or not given.strip():
            raise ArgumentError(f"{argument}={given!r} must be a non-empty text.")
    if not isinstance(trace_id, str):
        raise ArgumentError(f"trace_id={trace_id!r} must be one trace's id.")
    (trace,) = fetch_traces([trace_id], spans=False)
    scale = scale or schema_scale(name, experiment=trace.info.experiment_id)
    if problem := rating_problem(value, rationale, scale):
        raise ScaleError(f"value={value!r} cannot be decided on: {problem}")
    made = new_decision(
        trace, value, name=name, by=by, rationale=rationale, after_verdict=after_verdict
    )
    if made is not None:
        log_assessments([made], progress=False)
    (now,) = fetch_traces([trace_id], spans=False)
    recorded = decision_records([now], name)
    if not recorded:  # pragma: no cover - only if someone deletes it in between
        raise StoreError(f"The decision on {trace_id} was written, but is not there any more.")
    return recorded[0]


def new_decision(
    trace: Trace,
    value: Any,
    *,
    name: str,
    by: str,
    rationale: str | None = None,
    after_verdict: bool = False,
) -> Feedback | None:
    """The assessment that records a decision; None where it is what stands already."""
    trace_id = trace.info.trace_id
    earlier = decision_feedback(trace, name)
    standing = next((one for one in reversed(earlier) if one.valid is not False), None)
    metadata = {
        DECISION_KEY: "true",
        VOTES_KEY: json.dumps(_said(label_records([trace], name)), default=str),
        **({AFTER_VERDICT_KEY: "true"} if after_verdict else {}),
    }
    made = make_feedback(
        trace_id,
        name,
        value,
        source_type="HUMAN",
        source_id=by,
        # A rationale of blanks says nothing.
        rationale=(rationale or "").strip() or None,
        metadata=metadata,
        # Later than all before it, whatever the clocks say.
        create_time_ms=max([now_ms(), *((one.create_time_ms or 0) + 1 for one in earlier)]),
    )
    if standing is not None:
        if signature(standing) == signature(made):
            return None
        made.overrides = standing.assessment_id
    # Its own kind of id: a label of the same person may say the same.
    said = json.dumps(["decision", trace_id, *signature(made), len(earlier)])
    made.assessment_id = f"a-{hashlib.sha256(said.encode()).hexdigest()[:32]}"
    return made


def _said(labels: Sequence[Label]) -> dict[str, Any]:
    return {label.annotator: label.value for label in labels}


def _votes(labels: Sequence[Label], scale: Scale) -> dict[str, Any]:
    votes = {}
    for label in labels:
        try:
            votes[label.annotator] = scale.normalise(label.value)
        except ScaleError:
            continue
    return votes
