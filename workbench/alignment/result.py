"""The outcomes: of an alignment, of several optimizers beside each other, of a certification."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import pandas as pd
from mlflow.genai.judges import Judge

from workbench.alignment.runs import Status, log_outcome
from workbench.formatting import counted, html_lines, html_table, html_text
from workbench.metrics.agreement import Agreement
from workbench.metrics.annotators import AnnotatorAgreement
from workbench.metrics.comparison import Comparison, compare
from workbench.metrics.intervals import Result, with_ends
from workbench.models.budget import Usage
from workbench.pairing.pairs import Pairs, Split
from workbench.store.traces import Example


@dataclass(frozen=True, repr=False)
class Alignment:
    """The outcome of an alignment.

    Attributes
    ----------
    judge, original, proposed
        The aligned judge, which is the original one unless ``status`` is ``"improved"``; the
        judge before alignment; the one that the optimizer proposed.
    status, reason
        ``"improved"``, ``"unchanged"`` (nothing better was found) or ``"rejected"`` (the proposed
        judge did not pass the gate on held-out pairs), and the reason in words.
    pairs, split, annotators
        All usable pairs, their parts train, dev and test, and the agreement of the annotators
        among themselves (None where there is only one).
    test_before, test_after, before, after, comparison
        Held-out pairs with the verdicts of the original and of the proposed judge, the agreement
        of both with people on these, and their comparison.
    history, evidence
        One row per candidate (see `workbench.simba.candidate.Learned`), and learned rule -> ids
        of the train traces that it was made from; empty for other optimizers.
    looks
        The largest number of judges that one held-out item has scored so far, this one included; 0
        where nothing was tested.
    calls, reflection_calls, usage
        What was spent, the held-out test included: requests of judges, those of reflection and
        embeddings, and the tokens ``read``, ``written`` and, from the server's prompt cache,
        ``repeated``, and the ``cost`` in US dollars; None where not known.
    usd_per_1000
        US dollars that 1,000 judgements of the proposed judge cost, by the tokens of the held-out
        test, without embeddings; None where not known.
    failures, reflection_failures
        Verdicts while learning, and reflections, that never came or could not be read (`SIMBA`
        only). Lost calls count neither for nor against a candidate, the others against it.
    run_id
        The MLflow run.
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
    usage: Usage
    seconds: float
    fingerprints: Mapping[str, str]
    dataset_digest: str
    looks: int = 0
    failures: int = 0
    reflection_failures: int = 0
    run_id: str = ""
    usd_per_1000: float | None = None
    notes: tuple[str, ...] = ()

    @property
    def tokens(self) -> int | None:
        """Tokens read and written; None where the model does not count them."""
        return self.usage.tokens or None

    @property
    def cost(self) -> float | None:
        """US dollars; None where no price is known."""
        return self.usage.cost

    @property
    def held_out(self) -> Pairs:
        """Held-out pairs with the verdicts of ``judge``."""
        # `test_before` lacks the items on which the proposed judge gave no usable verdict.
        return self.test_after if self.status == "improved" else self.split.test

    @property
    def headline(self) -> str:
        """The status; where the gate was off or the gain may be luck, with that beside it."""
        return headline_of(self.status, self.comparison)

    def figures(self) -> dict[str, Any]:
        """Return what alignments are compared by, as plain values by name (see `record`).

        ``result`` is the headline, ``labels`` were learned from. ``before`` and ``after`` are
        accuracies on the ``n`` held-out pairs with the ends of their intervals (``_low``,
        ``_high``), as are the kappas, and on numeric scales the mean distances
        (``before_mean_distance``). ``baseline`` is the accuracy of always giving the most frequent
        label, and ``ceiling`` the agreement of people with each other, on contested items too.
        """
        found: dict[str, Any] = {
            "result": self.headline,
            "n": self.comparison.n,
            "labels": len(self.split.train) + len(self.split.dev),
            "baseline": self.before.baseline,
            "ceiling": self.annotators.ceiling if self.annotators else None,
            "usd_per_1000": self.usd_per_1000,
        }
        for when, measured in (("before", self.before), ("after", self.after)):
            for metric in _measures(measured):
                name = when if metric == "accuracy" else f"{when}_{metric}"
                interval = getattr(measured, f"{metric}_interval")
                found |= with_ends(name, getattr(measured, metric), interval)
        return found

    def __repr__(self) -> str:
        return f"<Alignment of {self.original.name!r}: {self.headline}. {self.reason}>"

    def _repr_html_(self) -> str:
        head = f"<div><b>{html_text(self.headline)}</b>: {html_text(self.reason)}</div>"
        return head + html_table(self.comparison.table) + html_lines(self.notes)


def headline_of(status: str, comparison: Comparison) -> str:
    """Return the status; where the gate was off or the gain may be luck, with that beside it."""
    if status != "improved" or comparison.certain:
        return status
    return "improved (uncertain)" if comparison.improved else "not better (gate off)"


def _measures(measured: Agreement) -> list[str]:
    """What is recorded of an agreement; hardly a number equals its label."""
    return ["accuracy", "kappa", *["mean_distance"] * (measured.scale.kind == "numeric")]


def log_result(alignment: Alignment) -> None:
    """Log status, figures, evidence and the changed items in the active run."""
    counts = ("calls", "reflection_calls", "failures", "reflection_failures", "seconds")
    metrics = {"looks_at_test": float(alignment.looks)}
    metrics |= {name: float(getattr(alignment, name)) for name in counts}
    for when, measured in (("before", alignment.before), ("after", alignment.after)):
        metrics |= {f"{when}_{name}": getattr(measured, name) for name in _measures(measured)}
    files: dict[str, Any] = {
        "comparison.json": alignment.comparison.to_dict(),
        "evidence.json": {rule: list(ids) for rule, ids in alignment.evidence.items()},
        "preflight.csv": alignment.preflight.to_csv(index=False),
        "history.csv": alignment.history.to_csv(index=False),
    }
    rationales = alignment.test_before.table[["trace_id", "human_rationale"]].assign(
        before_rationale=alignment.test_before.table["judge_rationale"],
        after_rationale=alignment.test_after.table["judge_rationale"],  # of the same items
    )
    for name in ("fixed", "broken", "still_wrong"):
        changed = getattr(alignment.comparison, name).merge(rationales, on="trace_id", how="left")
        files[f"items/{name}.csv"] = changed.to_csv(index=False)
    log_outcome(metrics, files, alignment.status)


# Columns of a comparison that hold whole numbers.
COUNTS: Final = (
    "n", "fixed", "broken", "judge calls", "reflection calls", "embedding calls", "known",
    "tokens", "later calls", "later tokens",
)  # fmt: skip


@dataclass(frozen=True, repr=False)
class OptimizerComparison:
    """Optimizers beside each other on the same held-out pairs.

    Attributes
    ----------
    table
        A row a judge: the original, the majority label, few-shot and each optimizer. ``status``
        is that of `Alignment`, or "improved (uncertain)" where the gain may be luck; ``accuracy``
        with its interval (``low``, ``high``), ``kappa`` and, on ordered scales, ``mean distance``
        with theirs; ``n`` held-out items rated. Against the original: ``fixed`` and ``broken``
        items, ``p`` (McNemar's exact test) and ``p adjusted`` for the number of judges tested
        (Holm). What learning took: ``judge calls``, ``reflection calls``, ``embedding
        calls`` (requests, retries included), ``known`` answers from the cache, ``seconds``,
        ``tokens``, ``cost`` in US dollars. What a later judgement takes: ``later calls``, and
        ``later tokens`` (mean of the held-out items, of the original those of one call, without
        embeddings). Finally ``reason``. nan where unknown or undefined.
    judges, comparisons, tested
        Name -> the judge; and, unless it is the original once more, its comparison with that and
        the held-out pairs with its usable verdicts.
    split
        What was learned from and tested on.
    notes
        What must be known to read the figures.
    run_id
        The MLflow run that holds table, split and instructions.
    """

    table: pd.DataFrame
    judges: Mapping[str, Judge]
    comparisons: Mapping[str, Comparison]
    pairs: Pairs
    split: Split
    seconds: float
    notes: tuple[str, ...]
    tested: Mapping[str, Pairs]
    run_id: str = ""

    @property
    def seed(self) -> int:
        """The seed of the split and of the optimizers."""
        return self.split.seed

    @property
    def conclusion(self) -> str:
        """What the held-out pairs can tell about who is best, in a sentence or two."""
        rated = self.table.loc[list(self.tested)].query("n > 0")
        if len(rated) < 2:
            return "There is nothing to compare the original judge with."
        numeric = self.pairs.scale.kind == "numeric"  # hardly a verdict equals its label
        measure = "mean distance" if numeric else "accuracy"
        ranked = rated.sort_values(measure, ascending=numeric, kind="stable")
        best, *others = ranked.index
        lead = f"{best} has the best {measure}, {ranked[measure].iloc[0]:.3f}"
        # Each against the best on the items of both, with all tests counted in (Bonferroni).
        close = [one for one in others if not self._is_better(best, one, 1 - 0.05 / len(others))]
        if not close:
            return f"{lead}, and is better than each of the others by a paired test."
        return (
            f"{lead}, but no paired test tells it from {', '.join(close)}: which of them is best "
            "cannot be told on these pairs."
        )

    def _is_better(self, one: str, other: str, confidence: float) -> bool:
        """Whether one is better than the other on items that both rated, and hardly by luck."""
        before, after = self.tested[other], self.tested[one]
        shared = {*before.trace_ids} & {*after.trace_ids}
        return bool(shared) and compare(before, after, confidence=confidence, resamples=2).certain

    def __repr__(self) -> str:
        shown = self._shown.to_string(na_rep="", float_format=_figure)
        return "\n".join([shown, *self._lines])

    def _repr_html_(self) -> str:
        return html_table(self._shown, float_format=_figure) + html_lines(self._lines)

    @property
    def _shown(self) -> pd.DataFrame:
        """The table without what few look for; missing counts are nan, which is shown as empty."""
        hidden = ["tokens", "cost", "later tokens", "reason"]
        ends = [name for name in self.table if str(name).endswith((" low", " high"))]
        table = self.table.drop(columns=[*hidden, *ends])
        return table.astype({name: float for name in table if name in COUNTS})

    @property
    def _lines(self) -> list[str]:
        failed = self.table.loc[self.table["status"] == "failed", "reason"].items()
        return [self.conclusion, *(f"{name}: {why}" for name, why in failed), *self.notes]


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 or value.is_integer() else f"{value:#.3g}"


@dataclass(frozen=True, repr=False)
class Certificate(Result):
    """Whether a judge's agreement with people is above thresholds, and for what that holds.

    Attributes
    ----------
    passed
        Whether the lower end of each figure's interval is above its threshold, and the judge gave
        a usable verdict on 95 % of the items.
    table
        Index figure; ``value``, ``low``, ``high``, ``n`` items, ``threshold``, ``passed``.
    n, confidence
        Items, none of which the judge is known to have learned from, and that of the intervals.
    looks
        The largest number of judges that one item has scored so far, this one included; None where
        nothing is known of who gave the verdicts.
    fingerprint, dataset_digest
        Of the judge, "" where not known, and of the items with their labels.
    notes
        Why it did not pass, what was left out, and what the certificate is not.
    """

    name: str
    passed: bool
    table: pd.DataFrame
    n: int
    looks: int | None
    fingerprint: str
    dataset_digest: str
    notes: tuple[str, ...]
    confidence: float = 0.95

    @property
    def headline(self) -> str:
        """The outcome in a line."""
        outcome = "passed" if self.passed else "not passed"
        used = "" if self.looks is None else f", used for {counted(self.looks, 'judge')} so far"
        return f"{self.name!r}: {outcome} on {counted(self.n, 'labelled item')}{used}"

    def __repr__(self) -> str:
        return f"<Certificate {self.headline}>"

    def __str__(self) -> str:
        return "\n".join([self.headline, self.table.round(3).to_string(na_rep=""), *self.notes])
