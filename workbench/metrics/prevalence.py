"""Shares among all items: by a judge's verdicts, corrected for its errors, or by sampled labels."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError
from workbench.formatting import counted, plain
from workbench.metrics.figures import Coded, confusion_of
from workbench.metrics.intervals import (
    UNDEFINED,
    Array,
    Interval,
    Result,
    check_confidence,
    effective_share,
    figure,
    figure_table,
    mean_interval,
    normal_quantile,
    ratio,
    wilson,
)
from workbench.pairing.pairs import Pairs
from workbench.scale import ABSTAIN, no_rating
from workbench.store.tables import require_columns


def rogan_gladen(
    cells: Array, positive: int, n: int, confidence: float = 0.95
) -> tuple[float, Interval]:
    """Return the prevalence behind a judge's rate of positive verdicts, and its interval.

    ``(rate + tnr - 1) / (tpr + tnr - 1)``, cut to [0, 1]; the arguments are those of
    `prediction_powered`. nan where ``tpr + tnr <= 1``, since the rate then says nothing, and where
    one side has no label. The interval includes the error of tpr and tnr and is undefined where all
    of it lies outside. Sources: Rogan and Gladen (1978), American Journal of Epidemiology 107,
    71-76; Lang and Reiczigel (2014), Preventive Veterinary Medicine 113, 13-22, equations 6, 7, 17.
    """
    negatives, positives = cells.sum(axis=1)
    tpr, tnr = ratio(cells[1, 1], positives), ratio(cells[0, 0], negatives)
    if not n or not tpr + tnr > 1:  # also where one of the two is nan
        return math.nan, UNDEFINED
    value = _within((positive / n + tnr - 1) / (tpr + tnr - 1))
    z2 = normal_quantile(confidence) ** 2
    rate, n_rate = (positive + z2 / 2) / (n + z2), n + z2
    tpr, n_tpr = (cells[1, 1] + 1) / (positives + 2), positives + 2
    tnr, n_tnr = (cells[0, 0] + 1) / (negatives + 2), negatives + 2
    if (gain := tpr + tnr - 1) <= 0:
        return value, UNDEFINED
    shrunk = (rate + tnr - 1) / gain
    of_tpr, of_tnr = tpr * (1 - tpr) / n_tpr, tnr * (1 - tnr) / n_tnr
    centre = shrunk + 2 * z2 * (shrunk * of_tpr - (1 - shrunk) * of_tnr)
    variance = rate * (1 - rate) / n_rate + shrunk**2 * of_tpr + (1 - shrunk) ** 2 * of_tnr
    margin = math.sqrt(z2 * variance) / gain
    if centre + margin < 0 or centre - margin > 1:
        return value, UNDEFINED
    return value, Interval(_within(centre - margin), _within(centre + margin))


def prediction_powered(
    cells: Array, positive: int, n: int, confidence: float = 0.95
) -> tuple[float, Interval]:
    """Return the prevalence by prediction-powered inference (PPI++), and its interval.

    ``cells[human, judge]`` counts the labelled items, shape (2, 2); ``positive`` of ``n`` other
    verdicts are positive. The labels' share of positives is corrected by how far the judge's share
    on the others is from its share on the labelled items, times a tuning in [0, 1] that makes the
    variance smallest. Cut to [0, 1]; nan without labels or other verdicts. Sources: Angelopoulos et
    al. (2023), Science 382, 669-674; Angelopoulos, Duchi and Zrnic (2023), arXiv 2311.01453,
    section 6. Their interval is too narrow where the judge makes few errors, so its variance is
    that of the cells with half an item added to each.
    """
    labelled = float(cells.sum())
    if not labelled or not n:
        return math.nan, UNDEFINED
    human, judge, others = cells[1].sum() / labelled, cells[:, 1].sum() / labelled, positive / n
    every = labelled + n
    share = (cells[:, 1].sum() + positive) / every
    spread = share * (1 - share) * every / (every - 1)
    covariance = cells[1, 1] / labelled - human * judge
    tuning = _within(covariance / (1 + labelled / n) / spread) if spread else 0.0
    value = human + tuning * (others - judge)
    residual = np.array([[0.0, -tuning], [1.0, 1 - tuning]])
    weights = (cells + 0.5) / (labelled + 2)
    noise = (weights * residual**2).sum() - (weights * residual).sum() ** 2
    error = math.sqrt(tuning**2 * others * (1 - others) / n + noise / labelled)
    half = normal_quantile(confidence) * error
    return _within(value), Interval(_within(value - half), _within(value + half))


def _within(share: float) -> float:
    return min(1.0, max(0.0, float(share)))


@dataclass(frozen=True)
class Prevalence(Result):
    """Share of positive items behind a judge's verdicts, corrected for the judge's errors.

    Attributes
    ----------
    n, positive, skipped
        Verdicts, positive ones among them, and abstentions and missing ones left out.
    observed, observed_interval
        The judge's own rate of positive verdicts; Wilson interval. It knows nothing of errors.
    corrected, interval
        The rate corrected by tpr and tnr (Rogan and Gladen), in [0, 1], with an interval that
        includes the error of these; nan as `reason` says.
    prediction_powered, prediction_powered_interval
        The share by prediction-powered inference, which holds however bad the judge is. It takes
        the labelled items for a random sample of all; the former lets the two differ in prevalence.
    true_positive_rate, true_negative_rate, labelled
        The judge's rates on the labelled pairs, and the number of these.
    reason
        Why the correction, or its interval, is refused; "" where it is not.
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
    prediction_powered: float
    prediction_powered_interval: Interval
    reason: str

    @property
    def table(self) -> pd.DataFrame:
        """Index estimate; ``value``, ``low``, ``high``, ``n`` verdicts, ``labelled`` pairs used."""
        powered, ends = self.prediction_powered, self.prediction_powered_interval
        rows = {
            "as judged": (self.observed, *self.observed_interval, self.n, 0),
            "Rogan-Gladen": (self.corrected, *self.interval, self.n, self.labelled),
            "prediction-powered": (powered, *ends, self.n, self.labelled),
        }
        return figure_table(rows, "n", "labelled")

    def __repr__(self) -> str:
        powered = figure(self.prediction_powered, self.prediction_powered_interval)
        why = f". {self.reason}" if self.reason else ""
        return (
            f"<Prevalence of {counted(self.n, 'verdict')}: "
            f"{figure(self.observed, self.observed_interval)} as judged, "
            f"{figure(self.corrected, self.interval)} corrected, {powered} by "
            f"prediction-powered inference{why}>"
        )


def prevalence(pairs: Pairs, verdicts: Iterable[Any], *, confidence: float = 0.95) -> Prevalence:
    """Estimate the share of positives among verdicts on unlabelled items.

    A judge that errs one way more than the other reports a wrong rate however many items it
    judges. Its errors on the labelled ``pairs`` correct that in two ways: see `Prevalence`. The
    pairs must be like the unlabelled items, and must not be those that the judge was aligned on.

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
    check_confidence(confidence)
    if pairs.scale.kind != "binary":
        raise ArgumentError(
            f"prevalence needs a binary scale; that of {pairs.name!r} is {pairs.scale.kind} "
            f"({pairs.scale.describe()}). Map its values to yes and no first."
        )
    raw = list(verdicts)
    read = [pairs.scale.normalise(v) for v in raw if not no_rating(v, pairs.scale)]
    read = [v for v in read if v is not ABSTAIN]
    positive, n = sum(v == pairs.scale.positive for v in read), len(read)
    coded = Coded.of(pairs)
    share = effective_share(coded.human == coded.judge, coded.groups, confidence)
    cells = confusion_of(coded).to_numpy() * share
    tnr, tpr = (ratio(cells[k, k], cells[k].sum()) for k in (0, 1))
    observed = ratio(positive, n)
    corrected, interval = rogan_gladen(cells, positive, n, confidence)
    reason = ""
    if not n:
        reason = "There is no verdict to correct."
    elif math.isnan(corrected):
        reason = (
            "No correction: that takes a sensitivity and a specificity that add up to more than 1, "
            f"and the pairs tell of {figure(tpr)} and {figure(tnr)}."
        )
    elif math.isnan(interval.low):
        reason = (
            f"No interval: sensitivity {tpr:.3f} and specificity {tnr:.3f} on the pairs add up to "
            f"hardly more than 1, or contradict the rate {observed:.3f} of positive verdicts. "
            "Label more items, like those judged."
        )
    return Prevalence(
        n, positive, len(raw) - n, observed, wilson(positive, n, confidence),
        corrected, interval, tpr, tnr, len(pairs),
        *prediction_powered(cells, positive, n, confidence), reason,
    )  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A share among all items of a queue at its last random draw, estimated from its labels.

    Attributes
    ----------
    value, interval
        Unbiased where every drawn item has an answer, so that it may lie outside [0, 1] by a
        little; nan without a random draw. Student's interval, cut to [0, 1]; nan for fewer than
        two draws, and rather too short with few of them or a rare value.
    n, random
        Labels used, and the random draws made since the queue last grew, of which the estimate is
        the mean.
    """

    value: float
    interval: Interval
    n: int
    random: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes; what is undefined is None."""
        return plain(vars(self))

    def __repr__(self) -> str:
        return (
            f"<Estimate {figure(self.value, self.interval)} from {counted(self.n, 'label')}, "
            f"{self.random} of them drawn at random>"
        )


def sampled_prevalence(labels: pd.DataFrame, value: Any, *, confidence: float = 0.95) -> Estimate:
    """Estimate the share of items labelled ``value`` in the whole queue.

    The queue is what the last random draw was from. Each draw since it last grew estimates its
    total: what was labelled before, plus the draw's own outcome divided by its probability. Their
    mean is unbiased (Raj 1956, JASA 51, 269-284). Where the queue only got smaller, since others
    took items of it, that holds if what left is like what stayed.

    Parameters
    ----------
    labels
        One annotator's labels on one question, as ``session.labels`` gives them: one row a trace
        with ``trace_id``, ``draw``, ``pool``, ``probability`` and ``value``; abstentions have no
        value. Rows without a draw, which were labelled elsewhere, count as known from when they
        were (``at``), or from the beginning.
    confidence
        Of the interval, in (0, 1).

    Raises
    ------
    ArgumentError
        For several labels on one trace (several questions or annotators), or missing columns.
    """
    require_columns(labels, "labels", ["trace_id", "value"])
    known = labels[labels["value"].notna()]
    is_so = {i: v == value for i, v in zip(known["trace_id"], known["value"], strict=True)}
    return _sampled_share(labels, is_so, confidence)


def sampled_accuracy(pairs: Pairs, labels: pd.DataFrame, *, confidence: float = 0.95) -> Estimate:
    """Estimate how often judge and people agree in the whole queue (see `sampled_prevalence`).

    ``labels`` says how the traces of ``pairs`` were chosen. Traces that make no pair have no
    answer.
    """
    agree = pairs.table["human"] == pairs.table["judge"]
    return _sampled_share(labels, dict(zip(pairs.trace_ids, agree, strict=True)), confidence)


def _sampled_share(labels: pd.DataFrame, is_so: Mapping[str, bool], confidence: float) -> Estimate:
    """The share of items that are so; those that ``is_so`` lacks count neither way."""
    check_confidence(confidence)
    require_columns(labels, "labels", ["trace_id", "draw", "pool", "probability"])
    if labels["trace_id"].duplicated().any():
        raise ArgumentError(
            "labels holds several rows of one trace. Give those of one annotator and one "
            "question: labels[labels['question'] == name]."
        )
    table = _in_order_of_draws(labels)
    outcome = table["trace_id"].map(dict(is_so)).astype("float64")
    n, totals = int(outcome.notna().sum()), _totals(table, outcome)
    random, answered = len(totals), totals["answered"].mean()
    if not random or not answered:
        return Estimate(math.nan, UNDEFINED, n, random)
    value = float(totals["so"].mean() / answered)
    # The ratio's deviations; where all are answered they are those of the totals themselves.
    error = ((totals["so"] - value * totals["answered"]) / answered).to_numpy()
    low, high = mean_interval(value + error, confidence)
    return Estimate(value, Interval(max(low, 0.0), min(high, 1.0)), n, random)


def _in_order_of_draws(labels: pd.DataFrame) -> pd.DataFrame:
    """Labels in the order of their draws; one from elsewhere after the last draw before it."""
    numbers = labels["draw"].astype("float64")
    if "at" in labels.columns and numbers.notna().any():
        by_time = pd.DataFrame({"at": labels["at"], "draw": numbers}).sort_values("at")
        numbers = numbers.fillna(by_time["draw"].cummax().ffill() + 0.5)
    return labels.assign(number=numbers.fillna(0.0)).sort_values("number", kind="stable")


def _totals(table: pd.DataFrame, outcome: pd.Series[float]) -> pd.DataFrame:
    """Return each random draw's estimates of two shares of the pool: positive, and answered."""
    probability, pool = table["probability"].astype("float64"), table["pool"].astype("float64")
    drawn = probability.notna() & table["draw"].notna()
    each = pd.DataFrame({"so": outcome.fillna(0.0), "answered": outcome.notna().astype("float64")})
    before = each.cumsum() - each
    totals = (before + each.div(probability, axis=0)).div(pool, axis=0)[drawn]
    # Items that joined had no chance in the draws before, so only those since then count.
    batch = (pool[drawn].diff() > 0).cumsum()
    return totals[batch == batch.max()]
