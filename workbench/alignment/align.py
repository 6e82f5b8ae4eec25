"""Alignment: preflight, optimise, and a held-out gate that says whether the judge got better."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.genai.judges.base import AlignmentOptimizer

from workbench.alignment.external import others_counted, propose, requests_of_a_verdict
from workbench.alignment.gate import Gate, decide, majority_note
from workbench.alignment.preflight import check_pairs, preflight, probed, to_keep
from workbench.alignment.runs import (
    Alignment,
    Earlier,
    Logbook,
    Looks,
    Run,
    Watch,
    earlier_alignments,
    looks,
    marks,
    origin_note,
    write_before_test,
)
from workbench.compat import options
from workbench.errors import ArgumentError, BudgetError, PairingError, TooFewPairsError, one_of
from workbench.formatting import say
from workbench.judging.judge import fingerprint
from workbench.judging.runner import run
from workbench.judging.verdicts import Verdict
from workbench.metrics.annotators import AnnotatorAgreement, annotator_agreement
from workbench.metrics.comparison import compare
from workbench.models.budget import Budget
from workbench.models.cache import AnswerCache
from workbench.pairing.pairs import Groups, Pairs, Split, dataset_digest, pair
from workbench.pairing.splits import default_groups, with_equal_items
from workbench.scale import Scale, is_abstention
from workbench.simba.optimizer import SIMBA, labelled_items
from workbench.simba.reflection import Item
from workbench.simba.search import FEW, Optimised
from workbench.store.traces import Example, examples, fetch_traces, item_digest

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


@dataclass(frozen=True)
class Learned:
    """What an optimizer proposes, and what it cost to find.

    Calls count requests, repeated ones included; ``known`` answers more were known from before.
    ``failures`` of the judge and ``reflection_failures`` are answers that never came or could not
    be read, and count for nothing else (`SIMBA` only).
    """

    judge: Judge
    calls: int = 0
    reflection_calls: int = 0
    embedding_calls: int = 0
    known: int = 0
    tokens: int | None = None
    cost: float | None = None
    stopped: str = ""
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    evidence: Mapping[str, list[str]] = field(default_factory=dict)
    failures: int = 0
    reflection_failures: int = 0
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Tested:
    """Held-out pairs with the verdicts of both judges, on the items that both rated.

    ``lost`` is the share of items without a usable verdict of the proposed judge, and
    ``other_calls`` counts what it asked of other models than its own.
    """

    before: Pairs
    after: Pairs
    calls: int = 0
    other_calls: int = 0
    tokens: int | None = None
    cost: float | None = None
    lost: float = 0.0
    notes: tuple[str, ...] = ()


def own_pairs(judge: Judge, pairs_or_traces: Any) -> Pairs:
    """The pairs given, or those of the traces given; they must be this very judge's."""
    if not isinstance(pairs_or_traces, Pairs):
        return pair(judge, pairs_or_traces)
    if pairs_or_traces.fingerprint != fingerprint(judge):
        raise PairingError(
            f"These pairs hold verdicts of another judge than {judge.name!r} as it is now. Run "
            "workbench.assess(judge, traces) and workbench.pair(judge, traces) with this one."
        )
    return pairs_or_traces


def check_one_budget(optimizer: AlignmentOptimizer, budget: Budget | int | None) -> None:
    """Raise `ArgumentError` where a `SIMBA` has a budget of its own and another is given."""
    own = optimizer.budget if isinstance(optimizer, SIMBA) else None
    if budget is not None and own is not None and own is not budget:
        raise ArgumentError(
            f"budget={budget!r} is given, and SIMBA has budget={own!r} of its own. Give one of "
            "them: the former is for learning and the held-out test, SIMBA's for learning alone."
        )


LEAST_FRESH = 10
"""Fresh pairs from which an aligned judge is tested on these alone."""


def split_pairs(
    pairs: Pairs,
    by_id: Mapping[str, Example],
    groups: Groups,
    earlier: Earlier,
    test_size: float,
    seed: int,
) -> Split:
    """Train, dev and test.

    What the judge learned from before is never in test. What it was tested on before is not
    either where there are fresh pairs enough: it was taken for doing well there.
    """
    items = [by_id[i] for i in pairs.trace_ids]
    named = groups if isinstance(groups, str) else None
    kept = default_groups(items) if groups is None else pairs.group_of(groups)
    kept = with_equal_items(kept, items)
    fresh = set(pairs.trace_ids) - earlier.all
    barred = earlier.all if len(fresh) >= LEAST_FRESH else earlier.learned
    # A share of those that may be tested on, so that there is as much to learn from of these.
    share = test_size * (1 - len(barred & set(pairs.trace_ids)) / len(pairs)) or test_size
    try:
        split = pairs.split(test_size=share, seed=seed, groups=kept, never_test=barred)
    except ArgumentError:
        if not barred & set(pairs.trace_ids):
            raise
        raise TooFewPairsError(
            "This judge was aligned on these traces before, and what a judge learned on is never "
            "tested on. Label new traces and align with those as well, or align the judge that "
            "it came from."
        ) from None
    return replace(split, groups=named)


def annotators_of(pairs: Pairs) -> AnnotatorAgreement | None:
    """How the annotators agree among themselves; None where there is only one."""
    votes = pairs.votes
    return annotator_agreement(pairs) if votes.shape[1] > 1 else None


EARLIER = 0.25
"""Weight of a label that the judge learned from before, where a newer one has 1."""


def items_of(
    pairs: Pairs,
    by_id: Mapping[str, Example],
    earlier: Collection[str] = (),
    group_of: Mapping[str, str] | None = None,
) -> list[Item]:
    """The pairs as what is learned from; people's standards drift, so newer labels weigh more.

    ``earlier`` are traces whose labels are not new. ``group_of`` tells what must stay together
    where the items are parted again.
    """
    rows = pairs.table.to_dict("records")
    weights = dict.fromkeys(earlier, EARLIER)
    groups = group_of or {}
    return [
        Item(
            by_id[i],
            row["human"],
            row["human_rationale"],
            weight=weights.get(i, 1.0),
            group=groups.get(i, ""),
        )
        for row in rows
        for i in [row["trace_id"]]
    ]


def learn(
    judge: Judge,
    optimizer: AlignmentOptimizer,
    split: Split,
    by_id: Mapping[str, Example],
    budget: Budget | int | None = None,
    *,
    earlier: Collection[str] = (),
    max_failure_share: float | None = None,
    progress: bool = True,
    watch: Watch | None = None,
) -> Learned:
    """Let the optimizer learn on train and select on dev.

    ``earlier`` are traces with labels that the judge learned from before, which weigh less
    (`SIMBA` only). ``max_failure_share`` None means a `SIMBA`'s own, and 0.05 for others;
    ``progress`` holds for others only.
    """
    watch = watch or Watch()
    if isinstance(optimizer, SIMBA):
        purse = Budget.of(budget)
        known = [
            Verdict(
                row["trace_id"], row["judge"], row["judge_rationale"], fingerprint=part.fingerprint
            )
            for part in (split.train, split.dev)
            for row in part.table.to_dict("records")
        ]
        with watch.learning(optimizer, purse), _bearing(optimizer, max_failure_share):
            proposed = optimizer.learn(
                judge,
                items_of(split.train, by_id, earlier, split.group_of),
                items_of(split.dev, by_id, earlier, split.group_of),
                scale=split.train.scale,
                known=known,
                budget=purse,
            )
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
            notes=(*found.notes, *_failure_notes(found)),
        )
    proposal = propose(
        judge,
        optimizer,
        split,
        by_id,
        budget=Budget.of(budget),
        max_failure_share=0.05 if max_failure_share is None else max_failure_share,
        progress=progress,
        stop=watch.stop,
    )
    return Learned(**vars(proposal))


@contextmanager
def _bearing(optimizer: SIMBA, max_failure_share: float | None) -> Iterator[None]:
    """Within it the optimizer bears this share of failures; None: its own."""
    own = optimizer.settings
    if max_failure_share is not None:
        optimizer.settings = replace(own, max_failure_share=max_failure_share)
    try:
        yield
    finally:
        optimizer.settings = own


def _failure_notes(found: Optimised) -> Iterator[str]:
    """What was lost while learning, of the judge and of the reflection model."""
    if found.failures:
        yield (
            f"While learning, {_counted(found.failures, 'verdict')} failed or could not be read, "
            "and counted neither for nor against any candidate."
        )
    if found.reflection_failures:
        yield (
            f"{_counted(found.reflection_failures, 'reflection')} failed, was refused or could not "
            "be read, and gave no rule. They are not kept: the same call asks again."
        )


def _counted(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def put_to_test(
    original: Judge,
    proposed: Judge,
    test: Pairs,
    by_id: Mapping[str, Example],
    progress: bool,
    budget: Budget | None = None,
) -> Tested:
    """Score both judges once on test: the original's verdicts are known from the pairs."""
    if fingerprint(proposed) == fingerprint(original):
        return Tested(test, test)
    verdicts: list[Verdict] = []
    notes: tuple[str, ...] = ()
    with AnswerCache() as cache, others_counted(proposed, budget) as meter:
        try:
            run(
                proposed,
                [by_id[i] for i in test.trace_ids],
                cache=cache,
                scale=test.scale,
                budget=budget,
                progress="testing on held-out traces" if progress else None,
                on_verdict=verdicts.append,
            )
        except BudgetError as error:
            # More calls failed than were reckoned with; what came is a test all the same.
            notes = (f"The held-out test was not finished. {error}",)
    verdicts.sort(key=lambda verdict: test.trace_ids.index(verdict.trace_id))
    answers = {v.trace_id: (v.value, v.rationale) for v in verdicts if usable(v, test.scale)}
    lost = len(test) - len(answers)
    if lost:
        notes += (
            f"The proposed judge gave no usable verdict on {lost} of {len(test)} held-out traces; "
            "both judges are compared on the others.",
        )
    after = test.with_verdicts(answers, fingerprint(proposed))
    before = test.subset(after.trace_ids)
    return Tested(
        before,
        after,
        calls=sum(v.calls for v in verdicts),
        other_calls=meter.embedding.requests + meter.reflection.requests if meter else 0,
        tokens=total(*(n for v in verdicts for n in (v.input_tokens, v.output_tokens))),
        cost=total(*(v.cost for v in verdicts)),
        lost=lost / len(test),
        notes=notes,
    )


def usable(verdict: Verdict, scale: Scale | None) -> bool:
    """Whether the verdict is a rating, and neither a failure nor an abstention."""
    return verdict.error is None and not is_abstention(verdict.value, scale)


def total(*amounts: Any) -> Any:
    """Sum of the known amounts; None where none is known."""
    known = [amount for amount in amounts if amount is not None]
    return sum(known) if known else None


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
        check_one_budget(optimizer, budget)
    started = time.monotonic()
    watch = watch or Watch()
    pairs = own_pairs(judge, pairs_or_traces)
    options(judge)  # raises for judges that are not made from instructions
    check_pairs(pairs)
    by_id = {example.trace_id: example for example in examples(pairs.trace_ids)}
    earlier = earlier_alignments(judge, by_id, watch.place)
    split = split_pairs(pairs, by_id, groups, earlier, test_size, seed)
    annotators = annotators_of(pairs)
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
        learned = learn(
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
        tested = put_to_test(judge, learned.judge, split.test, by_id, progress, purse)
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
        tokens=total(learned.tokens, tested.tokens, probe.input_tokens, probe.output_tokens),
        cost=total(learned.cost, tested.cost, probe.cost),
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
    items, scale = labelled_items(original, fetch_traces(traces), least=1)
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
