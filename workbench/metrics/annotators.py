"""Agreement of the annotators among themselves: the ceiling that any judge can be held to.

Nothing here allocates by items times values, of which there are many where people give numbers.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from workbench.formatting import counted, html_lines, html_table, plain
from workbench.metrics.coefficients import (
    MOST_COMPARED,
    Level,
    Statistic,
    coincidences,
    distinct_rows,
    fleiss_kappa,
    interval_alpha,
    krippendorff_alpha,
    numbered,
)
from workbench.metrics.figures import Coded, Sample
from workbench.metrics.intervals import (
    UNDEFINED,
    Array,
    Bootstrap,
    Interval,
    Result,
    check_confidence,
    effective_share,
    figure,
    figure_table,
    full_agreement,
    mean_interval,
    ratio,
    wilson,
    with_ends,
)
from workbench.metrics.votes import Votes, counts_of, equally_rated
from workbench.pairing.pairs import Groups, Pairs
from workbench.scale import MOST_CATEGORIES, Scale


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
        Krippendorff's alpha over all labels (bootstrap over items); ``level`` of measurement
        follows the scale: nominal, ordinal or interval.
    fleiss, fleiss_interval, fleiss_items, fleiss_raters
        Fleiss' kappa (bootstrap over items), defined only for items with the same number of labels.
        Where not all have that, it covers the items that each of the ``fleiss_raters`` most active
        annotators labelled, as many annotators as leave most labels.
    ceiling, ceiling_interval
        Mean accuracy of one annotator's label against the majority of the others on the same
        item; among tied majority values each counts as its share. A judge that agrees with
        people more than this agrees with them better than they do with each other, if both are of
        the same items: this counts those too that are not among the pairs since annotators tie.
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
    fleiss_items: int
    fleiss_raters: int
    ceiling: float
    ceiling_interval: Interval
    scale: Scale
    notes: tuple[str, ...] = ()

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
        of_all = self.shared_items
        rows = {
            f"Krippendorff's alpha ({self.level})": (self.alpha, *self.alpha_interval, of_all),
            f"Fleiss' kappa ({self.fleiss_raters} labels an item)": (
                self.fleiss, *self.fleiss_interval, self.fleiss_items,
            ),
            "ceiling (one against the others)": (self.ceiling, *self.ceiling_interval, of_all),
        }  # fmt: skip
        return figure_table(rows, "n")

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes, of the contested items 20; what is undefined is None."""
        return super().to_dict() | plain({"contested": self.contested.head(20)})

    def __repr__(self) -> str:
        people = counted(len(self.annotators), "annotator")
        return (
            f"<AnnotatorAgreement {people}, {counted(self.shared_items, 'item')} "
            f"with two labels or more: alpha {figure(self.alpha, self.alpha_interval)}, "
            f"ceiling {figure(self.ceiling, self.ceiling_interval)}>"
        )

    def _repr_html_(self) -> str:
        tables = [self.pairwise, self.by_annotator, self.contested.head(10)]
        shown = "".join(html_table(t, index=False) for t in tables)
        return html_table(self.table) + shown + html_lines(self.notes)


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
    codes, together, several = votes.codes, votes.groups, votes.labels >= 2
    credits = _against_others(votes.within)
    # Of the items that several labelled; those with equal labels by the same annotators are a cell.
    shared = codes[several]
    first, times, kind = distinct_rows(shared)
    alpha = _alpha(shared[first], votes.positions, votes.level)
    options: Any = {"resamples": resamples, "seed": seed, "confidence": confidence}
    if (votes.within > 0).any():
        # With so many categories its resamples would take long.
        are_few = votes.level == "interval" or len(votes.positions) <= MOST_CATEGORIES
        bootstrap = Bootstrap(times, rows=(together[several], kind), **options)
        credit = credits[several][first]
        intervals = _intervals(credit, times, alpha if are_few else None, bootstrap)
    else:
        intervals = _of_full_agreement(shared, together[several], confidence)
    equal, those = equally_rated(codes)
    fleiss = _fleiss(equal, together[those], len(votes.positions), options)
    return AnnotatorAgreement(
        annotators=votes.annotators,
        items=int((votes.labels >= 1).sum()),
        shared_items=int(several.sum()),
        pairwise=_pairwise(votes, options),
        by_annotator=_by_annotator(votes, credits, confidence),
        contested=_contested(votes),
        alpha=float(alpha(times)),
        alpha_interval=intervals[0],
        level=votes.level,
        fleiss=fleiss[0],
        fleiss_interval=fleiss[1],
        fleiss_items=len(equal),
        fleiss_raters=int((equal[0] >= 0).sum()) if len(equal) else 0,
        ceiling=ratio(np.nansum(credits), np.isfinite(credits).sum()),
        ceiling_interval=intervals[1],
        scale=votes.scale,
        notes=(*_why_undefined(shared), *votes.notes),
    )


def _why_undefined(shared: Array) -> list[str]:
    """Why a figure over all annotators is nan; ``shared`` are items with several labels."""
    if not len(shared):
        return ["No figure is defined: no item has two labels or more."]
    are_equal = np.isin(shared, [-1, shared.max()]).all()
    return ["Alpha and kappa are undefined: all labels are equal."] * bool(are_equal)


def _against_others(within: Array) -> Array:
    """Each label's accuracy against the others' majority, (items, annotators); nan for no label."""
    found, counts = np.full(within.shape, math.nan), counts_of(within, within.max(initial=0) + 1)
    for a, given in enumerate(within.T):
        items = np.flatnonzero(given >= 0)
        label = (np.arange(len(items)), given[items])
        others = counts[items]
        others[label] -= 1
        tied = others == others.max(axis=1, keepdims=True, initial=1)
        with np.errstate(invalid="ignore"):
            found[items, a] = tied[label] / tied.sum(axis=1)
    return found


def _fleiss(
    codes: Array, groups: Array, size: int, options: dict[str, Any]
) -> tuple[float, Interval]:
    """Fleiss' kappa of equally rated items, and its interval; of many numbers hardly two agree."""
    first, times, kind = distinct_rows(codes)
    if not len(first) or len(first) * size > MOST_COMPARED:
        return math.nan, UNDEFINED
    counts = counts_of(codes[first], size)
    statistic = partial(fleiss_kappa, counts)
    value = float(statistic(times))
    if ((counts > 0).sum(axis=1) > 1).any():
        return value, Bootstrap(times, rows=(groups, kind), **options).around(value, statistic)
    return value, _of_full_agreement(codes, groups, options["confidence"])[0]


def _alpha(codes: Array, positions: Array, level: Level) -> Statistic:
    """Krippendorff's alpha as a statistic of how often each row occurs."""
    if level == "interval":
        return interval_alpha(np.where(codes >= 0, positions[codes], math.nan))
    counts = counts_of(codes, len(positions))
    return lambda times: krippendorff_alpha(coincidences(counts, times), level)


def _intervals(
    credits: Array, times: Array, alpha: Statistic | None, bootstrap: Bootstrap
) -> tuple[Interval, Interval]:
    """The bootstrap intervals of alpha, where it is given as a statistic, and of the ceiling."""
    credit, compared = np.nansum(credits, axis=1), np.isfinite(credits).sum(axis=1)

    def share(times: Array) -> Array:
        return np.asarray((times @ credit) / (times @ compared))

    ceiling = bootstrap.around(float(share(times)), share)
    if not credit.any():  # in no resample either
        n = min(bootstrap.n, int(times[compared > 0].sum()))
        ceiling = wilson(0, n, bootstrap.confidence)
    return bootstrap.around(float(alpha(times)), alpha) if alpha else UNDEFINED, ceiling


def _of_full_agreement(codes: Array, groups: Array, confidence: float) -> tuple[Interval, Interval]:
    """The intervals of alpha and of the ceiling on items whose labels are all equal."""
    if not len(codes):
        return UNDEFINED, UNDEFINED
    shares = np.bincount(codes[codes >= 0]) / (codes >= 0).sum()
    by_chance, n = 1 - float(shares @ shares), len(np.unique(groups))
    ceiling = Interval(wilson(n, n, confidence).low, 1.0)
    return full_agreement(by_chance, n, confidence), ceiling


def _pairwise(votes: Votes, options: dict[str, Any]) -> pd.DataFrame:
    """The table of `AnnotatorAgreement`, of each two as of a judge and people."""
    names, rows = votes.annotators, []
    known: dict[tuple[bytes, ...], Any] = {}  # of many people most two share few items, if any
    measures = ["accuracy", "kappa", *["kappa (quadratic)"] * votes.scale.ordered]
    for a, b in combinations(range(len(names)), 2):
        both = (votes.codes[:, [a, b]] >= 0).all(axis=1)
        one, two = votes.codes[both][:, [a, b]].T
        order = np.lexsort((two, one))
        rated = one[order], two[order], numbered(votes.groups[both][order])
        labels = tuple(each.tobytes() for each in rated)
        if labels not in known:
            coded = Coded(votes.scale, votes.values, *rated, votes.positions)
            known[labels] = Sample(coded, **options).figures(*measures)
        row = {"annotator_a": names[a], "annotator_b": names[b], "n": len(one)}
        for name, found in known[labels].items():
            row |= with_ends(name.replace("kappa (quadratic)", "weighted_kappa"), *found)
        rows.append(row)
    columns = ["annotator_a", "annotator_b", "n", "accuracy", "kappa"]
    return pd.DataFrame(rows, columns=None if rows else columns)


def _by_annotator(votes: Votes, credits: Array, confidence: float) -> pd.DataFrame:
    """The table of `AnnotatorAgreement`; bias only where the categories have an order."""
    at = np.where(votes.codes >= 0, votes.positions[votes.codes], 0.0)
    has_bias, rows = votes.level != "nominal" or len(votes.values) <= 2, []
    for a, name in enumerate(votes.annotators):
        shared = np.isfinite(credits[:, a])
        n, credit, groups = int(shared.sum()), credits[shared, a], votes.groups[shared]
        share, spread = ratio(credit.sum(), n), float(credit.var()) if n else 0.0
        # A tie counts as half, so that credits vary less than what is only right or wrong.
        size = n * share * (1 - share) / spread if spread else n
        size *= effective_share(credit, groups, confidence)
        row = {"annotator": name, "labels": int((votes.codes[:, a] >= 0).sum()), "n": n}
        row |= with_ends("accuracy", share, wilson(share * size, size, confidence))
        if has_bias:
            own, total = at[shared, a], at[shared].sum(axis=1)
            gap = own - (total - own) / (votes.labels[shared] - 1)
            bias = float(gap.mean()) if n else math.nan
            row |= with_ends("bias", bias, mean_interval(gap, confidence, groups))
        rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["annotator", "labels", "n", "accuracy"])


def _contested(votes: Votes) -> pd.DataFrame:
    """The items on which annotators differ, the most contested first."""
    items, nominal = np.flatnonzero((votes.within > 0).any(axis=1)), votes.level == "nominal"
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
