"""What a comparison of optimizers found: a table, the judges, and what can be concluded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import pandas as pd

from workbench.formatting import html_table, html_text
from workbench.metrics.comparison import Comparison
from workbench.pairing.pairs import Pairs, Split

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

COUNTS: Final = {
    "n", "fixed", "broken", "judge calls", "reflection calls", "embedding calls", "known",
    "tokens", "later calls", "later tokens", "words more",
}  # fmt: skip


@dataclass(frozen=True, repr=False)
class OptimizerComparison:
    """Optimizers beside each other on the same held-out pairs.

    Attributes
    ----------
    table
        A row a judge: the original, the majority label, few-shot and each optimizer, in this
        order. The columns are ``status``; ``accuracy`` with ``low`` and ``high``, its Wilson
        interval; ``kappa`` with ``kappa low`` and ``kappa high``; ``mean distance`` on ordered
        scales; ``n`` held-out items rated. Against the original: ``fixed`` and ``broken`` items,
        ``p`` (McNemar's exact test) and ``p adjusted`` for the number of judges tested (Holm). What
        learning took: ``judge calls``,
        ``reflection calls``, ``embedding calls`` (requests, retries included), ``known`` answers
        from the cache, ``seconds``, ``tokens``, ``cost`` in US dollars. What a later judgement
        takes: ``later calls``, ``later tokens`` (mean of the held-out items), and ``words more`` of
        instructions than the original's. Finally ``reason``. nan where unknown or undefined.
    judges, comparisons
        Name -> the judge that was put to the test, and its comparison with the original.
    split
        What was learned from and tested on.
    notes
        What must be known to read the figures.
    run_id
        The MLflow run that holds table, split and instructions; None where logging failed.
    """

    table: pd.DataFrame
    judges: Mapping[str, Judge]
    comparisons: Mapping[str, Comparison]
    pairs: Pairs
    split: Split
    seconds: float
    notes: tuple[str, ...]
    run_id: str | None = None

    @property
    def conclusion(self) -> str:
        """What the held-out pairs can tell about who is best, in a sentence or two."""
        rated = self.table.loc[list(self.judges)].query("n > 0")
        if len(rated) < 2:
            return "There is nothing to compare the original judge with."
        ranked = rated.sort_values("accuracy", ascending=False, kind="stable")
        best, others = ranked.iloc[0], ranked.iloc[1:]
        lead = f"{ranked.index[0]} has the highest accuracy, {best['accuracy']:.3f}"
        close = others.index[others["high"] >= best["low"]]
        if not len(close):
            return f"{lead}, and its interval lies above all others."
        return (
            f"{lead}, but its interval overlaps that of {', '.join(close)}: which of them is best "
            "cannot be told on these pairs."
        )

    def plot(self, ax: Any = None) -> Any:
        """Draw `workbench.plot_comparison` of this, and return the axes."""
        # By its public name: reporting is above this package.
        return import_module("workbench").plot_comparison(self, ax=ax)

    def __repr__(self) -> str:
        shown = self._shown.to_string(na_rep="", float_format=_figure)
        return "\n".join([shown, *self._lines])

    def _repr_html_(self) -> str:
        lines = "".join(f"<div>{html_text(line)}</div>" for line in self._lines)
        return html_table(self._shown, float_format=_figure) + lines

    @property
    def _shown(self) -> pd.DataFrame:
        """The table without what few look for; missing counts are nan, which is shown as empty."""
        hidden = ["kappa low", "kappa high", "tokens", "cost", "later tokens", "reason"]
        table = self.table.drop(columns=hidden)
        return table.astype({name: float for name in table if name in COUNTS})

    @property
    def _lines(self) -> list[str]:
        reasons = self.table.loc[self.table["status"] == "failed", "reason"].items()
        failed = [f"{name}: {why}" for name, why in reasons]
        return [self.conclusion, *failed, *self.notes]


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value.is_integer() else f"{value:#.3g}"
