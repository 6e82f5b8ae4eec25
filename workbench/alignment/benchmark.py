"""Runs several optimizers on the same split and scores each once on the same held-out pairs.

Beside them stand the original judge, always giving the majority label of train, and plain
few-shot: labelled items in the instructions and nothing else.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

import pandas as pd
from mlflow.genai.judges.base import AlignmentOptimizer
from mlflow.genai.judges.instructions_judge import InstructionsJudge

from workbench.alignment.align import check_one_budget, learn
from workbench.alignment.external import requests_of_a_verdict
from workbench.alignment.heldout import decide, read_data, score_held_out
from workbench.alignment.optimizers import few_shot, majority, named_optimizers
from workbench.alignment.preflight import forecast_of, probed, to_keep
from workbench.alignment.result import Gate
from workbench.alignment.runs import (
    AlignmentData,
    AlignmentRun,
    count_looks,
    fault_notes,
)
from workbench.credentials import redact
from workbench.errors import ReplayError, one_of
from workbench.formatting import html_table, html_text, plain, say
from workbench.judging.judge import fingerprint, judge_credentials
from workbench.judging.verdicts import Verdict
from workbench.metrics.agreement import Agreement
from workbench.metrics.comparison import Comparison, compare
from workbench.models.budget import Budget
from workbench.pairing.pairs import Pairs, Split
from workbench.pairing.splits import Groups
from workbench.simba.forecast import announcement
from workbench.simba.optimizer import SIMBA
from workbench.simba.search import Settings
from workbench.store.traces import item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


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


# -- the comparison ---------------------------------------------------------------------------


def compare_optimizers(
    judge: Judge,
    pairs_or_traces: Any = None,
    optimizers: Mapping[str, Any] | Sequence[Any] | str | None = None,
    *,
    seed: int = 0,
    test_size: float = 0.4,
    groups: Groups = None,
    gate: Gate = "better",
    budget: Budget | int | None = None,
    embedding_model: str | None = None,
    max_failure_share: float | None = None,
    progress: bool = True,
) -> OptimizerComparison:
    """Run several optimizers on the same split and score each once on the same held-out pairs.

    Answers are cached, so the same call resumes after an interrupt. An optimizer that fails is a
    row with its reason. The comparison is logged as an MLflow run, with a child run for each
    judge that was tested.

    Parameters
    ----------
    judge
        A judge made from instructions, which has judged the labelled traces (`assess`).
    pairs_or_traces
        `Pairs`, or what `pair` takes as traces.
    optimizers
        MLflow alignment optimizers or names: ``"workbench SIMBA"``, ``"MLflow SIMBA"``,
        ``"MLflow GEPA"``, ``"MLflow MemAlign"``; also one text with commas, or a mapping from
        names of your own. None: those of the four whose packages are installed, with their
        defaults and the judge's own model for reflection.
    seed
        Of the split, the few-shot examples and the optimizers that are given by name.
    test_size, groups
        As in `align`.
    gate
        What makes a judge ``improved``, as in `align`.
    budget
        Model calls at most, or a `workbench.Budget`, of *each* optimizer: for learning and for
        the held-out test of its judge, whose calls are reserved. An optimizer that needs more is
        a row with its reason; `SIMBA` ends with the best instructions so far. The test of
        few-shot is not charged.
    embedding_model
        Of MemAlign, which takes part by default only where this is given.
    max_failure_share
        Share of lost answers above which an optimizer fails, as in `align`.
    progress
        Print what is being run.

    Raises
    ------
    TooFewPairsError, NoLabelsError, NoVerdictsError, PairingError, ArgumentError
        As `align`.
    ModelError
        When the original judge does not answer.
    """
    one_of("gate", gate, ["better", "significant", "none"])
    started = time.monotonic()
    by_name, left_out = named_optimizers(
        judge, optimizers, seed=seed, embedding_model=embedding_model
    )
    for optimizer in by_name.values():
        check_one_budget(optimizer, budget)
    run = AlignmentRun()
    data = read_data(run, judge, pairs_or_traces, groups, test_size, seed)
    with run:
        optimizers = ", ".join(by_name)
        run.begin(f"compare optimizers of {judge.name}", data, optimizers=optimizers, seed=seed)
        bench = _Benchmark(judge, data, gate, seed, Budget.of(budget), max_failure_share, run)
        if progress:
            say(
                f"{data.split!r}: {', '.join(by_name)}, beside the original, the majority, few-shot"
            )
        # As many examples as SIMBA's, so that more of them are not what decides.
        shown = [one.settings.max_examples for one in by_name.values() if isinstance(one, SIMBA)]
        count = max(shown, default=0) or Settings.max_examples
        entries = [bench.original(), bench.majority(), bench.few_shot(count)]
        for name, optimizer in by_name.items():
            if progress:
                say(f"{name}: {bench.announcement(optimizer)} ...")
            entries.append(bench.optimizer(name, optimizer))
            if progress:
                say(f"{name}: {_in_words(entries[-1])}")
        found = OptimizerComparison(
            _with_adjusted_p(entries), left_out, data.pairs, data.split, seed,
            time.monotonic() - started, notes=(*data.pairs.notes, *bench.notes(entries)),
        )  # fmt: skip
        return _log(found, run, bench.runs)


@dataclass
class _Benchmark:
    """The split that all are run on, and the original judge that all are compared with."""

    judge: Judge
    data: AlignmentData
    gate: Gate
    seed: int
    budget: Budget
    max_failure_share: float | None
    run: AlignmentRun
    probe: Verdict = field(default_factory=lambda: Verdict(""))
    runs: dict[str, AlignmentRun] = field(default_factory=dict)

    @property
    def first(self) -> str:
        """The held-out trace on which later judgements are measured, the same in every store."""
        by_id = self.data.by_id
        return min(self.data.split.test.trace_ids, key=lambda i: item_digest(by_id[i]))

    def original(self) -> Entry:
        """Return the judge as it is; raise where it does not answer."""
        test = self.data.split.test
        self.probe = probed(self.data, test)
        return Entry(
            "original",
            "reference",
            judge=self.judge,
            agreement=compare(test, test, seed=self.seed).before,
            later=_effort(self.judge, self.probe),
        )

    def majority(self) -> Entry:
        """Return what always giving the majority label of train achieves."""
        test = self.data.split.test
        value, rated = majority(self.data.split.train, test)
        comparison = compare(test, rated, seed=self.seed)
        return Entry(
            "majority label",
            "reference",
            f"always {value!r}",
            agreement=comparison.after,
            comparison=comparison,
            later=Effort(0),
        )

    def few_shot(self, count: int) -> Entry:
        """Return the judge with ``count`` worked examples, tested."""
        train, by_id = self.data.split.train, self.data.by_id
        shown = few_shot(self.judge, train, by_id, seed=self.seed, count=count)
        return self._tested(Entry("few-shot", "reference", judge=shown))

    def announcement(self, optimizer: AlignmentOptimizer) -> str:
        """Return what the optimizer takes at most, where that is known."""
        if not isinstance(optimizer, SIMBA):
            limit = "the budget ends it" if self.budget.is_limited else "no limit"
            return f"how many calls it makes is not known beforehand; {limit}"
        most = forecast_of(self.data, optimizer, self.probe)
        return announcement(most, self.budget)

    def optimizer(self, name: str, optimizer: AlignmentOptimizer) -> Entry:
        """Let the optimizer learn, and test what it proposes; a failure is its reason."""
        started = time.monotonic()
        limited = self.budget.is_limited
        own = optimizer.budget if isinstance(optimizer, SIMBA) else None
        budget = self.budget.afresh() if limited else Budget.of(own)
        reserve: dict[str, Any] = {}
        if limited:
            each = requests_of_a_verdict(optimizer)
            reserve = to_keep(self.data, self.probe, requests=each)
        try:
            with budget.keeping(**reserve) if limited else nullcontext():
                learned = learn(self.data, optimizer, budget, self.max_failure_share)
        except ReplayError:
            raise
        except Exception as error:
            entry = Entry(name, "failed", seconds=time.monotonic() - started)
            return self._failed(entry, error)
        taken = ("calls", "reflection_calls", "embedding_calls", "known", "tokens", "cost")
        entry = Entry(
            name,
            "unchanged",
            judge=learned.judge,
            seconds=time.monotonic() - started,
            notes=learned.notes,
            **{figure: getattr(learned, figure) for figure in taken},
        )
        return self._tested(entry, learned.stopped, budget if limited else None)

    def notes(self, entries: Sequence[Entry]) -> list[str]:
        """Return what must be known to read the figures."""
        tested = [fingerprint(e.judge) for e in entries if e.run_id and e.judge is not None]
        _, earlier = count_looks(self.run, self.data, *tested)
        notes = [note for entry in entries for note in entry.notes]
        compared = sum(e.comparison is not None and e.judge is not None for e in entries)
        if compared > 1:
            notes.append(
                f"{compared} judges were compared with the original on the same "
                f"{len(self.data.split.test)} held-out pairs: the more judges, the likelier that "
                "one looks better by luck, and the winner's figure is too high on average. 'p "
                "adjusted' takes this into account; labels that none has seen settle it."
            )
        if any(entry.known for entry in entries):
            notes.append(
                "Calls are those paid now. Answers in the cache, of earlier runs or of another "
                "optimizer with the same requests, were not paid again; 'known' counts them."
            )
        return [*notes, earlier] if earlier else notes

    def _tested(self, entry: Entry, stopped: str = "", budget: Budget | None = None) -> Entry:
        """Test the judge of an entry within a run of its own, and decide on it."""
        judge = entry.judge
        assert judge is not None
        same = fingerprint(judge) == fingerprint(self.judge)
        try:
            with AlignmentRun(self.run) as run:
                run.begin(entry.name, self.data, judge, optimizer=entry.name, seed=self.seed)
                tested = score_held_out(self.data, judge, budget)
        except ReplayError:
            raise
        except Exception as error:
            return self._failed(entry, error)
        self.runs[entry.name] = run
        first = next((v for v in tested.verdicts if v.trace_id == self.first), self.probe)
        status: BenchmarkStatus = "reference"
        reason = ""
        if entry.status != "reference":
            status, reason = decide(self.gate, tested, self.data.split.train, stopped)
        return replace(
            entry,
            status=status,
            reason=reason,
            run_id=None if same else run.run_id,
            agreement=tested.comparison.after,
            comparison=tested.comparison,
            later=_effort(judge, first, tested.other_calls / max(1, len(tested.verdicts))),
            notes=(*entry.notes, *(f"{entry.name}: {note}" for note in tested.notes)),
        )

    def _failed(self, entry: Entry, error: Exception) -> Entry:
        text = " ".join(redact(str(error), judge_credentials(self.judge)).split())
        reason = (text or type(error).__name__)[:600]
        return replace(entry, status="failed", reason=reason, judge=None)


def _effort(judge: Judge, verdict: Verdict, others: float = 0.0) -> Effort:
    """Return what one judgement takes, as it was measured on one item.

    Words are those of the instructions; the item's own are the same for all judges.
    """
    # Judges that are more than their instructions add words that differ from item to item.
    known = isinstance(judge, InstructionsJudge)
    words = len(str(judge.instructions).split()) if known else None
    return Effort(1 + round(others), words, verdict.input_tokens)


def _in_words(entry: Entry) -> str:
    if entry.agreement is None:
        return f"failed. {entry.reason}"
    return f"{entry.status}, accuracy {entry.agreement.accuracy:.3f}, {entry.seconds:.1f} s"


def _with_adjusted_p(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Adjust the p values of the judges that were tested after Holm (1979)."""
    from statsmodels.stats.multitest import multipletests

    p_values = {e.name: e.comparison.p_value for e in entries if e.comparison and e.judge}
    if not p_values:
        return tuple(entries)
    found = multipletests(list(p_values.values()), method="holm")[1]
    adjusted = dict(zip(p_values, map(float, found), strict=True))
    return tuple(replace(e, p_adjusted=adjusted.get(e.name, UNDEFINED)) for e in entries)


def _log(
    found: OptimizerComparison, run: AlignmentRun, tested: Mapping[str, AlignmentRun]
) -> OptimizerComparison:
    """Log the outcome; a store that refuses it is warned of, and the result is kept."""
    table = found.table
    for name, child in tested.items():
        row: dict[Any, Any] = table.loc[name].drop(["status", "reason"]).dropna().to_dict()
        figures = {re.sub(r"\W+", "_", str(key)): float(value) for key, value in row.items()}
        child.finish({"workbench.status": found[name].status}, figures, {})
    as_data = plain({"table": table.reset_index().astype(object), "notes": list(found.notes)})
    run.finish(
        {"mlflow.note.content": found.conclusion},
        {"seconds": found.seconds},
        {"comparison.csv": table.to_csv(), "comparison.json": as_data},
    )
    faults = fault_notes("The comparison", run, *tested.values())
    run_id = None if run.fault else run.run_id
    return replace(found, run_id=run_id, notes=(*found.notes, *faults))
