"""Consensus: several annotators' labels on one trace become one.

Each annotator has one vote; abstentions and labels off the scale have none. Where a trace was
adjudicated, the decision replaces the consensus, and the labels remain the votes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from workbench.errors import PairingError, ScaleError, one_of
from workbench.scale import ABSTAIN, Scale
from workbench.store.labels import Decision, Label, decision_records, label_records
from workbench.store.schemas import scale_of_question

if TYPE_CHECKING:
    from mlflow.entities import Trace
    from mlflow.genai.judges import Judge


RULES = ("majority", "unanimous", "latest")

Vote = tuple[Label, Any]
"""A label with its canonical value."""


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
    """Return the valid labels under ``name``, one an annotator, by trace."""
    by_trace: dict[str, list[Label]] = defaultdict(list)
    for label in label_records(traces, name):
        by_trace[label.trace_id].append(label)
    return dict(by_trace)


def decisions_by_trace(traces: Sequence[Trace], name: str) -> dict[str, Decision]:
    """Return the latest decision under ``name``, by trace."""
    return {one.trace_id: one for one in decision_records(traces, name)}


def known_scale(judge_or_name: Judge | str, traces: Sequence[Trace]) -> Scale | None:
    """Return the scale of the judge's type, else of its label schema in the traces' experiment."""
    experiments = {trace.info.experiment_id for trace in traces}
    where = experiments.pop() if len(experiments) == 1 else None
    return scale_of_question(judge_or_name, experiment=where)


def check_consensus(consensus: str, by_trace: Mapping[str, Sequence[Label]]) -> None:
    """Raise `ArgumentError` unless it is a rule or an annotator."""
    annotators = sorted({label.annotator for labels in by_trace.values() for label in labels})
    one_of("consensus", consensus, [*RULES, *annotators])


def read_votes(labels: Sequence[Label], scale: Scale) -> tuple[list[Vote], dict[str, ScaleError]]:
    """Return the votes, the latest last, and by annotator why a label lies off the scale.

    An abstention is among the votes as `ABSTAIN`.
    """
    votes: list[Vote] = []
    off_scale: dict[str, ScaleError] = {}
    for label in sorted(labels, key=lambda one: (one.created_ms, one.annotator)):
        try:
            votes.append((label, scale.normalise(label.value)))
        except ScaleError as error:
            off_scale[label.annotator] = error
    return votes, off_scale


def read_label(
    labels: Sequence[Label],
    scale: Scale,
    consensus: str,
    ties: str,
    decision: Decision | None = None,
) -> HumanLabel:
    """Return the consensus of one trace's labels (see `pair` for ``consensus`` and ``ties``).

    A ``decision`` replaces what the rule makes of the votes, but not a named annotator's label.
    """
    votes, off_scale = read_votes(labels, scale)
    read = HumanLabel(
        votes={label.annotator: value for label, value in votes}, outside=len(off_scale)
    )
    if decision is not None and consensus in RULES:
        return _decided(read, labels, scale, decision)
    counted = [
        (label, value)
        for label, value in votes
        if value is not ABSTAIN and consensus in (*RULES, label.annotator)
    ]
    if not counted:
        return replace(read, fault=_why_no_vote(labels, off_scale, consensus))
    value, fault = _apply_rule(consensus, counted, ties)
    if fault:
        return replace(read, fault=fault)
    winners = [label for label, vote in counted if vote == value]
    return replace(
        read,
        value=value,
        rationale=_join_rationales(winners),
        blind=not any(label.after_verdict for label in winners),
    )


# -- the rules ------------------------------------------------------------------------------


def _apply_rule(consensus: str, votes: Sequence[Vote], ties: str) -> tuple[Any, str | None]:
    """Return the consensus and None, or None and why there is none."""
    if consensus == "majority":
        return majority(votes, ties)
    if consensus == "unanimous":
        return unanimous(votes)
    return votes[-1][1], None  # the latest, or the only one of a named annotator


def majority(votes: Sequence[Vote], ties: str) -> tuple[Any, str | None]:
    """Return the value with more votes than any other, and None.

    Of values that tie for most votes, ``ties="latest"`` takes the one voted for last;
    ``ties="drop"`` returns None and the reason; ``ties="error"`` raises `PairingError`.
    """
    values = [value for _, value in votes]
    counts = Counter(values)
    most = max(counts.values())
    tied = [value for value in counts if counts[value] == most]
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


def unanimous(votes: Sequence[Vote]) -> tuple[Any, str | None]:
    """Return the value that all votes are for, and None; else None and the reason."""
    values = [value for _, value in votes]
    if any(value != values[0] for value in values):
        return None, "annotators are not unanimous"
    return values[0], None


def _decided(
    read: HumanLabel, labels: Sequence[Label], scale: Scale, decision: Decision
) -> HumanLabel:
    decided = replace(read, decided_by=decision.by)
    try:
        value = scale.normalise(decision.value)
    except ScaleError as error:
        return replace(decided, fault=f"decision outside the scale: {error}")
    if value is ABSTAIN:
        return replace(decided, fault="adjudicated as one that cannot be judged")
    rationale = (decision.rationale or "").strip()
    agreeing = [label for label in labels if read.votes.get(label.annotator) == value]
    return replace(
        decided,
        value=value,
        rationale=rationale or _join_rationales(agreeing),
        blind=not decision.after_verdict,
    )


def _why_no_vote(
    labels: Sequence[Label], off_scale: Mapping[str, ScaleError], consensus: str
) -> str:
    if not labels:
        return "no label"
    if consensus not in RULES and consensus not in {label.annotator for label in labels}:
        return f"no label by {consensus}"
    errors = [error for who, error in off_scale.items() if consensus in (*RULES, who)]
    return f"label outside the scale: {errors[0]}" if errors else "annotators abstained"


def _join_rationales(labels: Sequence[Label]) -> str:
    """Return the labels' rationales, each text once."""
    texts = [(label.rationale or "").strip() for label in labels]
    return " / ".join(dict.fromkeys(text for text in texts if text))
