"""Search with few labels: candidates are selected by cross-validation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from workbench.metrics.intervals import wilson
from workbench.pairing.splits import default_groups, stratified
from workbench.simba.candidate import Candidate
from workbench.simba.items import Item
from workbench.simba.proposals import CRITERIA, EVERYTHING, EXAMPLES, Reflect
from workbench.simba.search import FEW, FOLDS, Optimised, Problem, Search
from workbench.simba.selection import Ask


def crossfit(
    problem: Problem,
    ask: Ask,
    reflect: Reflect,
    *,
    on_step: Callable[[dict[str, Any]], None] | None = None,
    calls_left: Callable[[], float] | None = None,
) -> Optimised:
    """Search as `workbench.simba.search.optimise` does, in one step and without a dev set."""
    return CrossFit(problem, ask, reflect, on_step, calls_left).run()


class CrossFit(Search):
    """A search with few labels: one step, whose candidates are scored by cross-validation.

    Each candidate is made from all items, and once without each fold. On the items of a fold it is
    scored by the one that was made without them.
    """

    def selection_items(self) -> list[Item]:
        self.train = [*self.problem.train, *self.problem.dev]
        return self.train

    def minibatch(self) -> list[Item]:
        return []

    def rungs(self, best: Candidate) -> list[list[Item]]:
        return [self.board.items]

    def stop_reason(self, best: Candidate, stale: int) -> str:
        if stale:
            return "nothing did better in cross-validation"
        return "one round of cross-validation"

    def children(
        self, parent: Candidate, best: Candidate, batch: list[Item], step: int, stale: int
    ) -> list[Candidate]:
        # Too small a budget is not spent on reflections whose rules can't be scored.
        self.affordable([parent], [2 * len(self.board.items) + 2 * (FOLDS + 1)])
        items, proposer, limit = self.board.items, self.proposer, self.settings.max_examples
        folds = _folds(items, self.problem.seed)
        parts = [items, *([i for i in items if i not in fold] for fold in folds)]
        sides = [self.board.cases(parent, part) for part in parts]
        asked = [
            {name: r for name, r in one.items() if name in (EVERYTHING, CRITERIA)}
            for one in (proposer.requests(parent, *side, criteria=True) for side in sides)
        ]
        answers = proposer.ask(asked, step)
        made = [
            proposer.children(parent, one, answer)
            for one, answer in zip(asked, answers, strict=True)
        ]
        if limit:
            for one, (wrong, _) in zip(made, sides, strict=True):
                one[EXAMPLES] = proposer.with_examples(parent, wrong, limit)
        children = {}
        for origin, child in made[0].items():
            if origin == f"strongest rules: {CRITERIA}":
                continue
            if child.key not in self.pool and child.key not in children:
                children[child.key] = child
                self.board.siblings[child.key] = {
                    item.trace_id: one[origin]
                    for one, fold in zip(made[1:], folds, strict=True)
                    for item in fold
                }
        return list(children.values())

    def check_winner(self, winner: Candidate, step: int) -> None:
        """Keep it only if what was made from all items does better on these as well."""
        del self.pool[winner.key]
        siblings = self.board.siblings.pop(winner.key)
        self.board.judge((winner, item) for item in self.board.items)
        score = self.score(winner)
        self.board.siblings[winner.key] = siblings
        opinions = [
            (verdict.value == item.label)
            for item in self.board.items
            if (verdict := self.board.opinion(winner, item)) is not None
        ]
        interval = wilson(sum(opinions), len(opinions))
        self.notes = (
            f"Learned from {len(self.train)} labels, selected by cross-validation: accuracy of "
            f"{winner.origin!r} on items that it was not made from {sum(opinions)}/"
            f"{len(opinions)}, 95% interval [{interval.low:.2f}, {interval.high:.2f}]. So few "
            f"labels prove nothing; {FEW} or more are needed for a dev set, 50 to 100 are advised.",
        )
        if score > self.score(self.leader()):
            self.pool[winner.key] = winner
        else:
            for row in self.rows:
                row["best"] = row["best"] and row["step"] == 0


def _folds(items: Sequence[Item], seed: int) -> list[list[Item]]:
    """Split into folds, stratified by label; items of a group stay together."""
    count = min(FOLDS, len(items))
    groups = default_groups([item.example for item in items])
    parts = stratified(
        {item.trace_id: str(item.label) for item in items},
        {item.trace_id: item.group or groups[item.trace_id] for item in items},
        {str(k): 1 / count for k in range(count)},
        seed,
    )
    # Keep the given order: trace ids differ between stores, and the requests must not.
    members = [set(part) for part in parts.values() if part]
    return [[item for item in items if item.trace_id in ids] for ids in members]
