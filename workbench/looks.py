"""How often a held-out set was looked at: each look makes the best figure on it less honest.

The judge that does best of several on one test set does so by luck as well. So every judge that
is scored on held-out pairs leaves a mark in the run that is logged, and the next one on the same
pairs is told how many came before. The same judge scored again is no new look: it gives the same
figure.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

from workbench.watch import Place

if TYPE_CHECKING:
    from workbench.pairing import Pairs

TAG = "workbench.test_digest"


def test_digest(test: Pairs) -> str:
    """Identifies held-out pairs: the same traces in any order give the same text."""
    return hashlib.sha256(json.dumps(sorted(test.trace_ids)).encode()).hexdigest()[:16]


# Else pytest takes it for a test where it is imported.
test_digest.__test__ = False  # type: ignore[attr-defined]


def looks(test: Pairs, fingerprint: str, place: Place | None = None) -> int:
    """The number, from 1, of this judge among those that were scored on these pairs.

    Read from the runs in the active experiment, or where ``place`` says.
    """
    found = (place or Place.active()).runs(f"tags.`{TAG}` = '{test_digest(test)}'")
    marks = (logged.data.tags.get("workbench.fingerprint.aligned") for logged in found)
    seen = list(dict.fromkeys(mark for mark in marks if mark))
    return seen.index(fingerprint) + 1 if fingerprint in seen else len(seen) + 1


def looks_note(count: int) -> str:
    """What a count of looks means, in words; empty for the first."""
    if count < 2:
        return ""
    return (
        f"This is the {_ordinal(count)} judge that is scored on these held-out pairs. The best of "
        "several looks better than it is: label new traces to know how good it is."
    )


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{'th' if 10 < number % 100 < 20 else ending}"
