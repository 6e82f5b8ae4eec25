"""Where people differ, and what was decided about it.

A decision is human feedback beside the labels, marked in its metadata (`DECISION_KEY`). It is
nobody's label: `workbench.pair` takes it for the consensus, and the labels stay as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import pandas as pd
from mlflow.entities import AssessmentSource, Feedback, Trace
from mlflow.genai.judges import Judge

from workbench.errors import ScaleError
from workbench.formatting import check_text, excerpt, html_table, text_table
from workbench.pairing.consensus import read_votes
from workbench.pairing.joining import labels_and_decisions
from workbench.scale import ABSTAIN, Scale
from workbench.store.assessments import (
    assessment_id,
    log_assessments,
    make_feedback,
    now_ms,
    signature,
)
from workbench.store.labels import (
    AFTER_VERDICT_KEY,
    DECISION_KEY,
    RUBRIC_KEY,
    Decision,
    Label,
    decision_feedback,
    decision_records,
    has_mark,
    name_of,
)
from workbench.store.schemas import known_scale, rubric_history, schema_scale
from workbench.store.tables import read_rating
from workbench.store.traces import fetch_traces, previews
from workbench.vocabulary import is_missing


class Difference(NamedTuple):
    """A trace on which annotators differ, and by how much at most."""

    trace_id: str
    labels: list[Label]
    distance: float
    decision: Decision | None  # None while it is open


class Disagreements(pd.DataFrame):
    """A table by ``trace_id`` that shows content first and a short id last, text to the left."""

    @property
    def _constructor(self) -> Any:
        return Disagreements

    def _shown(self) -> pd.DataFrame:
        shown = pd.DataFrame(self).dropna(axis=1, how="all").astype(object).fillna("")
        if shown.columns.nlevels > 1:
            shown.columns = [" ".join(name).removeprefix("item ").strip() for name in shown.columns]
        return shown.assign(trace=[f"{trace_id[:11]}…" for trace_id in map(str, self.index)])

    def __repr__(self) -> str:
        return text_table(self._shown(), max_rows=10)

    def _repr_html_(self) -> str:
        return html_table(self._shown(), index=False, max_rows=20)


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
    judge_or_name, traces, scale
        As for `workbench.pair`; where nothing tells the scale, it is that of the labels.
    decided
        Whether traces that were decided on are listed too.

    Returns
    -------
    DataFrame
        One row a trace, index ``trace_id``; open ones first, of these the farthest apart. The
        columns have two levels: ``item`` with the beginnings of ``inputs`` and ``outputs``,
        ``label`` and ``rationale`` with a column each annotator (None where one gave none),
        ``distance`` in (0, 1], and ``decision`` with ``value``, ``by`` and ``rationale``.
    """
    fetched = fetch_traces(traces, spans=False)
    every = differences(judge_or_name, fetched, scale=scale)
    found = [one for one in every if decided or one.decision is None]
    texts = previews(fetched)
    given = [{label.annotator: label for label in one.labels} for one in found]
    columns: dict[tuple[str, str], list[Any]] = {
        ("item", side): [excerpt(texts[one.trace_id][k]) for one in found]
        for k, side in enumerate(("inputs", "outputs"))
    }
    columns |= {
        (title, who): [getattr(labels.get(who), attribute, None) for labels in given]
        for title, attribute in (("label", "value"), ("rationale", "rationale"))
        for who in sorted(set().union(*given))
    }
    columns["distance", ""] = [one.distance for one in found]
    for what in ("value", "by", "rationale"):
        columns["decision", what] = [getattr(one.decision, what, None) for one in found]
    index = pd.Index([one.trace_id for one in found], name="trace_id")
    return Disagreements(columns, index=index, dtype=object)


def differences(
    judge_or_name: Judge | str, traces: Sequence[Trace], *, scale: Scale | None = None
) -> list[Difference]:
    """Return the traces on which annotators differ (see `disagreements` for the order)."""
    scale = scale or known_scale(judge_or_name, traces)
    if scale is None:  # fewer than two values, on which nobody can differ
        return []
    given, decisions = labels_and_decisions(traces, name_of(judge_or_name))
    found = []
    for trace_id, labels in given.items():
        values = [value for _, value in read_votes(labels, scale)[0] if value is not ABSTAIN]
        distance = max((scale.distance(a, b) for a in values for b in values), default=0.0)
        if distance > 0:
            found.append(Difference(trace_id, labels, distance, decisions.get(trace_id)))
    return sorted(found, key=lambda one: (one.decision is not None, -one.distance))


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
    """Record what was decided about a trace, by whom and why.

    `workbench.pair` takes the decision in place of the consensus; the labels stay. The same
    decision under the same rubric writes nothing; any other one overrides the earlier.

    Parameters
    ----------
    value
        A value of the scale, or ``"N/A"`` for a trace that cannot be judged and makes no pair.
    name, by
        The name under which the labels are stored, exactly; and who decided, which may be one of
        the annotators.
    scale
        The rating scale; by default that of MLflow's label schema of this name, and where there
        is none any value that can be stored.
    after_verdict
        True where the one who decided had seen the judge's verdict.

    Raises
    ------
    ArgumentError, StoreError
        For empty names, and a value that cannot be stored or lies off the scale; for an unknown
        trace, or when the store does not take the decision.
    """
    for argument, text in (("name", name), ("by", by), ("trace_id", trace_id)):
        check_text(argument, text)
    if is_missing(value):
        raise ScaleError(f"value={value!r} is missing; 'N/A' says that it cannot be judged.")
    (trace,) = fetch_traces([trace_id], spans=False)
    where = trace.info.experiment_id
    scale = scale or schema_scale(name, experiment=where)
    try:
        value, rationale = read_rating(value, rationale)
        if scale is not None:
            scale.normalise(value)
    except ValueError as error:
        raise ScaleError(f"value={value!r} cannot be decided on: {error}") from None
    rubric = rubric_history(name, experiment=where).current
    given: Any = {"name": name, "by": by, "rationale": rationale, "after_verdict": after_verdict}
    made = new_decision(trace, value, rubric_version=rubric.version if rubric else None, **given)
    if made is not None:
        log_assessments([made], progress=False)
    return decision_records(fetch_traces([trace_id], spans=False), name)[0]


def new_decision(
    trace: Trace,
    value: Any,
    *,
    name: str,
    by: str,
    rationale: str | None = None,
    after_verdict: bool = False,
    rubric_version: int | None = None,
) -> Feedback | None:
    """Return the assessment that records a decision; None where it is the current one already."""
    trace_id = trace.info.trace_id
    earlier = decision_feedback(trace, name)
    metadata = {DECISION_KEY: "true"}
    if after_verdict:
        metadata[AFTER_VERDICT_KEY] = "true"
    if rubric_version is not None:
        metadata[RUBRIC_KEY] = str(rubric_version)
    # Later than all before it, whatever the clocks say.
    at_ms = max([now_ms(), *((one.create_time_ms or 0) + 1 for one in earlier)])
    source, why = AssessmentSource("HUMAN", by), (rationale or "").strip()
    made = make_feedback(trace_id, name, value, source, why, metadata=metadata, at_ms=at_ms)
    for current in [one for one in earlier if one.valid is not False][-1:]:
        rubrics = [str((one.metadata or {}).get(RUBRIC_KEY) or 0) for one in (current, made)]
        # That the verdict had been seen is not taken back.
        same = rubrics[0] == rubrics[1] and after_verdict <= has_mark(current, AFTER_VERDICT_KEY)
        if same and signature(current) == signature(made):
            return None
        made.overrides = current.assessment_id
    # Its own kind of id: the same person's label may have the same content.
    made.assessment_id = assessment_id("decision", trace_id, *signature(made), len(earlier))
    return made
