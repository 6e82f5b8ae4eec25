"""Runs several optimizers on the same split and scores each once on the same held-out pairs.

Beside them stand the original judge, always giving the majority label of train, and plain
few-shot: labelled items in the instructions and nothing else.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.genai.judges.base import AlignmentOptimizer

from workbench.alignment.external import requests_of_a_verdict
from workbench.alignment.gate import Gate, decide
from workbench.alignment.heldout import HeldOutTest, TestSetUse, score_held_out, test_set_tags
from workbench.alignment.learning import AlignmentData, check_one_budget, learn
from workbench.alignment.lineage import lineage_files
from workbench.alignment.optimizer_comparison import (
    Effort,
    Entry,
    OptimizerComparison,
    in_words,
    notes_on,
    with_adjusted_p,
)
from workbench.alignment.optimizers import examples_shown, few_shot, majority, named_optimizers
from workbench.alignment.preflight import forecast_of, probed, to_keep
from workbench.alignment.result import Learned
from workbench.alignment.runs import (
    ORIGINAL_TAG,
    AlignmentRun,
    RunLocation,
    instruction_files,
    params_before_test,
    tags_before_test,
)
from workbench.credentials import redact
from workbench.errors import ReplayError, one_of
from workbench.formatting import plain, say
from workbench.judging.judge import fingerprint, judge_credentials
from workbench.judging.verdicts import Verdict
from workbench.metrics.comparison import compare
from workbench.models.budget import Budget
from workbench.pairing.pairs import dataset_digest
from workbench.pairing.splits import Groups
from workbench.simba.forecast import announcement
from workbench.simba.optimizer import SIMBA
from workbench.store.traces import item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


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
        Of the split, the few-shot examples and the optimizers that are asked for by name.
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
    optimizers_by_name, left_out = named_optimizers(
        judge, optimizers, seed=seed, embedding_model=embedding_model
    )
    for optimizer in optimizers_by_name.values():
        check_one_budget(optimizer, budget)
    location = RunLocation.active()
    data = AlignmentData.of(judge, pairs_or_traces, groups, test_size, seed, location)
    with AlignmentRun(location, f"compare optimizers of {judge.name}") as run:
        _begin(run, judge, data, [*optimizers_by_name], seed)
        bench = _Benchmark(
            judge, data, gate, seed, Budget.of(budget), max_failure_share,
            location=replace(location, parent_run_id=run.run_id or location.parent_run_id),
        )  # fmt: skip
        if progress:
            names = ", ".join(optimizers_by_name)
            say(f"{data.split!r}: {names}, beside the original, the majority, few-shot")
        shown = examples_shown(optimizers_by_name.values())
        entries = [bench.original(), bench.majority(), bench.few_shot(shown)]
        for name, optimizer in optimizers_by_name.items():
            if progress:
                say(f"{name}: {bench.announcement(optimizer)}")
            entries.append(bench.optimizer(name, optimizer))
            if progress:
                say(f"{name}: {in_words(entries[-1])}")
        notes = (
            *data.pairs.notes,
            *notes_on(entries, len(data.split.test)),
            bench.note_on_use(entries),
        )
        found = OptimizerComparison(
            entries=with_adjusted_p(entries),
            left_out=left_out,
            pairs=data.pairs,
            split=data.split,
            seed=seed,
            seconds=time.monotonic() - started,
            notes=tuple(note for note in notes if note),
        )
        return _finish(run, bench.runs, found)


@dataclass
class _Benchmark:
    """The split that all are run on, and the original judge that all are compared with."""

    judge: Judge
    data: AlignmentData
    gate: Gate
    seed: int
    budget: Budget
    max_failure_share: float | None
    location: RunLocation
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
        self.probe = probed(self.judge, self.data.by_id[self.first], self.data.split.train)
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
            limit = f"the budget, {self.budget.told()}" if self.budget.is_limited else "no limit"
            return f"how many calls it makes is not known beforehand; {limit} ..."
        most = forecast_of(
            self.judge,
            self.data.split,
            self.data.by_id,
            optimizer.settings,
            optimizer.model,
            self.probe,
        )
        return f"{announcement(most, self.budget)} ..."

    def optimizer(self, name: str, optimizer: AlignmentOptimizer) -> Entry:
        """Let the optimizer learn, and test what it proposes; a failure is its reason."""
        started = time.monotonic()
        limited = self.budget.is_limited
        own = optimizer.budget if isinstance(optimizer, SIMBA) else None
        budget = self.budget.afresh() if limited else Budget.of(own)
        try:
            learned = self._learn(optimizer, budget)
        except ReplayError:
            raise
        except Exception as error:
            entry = Entry(name, "failed", seconds=time.monotonic() - started)
            return self._failed(entry, error)
        entry = Entry(
            name,
            "unchanged",
            judge=learned.judge,
            calls=learned.calls,
            reflection_calls=learned.reflection_calls,
            embedding_calls=learned.embedding_calls,
            known=learned.known,
            tokens=learned.tokens,
            cost=learned.cost,
            seconds=time.monotonic() - started,
            notes=learned.notes,
        )
        return self._tested(entry, learned.stopped, budget if limited else None)

    def note_on_use(self, entries: Sequence[Entry]) -> str:
        """Return a note where other judges were scored on the held-out pairs before these."""
        tested = [fingerprint(e.judge) for e in entries if e.run_id and e.judge is not None]
        use = TestSetUse.of(self.data.split.test, self.data.by_id, *tested, location=self.location)
        return use.note

    def _learn(self, optimizer: AlignmentOptimizer, budget: Budget) -> Learned:
        """Learn with what the held-out test leaves of the budget."""
        reserve: dict[str, Any] = {}
        if self.budget.is_limited:
            tested, each = len(self.data.split.test), requests_of_a_verdict(optimizer)
            reserve = to_keep(self.judge, tested, self.probe, budget, requests=each)
        with budget.keeping(**reserve) if reserve else nullcontext():
            return learn(
                self.judge,
                optimizer,
                self.data.split,
                self.data.by_id,
                budget,
                earlier=self.data.lineage.unchanged,
                max_failure_share=self.max_failure_share,
                progress=False,
            )

    def _tested(self, entry: Entry, stopped: str = "", budget: Budget | None = None) -> Entry:
        assert entry.judge is not None
        try:
            tested, run_id = self._score(entry.name, entry.judge, budget)
        except ReplayError:
            raise
        except Exception as error:
            return self._failed(entry, error)
        comparison = compare(tested.before, tested.after, seed=self.seed)
        first = next((v for v in tested.verdicts if v.trace_id == self.first), self.probe)
        entry = replace(
            entry,
            run_id=run_id,
            agreement=comparison.after,
            comparison=comparison,
            later=_effort(entry.judge, first, tested.other_calls / max(1, len(tested.verdicts))),
            notes=(*entry.notes, *(f"{entry.name}: {note}" for note in tested.notes)),
        )
        if entry.status == "reference":
            return entry
        same = fingerprint(entry.judge) == fingerprint(self.judge)
        train = self.data.split.train
        status, reason = decide(
            comparison, self.gate, same, stopped, tested.lost, train=train, after=tested.after
        )
        return replace(entry, status=status, reason=reason)

    def _score(
        self, name: str, judge: Judge, budget: Budget | None
    ) -> tuple[HeldOutTest, str | None]:
        """Test the judge within a run of its own; None where it is the original one."""
        split, by_id = self.data.split, self.data.by_id
        same = fingerprint(judge) == fingerprint(self.judge)
        with AlignmentRun(self.location, name) as run:
            run.begin(
                tags_before_test(self.judge, judge, self.data.pairs, split)
                | ({} if same else test_set_tags(split.test, by_id)),
                params_before_test(self.judge, split, optimizer=name, seed=self.seed),
                lineage_files(split, by_id) | instruction_files(self.judge, judge),
            )
            tested = score_held_out(self.judge, judge, split.test, by_id, False, budget)
        self.runs[name] = run
        return tested, None if same else run.run_id

    def _failed(self, entry: Entry, error: Exception) -> Entry:
        message = (
            " ".join(redact(str(error), judge_credentials(self.judge)).split())
            or type(error).__name__
        )
        return replace(entry, status="failed", reason=message[:600], judge=None)


def _effort(judge: Judge, verdict: Verdict, others: float = 0.0) -> Effort:
    """Return what one judgement takes, as it was measured on one item.

    Words are those of the instructions; the item's own are the same for all judges.
    """
    from mlflow.genai.judges.instructions_judge import InstructionsJudge

    # Judges that are more than their instructions add words that differ from item to item.
    known = isinstance(judge, InstructionsJudge)
    words = len(str(judge.instructions).split()) if known else None
    return Effort(1 + round(others), words, verdict.input_tokens)


# -- the run ----------------------------------------------------------------------------------


def _begin(
    run: AlignmentRun, judge: Judge, data: AlignmentData, names: list[str], seed: int
) -> None:
    run.begin(
        {
            ORIGINAL_TAG: fingerprint(judge),
            "workbench.dataset_digest": dataset_digest(data.pairs),
            "workbench.split_digest": data.split.digest,
        },
        params_before_test(judge, data.split, optimizers=", ".join(names), seed=seed),
        {"split.json": data.split.to_dict()},
    )


def _finish(
    run: AlignmentRun, tested: Mapping[str, AlignmentRun], found: OptimizerComparison
) -> OptimizerComparison:
    """Log the outcome; a store that refuses it is warned of, and the result is kept."""
    table = found.table
    for name, child in tested.items():
        row: dict[Any, Any] = table.loc[name].to_dict()
        figures = {
            re.sub(r"\W+", "_", str(key)): float(value)
            for key, value in row.items()
            if key not in ("status", "reason") and not pd.isna(value)
        }
        child.finish({"workbench.status": str(row["status"])}, figures)
    as_data = plain({"table": table.reset_index().astype(object), "notes": list(found.notes)})
    run.finish(
        {"mlflow.note.content": found.conclusion},
        {"seconds": found.seconds},
        {"comparison.csv": table.to_csv(), "comparison.json": as_data},
    )
    faults = [each.fault for each in (run, *tested.values()) if each.fault]
    if not faults:
        return replace(found, run_id=run.run_id)
    message = f"The comparison could not be logged as MLflow runs: {faults[0]}"
    warnings.warn(message, stacklevel=3)
    return replace(found, run_id=None if run.fault else run.run_id, notes=(*found.notes, message))
