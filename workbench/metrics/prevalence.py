"""The share of positive items behind a judge's verdicts, corrected for the judge's errors."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.errors import ArgumentError
from workbench.formatting import plain
from workbench.metrics.coefficients import Coded
from workbench.metrics.intervals import UNDEFINED, Interval, check_confidence, figure, ratio, wilson
from workbench.scale import ABSTAIN, is_missing
from workbench.store.tables import require_columns

if TYPE_CHECKING:
    from workbench.pairing.pairs import Pairs


def rogan_gladen(rate: float, tpr: float, tnr: float) -> float:
    """Prevalence behind a judge's rate of positive verdicts, given its two kinds of error.

    ``(rate + tnr - 1) / (tpr + tnr - 1)``, cut to [0, 1]. nan where ``tpr + tnr <= 1``: the
    judge then does no better than chance and its rate tells nothing. Source: Rogan and Gladen
    (1978), "Estimating prevalence from the results of a screening test", American Journal of
    Epidemiology 107, 71-76.

    >>> rogan_gladen(0.29, tpr=0.8, tnr=0.9)
    0.27142857142857146
    """
    if not tpr + tnr > 1:  # also where one of them is nan
        return math.nan
    return min(1.0, max(0.0, (rate + tnr - 1) / (tpr + tnr - 1)))


def lang_reiczigel(
    positive: int,
    n: int,
    *,
    true_positives: int,
    human_positives: int,
    true_negatives: int,
    human_negatives: int,
    confidence: float = 0.95,
) -> Interval:
    """Interval of the Rogan-Gladen prevalence that also counts the error of tpr and tnr.

    Within [0, 1]; undefined where the judge does no better than chance or one side has no
    human label. Source: Lang and Reiczigel (2014), "Confidence limits for prevalence of disease
    adjusted for estimated sensitivity and specificity", Preventive Veterinary Medicine 113,
    13-22, equations 6, 7 and 17.
    """
    if n == 0 or not human_positives or not human_negatives:
        return UNDEFINED
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, n_rate = (positive + z * z / 2) / (n + z * z), n + z * z
    tpr, n_tpr = (true_positives + 1) / (human_positives + 2), human_positives + 2
    tnr, n_tnr = (true_negatives + 1) / (human_negatives + 2), human_negatives + 2
    gain = tpr + tnr - 1
    if gain <= 0 or true_positives / human_positives + true_negatives / human_negatives <= 1:
        return UNDEFINED
    prevalence = (rate + tnr - 1) / gain
    of_tpr, of_tnr = tpr * (1 - tpr) / n_tpr, tnr * (1 - tnr) / n_tnr
    centre = prevalence + 2 * z * z * (prevalence * of_tpr - (1 - prevalence) * of_tnr)
    variance = rate * (1 - rate) / n_rate + prevalence**2 * of_tpr + (1 - prevalence) ** 2 * of_tnr
    margin = z * math.sqrt(variance) / gain
    return Interval(
        min(1.0, max(0.0, centre - margin)),
        min(1.0, max(0.0, centre + margin)),
    )


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
    check_confidence(confidence)
    if pairs.scale.kind != "binary":
        raise ArgumentError(
            f"prevalence needs a binary scale; {pairs.name!r} has a {pairs.scale.kind} one "
            f"({pairs.scale.describe()}). Map its values to yes and no first."
        )
    raw = list(verdicts)
    read = [pairs.scale.normalise(v) for v in raw if not is_missing(v)]
    read = [v for v in read if v is not ABSTAIN]
    positive, n = sum(v == pairs.scale.positive for v in read), len(read)
    coded = Coded.of(pairs)
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


_COLUMNS = ["trace_id", "draw", "pool", "probability"]


@dataclass(frozen=True)
class Estimate:
    """A share among all items of a queue at its last random draw, estimated from its labels.

    Attributes
    ----------
    value
        The estimate. Unbiased where every drawn item has an answer, so that it may lie outside
        [0, 1] by a little; nan without a random draw.
    interval
        By Student's t, cut to [0, 1]; nan for fewer than two random draws. With few of them,
        or a rare value, it is rough, and rather too short.
    n, random
        Labels used, and the random draws that the estimate is the mean of: those made since the
        queue last grew.
    """

    value: float
    interval: Interval
    n: int
    random: int

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes; what is undefined is None."""
        return plain(dict(vars(self)))

    def __repr__(self) -> str:
        return (
            f"<Estimate {figure(self.value, self.interval)} from {self.n} labels, "
            f"{self.random} of them drawn at random>"
        )


def sampled_share(
    labels: pd.DataFrame,
    is_so: Mapping[str, bool | float] | Callable[[Any], bool | float],
    *,
    confidence: float = 0.95,
) -> Estimate:
    """The share of items that are so, in the whole queue that labels were drawn from.

    The queue is what the last random draw was from: all batches up to the present one, and all
    traces that had joined. It is unbiased for that, whatever was labelled before the queue grew.
    Soon after it grew there are few draws, and the interval is wide, or nan. Where the queue only
    got smaller, since others took items of it, draws from before that are averaged with the rest:
    that is right where what left is like what stayed, as when the others draw at random too.

    Parameters
    ----------
    labels
        One annotator's labels on one question, as ``session.labels`` gives them: one row a trace
        with ``trace_id``, ``draw``, ``pool``, ``probability`` and ``value``. Rows without a draw,
        which were labelled elsewhere, count as known from when they were (``at``), or from the
        beginning.
    is_so
        0 to 1 for each trace id, or a function of a row's ``value``. Rows that it lacks, and
        abstentions, have no answer: they count neither as so nor as not so.
    confidence
        Of the interval, in (0, 1).

    Raises
    ------
    ArgumentError
        For several labels on one trace (several questions or annotators), or missing columns.

    Examples
    --------
    >>> rows = [("a", 1, 4, 1 / 4, "yes"), ("b", 2, 4, None, "no"), ("c", 3, 4, 1 / 2, "no")]
    >>> names = ["trace_id", "draw", "pool", "probability", "value"]
    >>> sampled_share(pd.DataFrame(rows, columns=names), lambda value: value == "yes").value
    0.625
    """
    check_confidence(confidence)
    require_columns(labels, "labels", _COLUMNS)
    if labels["trace_id"].duplicated().any():
        raise ArgumentError(
            "labels holds several rows of one trace. Give those of one annotator and one "
            "question: labels[labels['question'] == name]."
        )
    if callable(is_so):
        require_columns(labels, "labels", ["value"])
        known = labels[labels["value"].notna()]
        outcomes = {i: is_so(v) for i, v in zip(known["trace_id"], known["value"], strict=True)}
    else:
        outcomes = dict(is_so)
    draws = _draws(labels, outcomes)
    # The totals of what is so and of what has an answer, one of each for each random draw, as
    # shares of the pool.
    totals: list[tuple[float, float]] = []
    before_so = before_all = 0.0
    size = 0
    for so, answered, probability, pool in draws:
        if probability is not None:
            if pool > size:
                # What has joined had no chance in the draws before this one.
                totals.clear()
            size = pool
            rest = 1 / probability
            totals.append(((before_so + so * rest) / pool, (before_all + answered * rest) / pool))
        before_so, before_all = before_so + so, before_all + answered
    random = len(totals)
    n = sum(bool(answered) for _, answered, _, _ in draws)
    undefined = Interval(math.nan, math.nan)
    share_answered = sum(a for _, a in totals) / random if random else 0.0
    if not share_answered:
        return Estimate(math.nan, undefined, n, random)
    value = sum(s for s, _ in totals) / random / share_answered
    if random < 2:
        return Estimate(value, undefined, n, random)
    # The ratio's deviations; where all are answered they are those of z_t itself.
    spread = sum(((s - value * a) / share_answered) ** 2 for s, a in totals)
    half = _quantile(confidence, random - 1) * math.sqrt(spread / (random * (random - 1)))
    return Estimate(value, Interval(max(0.0, value - half), min(1.0, value + half)), n, random)


def sampled_prevalence(labels: pd.DataFrame, value: Any, *, confidence: float = 0.95) -> Estimate:
    """The share of items labelled ``value`` in the whole queue (see `sampled_share`)."""
    return sampled_share(labels, lambda given: given == value, confidence=confidence)


def sampled_accuracy(pairs: Pairs, labels: pd.DataFrame, *, confidence: float = 0.95) -> Estimate:
    """How often judge and people agree in the whole queue that was labelled (see `sampled_share`).

    ``labels`` says how the traces of ``pairs`` were chosen. Traces that make no pair have no
    answer.
    """
    table = pairs.table
    agree = table["human"] == table["judge"]
    outcomes = dict(zip(table["trace_id"], agree.astype(bool), strict=True))
    return sampled_share(labels, outcomes, confidence=confidence)


def _draws(
    labels: pd.DataFrame, outcomes: Mapping[str, bool | float]
) -> list[tuple[float, float, float | None, int]]:
    """In the order of the draws: outcome, whether there is one, probability and pool."""
    table = labels.assign(so=labels["trace_id"].map(outcomes).astype("float64"))
    numbers = table["draw"].astype("float64")
    if "at" in table.columns and numbers.notna().any():
        # Where a label from elsewhere lies among the draws: after the last one before it.
        by_time = pd.DataFrame({"at": table["at"], "draw": numbers}).sort_values("at")
        numbers = numbers.fillna(by_time["draw"].cummax().ffill() + 0.5)
    table = table.assign(number=numbers.fillna(0.0)).sort_values("number", kind="stable")
    return [
        (
            0.0 if pd.isna(so) else float(so),
            float(not pd.isna(so)),
            None if pd.isna(probability) or pd.isna(draw) else float(probability),
            0 if pd.isna(pool) else int(pool),
        )
        for so, probability, draw, pool in zip(
            table["so"], table["probability"], table["draw"], table["pool"], strict=True
        )
    ]


def _quantile(confidence: float, degrees: int) -> float:
    from scipy.stats import t

    return float(t.ppf((1 + confidence) / 2, degrees))
