"""Labels against verdicts class by class: confusion matrix, precision, recall and F1."""

from __future__ import annotations

import numpy as np
import pandas as pd

from workbench.metrics.coefficients import Coded
from workbench.metrics.intervals import proportion


def confusion_of(coded: Coded) -> pd.DataFrame:
    """Return the counts of each label (rows) with each verdict (columns)."""
    values, human, judge = coded.shown()
    table = np.zeros((len(values), len(values)), dtype=int)
    np.add.at(table, (human, judge), 1)
    return pd.DataFrame(
        table, index=pd.Index(values, name="human"), columns=pd.Index(values, name="judge")
    )


def per_class(confusion: pd.DataFrame) -> pd.DataFrame:
    """Return precision, recall, F1 and support of each class; nan without a verdict or a label."""
    table = confusion.to_numpy()
    hits, labels, verdicts = np.diag(table), table.sum(axis=1), table.sum(axis=0)
    with np.errstate(invalid="ignore", divide="ignore"):
        shares = {
            "precision": hits / verdicts,
            "recall": hits / labels,
            "f1": 2 * hits / (labels + verdicts),
        }
    return pd.DataFrame(shares | {"support": labels}, index=confusion.index.rename("class"))


def class_intervals(coded: Coded, confidence: float) -> pd.DataFrame:
    """Return the ends of the intervals of precision, recall and F1 of each class.

    Precision and recall are shares, with Wilson's interval. F1 is ``2 J / (1 + J)`` of the share J
    of hits among the items that have the class on either side, and so are the ends of its interval.
    """
    rows = {}
    for k, value in enumerate(coded.values):
        labelled, judged = coded.human == k, coded.judge == k
        ends = [
            proportion((labelled & judged)[among], coded.groups[among], confidence)[1]
            for among in (judged, labelled, labelled | judged)
        ]
        f1 = [2 * end / (1 + end) for end in ends[2]]
        rows[value] = (*ends[0], *ends[1], *f1)
    names = [f"{name}_{end}" for name in ("precision", "recall", "f1") for end in ("low", "high")]
    table = pd.DataFrame(list(rows.values()), columns=names)
    return table.set_axis(pd.Index(list(rows), name="class"))
