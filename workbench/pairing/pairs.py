"""Pairs of one verdict and one human label on a trace, what makes no pair, and their splits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from workbench.errors import ArgumentError
from workbench.formatting import html_table, html_text
from workbench.pairing.splits import groups_from_traces, stratified
from workbench.scale import ABSTAIN, Scale
from workbench.store.tables import digest

Groups = str | Mapping[str, Hashable] | None


COLUMNS = ["trace_id", "human", "judge", "human_rationale", "judge_rationale", "votes", "blind"]


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
        """Return the labels with other verdicts: trace_id -> (canonical value, rationale).

        Traces without a verdict leave the table and are listed in ``excluded``.
        """
        judged = self.table["trace_id"].isin(verdicts)
        kept, gone = self.table[judged].copy(), self.table.loc[~judged, ["trace_id"]]
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
        """Return the group of each paired trace (see `split` for what ``groups`` may be)."""
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
