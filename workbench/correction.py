"""The share of positive items behind a judge's verdicts, corrected for the judge's errors."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from workbench.coding import Coded, check_confidence
from workbench.coefficients import Interval, lang_reiczigel, ratio, rogan_gladen, wilson
from workbench.errors import ArgumentError
from workbench.rendering import figure, plain
from workbench.scale import ABSTAIN, is_missing

if TYPE_CHECKING:
    from workbench.pairing import Pairs


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
