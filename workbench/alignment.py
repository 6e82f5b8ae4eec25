"""Alignment: preflight, optimise, and a held-out gate that says whether the judge got better."""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from html import escape
from typing import TYPE_CHECKING, Any, Literal

import mlflow
import pandas as pd
from mlflow.entities import AssessmentSource, Feedback, Trace
from mlflow.exceptions import MlflowException
from mlflow.genai.judges.base import AlignmentOptimizer
from mlflow.genai.judges.instructions_judge import InstructionsJudge

from workbench import store
from workbench.budget import Budget
from workbench.cache import AnswerCache
from workbench.calls import run
from workbench.errors import ArgumentError, PairingError, TooFewPairsError, one_of
from workbench.judge import Verdict, fingerprint, options, with_instructions
from workbench.metrics import (
    Agreement,
    AnnotatorAgreement,
    Comparison,
    annotator_agreement,
    compare,
)
from workbench.pairing import Groups, Pairs, Split, dataset_digest, pair
from workbench.preflight import check_pairs, preflight
from workbench.progress import say
from workbench.reflection import Item
from workbench.rendering import html_table
from workbench.scale import ABSTAIN
from workbench.simba import SIMBA, labelled_items
from workbench.splits import default_groups, with_equal_items
from workbench.traces import Example, examples

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

Gate = Literal["better", "significant", "none"]
Status = Literal["improved", "unchanged", "rejected"]


@dataclass(frozen=True, repr=False)
class Alignment:
    """What an alignment did.

    Attributes
    ----------
    judge
        The aligned judge; the original one unless ``status`` is ``"improved"``.
    status
        ``"improved"``, ``"unchanged"`` (nothing better was found) or ``"rejected"`` (what was
        found did not pass the gate on held-out pairs); ``reason`` says it in words.
    original, proposed
        The judge before, and the one that was put to the test.
    pairs, split
        What was learned from, and its parts; ``annotators`` among themselves, None for one.
    test_before, test_after
        Held-out pairs with the verdicts of the original and of the proposed judge.
    before, after, comparison
        Agreement of both on them, and the comparison.
    history
        One row a candidate (see `workbench.simba.Optimised`); empty for other optimizers.
    evidence
        Learned rule -> ids of the train traces whose disagreement it was made from.
    calls, reflection_calls, tokens, cost
        What was spent; None where it is not known. Calls count the held-out test as well.
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
    run_id: str | None = None
    notes: tuple[str, ...] = field(default=())

    def __repr__(self) -> str:
        return f"<Alignment of {self.original.name!r}: {self.status}. {self.reason}>"

    def _repr_html_(self) -> str:
        notes = "".join(f"<div>{escape(note)}</div>" for note in self.notes)
        head = f"<div><b>{escape(self.status)}</b>: {escape(self.reason)}</div>"
        return head + html_table(self.comparison.table) + notes


def align(
    judge: Judge,
    pairs_or_traces: Any = None,
    optimizer: AlignmentOptimizer | None = None,
    *,
    seed: int = 0,
    test_size: float = 0.4,
    groups: Groups = None,
    budget: int | None = None,
    gate: Gate = "better",
    progress: bool = True,
) -> Alignment:
    """Align a judge with human labels and prove it on pairs that nothing was learned from.

    Preflight says what will happen; the pairs are split; the optimizer learns on train and
    selects on dev; original and proposed judge are scored once on test; the proposed judge is
    taken only if it passes the gate. The whole is logged as an MLflow run. Answers are cached,
    so the same call resumes an interrupted alignment and pays nothing twice.

    Parameters
    ----------
    judge
        A judge made from instructions, which has judged the labelled traces (`assess`).
    pairs_or_traces
        `Pairs`, or what `pair` takes as traces.
    optimizer
        `SIMBA` when None, or any MLflow ``AlignmentOptimizer``.
    seed
        Of the split and, where ``optimizer`` is None, of SIMBA.
    test_size
        Share of the pairs held out, in (0, 1).
    groups
        What must stay on one side of the split (see `Pairs.split`). None keeps items with the
        same inputs together, or, where hardly any differ in these, items equal in all. Equal
        items are never separated. What the judge was aligned on before is never tested on.
    budget
        Model calls at most while learning (SIMBA only; takes the place of the optimizer's own).
    gate
        ``"better"``: agreement on test must rise; ``"significant"``: and McNemar's test must
        tell the difference at 5 %; ``"none"``: the proposed judge is taken as it is.
    progress
        Show the preflight table and progress bars.

    Raises
    ------
    TooFewPairsError, NoLabelsError, NoVerdictsError, PairingError
        When there is too little, or the wrong thing, to learn from.
    ModelError
        When the judge or the reflection model does not answer; the judge stays as it was.
    """
    one_of("gate", gate, ["better", "significant", "none"])
    started = time.monotonic()
    pairs = _own_pairs(judge, pairs_or_traces)
    options(judge)  # raises for judges that are not made from instructions
    check_pairs(pairs)
    by_id = {example.trace_id: example for example in examples(pairs.trace_ids)}
    learned_on = trained_on(judge)
    split = _split(pairs, by_id, groups, learned_on, test_size, seed)
    annotators = _annotators(pairs)
    if optimizer is None:
        optimizer = SIMBA(seed=seed, budget=budget, progress=progress)
    elif budget is not None and not isinstance(optimizer, SIMBA):
        raise ArgumentError(
            f"budget={budget} cannot be kept by {type(optimizer).__name__}. Leave it out, or use "
            "workbench.SIMBA."
        )
    if isinstance(optimizer, SIMBA) and budget is None:
        budget = optimizer.budget
    checks, probe = preflight(
        judge,
        pairs,
        split,
        by_id[split.train.trace_ids[0]],
        annotators,
        settings=optimizer.settings if isinstance(optimizer, SIMBA) else None,
        budget=budget,
    )
    if progress:
        say(checks.to_string(index=False))

    learned = _learn(judge, optimizer, split, by_id, budget)
    tested = _test(judge, learned.judge, split.test, by_id, progress)
    comparison = compare(tested.before, tested.after, seed=seed)
    same = fingerprint(learned.judge) == fingerprint(judge)
    status, reason = _decide(comparison, gate, same, learned.stopped, tested.lost)
    alignment = Alignment(
        judge=learned.judge if status == "improved" else judge,
        status=status,
        reason=reason,
        original=judge,
        proposed=learned.judge,
        optimizer=type(optimizer).__name__,
        pairs=pairs,
        split=split,
        test_before=tested.before,
        test_after=tested.after,
        before=comparison.before,
        after=comparison.after,
        comparison=comparison,
        preflight=checks,
        history=learned.history,
        evidence=learned.evidence,
        annotators=annotators,
        examples=by_id,
        seed=seed,
        calls=probe.calls + learned.calls + tested.calls,
        reflection_calls=learned.reflection_calls,
        tokens=_sum(learned.tokens, tested.tokens, probe.input_tokens, probe.output_tokens),
        cost=_sum(learned.cost, tested.cost, probe.cost),
        seconds=time.monotonic() - started,
        fingerprints={"original": fingerprint(judge), "aligned": fingerprint(learned.judge)},
        dataset_digest=dataset_digest(pairs),
        notes=(*pairs.notes, *learned.notes, *tested.notes),
    )
    return _logged(alignment)


def alignment_improvement(
    original: Judge, aligned: Judge, traces: Any = None, *, progress: bool = True
) -> dict[str, Any]:
    """Accuracy of two judges against the human labels on traces.

    Parameters
    ----------
    original, aligned
        Both are called (answers known already come from the cache); nothing is logged.
    traces
        Labelled under the original's name; best traces that neither was aligned on.

    Returns
    -------
    dict
        ``original_accuracy``, ``aligned_accuracy`` in [0, 1], ``improvement`` (their
        difference) and ``n``, the items that both judges rated; nan where ``n`` is 0.
    """
    items, scale = labelled_items(original, store.fetch_traces(traces), least=1)
    cache = AnswerCache()
    try:
        verdicts = [
            run(
                judge,
                [item.example for item in items],
                cache=cache,
                scale=scale,
                progress=f"judging with the {which} judge" if progress else None,
            )
            for which, judge in (("original", original), ("aligned", aligned))
        ]
    finally:
        cache.close()
    rated = [
        (first.value == item.label, second.value == item.label)
        for item, first, second in zip(items, *verdicts, strict=True)
        if _usable(first) and _usable(second)
    ]
    n = len(rated)
    before = sum(first for first, _ in rated) / n if n else float("nan")
    after = sum(second for _, second in rated) / n if n else float("nan")
    return {
        "original_accuracy": before,
        "aligned_accuracy": after,
        "improvement": after - before,
        "n": n,
    }


# -- the stages -----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Learned:
    judge: Judge
    calls: int = 0
    reflection_calls: int = 0
    tokens: int | None = None
    cost: float | None = None
    stopped: str = ""
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    evidence: Mapping[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Tested:
    before: Pairs
    after: Pairs
    calls: int = 0
    tokens: int | None = None
    cost: float | None = None
    lost: float = 0.0
    notes: tuple[str, ...] = ()


def _own_pairs(judge: Judge, pairs_or_traces: Any) -> Pairs:
    if not isinstance(pairs_or_traces, Pairs):
        return pair(judge, pairs_or_traces)
    if pairs_or_traces.fingerprint != fingerprint(judge):
        raise PairingError(
            f"These pairs hold verdicts of another judge than {judge.name!r} as it is now. Run "
            "workbench.assess(judge, traces) and workbench.pair(judge, traces) with this one."
        )
    return pairs_or_traces


def trained_on(judge: Judge) -> set[str]:
    """Traces that this judge, or one that it was aligned from, learned or was selected on.

    Read from the alignments that are logged in the active experiment.
    """
    learned: set[str] = set()
    todo, seen = [fingerprint(judge)], set[str]()
    while todo:
        mark = todo.pop()
        seen.add(mark)
        for logged in mlflow.search_runs(
            filter_string=f"tags.`workbench.fingerprint.aligned` = '{mark}'", output_format="list"
        ):
            parent = logged.data.tags.get("workbench.fingerprint.original", mark)
            if parent == mark:
                continue  # that alignment found nothing, so nothing of it is in the judge
            parts = mlflow.artifacts.load_dict(f"runs:/{logged.info.run_id}/split.json")["traces"]
            learned |= {*parts["train"], *parts["dev"]}
            if parent not in seen:
                todo.append(parent)
    return learned


def _split(
    pairs: Pairs,
    by_id: Mapping[str, Example],
    groups: Groups,
    learned_on: set[str],
    test_size: float,
    seed: int,
) -> Split:
    items = [by_id[i] for i in pairs.trace_ids]
    named = groups if isinstance(groups, str) else None
    kept = default_groups(items) if groups is None else pairs.group_of(groups)
    kept = with_equal_items(kept, items)
    try:
        split = pairs.split(test_size=test_size, seed=seed, groups=kept, never_test=learned_on)
    except ArgumentError:
        if not learned_on & set(pairs.trace_ids):
            raise
        raise TooFewPairsError(
            "This judge was aligned on these traces before, and what a judge learned on is never "
            "tested on. Label new traces and align with those as well, or align the judge that "
            "it came from."
        ) from None
    return replace(split, groups=named)


def _annotators(pairs: Pairs) -> AnnotatorAgreement | None:
    votes = pairs.votes
    return annotator_agreement(pairs) if votes.shape[1] > 1 else None


def _items(pairs: Pairs, by_id: Mapping[str, Example]) -> list[Item]:
    rows = pairs.table.to_dict("records")
    return [Item(by_id[row["trace_id"]], row["human"], row["human_rationale"]) for row in rows]


def _learn(
    judge: Judge,
    optimizer: AlignmentOptimizer,
    split: Split,
    by_id: Mapping[str, Example],
    budget: int | None,
) -> _Learned:
    if isinstance(optimizer, SIMBA):
        known = [
            Verdict(
                row["trace_id"], row["judge"], row["judge_rationale"], fingerprint=part.fingerprint
            )
            for part in (split.train, split.dev)
            for row in part.table.to_dict("records")
        ]
        proposed = optimizer.learn(
            judge,
            _items(split.train, by_id),
            _items(split.dev, by_id),
            scale=split.train.scale,
            known=known,
            budget=Budget(budget),
        )
        found = optimizer.last
        assert found is not None
        return _Learned(
            judge=proposed,
            calls=found.judge_calls,
            reflection_calls=found.reflection_calls,
            tokens=found.tokens,
            cost=found.cost,
            stopped=found.stopped,
            history=found.history,
            evidence=found.evidence,
        )
    traces = [_with_consensus(part, t) for part in (split.train, split.dev) for t in _traces(part)]
    with _options_kept(optimizer, judge):
        proposed = judge.align(traces, optimizer)
    if type(proposed) is InstructionsJudge:
        proposed = with_instructions(judge, proposed.instructions)
    note = f"The calls that {type(optimizer).__name__} made while learning are not counted."
    return _Learned(judge=proposed, notes=(note,))


def _traces(pairs: Pairs) -> list[Trace]:
    return store.fetch_traces(pairs.trace_ids) if len(pairs) else []


def _with_consensus(pairs: Pairs, trace: Trace) -> Trace:
    """The trace with one human label: the consensus that the judge is tested on as well.

    MLflow's optimizers would choose one among several annotators' labels by a rule of their own.
    """
    rows = pairs.table.set_index("trace_id")
    row = rows.loc[trace.info.trace_id]
    label = Feedback(
        name=pairs.name,
        value=row["human"],
        rationale=row["human_rationale"] or None,
        source=AssessmentSource(source_type="HUMAN", source_id="consensus"),
        trace_id=trace.info.trace_id,
    )
    info = copy.copy(trace.info)
    others = [a for a in info.assessments if a.name != pairs.name or a.expectation is not None]
    info.assessments = [*others, label]
    return Trace(info, trace.data)


@contextmanager
def _options_kept(optimizer: AlignmentOptimizer, judge: Judge) -> Iterator[None]:
    """Let MLflow's dspy optimizers try candidates with all options of the judge.

    They rebuild the judge from name, instructions, model and type alone, and would so call the
    provider's public address where the judge has a base URL of its own.
    """
    make = getattr(optimizer, "_create_judge_from_dspy_program", None)
    if make is None:
        yield
        return

    def keeping(optimized_program: Any, original_judge: Judge) -> Judge:
        return with_instructions(judge, make(optimized_program, original_judge).instructions)

    optimizer._create_judge_from_dspy_program = keeping
    try:
        yield
    finally:
        del optimizer._create_judge_from_dspy_program


def _test(
    original: Judge, proposed: Judge, test: Pairs, by_id: Mapping[str, Example], progress: bool
) -> _Tested:
    """Score both judges once on test: the original's verdicts are known from the pairs."""
    if fingerprint(proposed) == fingerprint(original):
        return _Tested(test, test)
    cache = AnswerCache()
    try:
        verdicts = run(
            proposed,
            [by_id[i] for i in test.trace_ids],
            cache=cache,
            scale=test.scale,
            progress="testing on held-out traces" if progress else None,
        )
    finally:
        cache.close()
    usable = {v.trace_id: (v.value, v.rationale) for v in verdicts if _usable(v)}
    lost = len(verdicts) - len(usable)
    notes = (
        (f"The proposed judge gave no usable verdict on {lost} of {len(verdicts)} held-out traces;"
         " both judges are compared on the others.",)
        if lost
        else ()
    )  # fmt: skip
    after = test.with_verdicts(usable, fingerprint(proposed))
    before = test.subset(after.trace_ids)
    return _Tested(
        before,
        after,
        calls=sum(v.calls for v in verdicts),
        tokens=_sum(*(n for v in verdicts for n in (v.input_tokens, v.output_tokens))),
        cost=_sum(*(v.cost for v in verdicts)),
        lost=lost / len(verdicts),
        notes=notes,
    )


def _usable(verdict: Verdict) -> bool:
    return verdict.error is None and verdict.value not in ("N/A", ABSTAIN)


MOST_LOST = 0.05
"""Share of held-out traces without a usable verdict above which a judge is not taken."""


def _decide(
    comparison: Comparison, gate: Gate, same: bool, stopped: str, lost: float
) -> tuple[Status, str]:
    if same:
        why = f" ({stopped})" if stopped else ""
        return "unchanged", f"No better instructions were found{why}; the judge stays as it was."
    said = comparison.summary
    if comparison.n == 0:
        return "rejected", "The proposed judge gave no usable verdict; the original judge stays."
    if gate == "none":
        return "improved", f"{said} The gate is off, so the judge is taken as it is."
    if lost > MOST_LOST:
        # A judge that answers only where it is sure would look better than it is.
        return "rejected", (
            f"The proposed judge gave no usable verdict on {lost:.0%} of the held-out traces, more "
            f"than {MOST_LOST:.0%}; the original judge stays. {said}"
        )
    if not comparison.improved:
        return "rejected", f"{said} Not better on held-out pairs; the original judge stays."
    upwards = len(comparison.fixed) > len(comparison.broken)
    if gate == "significant" and not (comparison.significant and upwards):
        return "rejected", f"{said} Not significant; the original judge stays."
    return "improved", " ".join([said, *comparison.notes])


def _sum(*amounts: Any) -> Any:
    """Sum of the known amounts; None where none is known."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known else None


def _logged(alignment: Alignment) -> Alignment:
    """Log the alignment as an MLflow run; where that fails the result is kept and says so."""
    try:
        run_id = _log_run(alignment)
    except (MlflowException, OSError) as error:
        message = f"The alignment could not be logged as an MLflow run: {error}"
        warnings.warn(message, stacklevel=3)
        return replace(alignment, notes=(*alignment.notes, message))
    return replace(alignment, run_id=run_id)


def _log_run(alignment: Alignment) -> str:
    nested = mlflow.active_run() is not None
    name = f"align {alignment.original.name}"
    with mlflow.start_run(run_name=name, nested=nested) as active:
        mlflow.log_params(
            {
                "judge": alignment.original.name,
                "model": getattr(alignment.original, "model", ""),
                "optimizer": alignment.optimizer,
                "seed": alignment.seed,
                "pairs": len(alignment.pairs),
                "train": len(alignment.split.train),
                "dev": len(alignment.split.dev),
                "test": len(alignment.split.test),
            }
        )
        mlflow.set_tags(
            {
                "workbench.status": alignment.status,
                "workbench.fingerprint.original": alignment.fingerprints["original"],
                "workbench.fingerprint.aligned": alignment.fingerprints["aligned"],
                "workbench.dataset_digest": alignment.dataset_digest,
                "workbench.split_digest": alignment.split.digest,
            }
        )
        figures = {
            "calls": float(alignment.calls),
            "reflection_calls": float(alignment.reflection_calls),
            "seconds": alignment.seconds,
        }
        for when, measured in (("before", alignment.before), ("after", alignment.after)):
            figures[f"{when}_accuracy"] = measured.accuracy
            figures[f"{when}_kappa"] = measured.kappa
        # An undefined statistic is no number, and MLflow plots would show it as one.
        mlflow.log_metrics({k: v for k, v in figures.items() if v == v})
        mlflow.log_dict(alignment.split.to_dict(), "split.json")
        mlflow.log_dict(alignment.comparison.to_dict(), "comparison.json")
        mlflow.log_text(alignment.preflight.to_csv(index=False), "preflight.csv")
        mlflow.log_text(alignment.history.to_csv(index=False), "history.csv")
        mlflow.log_text(alignment.original.instructions, "instructions/original.txt")
        mlflow.log_text(alignment.proposed.instructions, "instructions/proposed.txt")
        return str(active.info.run_id)
