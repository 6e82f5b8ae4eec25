"""The share of positives behind a judge's verdicts, corrected for the judge's errors."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError
from workbench.formatting import html_table, html_text, plain
from workbench.metrics.coefficients import Coded
from workbench.metrics.intervals import (
    UNDEFINED,
    Array,
    Interval,
    check_confidence,
    figure,
    ratio,
    wilson,
)
from workbench.scale import ABSTAIN
from workbench.vocabulary import is_missing

if TYPE_CHECKING:
    from workbench.pairing.pairs import Pairs


def rogan_gladen(rate: float, tpr: float, tnr: float) -> float:
    """Return the prevalence behind a judge's rate of positive verdicts.

    ``(rate + tnr - 1) / (tpr + tnr - 1)``, cut to [0, 1]. nan where ``tpr + tnr <= 1``: the
    judge then does no better than chance and its rate says nothing. Source: Rogan and Gladen
    (1978), "Estimating prevalence from the results of a screening test", American Journal of
    Epidemiology 107, 71-76.

    >>> round(rogan_gladen(0.29, tpr=0.8, tnr=0.9), 4)
    0.2714
    """
    if not tpr + tnr > 1:  # also where one of them is nan
        return math.nan
    return _within((rate + tnr - 1) / (tpr + tnr - 1))


def lang_reiczigel(cells: Array, positive: int, n: int, confidence: float = 0.95) -> Interval:
    """Return the interval of the Rogan-Gladen prevalence that includes the error of tpr and tnr.

    The arguments are those of `prediction_powered`.
    Within [0, 1]; undefined where the judge does no better than chance or one side has no
    human label. Source: Lang and Reiczigel (2014), "Confidence limits for prevalence of disease
    adjusted for estimated sensitivity and specificity", Preventive Veterinary Medicine 113,
    13-22, equations 6, 7 and 17.
    """
    negatives, positives = cells.sum(axis=1)
    if n == 0 or not positives or not negatives:
        return UNDEFINED
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    rate, n_rate = (positive + z * z / 2) / (n + z * z), n + z * z
    tpr, n_tpr = (cells[1, 1] + 1) / (positives + 2), positives + 2
    tnr, n_tnr = (cells[0, 0] + 1) / (negatives + 2), negatives + 2
    gain = tpr + tnr - 1
    if gain <= 0 or cells[1, 1] / positives + cells[0, 0] / negatives <= 1:
        return UNDEFINED
    prevalence = (rate + tnr - 1) / gain
    of_tpr, of_tnr = tpr * (1 - tpr) / n_tpr, tnr * (1 - tnr) / n_tnr
    centre = prevalence + 2 * z * z * (prevalence * of_tpr - (1 - prevalence) * of_tnr)
    variance = rate * (1 - rate) / n_rate + prevalence**2 * of_tpr + (1 - prevalence) ** 2 * of_tnr
    margin = z * math.sqrt(variance) / gain
    return Interval(_within(centre - margin), _within(centre + margin))


def prediction_powered(
    cells: Array, positive: int, n: int, confidence: float = 0.95
) -> tuple[float, Interval]:
    """Return the prevalence by prediction-powered inference (PPI++), and its interval.

    ``cells[human, judge]`` counts the labelled items, shape (2, 2); ``positive`` of ``n`` other
    verdicts are positive. The estimate is ``h + t (v - j)``: the labels' share of positives h,
    corrected by how far the judge's share v on the others is from its share j on the labelled
    items. The tuning t in [0, 1] makes the variance smallest; it is 0 for a judge that tells
    nothing. Cut to [0, 1]; nan without labels or other verdicts. Sources: Angelopoulos, Bates,
    Fannjiang, Jordan and Zrnic (2023), "Prediction-powered inference", Science 382, 669-674;
    Angelopoulos, Duchi and Zrnic (2023), "PPI++: Efficient prediction-powered inference", arXiv
    2311.01453, section 6. Their interval is too narrow where the judge makes few errors, so its
    variance is that of the cells with half an item added to each.
    """
    labelled = int(cells.sum())
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
    half = NormalDist().inv_cdf((1 + confidence) / 2) * error
    return _within(value), Interval(_within(value - half), _within(value + half))


@dataclass(frozen=True)
class Prevalence:
    """Share of positive items behind a judge's verdicts, corrected for the judge's errors.

    Attributes
    ----------
    n, positive, skipped
        Verdicts, positive ones among them, and abstentions and missing ones left out.
    observed, observed_interval
        The judge's own rate of positive verdicts; Wilson interval. It knows nothing of errors.
    corrected, interval
        The rate corrected by tpr and tnr (Rogan and Gladen), in [0, 1], with an interval that
        includes the uncertainty of these; nan where the judge does no better than chance.
    prediction_powered, prediction_powered_interval
        The share by prediction-powered inference, which holds however bad the judge is, with an
        interval that includes the error of the labelled sample. It takes the labelled items for
        a random sample of all, while the former lets the two differ in prevalence.
    true_positive_rate, true_negative_rate, labelled
        The judge's rates on the labelled pairs, and the number of these.
    reason
        Why the correction is refused; "" where it is not.
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
    prediction_powered: float = math.nan
    prediction_powered_interval: Interval = UNDEFINED
    reason: str = ""

    @property
    def table(self) -> pd.DataFrame:
        """Index estimate; ``value``, ``low``, ``high``."""
        rows = {
            "as judged": (self.observed, *self.observed_interval),
            "Rogan-Gladen": (self.corrected, *self.interval),
            "prediction-powered": (self.prediction_powered, *self.prediction_powered_interval),
        }
        return pd.DataFrame.from_dict(rows, orient="index", columns=["value", "low", "high"])

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes; what is undefined is None."""
        return plain(vars(self))

    def __repr__(self) -> str:
        powered = figure(self.prediction_powered, self.prediction_powered_interval)
        why = f". {self.reason}" if self.reason else ""
        return (
            f"<Prevalence of {self.n} verdicts: {figure(self.observed, self.observed_interval)} as "
            f"judged, {figure(self.corrected, self.interval)} corrected, {powered} by "
            f"prediction-powered inference{why}>"
        )

    def _repr_html_(self) -> str:
        return html_table(self.table) + f"<div>{html_text(self.reason)}</div>" * bool(self.reason)


def prevalence(pairs: Pairs, verdicts: Iterable[Any], *, confidence: float = 0.95) -> Prevalence:
    """Estimate the share of positives among verdicts on unlabelled items.

    A judge that errs one way more than the other reports a wrong rate however many items it
    judges. Its errors on the labelled ``pairs`` correct that in two ways, both at the price of a
    wider interval: by its true positive and true negative rates (Rogan and Gladen 1978, interval
    of Lang and Reiczigel 2014), which is refused where they add up to 1 or less, and by
    prediction-powered inference (Angelopoulos et al. 2023). The pairs must be like the unlabelled
    items, and must not be those that the judge was aligned on.

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
    cells = np.zeros((2, 2), dtype=int)
    np.add.at(cells, (coded.human, coded.judge), 1)
    negatives, positives = cells.sum(axis=1)
    tpr, tnr = ratio(cells[1, 1], positives), ratio(cells[0, 0], negatives)
    powered, powered_interval = prediction_powered(cells, positive, n, confidence)
    return Prevalence(
        n=n,
        positive=positive,
        skipped=len(raw) - n,
        observed=ratio(positive, n),
        observed_interval=wilson(positive, n, confidence),
        corrected=rogan_gladen(ratio(positive, n), tpr, tnr),
        interval=lang_reiczigel(cells, positive, n, confidence),
        true_positive_rate=tpr,
        true_negative_rate=tnr,
        labelled=int(cells.sum()),
        prediction_powered=powered,
        prediction_powered_interval=powered_interval,
        reason=_why_refused(n, tpr, tnr),
    )


def _why_refused(n: int, tpr: float, tnr: float) -> str:
    """Why the judge's rates do not correct its verdicts; "" where they do."""
    if not n:
        return "There is no verdict to correct."
    if math.isnan(tpr + tnr):
        side = "positive" if math.isnan(tpr) else "negative"
        return f"No correction: no pair is labelled {side}, so that one of the rates is not known."
    if tpr + tnr <= 1:
        return (
            f"No correction: sensitivity {tpr:.3f} and specificity {tnr:.3f} add up to no more "
            "than 1, so that the verdicts tell no more than chance. Align the judge first."
        )
    return ""


def _within(share: float) -> float:
    return min(1.0, max(0.0, float(share)))
