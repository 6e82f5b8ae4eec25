"""Agreement of the annotators among themselves: the ceiling that any judge can be held to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError
from workbench.formatting import counted, html_table, plain
from workbench.metrics.coefficients import MOST_COMPARED, Statistic
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
from workbench.metrics.reliability import (
    Level,
    coincidences,
    fleiss_kappa,
    interval_alpha,
    krippendorff_alpha,
)
from workbench.metrics.votes import (
    against_others,
    coded_votes,
    contested_items,
    counts_of,
    equally_rated,
    kinds_of_items,
    pairwise,
    scale_seen,
    within_items,
)
from workbench.scale import MOST_CATEGORIES, Scale

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
    scale = scale or scale_seen(votes)
    values, codes = coded_votes(votes, scale)
    labels = (codes >= 0).sum(axis=1)
    positions = np.array([scale.rank(v) if scale else 0.0 for v in values])
    level = LEVELS[scale.kind] if scale else "nominal"
    names = tuple(str(name) for name in votes.columns)
    own = within_items(codes)
    credits = against_others(own, counts_of(own, int(own.max(initial=0)) + 1))
    # Items with the same labels by the same annotators fall into one cell.
    first, times = kinds_of_items(codes)
    bootstrap = Bootstrap(times, resamples=resamples, seed=seed, confidence=confidence)
    alpha, statistic = _alpha(codes, codes[first], times, positions, level)
    alpha_interval, ceiling_interval = _intervals(
        codes[first], times, statistic, credits[first], bootstrap
    )
    at = None if level == "nominal" and len(values) > 2 else positions
    equal = equally_rated(codes)
    # Of many numbers hardly two are equal.
    is_small = len(equal) * len(values) <= MOST_COMPARED
    return AnnotatorAgreement(
        annotators=names,
        items=int((labels >= 1).sum()),
        shared_items=int((labels >= 2).sum()),
        pairwise=pairwise(names, codes, positions, ordered=bool(scale and scale.ordered)),
        by_annotator=_by_annotator(names, codes, credits, at, confidence),
        contested=contested_items(votes.index, values, codes, positions, level),
        alpha=alpha,
        alpha_interval=alpha_interval,
        level=level,
        fleiss=fleiss_kappa(counts_of(equal, len(values))) if is_small else math.nan,
        fleiss_items=len(equal),
        fleiss_raters=int((equal[0] >= 0).sum()) if len(equal) else 0,
        ceiling=ratio(np.nansum(credits), np.isfinite(credits).sum()),
        ceiling_interval=ceiling_interval,
        scale=scale,
    )


# -- figures --------------------------------------------------------------------------------


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


def _alpha(
    codes: Array, kinds: Array, times: Array, positions: Array, level: Level
) -> tuple[float, Statistic | None]:
    """Krippendorff's alpha, and as a statistic of how often each kind of row occurs.

    None where there are so many categories that its resamples would cost too much.
    """
    size = len(positions)
    if level == "interval":
        statistic = interval_alpha(np.where(kinds >= 0, positions[kinds], math.nan))
        return float(statistic(times)), statistic
    if size > MOST_CATEGORIES:
        together = coincidences(counts_of(codes, size))
        return float(krippendorff_alpha(together, positions, level)), None
    each = np.zeros((len(kinds), size**2))
    for row, counts in enumerate(counts_of(kinds, size)):
        each[row] = coincidences(counts[None]).ravel()

    def of_times(times: Array) -> Array:
        together = (times @ each).reshape(*times.shape[:-1], size, size)
        return krippendorff_alpha(together, positions, level)

    return float(of_times(times)), of_times


def _intervals(
    codes: Array, times: Array, alpha: Statistic | None, credits: Array, bootstrap: Bootstrap
) -> tuple[Interval, Interval]:
    """Intervals of alpha, where it is given as a statistic, and of the ceiling."""
    labels = (codes >= 0).sum(axis=1)
    shared = labels >= 2
    n, confidence = int(times[shared].sum()), bootstrap.confidence
    if not n:
        return UNDEFINED, UNDEFINED
    if not (within_items(codes) > 0).any():
        given, often = codes[shared], np.repeat(times[shared], labels[shared])
        shares = np.bincount(given[given >= 0], often) / often.sum()
        agreed = Interval(wilson(n, n, confidence).low, 1.0)
        return full_agreement(1 - float(shares @ shares), n, confidence), agreed
    credit, compared = np.nansum(credits, axis=1), np.isfinite(credits).sum(axis=1)
    ceiling = bootstrap.interval(lambda times: (times @ credit) / (times @ compared))
    return UNDEFINED if alpha is None else bootstrap.interval(alpha), ceiling
