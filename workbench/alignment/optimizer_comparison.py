"""Optimizers beside each other: the figures, as data and as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd

from workbench.formatting import html_table, html_text
from workbench.metrics.agreement import Agreement
from workbench.metrics.comparison import Comparison
from workbench.pairing.pairs import Pairs, Split

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


Status = Literal["reference", "improved", "unchanged", "rejected", "failed"]


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
    status: Status
    reason: str = ""
    judge: Judge | None = None
    agreement: Agreement | None = None
    comparison: Comparison | None = None
    p_adjusted: float = float("nan")
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
        for entry in self.entries:
            if entry.name == name:
                return entry
        raise KeyError(f"{name!r} is none of {', '.join(repr(e.name) for e in self.entries)}")

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
        original = self.entries[0]
        rows = [_row(entry, original) for entry in self.entries]
        table = pd.DataFrame(rows, index=pd.Index([e.name for e in self.entries], name="judge"))
        counts = [name for name in _COUNTS if name in table]
        table[counts] = table[counts].astype("Int64")
        if not self.split.test.scale.ordered:
            table = table.drop(columns="mean distance")
        return table

    @property
    def conclusion(self) -> str:
        """What the held-out pairs can tell about who is best, in a sentence or two."""
        return _conclusion(self.entries)

    def plot(self, ax: Any = None) -> Any:
        """Draw `workbench.plot_comparison` of this, and return the axes."""
        # By its public name: reporting is above this package.
        return import_module("workbench").plot_comparison(self, ax=ax)

    def __repr__(self) -> str:
        shown = self.table[[name for name in _SHOWN if name in self.table]]
        text = shown.to_string(na_rep="", formatters=_formats(shown))
        return "\n".join([text, *self._lines])

    def _repr_html_(self) -> str:
        shown = self.table[[name for name in _SHOWN if name in self.table]]
        table = html_table(shown, formatters=_formats(shown))
        return table + "".join(f"<div>{html_text(line)}</div>" for line in self._lines)

    @property
    def _lines(self) -> list[str]:
        failed = [f"{e.name}: {e.reason}" for e in self.entries if e.status == "failed"]
        left_out = [f"{name} did not take part: {why}" for name, why in self.left_out.items()]
        return [self.conclusion, *failed, *left_out, *self.notes]


# -- the table --------------------------------------------------------------------------------

_COUNTS = (
    "n", "fixed", "broken", "judge calls", "reflection calls", "embedding calls", "known",
    "tokens", "later calls", "words more", "tokens more",
)  # fmt: skip


_SHOWN = (
    "status", "accuracy", "low", "high", "kappa", "mean distance", "n", "fixed", "broken", "p",
    "p adjusted", "judge calls", "reflection calls", "embedding calls", "known", "seconds",
    "later calls", "words more",
)  # fmt: skip


def _row(entry: Entry, original: Entry) -> dict[str, Any]:
    found, compared = entry.agreement, entry.comparison
    nan = float("nan")
    interval = found.accuracy_interval if found else (nan, nan)
    return {
        "status": entry.status,
        "accuracy": found.accuracy if found else nan,
        "low": interval[0],
        "high": interval[1],
        "kappa": found.kappa if found else nan,
        "mean distance": found.mean_distance if found else nan,
        "n": found.n if found else None,
        "fixed": len(compared.fixed) if compared else None,
        "broken": len(compared.broken) if compared else None,
        "p": compared.p_value if compared else nan,
        "p adjusted": entry.p_adjusted,
        "judge calls": entry.calls,
        "reflection calls": entry.reflection_calls,
        "embedding calls": entry.embedding_calls,
        "known": entry.known,
        "seconds": nan if entry.seconds is None else entry.seconds,
        "tokens": entry.tokens,
        "cost": nan if entry.cost is None else entry.cost,
        "later calls": entry.later.calls,
        "words more": _more(entry.later.words, original.later.words),
        "tokens more": _more(entry.later.tokens, original.later.tokens),
        "reason": entry.reason,
    }


def _more(amount: int | None, than: int | None) -> int | None:
    return None if amount is None or than is None else amount - than


def _formats(table: pd.DataFrame) -> dict[str, Any]:
    def by(form: str) -> Any:
        return lambda value: "" if pd.isna(value) else form.format(value)

    forms = {"p": "{:.3g}", "p adjusted": "{:.3g}", "seconds": "{:.1f}", "kappa": "{:.2f}"}
    three = dict.fromkeys(("accuracy", "low", "high", "mean distance"), "{:.3f}")
    return {
        name: by({**three, **forms}.get(name, "{}")) for name in table.columns if name != "status"
    }


def in_words(entry: Entry) -> str:
    """Return the entry in a few words."""
    if entry.agreement is None:
        return f"failed. {entry.reason}"
    return f"{entry.status}, accuracy {entry.agreement.accuracy:.3f}, {entry.seconds:.1f} s"


def with_adjusted_p(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Adjust the p values of the judges that were tested after Holm (1979)."""
    from statsmodels.stats.multitest import multipletests

    p_values = {e.name: e.comparison.p_value for e in entries if e.comparison and e.judge}
    if not p_values:
        return tuple(entries)
    found = multipletests(list(p_values.values()), method="holm")[1]
    adjusted = dict(zip(p_values, map(float, found), strict=True))
    return tuple(
        replace(e, p_adjusted=adjusted[e.name]) if e.name in adjusted else e for e in entries
    )


def _conclusion(entries: Sequence[Entry]) -> str:
    """Who leads, and whether that can be told from luck."""
    rated = [e for e in entries if e.agreement is not None and e.agreement.n and e.judge]
    if len(rated) < 2:
        return "There is nothing to compare the original judge with."

    def accuracy(entry: Entry) -> float:
        assert entry.agreement is not None
        return entry.agreement.accuracy

    first, *others = sorted(rated, key=accuracy, reverse=True)
    assert first.agreement is not None
    low = first.agreement.accuracy_interval.low
    close = [e.name for e in others if e.agreement and e.agreement.accuracy_interval.high >= low]
    lead = f"{first.name} has the highest accuracy, {accuracy(first):.3f}"
    if close:
        return (
            f"{lead}, but its interval overlaps that of {', '.join(close)}: which of them is "
            "best cannot be told on these pairs."
        )
    return f"{lead}, and its interval lies above all others."


def notes_on(entries: Sequence[Entry], held_out: int) -> tuple[str, ...]:
    """Return what must be known to read the figures."""
    tested = [e for e in entries if e.comparison is not None and e.judge is not None]
    notes = [note for entry in entries for note in entry.notes]
    if len(tested) > 1:
        notes.append(
            f"{len(tested)} judges were compared with the original on the same {held_out} "
            "held-out pairs: the more judges, the likelier that one looks better by luck, and "
            "the winner's figure is too high on average. 'p adjusted' takes this into account; "
            "labels that none has seen settle it."
        )
    if any(entry.known for entry in entries):
        notes.append(
            "Calls are those paid now. Answers in the cache, of earlier runs or of another "
            "optimizer that asked the same, were not paid again; 'known' counts them."
        )
    return tuple(notes)
