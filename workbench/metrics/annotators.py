"""Agreement of the annotators among themselves: the ceiling that any judge can be held to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError
from workbench.formatting import counted, html_table, plain
from workbench.metrics.coefficients import (
    Level,
    cells,
    cohen_kappa,
    coincidences,
    disagreement,
    fleiss_kappa,
    krippendorff_alpha,
)
from workbench.metrics.intervals import (
    UNDEFINED,
    Array,
    Bootstrap,
    Interval,
    check_confidence,
    figure,
    full_agreement,
    mean_interval,
    ratio,
    wilson,
)
from workbench.scale import ABSTAIN, MOST_CATEGORIES, Scale
from workbench.vocabulary import is_missing

if TYPE_CHECKING:
    from workbench.pairing.pairs import Pairs

LEVELS: dict[str, Level] = {
    "binary": "nominal",
    "nominal": "nominal",
    "ordinal": "ordinal",
    "numeric": "interval",
}


@dataclass(frozen=True, eq=False, repr=False)
class AnnotatorAgreement:
    """How well several annotators agree; an undefined figure is nan.

    Attributes
    ----------
    annotators
        Their names, in the order of the votes' columns.
    items, shared_items
        Labelled items, and those with at least two labels.
    pairwise
        One row for each two annotators: ``annotator_a``, ``annotator_b``, ``n`` (items that both
        labelled), ``accuracy`` (share on which they agree), ``kappa`` and, on ordered scales,
        ``weighted_kappa`` (quadratic).
    by_annotator
        One row an annotator: ``annotator``, ``labels``, ``n`` (items that others labelled too),
        ``accuracy`` against the majority of those others; except on nominal scales also ``bias``,
        the mean of the label minus the mean of the others' (in steps or the numbers' unit; on
        binary scales the share of positive labels against theirs). Wilson's and Student's
        intervals (``accuracy_low``, ...).
    contested
        The items on which annotators differ, the most contested first: ``item``, ``labels``,
        ``disagreement`` (mean distance of two labels, in [0, 1]) and ``votes`` as text.
    alpha, alpha_interval, level
        Krippendorff's alpha over all labels, with a bootstrap interval over items; ``level`` of
        measurement follows the scale: nominal, ordinal or interval.
    fleiss, fleiss_items, fleiss_raters
        Fleiss' kappa, defined only for items with the same number of labels. Where not all have
        that, it covers the items that each of the ``fleiss_raters`` most active annotators
        labelled, as many annotators as leave most labels. (To pick items by their number of
        labels would mislead: a third label is often asked for only where two differ.)
    ceiling, ceiling_interval
        Mean accuracy of one annotator's label against the majority of the others on the same
        item; among tied majority values each counts as its share. A judge that agrees with
        people more than this agrees with them better than they do with each other.
    """

    annotators: tuple[str, ...]
    items: int
    shared_items: int
    pairwise: pd.DataFrame
    by_annotator: pd.DataFrame
    contested: pd.DataFrame
    alpha: float
    alpha_interval: Interval
    level: Level
    fleiss: float
    fleiss_items: int
    fleiss_raters: int
    ceiling: float
    ceiling_interval: Interval
    scale: Scale | None = None

    def matrix(self, measure: str = "kappa") -> pd.DataFrame:
        """Return a column of `pairwise` as a symmetric table, nan on the diagonal."""
        names = list(self.annotators)
        table = pd.DataFrame(math.nan, index=names, columns=names, dtype=float)
        for row in self.pairwise.to_dict("records"):
            a, b = row["annotator_a"], row["annotator_b"]
            table.loc[a, b] = table.loc[b, a] = row[measure]
        return table

    @property
    def table(self) -> pd.DataFrame:
        """The figures over all annotators: ``value``, ``low``, ``high`` and ``n`` (items)."""
        rows = {
            f"Krippendorff's alpha ({self.level})": (
                self.alpha, *self.alpha_interval, self.shared_items,
            ),
            f"Fleiss' kappa ({self.fleiss_raters} labels an item)": (
                self.fleiss, *UNDEFINED, self.fleiss_items,
            ),
            "ceiling (one against the others)": (
                self.ceiling, *self.ceiling_interval, self.shared_items,
            ),
        }  # fmt: skip
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high", "n"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes, of the contested items 20; what is undefined is None."""
        data = {name: value for name, value in vars(self).items() if name != "scale"}
        return plain(data | {"contested": self.contested.head(20)})

    def __repr__(self) -> str:
        people = counted(len(self.annotators), "annotator")
        return (
            f"<AnnotatorAgreement {people}, {counted(self.shared_items, 'item')} "
            f"with two labels or more: alpha {figure(self.alpha, self.alpha_interval)}, "
            f"ceiling {figure(self.ceiling, self.ceiling_interval)}>"
        )

    def _repr_html_(self) -> str:
        tables = [self.pairwise, self.by_annotator, self.contested.head(10)]
        return html_table(self.table) + "".join(html_table(t, index=False) for t in tables)


def annotator_agreement(
    pairs_or_votes: Pairs | pd.DataFrame,
    *,
    scale: Scale | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> AnnotatorAgreement:
    """Measure how well the annotators agree among themselves, on every item that they labelled.

    Parameters
    ----------
    pairs_or_votes
        Pairs (their ``votes``, which cover traces without a verdict too), or a table with one
        row an item and one column an annotator. Missing cells and abstentions count as no label.
    scale
        The scale of the labels; that of the pairs, or of the values seen, by default.
    confidence, seed, resamples
        Of the bootstrap intervals, which draw items.

    Raises
    ------
    ArgumentError
        For what is neither pairs nor a table, and for a confidence out of range.
    ScaleError
        For a value outside the scale.
    """
    check_confidence(confidence)
    if isinstance(pairs_or_votes, pd.DataFrame):
        votes = pairs_or_votes
    elif hasattr(pairs_or_votes, "votes"):
        votes, scale = pairs_or_votes.votes, scale or pairs_or_votes.scale
    else:
        raise ArgumentError(
            f"annotator_agreement takes Pairs or a table of votes, got "
            f"{type(pairs_or_votes).__name__}. workbench.pair(judge) gives Pairs."
        )
    scale = scale or _scale_seen(votes)
    values, codes = _codes(votes, scale)
    counts = _counts(codes, len(values))
    labels = counts.sum(axis=1)
    positions = np.array([scale.rank(v) if scale else 0.0 for v in values])
    level = LEVELS[scale.kind] if scale else "nominal"
    names = tuple(str(name) for name in votes.columns)
    credits = _against_others(codes, counts)
    # Items with the same labels by the same annotators fall into one cell.
    first, times = _kinds(codes)
    bootstrap = Bootstrap(times, resamples=resamples, seed=seed, confidence=confidence)
    alpha_interval, ceiling_interval = _intervals(
        counts[first], times, positions, level, credits[first], bootstrap
    )
    equal = _equally_rated(codes, counts)
    return AnnotatorAgreement(
        annotators=names,
        items=int((labels >= 1).sum()),
        shared_items=int((labels >= 2).sum()),
        pairwise=_pairwise(names, codes, positions, ordered=bool(scale and scale.ordered)),
        by_annotator=_by_annotator(
            names,
            codes,
            credits,
            None if level == "nominal" and len(values) > 2 else positions,
            confidence,
        ),
        contested=_contested(votes.index, values, counts, _distances(positions, level)),
        alpha=float(krippendorff_alpha(coincidences(counts), positions, level)),
        alpha_interval=alpha_interval,
        level=level,
        fleiss=fleiss_kappa(equal),
        fleiss_items=len(equal),
        fleiss_raters=int(equal[0].sum()) if len(equal) else 0,
        ceiling=ratio(np.nansum(credits), np.isfinite(credits).sum()),
        ceiling_interval=ceiling_interval,
        scale=scale,
    )


# -- votes as numbers -----------------------------------------------------------------------


def _scale_seen(votes: pd.DataFrame) -> Scale | None:
    """The scale of the values; None where all are one value, on which nothing can differ."""
    seen = [v for v in votes.to_numpy().ravel().tolist() if not is_missing(v)]
    return None if len(set(seen)) <= 1 else Scale.from_values(seen)


def _codes(votes: pd.DataFrame, scale: Scale | None) -> tuple[list[Any], Array]:
    """The categories in order and, item by annotator, the number of the category; -1 for none."""
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


def _kinds(codes: Array) -> tuple[Array, Array]:
    """The first item of each distinct row of codes, and how often each occurs."""
    if not codes.size:
        return np.arange(len(codes)), np.ones(len(codes), dtype=int)
    _, first, times = np.unique(codes, axis=0, return_index=True, return_counts=True)
    return first, times


def _counts(codes: Array, size: int) -> Array:
    """How many annotators gave each item each category, shape (items, categories)."""
    return np.stack([(codes == k).sum(axis=1) for k in range(size)], axis=1)


# -- figures --------------------------------------------------------------------------------


def _pairwise(
    names: tuple[str, ...], codes: Array, positions: Array, *, ordered: bool
) -> pd.DataFrame:
    matrices = {"kappa": disagreement(positions)}
    if ordered:
        matrices["weighted_kappa"] = disagreement(positions, "quadratic")
    rows = []
    for a, b in combinations(range(len(names)), 2):
        both = (codes[:, a] >= 0) & (codes[:, b] >= 0)
        (left, right), counts, _ = cells(codes[both, a], codes[both, b])
        kappas = [float(cohen_kappa(left, right, counts, each)) for each in matrices.values()]
        n = int(both.sum())
        rows.append([names[a], names[b], n, ratio(counts[left == right].sum(), n), *kappas])
    columns = ["annotator_a", "annotator_b", "n", "accuracy", *matrices]
    return pd.DataFrame(rows, columns=columns)


def _against_others(codes: Array, counts: Array) -> Array:
    """Each label's accuracy against the others' majority, (items, annotators); nan for none."""
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


def _by_annotator(
    names: tuple[str, ...],
    codes: Array,
    credits: Array,
    positions: Array | None,
    confidence: float,
) -> pd.DataFrame:
    """The table of `AnnotatorAgreement`; bias only with the positions of the categories."""
    at = np.where(codes >= 0, 0.0 if positions is None else positions[codes], math.nan)
    rows = []
    for a, name in enumerate(names):
        shared = np.isfinite(credits[:, a])
        n, credit = int(shared.sum()), credits[shared, a]
        share, spread = ratio(credit.sum(), n), float(credit.var()) if n else 0.0
        # A tie counts as half, so that credits vary less than what is only right or wrong.
        size = n * share * (1 - share) / spread if spread else n
        row = {"annotator": name, "labels": int((codes[:, a] >= 0).sum()), "n": n}
        row |= {"accuracy": share} | _ends("accuracy", wilson(share * size, size, confidence))
        if positions is not None:
            others = np.delete(at[shared], a, axis=1)
            gap = at[shared, a] - (np.nanmean(others, axis=1) if n else 0.0)
            row |= {"bias": float(gap.mean()) if n else math.nan}
            row |= _ends("bias", mean_interval(gap, confidence))
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["annotator", "labels", "n", "accuracy"])


def _ends(name: str, interval: Interval) -> dict[str, float]:
    return {f"{name}_low": interval.low, f"{name}_high": interval.high}


def _distances(positions: Array, level: Level) -> Array:
    """How far each two categories lie apart, in [0, 1]."""
    gaps = disagreement(positions, None if level == "nominal" else "linear")
    return gaps / max(float(gaps.max()), 1e-12)


def _contested(
    index: pd.Index[Any], values: list[Any], counts: Array, distances: Array
) -> pd.DataFrame:
    """The items on which annotators differ, the most contested first."""
    items = np.flatnonzero((counts > 0).sum(axis=1) > 1)
    given = counts[items]
    labels = given.sum(axis=1)
    apart = ((given @ distances) * given).sum(axis=1) / np.maximum(labels * (labels - 1), 1)
    order = np.lexsort((items, -labels, -apart))
    said = [
        ", ".join(f"{values[k]}: {row[k]}" for k in np.flatnonzero(row)) for row in given[order]
    ]
    return pd.DataFrame(
        {
            "item": index.to_numpy()[items[order]],
            "labels": labels[order],
            "disagreement": apart[order],
            "votes": said,
        }
    )


def _equally_rated(codes: Array, counts: Array) -> Array:
    """Counts of the items that `AnnotatorAgreement.fleiss` covers, with two labels at least."""
    numbers = set(counts.sum(axis=1).tolist()) - {0, 1}
    if len(numbers) <= 1:
        return np.asarray(counts[counts.sum(axis=1) >= 2])
    given = codes >= 0
    by_activity = np.argsort(-given.sum(axis=0), kind="stable")
    groups = [by_activity[:k] for k in range(2, len(by_activity) + 1)]
    group = max(groups, key=lambda g: (given[:, g].all(axis=1).sum() * len(g), len(g)))
    return _counts(codes[np.ix_(given[:, group].all(axis=1), group)], counts.shape[1])


def _intervals(
    counts: Array,
    times: Array,
    positions: Array,
    level: Level,
    credits: Array,
    bootstrap: Bootstrap,
) -> tuple[Interval, Interval]:
    """Intervals of alpha and of the ceiling; alpha has none where many categories cost too much."""
    shared, size = counts.sum(axis=1) >= 2, counts.shape[1]
    n, confidence = int(times[shared].sum()), bootstrap.confidence
    if not n:
        return UNDEFINED, UNDEFINED
    if not ((counts[shared] > 0).sum(axis=1) > 1).any():
        labels = times[shared] @ counts[shared]
        shares = labels / labels.sum()
        agreed = Interval(wilson(n, n, confidence).low, 1.0)
        return full_agreement(1 - float(shares @ shares), n, confidence), agreed
    credit, compared = np.nansum(credits, axis=1), np.isfinite(credits).sum(axis=1)
    ceiling = bootstrap.interval(lambda items: (items @ credit) / (items @ compared))
    if size > MOST_CATEGORIES:
        return UNDEFINED, ceiling
    each = np.stack([coincidences(row[None]).ravel() for row in counts])
    alpha = bootstrap.interval(
        lambda items: krippendorff_alpha((items @ each).reshape(-1, size, size), positions, level)
    )
    return alpha, ceiling
