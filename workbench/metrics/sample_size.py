"""How many labels a question takes, and what a given number of them can show."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np
import pandas as pd

from workbench.errors import ArgumentError
from workbench.formatting import html_table, html_text, plain
from workbench.metrics.intervals import check_confidence

CLASS_WIDTH = 0.2
"""Width of the interval of a class where none is given."""


def labels_for_width(width: float, share: float = 0.5, confidence: float = 0.95) -> int:
    """Return the fewest items on which Wilson's interval of a share is no wider than ``width``.

    The interval's formula (see `wilson`), solved for n; a share of 0.5 needs the most.

    >>> labels_for_width(0.1)
    381
    """
    z2, spread = NormalDist().inv_cdf((1 + confidence) / 2) ** 2, share * (1 - share)
    root = math.sqrt(4 * spread**2 + width**2 * (1 - 4 * spread))
    # The tolerance is for what rounding adds to a whole number.
    return max(1, math.ceil(z2 / width**2 * (2 * spread + root) - z2 - 1e-9))


def connor(
    improvement: float, differing: float, power: float = 0.8, confidence: float = 0.95
) -> int:
    """Return the number of items for McNemar's test by the normal approximation.

    ``improvement`` is the share of items fixed minus the share broken, and ``differing`` their
    sum. Source: Connor (1987), "Sample size for testing differences in proportions for the
    paired-sample design", Biometrics 43, 207-211.

    >>> connor(0.1, 0.3)
    234
    """
    normal = NormalDist()
    to_reject = normal.inv_cdf((1 + confidence) / 2) * math.sqrt(differing)
    to_detect = normal.inv_cdf(power) * math.sqrt(differing - improvement**2)
    return math.ceil((to_reject + to_detect) ** 2 / improvement**2 - 1e-9)


def mcnemar_power(
    n: int, improvement: float, differing: float, *, confidence: float = 0.95
) -> float:
    """Return the probability that McNemar's exact test on n items shows an improvement.

    Exact: the sum over the number of items that change, which is binomial, and over how many of
    these are broken, which is binomial given their number. A significant loss does not count.
    """
    from scipy.stats import binom

    changed = np.arange(n + 1)
    # The most broken items with which the test, two-sided, still has p < 1 - confidence.
    broken = binom.ppf((1 - confidence) / 2, changed, 0.5) - 1
    detected = binom.cdf(broken, changed, (differing - improvement) / 2 / differing)
    return float(binom.pmf(changed, n, differing) @ detected)


def smallest_improvement(n: int, *, power: float = 0.8, confidence: float = 0.95) -> float:
    """Return the smallest share of fixed items that n items show, at best: nothing is broken.

    nan where even n fixed items of n would not be significant.
    """
    if mcnemar_power(n, 1.0, 1.0, confidence=confidence) < power:
        return math.nan
    from scipy.optimize import brentq

    def lacking(improvement: float) -> float:
        return mcnemar_power(n, improvement, improvement, confidence=confidence) - power

    return float(brentq(lacking, 1e-9, 1.0, xtol=1e-6))


@dataclass(frozen=True, repr=False)
class LabelsNeeded:
    """How many labelled items each aim takes.

    Attributes
    ----------
    table
        Index aim; ``n`` labels, and ``assuming`` what this rests on.
    """

    table: pd.DataFrame

    @property
    def n(self) -> int:
        """Labels that meet all aims."""
        return int(self.table["n"].max())

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON takes."""
        return plain({"n": self.n, "aims": self.table.reset_index()})

    def __repr__(self) -> str:
        return f"<LabelsNeeded {self.n:,} labels>\n{self.table.to_string()}"

    def _repr_html_(self) -> str:
        return f"<div>{html_text(f'{self.n:,}')} labels needed</div>{html_table(self.table)}"


def labels_needed(
    *,
    width: float | None = None,
    improvement: float | None = None,
    classes: Mapping[Any, float] | None = None,
    accuracy: float | None = None,
    differing: float | None = None,
    power: float = 0.8,
    confidence: float = 0.95,
) -> LabelsNeeded:
    """Tell how many items to label, before any is labelled.

    Count held-out items: those that a judge learns from prove nothing about it.

    Parameters
    ----------
    width
        Of the interval of an accuracy, from end to end, in (0, 1): 0.1 is about 0.05 to each side.
    improvement
        Gain in accuracy that McNemar's exact test shall show on the same items, in (0, 1).
    classes
        Class -> its prevalence, in (0, 1]: as many labels as bring, with probability ``power``,
        enough items of each class for an interval of ``width`` (0.2 where none is given) of the
        judge's recall on it. Those of earlier labels: ``agreement(pairs).class_shares["human"]``.
    accuracy
        Of the judge as it is, expected, in [0, 1]. None is the worst case.
    differing
        Share of items on which only one of the two judges is right, in [improvement, 1]. None is
        that of judges which err independently of each other, which is cautious: most new judges
        err where the old one did.
    power
        Probability with which the improvement is shown, in (0, 1).
    confidence
        Of the intervals; the test's level is 1 - confidence.

    Raises
    ------
    ArgumentError
        Without an aim, and for shares out of range or that exclude each other.

    Examples
    --------
    >>> labels_needed(width=0.1, improvement=0.1, accuracy=0.8).table["n"].tolist()
    [245, 215]
    """
    check_confidence(confidence)
    for name, value in (("width", width), ("improvement", improvement), ("power", power)):
        _check_share(name, value, lambda v: 0 < v < 1, "lie between 0 and 1")
    _check_share("accuracy", accuracy, lambda v: 0 <= v <= 1, "lie in [0, 1]")
    rows: dict[str, tuple[int, str]] = {}
    share = 0.5 if accuracy is None else accuracy
    if width is not None:
        n = labels_for_width(width, share, confidence)
        rows[f"accuracy to a width of {width:g}"] = (n, f"accuracy {share:g}")
    if improvement is not None:
        rows[f"improvement of {improvement:g}"] = _for_improvement(
            improvement, accuracy, differing, power, confidence
        )
    wide = CLASS_WIDTH if width is None else width
    of_class = labels_for_width(wide, share, confidence)
    for name, prevalence in dict({} if classes is None else classes).items():
        about = f"the prevalence of class {name!r}"
        _check_share(about, prevalence, lambda v: 0 < v <= 1, "lie in (0, 1]")
        rows[f"recall on {name!r} to a width of {wide:g}"] = (
            _until(of_class, prevalence, power),
            f"{prevalence:.1%} are {name!r}; {of_class} of them, recall {share:g}",
        )
    if not rows:
        raise ArgumentError(
            "labels_needed has no aim. Give width=0.1, improvement=0.1 or "
            "classes={'yes': 0.2, 'no': 0.8}, or several of them."
        )
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["n", "assuming"])
    return LabelsNeeded(table.rename_axis("aim"))


def _check_share(
    name: str, value: float | None, allowed: Callable[[float], bool], rule: str
) -> None:
    if value is not None and not allowed(value):
        raise ArgumentError(f"{name} is {value!r}; it must {rule}.")


def _for_improvement(
    improvement: float,
    accuracy: float | None,
    differing: float | None,
    power: float,
    confidence: float,
) -> tuple[int, str]:
    """The fewest items with enough power, and what is assumed."""
    before = (1 - improvement) / 2 if accuracy is None else accuracy  # where most items differ
    after = before + improvement
    if after > 1 + 1e-9:
        raise ArgumentError(
            f"improvement={improvement:g} on accuracy={accuracy:g} is more than 1. At most "
            f"{1 - before:g} can be gained."
        )
    most = min(1.0, 2 - before - after, before + after)
    if differing is None:
        differing = max(improvement, before * (1 - after) + (1 - before) * after)
    _check_share(
        "differing", differing, lambda v: improvement - 1e-9 <= v <= most + 1e-9,
        f"lie in [{improvement:g}, {most:g}], by improvement and accuracy",
    )  # fmt: skip
    low, high = 1, connor(improvement, differing, power, confidence)
    while mcnemar_power(high, improvement, differing, confidence=confidence) < power:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        enough = mcnemar_power(middle, improvement, differing, confidence=confidence) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high, f"accuracy {before:.3g} to {after:.3g}, {differing:.1%} of items differ"


def _until(count: int, prevalence: float, probability: float) -> int:
    """The fewest draws that hold so many of a class with this probability."""
    from scipy.stats import nbinom

    return count + int(nbinom.ppf(probability, count, prevalence))
