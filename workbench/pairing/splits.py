"""Whole groups assigned to parts: disjoint, stratified by label, the same for the same seed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from workbench.errors import ArgumentError
from workbench.store.traces import Example, examples, item_digest


def groups_from_traces(trace_ids: Sequence[str], key: str) -> dict[str, str]:
    """Return the group of each trace, the value of a tag or of a key of the inputs."""
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


LARGEST_GROUP = 0.3
"""Share of all items in one group above which grouping by inputs leaves nothing to split."""


def default_groups(items: Sequence[Example]) -> dict[str, str]:
    """Return the group of each item where the user gives none.

    Items with the same inputs belong together, since the same question answered twice must not
    be on both sides of a split. Where most items have the same inputs, only items with the same
    content belong together.
    """
    by_inputs = {item.trace_id: item_digest(item, ("inputs",)) for item in items}
    sizes = Counter(by_inputs.values())
    if len(sizes) >= 5 and max(sizes.values()) <= LARGEST_GROUP * len(items):
        return by_inputs
    return {item.trace_id: item_digest(item) for item in items}


def with_equal_items(group_of: Mapping[str, str], items: Sequence[Example]) -> dict[str, str]:
    """Return the groups, those that share an item with the same content joined."""
    root = {group: group for group in group_of.values()}

    def find(group: str) -> str:
        while root[group] != group:
            group = root[group]
        return group

    holder: dict[str, str] = {}
    for item in sorted(items, key=lambda one: one.trace_id):
        if item.trace_id not in group_of:
            continue
        mine = find(group_of[item.trace_id])
        other = find(holder.setdefault(item_digest(item), mine))
        root[max(mine, other)] = min(mine, other)
    return {trace_id: find(group) for trace_id, group in group_of.items()}


@dataclass
class _Part:
    """A part of a split: its share of all items, and what it holds so far."""

    share: float
    ids: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)

    def need(self, labels: Counter[str], totals: Counter[str]) -> float:
        """Return how far the part is below its share of these labels and of all items."""
        by_label = sum(
            n * (1 - self.counts[label] / (self.share * totals[label]))
            for label, n in labels.items()
        )
        by_size = 1 - sum(self.counts.values()) / (self.share * sum(totals.values()))
        return by_label + 0.5 * by_size * sum(labels.values())


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
    counts are then furthest below its share. Every part gets at least one group.
    ``barred`` names for a part the items that must not come into it, nor their groups.

    Raises
    ------
    ArgumentError
        When there are fewer groups than parts, or a part would stay empty.
    """
    members: dict[str, list[str]] = defaultdict(list)
    for trace_id in sorted(label_of):
        members[group_of[trace_id]].append(trace_id)
    if len(members) < len(shares):
        raise ArgumentError(
            f"{len(label_of)} pairs in {len(members)} groups cannot be split into "
            f"{len(shares)} parts. Label more traces, or group by something finer."
        )
    barred_groups = {
        part: {group_of[i] for i in ids if i in group_of} for part, ids in (barred or {}).items()
    }
    totals = Counter(label_of.values())
    parts = {name: _Part(share) for name, share in shares.items()}
    # Groups that are barred somewhere have less choice, so they go first.
    free = set(members).difference(*barred_groups.values())
    queue = sorted(members, key=lambda g: (g in free, -len(members[g]), _draw(seed, g)))
    for position, group in enumerate(queue):
        open_parts = [name for name in parts if group not in barred_groups.get(name, ())]
        empty = [name for name in open_parts if not parts[name].ids]
        # The last groups go to parts that would otherwise stay empty.
        candidates = empty if empty and len(queue) - position <= len(empty) else open_parts
        labels = Counter(label_of[i] for i in members[group])
        ranked = {
            name: (parts[name].need(labels, totals), _draw(seed, f"{group}:{name}"))
            for name in candidates
        }
        best = parts[max(ranked, key=ranked.__getitem__)]
        best.counts.update(labels)
        best.ids.extend(members[group])
    for name, part in parts.items():
        if not part.ids:
            raise ArgumentError(
                f"Nothing is left for {name} in {len(label_of)} pairs and {len(members)} groups. "
                "Label more traces, or group by something finer."
            )
    return {name: sorted(part.ids) for name, part in parts.items()}


def _draw(seed: int, name: str) -> str:
    """Return a text whose order among others is random, the same for the same seed."""
    return hashlib.sha256(f"{seed}:{name}".encode()).hexdigest()
