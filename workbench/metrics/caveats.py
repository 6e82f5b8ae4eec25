"""Why a figure is undefined, and when kappa misleads."""

from __future__ import annotations

import math
from collections.abc import Mapping

from workbench.formatting import counted
from workbench.metrics.coefficients import MOST_COMPARED, Coded
from workbench.metrics.intervals import Interval

SKEWED = 0.8
"""The share of one label, and the accuracy, from which on kappa may collapse."""


def undefined(coded: Coded, figures: Mapping[str, tuple[float, Interval]]) -> dict[str, str]:
    """Return why figures are nan or have no interval: name -> reason."""
    found = {}
    for name, (value, interval) in figures.items():
        if math.isnan(value):
            found[name] = _why(coded, name)
        elif math.isnan(interval.low):
            found[name] = "no interval: what was seen does not vary enough to make one"
    return found


def _why(coded: Coded, name: str) -> str:
    if not coded.human.size:
        return "there are no pairs"
    if name == "within one":
        return "the scale spans no more than one"
    if name in ("false positive rate", "false negative rate"):
        side = coded.values[name == "false negative rate"]
        return f"no human label is {side!r}"
    if len({*coded.human.tolist(), *coded.judge.tolist()}) == 1:
        return f"judge and people say {coded.values[coded.human[0]]!r} throughout"
    for side, codes in (("people say", coded.human), ("the judge says", coded.judge)):
        if (codes == codes[0]).all():
            return f"{side} {coded.values[codes[0]]!r} throughout"
    return f"more than {counted(MOST_COMPARED, 'comparison')} of values; see the weighted one"


def kappa_paradox(
    coded: Coded, figures: Mapping[str, tuple[float, Interval]], baseline: float
) -> list[str]:
    """Return a note where kappa collapses under skewed classes though raw agreement is high.

    Source: Feinstein and Cicchetti (1990), "High agreement but low kappa", Journal of Clinical
    Epidemiology 43, 543-549.
    """
    if "AC1" not in figures:
        return []
    accuracy, kappa, ac1 = (figures[name][0] for name in ("accuracy", "kappa", "AC1"))
    collapsed = math.isnan(kappa) or ac1 - kappa >= 0.2
    if not (accuracy >= SKEWED and baseline >= SKEWED and collapsed and coded.human.size):
        return []
    most = coded.values[max(coded.human.tolist(), key=coded.human.tolist().count)]
    low = "undefined" if math.isnan(kappa) else f"only {kappa:.2f}"
    return [
        f"Kappa is {low} although judge and people agree on {accuracy:.0%} of the items: "
        f"{baseline:.0%} of the labels are {most!r}, so that chance alone agrees on nearly as "
        f"many. Gwet's AC1 ({ac1:.2f}) does not collapse so. Look at the recall of each class "
        "as well: whether the judge finds the rare ones neither tells."
    ]
