"""Align a judge with human labels, and prove on held-out pairs that it got better."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlflow.genai.judges.base import AlignmentOptimizer

from workbench.alignment.external import propose, requests_of_a_verdict
from workbench.alignment.gate import Gate, decide, majority_note
from workbench.alignment.heldout import (
    AlignmentData,
    HeldOutTest,
    TestSetUse,
    begin_test,
    score_held_out,
    usable,
)
from workbench.alignment.preflight import preflight, probed, to_keep
from workbench.alignment.result import Alignment, Learned
from workbench.alignment.runs import AlignmentRun, Watch, finish_run, origin_note, warn_of_faults
from workbench.errors import ArgumentError, one_of
from workbench.formatting import say
from workbench.judging.judge import fingerprint
from workbench.judging.requests import judge_examples
from workbench.judging.verdicts import Verdict
from workbench.metrics.annotators import annotator_agreement
from workbench.metrics.comparison import compare
from workbench.models.budget import Budget, total
from workbench.models.cache import AnswerCache
from workbench.models.runner import Runner
from workbench.pairing.pairs import Pairs, Split, dataset_digest
from workbench.pairing.splits import Groups
from workbench.simba.items import Item, labelled_items
from workbench.simba.optimizer import SIMBA
from workbench.simba.search import FEW
from workbench.store.traces import Example, fetch_traces, item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

EARLIER_WEIGHT = 0.25
"""Weight of a label that the judge learned from before; a newer one has 1."""

MAX_FAILURE_SHARE = 0.05
"""Default share of lost answers above which an optimizer is stopped."""


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
    split = data.split
    people = annotator_agreement(data.pairs) if data.pairs.votes.shape[1] > 1 else None
    whole, learning = _budgets(judge, optimizer, budget)

    watch.enter("preflight")
    simba = optimizer if isinstance(optimizer, SIMBA) else None
    # Chosen by content, so that it is the same item in every store.
    first = min((data.by_id[i] for i in split.train.trace_ids), key=item_digest)
    probe = probed(judge, first, data.pairs, budget=whole, cache=simba.cache if simba else True)
    requests = requests_of_a_verdict(optimizer)
    reserved = to_keep(judge, len(split.test), probe, whole, requests=requests)
    checks = preflight(
        judge, data.pairs, split, data.by_id, probe, people,
        simba=simba, budget=learning, whole=learning is whole,
    )  # fmt: skip
    if progress:
        say(checks.to_string(index=False))

    watch.enter("learning", preflight=checks)
    with whole.keeping(**reserved):
        learned = learn(
            judge, optimizer, split, data.by_id, learning,
            earlier=data.lineage.unchanged, max_failure_share=max_failure_share, watch=watch,
        )  # fmt: skip

    watch.enter("testing")
    name = type(optimizer).__name__
    with AlignmentRun(watch.location, f"align {judge.name}") as run:
        use = begin_test(run, judge, learned.judge, data, optimizer=name, seed=seed)
        tested = score_held_out(judge, learned.judge, split.test, data.by_id, progress, whole)
        result = _result(
            judge, data, probe, learned, tested, gate, use,
            seed=seed, optimizer=name, annotators=people, preflight=checks,
            seconds=time.monotonic() - started,
        )  # fmt: skip
        finish_run(run, result)
        if faults := warn_of_faults("The alignment", run):
            return replace(result, notes=(*result.notes, *faults))
        return replace(result, run_id=run.run_id)


def check_one_budget(optimizer: AlignmentOptimizer, budget: Budget | int | None) -> None:
    """Raise `ArgumentError` where a `SIMBA` has a budget of its own and another is given."""
    own = optimizer.budget if isinstance(optimizer, SIMBA) else None
    if budget is not None and own is not None and own is not budget:
        raise ArgumentError(
            f"budget={budget!r} is given, and SIMBA has budget={own!r} of its own. Give one of "
            "them: the former is for learning and the held-out test, SIMBA's for learning alone."
        )


def _budgets(
    judge: Judge, optimizer: AlignmentOptimizer, budget: Budget | int | None
) -> tuple[Budget, Budget]:
    """Return the budget of the whole alignment and the one of learning, often the same."""
    whole = Budget.of(budget)
    if not isinstance(optimizer, SIMBA):
        return whole, whole
    learning = whole if budget is not None else Budget.of(optimizer.budget)
    learning.check(judge.model, optimizer.model or judge.model)
    return whole, learning


def _result(
    judge: Judge,
    data: AlignmentData,
    probe: Verdict,
    learned: Learned,
    tested: HeldOutTest,
    gate: Gate,
    use: TestSetUse,
    *,
    seed: int,
    **fields: Any,
) -> Alignment:
    """Decide, and put everything together; ``fields`` are further ones of the result."""
    fingerprints = {"original": fingerprint(judge), "aligned": fingerprint(learned.judge)}
    same = fingerprints["aligned"] == fingerprints["original"]
    train = data.split.train
    comparison = compare(tested.before, tested.after, seed=seed)
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
        seed=seed,
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
        **fields,
    )


# -- learning ---------------------------------------------------------------------------------


def learn(
    judge: Judge,
    optimizer: AlignmentOptimizer,
    split: Split,
    by_id: Mapping[str, Example],
    budget: Budget,
    *,
    earlier: Collection[str],
    max_failure_share: float | None,
    watch: Watch,
) -> Learned:
    """Let the optimizer learn on train and select on dev.

    ``earlier`` are traces whose labels weigh less, since people's standards drift (`SIMBA` only).
    """
    if not isinstance(optimizer, SIMBA):
        share = MAX_FAILURE_SHARE if max_failure_share is None else max_failure_share
        return propose(
            judge, optimizer, split, by_id, budget, max_failure_share=share, stop=watch.stop
        )
    known = [
        Verdict(row["trace_id"], row["judge"], row["judge_rationale"], fingerprint=part.fingerprint)
        for part in (split.train, split.dev)
        for row in part.table.to_dict("records")
    ]

    def items(part: Pairs) -> list[Item]:
        return [
            Item(
                by_id[row["trace_id"]],
                row["human"],
                row["human_rationale"],
                weight=EARLIER_WEIGHT if row["trace_id"] in earlier else 1.0,
                group=split.group_of.get(row["trace_id"], ""),
            )
            for row in part.table.to_dict("records")
        ]

    with watch.learning(optimizer, budget), _failure_share(optimizer, max_failure_share):
        proposed = optimizer.learn(
            judge, items(split.train), items(split.dev),
            scale=split.train.scale, known=known, budget=budget,
        )  # fmt: skip
    found = optimizer.last
    assert found is not None
    return Learned(
        judge=proposed,
        calls=found.judge_calls,
        reflection_calls=found.reflection_calls,
        known=found.known,
        tokens=found.tokens,
        cost=found.cost,
        stopped=found.stopped,
        history=found.history,
        evidence=found.evidence,
        failures=found.failures,
        reflection_failures=found.reflection_failures,
        notes=(*found.notes, *_failure_notes(found.failures, found.reflection_failures)),
    )


@contextmanager
def _failure_share(optimizer: SIMBA, max_failure_share: float | None) -> Iterator[None]:
    """Set the share for the time of the run; None leaves the optimizer's own."""
    own = optimizer.settings
    if max_failure_share is not None:
        optimizer.settings = replace(own, max_failure_share=max_failure_share)
    try:
        yield
    finally:
        optimizer.settings = own


def _failure_notes(verdicts: int, reflections: int) -> Iterator[str]:
    if verdicts:
        yield (
            f"While learning, {verdicts} verdict{'s' * (verdicts != 1)} failed or could not be "
            "read, and counted neither for nor against any candidate."
        )
    if reflections:
        yield (
            f"{reflections} reflection{'s' * (reflections != 1)} failed, was refused or could not "
            "be read, and gave no rule. They are not cached: the same call asks again."
        )


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
    before, after = (sum(right) / n for right in zip(*rated, strict=True)) if n else (math.nan,) * 2
    return {
        "original_accuracy": before,
        "aligned_accuracy": after,
        "improvement": after - before,
        "n": n,
    }
