"""SIMBA on few labels: what to learn is chosen by cross-validation instead of a dev set.

With fewer than `FEW` labels a dev set is too small to choose by, and what is learned from it is
missed. So the labels are parted into folds; for each fold candidates are made from what the
judge gets wrong in the *other* folds and scored on the fold itself. What is compared in this way
are not candidates but kinds of candidates (``ARMS``); of the best kind one candidate is then
made from all labels. Its cross-validated score is an estimate for the kind, so every verdict
that it rests on was given on an item that the rules were not made from. (Stone, "Cross-validatory
choice and assessment of statistical predictions", 1974.)
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from workbench.candidate import Candidate
from workbench.coefficients import wilson
from workbench.errors import BudgetError, CancelledError, ModelError
from workbench.moves import CRITERIA, EVERYTHING, SUSPECTS, Moves, Reflect, have_reasons, strongest
from workbench.optimised import Optimised, Settings, row, state_after, summed_up
from workbench.pruning import harmful, left_out
from workbench.reflection import Item
from workbench.scale import Scale
from workbench.scoreboard import Ask, Scoreboard
from workbench.splits import default_groups, stratified

FEW = 30
"""Labels below which selection is by cross-validation."""

FOLDS = 5

REVISED = "the rules that are not contradicted"

ARMS = ("rules", "strongest rules", CRITERIA, "worked examples")
"""Kinds of candidates; of an aligned judge also ``REVISED``, on which the others then build."""


def crossfit(
    original: Candidate,
    items: Sequence[Item],
    *,
    scale: Scale,
    fields: tuple[str, ...],
    ask: Ask,
    reflect: Reflect,
    seed: int = 0,
    settings: Settings | None = None,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    left: Callable[[], float] | None = None,
) -> Optimised:
    """Learn from few items; arguments and result are those of `workbench.ascent.optimise`.

    A judge that has learned before is tried without the rules that the labels speak against, those
    of the other folds for each fold. For the cost see `most_calls`.
    """
    settings = settings or Settings()
    arms = [arm for arm in ARMS if settings.max_examples or arm != "worked examples"]
    arms += [REVISED] if original.rules else []
    moves = Moves(reflect, scale, fields, seed=seed)
    board = Scoreboard(
        items,
        original,
        scale,
        ask,
        class_weight=settings.class_weight,
        max_failure_share=settings.max_failure_share,
    )
    board.judge((original, item) for item in board.items)
    board.leave_out_failed(original)
    before, accuracy = board.score(original)
    if math.isnan(before):
        raise ModelError(
            "The judge gave no usable verdict on the labelled items, so there is nothing to "
            "improve on. Look at workbench.assess(judge).failures."
        )
    rows = [row(0, original, before, accuracy, board, best=True)]

    def done(best: Candidate, stopped: str, *notes: str) -> Optimised:
        found = summed_up(board, moves, original, best, rows, stopped)
        found.notes = notes
        return found

    if board.is_flawless(original):
        return done(original, "nothing is left to gain on the labelled items")
    if not have_reasons(board.cases(original, board.items)[1]):
        arms.remove(CRITERIA)
    if left is not None:
        # No more kinds than can be scored, and what is best of them at the end.
        while arms and _needed(arms, len(board.items), len(original.rules)) > left():
            arms.pop()
        if not arms:
            return done(original, "the budget is spent")
    try:
        folds = _folds(board.items, seed)
        made = _children(moves, board, original, folds, arms, settings)
        board.judge((made[arm][k], i) for arm in arms for k, fold in enumerate(folds) for i in fold)
        scored = {arm: _out_of_fold(board, made[arm], folds) for arm in arms}
        for arm in arms:
            score, right, n = scored[arm]
            child = made[arm][-1]
            rows.append(row(1, child, score, right / n if n else math.nan, board, best=False))
        arm = max(arms, key=lambda one: scored[one][0])
        score, right, n = scored[arm]
        child = made[arm][-1]
        better = score > before + 1e-9 and child.text != original.text
        if better:
            # What was made from all labels must at least bear out on them.
            board.judge((child, item) for item in board.items)
            better = board.score(child)[0] > before
    except BudgetError:
        return done(original, "the budget is spent")
    except CancelledError:
        return done(original, "it was cancelled")
    rows[1 + arms.index(arm)]["best"] = better
    best = child if better else original
    if on_step is not None:
        on_step(state_after(1, board, moves, best, score if better else before))
    interval = wilson(right, n)
    note = (
        f"Learned from {len(items)} labels, chosen by cross-validation over {len(folds)} folds: "
        f"accuracy of {arm!r} on items that it was not made from {right}/{n}, 95% interval "
        f"[{interval.low:.2f}, {interval.high:.2f}]. So few labels prove nothing; {FEW} or more "
        "are needed for a dev set, 50 to 100 are advised."
    )
    reason = "one round of cross-validation" if better else "nothing did better in cross-validation"
    found = done(best, reason, note)
    if better:
        found.best_score = score
    return found


def _needed(arms: Sequence[str], items: int, rules: int) -> int:
    """Calls of both models to try these kinds of candidates, and what is best of them."""
    reflections = (FOLDS + 1) * (1 + (CRITERIA in arms))
    return (len(arms) + 1 + min(SUSPECTS, rules)) * items + reflections


def most_calls(items: int, rules: int = 0) -> tuple[int, int]:
    """Upper bound of (judge calls, reflections) of `crossfit` on so many items.

    The original's verdicts, those of each arm on all items, and those of what won in the end;
    for a judge that has learned ``rules`` before one arm more, and each left out where verdicts
    speak of it.
    """
    of_rules = 1 + min(SUSPECTS, rules) if rules else 0
    return (2 + len(ARMS) + of_rules) * items, 2 * (FOLDS + 1)


def _folds(items: Sequence[Item], seed: int) -> list[list[Item]]:
    """The items in folds, stratified by label; items of one group stay together."""
    count = min(FOLDS, len(items))
    alike = default_groups([item.example for item in items])
    parts = stratified(
        {item.trace_id: str(item.label) for item in items},
        {item.trace_id: item.group or alike[item.trace_id] for item in items},
        {str(k): 1 / count for k in range(count)},
        seed,
    )
    # In the order given: ids differ from store to store, and what is asked must not.
    within = [set(part) for part in parts.values() if part]
    return [[item for item in items if item.trace_id in ids] for ids in within]


def _children(
    moves: Moves,
    board: Scoreboard,
    original: Candidate,
    folds: Sequence[Sequence[Item]],
    arms: Sequence[str],
    settings: Settings,
) -> dict[str, list[Candidate]]:
    """For each arm a candidate for each fold, made without it, and last one made from all."""
    every = [item for fold in folds for item in fold]
    seen = [[item for item in every if item not in fold] for fold in folds] + [every]
    sides = [board.cases(original, items) for items in seen]
    bases = _revised(moves, board, original, seen)
    both = list(zip(bases, sides, strict=True))
    requests = [moves.request(base, wrong, right, EVERYTHING) for base, (wrong, right) in both]
    if CRITERIA in arms:
        requests += [moves.for_criteria(base, [*wrong, *right]) for base, (wrong, right) in both]
    answers = moves.asked(requests, 1)
    told, criteria = answers[: len(seen)], answers[len(seen) :]
    # What was made from all labels is noted first: it is what is learned in the end.
    for k, (wrong, right) in reversed(list(enumerate(sides))):
        moves.note(original.rewritten(told[k], "rules").rules, wrong)
        if criteria:
            moves.note(original.rewritten(criteria[k], CRITERIA).rules, [*wrong, *right])

    def child(arm: str, k: int) -> Candidate:
        if arm == REVISED:
            return bases[k]
        if arm == "worked examples":
            return moves.with_examples(bases[k], sides[k][0], settings.max_examples)
        if arm == CRITERIA:
            return bases[k].with_rules(criteria[k], arm)
        return bases[k].with_rules(told[k] if arm == "rules" else strongest(told[k]), arm)

    return {arm: [child(arm, k) for k in range(len(seen))] for arm in arms}


def _revised(
    moves: Moves, board: Scoreboard, original: Candidate, seen: Sequence[Sequence[Item]]
) -> list[Candidate]:
    """For each list of items the original without the rules that these speak against."""
    if not original.rules:
        return [original for _ in seen]
    n = len(board.items)
    trials = left_out(original, board, moves, n, n)
    bases = []
    for items in seen:
        ids = {item.trace_id for item in items}
        worst = harmful([trial for trial in trials if trial.item.trace_id in ids])
        bases.append(original.without_rules(worst) if worst else original)
    return bases


def _out_of_fold(
    board: Scoreboard, candidates: Sequence[Candidate], folds: Sequence[Sequence[Item]]
) -> tuple[float, int, int]:
    """(weighted mean credit less the price of length, right ones of its opinions, opinions)."""
    earned = weights = 0.0
    right = n = 0
    for candidate, fold in zip(candidates, folds, strict=False):
        for item in fold:
            got = board.earned(candidate, item)
            if got is None:
                continue
            earned += board.weight(item) * got
            weights += board.weight(item)
            verdict = board.opinion(candidate, item)
            if verdict is not None:
                right += verdict.value == item.label
                n += 1
    if not weights:
        return -math.inf, 0, 0
    return earned / weights - board.price(candidates[-1]), right, n
