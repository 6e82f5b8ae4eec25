"""The loop of SIMBA, a pure function of its items, its seed and two callables.

What it does, its cost and how it differs from dspy's is told in `workbench.simba`, in the
notation of which the names here speak. It knows neither MLflow nor a model: `Ask` gets verdicts,
`Reflect` gets rules, so that it can be tested and studied by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from workbench.errors import ArgumentError, BudgetError, CancelledError, ModelError, one_of
from workbench.metrics.intervals import wilson
from workbench.pairing.splits import default_groups, stratified
from workbench.scale import Scale
from workbench.simba.candidate import Candidate
from workbench.simba.proposals import (
    CRITERIA,
    EVERYTHING,
    MOST_PARTS,
    SUSPECTS,
    Moves,
    Reflect,
    have_reasons,
    newest,
    strongest,
)
from workbench.simba.reflection import Item
from workbench.simba.selection import MOST_PRUNED_ON, Ask, Scoreboard, harmful, left_out, prunings


@dataclass(frozen=True)
class Settings:
    """How learning goes about its work. Every count is at least 1, of ``max_examples`` 0."""

    max_steps: int = 4
    batch_size: int = 40
    patience: int = 2
    max_examples: int = 4
    max_dev: int = 80
    class_weight: Literal["balanced"] | None = None
    max_failure_share: float = 0.05

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "patience", "max_dev"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name}={getattr(self, name)} must be at least 1.")
        one_of("class_weight", self.class_weight, [None, "balanced"])


@dataclass
class Optimised:
    """What learning found.

    ``best`` is the winner (the original where nothing was better), ``history`` has a row for
    each candidate that was scored: ``step``, ``origin``, ``rules``, ``examples``, ``dev_score``
    (nan where it was dropped early), ``dev_accuracy``, ``added_words``, ``best`` (whether it
    beat all before its step). ``stopped`` says in words why it ended and
    ``known`` counts the answers that were in the cache.
    """

    best: Candidate
    original_score: float
    best_score: float
    history: pd.DataFrame
    stopped: str
    judge_calls: int = 0
    reflection_calls: int = 0
    known: int = 0
    tokens: int | None = None
    cost: float | None = None
    failures: int = 0
    reflection_failures: int = 0
    evidence: dict[str, list[str]] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def summed_up(
    board: Scoreboard,
    moves: Moves,
    original: Candidate,
    best: Candidate,
    rows: list[dict[str, Any]],
    stopped: str,
) -> Optimised:
    """What a run found and spent."""
    tokens, costs = moves.tokens + board.tokens, moves.costs + board.costs
    return Optimised(
        best=best,
        original_score=board.score(original)[0],
        best_score=board.score(best)[0],
        history=pd.DataFrame(rows),
        stopped=stopped,
        judge_calls=board.calls,
        reflection_calls=moves.calls,
        known=board.known + moves.known,
        tokens=sum(tokens) if tokens else None,
        cost=sum(costs) if costs else None,
        failures=board.failures,
        reflection_failures=moves.failures,
        evidence={rule: moves.evidence.get(rule, []) for rule in best.rules},
    )


def state_after(
    step: int, board: Scoreboard, moves: Moves, best: Candidate, score: float
) -> dict[str, Any]:
    """What is told of a run after each step."""
    return {
        "step": step,
        "best_score": score,
        "calls": board.calls,
        "reflections": moves.calls,
        "failures": board.failures,
        "best": best.text,
    }


def row(
    step: int, candidate: Candidate, score: float, accuracy: float, board: Scoreboard, *, best: bool
) -> dict[str, Any]:
    """A row of the history; ``best``: whether it beat all before its step."""
    return {
        "step": step,
        "origin": candidate.origin,
        "rules": len(candidate.rules),
        "examples": len(candidate.examples),
        "dev_score": score,
        "dev_accuracy": accuracy,
        "added_words": candidate.added_words,
        "best": best,
        "calls": board.calls,
    }


LEAST_WRONG = 3
"""Weight of disagreements from which rules are asked for: what two share may be chance."""


TEMPERATURE = 0.05
"""Of the softmax by which another parent than the best is drawn, in units of the score."""


FIRST_HEAT, SECOND_HEAT = 0.15, 0.3
"""Shares of the items to select on after which candidates drop out."""


SMALLEST_HEAT = 8


STEADY = 0.75
"""Standard errors by which a candidate must be better than another to take its place."""


def optimise(
    original: Candidate,
    train: Sequence[Item],
    dev: Sequence[Item],
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
    """Run the loop that `workbench.simba` describes.

    Parameters
    ----------
    original
        The judge's own instructions.
    train, dev
        Disjoint, both non-empty. Nothing in ``dev`` is ever shown to the reflection model or
        in a worked example.
    fields
        Which of inputs, outputs, expectations the judge sees.
    seed
        Any int, 0 included: the same seed, items and answers give the same result.
    on_step
        Called after each step with ``step``, ``best_score``, ``calls``, ``reflections``,
        ``failures`` and ``best`` (text).
    left
        Tells how many judge calls may still be made, so that no more candidates race than can come
        to the end. None: as many as it takes.
    """
    chosen = settings or Settings()
    ascent = _Ascent(original, train, dev, scale, fields, ask, reflect, seed, chosen, on_step, left)
    return ascent.climb()


def most_calls(
    train: int, dev: int, settings: Settings, scale: Scale, rules: int = 0
) -> tuple[int, int]:
    """Upper bound of (judge calls, reflections) of `optimise`, by the formula of `workbench.simba`.

    ``train`` and ``dev`` are numbers of items, ``rules`` those that the judge has learned before.
    Up to eight children race in a step, and up to three that came from pruning, each by itself.
    """
    selected = min(settings.max_dev, train + dev)
    batch = min(settings.batch_size, train + dev - selected)
    first = _first_heat(selected)
    second = min(math.ceil(selected * SECOND_HEAT), selected - first)
    race = 8 * first + 4 * second + 2 * (selected - first - second)
    pruned = SUSPECTS * 3 * MOST_PRUNED_ON + 3 * selected
    tried = min(selected, 2 * settings.batch_size)
    revised = min(SUSPECTS, rules) * tried + 3 * selected if rules else 0
    judge_calls = selected + batch + revised + settings.max_steps * (batch + race + pruned)
    directions = len(scale.values) if scale.kind == "nominal" else 2
    return judge_calls, 1 + settings.max_steps * (2 + directions * MOST_PARTS)


def _first_heat(items: int) -> int:
    return min(items, max(SMALLEST_HEAT, math.ceil(items * FIRST_HEAT)))


def is_steady(ahead: float, gains: Sequence[float]) -> bool:
    """Whether to be ahead by that, in all, is more than the `STEADY` share of what chance makes."""
    return ahead > 1e-9 and ahead >= STEADY * math.sqrt(sum(gain * gain for gain in gains))


class _Ascent:
    """The state of one run of the loop."""

    def __init__(
        self,
        original: Candidate,
        train: Sequence[Item],
        dev: Sequence[Item],
        scale: Scale,
        fields: tuple[str, ...],
        ask: Ask,
        reflect: Reflect,
        seed: int,
        settings: Settings,
        on_step: Callable[[dict[str, Any]], None] | None = None,
        left: Callable[[], float] | None = None,
    ) -> None:
        self.original, self.train = original, list(train)
        self.settings, self.on_step, self.left = settings, on_step, left
        self.moves = Moves(reflect, scale, fields, seed=seed)
        chosen = self.moves.stratified(dev, settings.max_dev)
        # A small dev set alone cannot tell candidates apart, so train helps it out.
        chosen += self.moves.stratified(train, settings.max_dev - len(chosen))
        self.board = Scoreboard(
            chosen,
            original,
            scale,
            ask,
            class_weight=settings.class_weight,
            max_failure_share=settings.max_failure_share,
        )
        self.pool: dict[str, Candidate] = {}
        self.rows: list[dict[str, Any]] = []

    def climb(self) -> Optimised:
        batch = self.moves.stratified(self.train, self.settings.batch_size)
        self.board.judge((self.original, item) for item in [*self.board.items, *batch])
        self.board.leave_out_failed(self.original)
        self.enter([self.original], 0, math.nan)
        if self.original.key not in self.pool:
            raise ModelError(
                "The judge gave no usable verdict on the items that candidates are selected on, "
                "so there is nothing to improve on. Look at workbench.assess(judge).failures."
            )
        best, stale, stopped = self.original, 0, "all steps were made"
        for step in range(1, self.settings.max_steps + 1):
            if self.board.is_flawless(best):
                stopped = "nothing is left to gain on the items that candidates are selected on"
                break
            try:
                before = self.score(best)
                if step == 1:
                    self.revise(self.original)
                    best = self.leader()
                parent = self.parent(best, stale)
                children = self.offspring(parent, best, batch, step, stale)
                self.race(children, best, step)
                leader = self.leader()
                if leader.key != best.key:
                    self.prune(leader, step)
            except BudgetError:
                best, stopped = self.leader(), "the budget is spent"
                break
            except CancelledError:
                best, stopped = self.leader(), "it was cancelled"
                break
            leader = self.leader()
            risen = self.score(leader) > before + 1e-9
            best, stale = (leader, 0) if risen else (best, stale + 1)
            self.tell(step, best)
            if stale >= self.settings.patience:
                stopped = f"the score has not risen for {stale} steps"
                break
            # Where something was learned, the same disagreements seen again teach little more.
            if stale and best.rules and len(self.train) <= self.settings.batch_size:
                stopped = "all disagreements were looked at"
                break
            batch = self.moves.stratified(self.train, self.settings.batch_size)
        return self.result(best, stopped)

    def result(self, best: Candidate, stopped: str) -> Optimised:
        return summed_up(self.board, self.moves, self.original, best, self.rows, stopped)

    def tell(self, step: int, best: Candidate) -> None:
        if self.on_step is not None:
            self.on_step(state_after(step, self.board, self.moves, best, self.score(best)))

    # -- who may have children ----------------------------------------------------------

    def score(self, candidate: Candidate) -> float:
        return self.board.score(candidate)[0]

    def leader(self) -> Candidate:
        """The best of all so far; of equals the shortest, then the oldest."""
        return max(self.pool.values(), key=lambda c: (self.score(c), -len(c.text)))

    def is_better(self, one: Candidate, other: Candidate) -> bool:
        """Whether one's score is higher, by a share of the standard error of the difference.

        Verdicts that waver differ on many items in both directions, and that some more of these
        fall to one's side says little; one that differs only for the better is better.
        """
        gains = [self.board.gain(one, other, item) for item in self.board.items]
        total = sum(map(self.board.weight, self.board.items))
        return is_steady((self.score(one) - self.score(other)) * total, gains)

    def parent(self, best: Candidate, stale: int) -> Candidate:
        """The best candidate; another one, by softmax of the scores, after a step in vain."""
        others = [c for c in self.pool.values() if c.key != best.key]
        if not stale or not others:
            return best
        top = self.score(best)
        weights = [math.exp((self.score(c) - top) / TEMPERATURE) for c in others]
        return self.moves.rng.choices([best, *others], [1.0, *weights])[0]

    # -- moves ----------------------------------------------------------------------------

    def offspring(
        self, parent: Candidate, best: Candidate, batch: list[Item], step: int, stale: int
    ) -> list[Candidate]:
        """Children of the parent by all moves; those that are known already are left out."""
        self.board.judge((parent, item) for item in batch)
        # What was paid for to select on is evidence as well, where it is not of dev.
        most = self.settings.batch_size
        sides = newest(*self.board.cases(parent, self.train))
        wrong, right = (self.moves.some(side, most) for side in sides)
        if len(wrong) < 2 or sum(self.board.weight(c.item) for c in wrong) < LEAST_WRONG:
            return []
        cured = self.board.cases(self.original, [case.item for case in right])[0]
        children = self.moves.reflected(parent, wrong, right, cured, step)
        untold = sum(not case.item.rationale for case in wrong) > len(wrong) / 2
        if self.settings.max_examples and (stale or untold or not children):
            children.append(self.moves.with_examples(parent, wrong, self.settings.max_examples))
        if parent.key != best.key and children:
            children.append(best.with_rules(children[0].rules, "merge"))
        fresh = {c.key: c for c in children if c.key not in self.pool}
        return [c for c in fresh.values() if c.text != self.original.text]

    def prune(self, candidate: Candidate, step: int) -> None:
        """Try the candidate without rules that do harm or nothing."""
        if len(candidate.rules) > 1:
            trials = left_out(candidate, self.board, self.moves)
            self.try_without(candidate, prunings(candidate, trials), step)

    def revise(self, candidate: Candidate) -> None:
        """Try an aligned judge without the rules that the newest labels speak against.

        Rules of which these say nothing stay: earlier labels asked for them. Where people have
        changed their standards, earlier labels that only a rule out of date gets right are out of
        date as well, and neither learned from nor selected on any more.
        """
        if not candidate.rules:
            return
        most, items = self.settings.batch_size, self.board.items
        recent = [item for item in items if item.weight >= max(i.weight for i in items)]
        ids = {item.trace_id for item in recent}
        tried = left_out(candidate, self.board, self.moves, most, most)
        trials = [trial for trial in tried if trial.item.trace_id in ids]
        for child in prunings(candidate, trials, drop_idle=False):
            self.affordable([child], [len(items)])
            self.board.judge((child, item) for item in items)
            gains = [self.board.gain(child, candidate, item) for item in recent]
            if is_steady(sum(gains), gains):
                self.retire(child, candidate, ids)
                self.enter([child], 0, self.score(candidate))
                return

    def retire(self, revised: Candidate, before: Candidate, recent: set[str]) -> None:
        """Take out the earlier labels that ``before`` gets right and ``revised`` does not."""
        old = {
            item.trace_id
            for item in self.board.items
            if item.trace_id not in recent and self.board.gain(revised, before, item) < 0
        }
        self.board.items = [item for item in self.board.items if item.trace_id not in old]
        self.train = [item for item in self.train if item.trace_id not in old]

    def try_without(self, candidate: Candidate, children: list[Candidate], step: int) -> None:
        for child in children:
            if child.key in self.pool:
                continue
            self.race([child], candidate, step)
            if child.key in self.pool and self.is_better(child, candidate):
                break
            # That people's reasons speak for a rule outweighs a difference that chance makes.
            self.pool.pop(child.key, None)

    # -- selection ------------------------------------------------------------------------

    def race(self, candidates: list[Candidate], best: Candidate, step: int) -> None:
        """Score candidates in heats; the worse half, and who cannot win any more, drop out.

        Raises
        ------
        BudgetError
            Where what is left is not enough for a single one, before any of it is spent.
        """
        heats = self.heats(best)
        alive, seen = self.affordable(candidates, list(map(len, heats))), list[Item]()
        for heat in heats:
            self.board.judge((candidate, item) for candidate in alive for item in heat)
            seen += heat
            if len(seen) < len(self.board.items):
                alive.sort(key=lambda c: self.board.score(c, seen)[0], reverse=True)
                alive = alive[: max(1, len(alive) // 2)]
                top = self.score(best)
                alive = [c for c in alive if self.board.at_most(c, seen) > top + 1e-9]
        self.enter(alive, step, self.score(best))
        self.enter_dropped([c for c in candidates if c not in alive], step)

    def affordable(self, candidates: list[Candidate], heats: Sequence[int]) -> list[Candidate]:
        """As many of the candidates, the first ones, as can be scored with the calls left.

        Raises
        ------
        BudgetError
            Where that is none.
        """
        left = self.left() if self.left else math.inf
        for many in range(len(candidates), 0, -1):
            # As in `race`: after each heat half of them go on.
            if sum(max(1, many >> n) * size for n, size in enumerate(heats)) <= left:
                return candidates[:many]
        if candidates:
            raise BudgetError("What is left of the budget is not enough to score one candidate.")
        return []

    def heats(self, best: Candidate) -> list[list[Item]]:
        """The items to select on, in heats; what the best gets wrong tells most, so first."""
        items = self.board.items
        missed = {case.item.trace_id for case in self.board.cases(best, items)[0]}
        wrong = [item for item in items if item.trace_id in missed]
        right = [item for item in items if item.trace_id not in missed]
        size = _first_heat(len(items))
        first = self.moves.stratified(wrong, math.ceil(size / 2))
        first += self.moves.stratified(right, size - len(first))
        taken = {item.trace_id for item in first}
        rest = [item for item in items if item.trace_id not in taken]
        second = self.moves.stratified(rest, math.ceil(len(items) * SECOND_HEAT))
        taken |= {item.trace_id for item in second}
        third = [item for item in items if item.trace_id not in taken]
        return [heat for heat in (first, second, third) if heat]

    def enter(self, candidates: Sequence[Candidate], step: int, to_beat: float) -> None:
        """Take scored candidates into the pool and the history."""
        for candidate in candidates:
            score, accuracy = self.board.score(candidate)
            if not math.isnan(score):
                self.pool[candidate.key] = candidate
            best = step == 0 or score > to_beat + 1e-9
            self.rows.append(row(step, candidate, score, accuracy, self.board, best=best))

    def enter_dropped(self, candidates: Sequence[Candidate], step: int) -> None:
        for candidate in candidates:
            self.rows.append(row(step, candidate, math.nan, math.nan, self.board, best=False))


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


def most_calls_crossfitted(items: int, rules: int = 0) -> tuple[int, int]:
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
