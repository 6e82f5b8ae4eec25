"""`pair`: a judge's verdicts joined with the human labels under its name; `Pairs` and `Split`.

Only valid assessments count. Names match exactly. Every trace that makes no pair is listed
in `Pairs.excluded` with its reason, and the order in which assessments arrived never matters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd
from mlflow.entities import Trace
from mlflow.genai.judges import Judge

from workbench.errors import ArgumentError, NoLabelsError, NoVerdictsError, ScaleError, one_of
from workbench.formatting import counted, html_table, html_text, with_content
from workbench.judging.judge import fingerprint_of
from workbench.judging.verdicts import (
    Recorded,
    choose_version,
    read_verdict,
    recorded_verdicts,
    where,
)
from workbench.pairing.consensus import (
    RULES,
    HumanLabel,
    decisions_by_trace,
    known_scale,
    labels_by_trace,
    name_of,
    read_label,
)
from workbench.pairing.splits import Groups, groups_of, inputs_apart, joined, stratified
from workbench.scale import ABSTAIN, Scale
from workbench.store.labels import folded, near_misses, other_kinds
from workbench.store.tables import digest
from workbench.store.traces import collector_paused, fetch_traces, previews

COLUMNS = ["trace_id", "human", "judge", "human_rationale", "judge_rationale", "votes", "blind"]


_SAID = re.compile(r"(?: after|:) (['\"]).*\1$", re.DOTALL)
"""The model's own words at the end of a failure."""


@dataclass(frozen=True)
class Pairs:
    """Judge verdicts and human labels on the same traces.

    Attributes
    ----------
    table
        One row a trace, sorted by ``trace_id``: ``trace_id``, ``human`` and ``judge`` (canonical
        values), ``human_rationale`` (of those who voted for it), ``judge_rationale``, ``votes``
        (annotator -> canonical value or `ABSTAIN`), ``blind`` (False after seeing the verdict).
    excluded
        One row a trace that makes no pair: ``trace_id``, ``reason``.
    fingerprint, notes
        The judge version that gave the verdicts, "" where unknown; what a reader should know.
    all_votes
        Trace id -> annotator -> value, for every labelled trace, paired or not.
    previews
        Trace id -> the beginnings of its inputs and outputs, of the paired traces.
    """

    name: str
    table: pd.DataFrame
    excluded: pd.DataFrame
    scale: Scale
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    all_votes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    previews: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def trace_ids(self) -> list[str]:
        """The paired traces' ids, sorted."""
        return list(self.table["trace_id"])

    @property
    def distinct(self) -> int:
        """How many of the pairs differ in inputs or outputs, as far as that is known."""
        content = self.content
        return len({content.get(i, i) for i in self.trace_ids})

    @property
    def content(self) -> dict[str, tuple[str, str]]:
        """`previews` that hold any text: what is equal here repeats itself."""
        return {i: texts for i, texts in self.previews.items() if any(texts)}

    @property
    def votes(self) -> pd.DataFrame:
        """Index trace_id (of every labelled trace), one column an annotator; None for no vote."""
        every = self.all_votes or dict(zip(self.trace_ids, self.table["votes"], strict=True))
        ids = sorted(every)
        columns = {
            who: [None if (v := every[i].get(who)) is ABSTAIN else v for i in ids]
            for who in sorted({who for votes in every.values() for who in votes})
        }
        return pd.DataFrame(columns, index=pd.Index(ids, name="trace_id"), dtype=object)

    @property
    def contested(self) -> int:
        """How many items are not among the pairs since their annotators differ."""
        reasons = ("annotators tie", "annotators are not unanimous")
        return int(self.excluded["reason"].isin(reasons).sum())

    def subset(self, trace_ids: Iterable[str]) -> Pairs:
        """Return the pairs of the given traces, with nothing excluded."""
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
        """Return the labels with other verdicts: trace_id -> (canonical value, rationale)."""
        judged = self.table["trace_id"].isin(verdicts)
        rest = self.table.loc[~judged, ["trace_id"]]
        rest["reason"] = "the judge gave no usable verdict"
        table = self.table[judged].reset_index(drop=True)
        answers = [verdicts[i] for i in table["trace_id"]]
        table["judge"] = pd.Series([value for value, _ in answers], dtype=object)
        table["judge_rationale"] = [rationale for _, rationale in answers]
        return replace(
            self,
            table=table,
            excluded=pd.concat([self.excluded, rest], ignore_index=True),
            fingerprint=fingerprint,
        )

    @property
    def reasons(self) -> pd.DataFrame:
        """Why traces make no pair: ``reason``, ``traces`` (count), most frequent first.

        What a judge said that failed stands in `excluded` only, so that failures of a kind are one.
        """
        counts = Counter(_SAID.sub("", reason) for reason in self.excluded["reason"])
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

        ``test_size`` is a share of all pairs, in (0, 1), and ``dev_size`` of the rest, in [0, 1).
        The same ``seed``, pairs and groups give the same split. Traces with the same inputs and
        outputs stay on one side.

        Parameters
        ----------
        groups
            What must stay on one side: a table column, a trace tag, a key of the traces' inputs,
            or a mapping trace_id -> group. None: every trace by itself.
        never_test
            Traces that must not be tested on, nor their groups, since a judge learned on them.

        Raises
        ------
        ArgumentError
            For shares out of range, an unknown group, or too few groups to fill the parts.
        """
        if not 0 < test_size < 1 or not 0 <= dev_size < 1:
            raise ArgumentError(
                f"test_size={test_size} must lie in (0, 1) and dev_size={dev_size} in [0, 1)."
            )
        group_of = joined(groups_of(self.table, groups), self.content)
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
            notes=tuple(inputs_apart(parts, {i: texts[0] for i, texts in self.content.items()})),
            train=self.subset(parts["train"]),
            dev=self.subset(parts.get("dev", ())),
            test=self.subset(parts["test"]),
            seed=seed,
            groups=groups if isinstance(groups, str) else ("mapping" if groups else None),
            group_of=group_of,
        )

    def __repr__(self) -> str:
        left_out = f", {len(self.excluded)} excluded" * bool(len(self.excluded))
        pairs = counted(len(self), "pair")
        head = f"<Pairs {self.name!r}: {pairs}{left_out}, {self.scale.kind} scale>"
        rows = with_content(self.table[COLUMNS[:3]].head(3), self.previews)
        return head if rows.empty else f"{head}\n{rows.to_string(index=False, justify='left')}"

    def _repr_html_(self) -> str:
        pairs = counted(len(self), "pair")
        parts = [f"<b>{html_text(self.name)}</b>: {pairs}, {self.scale.kind} scale"]
        parts += [f"<div>{html_text(note)}</div>" for note in self.notes]
        if len(self.excluded):
            parts.append(f"<div>Left out: {counted(len(self.excluded), 'trace')}</div>")
            parts.append(html_table(self.reasons, index=False))
        shown = with_content(self.table[COLUMNS[:5]].head(10), self.previews)
        parts.append(html_table(shown, index=False))
        return "".join(parts)


@dataclass(frozen=True)
class Split:
    """Train, dev and test pairs: disjoint by trace and by group.

    ``groups`` names what was kept together, and ``notes`` what may be on both sides. Equal digests
    mean the same traces in the same parts.
    """

    train: Pairs
    dev: Pairs
    test: Pairs
    seed: int
    groups: str | None = None
    group_of: Mapping[str, str] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

    @property
    def digest(self) -> str:
        return digest(self.to_dict()["traces"])[:16]

    def to_dict(self) -> dict[str, Any]:
        """The split as plain data, as it is stored with the run that used it."""
        return {
            "seed": self.seed,
            "groups": self.groups,
            "traces": {part: getattr(self, part).trace_ids for part in ("train", "dev", "test")},
        }

    def __repr__(self) -> str:
        return f"<Split train {len(self.train)}, dev {len(self.dev)}, test {len(self.test)}>"


def dataset_digest(pairs: Pairs) -> str:
    """Return a hash of trace ids with their consensus labels: 16 hexadecimal digits."""
    rows = zip(pairs.table["trace_id"], map(str, pairs.table["human"]), strict=True)
    return digest(sorted(rows))[:16]


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
    if source is not None and not isinstance(judge_or_name, str):
        raise ArgumentError(
            f"source={source!r} chooses among the verdicts under a name. Give the name: "
            f"workbench.pair({name!r}, source={source!r})."
        )
    fetched = fetch_traces(traces, spans=False)
    labels, decisions = labels_by_trace(fetched, name), decisions_by_trace(fetched, name)
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
    recorded = _recorded(fetched, name, source)
    chosen, version, notes = choose_version(judge_or_name, recorded, fingerprint_of(judge_or_name))
    if not any(chosen.values()):
        raise NoVerdictsError(_no_verdicts(name, len(labels), recorded))
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
    return Pairs(
        name=name,
        table=table,
        excluded=excluded,
        scale=scale.with_range([*table["human"], *table["judge"]]),
        fingerprint=version,
        notes=(*notes, *_notes(name, human, scale), *near),
        all_votes={i: one.votes for i, one in human.items() if one.votes},
        previews=previews(fetched),
    )


def _no_verdicts(name: str, labelled: int, recorded: Mapping[str, Sequence[Recorded]]) -> str:
    others = sum(map(bool, recorded.values()))
    return (
        f"{labelled} traces are labelled under {name!r}, but this judge has judged none of them"
        + f" ({others} traces have verdicts of another version or source)" * bool(others)
        + ". Run workbench.assess(judge, traces), or log recorded verdicts with "
        f"workbench.log_verdicts(table, name={name!r}, ...)."
    )


def _recorded(traces: Sequence[Trace], name: str, source: str | None) -> dict[str, list[Recorded]]:
    """Return the stored verdicts under the name, by trace; only those by a source if given."""
    recorded = {t.info.trace_id: recorded_verdicts(t, name) for t in traces}
    sources = {v.source for verdicts in recorded.values() for v in verdicts}
    if source is None or not sources:
        return recorded
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
    seen = sum(one.fault is None and not one.blind for one in human.values())
    if seen:
        notes.append(f"Given after their author saw the judge's verdict: {counted(seen, 'label')}.")
    return notes
