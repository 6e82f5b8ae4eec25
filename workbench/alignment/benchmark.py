"""Runs several optimizers on the same split and scores each once on the same held-out pairs."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final

import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.genai.judges import Judge
from mlflow.genai.judges.base import AlignmentOptimizer

from workbench.alignment.align import budget_of, concurrency_of, learn
from workbench.alignment.heldout import decide, majority, read_data, score_held_out
from workbench.alignment.preflight import labelled_cases, probed, reached_models
from workbench.alignment.result import COUNTS, OptimizerComparison, headline_of
from workbench.alignment.runs import AlignmentData, Gate, count_looks, log_outcome, logged_run
from workbench.compat import embedder_of, endpoint, options
from workbench.credentials import credentials_of, environment_keys, redact
from workbench.errors import (
    ArgumentError,
    ReplayError,
    StoreError,
    check_share,
    check_whole,
    one_of,
)
from workbench.formatting import plain, say
from workbench.judging.judge import fingerprint, with_instructions
from workbench.metrics.comparison import Comparison, compare
from workbench.metrics.intervals import adjusted
from workbench.models.budget import UNPAID, Budget
from workbench.pairing.pairs import Groups
from workbench.simba.candidate import Candidate, Learned, judge_fields, sample
from workbench.simba.optimizer import SIMBA
from workbench.simba.settings import Settings
from workbench.store.traces import item_digest

_COLUMNS: Final = (
    "status", "accuracy", "low", "high", "kappa", "kappa low", "kappa high", "mean distance",
    "mean distance low", "mean distance high", "n", "fixed", "broken", "p", "p adjusted",
    "judge calls", "reflection calls", "embedding calls", "known", "seconds", "tokens", "cost",
    "later calls", "later tokens", "reason",
)  # fmt: skip


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
    reflection_model: str | None = None,
    reflection_base_url: str | None = None,
    max_failure_share: float | None = None,
    progress: bool = True,
) -> OptimizerComparison:
    """Run several optimizers on the same split and score each once on the same held-out pairs.

    The same call resumes after an interrupt. An optimizer that fails is a row with its reason. The
    comparison is logged as an MLflow run, with a child run for each judge that was tested.

    Parameters
    ----------
    judge, pairs_or_traces, test_size, groups, gate, max_failure_share
        As in `align`.
    optimizers
        MLflow alignment optimizers or names: ``"workbench SIMBA"``, ``"MLflow SIMBA"``,
        ``"MLflow GEPA"``, ``"MLflow MemAlign"``; also a single one, one text with commas, or a
        mapping from names of your own. None: all four, with their defaults.
    seed
        Of the split, the few-shot examples and the optimizers that are given by name.
    budget
        Of *each* optimizer, as in `align`; one that needs more is a row with its reason. The test
        of few-shot is not charged.
    embedding_model
        Of MemAlign, which takes part by default only where this is given. Where its provider is
        the judge's, it is reached at the judge's base URL.
    reflection_model, reflection_base_url
        The model that optimizers given by name reflect with, and the server on which it is
        reached; by default as in `SIMBA`.
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
    check_share("max_failure_share", max_failure_share or 0.0)
    started, seed = time.monotonic(), check_whole("seed", seed, None)
    data = read_data(judge, pairs_or_traces, groups, test_size, seed)
    reflection = reflection_model, reflection_base_url
    by_name = named_optimizers(judge, optimizers, seed, embedding_model, *reflection)
    for optimizer in by_name.values():
        budget_of(optimizer, budget)
    title, names = f"compare optimizers of {judge.name}", ", ".join(by_name)
    run = logged_run(title, data, optimizers=names, seed=seed)
    with run as run_id:
        bench = _Benchmark(data, gate, concurrency_of(*by_name.values()))
        probe = probed(data)
        bench.rows["original"]["later tokens"] = probe.usage.tokens or None
        bench.add("few-shot", lambda: Learned(_few_shot(data)))
        for name, optimizer in by_name.items():
            if progress:
                reached = reached_models(judge, optimizer, reflection_base_url)
                say(f"{name} is learning: {', '.join(map(' '.join, reached))} ...")
            each = budget_of(optimizer, None if budget is None else Budget.of(budget).afresh())
            given = data, probe, optimizer, each, max_failure_share
            attempt = partial(learn, *given, reflection_base_url=reflection_base_url)
            bench.add(name, attempt, each)
        found = OptimizerComparison(
            bench.table(), bench.judges, bench.comparisons, data.pairs, data.split,
            time.monotonic() - started, bench.all_notes(), bench.tested, run_id,
        )  # fmt: skip
        as_data = {"table": found.table.reset_index().astype(object), "notes": found.notes}
        files = {"comparison.csv": found.table.to_csv(), "comparison.json": plain(as_data)}
        log_outcome({"seconds": found.seconds}, files)
    return found


class _Benchmark:
    """The rows, judges and comparisons found on one split; the references come first."""

    def __init__(self, data: AlignmentData, gate: Gate, concurrency: int) -> None:
        self.data, self.gate, self.concurrency = data, gate, concurrency
        self.judges: dict[str, Judge] = {"original": data.judge}
        self.comparisons: dict[str, Comparison] = {}
        self.notes: list[str] = []
        test, seed = data.split.test, data.split.seed
        self.tested = {"original": test}
        most = majority(data.split.train)
        constant = test.with_verdicts(dict.fromkeys(test.trace_ids, (most, "")), "majority")
        unknown = {"fixed": None, "broken": None, "p": None}
        self.rows: dict[str, dict[str, Any]] = {
            "original": _row(compare(test, test, seed=seed)) | unknown,
            "majority label": _row(compare(test, constant, seed=seed))
            | {"reason": f"always {most!r}", "later calls": 0},
        }

    def add(self, name: str, learn: Callable[[], Learned], budget: Budget | None = None) -> None:
        """Test what ``learn`` proposes; a failure is a row with its reason."""
        started = time.monotonic()
        try:
            learned = learn()
            self._test(name, learned, time.monotonic() - started, budget)
        except (ReplayError, StoreError, MlflowException):
            raise
        except Exception as error:
            keys = (*credentials_of(*endpoint(self.data.judge)), *environment_keys())
            text = " ".join(redact(str(error), keys).split())
            reason = (text or type(error).__name__)[:600]
            seconds = time.monotonic() - started
            self.rows[name] = {"status": "failed", "reason": reason, "seconds": seconds}

    def _test(self, name: str, learned: Learned, seconds: float, budget: Budget | None) -> None:
        """Add a judge, tested within a run of its own; where it was learned, decide on it."""
        judge, split = learned.judge, self.data.split
        with logged_run(name, self.data, judge, optimizer=name, seed=split.seed):
            tested = score_held_out(self.data, judge, budget, concurrency=self.concurrency)
            row = _row(tested.comparison)
            if tested.lost:
                row["reason"] = f"no usable verdict on {tested.lost:.0%}"
            if used := sum((verdict.usage for verdict in tested.verdicts), UNPAID).tokens:
                row["later tokens"] = round(used / len(tested.verdicts))
            elif tested.after is tested.before:
                row["later tokens"] = self.rows["original"].get("later tokens")
            if embedder_of(judge) is not None:
                row["later calls"] += 1
            if name not in REFERENCES:
                status, reason = decide(self.gate, tested, split.train, learned.stopped)
                headline = headline_of(status, tested.comparison)
                row |= {"status": headline, "reason": reason, "seconds": seconds}
                row |= {"tokens": learned.usage.tokens or None, "cost": learned.usage.cost}
                for count in ("judge_calls", "reflection_calls", "embedding_calls", "known"):
                    row[count.replace("_", " ")] = getattr(learned, count)
            numbers = {k: float(v) for k, v in row.items() if isinstance(v, int | float)}
            metrics = {re.sub(r"\W+", "_", key): value for key, value in numbers.items()}
            log_outcome(metrics, status=row["status"])
        self.rows[name], self.judges[name] = row, judge
        if tested.after is not tested.before:  # else it is the original once more
            self.comparisons[name], self.tested[name] = tested.comparison, tested.after
        self.notes += [*learned.notes, *(f"{name}: {note}" for note in tested.notes)]

    def table(self) -> pd.DataFrame:
        """Return all rows, with p values adjusted for the judges tested after Holm (1979)."""
        names = pd.Index(self.rows, name="judge")
        table = pd.DataFrame([*self.rows.values()], index=names, columns=list(_COLUMNS))
        kinds = {column: "Int64" if column in COUNTS else "float64" for column in _COLUMNS[1:-1]}
        table = table.astype(kinds)
        if tested := list(self.comparisons):
            table.loc[tested, "p adjusted"] = adjusted(table.loc[tested, "p"], "holm")
        ordered = self.data.split.test.scale.ordered
        return table if ordered else table.drop(columns=table.filter(like="mean distance"))

    def all_notes(self) -> tuple[str, ...]:
        """Return what must be known to read the figures."""
        tested = [fingerprint(self.judges[name]) for name in self.comparisons]
        several = (
            f"{len(tested)} judges were compared with the original on the same held-out pairs: the "
            "more judges, the likelier that one looks better by luck, and the winner's figure is "
            "too high on average. 'p adjusted' takes this into account, status and reason do not; "
            "labels that none has seen settle it."
        )
        earlier = count_looks(self.data, *tested)[1]
        notes = [*self.data.pairs.notes, *self.notes, several * (len(tested) > 1), earlier]
        return tuple(note for note in notes if note)


def _row(comparison: Comparison) -> dict[str, Any]:
    """Return the figures of a reference, which takes one call a judgement."""
    row: dict[str, Any] = {
        "status": "reference",
        "n": comparison.n,
        "fixed": len(comparison.fixed),
        "broken": len(comparison.broken),
        "p": comparison.p_value,
        "later calls": 1,
        "reason": "",
    }
    for name in ("accuracy", "kappa", "mean distance"):
        prefix = "" if name == "accuracy" else f"{name} "
        row[name], (row[f"{prefix}low"], row[f"{prefix}high"]) = comparison.after.measured[name]
    return row


# -- who takes part ---------------------------------------------------------------------------

REFERENCES: Final = ("original", "majority label", "few-shot")  # beside the optimizers
MEMALIGN: Final = "MLflow MemAlign"


def named_optimizers(
    judge: Judge,
    wanted: Any,
    seed: int,
    embedding_model: str | None,
    reflection_model: str | None = None,
    reflection_base_url: str | None = None,
) -> dict[str, AlignmentOptimizer]:
    """Return optimizers by name, which reflect with the judge's model where none is given."""
    from mlflow.genai.judges import optimizers

    model = reflection_model or judge.model
    known: dict[str, AlignmentOptimizer] = {
        "workbench SIMBA": SIMBA(
            reflection_model, base_url=reflection_base_url, seed=seed, progress=False
        ),
        # MLflow takes a seed of 0 for none, and 42 in its place.
        "MLflow SIMBA": optimizers.SIMBAAlignmentOptimizer(model=model, seed=seed),
        "MLflow GEPA": optimizers.GEPAAlignmentOptimizer(model=model),
    }
    if embedding_model:
        known[MEMALIGN] = optimizers.MemAlignOptimizer(
            reflection_lm=model, embedding_model=embedding_model
        )
    if isinstance(wanted, str):
        wanted = [name.strip() for name in wanted.split(",") if name.strip()]
    elif not isinstance(wanted, (Iterable, type(None))):
        wanted = [wanted]
    named: Any = known if wanted is None else wanted
    if not isinstance(named, Mapping):
        names = [one if isinstance(one, str) else type(one).__name__ for one in named]
        before = [names[:i].count(name) for i, name in enumerate(names)]
        names = [f"{name} ({n + 1})" if n else name for name, n in zip(names, before, strict=True)]
        named = dict(zip(names, wanted, strict=True))
    found = {n: known.get(one, one) if isinstance(one, str) else one for n, one in named.items()}
    wrong = [one for one in found.values() if not isinstance(one, AlignmentOptimizer)]
    wrong += [name for name in found if name in REFERENCES]  # which every comparison shows
    if wrong or not found:
        raise ArgumentError(
            f"optimizers holds {wrong[0] if wrong else 'nothing'!r}. Give any AlignmentOptimizer, "
            f"under names but {', '.join(REFERENCES)}, or some of {', '.join(known)}; with "
            f"embedding_model= also {MEMALIGN}."
        )
    return found


def _few_shot(data: AlignmentData) -> Judge:
    """Return the judge with as many items of train as SIMBA shows, the labels in turn."""
    judge, split = data.judge, data.split
    items = [case.item for case in labelled_cases(split.train, data)]
    # By content, so that the same items are shown in every store.
    items.sort(key=lambda item: item_digest(item.example))
    drawn = sample(items, Settings.max_examples, random.Random(split.seed))
    base = Candidate(options(judge)["instructions"])
    shown = base.with_examples(drawn, judge_fields(judge), len(drawn))
    return with_instructions(judge, shown.text)
