"""Human labels and decisions, read from the assessments of traces.

A label is MLflow feedback from a HUMAN source under the judge's name, wherever it was given:
by `workbench.log_labels`, by `mlflow.log_feedback`, in a panel or in MLflow's own UI. Recorded
verdicts of a judge (`workbench.log_verdicts`) differ from labels in their source only.
"""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final

from mlflow.entities import Assessment, Feedback, Trace
from mlflow.genai.judges import Judge

from workbench.errors import ArgumentError
from workbench.formatting import counted
from workbench.vocabulary import folded, is_missing, revealed

AFTER_VERDICT_KEY: Final = "workbench.after_verdict"
"""Metadata key, ``"true"`` on a label whose author had seen the judge's verdict."""

RUBRIC_KEY: Final = "workbench.rubric_version"
"""Metadata key: the version of the rubric under which a label or decision was made, as digits."""

DECISION_KEY: Final = "workbench.decision"
"""Metadata key, ``"true"`` on the decision of an adjudicator, which is no annotator's label."""


def name_of(judge_or_name: Judge | str) -> str:
    """Return the name under which verdicts and labels are stored."""
    name = getattr(judge_or_name, "name", judge_or_name)
    if not isinstance(name, str):
        raise ArgumentError(
            f"judge_or_name is a {type(judge_or_name).__name__}. Give a judge or its name."
        )
    return name


def in_order(assessments: Iterable[Assessment]) -> list[Assessment]:
    """Return assessments in the order in which they were given, whatever that of their arrival."""
    return sorted(assessments, key=lambda one: (one.create_time_ms or 0, one.assessment_id or ""))


def has_mark(assessment: Assessment, key: str) -> bool:
    """Whether the metadata has ``"true"`` under a key such as `AFTER_VERDICT_KEY`."""
    return str((assessment.metadata or {}).get(key, "")).lower() == "true"


@dataclass(frozen=True)
class Label:
    """One annotator's label of one trace, the value as it was given."""

    trace_id: str
    annotator: str
    value: Any
    rationale: str | None
    created_ms: int
    after_verdict: bool
    rubric_version: int | None = None  # None where it was not recorded
    assessment_id: str = field(default="", compare=False)
    metadata: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)


class Decision(Label):
    """What an adjudicator decided about one trace; the labels stay beside it."""

    @property
    def by(self) -> str:
        """Who decided."""
        return self.annotator


def same_person(one: str, other: str) -> bool:
    """Whether two names are one person's: "Ben" in the notebook is "ben" in MLflow's page."""
    return folded(one) == folded(other)


def label_records(traces: Iterable[Trace], name: str, *, latest: bool = False) -> list[Label]:
    """Return the labels that count, at most one a trace and annotator, in order of the traces.

    Only feedback under exactly ``name`` counts, unless it was overridden or holds no value. Of
    several by one annotator the latest counts, except that a label given after its author saw the
    verdict never replaces one given blind, not even by overriding it; with ``latest`` it does.
    Writings of a name that are one person's give one annotator, by the most frequent of them.
    """
    records: list[Label] = []
    for trace in traces:
        given = [one for one, decides in _given(trace, name) if not decides]
        labels = [_record(trace, one) for one in given if _counts(one, given)]
        # The one that counts comes last of an annotator's.
        labels.sort(key=lambda a: (not (latest or a.after_verdict), a.created_ms, a.annotator))
        chosen = {folded(label.annotator): label for label in labels}
        records += [label for _, label in sorted(chosen.items())]
    writings = sorted(Counter(label.annotator for label in records).items())
    names = {folded(name): name for name, _ in sorted(writings, key=lambda each: each[1])}
    return [replace(label, annotator=names[folded(label.annotator)]) for label in records]


def decision_records(traces: Iterable[Trace], name: str) -> list[Decision]:
    """Return the valid decisions, at most one a trace: the latest, whoever made it."""
    records = []
    for trace in traces:
        valid = [one for one in decision_feedback(trace, name) if one.valid is not False]
        records += [Decision(**vars(_record(trace, one))) for one in valid[-1:]]
    return records


def decision_feedback(trace: Trace, name: str) -> list[Feedback]:
    """Return all decisions about a trace, overridden ones too, the latest last."""
    return [one for one, decides in _given(trace, name) if decides]


def near_misses(traces: Iterable[Trace], name: str) -> list[str]:
    """Return what to say of valid labels under names that only look like ``name``."""

    def letters(text: str) -> str:
        return re.sub(r"[\s_\-]+", "", folded(text))

    valid = [one for trace in traces for one in _human(trace) if one.valid is not False]
    counts = Counter(one.name for one in valid if one.name != name)
    return [
        f"{counted(count, 'label')} {'is' if count == 1 else 'are'} stored under "
        f"'{revealed(other)}', which is not '{revealed(name)}', and not counted. "
        f"Name the judge so, or log them again: workbench.log_labels(table, name={name!r}, ...)."
        for other, count in counts.most_common()
        if difflib.SequenceMatcher(None, letters(other), letters(name)).ratio() >= 0.75
    ]


def spellings(traces: Iterable[Trace], name: str) -> list[str]:
    """Return what to say of people whose name is written in several ways."""
    found: dict[str, set[str]] = {}
    for one in [one for trace in traces for one in _human(trace) if one.name == name]:
        who = one.source.source_id or "default"
        found.setdefault(folded(who), set()).add(f"'{revealed(who)}'")
    return [
        f"{' and '.join(sorted(each))} are taken as one person, whose latest label counts."
        for each in found.values()
        if len(each) > 1
    ]


def other_kinds(traces: Iterable[Trace], name: str) -> list[str]:
    """Return what to say of assessments under the name that are no labels."""
    under = [one for trace in traces for one in trace.info.assessments if one.name == name]
    counts = Counter(map(_why_no_label, under))
    return [
        f"{count} of {len(under)} assessments under {name!r}: each {why}."
        for why, count in counts.items()
        if why
    ]


def _why_no_label(one: Assessment) -> str:
    if one.expectation is not None:
        return "is an expectation, which says what the application ought to answer"
    if one.source.source_type == "CODE":
        return (
            "has the source CODE, as mlflow.log_feedback gives without a source; a label needs "
            "source=AssessmentSource(source_type='HUMAN', source_id='who')"
        )
    empty = one.feedback.error is not None or is_missing(one.feedback.value)
    is_empty_label = one.source.source_type == "HUMAN" and empty
    return "is by a person and holds an error, or no value" if is_empty_label else ""


def _human(trace: Trace) -> list[Feedback]:
    return [
        one
        for one in trace.info.assessments
        if isinstance(one, Feedback) and one.source.source_type == "HUMAN"
    ]


def _given(trace: Trace, name: str) -> Iterator[tuple[Feedback, bool]]:
    """Yield people's feedback that holds a value, the latest last, and whether it is a decision."""
    decided: set[str | None] = set()
    for one in in_order([one for one in _human(trace) if one.name == name]):
        # MLflow's own page overrides a decision without marking what it writes.
        decides = has_mark(one, DECISION_KEY) or bool(one.overrides and one.overrides in decided)
        if decides:
            decided.add(one.assessment_id)
        if one.feedback.error is None and not is_missing(one.value):
            yield one, decides


def _record(trace: Trace, given: Feedback) -> Label:
    metadata = given.metadata or {}
    version = str(metadata.get(RUBRIC_KEY, ""))
    by_id = {one.assessment_id: one for one in trace.info.assessments if one.assessment_id}
    chain: list[Assessment] = [given]
    while (older := by_id.pop(chain[-1].overrides, None)) is not None:
        chain.append(older)
    # What overrides a verdict in MLflow's own page is given after a look at it.
    seen = (one.source.source_type != "HUMAN" or has_mark(one, AFTER_VERDICT_KEY) for one in chain)
    return Label(
        trace_id=trace.info.trace_id,
        annotator=given.source.source_id or "default",
        value=given.value,
        rationale=given.rationale or None,
        created_ms=int(given.create_time_ms or 0),
        after_verdict=any(seen),
        rubric_version=int(version) if version.isdecimal() else None,
        assessment_id=given.assessment_id,
        metadata=metadata,
    )


def _counts(label: Feedback, given: Sequence[Feedback]) -> bool:
    """Whether a label is valid, or a blind one that its author overrode knowing the verdict."""
    newer = [one for one in given if one.overrides and one.overrides == label.assessment_id]
    changes = {(one.source.source_id, has_mark(one, AFTER_VERDICT_KEY)) for one in newer}
    blind = not has_mark(label, AFTER_VERDICT_KEY)
    return label.valid is not False or (blind and changes == {(label.source.source_id, True)})
