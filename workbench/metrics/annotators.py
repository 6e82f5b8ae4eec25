"""Agreement of the annotators among themselves: the ceiling that any judge can be held to."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError, ScaleError
from workbench.formatting import html_table, plain
from workbench.metrics.coefficients import (
    Level,
    cells,
    cohen_kappa,
    coincidences,
    disagreement,
    fleiss_kappa,
    float_or_text,
    krippendorff_alpha,
    krippendorff_alphas,
)
from workbench.metrics.intervals import (
    UNDEFINED,
    Array,
    Interval,
    figure,
    percentile_interval,
    ratio,
    resample,
    wilson,
)
from workbench.scale import ABSTAIN, Scale, is_missing

if TYPE_CHECKING:
    from workbench.pairing.pairs import Pairs


_LEVELS: dict[str, Level] = {
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
        The annotators' names, sorted.
    items
        Labelled items; ``shared_items`` of them have at least two labels.
    pairwise
        One row for each two annotators: ``annotator_a``, ``annotator_b``, ``n`` (items that both
        labelled), ``accuracy`` (share on which they agree), ``kappa`` and, on ordered scales,
        ``weighted_kappa`` (quadratic).
    by_annotator
        One row an annotator: ``annotator``, ``labels``, ``n`` (items that others labelled too),
        ``accuracy`` against the consensus of those others.
    alpha, alpha_interval, level
        Krippendorff's alpha over all labels, with a bootstrap interval over items; ``level`` of
        measurement follows the scale: nominal, ordinal or interval.
    fleiss, fleiss_items, fleiss_raters
        Fleiss' kappa. It is defined only for items with the same number of labels. Where all
        items have that, it is taken over all. Otherwise to pick items by their number of labels
        would mislead (a third label is often asked for only where two differ), so it is taken
        over the items that each of the ``fleiss_raters`` most active annotators labelled, as many
        annotators as leave most labels.
    ceiling, ceiling_interval
        Mean accuracy of one annotator's label against the majority of the others on the same
        item, over all labels that can be compared; among tied majority values each counts as
        its share. A judge that agrees with people more than this agrees with them better than
        they do with each other.
    """

    annotators: tuple[str, ...]
    items: int
    shared_items: int
    pairwise: pd.DataFrame
    by_annotator: pd.DataFrame
    alpha: float
    alpha_interval: Interval
    level: Level
    fleiss: float
    fleiss_items: int
    fleiss_raters: int
    ceiling: float
    ceiling_interval: Interval
    scale: Scale | None = field(default=None)

    def matrix(self, measure: str = "kappa") -> pd.DataFrame:
        """A measure of `pairwise` as a symmetric table, annotators on both sides, nan between
        an annotator and themselves."""
        table = pd.DataFrame(
            math.nan, index=list(self.annotators), columns=list(self.annotators), dtype=float
        )
        for row in self.pairwise.to_dict("records"):
            table.loc[row["annotator_a"], row["annotator_b"]] = row[measure]
            table.loc[row["annotator_b"], row["annotator_a"]] = row[measure]
        return table

    @property
    def table(self) -> pd.DataFrame:
        """The figures over all annotators: ``value``, ``low``, ``high`` and ``n`` (items)."""
        rows = {
            f"Krippendorff's alpha ({self.level})": (
                self.alpha,
                *self.alpha_interval,
                self.shared_items,
            ),
            f"Fleiss' kappa ({self.fleiss_raters} labels an item)": (
                self.fleiss,
                *UNDEFINED,
                self.fleiss_items,
            ),
            "ceiling (one against the others)": (
                self.ceiling,
                *self.ceiling_interval,
                self.shared_items,
            ),
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high", "n"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes; what is undefined is None."""
        return plain(
            {
                "annotators": list(self.annotators),
                "items": self.items,
                "shared_items": self.shared_items,
                "pairwise": self.pairwise,
                "by_annotator": self.by_annotator,
                "alpha": self.alpha,
                "alpha_interval": self.alpha_interval,
                "level": self.level,
                "fleiss": self.fleiss,
                "fleiss_items": self.fleiss_items,
                "fleiss_raters": self.fleiss_raters,
                "ceiling": self.ceiling,
                "ceiling_interval": self.ceiling_interval,
            }
        )

    def __repr__(self) -> str:
        return (
            f"<AnnotatorAgreement {len(self.annotators)} annotators, {self.shared_items} items "
            f"with two labels or more: alpha {figure(self.alpha, self.alpha_interval)}, "
            f"ceiling {figure(self.ceiling, self.ceiling_interval)}>"
        )

    def _repr_html_(self) -> str:
        return html_table(self.table) + html_table(self.pairwise, index=False)


def annotator_agreement(
    pairs_or_votes: Pairs | pd.DataFrame,
    *,
    scale: Scale | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> AnnotatorAgreement:
    """How well the annotators agree among themselves, over every item that they labelled.

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
        For what is neither pairs nor a table.
    ScaleError
        For a value outside the scale.
    """
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
    counts = np.stack([(codes == k).sum(axis=1) for k in range(len(values))], axis=1)
    positions = np.array([scale.rank(v) if scale else k for k, v in enumerate(values)])
    level = _LEVELS[scale.kind] if scale else "nominal"
    labels_each = counts.sum(axis=1)
    fleiss_counts = _equally_rated(codes, counts)
    names = tuple(str(name) for name in votes.columns)
    by_annotator, credit, compared = _against_others(names, codes, counts)
    shared = int((labels_each >= 2).sum())

    alpha_interval, ceiling_interval = UNDEFINED, UNDEFINED
    if ((counts > 0).sum(axis=1) > 1).any():
        draws = resample(np.ones(len(counts), dtype=int), resamples, seed)
        alpha_interval = _alpha_interval(counts, positions, level, draws, confidence)
        with np.errstate(invalid="ignore", divide="ignore"):
            ceilings = (draws @ credit) / (draws @ compared)
        ceiling_interval = percentile_interval(ceilings, confidence)
    elif shared:
        # Nobody differs, and no resample would; Wilson's interval says what that leaves open.
        agreed = wilson(shared, shared, confidence).low
        shares = counts[labels_each >= 2].sum(axis=0) / labels_each[labels_each >= 2].sum()
        by_chance = 1 - float(shares @ shares)
        ceiling_interval = Interval(agreed, 1.0)
        if by_chance > 0:
            alpha_interval = Interval(max(-1.0, 1 - (1 - agreed) / by_chance), 1.0)

    return AnnotatorAgreement(
        annotators=names,
        items=int((labels_each >= 1).sum()),
        shared_items=shared,
        pairwise=_pairwise(names, codes, positions, ordered=bool(scale and scale.ordered)),
        by_annotator=by_annotator,
        alpha=krippendorff_alpha(counts, positions, level),
        alpha_interval=alpha_interval,
        level=level,
        fleiss=fleiss_kappa(fleiss_counts),
        fleiss_items=len(fleiss_counts),
        fleiss_raters=int(fleiss_counts[0].sum()) if len(fleiss_counts) else 0,
        ceiling=ratio(credit.sum(), compared.sum()),
        ceiling_interval=ceiling_interval,
        scale=scale,
    )


def _scale_seen(votes: pd.DataFrame) -> Scale | None:
    """The scale of the values; None where all are one value, on which nothing can differ."""
    try:
        return Scale.from_values(votes.to_numpy().ravel().tolist())
    except ScaleError:
        seen = {v for v in votes.to_numpy().ravel().tolist() if not is_missing(v)}
        if len(seen) <= 1:
            return None
        raise


def _codes(votes: pd.DataFrame, scale: Scale | None) -> tuple[list[Any], Array]:
    """The categories in order and, item by annotator, the number of the category; -1 for none."""
    cells_ = votes.to_numpy(dtype=object)

    def canonical(raw: Any) -> Any:
        if raw is ABSTAIN or is_missing(raw):
            return None
        value = scale.normalise(raw) if scale else raw
        return None if value is ABSTAIN else value

    table = [[canonical(raw) for raw in row] for row in cells_]
    seen = {value for row in table for value in row if value is not None}
    values = list(scale.values) if scale and scale.values else sorted(seen, key=float_or_text)
    number = {value: k for k, value in enumerate(values)}
    codes = np.array(
        [[-1 if value is None else number[value] for value in row] for row in table], dtype=int
    )
    return values or [None], codes.reshape(votes.shape)


def _equally_rated(codes: Array, counts: Array) -> Array:
    """Counts by item and category over items with the same number of labels, two at least.

    See `AnnotatorAgreement.fleiss` for which items and labels these are.
    """
    numbers = set(counts.sum(axis=1).tolist()) - {0, 1}
    if len(numbers) <= 1:
        return np.asarray(counts[counts.sum(axis=1) >= 2])
    given = codes >= 0
    by_activity = np.argsort(-given.sum(axis=0), kind="stable")
    groups = [by_activity[:k] for k in range(2, len(by_activity) + 1)]
    group = max(groups, key=lambda g: (given[:, g].all(axis=1).sum() * len(g), len(g)))
    rated = codes[np.ix_(given[:, group].all(axis=1), group)]
    return np.stack([(rated == k).sum(axis=1) for k in range(counts.shape[1])], axis=1)


def _pairwise(
    names: tuple[str, ...], codes: Array, positions: Array, *, ordered: bool
) -> pd.DataFrame:
    columns = ["annotator_a", "annotator_b", "n", "accuracy", "kappa"]
    columns += ["weighted_kappa"] * ordered
    rows = []
    for a, b in combinations(range(len(names)), 2):
        both = (codes[:, a] >= 0) & (codes[:, b] >= 0)
        first, second = codes[both, a], codes[both, b]
        (left, right), counts = cells(first, second)
        n = int(both.sum())
        row = [names[a], names[b], n, ratio((first == second).sum(), n)]
        row.append(float(cohen_kappa(left, right, counts, disagreement(positions))))
        if ordered:
            weights = disagreement(positions, "quadratic")
            row.append(float(cohen_kappa(left, right, counts, weights)))
        rows.append(row)
    return pd.DataFrame(rows, columns=columns)


def _against_others(
    names: tuple[str, ...], codes: Array, counts: Array
) -> tuple[pd.DataFrame, Array, Array]:
    """Each annotator's accuracy against the others' majority, and credit and number by item."""
    credit, compared = np.zeros(len(codes)), np.zeros(len(codes))
    rows = []
    for a, name in enumerate(names):
        given = codes[:, a] >= 0
        others = counts.copy()
        others[given, codes[given, a]] -= 1
        usable = given & (others.sum(axis=1) > 0)
        most = others.max(axis=1, keepdims=True, initial=0)
        tied = (others == most) & (others > 0)
        share = tied[usable, codes[usable, a]] / tied[usable].sum(axis=1)
        credit[usable] += share
        compared[usable] += 1
        n = int(usable.sum())
        rows.append([name, int(given.sum()), n, ratio(share.sum(), n)])
    table = pd.DataFrame(rows, columns=["annotator", "labels", "n", "accuracy"])
    return table, credit, compared


def _alpha_interval(
    counts: Array, positions: Array, level: Level, draws: Array, confidence: float
) -> Interval:
    """Bootstrap over items; not for more than 20 categories, where it would cost too much."""
    size = counts.shape[1]
    if size > 20:
        return UNDEFINED
    each = np.stack([coincidences(row[None])[0] for row in counts])
    together = (draws @ each.reshape(len(each), -1)).reshape(-1, size, size)
    alphas = krippendorff_alphas(together, together.sum(axis=-1), positions, level)
    return percentile_interval(alphas, confidence)
