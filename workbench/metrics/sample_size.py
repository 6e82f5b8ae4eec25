"""How many labels a question takes, and what a given number of them can show."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import beta, binom, nbinom

from workbench.errors import ArgumentError
from workbench.metrics.intervals import Result, check_confidence, normal_quantile

CLASS_WIDTH = 0.2  # of the interval of a class where none is given
MOST_SUMMED = 1000  # counts of items that differ, on either side of their mean


def labels_for_width(width: float, share: float = 0.5, confidence: float = 0.95) -> int:
    """Return the fewest items for a ``width`` of the interval: the formula of `wilson` for n."""
    z2, spread = normal_quantile(confidence) ** 2, share * (1 - share)
    root = math.sqrt(4 * spread**2 + width**2 * (1 - 4 * spread))
    # The tolerance is for what rounding adds to a whole number.
    return max(1, math.ceil(z2 / width**2 * (2 * spread + root) - z2 - 1e-9))


def mcnemar_power(
    n: int, improvement: float, differing: float, *, confidence: float = 0.95
) -> float:
    """Return the probability that McNemar's exact test on n items shows an improvement.

    ``improvement`` is the share of items fixed minus the share broken, ``differing`` their sum.
    Exact, where Connor (1987, Biometrics 43, 207-211) has the normal approximation; where more
    than `MOST_SUMMED` counts on a side of their mean are likely, only every so many is summed.
    """
    # Counts farther from their mean have no probability to speak of.
    mean, reach = n * differing, 10 + 10 * math.sqrt(n * differing * (1 - differing))
    step = 1 + int(reach) // MOST_SUMMED
    changed = np.arange(max(0, math.floor(mean - reach)), min(n, math.ceil(mean + reach)) + 1, step)
    # The most broken items with which the test, two-sided, still has p < 1 - confidence.
    broken = binom.ppf((1 - confidence) / 2, changed, 0.5) - 1
    detected = binom.cdf(broken, changed, (differing - improvement) / 2 / differing)
    return float(np.average(detected, weights=binom.pmf(changed, n, differing)))


def smallest_improvement(n: int) -> float:
    """Return the smallest share of fixed items that n items show, at best: nothing is broken.

    With a power of 0.8, at the level of 5 %, for which six items have to be fixed; nan below that.
    """
    return float(beta.ppf(0.8, 6, n - 5)) if n > 5 else math.nan


@dataclass(frozen=True, repr=False)
class LabelsNeeded(Result):
    """How many labelled items each aim takes.

    Attributes
    ----------
    table
        Index aim; ``n`` labels, and ``assuming`` what this rests on.
    """

    shown = ("n",)

    table: pd.DataFrame

    @property
    def n(self) -> int:
        """Labels that meet all aims."""
        return int(self.table["n"].max())

    def __repr__(self) -> str:
        return f"<LabelsNeeded {self.n:,} labels>\n{self.table.to_string()}"


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
        Class -> its prevalence, in (0, 1], such as ``agreement(pairs).class_shares["human"]``:
        as many labels as bring, with probability ``power``, enough items of each class for an
        interval of ``width`` (0.2 where none is given) of the judge's recall on it.
    accuracy
        Of the judge as it is, expected, in (0, 1]. None is the worst case.
    differing
        Share of items on which only one of the two judges is right, in [improvement, 1]. None is
        that of judges which err independently of each other, which is cautious.
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
    check_confidence(power, "power")
    if not isinstance(classes, (Mapping, pd.Series, type(None))):
        raise ArgumentError(
            f"classes={classes!r} must map each class to its share, as {{'yes': 0.2, 'no': 0.8}}."
        )
    classes = {} if classes is None else dict(classes)
    given = {"width": width, "improvement": improvement, "accuracy": accuracy}
    for name, value in {**given, "differing": differing, **classes}.items():
        if value is not None and not 0 < value <= 1:
            raise ArgumentError(f"The share {name}={value!r} must lie in (0, 1].")
    if sum(classes.values()) > 1 + 1e-9:
        raise ArgumentError(f"The shares in classes={classes!r} add up to more than 1.")
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
    for name, prevalence in classes.items():
        # How many other items come before so many of the class is negative binomial.
        n = of_class + int(nbinom.ppf(power, of_class, prevalence))
        said = f"{prevalence:.1%} are {name!r}; {of_class} of them, recall {share:g}"
        rows[f"recall on {name!r} to a width of {wide:g}"] = (n, said)
    if not rows:
        raise ArgumentError(
            "labels_needed has no aim. Give width=0.1, improvement=0.1 or "
            "classes={'yes': 0.2, 'no': 0.8}, or several of them."
        )
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["n", "assuming"])
    return LabelsNeeded(table.rename_axis("aim"))


def _for_improvement(
    gain: float, accuracy: float | None, differing: float | None, power: float, confidence: float
) -> tuple[int, str]:
    """The fewest items with enough power, and what that rests on."""
    before = (1 - gain) / 2 if accuracy is None else accuracy  # where most items differ
    after = before + gain
    most = min(2 - before - after, before + after)
    independent = before * (1 - after) + (1 - before) * after
    apart = max(gain, independent) if differing is None else differing
    if after > 1 + 1e-9 or not gain - 1e-9 <= apart <= most + 1e-9:
        raise ArgumentError(
            f"improvement={gain:g} on accuracy={before:g} with differing={apart:g} "
            f"cannot be: at most {1 - before:g} can be gained, and differing must lie between the "
            "improvement and the sum of what either judge can have right or wrong alone."
        )
    power_of = partial(mcnemar_power, improvement=gain, differing=apart, confidence=confidence)
    end = 2
    while power_of(end) < power:
        end *= 2
    n = end // 2 + bisect_left(range(end // 2, end), power, key=power_of)
    return n, f"accuracy {before:.3g} to {after:.3g}, {apart:.1%} of items differ"
