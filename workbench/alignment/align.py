"""Align a judge with human labels, and prove on held-out pairs that it got better."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import replace
from functools import partial
from threading import Thread
from typing import Any

import pandas as pd
from mlflow.genai.judges import Judge
from mlflow.genai.judges.base import AlignmentOptimizer

from workbench.alignment.external import propose
from workbench.alignment.heldout import (
    HeldOutTest,
    decide,
    origin_note,
    read_data,
    score_held_out,
)
from workbench.alignment.preflight import labelled_cases, preflight, probed, to_keep
from workbench.alignment.result import Alignment, log_result
from workbench.alignment.runs import AlignmentData, Gate, Watch, count_looks, logged_run
from workbench.errors import ArgumentError, check_share, check_whole, one_of
from workbench.formatting import excerpt, say
from workbench.judging.assessment import check_single
from workbench.judging.judge import fingerprint
from workbench.judging.requests import judge_many
from workbench.judging.verdicts import Verdict
from workbench.metrics.annotators import annotator_agreement
from workbench.models.budget import Budget, usd_per_1000
from workbench.models.cache import AnswerCache
from workbench.models.recording import replayed
from workbench.models.runner import Runner
from workbench.pairing.pairs import Groups, dataset_digest
from workbench.simba.candidate import Learned
from workbench.simba.optimizer import SIMBA, labelled_items
from workbench.simba.reflector import load_dspy
from workbench.simba.selection import usable
from workbench.simba.settings import Settings
from workbench.store.traces import fetch_traces


def align(
    judge: Judge,
    pairs_or_traces: Any = None,
    optimizer: AlignmentOptimizer | None = None,
    *,
    seed: int = 0,
    test_size: float = 0.4,
    groups: Groups = None,
    n_labels: int | None = None,
    budget: Budget | int | None = None,
    gate: Gate = "better",
    max_failure_share: float | None = None,
    progress: bool = True,
    watch: Watch | None = None,
) -> Alignment:
    """Align a judge with human labels and prove it on pairs that nothing was learned from.

    The optimizer learns on train and selects on dev. Original and proposed judge are then scored
    once on test, and the proposed one is taken only if it passes the gate. The test is an MLflow
    run, so that each use of the held-out pairs is counted. The same call resumes an interrupted
    alignment. Of a judge that was aligned before, labels that it learned from count a quarter of
    newer ones, and it is tested on other traces.

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
        same inputs together, or equal items where nearly all inputs are the same.
    n_labels
        Labels learned from at most, drawn by ``seed``, stratified, so that more include the fewer;
        None: all. The held-out pairs do not depend on it.
    budget
        Model calls at most, or a `workbench.Budget`, the held-out test included, which is reserved.
        When it is used up, `SIMBA` ends with the best instructions so far, and any other optimizer
        with a `BudgetError`. None: the budget of the given `SIMBA`, if any.
    gate
        ``"better"``: agreement on test must rise; ``"significant"``: and be significant at 5 % by
        McNemar's test; ``"none"``: the proposed judge is taken as it is. The first two also reject
        a judge that is no better than always giving one value, or that gave no usable verdict on
        more than 5 % of the test.
    max_failure_share
        Share of lost answers of one kind, in [0, 1], above which the optimizer is stopped. None is
        0.05, or a given `SIMBA`'s own.
    progress
        Show the preflight table and progress bars.
    watch
        Follows the stages and can end the alignment (see `workbench.align_in_background`).

    Raises
    ------
    TooFewPairsError, NoLabelsError, NoVerdictsError, PairingError
        When there is too little, or the wrong thing, to learn from.
    ArgumentError
        When ``budget`` is given both here and to `SIMBA`, among others.
    ModelError
        When one of the models does not answer; the judge stays as it was.
    CancelledError
        When ``watch`` ended it; no held-out test was made.
    """
    one_of("gate", gate, ["better", "significant", "none"])
    check_share("max_failure_share", max_failure_share or 0.0)
    started, seed = time.monotonic(), check_whole("seed", seed, None)
    optimizer = SIMBA(seed=seed, progress=progress) if optimizer is None else optimizer
    if not isinstance(optimizer, AlignmentOptimizer):
        raise ArgumentError(
            f"optimizer={excerpt(optimizer)} is no AlignmentOptimizer. Give one, such as "
            "workbench.SIMBA(), or None."
        )
    simba = optimizer if isinstance(optimizer, SIMBA) else None
    limit = budget_of(optimizer, budget)
    followed, watch = watch, watch or Watch()
    data = read_data(judge, pairs_or_traces, groups, test_size, seed, n_labels)

    watch.enter("preflight")
    if simba and replayed() is None:
        # It takes seconds to import, some of which pass while the judge's first call waits.
        Thread(target=load_dspy, daemon=True).start()
    limit.check(str(judge.model), (simba and simba.model) or str(judge.model))
    probe = probed(data, limit)
    people = annotator_agreement(data.pairs) if data.pairs.votes.shape[1] > 1 else None
    checks = preflight(data, probe, people, optimizer, limit)
    if progress:
        say(checks.to_string(index=False))
    watch.preflight = checks
    if simba:
        watch.budget, watch.max_steps = limit, simba.settings.max_steps
    watch.enter("learning")
    learned = learn(data, probe, optimizer, limit, max_failure_share, followed, progress)

    watch.enter("testing")
    name = type(optimizer).__name__
    began: Any = {"optimizer": name, "seed": seed}
    run = logged_run(f"align {judge.name}", data, learned.judge, place=watch.place, **began)
    with run as run_id:
        tested = score_held_out(
            data, learned.judge, limit, concurrency=concurrency_of(optimizer), progress=progress
        )
        found = _result(
            data, probe, learned, tested, gate,
            annotators=people, preflight=checks, run_id=run_id,
            seconds=time.monotonic() - started, **began,
        )  # fmt: skip
        log_result(found)
    return found


def concurrency_of(*optimizers: AlignmentOptimizer) -> int:
    """Return how many calls may be under way in a test: no more than where SIMBA learns."""
    return min((one.concurrency for one in optimizers if isinstance(one, SIMBA)), default=64)


def budget_of(optimizer: AlignmentOptimizer, budget: Budget | int | None) -> Budget:
    """Return the given budget, or else a SIMBA's own; `ArgumentError` where both are given."""
    own = optimizer.budget if isinstance(optimizer, SIMBA) else None
    if None not in (own, budget) and own is not budget:
        raise ArgumentError(
            f"budget={budget!r} is given, and SIMBA has budget={own!r}. Give one of them."
        )
    return Budget.of(own if budget is None else budget)


def learn(
    data: AlignmentData,
    probe: Verdict,
    optimizer: AlignmentOptimizer,
    budget: Budget,
    max_failure_share: float | None = None,
    watch: Watch | None = None,
    progress: bool = False,
    reflection_base_url: str | None = None,
) -> Learned:
    """Let the optimizer learn on train and select on dev; what the test takes is kept back."""
    share = Settings.max_failure_share if max_failure_share is None else max_failure_share
    with budget.keeping(**to_keep(data, probe, optimizer)):
        if not isinstance(optimizer, SIMBA):
            stop = watch.stop if watch else None
            return propose(data, optimizer, budget, share, stop, reflection_base_url)
        simba = copy(optimizer)
        simba.progress = optimizer.progress and progress
        if max_failure_share is not None:
            simba.settings = replace(simba.settings, max_failure_share=share)
        if watch is not None:
            simba.stop = watch.stop
            simba.on_step = partial(_tell, [watch.on_step, optimizer.on_step])
        train, dev = (labelled_cases(part, data) for part in (data.split.train, data.split.dev))
        optimizer.last = simba.learn(
            data.judge,
            [case.item for case in train],
            [case.item for case in dev],
            scale=data.split.train.scale,
            known=[case.verdict for case in (*train, *dev)],
            budget=budget,
        )
        return optimizer.last


def _tell(listeners: Sequence[Callable[[dict[str, Any]], None] | None], step: Any) -> None:
    for listener in filter(None, listeners):
        listener(step)


def _result(
    data: AlignmentData,
    probe: Verdict,
    learned: Learned,
    tested: HeldOutTest,
    gate: Gate,
    **known: Any,
) -> Alignment:
    """Decide, and put everything together; ``known`` are further fields of the result."""
    status, reason = decide(gate, tested, data.split.train, learned.stopped)
    aligned = fingerprint(learned.judge)
    looks, earlier_looks = count_looks(data, aligned)
    notes = [*data.pairs.notes, *data.split.notes, origin_note(data.judge, data.lineage)]
    notes += [*learned.notes, *tested.notes, earlier_looks]
    return Alignment(
        judge=learned.judge if status == "improved" else data.judge,
        status=status,
        reason=reason,
        original=data.judge,
        proposed=learned.judge,
        pairs=data.pairs,
        split=data.split,
        test_before=tested.before,
        test_after=tested.after,
        before=tested.comparison.before,
        after=tested.comparison.after,
        comparison=tested.comparison,
        history=learned.history,
        evidence=learned.evidence,
        examples=data.by_id,
        looks=looks,
        calls=learned.judge_calls + probe.calls + tested.paid.requests,
        reflection_calls=learned.reflection_calls
        + learned.embedding_calls
        + tested.embeddings.requests,
        usage=learned.usage + probe.paid + tested.paid + tested.embeddings,
        usd_per_1000=usd_per_1000([v.usage for v in tested.verdicts or (probe,)]),
        fingerprints={"original": fingerprint(data.judge), "aligned": aligned},
        dataset_digest=dataset_digest(data.pairs),
        failures=learned.failures,
        reflection_failures=learned.reflection_failures,
        notes=tuple(filter(None, notes)),
        **known,
    )


def alignment_improvement(
    original: Judge, aligned: Judge, traces: Any = None, *, progress: bool = True
) -> dict[str, Any]:
    """Accuracy of two judges against the human labels under the original's name on ``traces``.

    Both are called, unless the cache has their answers, and nothing is logged. Best take traces
    that neither was aligned on.

    Returns
    -------
    dict
        ``original_accuracy``, ``aligned_accuracy`` in [0, 1], ``improvement`` (their
        difference) and ``n``, the items that both judges rated; nan where ``n`` is 0.
    """
    check_single(original)
    check_single(aligned)
    items, scale = labelled_items(original, fetch_traces(traces), least=1)
    questions = [(judge, item.example, 0) for item in items for judge in (original, aligned)]
    with AnswerCache() as cache, Runner(cache=cache, answered=1) as runner:
        bar = "judging with both judges" if progress else None
        verdicts = judge_many(questions, runner, scale=scale, progress=bar)
    rated = [
        (one.value == item.label, two.value == item.label)
        for item, one, two in zip(items, verdicts[::2], verdicts[1::2], strict=True)
        if usable(one, scale) and usable(two, scale)
    ]
    before, after = pd.DataFrame(rated, columns=["one", "two"], dtype=float).mean().tolist()
    found = {"original_accuracy": before, "aligned_accuracy": after, "improvement": after - before}
    return {**found, "n": len(rated)}
