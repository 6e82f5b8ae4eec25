"""The agreement statistics, in one place: pure functions over `workbench.pairing.Pairs`.

================ ========================================================== ===============
`agreement`      how well a judge agrees with the human labels              `concordance`
`compare`        two judges on the same items: is the second one better?     `comparison`
annotators       among themselves, the ceiling that a judge can be held to   `annotators`
`prevalence`     share of positives, corrected for the judge's errors        `correction`
the formulas     each with its range, degenerate case and source            `coefficients`
================ ========================================================== ===============

A statistic that is undefined is nan and not 0. Abstentions are neither right nor wrong and are
not among the pairs. Every interval is 95 % unless said otherwise; randomness comes from ``seed``.
"""

from workbench.annotators import AnnotatorAgreement, annotator_agreement
from workbench.comparison import Comparison, compare
from workbench.concordance import Agreement, agreement
from workbench.correction import Prevalence, prevalence

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
