"""Human labels and decisions, read from traces.

A label is MLflow feedback from a HUMAN source under the judge's name, wherever it was given:
by `workbench.log_labels`, by `mlflow.log_feedback`, in a panel or in MLflow's own UI.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from mlflow.entities import Feedback, Trace

from workbench.scale import is_missing
from workbench.store.assessments import DECISION_KEY, RUBRIC_KEY, is_after_verdict


def same_person(one: str, other: str) -> bool:
    """Whether two names are one person's: "Ben" in the notebook is "ben" in MLflow's page."""
    return folded(one) == folded(other)


@dataclass(frozen=True)
class Label:
    """One annotator's label of one trace, the value as it was given.

    ``rubric_version`` is that of the rubric it was made under, None where it was not recorded.
    """

    trace_id: str
    annotator: str
    value: Any
    rationale: str | None
    created_ms: int
    after_verdict: bool
    rubric_version: int | None = None
    assessment_id: str = field(default="", compare=False)


@dataclass(frozen=True)
class Decision:
    """What an adjudicator decided about one trace; the labels stay beside it.

    ``rubric_version`` is that of the rubric it was made under, None where it was not recorded.
    """

    trace_id: str
    by: str
    value: Any
    rationale: str | None
    created_ms: int
    after_verdict: bool = False
    rubric_version: int | None = None


def label_records(traces: Iterable[Trace], name: str) -> list[Label]:
    """Return the labels that count, at most one a trace and annotator, in order of the traces.

    Only feedback under exactly ``name`` counts, unless it was overridden or holds no value. Of
    several by one annotator the latest counts, except that a label given after its author saw the
    verdict never replaces one given blind, not even by overriding it.
    """
    return _records(traces, name, _rank)


def latest_records(traces: Iterable[Trace], name: str) -> list[Label]:
    """Return each annotator's latest label of each trace, given blind or after the verdict."""
    return _records(traces, name, lambda feedback: _rank(feedback)[1:])


def folded(name: str) -> str:
    """Return a person's name as it is compared: MLflow's page keeps names in small letters."""
    return str(name).strip().casefold()


def _records(traces: Iterable[Trace], name: str, rank: Callable[[Feedback], Any]) -> list[Label]:
    """Return, of each annotator's feedback that counts on a trace, the one of highest rank."""
    records = []
    for trace in traces:
        given = [f for f in _human_feedback(trace) if f.name == name]
        given = [f for f in given if not _is_decision(f, given)]
        chosen: dict[str, Feedback] = {}
        for feedback in sorted(given, key=rank):
            if _counts(feedback, given):
                chosen[_annotator(feedback)] = feedback
        records += [
            Label(
                trace_id=trace.info.trace_id,
                annotator=annotator,
                value=feedback.value,
                rationale=feedback.rationale or None,
                created_ms=int(feedback.create_time_ms or 0),
                after_verdict=is_after_verdict(feedback),
                rubric_version=_rubric_version(feedback),
                assessment_id=feedback.assessment_id or "",
            )
            for annotator, feedback in sorted(chosen.items())
        ]
    return records


def decision_records(traces: Iterable[Trace], name: str) -> list[Decision]:
    """Return the valid decisions, at most one a trace: the latest, whoever made it."""
    records = []
    for trace in traces:
        valid = [f for f in decision_feedback(trace, name) if f.valid is not False]
        if valid:
            latest = valid[-1]
            records.append(
                Decision(
                    trace_id=trace.info.trace_id,
                    by=_annotator(latest),
                    value=latest.value,
                    rationale=latest.rationale or None,
                    created_ms=int(latest.create_time_ms or 0),
                    after_verdict=is_after_verdict(latest),
                    rubric_version=_rubric_version(latest),
                )
            )
    return records


def decision_feedback(trace: Trace, name: str) -> list[Feedback]:
    """Return all decisions about a trace, overridden ones too, the latest last."""
    given = [f for f in _human_feedback(trace) if f.name == name]
    made = [f for f in given if _is_decision(f, given) and _holds_a_value(f)]
    return sorted(made, key=lambda f: (f.create_time_ms or 0, f.assessment_id or ""))


def near_misses(traces: Iterable[Trace], name: str) -> dict[str, int]:
    """Return names close to ``name`` under which there is valid human feedback, and how much.

    Close are names that differ by case, space, dash or underscore, and those that look alike.
    """
    counts = Counter(
        feedback.name
        for trace in traces
        for feedback in _human_feedback(trace)
        if feedback.valid is not False and feedback.name != name
    )
    wanted = _folded(name)
    return {
        other: count
        for other, count in counts.most_common()
        if _folded(other) == wanted
        or difflib.SequenceMatcher(None, _folded(other), wanted).ratio() >= 0.75
    }


def _human_feedback(trace: Trace) -> Iterator[Feedback]:
    for assessment in trace.info.assessments:
        if isinstance(assessment, Feedback) and assessment.source.source_type == "HUMAN":
            yield assessment


def _counts(feedback: Feedback, given: list[Feedback]) -> bool:
    if not _holds_a_value(feedback):
        return False
    if feedback.valid is not False:
        return True
    # Overridden: it still counts if it was given blind and changed after seeing the verdict.
    newer = [f for f in given if f.overrides and f.overrides == feedback.assessment_id]
    return (
        bool(newer)
        and not is_after_verdict(feedback)
        and all(is_after_verdict(f) and _annotator(f) == _annotator(feedback) for f in newer)
    )


def _rank(feedback: Feedback) -> tuple[bool, int, str]:
    """Orders the feedback of one annotator: blind over not, later over earlier, then by id."""
    return (
        not is_after_verdict(feedback),
        int(feedback.create_time_ms or 0),
        feedback.assessment_id or "",
    )


def _holds_a_value(feedback: Feedback) -> bool:
    return feedback.feedback.error is None and not is_missing(feedback.value)


def _is_decision(feedback: Feedback, given: list[Feedback]) -> bool:
    """Whether it is marked as a decision, or is what overrode one in MLflow's own page."""
    by_id = {f.assessment_id: f for f in given if f.assessment_id}
    seen: set[str] = set()
    one: Feedback | None = feedback
    while one is not None:
        if str((one.metadata or {}).get(DECISION_KEY, "")).lower() == "true":
            return True
        if not one.overrides or one.overrides in seen:
            return False
        seen.add(one.overrides)
        one = by_id.get(one.overrides)
    return False


def _rubric_version(feedback: Feedback) -> int | None:
    text = str((feedback.metadata or {}).get(RUBRIC_KEY, ""))
    return int(text) if text.isdecimal() else None


def _annotator(feedback: Feedback) -> str:
    return feedback.source.source_id or "default"


def _folded(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name).casefold()
