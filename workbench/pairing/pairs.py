"""Pairs: verdicts beside human labels, what made no pair, and their split to learn and test."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from workbench.errors import ArgumentError
from workbench.formatting import (
    counted,
    html_lines,
    html_table,
    html_text,
    text_table,
    with_content,
)
from workbench.scale import ABSTAIN, Scale
from workbench.store.tables import check_division, digest
from workbench.store.traces import Example, examples, item_digest
from workbench.vocabulary import group_key, is_unnamed

Groups = str | Mapping[str, Hashable] | None

LARGEST_GROUP = 0.3  # of a larger share in one group, grouping by inputs leaves nothing to split

COLUMNS = ["trace_id", "human", "judge", "human_rationale", "judge_rationale", "votes", "blind"]

# The model's own words at the end of a failure: without them, failures of a kind are one reason.
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
    source
        Who gave the verdicts where no fingerprint is known: the ``source`` of `log_verdicts`, say.
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
    source: str = field(default="", repr=False)

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

    def grouped(self, groups: Groups) -> Pairs:
        """Return the pairs with the groups of rows that belong together (see `split`)."""
        if groups is None:
            return self
        found = groups_of(self.table, groups, self.all_votes)
        return replace(self, group_of=joined(found, self.content))

    def clusters_of(self, trace_ids: Iterable[str]) -> list[Hashable]:
        """Return the group of each trace; one in no group belongs with those of equal content."""
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
        by: dict[str, Any] = {"fingerprint": fingerprint, "earlier_fingerprint": "", "source": ""}
        return replace(self, table=table, excluded=excluded, **by)

    @property
    def reasons(self) -> pd.DataFrame:
        """Why traces make no pair: ``reason``, ``traces`` (count), most frequent first."""
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
            never_test=never_test,
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
        text = "" if rows.empty else f"\n{text_table(rows)}"
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


# -- groups and parts -------------------------------------------------------------------------


def groups_of(table: pd.DataFrame, groups: Groups, others: Iterable[str] = ()) -> dict[str, str]:
    """Return the group of each trace of a table of pairs, and of ``others``, which make no pair.

    Keys are compared as text without case: "1", " 1" and "1.0" are one group, "1.1" and "1.10" two.
    Where most pairs have one, traces without (None, nan, "", "NULL") are each a group of their own.
    """
    check_division("groups", groups)
    ids, exist = list(table["trace_id"]), ""
    every = list(dict.fromkeys([*ids, *others]))
    if groups is None:
        return dict(zip(every, every, strict=True))
    if isinstance(groups, Mapping):
        found = {i: str(groups[i]) for i in every if i in groups}
    elif groups in table.columns:
        found = dict(zip(ids, map(str, table[groups]), strict=True))
    else:
        fields = trace_fields(examples(every))
        found = {i: field_text(value) for i, value in fields.get(groups, {}).items()}
        exist = f" These tags and inputs exist: {', '.join(map(repr, sorted(fields)))}."
    missing = [i for i in ids if is_unnamed(found.get(i))]
    has_gaps = isinstance(groups, Mapping) and not found.keys() >= {*ids}
    if missing and (has_gaps or 2 * len(missing) >= len(ids)):
        shown = f"={groups!r}" if isinstance(groups, str) else ""
        raise ArgumentError(
            f"groups{shown} names no group for {len(missing)} of {len(ids)} traces, e.g. "
            f"{missing[0]!r}. Every paired trace needs one.{exist}"
        )
    return {i: i if is_unnamed(found.get(i)) else group_key(found[i]) for i in every}


def trace_fields(items: Iterable[Example]) -> dict[str, dict[str, Any]]:
    """Return name -> trace id -> value of tags and inputs; a tag hides an input of its name."""
    fields: dict[str, dict[str, Any]] = defaultdict(dict)
    for one in items:
        inputs = one.inputs if isinstance(one.inputs, dict) else {}
        tags = {k: v for k, v in one.tags.items() if not k.startswith("workbench.")}
        for name, value in {**inputs, **tags}.items():
            fields[str(name)][one.trace_id] = value
    return fields


def field_text(value: Any) -> str:
    """Return what a trace holds under a name as text, lists and dicts as JSON."""
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, sort_keys=True, default=str)
    return str(value)


def default_groups(items: Sequence[Example]) -> dict[str, str]:
    """Return the group of each item where the user gives none: that of its inputs.

    Where most items have the same inputs, only items with the same content belong together.
    """
    by_inputs = {item.trace_id: item_digest(item, ("inputs",)) for item in items}
    sizes = Counter(by_inputs.values())
    if len(sizes) >= 5 and max(sizes.values()) <= LARGEST_GROUP * len(items):
        return by_inputs
    return {item.trace_id: item_digest(item) for item in items}


def joined(group_of: Mapping[str, str], content: Mapping[str, Hashable]) -> dict[str, str]:
    """Return the groups, those that share a trace with the same content joined."""
    from scipy.cluster.hierarchy import DisjointSet

    sets, first = DisjointSet(group_of.values()), dict[Hashable, str]()
    for trace_id, same in content.items():
        if trace_id in group_of:
            sets.merge(group_of[trace_id], first.setdefault(same, group_of[trace_id]))
    name = {group: min(together) for together in sets.subsets() for group in together}
    return {trace_id: name[group] for trace_id, group in group_of.items()}


def stratified(
    label_of: Mapping[str, str],
    group_of: Mapping[str, str],
    shares: Mapping[str, float],
    seed: int,
    *,
    never_test: Collection[str] = (),
) -> dict[str, list[str]]:
    """Assign whole groups to parts so that each part's label counts come near its share.

    Groups go largest first, ties in an order drawn by ``seed``. The items of ``never_test``, and
    their groups, come into no part "test". A part that would stay empty is an `ArgumentError`.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for trace_id in sorted(label_of):
        members[group_of[trace_id]].append(trace_id)
    barred = {group_of.get(i) for i in never_test}
    totals = Counter(label_of.values())
    parts: dict[str, list[str]] = {name: [] for name in shares}
    counts: dict[str, Counter[str]] = {name: Counter() for name in shares}
    # Groups that are barred from test have less choice, so they go first.
    queue = sorted(members, key=lambda g: (g not in barred, -len(members[g]), _draw(seed, g)))
    for position, group in enumerate(queue):
        choice = [name for name in parts if name != "test" or group not in barred]
        empty = [name for name in choice if not parts[name]]
        # The last groups go to parts that would otherwise stay empty.
        if empty and len(queue) - position <= len(empty):
            choice = empty
        labels = Counter(label_of[i] for i in members[group])
        need = {name: _need(counts[name], shares[name], labels, totals) for name in choice}
        best = max(choice, key=lambda name: (need[name], _draw(seed, f"{group}:{name}")))
        counts[best].update(labels)
        parts[best] += members[group]
    empty = [name for name in shares if not parts[name]]
    if empty:
        why = " that no judge before this one learned from" if barred else ""
        raise ArgumentError(
            f"{len(label_of)} pairs in {counted(len(members), 'group')} cannot be split into "
            f"{len(shares)} parts: nothing{why} is left for {empty[0]}. Label more, or group by "
            "something finer."
        )
    return {name: sorted(ids) for name, ids in parts.items()}


def _need(counts: Counter[str], share: float, labels: Counter[str], totals: Counter[str]) -> float:
    """How far a part is below its share of these labels and of all items."""
    by_label = sum(n * (1 - counts[label] / (share * totals[label])) for label, n in labels.items())
    return by_label + 0.5 * (1 - counts.total() / (share * totals.total())) * labels.total()


def stratified_order(stratum_of: Mapping[str, Hashable], seed: int) -> list[str]:
    """Return the items in an order, drawn by ``seed``, in which every beginning is stratified."""
    members: dict[Hashable, list[str]] = defaultdict(list)
    for item in sorted(stratum_of, key=lambda one: _draw(seed, one)):
        members[stratum_of[item]].append(item)
    place = {
        item: (rank + 0.5) / len(items)
        for items in members.values()
        for rank, item in enumerate(items)
    }
    return sorted(place, key=lambda item: (place[item], _draw(seed, item)))


def _draw(seed: int, name: str) -> str:
    """A text whose order among others is random, the same for the same seed."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
