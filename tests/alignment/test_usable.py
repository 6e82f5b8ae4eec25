"""Which verdicts of the held-out test count."""

from __future__ import annotations

from workbench.alignment.align import usable
from workbench.judging.verdicts import Verdict
from workbench.scale import Scale


def test_a_category_that_reads_like_an_abstention_counts() -> None:
    """N/A is a rating on a scale that has it, and an abstention on any other."""
    three = Scale.of(["yes", "no", "N/A"])
    assert usable(Verdict("tr-1", "N/A"), three)
    assert usable(Verdict("tr-1", "yes"), three)
    assert not usable(Verdict("tr-1", "N/A"), Scale.of(["yes", "no"]))
    assert not usable(Verdict("tr-1", "N/A"), None)
    assert not usable(Verdict("tr-1", error="no answer"), three)
