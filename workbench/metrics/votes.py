"""Annotators' labels as codes: a row an item, a column an annotator, -1 where there is none."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Any

import numpy as np
import pandas as pd

from workbench.metrics.intervals import Array
from workbench.scale import ABSTAIN, Scale, is_abstention, no_rating
from workbench.vocabulary import check_people


def coded_votes(votes: pd.DataFrame, scale: Scale | None) -> tuple[list[Any], Array]:
    """The categories in order, and the number of each vote's, shape (items, annotators)."""
    check_people("The table", votes.columns)

    @lru_cache(maxsize=None, typed=True)  # each writing once
    def read(raw: Any) -> Any:
        if no_rating(raw, scale) or (scale is None and is_abstention(raw)):
            return ABSTAIN
        return scale.normalise(raw) if scale else "the one value"

    given = [read(raw) for raw in votes.to_numpy(dtype=object).ravel().tolist()]
    values = list(scale.values) if scale else []
    values = values or sorted(set(given) - {ABSTAIN})
    number = {ABSTAIN: -1} | {value: k for k, value in enumerate(values)}
    return values, np.array([number[v] for v in given], dtype=int).reshape(votes.shape)


def counts_of(codes: Array, size: int) -> Array:
    """How many annotators gave each item each category, shape (items, categories)."""
    return np.stack([(codes == k).sum(axis=1) for k in range(size)], axis=1)


def within_items(codes: Array) -> Array:
    """Codes that count from 0 within each item: equal ones stay equal."""
    votes = pd.DataFrame(np.where(codes < 0, math.nan, codes))
    return votes.rank(axis=1, method="dense").fillna(0).to_numpy(dtype=int) - 1


def equally_rated(codes: Array) -> tuple[Array, Array]:
    """Which items `AnnotatorAgreement.fleiss` covers, two labels at least: codes and a mask."""
    given = codes >= 0
    labels = given.sum(axis=1)
    if len(set(labels.tolist()) - {0, 1}) <= 1:
        return np.asarray(codes[labels >= 2]), labels >= 2
    by_activity = np.argsort(-given.sum(axis=0), kind="stable")
    groups = [by_activity[:k] for k in range(2, len(by_activity) + 1)]
    group = max(groups, key=lambda g: (given[:, g].all(axis=1).sum() * len(g), len(g)))
    items = np.asarray(given[:, group].all(axis=1))
    return np.asarray(codes[np.ix_(items, group)]), items


def distinct_rows(codes: Array) -> tuple[Array, Array, Array]:
    """The first of the rows of each kind, how many there are of it, and the kind of each row."""
    if not codes.size:
        return np.arange(len(codes)), np.ones(len(codes), dtype=int), np.arange(len(codes))
    _, first, kind, times = np.unique(
        codes, axis=0, return_index=True, return_inverse=True, return_counts=True
    )
    return first, times, kind.ravel()
