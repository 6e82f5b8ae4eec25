"""How often held-out items were looked at: each look makes the best figure on them less honest.

The judge that does best of several on one test set does so by luck as well. So every judge leaves
a mark in the store before it is scored on held-out items, and whatever happens afterwards. What
counts are items and not test sets: another seed draws another test set, but many of its items were
in the one before. Items are known by their content and the name of their labels, wherever in the
store they were scored. The same judge on the same item again is no new look: it gives the same
verdict.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from workbench.pairing import Pairs
from workbench.traces import Example, item_digest
from workbench.watch import Place

JUDGE = "workbench.fingerprint.aligned"
"""Tag of a run that tells which judge it scored."""

ITEMS = "workbench.test_items"
"""Tags of a run, numbered, that tell on which items: digests with commas between."""

DIGITS = 8
"""Hexadecimal digits of an item's digest; that two of 10,000 items share one hardly matters."""

ITEMS_IN_A_TAG = 500
"""So that a tag stays below 5,000 characters, the least that a store takes."""


@dataclass(frozen=True)
class Looks:
    """How many judges were scored on the items of a test set, the original ones aside.

    Attributes
    ----------
    most, mean
        Judges an item: the largest number and the mean over items, those here included.
    earlier
        The largest number of others, that is of judges that were scored before.
    items
        Items in the test set; those with equal content are one.
    """

    most: int = 0
    mean: float = 0.0
    earlier: int = 0
    items: int = 0

    @property
    def note(self) -> str:
        """What the count means, in words; empty where nobody looked before."""
        if not self.earlier:
            return ""
        return (
            f"Held-out items were looked at before: of these {self.items}, some have now been used "
            f"to score {self.most} different judges (on average {self.mean:.1f}), what is scored "
            "here included. The best of several looks better than it is: label new traces to know "
            "how good it is."
        )


def looks(
    test: Pairs, items: Mapping[str, Example], *fingerprints: str, place: Place | None = None
) -> Looks:
    """The judges that were scored on these held-out pairs, those of ``fingerprints`` included.

    Read from the runs of all experiments in the store that is active, or that ``place`` names.
    """
    digests = test_items(test, items)
    judges: dict[str, set[str]] = defaultdict(set)
    for run in (place or Place.active()).runs(f"tags.`{ITEMS}.0` LIKE '%'"):
        judge = run.data.tags.get(JUDGE)
        if judge:
            for item in digests.intersection(_listed(run.data.tags)):
                judges[item].add(judge)
    here = set(fingerprints)
    counts = [len(judges[item] | here) for item in digests]
    return Looks(
        most=max(counts, default=0),
        mean=sum(counts) / len(counts) if counts else 0.0,
        earlier=max((len(judges[item] - here) for item in digests), default=0),
        items=len(digests),
    )


def marks(test: Pairs, items: Mapping[str, Example], fingerprint: str) -> dict[str, str]:
    """The tags by which a run tells that this judge is scored on these pairs."""
    digests = sorted(test_items(test, items))
    parts = range(0, len(digests), ITEMS_IN_A_TAG)
    listed = {
        f"{ITEMS}.{number}": ",".join(digests[begin : begin + ITEMS_IN_A_TAG])
        for number, begin in enumerate(parts)
    }
    return {JUDGE: fingerprint, **listed}


def test_items(test: Pairs, items: Mapping[str, Example]) -> set[str]:
    """What identifies the held-out items: their content, and the name of what people said."""
    return {_digest(test.name, items[trace_id]) for trace_id in test.trace_ids}


# Else pytest takes it for a test where it is imported.
test_items.__test__ = False  # type: ignore[attr-defined]


def _digest(name: str, item: Example) -> str:
    text = json.dumps([name, item_digest(item)])
    return hashlib.sha256(text.encode()).hexdigest()[:DIGITS]


def _listed(tags: Mapping[str, str]) -> Iterator[str]:
    number = 0
    while (part := tags.get(f"{ITEMS}.{number}")) is not None:
        yield from part.split(",")
        number += 1
