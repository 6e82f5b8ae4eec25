"""Consensus: several annotators' labels on one trace become one.

Each annotator has one vote; abstentions and labels off the scale have none. Where a trace was
adjudicated, the decision replaces the consensus, and the labels remain the votes.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from workbench.errors import PairingError, ScaleError
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

    ``outside`` counts labels off the scale; ``decided_by`` is who adjudicated, if anybody did.
    """

    value: Any = None
    rationale: str = ""
    votes: dict[str, Any] = field(default_factory=dict)
    blind: bool = True
    fault: str | None = None
    outside: int = 0
    decided_by: str | None = None


# -- the rules: each returns the consensus and None, or None and why there is none -----------


def majority(votes: Sequence[Vote], ties: str) -> tuple[Any, str | None]:
    """The value with more votes than any other.

    Of values that tie for most votes, ``ties="latest"`` takes the one voted for last;
    ``ties="drop"`` takes none; ``ties="error"`` raises `PairingError`.
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
    """The value that all votes are for."""
    first = votes[0][1]
    if any(value != first for _, value in votes):
        return None, "annotators are not unanimous"
    return first, None


def latest(votes: Sequence[Vote]) -> tuple[Any, str | None]:
    """The value voted for last."""
    return votes[-1][1], None


# -- reading the labels of a trace ----------------------------------------------------------


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
    read = HumanLabel(votes={one.annotator: v for one, v in votes}, outside=len(off_scale))
    if decision is not None and consensus in RULES:
        return _decided(read, labels, scale, decision)
    counting = {label.annotator for label in labels}
    if consensus not in RULES:
        counting &= {consensus}
    counted = [(one, v) for one, v in votes if v is not ABSTAIN and one.annotator in counting]
    if not counted:
        return replace(read, fault=_why_no_vote(labels, counting, off_scale, consensus))
    if consensus == "majority":
        value, fault = majority(counted, ties)
    else:
        value, fault = (unanimous if consensus == "unanimous" else latest)(counted)
    if fault:
        return replace(read, fault=fault)
    winners = [label for label, vote in counted if vote == value]
    blind = not any(label.after_verdict for label in winners)
    return replace(read, value=value, rationale=_join_rationales(winners), blind=blind)


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


def _decided(
    read: HumanLabel, labels: Sequence[Label], scale: Scale, decision: Decision
) -> HumanLabel:
    read = replace(read, decided_by=decision.by)
    try:
        value = scale.normalise(decision.value)
    except ScaleError as error:
        return replace(read, fault=f"decision outside the scale: {error}")
    if value is ABSTAIN:
        return replace(read, fault="adjudicated as one that cannot be judged")
    rationale = (decision.rationale or "").strip() or _join_rationales(
        [label for label in labels if read.votes.get(label.annotator) == value]
    )
    return replace(read, value=value, rationale=rationale, blind=not decision.after_verdict)


def _why_no_vote(
    labels: Sequence[Label], counting: set[str], off_scale: Mapping[str, ScaleError], consensus: str
) -> str:
    if not counting:
        return f"no label by {consensus}" if labels else "no label"
    errors = [error for who, error in off_scale.items() if who in counting]
    return f"label outside the scale: {errors[0]}" if errors else "annotators abstained"


def _join_rationales(labels: Sequence[Label]) -> str:
    texts = [(label.rationale or "").strip() for label in labels]
    return " / ".join(dict.fromkeys(text for text in texts if text))


# -- what the traces hold -------------------------------------------------------------------


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


# -- what a reader should know --------------------------------------------------------------


def label_notes(
    name: str,
    human: Mapping[str, HumanLabel],
    scale: Scale,
    near: Mapping[str, int],
) -> list[str]:
    """What a reader should know of the labels; `ScaleError` when none lies on the scale."""
    notes = []
    decided = sum(one.decided_by is not None for one in human.values())
    if decided:
        notes.append(f"On {decided} traces an adjudicator's decision takes the votes' place.")
    outside = [one for one in human.values() if one.outside]
    if outside and not any(one.votes for one in human.values()):
        raise ScaleError(
            f"No label under {name!r} lies on the judge's scale. First: {outside[0].fault}. Give "
            "the judge a feedback_value_type that fits, or pass scale=."
        )
    if outside:
        notes.append(
            f"{sum(one.outside for one in outside)} labels on {len(outside)} traces lie "
            f"outside the scale and have no vote. Allowed: {scale.describe()}."
        )
    notes += [
        f"{count} labels are stored under {other!r}, which is not {name!r}; they are not counted. "
        f"Log them again under {name!r} if they belong here."
        for other, count in near.items()
    ]
    return notes


def no_labels_message(name: str, traces: int, near: Mapping[str, int]) -> str:
    message = f"No human label is stored under {name!r} on {traces} traces."
    log = f"workbench.log_labels(table, name={name!r}, ...)"
    if near:
        found = ", ".join(f"{other!r} ({count} labels)" for other, count in near.items())
        return (
            f"{message} Names match exactly; found: {found}. Name the judge so, or log the labels "
            f"again under {name!r} with {log}."
        )
    return (
        f"{message} Log them with {log}, with mlflow.log_feedback(name={name!r}, ...) from a HUMAN "
        "source, or in MLflow's own page."
    )
