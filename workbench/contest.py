"""Several optimizers on the same split, beside what each must beat.

All learn from the same train and dev pairs and are scored once on the same held-out pairs, in
the harness that `workbench.align` uses. Beside them stand the original judge, always giving the
majority label of train, and plain few-shot: labelled items in the instructions, nothing else, as
many as the SIMBA among them shows at most (`workbench.lineup.examples_shown`).
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import mlflow
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.genai.judges.base import AlignmentOptimizer
from mlflow.utils.mlflow_tags import MLFLOW_PARENT_RUN_ID

from workbench import harness, logbook, looks
from workbench.ancestry import earlier_alignments
from workbench.budget import Budget
from workbench.cache import AnswerCache, question_key
from workbench.calls import run
from workbench.errors import ReplayError, one_of
from workbench.forecast import announcement
from workbench.foreign import requests_of_a_verdict
from workbench.gate import Gate, decide
from workbench.judge import Verdict, fingerprint, is_cacheable, options, scrub
from workbench.leaderboard import Entry, Later, OptimizerComparison, adjusted, remarks_on, told
from workbench.lineup import examples_shown, few_shot, lineup, majority
from workbench.metering import metering, without_dspy_answers
from workbench.metrics import compare
from workbench.optimised import Settings
from workbench.pairing import Groups, Pairs, Split, dataset_digest
from workbench.preflight import check_pairs, forecast_of, probed, to_keep
from workbench.progress import say
from workbench.question import answers_from
from workbench.receipt import Receipt
from workbench.rendering import plain
from workbench.simba import SIMBA
from workbench.tape import Line, Player, Recorder, active, charged
from workbench.traces import Example, examples, item_digest
from workbench.watch import Place

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

    Answers of judges are kept, so that the same call resumes after an interrupt. An optimizer
    that fails is a row with its reason. The whole is logged as an MLflow run, each judge that
    came of it as a run within.

    Parameters
    ----------
    judge
        A judge made from instructions, which has judged the labelled traces (`assess`).
    pairs_or_traces
        `Pairs`, or what `pair` takes as traces.
    optimizers
        MLflow alignment optimizers or names: ``"workbench SIMBA"``, ``"MLflow SIMBA"``,
        ``"MLflow GEPA"``, ``"MLflow MemAlign"``, also as one text with commas; a mapping shows
        them under names of one's own.
        None: those of the four whose packages are installed, each with its defaults and the
        judge's own model for reflection.
    seed
        Of the split, the few-shot examples and the optimizers that are asked for by name.
    test_size, groups
        As in `align`.
    gate
        What makes a judge ``improved``, as in `align`.
    budget
        Model calls at most, or a `workbench.Budget`, of *each* optimizer: what it learns with and
        the held-out test of its judge, for which its calls are kept back. One that wants more is
        a row with its reason, `SIMBA` ends with what is best until then. The original judge and
        few-shot, which are tested as well, take none of it.
    embedding_model
        Of MemAlign, which takes part by default only where this is given.
    max_failure_share
        Share of lost answers above which an optimizer fails, as in `align`.
    progress
        Say what is being run.

    Raises
    ------
    TooFewPairsError, NoLabelsError, NoVerdictsError, PairingError, ArgumentError
        As `align`.
    ModelError
        When the original judge does not answer.
    """
    one_of("gate", gate, ["better", "significant", "none"])
    started = time.monotonic()
    entrants, left_out = lineup(judge, optimizers, seed=seed, embedding_model=embedding_model)
    for optimizer in entrants.values():
        harness.check_one_budget(optimizer, budget)
    pairs = harness.own_pairs(judge, pairs_or_traces)
    options(judge)  # raises for judges that are not made from instructions
    check_pairs(pairs)
    by_id = {example.trace_id: example for example in examples(pairs.trace_ids)}
    earlier = earlier_alignments(judge, by_id)
    split = harness.split_pairs(pairs, by_id, groups, earlier, test_size, seed)
    field_ = _Field(
        judge, pairs, split, by_id, gate, seed, max_failure_share, earlier.unchanged(pairs)
    )
    field_.budget, field_.examples = Budget.of(budget), examples_shown(entrants.values())
    if progress:
        say(f"{split!r}: {', '.join(entrants)}, beside the original, the majority, few-shot")
    entries = [field_.original(), field_.majority(), field_.few_shot()]
    for name, optimizer in entrants.items():
        if progress:
            say(f"{name}: {field_.announced(optimizer)}")
        entry = field_.optimizer(name, optimizer)
        if progress:
            say(f"{name}: {told(entry)}")
        entries.append(entry)
    found = OptimizerComparison(
        entries=adjusted(entries),
        left_out=left_out,
        pairs=pairs,
        split=split,
        seed=seed,
        seconds=time.monotonic() - started,
        notes=tuple(
            filter(
                None,
                (
                    *pairs.notes,
                    *remarks_on(entries, len(split.test)),
                    field_.looked(entries),
                ),
            )
        ),
    )
    return _logged(found)


class _Field:
    """The split that all are run on, and the original judge that all are compared with."""

    def __init__(
        self,
        judge: Judge,
        pairs: Pairs,
        split: Split,
        by_id: Mapping[str, Example],
        gate: Gate,
        seed: int,
        max_failure_share: float | None,
        earlier: Collection[str] = (),
    ) -> None:
        self.earlier = earlier
        self.judge, self.pairs, self.split, self.by_id = judge, pairs, split, by_id
        self.place = Place.active()
        self.gate, self.seed, self.max_failure_share = gate, seed, max_failure_share
        self.budget, self.probe = Budget(), Verdict("")
        self.examples = Settings.max_examples
        # By content, so that it is the same item in every store.
        self.first = min((by_id[i] for i in split.test.trace_ids), key=item_digest)

    def original(self) -> Entry:
        """The judge as it is; raises where it does not answer."""
        self.probe = probed(self.judge, self.first, self.split.train)
        return Entry(
            "original",
            "reference",
            judge=self.judge,
            agreement=compare(self.split.test, self.split.test, seed=self.seed).before,
            later=self._later(self.judge),
        )

    def announced(self, optimizer: AlignmentOptimizer) -> str:
        """What it takes at most, where that is known."""
        if not isinstance(optimizer, SIMBA):
            limit = f"the budget, {self.budget.told()}" if self.budget.is_limited else "no limit"
            return f"how many calls it makes is not known beforehand; {limit} ..."
        settings, model = optimizer.settings, optimizer.model
        most = forecast_of(self.judge, self.split, self.by_id, settings, model, self.probe)
        return f"{announcement(most, self.budget)} ..."

    def majority(self) -> Entry:
        value, rated = majority(self.split.train, self.split.test)
        comparison = compare(self.split.test, rated, seed=self.seed)
        return Entry(
            "majority label",
            "reference",
            f"always {value!r}",
            agreement=comparison.after,
            comparison=comparison,
            later=Later(0),
        )

    def few_shot(self) -> Entry:
        shown = few_shot(
            self.judge, self.split.train, self.by_id, seed=self.seed, count=self.examples
        )
        return self._tested(Entry("few-shot", "reference", judge=shown))

    def optimizer(self, name: str, optimizer: AlignmentOptimizer) -> Entry:
        """Let it learn, and put what it proposes to the test; what goes wrong is its reason."""
        started = time.monotonic()
        # Without limits of its own where none are given, since SIMBA may bring some.
        brought = optimizer.budget if isinstance(optimizer, SIMBA) else None
        purse = self.budget.afresh() if self.budget.is_limited else Budget.of(brought)
        try:
            learned = self._learned(
                optimizer,
                purse,
                earlier=self.earlier,
                max_failure_share=self.max_failure_share,
                progress=False,
            )
        except ReplayError:
            raise
        except Exception as error:
            return self._failed(Entry(name, "failed", seconds=time.monotonic() - started), error)
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
        return self._tested(entry, learned.stopped, purse if self.budget.is_limited else None)

    def _learned(
        self, optimizer: AlignmentOptimizer, purse: Budget, **options: Any
    ) -> harness.Learned:
        """What it finds with what is left of its budget beside its test."""
        kept: dict[str, Any] = {}
        if self.budget.is_limited:
            # One call more, since it is measured what a later judgement takes.
            tested, each = len(self.split.test) + 1, requests_of_a_verdict(optimizer)
            kept = to_keep(self.judge, tested, self.probe, purse, requests=each)
        with purse.keeping(**kept) if kept else nullcontext():
            return harness.learn(self.judge, optimizer, self.split, self.by_id, purse, **options)

    def _tested(self, entry: Entry, stopped: str = "", purse: Budget | None = None) -> Entry:
        assert entry.judge is not None
        try:
            later = self._later(entry.judge, purse)
            entry = replace(entry, run_id=self._mark(entry))
            tested = harness.put_to_test(
                self.judge, entry.judge, self.split.test, self.by_id, False, purse
            )
        except ReplayError:
            raise
        except Exception as error:
            return self._failed(entry, error)
        comparison = compare(tested.before, tested.after, seed=self.seed)
        entry = replace(
            entry,
            agreement=comparison.after,
            comparison=comparison,
            later=later,
            notes=(*entry.notes, *(f"{entry.name}: {note}" for note in tested.notes)),
        )
        if entry.status == "reference":
            return entry
        same = fingerprint(entry.judge) == fingerprint(self.judge)
        status, reason = decide(
            comparison, self.gate, same, stopped, tested.lost,
            train=self.split.train, after=tested.after,
        )  # fmt: skip
        return replace(entry, status=status, reason=reason)

    def _mark(self, entry: Entry) -> str | None:
        """The run that tells of the test before it is made, so that the look counts in any case."""
        assert entry.judge is not None
        if fingerprint(entry.judge) == fingerprint(self.judge):
            return None
        try:
            run = self.place.begin(entry.name)
            logbook.write_before_test(
                run, self.judge, entry.judge, self.pairs, self.split, self.by_id,
                looks.marks(self.split.test, self.by_id, fingerprint(entry.judge)),
                optimizer=entry.name, seed=self.seed,
            )  # fmt: skip
            run.end()
        except (MlflowException, OSError) as error:
            warnings.warn(f"The look at held-out pairs could not be logged: {error}", stacklevel=2)
            return None
        return run.run_id

    def looked(self, entries: Sequence[Entry]) -> str:
        """What is to be said of judges that were scored on the held-out pairs before these."""
        tested = [fingerprint(e.judge) for e in entries if e.run_id and e.judge is not None]
        return looks.looks(self.split.test, self.by_id, *tested, place=self.place).note

    def _failed(self, entry: Entry, error: Exception) -> Entry:
        said = " ".join(scrub(str(error), self.judge).split()) or type(error).__name__
        return replace(entry, status="failed", reason=said[:600], judge=None)

    def _later(self, judge: Judge, budget: Budget | None = None) -> Later:
        """What one judgement of a new item takes, measured on one that none learned from.

        It is measured once, so that a comparison that is resumed does not pay for it again.
        """
        tape, tape_key = active(), self._later_key(fingerprint(judge, place=False))
        if isinstance(tape, Player):
            return _replayed(tape, tape_key, judge, budget)
        source = answers_from(judge.model, getattr(judge, "_base_url", None))
        key = self._later_key(fingerprint(judge), source)
        with AnswerCache() as cache:
            known = cache.get(key) if is_cacheable(judge) else None
            later, paid, made = Later(), Receipt(0), 0
            if known is not None:
                later = Later(known.get("calls"), known.get("words"), known.get("tokens"))
                paid = Receipt.of(known.get("paid"))
                if budget is not None:
                    budget.charge(paid, str(judge.model))
            else:
                with metering(budget=budget) as meter, without_dspy_answers():
                    scale = self.split.test.scale
                    verdict = run(judge, [self.first], cache=None, scale=scale, budget=budget)[0]
                others = meter.embedding.requests + meter.reflection.requests
                paid = verdict.receipt or Receipt()
                paid = replace(paid, calls=paid.calls + others)
                made = paid.calls
                if verdict.error is None:
                    calls = verdict.calls + others
                    later = Later(calls, meter.words or None, verdict.input_tokens)
                    if is_cacheable(judge):
                        cache.put(key, {**asdict(later), "paid": paid.to_dict()})
        if isinstance(tape, Recorder):
            told = {name: n for name, n in asdict(later).items() if n is not None}
            spent = {"calls": made, "charged": paid.to_dict()}
            tape.keep(Line(tape_key, 0, "measured", {}, told, spent), repeated=not made)
        return later

    def _later_key(self, *about: Any) -> str:
        return question_key("later", *about, item_digest(self.first))


def _replayed(player: Player, key: str, judge: Judge, budget: Budget | None) -> Later:
    """What one more judgement took when the run was recorded."""
    line = player.find(key, 0, "measured")
    if line is None:
        raise ReplayError(
            f"What a judgement of {judge.name!r} takes is not in {player.path}, which is replayed, "
            "so that no model is called. This run is not the recorded one: record it anew."
        )
    if budget is not None:
        made = int(line.paid.get("calls") or 0)
        budget.charge(charged(line.paid), str(judge.model), made=made)
    return Later(**{name: line.answer.get(name) for name in ("calls", "words", "tokens")})


# -- what is logged ---------------------------------------------------------------------------


def _logged(found: OptimizerComparison) -> OptimizerComparison:
    """Log the comparison as an MLflow run; where that fails the result is kept and says so."""
    try:
        run_id = _log_run(found)
    except (MlflowException, OSError) as error:
        message = f"The comparison could not be logged as an MLflow run: {error}"
        warnings.warn(message, stacklevel=3)
        return replace(found, notes=(*found.notes, message))
    return replace(found, run_id=run_id)


def _log_run(found: OptimizerComparison) -> str:
    judge = found.entries[0].judge
    assert judge is not None
    table = found.table
    with mlflow.start_run(
        run_name=f"compare optimizers of {judge.name}", nested=mlflow.active_run() is not None
    ) as active:
        mlflow.log_params(
            {
                "judge": judge.name,
                "model": judge.model,
                "optimizers": ", ".join(e.name for e in found.entries if e.status != "reference"),
                "seed": found.seed,
                "pairs": len(found.pairs),
                "train": len(found.split.train),
                "dev": len(found.split.dev),
                "test": len(found.split.test),
            }
        )
        mlflow.set_tags(
            {
                "workbench.fingerprint.original": fingerprint(judge),
                "workbench.dataset_digest": dataset_digest(found.pairs),
                "workbench.split_digest": found.split.digest,
                "mlflow.note.content": found.conclusion,
            }
        )
        mlflow.log_metrics({"seconds": found.seconds})
        mlflow.log_text(table.to_csv(), "comparison.csv")
        mlflow.log_dict(
            plain({"table": table.reset_index().astype(object), "notes": list(found.notes)}),
            "comparison.json",
        )
        mlflow.log_dict(found.split.to_dict(), "split.json")
        for entry in found.entries[1:]:
            if entry.judge is not None:
                _log_entry(found, entry, fingerprint(judge))
        return str(active.info.run_id)


def _log_entry(found: OptimizerComparison, entry: Entry, original: str) -> None:
    """A run for each judge, so that what it learned on is known when it is aligned again."""
    assert entry.judge is not None
    above = mlflow.active_run()
    with mlflow.start_run(run_id=entry.run_id, run_name=entry.name, nested=True):
        mlflow.set_tags(
            {
                MLFLOW_PARENT_RUN_ID: above.info.run_id if above else "",
                "workbench.status": entry.status,
                "workbench.fingerprint.original": original,
                "workbench.fingerprint.aligned": fingerprint(entry.judge),
                "workbench.split_digest": found.split.digest,
            }
        )
        row: dict[Any, Any] = found.table.loc[entry.name].to_dict()
        figures = {
            re.sub(r"\W+", "_", str(name)): float(value)
            for name, value in row.items()
            if name not in ("status", "reason") and not pd.isna(value)
        }
        mlflow.log_metrics(figures)
        mlflow.log_dict(found.split.to_dict(), "split.json")
        mlflow.log_text(str(getattr(entry.judge, "instructions", "")), "instructions.txt")
