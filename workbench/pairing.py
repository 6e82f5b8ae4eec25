"""Verdicts joined with human labels: `pair`, consensus among annotators, and splits.

Only valid assessments count. Names match exactly. Every trace that makes no pair is listed
in `Pairs.excluded` with its reason, and the order in which assessments arrived never matters.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from workbench import labels as human_labels
from workbench import store
from workbench.errors import (
    ArgumentError,
    NoLabelsError,
    NoVerdictsError,
    PairingError,
    ScaleError,
    one_of,
)
from workbench.judge import FINGERPRINT_KEY, RECORDED_KEY, fingerprint, scale_of
from workbench.labels import Label
from workbench.scale import ABSTAIN, Scale, is_missing
from workbench.traces import examples

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

        Raises
        ------
        ArgumentError
            For shares out of range, an unknown group name, or too few groups to fill the parts.
        """
        if not 0 < test_size < 1 or not 0 <= dev_size < 1:
            raise ArgumentError(
                f"test_size={test_size} must lie in (0, 1) and dev_size={dev_size} in [0, 1)."
            )
        group_of = self._groups(groups)
        shares = {"test": test_size, "dev": (1 - test_size) * dev_size}
        shares["train"] = 1 - sum(shares.values())
        parts = stratified(
            dict(zip(self.table["trace_id"], map(str, self.table["human"]), strict=True)),
            group_of,
            {name: share for name, share in shares.items() if share > 0},
            seed,
        )
        return Split(
            train=self.subset(parts["train"]),
            dev=self.subset(parts.get("dev", [])),
            test=self.subset(parts["test"]),
            seed=seed,
            groups=groups if isinstance(groups, str) else ("mapping" if groups else None),
        )

    def _groups(self, groups: Groups) -> dict[str, str]:
        ids = self.trace_ids
        if groups is None:
            return {i: i for i in ids}
        if isinstance(groups, str):
            if groups in self.table.columns:
                return dict(zip(ids, map(str, self.table[groups]), strict=True))
            return _groups_from_traces(ids, groups)
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
        from html import escape

        parts = [f"<b>{escape(self.name)}</b>: {len(self)} pairs, {self.scale.kind} scale"]
        parts += [f"<div>{escape(note)}</div>" for note in self.notes]
        if len(self.excluded):
            parts.append(f"<div>{len(self.excluded)} traces make no pair:</div>")
            parts.append(self.reasons.to_html(index=False, border=0))
        columns = ["trace_id", "human", "judge", "human_rationale", "judge_rationale"]
        parts.append(self.table[columns].head(10).to_html(index=False, border=0))
        return "".join(parts)


@dataclass(frozen=True)
class Split:
    """Train, dev and test pairs: disjoint by trace and by group.

    ``groups`` names what was kept together. ``digest`` identifies the split: equal digests
    mean the same traces in the same parts.
    """

    train: Pairs
    dev: Pairs
    test: Pairs
    seed: int
    groups: str | None = None

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


@dataclass(frozen=True)
class _Recorded:
    """One verdict as it lies in the store."""

    value: Any
    rationale: str
    error: str | None
    source: str
    fingerprint: str
    guideline: str | None
    recorded: bool
    created_ms: int
    order: str

    @property
    def unmarked(self) -> bool:
        """Whether nothing says which version of a judge gave it."""
        return not (self.fingerprint or self.guideline or self.recorded)

    @property
    def version(self) -> str:
        return self.fingerprint or self.guideline or f"source {self.source}"


def pair(
    judge_or_name: Judge | str,
    traces: Any = None,
    *,
    consensus: str = "majority",
    ties: Literal["drop", "latest", "error"] = "drop",
    scale: Scale | None = None,
    source: str | None = None,
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
        ``"latest"``, or the name of an annotator whose labels alone count.
    ties
        What a tie under ``"majority"`` does: ``"drop"`` the trace, take the ``"latest"`` label
        among the tied, or raise an ``"error"``.
    scale
        The rating scale; by default the judge's, else that of the observed values.
    source
        With a name: only verdicts by this source count, which is the model of a judge that ran
        here and what `workbench.log_verdicts` was told of one that ran elsewhere.

    Raises
    ------
    ArgumentError
        For ``source`` beside a judge, whose version says already which verdicts count.
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
    fetched = store.fetch_traces(traces, spans=False)
    by_trace = labels_by_trace(fetched, name)
    if not by_trace:
        raise NoLabelsError(_no_labels_message(name, fetched))
    _check_consensus(consensus, by_trace)
    recorded = {t.info.trace_id: _recorded_verdicts(t, name) for t in fetched}
    if source is not None:
        sources = {v.source for verdicts in recorded.values() for v in verdicts}
        if sources:
            one_of("source", source, sorted(sources))
        recorded = _filtered(recorded, lambda v: v.source == source)
    chosen, version, notes = _choose_version(judge_or_name, recorded)
    if not any(chosen.values()):
        raise NoVerdictsError(_no_verdicts_message(judge_or_name, by_trace, recorded))
    if not isinstance(judge_or_name, str):
        scale = scale or scale_of(judge_or_name)
    scale = scale or _observed_scale(by_trace, chosen)

    rows, excluded, all_votes = [], [], {}
    outside: list[HumanLabel] = []
    for trace_id in sorted(recorded):
        human = read_label(by_trace.get(trace_id, []), scale, consensus, ties)
        if human.votes:
            all_votes[trace_id] = human.votes
        if human.outside:
            outside.append(human)
        verdict, fault = _read_verdict(chosen[trace_id], recorded[trace_id], scale)
        reasons = [r for r in (human.fault, fault) if r]
        if reasons:
            both = human.fault == "no label" and fault == "no verdict"
            excluded.append((trace_id, "no label, no verdict" if both else reasons[0]))
            continue
        assert verdict is not None
        row = (trace_id, human.value, verdict[0], human.rationale, verdict[1], human.votes)
        rows.append((*row, human.blind))
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


# -- labels ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class HumanLabel:
    """The consensus of one trace's labels; ``fault`` says why there is none.

    ``outside`` counts labels that lie off the scale, which have no vote.
    """

    value: Any = None
    rationale: str = ""
    votes: dict[str, Any] = field(default_factory=dict)
    blind: bool = True
    fault: str | None = None
    outside: int = 0


def labels_by_trace(traces: Sequence[Trace], name: str) -> dict[str, list[Label]]:
    """The valid labels under ``name``, one an annotator, by trace."""
    by_trace: dict[str, list[Label]] = defaultdict(list)
    for label in human_labels.label_records(traces, name):
        by_trace[label.trace_id].append(label)
    return dict(by_trace)


def read_label(labels: Sequence[Label], scale: Scale, consensus: str, ties: str) -> HumanLabel:
    """The consensus of one trace's labels (see `pair` for ``consensus`` and ``ties``)."""
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
        if value is not ABSTAIN and consensus in (*_RULES, label.annotator):
            on_scale.append((label, value))
    if not on_scale:
        asked = [error for who, error in outside.items() if consensus in (*_RULES, who)]
        reason = f"label outside the scale: {asked[0]}" if asked else "annotators abstained"
        if consensus not in _RULES and consensus not in {label.annotator for label in labels}:
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


_RULES = ("majority", "unanimous", "latest")


def _consensus(
    votes: Sequence[tuple[Label, Any]], consensus: str, ties: str
) -> tuple[Any, str | None]:
    latest = votes[-1][1]
    values = [value for _, value in votes]
    if consensus not in _RULES or consensus == "latest":
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


def _check_consensus(consensus: str, by_trace: Mapping[str, Sequence[Label]]) -> None:
    annotators = sorted({label.annotator for labels in by_trace.values() for label in labels})
    one_of("consensus", consensus, [*_RULES, *annotators])


def _no_labels_message(name: str, traces: Sequence[Trace]) -> str:
    message = f"No human label is stored under {name!r} on {len(traces)} traces."
    near = human_labels.near_misses(traces, name)
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
        for other, count in human_labels.near_misses(traces, name).items()
    ]
    seen = int((~table["blind"].astype(bool)).sum()) if len(table) else 0
    if seen:
        notes.append(f"{seen} labels were given after their author saw the judge's verdict.")
    return notes


# -- verdicts -------------------------------------------------------------------------------


def _recorded_verdicts(trace: Trace, name: str) -> list[_Recorded]:
    found = []
    for one in trace.info.assessments or []:
        if one.name != name or one.feedback is None or one.valid is False:
            continue
        if one.source.source_type == "HUMAN":
            continue
        metadata = one.metadata or {}
        error = one.error.error_message or one.error.error_code if one.error else None
        found.append(
            _Recorded(
                value=one.feedback.value,
                rationale=one.rationale or "",
                error=error,
                source=one.source.source_id or "",
                fingerprint=metadata.get(FINGERPRINT_KEY, ""),
                guideline=metadata.get("guideline"),
                recorded=metadata.get(RECORDED_KEY) == "true",
                created_ms=one.create_time_ms or 0,
                order=one.assessment_id or "",
            )
        )
    return sorted(found, key=lambda v: (v.created_ms, v.order))


def _choose_version(
    judge_or_name: Judge | str, recorded: Mapping[str, Sequence[_Recorded]]
) -> tuple[dict[str, list[_Recorded]], str, list[str]]:
    """The verdicts of one judge version: (by trace, its fingerprint, notes)."""
    every = [verdict for verdicts in recorded.values() for verdict in verdicts]
    if isinstance(judge_or_name, str):
        if not every:
            return {i: [] for i in recorded}, "", []
        last = max(every, key=lambda v: (v.created_ms, v.order))
        versions = Counter(v.version for v in every)
        notes = []
        if len(versions) > 1:
            notes.append(
                f"{len(versions)} versions of the judge gave verdicts; the one that judged last "
                f"counts ({versions[last.version]} of {len(every)} verdicts)."
            )
        return _filtered(recorded, lambda v: v.version == last.version), last.fingerprint, notes
    mark = fingerprint(judge_or_name)
    texts = _texts(judge_or_name)

    def exact(verdict: _Recorded) -> bool:
        if verdict.fingerprint:
            return verdict.fingerprint == mark
        # MLflow puts a judge's instructions, and nothing else of it, beside its verdict.
        return verdict.guideline in texts

    chosen = _filtered(recorded, exact)
    unmarked = [v for v in every if v.unmarked]
    if any(chosen.values()) or not unmarked:
        return chosen, mark, []
    # Logged by hand, as MLflow's own examples do. Where there are several sources, they are
    # not mixed: the judge's own model goes first, else the one that judged last.
    model = getattr(judge_or_name, "model", None)
    own = [v for v in unmarked if v.source == model] or unmarked
    source = max(own, key=lambda v: (v.created_ms, v.order)).source
    chosen = _filtered(recorded, lambda v: v.unmarked and v.source == source)
    count = sum(bool(verdicts) for verdicts in chosen.values())
    note = (
        f"{count} verdicts do not say which version of the judge gave them; they are taken as "
        "this one's. workbench.assess marks each verdict with the judge's version."
    )
    if len({v.source for v in unmarked}) > 1:
        note += f" Those by {source!r} count, those by other sources do not."
    return chosen, mark, [note]


def _texts(judge: Judge) -> set[str]:
    """The texts by which MLflow's own verdicts of this judge are known."""
    guidelines = getattr(judge, "guidelines", None)
    if isinstance(guidelines, list):
        guidelines = "\n".join(guidelines)
    return {text for text in (getattr(judge, "instructions", None), guidelines) if text}


def _filtered(
    recorded: Mapping[str, Sequence[_Recorded]], keep: Callable[[_Recorded], bool]
) -> dict[str, list[_Recorded]]:
    return {i: [v for v in verdicts if keep(v)] for i, verdicts in recorded.items()}


def _read_verdict(
    chosen: Sequence[_Recorded], every: Sequence[_Recorded], scale: Scale
) -> tuple[tuple[Any, str] | None, str | None]:
    """((canonical value, rationale), None) or (None, why there is none)."""
    if not chosen:
        return None, "verdict of another version of the judge only" if every else "no verdict"
    usable = [v for v in chosen if v.error is None and not is_missing(v.value)]
    if not usable:
        return None, f"the judge failed: {chosen[-1].error or 'empty answer'}"
    latest = usable[-1]
    try:
        value = scale.normalise(latest.value)
    except ScaleError as error:
        return None, f"verdict outside the scale: {error}"
    if value is ABSTAIN:
        return None, "the judge abstained"
    return (value, latest.rationale), None


def _no_verdicts_message(
    judge_or_name: Judge | str,
    by_trace: Mapping[str, Sequence[Label]],
    recorded: Mapping[str, Sequence[_Recorded]],
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


def _observed_scale(
    by_trace: Mapping[str, Sequence[Label]], chosen: Mapping[str, Sequence[_Recorded]]
) -> Scale:
    """The scale of all values seen; of the labels alone where the verdicts would blur it."""
    labelled = [label.value for labels in by_trace.values() for label in labels]
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


# -- splits ---------------------------------------------------------------------------------


def _groups_from_traces(trace_ids: Sequence[str], key: str) -> dict[str, str]:
    found = {}
    keys: set[str] = set()
    for example in examples(list(trace_ids)):
        inputs = example.inputs if isinstance(example.inputs, dict) else {}
        keys |= {*inputs, *(k for k in example.tags if not k.startswith("mlflow."))}
        if key in example.tags:
            found[example.trace_id] = str(example.tags[key])
        elif key in inputs:
            found[example.trace_id] = json.dumps(inputs[key], sort_keys=True, default=str)
    missing = len(set(trace_ids) - set(found))
    if missing:
        raise ArgumentError(
            f"groups={key!r} is neither a column of the pairs nor a tag or input of {missing} of "
            f"{len(trace_ids)} traces. These exist: {', '.join(map(repr, sorted(keys)))}."
        )
    return found


def stratified(
    label_of: Mapping[str, str],
    group_of: Mapping[str, str],
    shares: Mapping[str, float],
    seed: int,
) -> dict[str, list[str]]:
    """Assign whole groups to parts so that each part's label counts come near its share.

    Groups go largest first, ties in an order drawn by ``seed``, each to the part whose label
    counts are then furthest below what its share asks for. Every part gets at least one group.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for trace_id in sorted(label_of):
        members[group_of[trace_id]].append(trace_id)
    if len(members) < len(shares):
        raise ArgumentError(
            f"{len(label_of)} pairs in {len(members)} groups cannot be split into "
            f"{len(shares)} parts. Label more traces, or group by something finer."
        )

    def drawn(group: str) -> str:
        return hashlib.sha256(f"{seed}:{group}".encode()).hexdigest()

    totals = Counter(label_of.values())
    counts: dict[str, Counter[str]] = {part: Counter() for part in shares}
    parts: dict[str, list[str]] = {part: [] for part in shares}
    queue = sorted(members, key=lambda g: (-len(members[g]), drawn(g)))
    for position, group in enumerate(queue):
        here = Counter(label_of[i] for i in members[group])
        empty = [part for part in shares if not parts[part]]
        # The last groups go to parts that would otherwise stay empty.
        candidates = empty if len(queue) - position <= len(empty) else list(shares)

        def need(part: str, here: Counter[str] = here) -> float:
            asked = sum(
                n * (1 - counts[part][label] / (shares[part] * totals[label]))
                for label, n in here.items()
            )
            size = 1 - sum(counts[part].values()) / (shares[part] * len(label_of))
            return asked + 0.5 * size * sum(here.values())

        best = max(candidates, key=lambda p: (need(p), drawn(f"{group}:{p}")))
        counts[best].update(here)
        parts[best].extend(members[group])
    return {part: sorted(ids) for part, ids in parts.items()}
