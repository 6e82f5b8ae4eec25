"""Disagreements that look alike, put together so that rules can be asked for each group."""

from __future__ import annotations

import re
import warnings
import zlib
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import numpy as np

from workbench.candidate import one_line_json
from workbench.reflection import Case
from workbench.scale import Scale

LARGE = 16
"""Cases of one direction from which they are looked at in parts, by what they have in common."""

MOST_PARTS = 3
SMALLEST = 3
DIMENSIONS = 256


def by_direction(wrong: Sequence[Case], scale: Scale) -> dict[str, list[Case]]:
    """Cases by how the judge errs: too high or too low, or by label where values have no order."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in wrong:
        if scale.kind == "nominal":
            groups[f"people say {case.item.label}"].append(case)
        else:
            high = scale.rank(case.verdict.value) > scale.rank(case.item.label)
            groups["the judge rates too high" if high else "the judge rates too low"].append(case)
    return dict(sorted(groups.items()))


def alike(wrong: Sequence[Case], scale: Scale, seed: int) -> list[tuple[str, list[Case]]]:
    """(focus, cases): by direction, large ones parted by what their texts have in common.

    Groups of a single case are left out: nothing general can be read off one case.
    """
    groups: list[tuple[str, list[Case]]] = []
    for focus, cases in by_direction(wrong, scale).items():
        parts = _parts(cases, seed) if len(cases) >= LARGE else [cases]
        for number, part in enumerate(parts, start=1):
            name = focus if len(parts) == 1 else f"{focus}, like cases {number} of {len(parts)}"
            groups += [(name, part)] if len(part) > 1 else []
    return groups


def _parts(cases: Sequence[Case], seed: int) -> list[list[Case]]:
    """The cases by k-means on their hashed words; groups that came out small stay with all."""
    from scipy.cluster.vq import kmeans2

    vectors = np.array([_vector(_text(case)) for case in cases])
    distinct = len(np.unique(vectors, axis=0))
    wanted = min(MOST_PARTS, len(cases) // (LARGE // 2), distinct)
    if wanted < 2:
        return [list(cases)]
    generator = np.random.default_rng(abs(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a part that came out empty is dealt with below
        _, found = kmeans2(vectors, wanted, minit="++", rng=generator)
    parts = [[c for c, part in zip(cases, found, strict=True) if part == k] for k in range(wanted)]
    if any(len(part) < SMALLEST for part in parts):
        return [list(cases)]
    return parts


def _text(case: Case) -> str:
    """The reasons that people gave; what was rated where they gave none."""
    return case.item.rationale or one_line_json(case.item.example.outputs)


def _vector(text: str) -> Any:
    """Hashed bag of words of length 1."""
    vector = np.zeros(DIMENSIONS)
    for word in set(re.findall(r"\w{3,}", text.casefold())):
        vector[zlib.crc32(word.encode()) % DIMENSIONS] += 1.0
    return vector / (np.linalg.norm(vector) or 1.0)
