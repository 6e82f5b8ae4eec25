"""Consensus: several annotators' labels on one trace become one.

Each annotator has one vote; abstentions and labels off the scale have none. Where a trace was
adjudicated, the decision replaces the consensus.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from statistics import multimode
from typing import Any

from workbench.errors import PairingError, ScaleError
from workbench.scale import ABSTAIN, Scale
from workbench.store.labels import Decision, Label

RULES = ("majority", "unanimous", "latest")

Vote = tuple[Label, Any]
"""A label with its canonical value or `ABSTAIN`."""


@dataclass(frozen=True)
class HumanLabel:
    """The consensus of one trace's labels; ``fault`` says why there is none."""

    value: Any = None
    rationale: str = ""
    votes: dict[str, Any] = field(default_factory=dict)
    blind: bool = True
    fault: str | None = None
    outside: int = 0  # labels off the scale


def read_label(
    labels: Sequence[Label],
    scale: Scale,
    consensus: str,
    ties: str,
    decision: Decision | None = None,
) -> HumanLabel:
    """Return the consensus of one trace's labels, as in `pair`, or what was decided.

    A decision replaces what a rule makes of the votes, but not a named annotator's label.
    """
    votes, off_scale = read_votes(labels, scale)
    read = HumanLabel(votes={one.annotator: v for one, v in votes}, outside=len(off_scale))
    by = ""
    if consensus not in RULES:
        by = f" by {consensus}"
        labels = [label for label in labels if label.annotator == consensus]
        votes = [(label, v) for label, v in votes if label.annotator == consensus]
    elif decision is not None:
        return _decided(read, votes, scale, decision)
    counted = [(label, v) for label, v in votes if v is not ABSTAIN]
    if not labels:
        return replace(read, fault=f"no label{by}")
    if not counted:
        errors = [off_scale[one.annotator] for one in labels if one.annotator in off_scale]
        why = f"label outside the scale: {errors[0]}" if errors else "annotators abstained"
        return replace(read, fault=why)
    value, fault = _settle(counted, consensus, ties)
    if fault:
        return replace(read, fault=fault)
    winners = [label for label, vote in counted if vote == value]
    blind = not any(label.after_verdict for label in winners)
    return replace(read, value=value, rationale=_join_rationales(winners), blind=blind)


def read_votes(labels: Sequence[Label], scale: Scale) -> tuple[list[Vote], dict[str, ScaleError]]:
    """Return the votes, the latest last, and by annotator why a label lies off the scale."""
    votes: list[Vote] = []
    off_scale: dict[str, ScaleError] = {}
    for label in sorted(labels, key=lambda one: (one.created_ms, one.annotator)):
        try:
            votes.append((label, scale.normalise(label.value)))
        except ScaleError as error:
            off_scale[label.annotator] = error
    return votes, off_scale


def _settle(votes: Sequence[Vote], rule: str, ties: str) -> tuple[Any, str | None]:
    """The value that the rule takes and None, or None and why it takes none."""
    values = [value for _, value in votes]
    tied = multimode(values)
    if rule == "unanimous" and len(set(values)) > 1:
        return None, "annotators are not unanimous"
    if rule == "latest":
        return values[-1], None
    if len(tied) == 1 or ties == "latest":
        return next(value for value in reversed(values) if value in tied), None
    if ties == "error":
        raise PairingError(
            f"Annotators tie on trace {votes[0][0].trace_id} between "
            f"{', '.join(map(repr, tied))}. Adjudicate it, or use ties='drop' or ties='latest'."
        )
    return None, "annotators tie"


def _decided(
    read: HumanLabel, votes: Sequence[Vote], scale: Scale, decision: Decision
) -> HumanLabel:
    try:
        value = scale.normalise(decision.value)
    except ScaleError as error:
        return replace(read, fault=f"decision outside the scale: {error}")
    if value is ABSTAIN:
        return replace(read, fault="adjudicated as one that cannot be judged")
    agreeing = [label for label, vote in votes if vote == value]
    rationale = _join_rationales([decision]) or _join_rationales(agreeing)
    return replace(read, value=value, rationale=rationale, blind=not decision.after_verdict)


def _join_rationales(labels: Sequence[Label]) -> str:
    texts = [(label.rationale or "").strip() for label in labels]
    return " / ".join(dict.fromkeys(text for text in texts if text))
