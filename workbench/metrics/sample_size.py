"""How many labels a question takes, and what a given number of them can show."""

from __future__ import annotations

import math
from collections.abc import Mapping
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


def mcnemar_power(
    n: int, improvement: float, differing: float, *, confidence: float = 0.95
) -> float:
    """Return the probability that McNemar's exact test on n items shows an improvement.

    ``improvement`` is the share of items fixed minus the share broken, ``differing`` their sum.
    How many items differ is binomial, and so is how many of these are broken; the sum over both is
    exact, where Connor (1987, Biometrics 43, 207-211) has the normal approximation.
    """
    from scipy.stats import binom

    # Counts farther from their mean have no probability to speak of.
    mean, reach = n * differing, 10 + 10 * math.sqrt(n * differing * (1 - differing))
    changed = np.arange(max(0, math.floor(mean - reach)), min(n, math.ceil(mean + reach)) + 1)
    # The most broken items with which the test, two-sided, still has p < 1 - confidence.
    broken = binom.ppf((1 - confidence) / 2, changed, 0.5) - 1
    detected = binom.cdf(broken, changed, (differing - improvement) / 2 / differing)
    return float(binom.pmf(changed, n, differing) @ detected)


def smallest_improvement(n: int) -> float:
    """Return the smallest share of fixed items that n items show, at best: nothing is broken.

    With a power of 0.8, at the level of 5 %; nan where even n fixed items of n are not significant.
    """
    if mcnemar_power(n, 1.0, 1.0) < 0.8:
        return math.nan
    from scipy.optimize import brentq

    return float(brentq(lambda gain: mcnemar_power(n, gain, gain) - 0.8, 1e-9, 1.0, xtol=1e-6))


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
        Of the interval of an accuracy, from end to end, in (0, 1]: 0.1 is about 0.05 to each side.
    improvement
        Gain in accuracy that McNemar's exact test shall show on the same items, in (0, 1].
    classes
        Class -> its prevalence, in (0, 1]: as many labels as bring, with probability ``power``,
        enough items of each class for an interval of ``width`` (0.2 where none is given) of the
        judge's recall on it. Those of earlier labels: ``agreement(pairs).class_shares["human"]``.
    accuracy
        Of the judge as it is, expected, in (0, 1]. None is the worst case.
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
    if not 0 < power < 1:
        raise ArgumentError(f"power={power!r} must lie between 0 and 1, for instance 0.8.")
    classes = dict({} if classes is None else classes)
    given = {"width": width, "improvement": improvement, "accuracy": accuracy}
    for name, value in {**given, "differing": differing, **classes}.items():
        if value is not None and not 0 < value <= 1:
            raise ArgumentError(f"The share {name}={value!r} must lie in (0, 1].")
    rows: dict[str, tuple[int, str]] = {}
    share = 0.5 if accuracy is None else accuracy
    if width is not None:
        n = labels_for_width(width, share, confidence)
        rows[f"accuracy to a width of {width:g}"] = (n, f"accuracy {share:g}")
    if improvement is not None:
        before, after, apart = _two_judges(improvement, accuracy, differing)
        n = _for_improvement(improvement, apart, power, confidence)
        said = f"accuracy {before:.3g} to {after:.3g}, {apart:.1%} of items differ"
        rows[f"improvement of {improvement:g}"] = (n, said)
    wide = CLASS_WIDTH if width is None else width
    of_class = labels_for_width(wide, share, confidence)
    for name, prevalence in classes.items():
        said = f"{prevalence:.1%} are {name!r}; {of_class} of them, recall {share:g}"
        n = _until(of_class, prevalence, power)
        rows[f"recall on {name!r} to a width of {wide:g}"] = (n, said)
    if not rows:
        raise ArgumentError(
            "labels_needed has no aim. Give width=0.1, improvement=0.1 or "
            "classes={'yes': 0.2, 'no': 0.8}, or several of them."
        )
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["n", "assuming"])
    return LabelsNeeded(table.rename_axis("aim"))


def _two_judges(
    improvement: float, accuracy: float | None, differing: float | None
) -> tuple[float, float, float]:
    """Accuracy before and after, and the share of items on which one of the judges is right."""
    before = (1 - improvement) / 2 if accuracy is None else accuracy  # where most items differ
    after = before + improvement
    most = min(2 - before - after, before + after)
    if differing is None:
        differing = max(improvement, before * (1 - after) + (1 - before) * after)
    if after > 1 + 1e-9 or not improvement - 1e-9 <= differing <= most + 1e-9:
        raise ArgumentError(
            f"improvement={improvement:g} on accuracy={before:g} with differing={differing:g} "
            f"cannot be: at most {1 - before:g} can be gained, and differing must lie between the "
            "improvement and the sum of what either judge can have right or wrong alone."
        )
    return before, after, differing


def _for_improvement(improvement: float, differing: float, power: float, confidence: float) -> int:
    """The fewest items with enough power."""
    low, high = 1, 2
    while mcnemar_power(high, improvement, differing, confidence=confidence) < power:
        low, high = high, high * 2
    while high - low > 1:
        middle = (low + high) // 2
        enough = mcnemar_power(middle, improvement, differing, confidence=confidence) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def _until(count: int, prevalence: float, probability: float) -> int:
    """The fewest draws that hold so many of a class with this probability."""
    from scipy.stats import nbinom

    return count + int(nbinom.ppf(probability, count, prevalence))
