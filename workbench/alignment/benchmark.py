"""Runs several optimizers on the same split and scores each once on the same held-out pairs.

Beside them stand the original judge, always giving the majority label of train, and plain
few-shot: labelled items in the instructions and nothing else.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final, Literal

import pandas as pd
from mlflow.genai.judges.base import AlignmentOptimizer
from mlflow.genai.judges.instructions_judge import InstructionsJudge

from workbench.alignment.align import check_one_budget, learn
from workbench.alignment.external import requests_of_a_verdict
from workbench.alignment.heldout import count_looks, decide, read_data, score_held_out
from workbench.alignment.preflight import probed, to_keep
from workbench.alignment.result import AlignmentData, AlignmentRun, Gate, Learned, fault_notes
from workbench.compat import options
from workbench.credentials import redact
from workbench.errors import ArgumentError, ReplayError, one_of
from workbench.formatting import html_table, html_text, plain, say
from workbench.judging.judge import fingerprint, judge_credentials, with_instructions
from workbench.judging.verdicts import Verdict
from workbench.metrics.agreement import Agreement
from workbench.metrics.comparison import Comparison, compare
from workbench.models.budget import Budget
from workbench.pairing.pairs import Pairs, Split
from workbench.pairing.splits import Groups
from workbench.simba.candidate import Candidate, WorkedExample
from workbench.simba.items import judge_fields
from workbench.simba.optimizer import SIMBA
from workbench.simba.search import Settings
from workbench.store.traces import Example, item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

UNDEFINED: Final = float("nan")

_SPENT: Final = {
    "judge calls": "calls",
    "reflection calls": "reflection_calls",
    "embedding calls": "embedding_calls",
    "known": "known",
    "tokens": "tokens",
    "cost": "cost",
}
"""Columns of what learning took, and the fields of `Entry` and `Learned`."""


@dataclass(frozen=True)
class Entry:
    """One judge of the comparison.

    ``judge`` and ``agreement`` are None where it failed, ``judge`` also for the majority label;
    ``comparison`` with the original on held-out pairs is None for the original itself. Calls are
    requests while learning, retries included; ``known`` answers more came from the cache and cost
    nothing. ``later_calls`` are what one more judgement takes. ``run_id`` is the MLflow run in
    which the use of the held-out pairs is counted. None where something is not known.
    """

    name: str
    status: Literal["reference", "improved", "unchanged", "rejected", "failed"]
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
    later_calls: int | None = None
    notes: tuple[str, ...] = ()
    run_id: str | None = None

    @property
    def words(self) -> int | None:
        """Words of the instructions; None where the judge adds others that differ by item."""
        known = isinstance(self.judge, InstructionsJudge)
        return len(str(self.judge.instructions).split()) if known and self.judge else None

    @property
    def figures(self) -> dict[str, Any]:
        """The entry's row of `OptimizerComparison.table`, but for what compares it with others."""
        found, compared = self.agreement, self.comparison
        low, high = found.accuracy_interval if found else (None, None)
        return {
            "status": self.status,
            "accuracy": found and found.accuracy,
            "low": low,
            "high": high,
            "kappa": found and found.kappa,
            "mean distance": found and found.mean_distance,
            "n": found and found.n,
            "fixed": compared and len(compared.fixed),
            "broken": compared and len(compared.broken),
            "p": compared and compared.p_value,
            "p adjusted": self.p_adjusted,
            **{column: getattr(self, field) for column, field in _SPENT.items()},
            "seconds": self.seconds,
            "later calls": self.later_calls,
            "words more": self.words,
            "reason": self.reason,
        }


_COUNTS: Final = [
    "n", "fixed", "broken", "judge calls", "reflection calls", "embedding calls", "known",
    "tokens", "later calls", "words more",
]  # fmt: skip


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
        return {entry.name: entry for entry in self.entries}[name]

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
        dollars. What a later judgement takes: ``later calls``, and ``words more`` of instructions
        than the original's. Finally ``reason``. nan where unknown or undefined.
        """
        names = pd.Index([entry.name for entry in self.entries], name="judge")
        table = pd.DataFrame([entry.figures for entry in self.entries], index=names)
        table[_COUNTS] = table[_COUNTS].astype("Int64")
        table["words more"] -= table["words more"].iloc[0]
        table = table.astype({c: float for c in table if c not in (*_COUNTS, "status", "reason")})
        return table if self.split.test.scale.ordered else table.drop(columns="mean distance")

    @property
    def conclusion(self) -> str:
        """What the held-out pairs can tell about who is best, in a sentence or two."""
        rated = [(e.name, e.agreement) for e in self.entries if e.judge and e.agreement]
        ranked = sorted((one for one in rated if one[1].n), key=lambda one: -one[1].accuracy)
        if len(ranked) < 2:
            return "There is nothing to compare the original judge with."
        (best, first), *others = ranked
        low = first.accuracy_interval.low
        close = [name for name, found in others if found.accuracy_interval.high >= low]
        lead = f"{best} has the highest accuracy, {first.accuracy:.3f}"
        if not close:
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
        return "\n".join([self._shown.to_string(), *self._lines])

    def _repr_html_(self) -> str:
        lines = "".join(f"<div>{html_text(line)}</div>" for line in self._lines)
        return html_table(self._shown) + lines

    @property
    def _shown(self) -> pd.DataFrame:
        """The table as text, without what few look for."""

        def text(value: Any) -> str:
            if pd.isna(value):
                return ""
            return f"{value:#.3g}" if isinstance(value, float) and value < 100 else f"{value:.0f}"

        table = self.table.drop(columns=["tokens", "cost", "reason"])
        figures = table.columns.drop("status")
        table[figures] = table[figures].astype(object).map(text)
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
    judge, pairs_or_traces, test_size, groups, gate, max_failure_share
        As in `align`.
    optimizers
        MLflow alignment optimizers or names: ``"workbench SIMBA"``, ``"MLflow SIMBA"``,
        ``"MLflow GEPA"``, ``"MLflow MemAlign"``; also one text with commas, or a mapping from
        names of your own. None: all four, with their defaults and the judge's own model for
        reflection.
    seed
        Of the split, the few-shot examples and the optimizers that are given by name.
    budget
        Model calls at most, or a `workbench.Budget`, of *each* optimizer: for learning and for
        the held-out test of its judge, whose calls are reserved. An optimizer that needs more is
        a row with its reason; `SIMBA` ends with the best instructions so far. The test of
        few-shot is not charged.
    embedding_model
        Of MemAlign, which takes part by default only where this is given.
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
    by_name, left_out = named_optimizers(judge, optimizers, seed, embedding_model)
    for optimizer in by_name.values():
        check_one_budget(optimizer, budget)
    run = AlignmentRun()
    data = read_data(run, judge, pairs_or_traces, groups, test_size, seed)
    with run:
        names = ", ".join(by_name)
        run.begin(f"compare optimizers of {judge.name}", data, optimizers=names, seed=seed)
        probe = probed(data, data.split.train)
        bench = _Benchmark(data, gate, seed, Budget.of(budget), max_failure_share, run, probe)
        entries = bench.references(by_name.values())
        for name, optimizer in by_name.items():
            if progress:
                say(f"{name} is learning ...")
            entries.append(bench.attempt(name, partial(bench.optimizer, name, optimizer)))
            if progress:
                say(f"{name}: {entries[-1].status}. {entries[-1].reason}")
        found = OptimizerComparison(
            _with_adjusted_p(entries), left_out, data.pairs, data.split, seed,
            time.monotonic() - started, notes=(*data.pairs.notes, *bench.notes(entries)),
        )  # fmt: skip
        table = found.table
        as_data = plain({"table": table.reset_index().astype(object), "notes": found.notes})
        run.finish(
            {"mlflow.note.content": found.conclusion},
            {"seconds": found.seconds},
            {"comparison.csv": table.to_csv(), "comparison.json": as_data},
        )
    faults = fault_notes("The comparison", run)
    run_id = None if faults else run.run_id
    return replace(found, run_id=run_id, notes=(*found.notes, *faults))


@dataclass(frozen=True)
class _Benchmark:
    """The split that all are run on, and the original judge that all are compared with."""

    data: AlignmentData
    gate: Gate
    seed: int
    budget: Budget
    max_failure_share: float | None
    run: AlignmentRun
    probe: Verdict

    def references(self, optimizers: Iterable[AlignmentOptimizer]) -> list[Entry]:
        """Return the original judge, the majority label of train, and few-shot."""
        train, test = self.data.split.train, self.data.split.test
        original = compare(test, test, seed=self.seed).before
        value, rated = majority(train, test)
        always = compare(test, rated, seed=self.seed)
        # As many examples as SIMBA's, so that more of them are not what decides.
        counts = [one.settings.max_examples for one in optimizers if isinstance(one, SIMBA)]
        count = max(counts, default=0) or Settings.max_examples
        shown = few_shot(self.data.judge, train, self.data.by_id, seed=self.seed, count=count)
        return [
            Entry("original", "reference", "", self.data.judge, original, later_calls=1),
            Entry(
                "majority label", "reference", f"always {value!r}", None, always.after, always,
                later_calls=0,
            ),
            self.attempt("few-shot", partial(self._tested, "few-shot", shown)),
        ]  # fmt: skip

    def attempt(self, name: str, attempt: Callable[[], Entry]) -> Entry:
        """Return the entry, or one with the reason why there is none."""
        started = time.monotonic()
        try:
            return attempt()
        except ReplayError:
            raise
        except Exception as error:
            text = " ".join(redact(str(error), judge_credentials(self.data.judge)).split())
            reason = (text or type(error).__name__)[:600]
            return Entry(name, "failed", reason, seconds=time.monotonic() - started)

    def optimizer(self, name: str, optimizer: AlignmentOptimizer) -> Entry:
        """Let the optimizer learn, and test what it proposes."""
        started = time.monotonic()
        limited, keep = self.budget.is_limited, dict[str, Any]()
        budget = Budget.of(optimizer.budget if isinstance(optimizer, SIMBA) else None)
        if limited:
            budget, each = self.budget.afresh(), requests_of_a_verdict(optimizer)
            keep = to_keep(self.data, self.probe, requests=each)
        with budget.keeping(**keep):
            learned = learn(self.data, optimizer, budget, self.max_failure_share)
        seconds = time.monotonic() - started
        tested = self._tested(name, learned.judge, learned, budget if limited else None)
        return replace(tested, seconds=seconds)

    def _tested(
        self,
        name: str,
        judge: Judge,
        learned: Learned | None = None,
        budget: Budget | None = None,
    ) -> Entry:
        """Test a judge within a run of its own; where it was learned, decide on it."""
        same = fingerprint(judge) == fingerprint(self.data.judge)
        with self.run.below() as run:
            run.begin(name, self.data, judge, optimizer=name, seed=self.seed)
            tested = score_held_out(self.data, judge, budget)
            entry = Entry(
                name,
                "reference",
                judge=judge,
                agreement=tested.comparison.after,
                comparison=tested.comparison,
                later_calls=1 + round(tested.other_calls / max(1, len(tested.verdicts))),
                notes=tuple(f"{name}: {note}" for note in tested.notes),
                run_id=None if same else run.run_id,
            )
            if learned is not None:
                train, stopped = self.data.split.train, learned.stopped
                status, reason = decide(self.gate, tested, train, stopped)
                spent = {field: getattr(learned, field) for field in _SPENT.values()}
                notes = (*learned.notes, *entry.notes)
                entry = replace(entry, status=status, reason=reason, notes=notes, **spent)
            numbers = {k: v for k, v in entry.figures.items() if isinstance(v, int | float)}
            metrics = {re.sub(r"\W+", "_", key): float(value) for key, value in numbers.items()}
            run.finish({"workbench.status": entry.status}, metrics, {})
        return replace(entry, notes=(*entry.notes, *fault_notes(name, run)))

    def notes(self, entries: Sequence[Entry]) -> list[str]:
        """Return what must be known to read the figures."""
        tested = [fingerprint(e.judge) for e in entries if e.run_id and e.judge is not None]
        _, earlier = count_looks(self.run, self.data, *tested)
        notes = [note for entry in entries for note in entry.notes]
        compared = sum(e.comparison is not None and e.judge is not None for e in entries)
        if compared > 1:
            notes.append(
                f"{compared} judges were compared with the original on the same held-out "
                "pairs: the more judges, the likelier that one looks better by luck, and the "
                "winner's figure is too high on average. 'p adjusted' takes this into account; "
                "labels that none has seen settle it."
            )
        if any(entry.known for entry in entries):
            notes.append(
                "Calls are those paid now. Answers in the cache, of earlier runs or of another "
                "optimizer with the same requests, were not paid again; 'known' counts them."
            )
        return [*notes, earlier] if earlier else notes


def _with_adjusted_p(entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """Adjust the p values of the judges that were tested after Holm (1979)."""
    from statsmodels.stats.multitest import multipletests

    p_values = {e.name: e.comparison.p_value for e in entries if e.comparison and e.judge}
    if not p_values:
        return tuple(entries)
    found = multipletests(list(p_values.values()), method="holm")[1]
    adjusted = dict(zip(p_values, map(float, found), strict=True))
    return tuple(replace(e, p_adjusted=adjusted.get(e.name, UNDEFINED)) for e in entries)


# -- who takes part ---------------------------------------------------------------------------

REFERENCES: Final = ("original", "majority label", "few-shot")
"""What every comparison shows beside the optimizers."""


def named_optimizers(
    judge: Judge, wanted: Any, seed: int, embedding_model: str | None
) -> tuple[dict[str, AlignmentOptimizer], dict[str, str]]:
    """Return optimizers by their names in the comparison, and name -> why it was left out.

    Raises
    ------
    ArgumentError
        For an unknown name, one of `REFERENCES`, an object that is no optimizer, or nothing at all.
    """
    known, left_out = _known_optimizers(judge, seed, embedding_model)
    if wanted is None:
        return known, left_out
    if isinstance(wanted, str):
        wanted = [name.strip() for name in wanted.split(",") if name.strip()]
    named = dict(wanted) if isinstance(wanted, Mapping) else _with_names(wanted)
    found = {
        name: known.get(one, one) if isinstance(one, str) else one for name, one in named.items()
    }
    if not found:
        raise ArgumentError("optimizers is empty. Give optimizers, or None for the known ones.")
    for name, one in found.items():
        if name in REFERENCES:
            raise ArgumentError(
                f"optimizers names one {name!r}, which every comparison shows as it is. Give it "
                "another name."
            )
        if not isinstance(one, AlignmentOptimizer):
            why = left_out.get(str(one), "it is no MLflow AlignmentOptimizer.")
            raise ArgumentError(
                f"optimizers holds {one!r}, but {why} Known names: {', '.join(known)}."
            )
    return found, {}


def _known_optimizers(
    judge: Judge, seed: int, embedding_model: str | None
) -> tuple[dict[str, AlignmentOptimizer], dict[str, str]]:
    """Return the optimizers that are known by name; MLflow's reflect with the judge's model."""
    from mlflow.genai.judges import optimizers

    model = judge.model
    known = {
        "workbench SIMBA": SIMBA(seed=seed, progress=False),
        # MLflow takes a seed of 0 for none, and 42 in its place.
        "MLflow SIMBA": optimizers.SIMBAAlignmentOptimizer(model=model, seed=seed),
        "MLflow GEPA": optimizers.GEPAAlignmentOptimizer(model=model),
    }
    if not embedding_model:
        why = "it needs an embedding model, for instance "
        return known, {"MLflow MemAlign": f"{why}embedding_model='openai:/text-embedding-3-small'."}
    memalign = optimizers.MemAlignOptimizer(reflection_lm=model, embedding_model=embedding_model)
    return known | {"MLflow MemAlign": memalign}, {}


def _with_names(wanted: Any) -> dict[str, Any]:
    named: dict[str, Any] = {}
    for one in [wanted] if isinstance(wanted, AlignmentOptimizer) else wanted:
        name, home = type(one).__name__, type(one).__module__.partition(".")[0]
        if isinstance(one, str):
            name = one
        elif home in ("workbench", "mlflow"):
            short = name.removesuffix("Optimizer").removesuffix("Alignment")
            name = f"{home.replace('mlf', 'MLf')} {short}"
        again = sum(each.partition(" (")[0] == name for each in named)
        named[f"{name} ({again + 1})" if again else name] = one
    return named


def few_shot(
    judge: Judge,
    train: Pairs,
    by_id: Mapping[str, Example],
    *,
    seed: int,
    count: int = Settings.max_examples,
) -> Judge:
    """Return the judge with ``count`` labelled items of train and their rationales as examples.

    Labels take turns, the rarest first, and items with a rationale come first; otherwise the
    order is random by ``seed``.
    """

    def order(row: dict[Any, Any]) -> tuple[bool, str, str]:
        # By content, so that the same items are shown in every store.
        text = f"{seed}:{item_digest(by_id[row['trace_id']])}"
        digest = hashlib.sha256(text.encode()).hexdigest()
        return not row["human_rationale"], digest, row["trace_id"]

    labels, seen = Counter(train.table["human"]), Counter[Any]()
    turns = []
    for row in sorted(train.table.to_dict("records"), key=order):
        label = row["human"]
        turns.append((seen[label], labels[label], str(label), row))
        seen[label] += 1
    shown = [
        WorkedExample(
            row["trace_id"],
            tuple((name, getattr(by_id[row["trace_id"]], name)) for name in judge_fields(judge)),
            str(row["human"]),
            row["human_rationale"] or "",
        )
        for *_, row in sorted(turns, key=lambda turn: turn[:3])[:count]
    ]
    base = Candidate(options(judge)["instructions"])
    return with_instructions(judge, base.with_examples(shown, len(shown)).text)


def majority(train: Pairs, test: Pairs) -> tuple[Any, Pairs]:
    """Return the most frequent human label of train, and test as if all had been rated so."""
    counts = Counter(train.table["human"])
    most = max(counts, key=lambda value: (counts[value], str(value)))
    return most, test.with_verdicts(dict.fromkeys(test.trace_ids, (most, "")), "majority")
