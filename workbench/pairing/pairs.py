"""Pairs: verdicts beside human labels, what made no pair, and their split to learn and test."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from workbench.errors import ArgumentError
from workbench.formatting import counted, html_lines, html_table, html_text, with_content
from workbench.pairing.splits import Groups, groups_of, joined, stratified
from workbench.scale import ABSTAIN, Scale
from workbench.store.tables import digest

COLUMNS = ["trace_id", "human", "judge", "human_rationale", "judge_rationale", "votes", "blind"]

# The model's own words at the end of a failure.
_SAID = re.compile(r"(?: after|:) (['\"]).*\1$", re.DOTALL)


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
    previews, content
        Trace id -> the beginnings of its inputs and outputs; and what tells whether these are
        equal to another trace's, as far as that is known.
    group_of
        Trace id -> group, where rows belong together: see `grouped`.
    earlier_fingerprint
        The fingerprint that earlier versions of the workbench gave to this judge version.
    """

    name: str
    table: pd.DataFrame
    excluded: pd.DataFrame
    scale: Scale
    fingerprint: str = ""
    notes: tuple[str, ...] = ()
    all_votes: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, repr=False)
    previews: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    content: Mapping[str, tuple[str, str]] = field(default_factory=dict, repr=False)
    group_of: Mapping[str, str] = field(default_factory=dict, repr=False)
    earlier_fingerprint: str = field(default="", repr=False)

    def __len__(self) -> int:
        return len(self.table)

    @property
    def trace_ids(self) -> list[str]:
        """The paired traces' ids, sorted."""
        return list(self.table["trace_id"])

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
        votes = {i: v for i, v in self.all_votes.items() if i in wanted}
        return replace(
            self, table=table, excluded=self.excluded.iloc[0:0], notes=(), all_votes=votes
        )

    def groups_of(self, groups: Groups) -> dict[str, str]:
        """Return the group of each trace that is paired or labelled: see `split`.

        Those of equal content are always joined.
        """
        return joined(groups_of(self.table, groups, self.all_votes), self.content)

    def grouped(self, groups: Groups) -> Pairs:
        """Return the pairs with what belongs together, as `split` takes it; None changes nothing.

        Intervals and tests then take the rows of a group for less than as many independent ones.
        """
        return self if groups is None else replace(self, group_of=self.groups_of(groups))

    @property
    def clusters(self) -> list[Hashable]:
        """The group of each row, or else its content: those of other rows are independent."""
        return self.clusters_of(self.table["trace_id"])

    def clusters_of(self, trace_ids: Iterable[str]) -> list[Hashable]:
        """Return the same of traces, in their order."""
        return [self.group_of.get(i, self.content.get(i, i)) for i in trace_ids]

    def with_verdicts(self, verdicts: Mapping[str, tuple[Any, str]], fingerprint: str) -> Pairs:
        """Return the labels with other verdicts: trace_id -> (canonical value, rationale)."""
        judged = self.table["trace_id"].isin(verdicts)
        rest = self.table.loc[~judged, ["trace_id"]]
        rest["reason"] = "the judge gave no usable verdict"
        table = self.table[judged].reset_index(drop=True)
        answers = [verdicts[i] for i in table["trace_id"]]
        table["judge"] = pd.Series([value for value, _ in answers], dtype=object)
        table["judge_rationale"] = [rationale for _, rationale in answers]
        excluded = pd.concat([self.excluded, rest], ignore_index=True)
        made_by: dict[str, Any] = {"fingerprint": fingerprint, "earlier_fingerprint": ""}
        return replace(self, table=table, excluded=excluded, **made_by)

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
        # Of pairs alone: an id of a trace that makes none differs from store to store.
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
        content, notes = self.content, tuple[str, ...]()
        inputs = {part: {content[i][0] for i in ids if i in content} for part, ids in parts.items()}
        if apart := inputs.pop("test") & set().union(*inputs.values()):
            notes = (
                f"{counted(len(apart), 'input')} of test also in train or dev, with another "
                "output: group by what identifies the input to keep them on one side.",
            )
        grouped = replace(self, group_of=group_of)
        return Split(
            notes=notes,
            train=grouped.subset(parts["train"]),
            dev=grouped.subset(parts.get("dev", ())),
            test=grouped.subset(parts["test"]),
            seed=seed,
            groups=groups if isinstance(groups, str) else ("mapping" if groups else None),
        )

    def __repr__(self) -> str:
        left_out = f", {len(self.excluded)} excluded" * bool(len(self.excluded))
        head = f"{self.name!r}: {counted(len(self), 'pair')}{left_out}, {self.scale.kind} scale"
        rows = with_content(self.table[COLUMNS[:3]].head(3), self.previews)
        text = "" if rows.empty else f"\n{rows.to_string(index=False, justify='left')}"
        return f"<Pairs {head}>{text}"

    def _repr_html_(self) -> str:
        head = f"{counted(len(self), 'pair')}, {self.scale.kind} scale"
        parts = [f"<b>{html_text(self.name)}</b>: {head}", html_lines(self.notes)]
        if len(self.excluded):
            parts.append(html_lines([f"Left out: {counted(len(self.excluded), 'trace')}"]))
            parts.append(html_table(self.reasons, index=False))
        shown = with_content(self.table[COLUMNS[:5]].head(10), self.previews)
        return "".join([*parts, html_table(shown, index=False)])


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
        sizes = f"train {len(self.train)}, dev {len(self.dev)}, test {len(self.test)}"
        return f"<Split {'. '.join([sizes, *self.notes])}>"


def dataset_digest(pairs: Pairs) -> str:
    """Return a hash of trace ids with their consensus labels: 16 hexadecimal digits."""
    rows = zip(pairs.table["trace_id"], map(str, pairs.table["human"]), strict=True)
    return digest(sorted(rows))[:16]
