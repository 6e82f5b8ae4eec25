"""Whole groups assigned to parts: disjoint, stratified by label, the same for the same seed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence

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
    counts are then furthest below what its share asks for. Every part gets at least one group.
    ``barred`` names for a part the items that must not come into it, nor their groups.

    Raises
    ------
    ArgumentError
        When there are fewer groups than parts, or a part would stay empty.
    """
    shut = {
        part: {group_of[i] for i in ids if i in group_of} for part, ids in (barred or {}).items()
    }
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
    barred_groups = set().union(*shut.values()) if shut else set()
    # Groups that are barred somewhere have less choice, so they go first.
    queue = sorted(members, key=lambda g: (g not in barred_groups, -len(members[g]), drawn(g)))
    for position, group in enumerate(queue):
        here = Counter(label_of[i] for i in members[group])
        open_ = [part for part in shares if group not in shut.get(part, ())]
        empty = [part for part in open_ if not parts[part]]
        # The last groups go to parts that would otherwise stay empty.
        candidates = empty if empty and len(queue) - position <= len(empty) else open_

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
    for part, ids in parts.items():
        if not ids:
            raise ArgumentError(
                f"Nothing is left for {part} in {len(label_of)} pairs and {len(members)} groups. "
                "Label more traces, or group by something finer."
            )
    return {part: sorted(ids) for part, ids in parts.items()}
