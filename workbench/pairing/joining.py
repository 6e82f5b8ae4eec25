"""`pair`: verdicts of a judge joined with the human labels under its name.

Only valid assessments count. Names match exactly. Every trace that makes no pair is listed
in `Pairs.excluded` with its reason, and the order in which assessments arrived never matters.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from workbench.errors import ArgumentError, NoLabelsError, NoVerdictsError, ScaleError, one_of
from workbench.judging.verdicts import (
    Recorded,
    choose_version,
    read_verdict,
    recorded_verdicts,
    where,
)
from workbench.pairing.consensus import (
    HumanLabel,
    check_consensus,
    decisions_by_trace,
    known_scale,
    labels_by_trace,
    read_label,
)
from workbench.pairing.pairs import COLUMNS, Pairs
from workbench.scale import Scale
from workbench.store.labels import Label, near_misses
from workbench.store.traces import fetch_traces

if TYPE_CHECKING:
    from mlflow.entities import Trace
    from mlflow.genai.judges import Judge


def pair(
    judge_or_name: Judge | str,
    traces: Any = None,
    *,
    consensus: str = "majority",
    ties: Literal["drop", "latest", "error"] = "drop",
    scale: Scale | None = None,
    source: str | None = None,
    positive: Any = None,
) -> Pairs:
    """Join a judge's verdicts with the human labels under its name.

    Parameters
    ----------
    judge_or_name
        A judge (only verdicts of this very version count) or a name (the version that judged
        last counts).
    traces
        None (the active experiment), traces, trace ids, or an MLflow filter string.
    consensus
        How several annotators' labels become one: ``"majority"``, ``"unanimous"``,
        ``"latest"``, or the name of an annotator whose labels alone count. Where a trace was
        adjudicated (`workbench.adjudicate`), the decision counts in place of the first three;
        the labels stay the votes.
    ties
        What a tie under ``"majority"`` does: ``"drop"`` the trace, take the ``"latest"`` label
        among the tied, or raise an ``"error"``.
    scale
        The rating scale; by default the judge's, else that of MLflow's label schema of this
        name, else that of the observed values.
    source
        With a name: only verdicts by this source count, which is the model of a judge that ran
        here, and the ``source`` given to `workbench.log_verdicts` for one that ran elsewhere.
    positive
        Which of two values is the positive one, that of false positives and prevalence. By
        default it is the known word (yes, pass, True); of unknown words, such as spam and ham,
        the first one that the judge's Literal lists, else the first by the alphabet, is taken,
        which ``.notes`` says.

    Raises
    ------
    ArgumentError
        For ``source`` beside a judge, whose version says already which verdicts count; for a
        ``positive`` that is none of two values.
    NoLabelsError
        No human label under the name; names that nearly match are listed with their counts.
    NoVerdictsError
        Labels, but no verdict of this judge.
    ScaleError
        No label lies on the scale (single ones are excluded with the reason).
    PairingError
        A tie, with ``ties="error"``.
    """
    one_of("ties", ties, ["drop", "latest", "error"])
    if source is not None and not isinstance(judge_or_name, str):
        raise ArgumentError(
            f"source={source!r} chooses among the verdicts under a name. Give the name: "
            f"workbench.pair({judge_or_name.name!r}, source={source!r})."
        )
    name = judge_or_name if isinstance(judge_or_name, str) else judge_or_name.name
    fetched = fetch_traces(traces, spans=False)
    labels, decisions = labels_by_trace(fetched, name), decisions_by_trace(fetched, name)
    if not labels and not decisions:
        raise NoLabelsError(_no_labels_message(name, fetched))
    check_consensus(consensus, labels)

    recorded = _recorded(fetched, name, source)
    chosen, version, notes = choose_version(judge_or_name, recorded)
    if not any(chosen.values()):
        raise NoVerdictsError(_no_verdicts_message(judge_or_name, labels, recorded))

    if scale is None:
        given = [one.value for one in chain(*labels.values())]
        given += [one.value for one in decisions.values()]
        scale = known_scale(judge_or_name, fetched) or _observed_scale(given, chosen)
        if positive is None:
            notes += _positive_notes(scale)
    if positive is not None:
        scale = scale.with_positive(positive)

    human = {
        i: read_label(labels.get(i, []), scale, consensus, ties, decisions.get(i))
        for i in sorted(recorded)
    }
    notes += _vote_notes(name, human, scale)
    table, excluded = _join(human, chosen, recorded, scale)
    return Pairs(
        name=name,
        table=table,
        excluded=excluded,
        scale=scale.with_range([*table["human"], *table["judge"]]),
        fingerprint=version,
        notes=(*notes, *_label_notes(name, fetched, table)),
        all_votes={i: one.votes for i, one in human.items() if one.votes},
    )


def _recorded(traces: Sequence[Trace], name: str, source: str | None) -> dict[str, list[Recorded]]:
    """Return the stored verdicts under the name, by trace; only those by a source if given."""
    recorded = {t.info.trace_id: recorded_verdicts(t, name) for t in traces}
    if source is None:
        return recorded
    sources = {v.source for verdicts in recorded.values() for v in verdicts}
    if sources:
        one_of("source", source, sorted(sources))
    return where(recorded, lambda v: v.source == source)


def _join(
    human: Mapping[str, HumanLabel],
    chosen: Mapping[str, Sequence[Recorded]],
    recorded: Mapping[str, Sequence[Recorded]],
    scale: Scale,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table of pairs, and the traces that make none with the reason."""
    rows: list[tuple[Any, ...]] = []
    excluded: list[tuple[str, str | None]] = []
    for trace_id, label in human.items():
        verdict, fault = read_verdict(chosen[trace_id], recorded[trace_id], scale)
        if label.fault == "no label" and fault == "no verdict":
            excluded.append((trace_id, "no label, no verdict"))
        elif label.fault or verdict is None:
            excluded.append((trace_id, label.fault or fault))
        else:
            value, rationale = verdict
            rows.append(
                (trace_id, label.value, value, label.rationale, rationale, label.votes, label.blind)
            )
    return (
        pd.DataFrame(rows, columns=COLUMNS).astype({"human": object, "judge": object}),
        pd.DataFrame(excluded, columns=["trace_id", "reason"]),
    )


def _observed_scale(labelled: Sequence[Any], chosen: Mapping[str, Sequence[Recorded]]) -> Scale:
    """Return the scale of all values seen; of the labels alone where verdicts would blur it."""
    judged = [v.value for verdicts in chosen.values() for v in verdicts if v.error is None]
    both = Scale.from_values([*labelled, *judged])
    if both.kind == "nominal":
        with suppress(ScaleError):
            alone = Scale.from_values(labelled)
            return both if alone.kind == "nominal" else alone
    return both


# -- notes and messages ---------------------------------------------------------------------


def _positive_notes(scale: Scale) -> list[str]:
    if scale.positive_is_known:
        return []
    other = next(value for value in scale.values if value != scale.positive)
    return [
        f"{scale.positive!r} is taken as the positive value, {other!r} as the negative one, "
        f"since the words do not tell. For the other way round: positive={other!r}."
    ]


def _vote_notes(name: str, human: Mapping[str, HumanLabel], scale: Scale) -> list[str]:
    """Return notes on decisions and on labels off the scale.

    Raises
    ------
    ScaleError
        When no label lies on the scale.
    """
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
    return notes


def _label_notes(name: str, traces: Sequence[Trace], table: pd.DataFrame) -> list[str]:
    notes = [
        f"{count} labels are stored under {other!r}, which is not {name!r}; they are not counted. "
        f"Log them again under {name!r} if they belong here."
        for other, count in near_misses(traces, name).items()
    ]
    seen = sum(not blind for blind in table["blind"])
    if seen:
        notes.append(f"{seen} labels were given after their author saw the judge's verdict.")
    return notes


def _no_labels_message(name: str, traces: Sequence[Trace]) -> str:
    message = f"No human label is stored under {name!r} on {len(traces)} traces."
    near = near_misses(traces, name)
    if near:
        found = ", ".join(f"{other!r} ({count} labels)" for other, count in near.items())
        return (
            f"{message} Names match exactly; found: {found}. Name the judge so, or log the labels "
            f"again under {name!r} with workbench.log_labels(table, name={name!r}, ...)."
        )
    return (
        f"{message} Log them with workbench.log_labels(table, name={name!r}, ...), with "
        f"mlflow.log_feedback(name={name!r}, ...) from a HUMAN source, or in MLflow's own page."
    )


def _no_verdicts_message(
    judge_or_name: Judge | str,
    by_trace: Mapping[str, Sequence[Label]],
    recorded: Mapping[str, Sequence[Recorded]],
) -> str:
    if isinstance(judge_or_name, str):
        return (
            f"{len(by_trace)} traces are labelled under {judge_or_name!r}, but no verdict of a "
            "judge of that name is stored. Run workbench.assess(judge, traces), or log recorded "
            f"ones with workbench.log_verdicts(table, name={judge_or_name!r}, ...)."
        )
    others = sum(bool(verdicts) for verdicts in recorded.values())
    found = (
        f" ({others} traces have verdicts of another version or source under this name; to pair "
        f"those, use workbench.pair({judge_or_name.name!r}).)"
        if others
        else ""
    )
    return (
        f"{len(by_trace)} traces are labelled, but this version of judge {judge_or_name.name!r} "
        f"has judged none of them.{found} Run workbench.assess(judge, traces) first."
    )
