"""Several annotators' labels on one trace become one: the rules of consensus.

One label an annotator counts; abstentions have no vote, and neither has a label off the scale.
Where someone has adjudicated a trace, the decision stands and the labels remain the votes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from workbench.errors import PairingError, ScaleError, one_of
from workbench.scale import ABSTAIN, Scale
from workbench.store.labels import Decision, Label, decision_records, label_records

if TYPE_CHECKING:
    from mlflow.entities import Trace


RULES = ("majority", "unanimous", "latest")


@dataclass(frozen=True)
class HumanLabel:
    """The consensus of one trace's labels; ``fault`` says why there is none.

    ``outside`` counts labels that lie off the scale, which have no vote. ``decided_by`` is who
    adjudicated the trace, None where its votes made the consensus.
    """

    value: Any = None
    rationale: str = ""
    votes: dict[str, Any] = field(default_factory=dict)
    blind: bool = True
    fault: str | None = None
    outside: int = 0
    decided_by: str | None = None


def labels_by_trace(traces: Sequence[Trace], name: str) -> dict[str, list[Label]]:
    """The valid labels under ``name``, one an annotator, by trace."""
    by_trace: dict[str, list[Label]] = defaultdict(list)
    for label in label_records(traces, name):
        by_trace[label.trace_id].append(label)
    return dict(by_trace)


def decisions_by_trace(traces: Sequence[Trace], name: str) -> dict[str, Decision]:
    """The decisions that stand under ``name``, by trace."""
    return {one.trace_id: one for one in decision_records(traces, name)}


def read_label(
    labels: Sequence[Label],
    scale: Scale,
    consensus: str,
    ties: str,
    decision: Decision | None = None,
) -> HumanLabel:
    """The consensus of one trace's labels (see `pair` for ``consensus`` and ``ties``).

    A ``decision`` takes the place of what the rule makes of the votes, but not of what a named
    annotator says.
    """
    if decision is not None and consensus in RULES:
        return _decided(labels, scale, decision)
    if not labels:
        return HumanLabel(fault="no label")
    votes: dict[str, Any] = {}
    on_scale: list[tuple[Label, Any]] = []
    outside: dict[str, ScaleError] = {}
    for label in sorted(labels, key=lambda one: (one.created_ms, one.annotator)):
        try:
            value = scale.normalise(label.value)
        except ScaleError as error:
            outside[label.annotator] = error
            continue
        votes[label.annotator] = value
        if value is not ABSTAIN and consensus in (*RULES, label.annotator):
            on_scale.append((label, value))
    if not on_scale:
        asked = [error for who, error in outside.items() if consensus in (*RULES, who)]
        reason = f"label outside the scale: {asked[0]}" if asked else "annotators abstained"
        if consensus not in RULES and consensus not in {label.annotator for label in labels}:
            reason = f"no label by {consensus}"
        return HumanLabel(votes=votes, fault=reason, outside=len(outside))
    value, fault = _consensus(on_scale, consensus, ties)
    if fault:
        return HumanLabel(votes=votes, fault=fault, outside=len(outside))
    agreeing = [label for label, vote in on_scale if vote == value]
    given = [(label.rationale or "").strip() for label in agreeing]
    rationales = [rationale for rationale in given if rationale]
    return HumanLabel(
        value=value,
        rationale=" / ".join(dict.fromkeys(rationales)),
        votes=votes,
        blind=all(not label.after_verdict for label in agreeing),
        outside=len(outside),
    )


def _decided(labels: Sequence[Label], scale: Scale, decision: Decision) -> HumanLabel:
    # The votes are read as ever; whatever the rule would make of them, the decision stands.
    votes = read_label(labels, scale, "latest", "latest")
    decided = HumanLabel(votes=votes.votes, outside=votes.outside, decided_by=decision.by)
    try:
        value = scale.normalise(decision.value)
    except ScaleError as error:
        return replace(decided, fault=f"decision outside the scale: {error}")
    if value is ABSTAIN:
        return replace(decided, fault="adjudicated as one that cannot be judged")
    given = [decision.rationale or ""]
    if not given[0].strip():
        given = [x.rationale or "" for x in labels if votes.votes.get(x.annotator) == value]
    rationales = [text.strip() for text in given if text.strip()]
    return replace(
        decided,
        value=value,
        rationale=" / ".join(dict.fromkeys(rationales)),
        blind=not decision.after_verdict,
    )


def _consensus(
    votes: Sequence[tuple[Label, Any]], consensus: str, ties: str
) -> tuple[Any, str | None]:
    latest = votes[-1][1]
    values = [value for _, value in votes]
    if consensus not in RULES or consensus == "latest":
        return latest, None
    if consensus == "unanimous":
        same = all(value == values[0] for value in values)
        return (latest, None) if same else (None, "annotators are not unanimous")
    counts = Counter(values).most_common()
    tied = [value for value, count in counts if count == counts[0][1]]
    if len(tied) == 1:
        return tied[0], None
    if ties == "latest":
        return next(value for value in reversed(values) if value in tied), None
    if ties == "error":
        raise PairingError(
            f"Annotators tie on trace {votes[0][0].trace_id} between "
            f"{', '.join(map(repr, tied))}. Adjudicate it, or use ties='drop' or ties='latest'."
        )
    return None, "annotators tie"


def check_consensus(consensus: str, by_trace: Mapping[str, Sequence[Label]]) -> None:
    annotators = sorted({label.annotator for labels in by_trace.values() for label in labels})
    one_of("consensus", consensus, [*RULES, *annotators])
