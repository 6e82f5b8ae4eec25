"""Whole groups assigned to parts: disjoint, stratified by label, the same for the same seed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from workbench.errors import ArgumentError
from workbench.formatting import counted
from workbench.store.traces import Example, examples, item_digest
from workbench.vocabulary import group_key, is_unnamed

Groups = str | Mapping[str, Hashable] | None

LARGEST_GROUP = 0.3  # of a larger share in one group, grouping by inputs leaves nothing to split


def groups_of(table: pd.DataFrame, groups: Groups, others: Iterable[str] = ()) -> dict[str, str]:
    """Return the group of each trace of a table of pairs (see `Pairs.split` for ``groups``).

    Of ``others``, which make no pair, those that no group is named for are each one of their own.

    Keys are compared as text without case: "1", " 1" and "1.0" are one group, "1.1" and "1.10" two.
    Where most traces have one, those without (None, nan, "", "NULL") are each a group of their own.
    """
    ids, exist = list(table["trace_id"]), ""
    every = list(dict.fromkeys([*ids, *others]))
    if groups is None:
        return {i: i for i in every}  # as they are
    if isinstance(groups, Mapping):
        found = {i: str(groups[i]) for i in every if i in groups}
    elif groups in table.columns:
        found = dict(zip(ids, map(str, table[groups]), strict=True))
    else:
        fields = {
            one.trace_id: {**(one.inputs if isinstance(one.inputs, dict) else {}), **one.tags}
            for one in examples(every)
        }
        found = {i: field_text(held[groups]) for i, held in fields.items() if groups in held}
        known = sorted(set[str]().union(*fields.values()))
        exist = f" These tags and inputs exist: {', '.join(map(repr, known))}."
    missing = [i for i in ids if is_unnamed(found.get(i))]
    has_gaps = isinstance(groups, Mapping) and not found.keys() >= {*ids}
    if missing and (has_gaps or 2 * len(missing) >= len(ids)):
        shown = f"={groups!r}" if isinstance(groups, str) else ""
        raise ArgumentError(
            f"groups{shown} names no group for {len(missing)} of {len(ids)} traces, e.g. "
            f"{missing[0]!r}. Every paired trace needs one.{exist}"
        )
    return {i: i if is_unnamed(found.get(i)) else group_key(found[i]) for i in every}


def field_text(value: Any) -> str:
    """Return what a trace holds under a name as text, lists and dicts as JSON."""
    if isinstance(value, (list, tuple, dict)):
        return json.dumps(value, sort_keys=True, default=str)
    return str(value)


def default_groups(items: Sequence[Example]) -> dict[str, str]:
    """Return the group of each item where the user gives none: that of its inputs.

    The same question answered twice must not be on both sides of a split. Where most items have
    the same inputs, only items with the same content belong together.
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
    barred: Mapping[str, Collection[str]] | None = None,
) -> dict[str, list[str]]:
    """Assign whole groups to parts so that each part's label counts come near its share.

    Groups go largest first, ties in an order drawn by ``seed``, each to the part whose label
    counts are then furthest below its share. ``barred`` names for a part the items that must not
    come into it, nor their groups. A part that would stay empty is an `ArgumentError`.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for trace_id in sorted(label_of):
        members[group_of[trace_id]].append(trace_id)
    closed = {part: {group_of.get(i) for i in ids} for part, ids in (barred or {}).items()}
    totals = Counter(label_of.values())
    parts: dict[str, list[str]] = {name: [] for name in shares}
    counts: dict[str, Counter[str]] = {name: Counter() for name in shares}
    # Groups that are barred somewhere have less choice, so they go first.
    free = set(members).difference(*closed.values())
    queue = sorted(members, key=lambda g: (g in free, -len(members[g]), _draw(seed, g)))
    for position, group in enumerate(queue):
        choice = [name for name in parts if group not in closed.get(name, ())]
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
        why = " that no judge before this one learned from" if any(closed.values()) else ""
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
