"""`pair`: a judge's verdicts are joined with the human labels under its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any, Literal

import pandas as pd
from mlflow.entities import Trace
from mlflow.genai.judges import Judge

from workbench.errors import (
    ArgumentError,
    NoLabelsError,
    NoVerdictsError,
    ScaleError,
    one_of,
)
from workbench.formatting import counted
from workbench.judging.judge import fingerprints_of
from workbench.judging.verdicts import (
    Recorded,
    choose_version,
    read_verdict,
    recorded_verdicts,
    where,
)
from workbench.pairing.consensus import RULES, HumanLabel, read_label
from workbench.pairing.pairs import COLUMNS, Pairs
from workbench.scale import ABSTAIN, Scale
from workbench.store.labels import (
    Decision,
    Label,
    decision_records,
    label_records,
    name_of,
    near_misses,
    other_kinds,
    spellings,
)
from workbench.store.schemas import known_scale
from workbench.store.traces import collector_paused, contents, fetch_traces, previews
from workbench.vocabulary import folded


@collector_paused()
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
        A judge (only verdicts of this very version count) or a name (those of the version that
        judged last).
    traces
        None (the active experiment), traces, trace ids, or an MLflow filter string.
    consensus
        How several annotators' labels become one: ``"majority"``, ``"unanimous"``, ``"latest"``,
        or the name of an annotator whose labels alone count. Where a trace was adjudicated, the
        decision counts in place of the first three; the labels stay the votes.
    ties
        What a tie under ``"majority"`` does: ``"drop"`` the trace, take the ``"latest"`` of the
        tied labels, or raise an ``"error"``.
    scale
        The rating scale; by default the judge's, else that of MLflow's label schema of this
        name, else that of the observed values.
    source
        With a name: only verdicts by this model, or ``source`` of `workbench.log_verdicts`, count.
    positive
        Which of two values is the positive one. By default the known word (yes, pass, True); of
        unknown words the first of the judge's Literal, else of the alphabet, as ``.notes`` say.

    Raises
    ------
    ArgumentError
        For ``source`` beside a judge, and for a ``positive`` that is none of two values.
    NoLabelsError, NoVerdictsError, ScaleError
        For no label under the name, no verdict of this judge, or no label on the scale.
    PairingError
        For a tie, with ``ties="error"``.
    """
    one_of("ties", ties, ["drop", "latest", "error"])
    name = name_of(judge_or_name)
    fetched = fetch_traces(traces, spans=False)
    labels, decisions = labels_and_decisions(fetched, name)
    unlabelled = [trace for trace in fetched if trace.info.trace_id not in labels]
    near = [*other_kinds(unlabelled, name), *near_misses(fetched, name)]
    if not labels and not decisions:
        how = "Log them with workbench.log_labels, mlflow.log_feedback, or in MLflow's own page."
        raise NoLabelsError(
            f"No human label is stored under {name!r} on {counted(len(fetched), 'trace')}. "
            f"{' '.join(near) or how}"
        )
    given = [label for of_trace in labels.values() for label in of_trace]
    people = {folded(label.annotator): label.annotator for label in given}
    consensus = consensus if consensus in RULES else people.get(folded(consensus), consensus)
    one_of("consensus", consensus, [*RULES, *sorted(people.values())])
    recorded, chosen, version, notes = _verdicts(judge_or_name, fetched, source, len(labels))
    if scale is None:
        judged = [v.value for verdicts in chosen.values() for v in verdicts if v.error is None]
        scale = known_scale(judge_or_name, fetched, judged)
        scale = scale or Scale.from_values(label.value for label in given)
        if positive is None and not scale.positive_is_known:
            notes.append(
                f"{scale.positive!r} is taken as the positive value, {scale.values[0]!r} as the "
                "negative one, since the words do not tell. For the other way round: "
                f"positive={scale.values[0]!r}."
            )
    scale = scale if positive is None else scale.with_positive(positive)
    human = {
        i: read_label(labels.get(i, []), scale, consensus, ties, decisions.get(i))
        for i in sorted(recorded)
    }
    table, excluded = _join(human, chosen, recorded, scale)
    texts = previews(fetched)
    unmarked = (v.version for verdicts in chosen.values() for v in verdicts if not version)
    return Pairs(
        name=name,
        table=table,
        excluded=excluded,
        scale=scale.with_range([*table["human"], *table["judge"]]),
        fingerprint=version,
        notes=(*notes, *_notes(name, human, scale), *spellings(fetched, name), *near),
        all_votes={i: one.votes for i, one in human.items() if one.votes},
        previews=texts,
        content=contents({i: texts[i] for i, v in human.items() if v.votes or i in decisions}),
        earlier_fingerprint=fingerprints_of(judge_or_name)[1],
        source=next(unmarked, ""),
    )


def _verdicts(
    judge_or_name: Judge | str, traces: Sequence[Trace], source: str | None, labelled: int
) -> tuple[dict[str, list[Recorded]], dict[str, list[Recorded]], str, list[str]]:
    """The verdicts by trace, those of one judge version, its fingerprint, and notes."""
    name = name_of(judge_or_name)
    if source is not None and not isinstance(judge_or_name, str):
        raise ArgumentError(
            f"source={source!r} chooses among the verdicts under a name. Give the name: "
            f"workbench.pair({name!r}, source={source!r})."
        )
    recorded = {t.info.trace_id: recorded_verdicts(t, name) for t in traces}
    sources = {v.source for verdicts in recorded.values() for v in verdicts}
    if source is not None and sources:
        one_of("source", source, sorted(sources))
        recorded = where(recorded, lambda v: v.source == source)
    chosen, version, notes = choose_version(judge_or_name, recorded, fingerprints_of(judge_or_name))
    if not any(chosen.values()):
        others = sum(map(bool, recorded.values()))
        known = f" (on {counted(others, 'trace')} there are verdicts of another version or source)"
        known *= bool(others)
        raise NoVerdictsError(
            f"{counted(labelled, 'trace')} with a label under {name!r}, and this judge has judged "
            f"none of them{known}. Run workbench.assess(judge, traces), or log recorded verdicts "
            f"with workbench.log_verdicts(table, name={name!r}, ...)."
        )
    return recorded, chosen, version, notes


def _join(
    human: Mapping[str, HumanLabel],
    chosen: Mapping[str, Sequence[Recorded]],
    recorded: Mapping[str, Sequence[Recorded]],
    scale: Scale,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the table of pairs, and the traces that make none with the reason."""
    rows: list[tuple[Any, ...]] = []
    excluded: list[tuple[str, str | None]] = []
    for i, label in human.items():
        verdict, fault = read_verdict(chosen[i], recorded[i], scale)
        if label.fault == "no label" and fault == "no verdict":
            excluded.append((i, "no label, no verdict"))
        elif label.fault or verdict is None:
            excluded.append((i, label.fault or fault))
        else:
            value, why = verdict
            rows.append((i, label.value, value, label.rationale, why, label.votes, label.blind))
    return (
        pd.DataFrame(rows, columns=COLUMNS).astype({"human": object, "judge": object}),
        pd.DataFrame(excluded, columns=["trace_id", "reason"]),
    )


def _notes(name: str, human: Mapping[str, HumanLabel], scale: Scale) -> list[str]:
    """What a reader should know of the labels; `ScaleError` when none lies on the scale."""
    notes = []
    outside = [one for one in human.values() if one.outside]
    usable = (
        one.fault is None or any(vote is not ABSTAIN for vote in one.votes.values())
        for one in human.values()
    )
    if outside and not any(usable):
        first = str(outside[0].fault).removesuffix(".")
        raise ScaleError(
            f"No label under {name!r} lies on the judge's scale. First: {first}. Give the judge a "
            "feedback_value_type that fits, pass scale=, or log the labels again: "
            "log_labels(table, values={...}) translates them."
        )
    if outside:
        many = sum(one.outside for one in outside)
        notes.append(
            f"Outside the scale, so without a vote: {counted(many, 'label')} on "
            f"{counted(len(outside), 'trace')}. Allowed: {scale.describe()}. "
            "log_labels(table, values={...}) translates them."
        )
    seen = sum(one.fault is None and not one.blind for one in human.values())
    if seen:
        notes.append(f"Given after their author saw the judge's verdict: {counted(seen, 'label')}.")
    return notes


def labels_and_decisions(
    traces: Sequence[Trace], name: str
) -> tuple[dict[str, list[Label]], dict[str, Decision]]:
    """Return, by trace, the valid labels under ``name``, one an annotator, and what was decided."""
    records = label_records(traces, name)  # in order of the traces
    labels = {i: list(given) for i, given in groupby(records, key=lambda one: one.trace_id)}
    return labels, {one.trace_id: one for one in decision_records(traces, name)}
