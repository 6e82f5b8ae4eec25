"""Votes as numbers, items by annotators, and what is compared within an item or of two people.

Nothing here allocates by items times values, of which there are many where people give numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from workbench.metrics.coefficients import cells, quadratic_kappa
from workbench.metrics.intervals import Array, ratio
from workbench.metrics.reliability import Level
from workbench.scale import ABSTAIN, Scale
from workbench.vocabulary import is_missing


def scale_seen(votes: pd.DataFrame) -> Scale | None:
    """Return the scale of the values; None where all are one value, on which nothing can differ."""
    seen = [v for v in votes.to_numpy().ravel().tolist() if not is_missing(v)]
    return None if len(set(seen)) <= 1 else Scale.from_values(seen)


def coded_votes(votes: pd.DataFrame, scale: Scale | None) -> tuple[list[Any], Array]:
    """Return the categories in order, and the number of each vote's, items by annotators.

    -1 stands for no vote.
    """
    cells_of = votes.to_numpy(dtype=object).ravel().tolist()
    read: dict[Any, Any] = {}  # each writing once
    for raw in cells_of:
        key = (type(raw), raw)
        if key not in read:
            missing = raw is ABSTAIN or is_missing(raw)
            read[key] = ABSTAIN if missing else scale.normalise(raw) if scale else raw
    seen = {value for value in read.values() if value is not ABSTAIN}
    values = list(scale.values) if scale and scale.values else sorted(seen)
    number = {ABSTAIN: -1} | {value: k for k, value in enumerate(values)}
    codes = [number[read[type(raw), raw]] for raw in cells_of]
    return values or [None], np.array(codes, dtype=int).reshape(votes.shape)


def kinds_of_items(codes: Array) -> tuple[Array, Array]:
    """Return the first item of each distinct row of codes, and how often each occurs."""
    if not codes.size:
        return np.arange(len(codes)), np.ones(len(codes), dtype=int)
    _, first, times = np.unique(codes, axis=0, return_index=True, return_counts=True)
    return first, times


def counts_of(codes: Array, size: int) -> Array:
    """Return how many annotators gave each item each category, shape (items, categories)."""
    return np.stack([(codes == k).sum(axis=1) for k in range(size)], axis=1)


def within_items(codes: Array) -> Array:
    """Return codes that count from 0 within each item, -1 for none: equal ones stay equal."""
    if not codes.size:
        return codes
    order = np.argsort(codes, axis=1)
    ranked = np.take_along_axis(codes, order, axis=1)
    steps = np.diff(ranked, axis=1, prepend=ranked[:, :1]) > 0
    found = np.empty_like(codes)
    np.put_along_axis(found, order, np.cumsum(steps, axis=1) - (ranked[:, :1] < 0), axis=1)
    return found


def pairwise(
    names: tuple[str, ...], codes: Array, positions: Array, *, ordered: bool
) -> pd.DataFrame:
    """Return a row for each two annotators, as `AnnotatorAgreement` has it."""
    rows = []
    for a, b in combinations(range(len(names)), 2):
        both = (codes[:, a] >= 0) & (codes[:, b] >= 0)
        (left, right), counts, _ = cells(codes[both, a], codes[both, b])
        n, size = int(both.sum()), len(positions)
        right_share = ratio(counts[left == right].sum(), n)
        margins = [np.bincount(side, counts, minlength=size) for side in (left, right)]
        by_chance = ratio(float(margins[0] @ margins[1]), n * n)
        kappas = [ratio(right_share - by_chance, 1 - by_chance) if by_chance < 1 else math.nan]
        if ordered:
            at = positions[left], positions[right]
            kappas.append(float(quadratic_kappa(*at, counts)) if n else math.nan)
        rows.append([names[a], names[b], n, right_share, *kappas])
    columns = ["annotator_a", "annotator_b", "n", "accuracy", "kappa"]
    return pd.DataFrame(rows, columns=[*columns, *(["weighted_kappa"] if ordered else [])])


def against_others(codes: Array, counts: Array) -> Array:
    """Return each label's accuracy against the others' majority, (items, annotators).

    ``codes`` are those of `within_items`, with their ``counts``; nan where there is no label.
    """
    found = np.full(codes.shape, math.nan)
    for a, given in enumerate(codes.T):
        items = np.flatnonzero(given >= 0)
        label = (np.arange(len(items)), given[items])
        others = counts[items]
        others[label] -= 1
        most = others.max(axis=1, keepdims=True, initial=1)
        tied = others == most
        with np.errstate(invalid="ignore"):
            found[items, a] = tied[label] / tied.sum(axis=1)
    return found


def contested_items(
    index: pd.Index[Any], values: list[Any], codes: Array, positions: Array, level: Level
) -> pd.DataFrame:
    """Return the items on which annotators differ, the most contested first."""
    items = np.flatnonzero((within_items(codes) > 0).any(axis=1))
    given = codes[items]
    labels = (given >= 0).sum(axis=1)
    apart = _apart(given, positions, level) / np.maximum(labels * (labels - 1), 1)
    order = np.lexsort((items, -labels, -apart))
    said = [
        ", ".join(f"{values[k]}: {n}" for k, n in sorted(Counter(row[row >= 0].tolist()).items()))
        for row in given[order]
    ]
    return pd.DataFrame(
        {
            "item": index.to_numpy()[items[order]],
            "labels": labels[order],
            "disagreement": apart[order],
            "votes": said,
        }
    )


def _apart(codes: Array, positions: Array, level: Level) -> Array:
    """The distance of each two labels of an item, in [0, 1], summed over both orders."""
    if level == "nominal":
        own = within_items(codes)
        counts = counts_of(own, int(own.max(initial=0)) + 1)
        return np.asarray(counts.sum(axis=1) ** 2 - (counts**2).sum(axis=1), dtype=float)
    # Of sorted labels each is the greater one of as many pairs as there are labels before it.
    at = np.sort(np.where(codes >= 0, positions[codes], math.nan), axis=1)
    labels = (codes >= 0).sum(axis=1, keepdims=True)
    weights = 2 * np.arange(codes.shape[1]) - labels + 1
    span = float(np.ptp(positions)) or 1.0
    return np.asarray(2 * np.nansum(at * weights, axis=1) / span)


def equally_rated(codes: Array) -> Array:
    """Return the codes of the items that `AnnotatorAgreement.fleiss` covers, two labels at least.

    -1 stands for annotators who are not among the raters of an item.
    """
    given = codes >= 0
    labels = given.sum(axis=1)
    if len(set(labels.tolist()) - {0, 1}) <= 1:
        return np.asarray(codes[labels >= 2])
    by_activity = np.argsort(-given.sum(axis=0), kind="stable")
    groups = [by_activity[:k] for k in range(2, len(by_activity) + 1)]
    group = max(groups, key=lambda g: (given[:, g].all(axis=1).sum() * len(g), len(g)))
    return np.asarray(codes[np.ix_(given[:, group].all(axis=1), group)])
