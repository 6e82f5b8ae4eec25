"""Align a judge with human labels, and prove on held-out pairs that it got better."""

from __future__ import annotations

import time
import warnings
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.genai.judges.base import AlignmentOptimizer

from workbench.alignment.external import requests_of_a_verdict
from workbench.alignment.gate import Gate, decide, majority_note
from workbench.alignment.heldout import (
    HeldOutTest,
    TestSetUse,
    score_held_out,
    test_set_tags,
    total,
    usable,
)
from workbench.alignment.learning import AlignmentData, check_one_budget, learn
from workbench.alignment.lineage import lineage_files, origin_note
from workbench.alignment.preflight import preflight, probed, to_keep
from workbench.alignment.result import Alignment, Learned
from workbench.alignment.runs import (
    AlignmentRun,
    Watch,
    finish_run,
    instruction_files,
    params_before_test,
    tags_before_test,
)
from workbench.errors import ArgumentError, one_of
from workbench.formatting import say
from workbench.judging.judge import fingerprint
from workbench.judging.requests import judge_examples
from workbench.judging.verdicts import Verdict
from workbench.metrics.annotators import AnnotatorAgreement, annotator_agreement
from workbench.metrics.comparison import Comparison, compare
from workbench.models.budget import Budget
from workbench.models.cache import AnswerCache
from workbench.models.runner import Runner
from workbench.pairing.pairs import dataset_digest
from workbench.pairing.splits import Groups
from workbench.simba.items import labelled_items
from workbench.simba.optimizer import SIMBA
from workbench.simba.search import FEW
from workbench.store.traces import fetch_traces, item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


def align(
    judge: Judge,
    pairs_or_traces: Any = None,
    optimizer: AlignmentOptimizer | None = None,
    *,
    seed: int = 0,
    test_size: float = 0.4,
    groups: Groups = None,
    budget: Budget | int | None = None,
    gate: Gate = "better",
    max_failure_share: float | None = None,
    progress: bool = True,
    watch: Watch | None = None,
) -> Alignment:
    """Align a judge with human labels and prove it on pairs that nothing was learned from.

    The pairs are split into train, dev and test, and a preflight table says what will happen. The
    optimizer learns on train and selects on dev. Original and proposed judge are then scored once
    on test, and the proposed judge is taken only if it passes the gate.

    A judge that was aligned before keeps, rewrites or drops its rules as newer labels demand.
    These count four times as much as labels that it learned from before, and it is tested on
    traces that it did not learn from.

    The alignment is logged as an MLflow run, which begins before the held-out test, so that each
    use of the held-out pairs is counted, an interrupted one included. Answers are cached: the
    same call resumes an interrupted alignment and pays nothing twice.

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
        same inputs together, or equal items where nearly all inputs are the same. Equal items
        are never separated. Traces that the judge learned from are never tested on.
    budget
        Model calls at most, or a `workbench.Budget`, which `assess` can share. It covers the
        first call, learning, and the held-out test, for which its calls and a tenth more are
        reserved. Cached answers cost nothing. When it is used up, `SIMBA` ends with the best
        instructions so far, and any other optimizer is stopped with a `BudgetError`. A budget
        given to `SIMBA` itself covers learning alone; give only one of the two.
    gate
        ``"better"``: agreement on test must rise; ``"significant"``: and the rise must be
        significant at 5 % by McNemar's test; ``"none"``: the proposed judge is taken as it is.
        The first two also reject a judge that is no better than always giving one value.
    max_failure_share
        Share of lost answers, in [0, 1], above which the optimizer is stopped; it holds for its
        judge, reflection and embedding calls each. None is 0.05, or a given `SIMBA`'s own.
    progress
        Show the preflight table and progress bars.
    watch
        Receives the stages and can end the alignment (see `workbench.align_in_background`).

    Raises
    ------
    TooFewPairsError, NoLabelsError, NoVerdictsError, PairingError
        When there is too little, or the wrong thing, to learn from.
    ArgumentError
        When ``budget`` is given both here and to `SIMBA`, among others.
    ModelError
        When the judge, the reflection model or the embedding model does not answer; the judge
        stays as it was.
    CancelledError
        When ``watch`` ended it; no held-out test was made.
    """
    one_of("gate", gate, ["better", "significant", "none"])
    if max_failure_share is not None and not 0 <= max_failure_share <= 1:
        raise ArgumentError(f"max_failure_share={max_failure_share} must lie in [0, 1].")
    if optimizer is None:
        optimizer = SIMBA(seed=seed, progress=progress)
    check_one_budget(optimizer, budget)
    started = time.monotonic()
    watch = watch or Watch()
    data = AlignmentData.of(judge, pairs_or_traces, groups, test_size, seed, watch.location)
    people = annotator_agreement(data.pairs) if data.pairs.votes.shape[1] > 1 else None
    budgets = _Budgets.of(judge, optimizer, budget)

    watch.enter("preflight")
    probe = _probe(judge, optimizer, data, budgets.total)
    checks = _preflight(judge, optimizer, data, budgets, probe, people)
    if progress:
        say(checks.to_string(index=False))

    watch.enter("learning", preflight=checks)
    requests = requests_of_a_verdict(optimizer)
    reserve = to_keep(judge, len(data.split.test), probe, budgets.total, requests=requests)
    with budgets.total.keeping(**reserve):
        learned = learn(
            judge,
            optimizer,
            data.split,
            data.by_id,
            budgets.learning,
            earlier=data.lineage.unchanged,
            max_failure_share=max_failure_share,
            progress=progress,
            watch=watch,
        )

    watch.enter("testing")
    name = type(optimizer).__name__
    with AlignmentRun(watch.location, f"align {judge.name}") as run:
        use = _begin_run(run, judge, learned.judge, data, optimizer=name, seed=seed)
        tested = score_held_out(
            judge, learned.judge, data.split.test, data.by_id, progress, budgets.total
        )
        comparison = compare(tested.before, tested.after, seed=seed)
        result = _result(
            judge, data, probe, learned, tested, comparison, gate, use,
            optimizer=name, seed=seed, annotators=people, preflight=checks,
            seconds=time.monotonic() - started,
        )  # fmt: skip
        return _finish_run(run, result)


@dataclass(frozen=True)
class _Budgets:
    """``total`` for the whole alignment, and the one that learning spends, often the same."""

    total: Budget
    learning: Budget

    @classmethod
    def of(
        cls, judge: Judge, optimizer: AlignmentOptimizer, budget: Budget | int | None
    ) -> _Budgets:
        total = Budget.of(budget)
        if not isinstance(optimizer, SIMBA):
            return cls(total, total)
        learning = total if budget is not None else Budget.of(optimizer.budget)
        learning.check(judge.model, optimizer.model or judge.model)
        return cls(total, learning)


def _probe(
    judge: Judge, optimizer: AlignmentOptimizer, data: AlignmentData, budget: Budget
) -> Verdict:
    # Chosen by content, so that it is the same item in every store.
    first = min((data.by_id[i] for i in data.split.train.trace_ids), key=item_digest)
    cache = optimizer.cache if isinstance(optimizer, SIMBA) else True
    return probed(judge, first, data.pairs, budget=budget, cache=cache)


def _preflight(
    judge: Judge,
    optimizer: AlignmentOptimizer,
    data: AlignmentData,
    budgets: _Budgets,
    probe: Verdict,
    people: AnnotatorAgreement | None,
) -> pd.DataFrame:
    simba = optimizer if isinstance(optimizer, SIMBA) else None
    return preflight(
        judge,
        data.pairs,
        data.split,
        data.by_id,
        probe,
        people,
        settings=simba.settings if simba else None,
        reflection_model=simba.model if simba else None,
        budget=budgets.learning,
        purse=budgets.total,
    )


def _begin_run(
    run: AlignmentRun, judge: Judge, proposed: Judge, data: AlignmentData, **settings: Any
) -> TestSetUse:
    """Log the test before it is made, and count how often its items were used."""
    test, judges = data.split.test, (fingerprint(judge), fingerprint(proposed))
    tags = tags_before_test(judge, proposed, data.pairs, data.split)
    use = TestSetUse()
    if judges[0] != judges[1]:
        use = TestSetUse.of(test, data.by_id, judges[1], location=run.location)
        tags |= test_set_tags(test, data.by_id)
    run.begin(
        tags,
        params_before_test(judge, data.split, **settings),
        {**lineage_files(data.split, data.by_id), **instruction_files(judge, proposed)},
    )
    return use


def _result(
    judge: Judge,
    data: AlignmentData,
    probe: Verdict,
    learned: Learned,
    tested: HeldOutTest,
    comparison: Comparison,
    gate: Gate,
    use: TestSetUse,
    **settings: Any,
) -> Alignment:
    """Decide, and put everything together; ``settings`` are further fields of the result."""
    fingerprints = {"original": fingerprint(judge), "aligned": fingerprint(learned.judge)}
    same = fingerprints["aligned"] == fingerprints["original"]
    train = data.split.train
    status, reason = decide(
        comparison, gate, same, learned.stopped, tested.lost, train=train, after=tested.after
    )
    if status == "improved" and len(data.pairs) < FEW:
        reason += f" With {len(data.pairs)} pairs in all this is a hint and no proof."
    notes = (
        *data.pairs.notes,
        origin_note(judge, data.lineage),
        *learned.notes,
        *tested.notes,
        "" if same else majority_note(train, tested.after),
        use.note,
    )
    return Alignment(
        judge=learned.judge if status == "improved" else judge,
        status=status,
        reason=reason,
        original=judge,
        proposed=learned.judge,
        pairs=data.pairs,
        split=data.split,
        test_before=tested.before,
        test_after=tested.after,
        before=comparison.before,
        after=comparison.after,
        comparison=comparison,
        history=learned.history,
        evidence=learned.evidence,
        examples=data.by_id,
        calls=probe.calls + learned.calls + tested.calls,
        reflection_calls=learned.reflection_calls + learned.embedding_calls + tested.other_calls,
        tokens=total(learned.tokens, tested.tokens, probe.input_tokens, probe.output_tokens),
        cost=total(learned.cost, tested.cost, probe.cost),
        fingerprints=fingerprints,
        dataset_digest=dataset_digest(data.pairs),
        looks=use.most,
        failures=learned.failures,
        reflection_failures=learned.reflection_failures,
        notes=tuple(note for note in notes if note),
        **settings,
    )


def _finish_run(run: AlignmentRun, alignment: Alignment) -> Alignment:
    """Log the outcome; a store that refuses it is warned of, and the result is kept."""
    finish_run(run, alignment)
    if not run.fault:
        return replace(alignment, run_id=run.run_id)
    message = f"The alignment could not be logged as an MLflow run: {run.fault}"
    warnings.warn(message, stacklevel=3)
    return replace(alignment, notes=(*alignment.notes, message))


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
    items, scale = labelled_items(original, fetch_traces(traces), least=1)
    with AnswerCache() as cache, Runner(cache=cache, proven=True) as runner:
        verdicts = [
            judge_examples(
                judge,
                [item.example for item in items],
                runner,
                scale=scale,
                progress=f"judging with the {which} judge" if progress else None,
            )
            for which, judge in (("original", original), ("aligned", aligned))
        ]
    rated = [
        (first.value == item.label, second.value == item.label)
        for item, first, second in zip(items, *verdicts, strict=True)
        if usable(first, scale) and usable(second, scale)
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
