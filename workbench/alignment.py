"""Alignment: preflight, optimise, and a held-out gate that says whether the judge got better."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.genai.judges.base import AlignmentOptimizer

from workbench import harness, store
from workbench.ancestry import earlier_alignments, origin_note
from workbench.budget import Budget
from workbench.cache import AnswerCache
from workbench.calls import run
from workbench.crossfit import FEW
from workbench.errors import ArgumentError, one_of
from workbench.foreign import requests_of_a_verdict
from workbench.gate import Gate, Status, decide, majority_note
from workbench.judge import fingerprint, options
from workbench.labelled import labelled_items
from workbench.logbook import Logbook, write_before_test
from workbench.looks import Looks, looks, marks
from workbench.metrics import (
    Agreement,
    AnnotatorAgreement,
    Comparison,
    compare,
)
from workbench.pairing import Groups, Pairs, Split, dataset_digest
from workbench.preflight import check_pairs, preflight, probed, to_keep
from workbench.progress import say
from workbench.rendering import html_table
from workbench.simba import SIMBA
from workbench.traces import Example, examples, item_digest
from workbench.watch import Run, Watch

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


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
    looks
        Judges that have been scored on one and the same held-out item until now, at most, this
        one included; 0 where nothing was put to the test (see `workbench.looks`).
    failures, reflection_failures
        Verdicts while learning, and reflections, that never came or could not be read. They count
        neither for nor against anything (`SIMBA` only).
    calls, reflection_calls, tokens, cost
        What was spent; None where it is not known. Calls count the held-out test as well;
        reflection calls of other optimizers count those of their embedding model. Of calls that
        were made together when the budget ended, tokens and cost are left out, and reflections
        are among ``calls``.
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
    looks: int = 0
    failures: int = 0
    reflection_failures: int = 0
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
    budget: Budget | int | None = None,
    gate: Gate = "better",
    max_failure_share: float | None = None,
    progress: bool = True,
    watch: Watch | None = None,
) -> Alignment:
    """Align a judge with human labels and prove it on pairs that nothing was learned from.

    Preflight says what will happen; the pairs are split; the optimizer learns on train and
    selects on dev; original and proposed judge are scored once on test; the proposed judge is
    taken only if it passes the gate. A judge that was aligned before is taken up where it stands:
    its rules are kept, rewritten or dropped as newer labels demand, which count four times as
    much as those that it learned from before, and it is compared with itself on fresh ones. The
    whole is logged as an MLflow run, which begins before the held-out test: each look at held-out
    pairs is counted, also one that was interrupted. Answers are cached, so the same call resumes
    an interrupted alignment and pays nothing twice.

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
        Model calls at most, or a `workbench.Budget`, which `assess` can share, for the whole of
        it: the first call, what the optimizer learns with, and the held-out test, for which its
        calls and a tenth more are kept back, and more the more calls fail. Answers that are known
        already are charged with what they cost when they were paid for, so that the same call
        takes the same course; ``.calls`` tells what was paid now. `SIMBA` ends with what is best
        until then; another optimizer is stopped, which is a `BudgetError`. A budget given to
        `SIMBA` itself is for learning alone; there may be only one of the two.
    gate
        ``"better"``: agreement on test must rise; ``"significant"``: and McNemar's test must
        tell the difference at 5 %; ``"none"``: the proposed judge is taken as it is. The first
        two also reject a judge that tells items apart no better than always giving one value
        (see `workbench.gate`).
    max_failure_share
        Share of lost answers, in [0, 1], above which the optimizer is stopped, of its judge,
        reflection and embedding calls each. None is 0.05, and of a `SIMBA` that is given its own
        setting.
    progress
        Show the preflight table and progress bars.
    watch
        Told of the stages; it can end the alignment (see `workbench.align_in_background`).

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
    if optimizer is not None:
        harness.check_one_budget(optimizer, budget)
    started = time.monotonic()
    watch = watch or Watch()
    pairs = harness.own_pairs(judge, pairs_or_traces)
    options(judge)  # raises for judges that are not made from instructions
    check_pairs(pairs)
    by_id = {example.trace_id: example for example in examples(pairs.trace_ids)}
    earlier = earlier_alignments(judge, by_id, watch.place)
    split = harness.split_pairs(pairs, by_id, groups, earlier, test_size, seed)
    annotators = harness.annotators_of(pairs)
    if optimizer is None:
        optimizer = SIMBA(seed=seed, budget=budget, progress=progress)
    # A budget given here is for all that is done here, one given to SIMBA for what that does.
    purse = Budget.of(budget)
    if isinstance(optimizer, SIMBA):
        learning = purse if budget is not None else Budget.of(optimizer.budget)
        learning.check(judge.model, optimizer.model or judge.model)
    else:
        learning = purse
    watch.enter("preflight")
    probe = probed(
        judge,
        # By content, so that it is the same item in every store.
        min((by_id[i] for i in split.train.trace_ids), key=item_digest),
        pairs,
        budget=purse,
        cache=optimizer.cache if isinstance(optimizer, SIMBA) else True,
    )
    checks = preflight(
        judge,
        pairs,
        split,
        by_id,
        probe,
        annotators,
        settings=optimizer.settings if isinstance(optimizer, SIMBA) else None,
        reflection_model=optimizer.model if isinstance(optimizer, SIMBA) else None,
        budget=learning,
        purse=purse,
    )
    if progress:
        say(checks.to_string(index=False))

    watch.enter("learning", preflight=checks)
    requests = requests_of_a_verdict(optimizer)
    with purse.keeping(**to_keep(judge, len(split.test), probe, purse, requests=requests)):
        learned = harness.learn(
            judge,
            optimizer,
            split,
            by_id,
            learning,
            earlier=earlier.unchanged(pairs),
            max_failure_share=max_failure_share,
            progress=progress,
            watch=watch,
        )
    watch.enter("testing")
    same = fingerprint(learned.judge) == fingerprint(judge)
    aligned = fingerprint(learned.judge)
    book = Logbook(watch.place, f"align {judge.name}")
    seen = Looks() if same else looks(split.test, by_id, aligned, place=watch.place)

    def begin(run: Run) -> None:
        own = {} if same else marks(split.test, by_id, aligned)
        write_before_test(
            run, judge, learned.judge, pairs, split, by_id, own,
            optimizer=type(optimizer).__name__, seed=seed,
        )  # fmt: skip

    with book.kept(begin):
        tested = harness.put_to_test(judge, learned.judge, split.test, by_id, progress, purse)
        comparison = compare(tested.before, tested.after, seed=seed)
        status, reason = decide(
            comparison, gate, same, learned.stopped, tested.lost,
            train=split.train, after=tested.after,
        )  # fmt: skip
    if status == "improved" and len(pairs) < FEW:
        reason += f" With {len(pairs)} pairs in all this is a hint and no proof."
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
        reflection_calls=learned.reflection_calls + learned.embedding_calls + tested.other_calls,
        tokens=harness.total(
            learned.tokens, tested.tokens, probe.input_tokens, probe.output_tokens
        ),
        cost=harness.total(learned.cost, tested.cost, probe.cost),
        seconds=time.monotonic() - started,
        fingerprints={"original": fingerprint(judge), "aligned": aligned},
        dataset_digest=dataset_digest(pairs),
        looks=seen.most,
        failures=learned.failures,
        reflection_failures=learned.reflection_failures,
        notes=tuple(
            filter(
                None,
                (
                    *pairs.notes,
                    origin_note(judge, earlier),
                    *learned.notes,
                    *tested.notes,
                    "" if same else majority_note(split.train, tested.after),
                    seen.note,
                ),
            )
        ),
    )
    return book.finish(alignment)


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
        if harness.usable(first) and harness.usable(second)
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
