"""How well a judge agrees with people: agreement, before against after, corrected prevalence.

Pure functions over `workbench.pairing.Pairs`. The formulas are in `coefficients`, the annotators
among themselves in `annotators`. A statistic that is undefined is nan and not 0; abstentions are
neither right nor wrong and are not among the pairs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.annotators import (
    AnnotatorAgreement,
    annotator_agreement,
    figure,
    float_or_text,
    html_table,
    plain,
)
from workbench.coefficients import (
    UNDEFINED,
    Array,
    Interval,
    Weights,
    cells,
    cohen_kappa,
    disagreement,
    lang_reiczigel,
    mcnemar,
    paired_difference,
    percentile_interval,
    ratio,
    resample,
    rogan_gladen,
    wilson,
)
from workbench.errors import ArgumentError, one_of
from workbench.scale import ABSTAIN, Scale, is_missing

if TYPE_CHECKING:
    from workbench.pairing import Pairs

__all__ = [
    "Agreement",
    "AnnotatorAgreement",
    "Comparison",
    "Prevalence",
    "agreement",
    "annotator_agreement",
    "compare",
    "prevalence",
]

_MOST_CATEGORIES = 20
"""With more distinct numbers than this, a numeric scale's confusion is shown in bins."""

_BINS = 10

ENOUGH_PAIRS = 30
"""Fewer pairs than this are too few to tell two judges apart by anything but luck."""


@dataclass(frozen=True, eq=False, repr=False)
class Agreement:
    """How well a judge agrees with the human labels.

    Every rate lies in [0, 1], every kappa in [-1, 1]; what is undefined (no items, a class that was
    never predicted, one value throughout) is nan, and what the scale does not have is None.

    Attributes
    ----------
    name, scale, n
        The judge's name, the rating scale, the number of pairs.
    accuracy, accuracy_interval
        Share of pairs with equal values; Wilson interval.
    kappa, kappa_interval
        Cohen's kappa, which corrects accuracy for chance; bootstrap interval. Where judge and
        human agree on every item the bootstrap has no spread; the lower end is then the kappa at
        the lower end of the accuracy's interval.
    weighted_kappa, weighted_kappa_interval, weights
        Kappa that counts near misses less, on ordinal and numeric scales.
    confusion
        ``confusion.loc[human, judge]``: pairs with that human label and that verdict, in the
        scale's order. A numeric scale with more than 20 distinct values is shown in 10 bins of
        equal width.
    per_class
        Index class; ``precision``, ``recall``, ``f1``, ``support`` (human labels of the class).
        None on numeric scales with bins.
    mean_distance, mean_distance_interval
        Mean `Scale.distance` of verdict and label: 0 is full agreement, and a near miss costs
        less than a far one; bootstrap interval.
    baseline
        Accuracy of always answering the most frequent human label.
    false_positives, false_negatives, false_positive_rate, false_negative_rate (and _interval)
        On binary scales: positive verdicts on human negatives, of all human negatives; negative
        verdicts on human positives, of all human positives; Wilson intervals.
    mae, pearson, spearman
        On numeric scales: mean absolute error in the scale's unit; correlations, which are blind
        to a constant offset.
    """

    name: str
    scale: Scale
    n: int
    accuracy: float
    accuracy_interval: Interval
    kappa: float
    kappa_interval: Interval
    confusion: pd.DataFrame
    per_class: pd.DataFrame | None
    mean_distance: float
    mean_distance_interval: Interval
    baseline: float
    confidence: float = 0.95
    weights: Weights | None = None
    weighted_kappa: float | None = None
    weighted_kappa_interval: Interval | None = None
    false_positives: int | None = None
    false_negatives: int | None = None
    false_positive_rate: float | None = None
    false_positive_rate_interval: Interval | None = None
    false_negative_rate: float | None = None
    false_negative_rate_interval: Interval | None = None
    mae: float | None = None
    pearson: float | None = None
    spearman: float | None = None

    @property
    def true_positive_rate(self) -> float | None:
        """Share of human positives that the judge finds (sensitivity); None if not binary."""
        return None if self.false_negative_rate is None else 1 - self.false_negative_rate

    @property
    def true_negative_rate(self) -> float | None:
        """Share of human negatives that the judge finds (specificity); None if not binary."""
        return None if self.false_positive_rate is None else 1 - self.false_positive_rate

    @property
    def figures(self) -> dict[str, tuple[float, Interval]]:
        """Every figure that this scale has: name -> (value, interval), best known first."""
        found: dict[str, tuple[float | None, Interval | None]] = {
            "accuracy": (self.accuracy, self.accuracy_interval),
            "kappa": (self.kappa, self.kappa_interval),
            f"kappa ({self.weights})": (self.weighted_kappa, self.weighted_kappa_interval),
            "mean distance": (self.mean_distance, self.mean_distance_interval),
            "false positive rate": (self.false_positive_rate, self.false_positive_rate_interval),
            "false negative rate": (self.false_negative_rate, self.false_negative_rate_interval),
            "mean absolute error": (self.mae, None),
            "Pearson correlation": (self.pearson, None),
            "Spearman correlation": (self.spearman, None),
        }
        return {k: (v, i or UNDEFINED) for k, (v, i) in found.items() if v is not None}

    @property
    def table(self) -> pd.DataFrame:
        """The figures as a table: index statistic; ``value``, ``low``, ``high``."""
        rows = {name: (value, *interval) for name, (value, interval) in self.figures.items()}
        rows["majority baseline"] = (self.baseline, *UNDEFINED)
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes; what is undefined is None."""
        found = {
            name: {"value": value, "interval": None if math.isnan(ends.low) else ends}
            for name, (value, ends) in self.figures.items()
        }
        return plain(
            {
                "name": self.name,
                "n": self.n,
                "confidence": self.confidence,
                "baseline": self.baseline,
                "figures": found,
                "values": list(self.confusion.index),
                "confusion": self.confusion.to_numpy().tolist(),
                "per_class": None if self.per_class is None else self.per_class.reset_index(),
                "false_positives": self.false_positives,
                "false_negatives": self.false_negatives,
            }
        )

    def __repr__(self) -> str:
        return (
            f"<Agreement {self.name!r} on {self.n} pairs: accuracy "
            f"{figure(self.accuracy, self.accuracy_interval)}, kappa "
            f"{figure(self.kappa, self.kappa_interval)}>"
        )

    def _repr_html_(self) -> str:
        parts = [html_table(self.table), html_table(self.confusion)]
        if self.per_class is not None:
            parts.append(html_table(self.per_class))
        return "".join(parts)


def agreement(
    pairs: Pairs,
    *,
    weights: Weights | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> Agreement:
    """How well the judge agrees with the human labels.

    Parameters
    ----------
    pairs
        Verdicts and labels on the same traces.
    weights
        Of the weighted kappa on ordinal and numeric scales: ``"quadratic"`` (the default there)
        or ``"linear"``. Plain kappa is always given.
    confidence
        Of the intervals, in (0, 1).
    seed, resamples
        Of the bootstrap intervals.

    Raises
    ------
    ArgumentError
        For unknown weights, weights on a scale without an order, a confidence out of range.
    """
    one_of("weights", weights, [None, "linear", "quadratic"])
    _check_confidence(confidence)
    if weights and not pairs.scale.ordered:
        raise ArgumentError(
            f"weights={weights!r} need a scale with an order; {pairs.name!r} has a "
            f"{pairs.scale.kind} one ({pairs.scale.describe()}), on which no miss is nearer than "
            "another. Leave weights out."
        )
    coded = _Coded.of(pairs)
    human, judge = coded.human, coded.judge
    n = len(human)
    right = int((human == judge).sum())
    bootstrap = _Bootstrap.of(coded, seed=seed, resamples=resamples, confidence=confidence)
    kappa, kappa_interval = bootstrap.kappa(disagreement(coded.positions))
    distance, distance_interval = bootstrap.mean(coded.distances)
    found = Agreement(
        name=pairs.name,
        scale=coded.scale,
        n=n,
        accuracy=ratio(right, n),
        accuracy_interval=wilson(right, n, confidence),
        kappa=kappa,
        kappa_interval=kappa_interval,
        confusion=_confusion(coded),
        per_class=None if coded.binned else _per_class(coded),
        mean_distance=distance,
        mean_distance_interval=distance_interval,
        baseline=ratio(int(np.bincount(human).max(initial=0)), n),
        confidence=confidence,
    )
    if coded.scale.ordered:
        weights = weights or "quadratic"
        weighted, interval = bootstrap.kappa(disagreement(coded.positions, weights))
        found = replace(
            found, weights=weights, weighted_kappa=weighted, weighted_kappa_interval=interval
        )
    if coded.scale.kind == "binary":
        found = replace(found, **_binary_rates(human, judge, confidence))
    if coded.scale.kind == "numeric":
        found = replace(found, **_correlations(coded))
    return found


@dataclass(frozen=True)
class _Coded:
    """Pairs as numbers: each side the position of its value in ``values``."""

    scale: Scale
    values: list[Any]
    human: Array
    judge: Array

    @classmethod
    def of(cls, pairs: Pairs, *more: Pairs) -> _Coded:
        """Codes of ``pairs``; ``more`` only adds its values, so that codes can be compared."""
        tables = [p.table for p in (pairs, *more)]
        seen = [v for t in tables for side in ("human", "judge") for v in t[side]]
        scale = pairs.scale.with_range(seen)
        values = list(scale.values) or sorted({_number(v) for v in seen}, key=float_or_text)
        position = {value: k for k, value in enumerate(values)}

        def codes(side: str) -> Array:
            try:
                return np.array([position[v] for v in pairs.table[side]], dtype=int)
            except KeyError as error:
                raise ArgumentError(
                    f"The pairs of {pairs.name!r} hold the {side} value {error}, which is not on "
                    f"their scale ({scale.describe()}). workbench.pair gives canonical values."
                ) from None

        return cls(scale, values, codes("human"), codes("judge"))

    @property
    def positions(self) -> Array:
        """What each value is worth in worst-to-best order; a number is its own worth."""
        return np.array([self.scale.rank(v) for v in self.values] or [0.0])

    @property
    def binned(self) -> bool:
        return self.scale.kind == "numeric" and len(self.values) > _MOST_CATEGORIES

    def distances(self, human: Array, judge: Array) -> Array:
        """`Scale.distance` of each cell."""
        pairs = zip(human, judge, strict=True)
        return np.array(
            [self.scale.distance(self.values[h], self.values[j]) for h, j in pairs], dtype=float
        )


def _number(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True)
class _Bootstrap:
    """Statistics of one judge with their intervals, from resampled cells (human, judge)."""

    human: Array
    judge: Array
    counts: Array
    draws: Array
    confidence: float

    @classmethod
    def of(cls, coded: _Coded, *, seed: int, resamples: int, confidence: float) -> _Bootstrap:
        (human, judge), counts = cells(coded.human, coded.judge)
        draws = resample(counts, resamples, seed) if counts.size else counts[None]
        return cls(human, judge, counts, draws, confidence)

    def kappa(self, weights: Array) -> tuple[float, Interval]:
        value = float(cohen_kappa(self.human, self.judge, self.counts, weights))
        if math.isnan(value):
            return value, UNDEFINED
        if (self.human == self.judge).all():
            # No resample can disagree. What Wilson's interval leaves open for the share of
            # disagreements is set against the chance disagreement.
            n = int(self.counts.sum())
            rows = np.bincount(self.human, self.counts, len(weights)) / n
            open_share = 1 - wilson(n, n, self.confidence).low
            return value, Interval(max(-1.0, 1 - open_share / (1 - float(rows @ rows))), 1.0)
        draws = cohen_kappa(self.human, self.judge, self.draws, weights)
        return value, percentile_interval(draws, self.confidence)

    def mean(self, of_cell: Any) -> tuple[float, Interval]:
        if not self.counts.size:
            return math.nan, UNDEFINED
        each, n = of_cell(self.human, self.judge), self.counts.sum()
        return float(self.counts @ each / n), percentile_interval(
            self.draws @ each / n, self.confidence
        )


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ArgumentError(
            f"confidence={confidence!r} must lie between 0 and 1, for instance 0.95."
        )


def _confusion(coded: _Coded) -> pd.DataFrame:
    values, human, judge = coded.values, coded.human, coded.judge
    if coded.binned:
        edges = np.linspace(coded.positions[0], coded.positions[-1], _BINS + 1)
        bin_of = np.clip(np.digitize(coded.positions, edges) - 1, 0, _BINS - 1)
        human, judge = bin_of[human], bin_of[judge]
        values = [f"{low:.3g} to {high:.3g}" for low, high in pairwise(edges)]
    table = np.zeros((len(values), len(values)), dtype=int)
    np.add.at(table, (human, judge), 1)
    return pd.DataFrame(
        table, index=pd.Index(values, name="human"), columns=pd.Index(values, name="judge")
    )


def _per_class(coded: _Coded) -> pd.DataFrame:
    table = _confusion(coded).to_numpy()
    hits, labels, verdicts = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    rows = [
        (ratio(h, v), ratio(h, s), ratio(2 * h, s + v), int(s))
        for h, s, v in zip(hits, labels, verdicts, strict=True)
    ]
    index = pd.Index(coded.values, name="class")
    return pd.DataFrame(rows, columns=["precision", "recall", "f1", "support"], index=index)


def _binary_rates(human: Array, judge: Array, confidence: float) -> dict[str, Any]:
    positives, negatives = int((human == 1).sum()), int((human == 0).sum())
    false_positives = int(((human == 0) & (judge == 1)).sum())
    false_negatives = int(((human == 1) & (judge == 0)).sum())
    return {
        "false_positives": false_positives,
        "false_negatives": false_negatives,
        "false_positive_rate": ratio(false_positives, negatives),
        "false_positive_rate_interval": wilson(false_positives, negatives, confidence),
        "false_negative_rate": ratio(false_negatives, positives),
        "false_negative_rate_interval": wilson(false_negatives, positives, confidence),
    }


def _correlations(coded: _Coded) -> dict[str, Any]:
    """MAE, Pearson's and Spearman's correlation; a correlation with a constant is nan."""
    if not coded.human.size:
        return dict.fromkeys(("mae", "pearson", "spearman"), math.nan)
    human, judge = coded.positions[coded.human], coded.positions[coded.judge]
    found = {"mae": float(np.abs(human - judge).mean()), "pearson": math.nan, "spearman": math.nan}
    if len(set(human)) > 1 and len(set(judge)) > 1:
        from scipy.stats import spearmanr

        found["pearson"] = float(np.corrcoef(human, judge)[0, 1])
        found["spearman"] = float(spearmanr(human, judge).statistic)
    return found


# -- before against after ---------------------------------------------------------------------


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Two judges on the same labelled items.

    Attributes
    ----------
    n
        Items that both judged; the items of one only are in ``only_before`` and ``only_after``.
    before, after
        `Agreement` of each judge on those items.
    changes
        Name of a figure -> (after minus before, its interval). Items are compared with
        themselves: accuracy and the binary rates by Newcombe's interval for paired proportions,
        the rest by a bootstrap over items.
    fixed, broken, still_wrong
        Items that only the judge after, only the judge before, and neither got right:
        ``trace_id``, ``human``, ``before``, ``after``. On a numeric scale, where hardly a verdict
        equals its label, fixed and broken mean nearer to it and farther from it.
    p_value
        McNemar's exact test of fixed against broken (on a numeric scale this is the sign test).
    improved
        Whether more items are right than before; where as many are, whether the mean distance
        fell. On a numeric scale, whether the mean distance fell.
    significant
        Whether ``p_value`` is below 1 - confidence, in either direction.
    enough, power_note
        Whether there is enough to tell the two apart, and if not, why.
    """

    n: int
    before: Agreement
    after: Agreement
    changes: dict[str, tuple[float, Interval]]
    fixed: pd.DataFrame
    broken: pd.DataFrame
    still_wrong: pd.DataFrame
    p_value: float
    improved: bool
    enough: bool
    power_note: str
    only_before: tuple[str, ...] = ()
    only_after: tuple[str, ...] = ()
    confidence: float = field(default=0.95)

    @property
    def significant(self) -> bool:
        return self.p_value < 1 - self.confidence

    @property
    def accuracy_change(self) -> float:
        return self.changes["accuracy"][0]

    @property
    def accuracy_change_interval(self) -> Interval:
        return self.changes["accuracy"][1]

    @property
    def kappa_change(self) -> float:
        return self.changes["kappa"][0]

    @property
    def kappa_change_interval(self) -> Interval:
        return self.changes["kappa"][1]

    @property
    def table(self) -> pd.DataFrame:
        """Index figure; ``before``, ``after`` and ``change`` as text with their intervals."""
        rows = {
            name: (
                figure(*self.before.figures[name]),
                figure(*self.after.figures[name]),
                figure(*change, sign=True),
            )
            for name, change in self.changes.items()
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=["before", "after", "change"])

    @property
    def summary(self) -> str:
        """One sentence: what changed, on how many items, and how sure that is."""
        rises = {True: "rises", False: "falls"}.get(self.accuracy_change > 0)
        verb = "stays" if self.accuracy_change == 0 or math.isnan(self.accuracy_change) else rises
        return (
            f"Accuracy {verb} from {figure(self.before.accuracy)} to {figure(self.after.accuracy)} "
            f"on {self.n} items: {len(self.fixed)} fixed, {len(self.broken)} broken "
            f"(McNemar p = {self.p_value:.2g})."
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes; what is undefined is None."""
        return plain(
            {
                "n": self.n,
                "before": self.before.to_dict(),
                "after": self.after.to_dict(),
                "changes": {
                    name: {"value": value, "interval": None if math.isnan(ends.low) else ends}
                    for name, (value, ends) in self.changes.items()
                },
                "fixed": self.fixed,
                "broken": self.broken,
                "still_wrong": self.still_wrong,
                "p_value": self.p_value,
                "improved": self.improved,
                "significant": self.significant,
                "enough": self.enough,
                "power_note": self.power_note,
                "only_before": list(self.only_before),
                "only_after": list(self.only_after),
            }
        )

    def __repr__(self) -> str:
        return f"<Comparison: {self.summary}>"

    def __str__(self) -> str:
        parts = [self.table.to_string(), self.summary, *self.notes]
        return "\n".join(parts)

    @property
    def notes(self) -> list[str]:
        """What a reader should know beside the figures."""
        found = [self.power_note] if self.power_note else []
        for judged, other, ids in (
            ("before", "after", self.only_before),
            ("after", "before", self.only_after),
        ):
            if ids:
                found.append(
                    f"{len(ids)} items were judged only {judged}, not {other}; they are left out."
                )
        return found

    def _repr_html_(self) -> str:
        from html import escape

        parts = [html_table(self.table), f"<div>{escape(self.summary)}</div>"]
        return "".join([*parts, *(f"<div>{escape(note)}</div>" for note in self.notes)])


def compare(
    before: Pairs,
    after: Pairs,
    *,
    weights: Weights | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    resamples: int = 2000,
) -> Comparison:
    """Compare two judges on the same labelled items.

    Parameters
    ----------
    before, after
        Pairs of two judges, joined on ``trace_id``.
    weights, confidence, seed, resamples
        As in `agreement`.

    Raises
    ------
    ArgumentError
        When the two have no trace in common, other scales, or other human labels on a trace.
    """
    _check_confidence(confidence)
    common = _common(before, after)
    only_before = tuple(i for i in before.table["trace_id"] if i not in common)
    only_after = tuple(i for i in after.table["trace_id"] if i not in common)
    before, after = _on(before, common), _on(after, common)
    _check_comparable(before, after)
    options: dict[str, Any] = {
        "weights": weights,
        "confidence": confidence,
        "seed": seed,
        "resamples": resamples,
    }
    first, second = agreement(before, **options), agreement(after, **options)
    one, two = _Coded.of(before, after), _Coded.of(after, before)
    items = pd.DataFrame(
        {
            "trace_id": before.table["trace_id"],
            "human": before.table["human"],
            "before": before.table["judge"],
            "after": after.table["judge"],
        }
    )
    gap_before = one.distances(one.human, one.judge)
    gap_after = two.distances(two.human, two.judge)
    wrong_before, wrong_after = gap_before > 0, gap_after > 0
    if one.scale.kind == "numeric":
        nearer, farther = gap_after < gap_before, gap_after > gap_before
    else:
        nearer, farther = wrong_before & ~wrong_after, ~wrong_before & wrong_after
    changes = _changes(first, second, one, two, options)
    gain, closer = changes["accuracy"][0], changes["mean distance"][0] < 0
    note = _power_note(len(items), int(nearer.sum()), int(farther.sum()), changes, confidence)
    return Comparison(
        n=len(items),
        before=first,
        after=second,
        changes=changes,
        fixed=items[nearer].reset_index(drop=True),
        broken=items[farther].reset_index(drop=True),
        still_wrong=items[wrong_before & wrong_after].reset_index(drop=True),
        p_value=mcnemar(int(nearer.sum()), int(farther.sum())),
        improved=closer if one.scale.kind == "numeric" else gain > 0 or (gain == 0 and closer),
        enough=not note,
        power_note=note,
        only_before=only_before,
        only_after=only_after,
        confidence=confidence,
    )


def _common(before: Pairs, after: Pairs) -> set[str]:
    common = set(before.table["trace_id"]) & set(after.table["trace_id"])
    if not common and (len(before.table) or len(after.table)):
        raise ArgumentError(
            f"The two sets of pairs ({len(before.table)} before, {len(after.table)} after) have no "
            "trace in common. Let both judges judge the same labelled traces."
        )
    return common


def _on(pairs: Pairs, trace_ids: set[str]) -> Pairs:
    table = pairs.table[pairs.table["trace_id"].isin(trace_ids)]
    return replace(pairs, table=table.sort_values("trace_id").reset_index(drop=True))


def _check_comparable(before: Pairs, after: Pairs) -> None:
    if (before.scale.kind, before.scale.values) != (after.scale.kind, after.scale.values):
        raise ArgumentError(
            f"The two sets of pairs are on different scales: {before.scale.kind} "
            f"({before.scale.describe()}) before, {after.scale.kind} ({after.scale.describe()}) "
            "after. Pair both judges with the same scale=."
        )
    other = before.table["human"].to_numpy() != after.table["human"].to_numpy()
    if other.any():
        row = before.table[other].iloc[0]
        theirs = after.table[other].iloc[0]["human"]
        raise ArgumentError(
            f"{int(other.sum())} traces have another human label before than after, e.g. "
            f"{row['trace_id']}: {row['human']!r} and {theirs!r}. Pair both judges again, with "
            "the same consensus and the labels of today."
        )


def _changes(
    first: Agreement, second: Agreement, one: _Coded, two: _Coded, options: dict[str, Any]
) -> dict[str, tuple[float, Interval]]:
    """The change of every figure with the interval that fits it."""
    confidence = options["confidence"]
    human, before, after = one.human, one.judge, two.judge
    (h, b, a), counts = cells(human, before, after)
    draws = resample(counts, options["resamples"], options["seed"]) if counts.size else None

    def of_proportion(of: Array) -> Interval:
        right_before, right_after = (human == before)[of], (human == after)[of]
        return paired_difference(
            int((right_before & right_after).sum()),
            int((right_before & ~right_after).sum()),
            int((~right_before & right_after).sum()),
            int((~right_before & ~right_after).sum()),
            confidence,
        )

    def of_kappa(weights: Weights | None) -> Interval:
        if draws is None:
            return UNDEFINED
        matrix = disagreement(one.positions, weights)
        change = cohen_kappa(h, a, draws, matrix) - cohen_kappa(h, b, draws, matrix)
        return percentile_interval(change, confidence)

    def of_mean(of_cell: Any) -> Interval:
        if draws is None:
            return UNDEFINED
        return percentile_interval(
            draws @ (of_cell(h, a) - of_cell(h, b)) / counts.sum(), confidence
        )

    def of_error_rate(side: int) -> Interval:
        low, high = of_proportion(human == side)
        return Interval(-high, -low)

    intervals = {
        "accuracy": lambda: of_proportion(np.full(len(human), True)),
        "kappa": lambda: of_kappa(None),
        f"kappa ({first.weights})": lambda: of_kappa(first.weights),
        "mean distance": lambda: of_mean(one.distances),
        "false positive rate": lambda: of_error_rate(0),
        "false negative rate": lambda: of_error_rate(1),
        "mean absolute error": lambda: of_mean(
            lambda x, y: np.abs(one.positions[x] - one.positions[y])
        ),
    }
    changes = {}
    for name, (value, _) in first.figures.items():
        change = second.figures[name][0] - value
        known = name in intervals and not math.isnan(change)
        changes[name] = (change, intervals[name]() if known else UNDEFINED)
    return changes


def _power_note(
    n: int,
    fixed: int,
    broken: int,
    changes: dict[str, tuple[float, Interval]],
    confidence: float,
) -> str:
    """Why there is too little to tell the two judges apart; "" where there is enough."""
    alpha = 1 - confidence
    # k items that all changed one way have the two-sided p-value 2 * 0.5**k.
    needed = math.ceil(math.log2(2 / alpha) + 1e-9)
    if n < ENOUGH_PAIRS:
        note = (
            f"{n} held-out pairs are too few to tell: with fewer than {ENOUGH_PAIRS}, a gain or a "
            "loss may be luck."
        )
    elif fixed + broken < needed:
        note = (
            f"The two judges differ on {fixed + broken} of {n} pairs only; even if all of them "
            f"went one way, fewer than {needed} cannot show a difference at p < {alpha:.2g}."
        )
    else:
        return ""
    interval = changes["accuracy"][1]
    if not math.isnan(interval.low):
        note += (
            f" All that can be said is that the change in accuracy lies between "
            f"{interval.low:+.3f} and {interval.high:+.3f}."
        )
    return note


# -- prevalence -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Prevalence:
    """Share of positive items behind a judge's verdicts, corrected for the judge's errors.

    Attributes
    ----------
    n, positive, skipped
        Verdicts, positive ones among them, and abstentions and missing ones left out.
    observed, observed_interval
        The judge's own rate of positive verdicts; Wilson interval.
    corrected, interval
        The rate corrected by tpr and tnr, in [0, 1], with an interval that also counts how
        uncertain these are; nan where the judge does no better than chance.
    true_positive_rate, true_negative_rate, labelled
        The judge's rates on the labelled pairs, and how many these are.
    """

    n: int
    positive: int
    skipped: int
    observed: float
    observed_interval: Interval
    corrected: float
    interval: Interval
    true_positive_rate: float
    true_negative_rate: float
    labelled: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes; what is undefined is None."""
        return plain(dict(vars(self)))

    def __repr__(self) -> str:
        return (
            f"<Prevalence of {self.n} verdicts: {figure(self.observed, self.observed_interval)} as "
            f"judged, {figure(self.corrected, self.interval)} corrected>"
        )


def prevalence(pairs: Pairs, verdicts: Iterable[Any], *, confidence: float = 0.95) -> Prevalence:
    """Share of positives among verdicts on unlabelled items, corrected for the judge's errors.

    A judge that errs one way more than the other reports a wrong rate however many items it
    judges. Its true positive and true negative rates on the labelled ``pairs`` undo that
    (Rogan and Gladen 1978), at the price of a wider interval (Lang and Reiczigel 2014). The pairs
    must be like the unlabelled items, and must not be those that the judge was aligned on.

    Parameters
    ----------
    pairs
        Labelled pairs of the same judge, on a binary scale.
    verdicts
        The judge's verdicts on other items, in any form that the scale reads.
    confidence
        Of the intervals, in (0, 1).

    Raises
    ------
    ArgumentError
        For a scale that is not binary.
    ScaleError
        For a verdict outside the scale.
    """
    _check_confidence(confidence)
    if pairs.scale.kind != "binary":
        raise ArgumentError(
            f"prevalence needs a binary scale; {pairs.name!r} has a {pairs.scale.kind} one "
            f"({pairs.scale.describe()}). Map its values to yes and no first."
        )
    raw = list(verdicts)
    read = [pairs.scale.normalise(v) for v in raw if not is_missing(v)]
    read = [v for v in read if v is not ABSTAIN]
    positive, n = sum(v == pairs.scale.positive for v in read), len(read)
    coded = _Coded.of(pairs)
    positives, negatives = int((coded.human == 1).sum()), int((coded.human == 0).sum())
    true_positives = int(((coded.human == 1) & (coded.judge == 1)).sum())
    true_negatives = int(((coded.human == 0) & (coded.judge == 0)).sum())
    tpr, tnr = ratio(true_positives, positives), ratio(true_negatives, negatives)
    return Prevalence(
        n=n,
        positive=positive,
        skipped=len(raw) - n,
        observed=ratio(positive, n),
        observed_interval=wilson(positive, n, confidence),
        corrected=rogan_gladen(ratio(positive, n), tpr, tnr),
        interval=lang_reiczigel(
            positive,
            n,
            true_positives=true_positives,
            human_positives=positives,
            true_negatives=true_negatives,
            human_negatives=negatives,
            confidence=confidence,
        ),
        true_positive_rate=tpr,
        true_negative_rate=tnr,
        labelled=len(coded.human),
    )
