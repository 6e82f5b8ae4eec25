"""Agreement of the annotators among themselves: the ceiling that any judge can be held to."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from workbench.formatting import counted, plain
from workbench.metrics.coefficients import (
    Level,
    Statistic,
    coincidences,
    distinct_rows,
    fleiss_kappa,
    interval_alpha,
    krippendorff_alpha,
)
from workbench.metrics.figures import Coded, Sample
from workbench.metrics.intervals import (
    UNDEFINED,
    Array,
    Bootstrap,
    Interval,
    Result,
    check_confidence,
    figure,
    figure_table,
    mean_interval,
    proportion,
    wilson,
    with_ends,
)
from workbench.metrics.votes import Votes
from workbench.pairing.pairs import Groups, Pairs
from workbench.scale import MOST_CATEGORIES, Scale

UNDEFINED_ALPHA = "Alpha and kappa are undefined: they take items with two labels, not all equal."
UNDEFINED_FLEISS = (
    "Fleiss' kappa is undefined: it takes the same number of labels on each item, and "
    f"{MOST_CATEGORIES} different values at most."
)


@dataclass(frozen=True, eq=False, repr=False)
class AnnotatorAgreement(Result):
    """How well several annotators agree; an undefined figure is nan.

    Attributes
    ----------
    annotators
        Their names, in the order of the votes' columns.
    items, shared_items
        Labelled items, and those with at least two labels.
    pairwise
        One row for each two annotators: ``annotator_a``, ``annotator_b``, ``n`` (items that both
        labelled), ``accuracy``, ``kappa`` and, on ordered scales, ``weighted_kappa`` (quadratic),
        each with the ends of its interval (``accuracy_low``, ...).
    by_annotator
        One row an annotator: ``annotator``, ``labels``, ``n`` (items that others labelled too),
        ``accuracy`` against the majority of those others (Wilson); except on nominal scales also
        ``bias``, the mean of the label minus the mean of the others' (Student), in steps, in the
        numbers' unit, or on binary scales as shares of positive labels.
    contested
        The items on which annotators differ, the most contested first: ``item``, ``labels``,
        ``disagreement`` (mean distance of two labels, in [0, 1]) and ``votes`` as text.
    alpha, alpha_interval, level
        Krippendorff's alpha over all labels (bootstrap over items; undefined where all agree);
        ``level`` of measurement follows the scale: nominal, ordinal or interval.
    fleiss, fleiss_interval
        Fleiss' kappa (bootstrap over items), defined where all shared items have the same number of
        labels.
    ceiling, ceiling_interval
        Mean accuracy of one annotator's label against the majority of the others on the same item
        (Wilson); among tied majority values each counts as its share. This is of all items, and
        those on which annotators tie are not among the pairs.
    notes
        Why figures are nan, and which words of a table look like no label.
    """

    hidden = ("scale",)

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
    fleiss_interval: Interval
    ceiling: float
    ceiling_interval: Interval
    scale: Scale
    notes: tuple[str, ...] = ()

    def matrix(self, measure: str = "kappa") -> pd.DataFrame:
        """Return a column of `pairwise` as a symmetric table, nan on the diagonal."""
        half = self.pairwise.pivot(index="annotator_a", columns="annotator_b", values=measure)
        half = half.reindex(index=self.annotators, columns=self.annotators).astype(float)
        return half.fillna(half.T).rename_axis(index=None, columns=None)

    @property
    def table(self) -> pd.DataFrame:
        """The figures over all annotators: ``value``, ``low``, ``high`` and ``n`` (items)."""
        n = self.shared_items
        rows = {
            f"Krippendorff's alpha ({self.level})": (self.alpha, *self.alpha_interval, n),
            "Fleiss' kappa": (self.fleiss, *self.fleiss_interval, n),
            "ceiling (one against the others)": (self.ceiling, *self.ceiling_interval, n),
        }
        return figure_table(rows, "n")

    def __repr__(self) -> str:
        people = counted(len(self.annotators), "annotator")
        return (
            f"<AnnotatorAgreement {people}, {counted(self.shared_items, 'item')} "
            f"with two labels or more: alpha {figure(self.alpha, self.alpha_interval)}, "
            f"ceiling {figure(self.ceiling, self.ceiling_interval)}>"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes, of the contested items 20; what is undefined is None."""
        return super().to_dict() | plain({"contested": self.contested.head(20)})

    def _tables(self) -> list[pd.DataFrame]:
        return [self.table, self.pairwise, self.by_annotator, self.contested.head(10)]


def annotator_agreement(
    pairs_or_votes: Pairs | pd.DataFrame,
    *,
    scale: Scale | None = None,
    groups: Groups = None,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> AnnotatorAgreement:
    """Measure how well the annotators agree among themselves, on every item that they labelled.

    Parameters
    ----------
    pairs_or_votes
        Pairs (their ``votes``, which cover traces without a verdict too), or a table with one
        row an item and one column an annotator. Missing cells and abstentions count as no label;
        of a table without ``scale`` words such as *unknown* do so only beside numbers.
    scale
        The scale of the labels; that of the pairs, or of the values seen, by default.
    groups
        What belongs together: of pairs as in `agreement`, of a table a mapping item -> group.
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
    votes = Votes.of(pairs_or_votes, scale, groups)
    within, several = _within(votes.codes), votes.labels >= 2
    credits = _against_others(within)
    options: Any = {"resamples": resamples, "seed": seed, "confidence": confidence}
    # Of the items that several labelled; those with equal labels by the same annotators are a cell.
    shared, few = votes.codes[several], len(votes.values) <= MOST_CATEGORIES
    first, times, kind = distinct_rows(shared)
    bootstrap = Bootstrap(times, rows=(votes.groups[several], kind), **options)
    statistic = _alpha(shared[first], votes)
    alpha, alpha_interval = float(statistic(times)), UNDEFINED
    if votes.level == "interval" or few:  # with more categories its resamples would take long
        alpha_interval = _around(alpha, statistic, bootstrap, shared)
    fleiss, fleiss_interval = math.nan, UNDEFINED
    if few and len(set(votes.labels[several].tolist())) == 1:  # of many numbers hardly two agree
        statistic = partial(fleiss_kappa, _counts(shared[first], len(votes.values)))
        fleiss = float(statistic(times))
        fleiss_interval = _around(fleiss, statistic, bootstrap, shared)
    ceiling, ceiling_interval = _accuracy(credits, votes.groups, confidence)
    notes = [UNDEFINED_FLEISS] if math.isnan(fleiss) else []
    notes = [UNDEFINED_ALPHA] if math.isnan(alpha) else notes
    return AnnotatorAgreement(
        annotators=votes.annotators,
        items=int((votes.labels >= 1).sum()),
        shared_items=int(several.sum()),
        pairwise=_pairwise(votes, options),
        by_annotator=_by_annotator(votes, credits, confidence),
        contested=_contested(votes, np.asarray((within > 0).any(axis=1))),
        alpha=alpha,
        alpha_interval=alpha_interval,
        level=votes.level,
        fleiss=fleiss,
        fleiss_interval=fleiss_interval,
        ceiling=ceiling,
        ceiling_interval=ceiling_interval,
        scale=votes.scale,
        notes=(*notes, *votes.notes),
    )


def _within(codes: Array) -> Array:
    """Codes that count from 0 within each item: equal ones stay equal."""
    votes = pd.DataFrame(np.where(codes < 0, math.nan, codes))
    return votes.rank(axis=1, method="dense").fillna(0).to_numpy(dtype=int) - 1


def _counts(codes: Array, size: int) -> Array:
    """How many annotators gave each item each category, shape (items, categories)."""
    return np.stack([(codes == k).sum(axis=1) for k in range(size)], axis=1)


def _against_others(within: Array) -> Array:
    """Each label's accuracy against the others' majority, (items, annotators); nan for no label."""
    found, counts = np.full(within.shape, math.nan), _counts(within, within.max(initial=0) + 1)
    for a, given in enumerate(within.T):
        items = np.flatnonzero(given >= 0)
        label = (np.arange(len(items)), given[items])
        others = counts[items]
        others[label] -= 1
        tied = others == others.max(axis=1, keepdims=True, initial=1)
        with np.errstate(invalid="ignore"):
            found[items, a] = tied[label] / tied.sum(axis=1)
    return found


def _accuracy(credits: Array, groups: Array, confidence: float) -> tuple[float, Interval]:
    """The mean of the credits that are not nan, of which each item has a row."""
    items, among = np.nonzero(np.isfinite(credits))
    return proportion(credits[items, among], groups[items], confidence)


def _around(value: float, statistic: Statistic, bootstrap: Bootstrap, codes: Array) -> Interval:
    """The bootstrap's interval; where all labels of each item are equal, which leaves no resample
    to differ, as far down as the most disagreements that Wilson's interval leaves plausible."""
    if not value > 1 - 1e-12:
        return bootstrap.around(value, statistic)
    shares = np.bincount(codes[codes >= 0]) / (codes >= 0).sum()
    by_chance, worst = 1 - float(shares @ shares), wilson(0, bootstrap.n, bootstrap.confidence).high
    return Interval(max(-1.0, 1 - worst / by_chance), 1.0)


def _alpha(codes: Array, votes: Votes) -> Statistic:
    """Krippendorff's alpha as a statistic of how often each row occurs."""
    level, positions = votes.level, votes.positions
    if level == "interval":
        return interval_alpha(np.where(codes >= 0, positions[codes], math.nan))
    counts = _counts(codes, len(positions))
    return lambda times: krippendorff_alpha(coincidences(counts, times), level)


def _pairwise(votes: Votes, options: dict[str, Any]) -> pd.DataFrame:
    """The table of `AnnotatorAgreement`, of each two as of a judge and people."""
    names, rows = votes.annotators, []
    measures = ["accuracy", "kappa", *["kappa (quadratic)"] * votes.scale.ordered]
    for a, b in combinations(range(len(names)), 2):
        both = (votes.codes[:, [a, b]] >= 0).all(axis=1)
        one, two = votes.codes[both][:, [a, b]].T
        coded = Coded(votes.scale, votes.values, one, two, votes.groups[both], votes.positions)
        row = {"annotator_a": names[a], "annotator_b": names[b], "n": int(both.sum())}
        for name, found in Sample(coded, **options).figures(*measures).items():
            row |= with_ends(name.replace("kappa (quadratic)", "weighted_kappa"), *found)
        rows.append(row)
    columns = ["annotator_a", "annotator_b", "n", "accuracy", "kappa"]
    return pd.DataFrame(rows, columns=None if rows else columns)


def _by_annotator(votes: Votes, credits: Array, confidence: float) -> pd.DataFrame:
    """The table of `AnnotatorAgreement`; bias only where the categories have an order."""
    at = np.where(votes.codes >= 0, votes.positions[votes.codes], 0.0)
    has_bias, rows = votes.level != "nominal" or len(votes.values) <= 2, []
    span = float(np.ptp(votes.positions)) or math.nan
    for a, name in enumerate(votes.annotators):
        shared = np.isfinite(credits[:, a])
        n = int(shared.sum())
        row = {"annotator": name, "labels": int((votes.codes[:, a] >= 0).sum()), "n": n}
        row |= with_ends("accuracy", *_accuracy(credits[:, [a]], votes.groups, confidence))
        if has_bias:
            own, total = at[shared, a], at[shared].sum(axis=1)
            gap = own - (total - own) / (votes.labels[shared] - 1)
            bias = float(gap.mean()) if n else math.nan
            ends = mean_interval(gap, confidence, votes.groups[shared], (-span, span))
            row |= with_ends("bias", bias, ends)
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["annotator", "labels", "n", "accuracy"])


def _contested(votes: Votes, differ: Array) -> pd.DataFrame:
    items, nominal = np.flatnonzero(differ), votes.level == "nominal"
    given, labels, at = votes.codes[items], votes.labels[items], votes.positions
    apart = np.zeros(len(items))
    for a, b in combinations(given.T, 2):
        gap = a != b if nominal else np.abs(at[a] - at[b])
        apart += np.where((a >= 0) & (b >= 0), gap, 0)
    span = 1.0 if nominal else float(np.ptp(at)) or 1.0
    apart = 2 * apart / span / np.maximum(labels * (labels - 1), 1)
    order = np.lexsort((items, -labels, -apart.round(12)))
    counts = [sorted(Counter(row[row >= 0].tolist()).items()) for row in given[order]]
    return pd.DataFrame(
        {
            "item": votes.items.to_numpy()[items[order]],
            "labels": labels[order],
            "disagreement": apart[order],
            "votes": [", ".join(f"{votes.values[k]}: {n}" for k, n in row) for row in counts],
        }
    )
