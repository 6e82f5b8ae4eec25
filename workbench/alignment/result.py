"""What an alignment found: judges, held-out tests, costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

import pandas as pd

from workbench.formatting import html_table, html_text
from workbench.metrics.agreement import Agreement
from workbench.metrics.annotators import AnnotatorAgreement
from workbench.metrics.comparison import Comparison
from workbench.pairing.pairs import Pairs, Split
from workbench.store.traces import Example

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

Gate = Literal["better", "significant", "none"]

Status = Literal["improved", "unchanged", "rejected"]


@dataclass(frozen=True, repr=False)
class Alignment:
    """The outcome of an alignment.

    Attributes
    ----------
    judge
        The aligned judge; the original one unless ``status`` is ``"improved"``.
    status, reason
        ``"improved"``, ``"unchanged"`` (nothing better was found) or ``"rejected"`` (the proposed
        judge did not pass the gate on held-out pairs), and the reason in words.
    original, proposed
        The judge before alignment, and the one that the optimizer proposed.
    pairs, split, annotators
        All usable pairs, their parts train, dev and test, and the agreement of the annotators
        among themselves (None where there is only one).
    test_before, test_after, before, after, comparison
        Held-out pairs with the verdicts of the original and of the proposed judge, the agreement
        of both with people on these pairs, and their comparison.
    history, evidence
        One row per candidate (see `workbench.simba.Optimised`), and learned rule -> ids of the
        train traces whose disagreement it was made from; empty for other optimizers.
    looks
        The largest number of judges that one held-out item has scored so far, this judge
        included; 0 where nothing was tested.
    calls, reflection_calls, tokens, cost
        What was spent, the held-out test included; None where it is not known. Reflection calls
        of other optimizers include those to their embedding model. Cost is in US dollars.
    failures, reflection_failures
        Verdicts while learning, and reflections, that never came or could not be read (`SIMBA`
        only). They count neither for nor against a candidate.
    run_id
        The MLflow run; None where the store refused it.
    """

    judge: Judge
    status: Status
    reason: str
    original: Judge
    proposed: Judge
    optimizer: str
    pairs: Pairs
    split: Split
    test_before: Pairs
    test_after: Pairs
    before: Agreement
    after: Agreement
    comparison: Comparison
    preflight: pd.DataFrame
    history: pd.DataFrame
    evidence: Mapping[str, list[str]]
    annotators: AnnotatorAgreement | None
    examples: Mapping[str, Example]
    seed: int
    calls: int
    reflection_calls: int
    tokens: int | None
    cost: float | None
    seconds: float
    fingerprints: Mapping[str, str]
    dataset_digest: str
    looks: int = 0
    failures: int = 0
    reflection_failures: int = 0
    run_id: str | None = None
    notes: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        return f"<Alignment of {self.original.name!r}: {self.status}. {self.reason}>"

    def _repr_html_(self) -> str:
        notes = "".join(f"<div>{html_text(note)}</div>" for note in self.notes)
        head = f"<div><b>{html_text(self.status)}</b>: {html_text(self.reason)}</div>"
        return head + html_table(self.comparison.table) + notes


@dataclass(frozen=True)
class Learned:
    """What an optimizer proposes, and what it cost to find.

    Calls count requests, retries included; ``known`` answers more came from the cache.
    ``failures`` of the judge and ``reflection_failures`` are answers that never came or could
    not be read (`SIMBA` only).
    """

    judge: Judge
    calls: int = 0
    reflection_calls: int = 0
    embedding_calls: int = 0
    known: int = 0
    tokens: int | None = None
    cost: float | None = None
    stopped: str = ""
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    evidence: Mapping[str, list[str]] = field(default_factory=dict)
    failures: int = 0
    reflection_failures: int = 0
    notes: tuple[str, ...] = ()
