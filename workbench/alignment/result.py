"""What an alignment and a comparison of optimizers found: judges, held-out tests, costs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from workbench.alignment.gate import Status
from workbench.formatting import html_table, html_text
from workbench.metrics.agreement import Agreement
from workbench.metrics.annotators import AnnotatorAgreement
from workbench.metrics.comparison import Comparison
from workbench.pairing.pairs import Pairs, Split
from workbench.store.traces import Example

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


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
    pairs, split
        All usable pairs, and their parts: train, dev and test.
    annotators
        Agreement of the annotators among themselves; None where there is only one.
    test_before, test_after
        Held-out pairs with the verdicts of the original and of the proposed judge.
    before, after, comparison
        Agreement of both judges with people on these pairs, and their comparison.
    history
        One row per candidate (see `workbench.simba.Optimised`); empty for other optimizers.
    evidence
        Learned rule -> ids of the train traces whose disagreement it was made from.
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


# -- optimizers beside each other ---------------------------------------------------------------

BenchmarkStatus = Literal["reference", "improved", "unchanged", "rejected", "failed"]

UNDEFINED = float("nan")


@dataclass(frozen=True)
class Effort:
    """What one more judgement takes: model calls, words and tokens of the prompt.

    None where it is not known.
    """

    calls: int | None = None
    words: int | None = None
    tokens: int | None = None


@dataclass(frozen=True)
class Entry:
    """One judge of the comparison.

    ``judge`` and ``agreement`` are None where it failed, ``judge`` also for the majority label;
    ``comparison`` with the original on held-out pairs is None for the original itself. Calls are
    requests while learning, retries included; ``known`` answers more came from the cache and
    cost nothing. ``later`` is what one more judgement takes. ``run_id`` is the MLflow run in
    which the use of the held-out pairs is counted.
    """

    name: str
    status: BenchmarkStatus
    reason: str = ""
    judge: Judge | None = None
    agreement: Agreement | None = None
    comparison: Comparison | None = None
    p_adjusted: float = UNDEFINED
    calls: int | None = None
    reflection_calls: int | None = None
    embedding_calls: int | None = None
    known: int | None = None
    tokens: int | None = None
    cost: float | None = None
    seconds: float | None = None
    later: Effort = field(default_factory=Effort)
    notes: tuple[str, ...] = ()
    run_id: str | None = None


def _row(entry: Entry, original: Effort) -> dict[str, Any]:
    """Return the row of `OptimizerComparison.table`."""
    found, compared, later = entry.agreement, entry.comparison, entry.later
    low, high = found.accuracy_interval if found else (UNDEFINED, UNDEFINED)
    return {
        "status": entry.status,
        "accuracy": found.accuracy if found else UNDEFINED,
        "low": low,
        "high": high,
        "kappa": found.kappa if found else UNDEFINED,
        "mean distance": found.mean_distance if found else UNDEFINED,
        "n": found.n if found else None,
        "fixed": len(compared.fixed) if compared else None,
        "broken": len(compared.broken) if compared else None,
        "p": compared.p_value if compared else UNDEFINED,
        "p adjusted": entry.p_adjusted,
        "judge calls": entry.calls,
        "reflection calls": entry.reflection_calls,
        "embedding calls": entry.embedding_calls,
        "known": entry.known,
        "seconds": UNDEFINED if entry.seconds is None else entry.seconds,
        "tokens": entry.tokens,
        "cost": UNDEFINED if entry.cost is None else entry.cost,
        "later calls": later.calls,
        "words more": _more(later.words, original.words),
        "tokens more": _more(later.tokens, original.tokens),
        "reason": entry.reason,
    }


def _more(amount: int | None, than: int | None) -> int | None:
    return None if amount is None or than is None else amount - than


_COUNTS = [
    "n", "fixed", "broken", "judge calls", "reflection calls", "embedding calls", "known",
    "tokens", "later calls", "words more", "tokens more",
]  # fmt: skip

_FORMATS = {
    **dict.fromkeys(("accuracy", "low", "high", "mean distance"), "{:.3f}"),
    **dict.fromkeys(("p", "p adjusted"), "{:.3g}"),
    "kappa": "{:.2f}",
    "seconds": "{:.1f}",
}


@dataclass(frozen=True, repr=False)
class OptimizerComparison:
    """Optimizers beside each other on the same held-out pairs.

    Attributes
    ----------
    entries
        `Entry` of the original judge, the majority label, few-shot and each optimizer, in
        this order; failed ones as well.
    left_out
        Optimizer -> why it did not take part.
    pairs, split
        What was learned from, and its parts.
    notes
        What must be known to read the figures.
    run_id
        The MLflow run that holds table, split and instructions; None where logging failed.
    """

    entries: tuple[Entry, ...]
    left_out: Mapping[str, str]
    pairs: Pairs
    split: Split
    seed: int
    seconds: float
    notes: tuple[str, ...]
    run_id: str | None = None

    def __getitem__(self, name: str) -> Entry:
        by_name = {entry.name: entry for entry in self.entries}
        if name not in by_name:
            raise KeyError(f"{name!r} is none of {', '.join(map(repr, by_name))}")
        return by_name[name]

    @property
    def judges(self) -> dict[str, Judge]:
        """Name -> the judge that was put to the test, of those that have one."""
        return {entry.name: entry.judge for entry in self.entries if entry.judge is not None}

    @property
    def table(self) -> pd.DataFrame:
        """A row an entry, index its name.

        The columns are ``status``; ``accuracy`` with ``low`` and ``high``, its Wilson interval;
        ``kappa``; ``mean distance`` on ordered scales; ``n`` held-out items rated. Against the
        original: ``fixed`` and ``broken`` items, ``p`` (McNemar's exact test) and ``p adjusted``
        for the number of judges tested (Holm). What learning took: ``judge calls``, ``reflection
        calls``, ``embedding calls``, ``known`` answers, ``seconds``, ``tokens``, ``cost`` in US
        dollars. What a later judgement takes: ``later calls``, and ``words more`` and ``tokens
        more`` of prompt than the original's. Finally ``reason``. nan where unknown or undefined.
        """
        rows = [_row(entry, self.entries[0].later) for entry in self.entries]
        table = pd.DataFrame(rows, index=pd.Index([e.name for e in self.entries], name="judge"))
        table[_COUNTS] = table[_COUNTS].astype("Int64")
        return table if self.split.test.scale.ordered else table.drop(columns="mean distance")

    @property
    def conclusion(self) -> str:
        """What the held-out pairs can tell about who is best, in a sentence or two."""
        rated = [(e.name, e.agreement) for e in self.entries if e.judge and e.agreement]
        ranked = sorted(
            ((name, found) for name, found in rated if found.n), key=lambda one: -one[1].accuracy
        )
        if len(ranked) < 2:
            return "There is nothing to compare the original judge with."
        (best, first), *others = ranked
        low = first.accuracy_interval.low
        close = [name for name, found in others if found.accuracy_interval.high >= low]
        lead = f"{best} has the highest accuracy, {first.accuracy:.3f}"
        if close:
            return (
                f"{lead}, but its interval overlaps that of {', '.join(close)}: which of them is "
                "best cannot be told on these pairs."
            )
        return f"{lead}, and its interval lies above all others."

    def plot(self, ax: Any = None) -> Any:
        """Draw `workbench.plot_comparison` of this, and return the axes."""
        # By its public name: reporting is above this package.
        return import_module("workbench").plot_comparison(self, ax=ax)

    def __repr__(self) -> str:
        return "\n".join([self._shown.to_string(), *self._lines])

    def _repr_html_(self) -> str:
        lines = "".join(f"<div>{html_text(line)}</div>" for line in self._lines)
        return html_table(self._shown) + lines

    @property
    def _shown(self) -> pd.DataFrame:
        """The table as text, without what few look for."""
        table = self.table.drop(columns=["tokens", "cost", "tokens more", "reason"])
        for name in table:
            shown = _FORMATS.get(str(name), "{}").format
            table[name] = ["" if pd.isna(v) else shown(v) for v in table[name]]
        return table

    @property
    def _lines(self) -> list[str]:
        failed = [f"{e.name}: {e.reason}" for e in self.entries if e.status == "failed"]
        left_out = [f"{name} did not take part: {why}" for name, why in self.left_out.items()]
        return [self.conclusion, *failed, *left_out, *self.notes]
