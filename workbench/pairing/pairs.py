"""Verdicts joined with human labels: `pair`, consensus among annotators, and splits.

Only valid assessments count. Names match exactly. Every trace that makes no pair is listed
in `Pairs.excluded` with its reason, and the order in which assessments arrived never matters.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from workbench.errors import ArgumentError, NoLabelsError, NoVerdictsError, ScaleError, one_of
from workbench.formatting import html_table, html_text
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
    labels_by_trace,
    read_label,
)
from workbench.pairing.splits import groups_from_traces, stratified
from workbench.scale import ABSTAIN, Scale
from workbench.store.labels import Decision, Label, near_misses
from workbench.store.schemas import scale_of_question
from workbench.store.traces import fetch_traces

if TYPE_CHECKING:
    from mlflow.entities import Trace
    from mlflow.genai.judges import Judge


Groups = str | Mapping[str, Hashable] | None


_COLUMNS = ["trace_id", "human", "judge", "human_rationale", "judge_rationale", "votes", "blind"]


@dataclass(frozen=True)
class Pairs:
    """Judge verdicts and human labels on the same traces.

    Attributes
    ----------
    name
        The name under which verdicts and labels are stored.
    table
        One row a trace, sorted by ``trace_id``: ``trace_id``, ``human`` (canonical consensus
        value), ``judge`` (canonical value), ``human_rationale`` (of those who voted for the
        consensus), ``judge_rationale``, ``votes`` (dict annotator -> canonical value or
        `ABSTAIN`), ``blind`` (False where a label was given after its author saw the verdict).
    excluded
        One row a trace that makes no pair: ``trace_id``, ``reason``.
    scale
        The rating scale that both sides are on.
    fingerprint
        Fingerprint of the judge version that gave the verdicts; "" where unknown.
    notes
        What a reader should know about how the pairs came to be.
    all_votes
        Dict trace_id -> dict annotator -> value, for every labelled trace, paired or not.
    """

    name: str
    table: pd.DataFrame
    excluded: pd.DataFrame
    scale: Scale
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    all_votes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def trace_ids(self) -> list[str]:
        """The paired traces' ids, sorted."""
        return list(self.table["trace_id"])

    @property
    def votes(self) -> pd.DataFrame:
        """Votes of the single annotators: index trace_id, one column an annotator.

        Covers every labelled trace, paired or not. None where an annotator gave no label or
        abstained.
        """
        every = self.all_votes or dict(
            zip(self.table["trace_id"], self.table["votes"], strict=True)
        )
        annotators = sorted({who for votes in every.values() for who in votes})
        ids = sorted(every)
        columns = {
            who: [None if (v := every[i].get(who)) is ABSTAIN else v for i in ids]
            for who in annotators
        }
        return pd.DataFrame(columns, index=pd.Index(ids, name="trace_id"), dtype=object)

    def subset(self, trace_ids: Iterable[str]) -> Pairs:
        """The pairs of the given traces, with nothing excluded."""
        wanted = set(trace_ids)
        table = self.table[self.table["trace_id"].isin(wanted)].reset_index(drop=True)
        return replace(
            self,
            table=table,
            excluded=self.excluded.iloc[0:0],
            notes=(),
            all_votes={i: v for i, v in self.all_votes.items() if i in wanted},
        )

    def with_verdicts(self, verdicts: Mapping[str, tuple[Any, str]], fingerprint: str) -> Pairs:
        """The same labels with another judge's verdicts: trace_id -> (canonical value, rationale).

        Traces without a verdict leave the table and are listed in ``excluded``.
        """
        kept = self.table[self.table["trace_id"].isin(verdicts)].copy()
        gone = self.table.loc[~self.table["trace_id"].isin(verdicts), ["trace_id"]]
        kept["judge"] = pd.Series(
            [verdicts[i][0] for i in kept["trace_id"]], index=kept.index, dtype=object
        )
        kept["judge_rationale"] = [verdicts[i][1] for i in kept["trace_id"]]
        excluded = pd.concat(
            [self.excluded, gone.assign(reason="the judge gave no usable verdict")],
            ignore_index=True,
        )
        return replace(
            self, table=kept.reset_index(drop=True), excluded=excluded, fingerprint=fingerprint
        )

    @property
    def reasons(self) -> pd.DataFrame:
        """Why traces make no pair: ``reason``, ``traces`` (count), most frequent first."""
        counts = Counter(self.excluded["reason"])
        return pd.DataFrame(counts.most_common(), columns=["reason", "traces"])

    def split(
        self,
        *,
        test_size: float = 0.4,
        dev_size: float = 0.3,
        seed: int = 0,
        groups: Groups = None,
        never_test: Collection[str] = (),
    ) -> Split:
        """Split into train, dev and test: disjoint by trace and by group, stratified by label.

        Parameters
        ----------
        test_size
            Share of all pairs in test, in (0, 1).
        dev_size
            Share of the rest in dev, in [0, 1).
        seed
            The same seed, pairs and groups give the same split; 0 is a seed like any other.
        groups
            What must stay on one side: the name of a table column, of a trace tag or of a key
            of the traces' inputs, or a mapping trace_id -> group. None: every trace by itself.
        never_test
            Traces that must not be tested on, nor their groups, since a judge learned on them.

        Raises
        ------
        ArgumentError
            For shares out of range, an unknown group name, or too few groups to fill the parts.
        """
        if not 0 < test_size < 1 or not 0 <= dev_size < 1:
            raise ArgumentError(
                f"test_size={test_size} must lie in (0, 1) and dev_size={dev_size} in [0, 1)."
            )
        group_of = self.group_of(groups)
        shares = {"test": test_size, "dev": (1 - test_size) * dev_size}
        shares["train"] = 1 - sum(shares.values())
        parts = stratified(
            dict(zip(self.table["trace_id"], map(str, self.table["human"]), strict=True)),
            group_of,
            {name: share for name, share in shares.items() if share > 0},
            seed,
            barred={"test": never_test},
        )
        return Split(
            train=self.subset(parts["train"]),
            dev=self.subset(parts.get("dev", [])),
            test=self.subset(parts["test"]),
            seed=seed,
            groups=groups if isinstance(groups, str) else ("mapping" if groups else None),
            group_of=group_of,
        )

    def group_of(self, groups: Groups) -> dict[str, str]:
        """The group of each paired trace (see `split` for what ``groups`` may be)."""
        ids = self.trace_ids
        if groups is None:
            return {i: i for i in ids}
        if isinstance(groups, str):
            if groups in self.table.columns:
                return dict(zip(ids, map(str, self.table[groups]), strict=True))
            return groups_from_traces(ids, groups)
        missing = [i for i in ids if i not in groups]
        if missing:
            raise ArgumentError(
                f"groups names no group for {len(missing)} of {len(ids)} traces, e.g. "
                f"{missing[0]!r}. Give one for every paired trace."
            )
        return {i: str(groups[i]) for i in ids}

    def __repr__(self) -> str:
        left_out = f", {len(self.excluded)} excluded" if len(self.excluded) else ""
        return f"<Pairs {self.name!r}: {len(self)} pairs{left_out}, {self.scale.kind} scale>"

    def _repr_html_(self) -> str:
        parts = [f"<b>{html_text(self.name)}</b>: {len(self)} pairs, {self.scale.kind} scale"]
        parts += [f"<div>{html_text(note)}</div>" for note in self.notes]
        if len(self.excluded):
            parts.append(f"<div>{len(self.excluded)} traces make no pair:</div>")
            parts.append(html_table(self.reasons, index=False))
        columns = ["trace_id", "human", "judge", "human_rationale", "judge_rationale"]
        parts.append(html_table(self.table[columns].head(10), index=False))
        return "".join(parts)


@dataclass(frozen=True)
class Split:
    """Train, dev and test pairs: disjoint by trace and by group.

    ``groups`` names what was kept together, ``group_of`` tells the group of each trace.
    ``digest`` identifies the split: equal digests mean the same traces in the same parts.
    """

    train: Pairs
    dev: Pairs
    test: Pairs
    seed: int
    groups: str | None = None
    group_of: Mapping[str, str] = field(default_factory=dict, repr=False)

    @property
    def digest(self) -> str:
        text = json.dumps(self.to_dict()["traces"], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """The split as plain data, as it is stored with the run that used it."""
        return {
            "seed": self.seed,
            "groups": self.groups,
            "traces": {part: getattr(self, part).trace_ids for part in ("train", "dev", "test")},
        }

    def __repr__(self) -> str:
        return f"<Split train {len(self.train)}, dev {len(self.dev)}, test {len(self.test)}>"


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
        here and what `workbench.log_verdicts` was told of one that ran elsewhere.
    positive
        Which of two values is the positive one, that of false positives and prevalence. By
        default the words tell (yes, pass, True); of words that do not, such as spam and ham,
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
    by_trace = labels_by_trace(fetched, name)
    decisions = decisions_by_trace(fetched, name)
    if not by_trace and not decisions:
        raise NoLabelsError(_no_labels_message(name, fetched))
    check_consensus(consensus, by_trace)
    recorded = {t.info.trace_id: recorded_verdicts(t, name) for t in fetched}
    if source is not None:
        sources = {v.source for verdicts in recorded.values() for v in verdicts}
        if sources:
            one_of("source", source, sorted(sources))
        recorded = where(recorded, lambda v: v.source == source)
    chosen, version, notes = choose_version(judge_or_name, recorded)
    if not any(chosen.values()):
        raise NoVerdictsError(_no_verdicts_message(judge_or_name, by_trace, recorded))
    given = scale
    scale = scale or _told_scale(judge_or_name, fetched)
    scale = scale or _observed_scale([*chain(*by_trace.values()), *decisions.values()], chosen)
    if positive is not None:
        scale = scale.with_positive(positive)
    elif given is None and not scale.positive_is_known:
        other = next(value for value in scale.values if value != scale.positive)
        notes.append(
            f"{scale.positive!r} is taken as the positive value, {other!r} as the negative one, "
            f"since the words do not tell. For the other way round: positive={other!r}."
        )

    rows, excluded, all_votes = [], [], {}
    outside: list[HumanLabel] = []
    decided = 0
    for trace_id in sorted(recorded):
        decision = decisions.get(trace_id)
        human = read_label(by_trace.get(trace_id, []), scale, consensus, ties, decision)
        decided += human.decided_by is not None
        if human.votes:
            all_votes[trace_id] = human.votes
        if human.outside:
            outside.append(human)
        verdict, fault = read_verdict(chosen[trace_id], recorded[trace_id], scale)
        reasons = [r for r in (human.fault, fault) if r]
        if reasons:
            both = human.fault == "no label" and fault == "no verdict"
            excluded.append((trace_id, "no label, no verdict" if both else reasons[0]))
            continue
        assert verdict is not None
        row = (trace_id, human.value, verdict[0], human.rationale, verdict[1], human.votes)
        rows.append((*row, human.blind))
    if decided:
        notes.append(f"On {decided} traces an adjudicator's decision takes the votes' place.")
    if outside and not all_votes:
        raise ScaleError(
            f"No label under {name!r} lies on the judge's scale. First: {outside[0].fault}. Give "
            "the judge a feedback_value_type that fits, or pass scale=."
        )
    if outside:
        notes.append(
            f"{sum(human.outside for human in outside)} labels on {len(outside)} traces lie "
            f"outside the scale and have no vote. Allowed: {scale.describe()}."
        )
    table = pd.DataFrame(rows, columns=_COLUMNS).astype({"human": object, "judge": object})
    scale = scale.with_range([*table["human"], *table["judge"]])
    return Pairs(
        name=name,
        table=table,
        excluded=pd.DataFrame(excluded, columns=["trace_id", "reason"]),
        scale=scale,
        fingerprint=version,
        notes=tuple(notes + _label_notes(name, fetched, table)),
        all_votes=all_votes,
    )


def dataset_digest(pairs: Pairs) -> str:
    """Hash of the labelled items: trace ids with their consensus labels, 16 hexadecimal digits."""
    rows = sorted(zip(pairs.table["trace_id"], map(str, pairs.table["human"]), strict=True))
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()[:16]


# -- what to say ----------------------------------------------------------------------------


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


def _label_notes(name: str, traces: Sequence[Trace], table: pd.DataFrame) -> list[str]:
    notes = [
        f"{count} labels are stored under {other!r}, which is not {name!r}; they are not counted. "
        f"Log them again under {name!r} if they belong here."
        for other, count in near_misses(traces, name).items()
    ]
    seen = int((~table["blind"].astype(bool)).sum()) if len(table) else 0
    if seen:
        notes.append(f"{seen} labels were given after their author saw the judge's verdict.")
    return notes


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


def _told_scale(judge_or_name: Judge | str, traces: Sequence[Trace]) -> Scale | None:
    """The scale that the judge's type tells, else the label schema of its name."""
    experiments = {trace.info.experiment_id for trace in traces}
    where = experiments.pop() if len(experiments) == 1 else None
    return scale_of_question(judge_or_name, experiment=where)


def _observed_scale(
    given: Iterable[Label | Decision], chosen: Mapping[str, Sequence[Recorded]]
) -> Scale:
    """The scale of all values seen; of the labels alone where the verdicts would blur it."""
    labelled = [one.value for one in given]
    judged = [v.value for verdicts in chosen.values() for v in verdicts if v.error is None]
    both = Scale.from_values([*labelled, *judged])
    if both.kind == "nominal":
        try:
            alone = Scale.from_values(labelled)
        except ScaleError:
            return both
        if alone.kind != "nominal":
            return alone
    return both
