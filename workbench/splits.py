"""Whole groups assigned to parts: disjoint, stratified by label, the same for the same seed."""

from __future__ import annotations

import hashlib
import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from workbench.errors import ArgumentError
from workbench.traces import examples


def groups_from_traces(trace_ids: Sequence[str], key: str) -> dict[str, str]:
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
