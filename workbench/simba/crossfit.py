"""Search with few labels: one round of proposals, selected by cross-validation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from workbench.errors import BudgetError, CancelledError
from workbench.metrics.intervals import wilson
from workbench.pairing.splits import default_groups, stratified
from workbench.simba.candidate import Candidate
from workbench.simba.items import Case, Item
from workbench.simba.proposals import (
    CRITERIA,
    EVERYTHING,
    MAX_BLAMED,
    Reflect,
    have_rationales,
    strongest,
)
from workbench.simba.search import CallsLeft, OnStep, Optimised, Problem, Search, stop_reason
from workbench.simba.selection import Ask, ablate, harmful_rules, length_penalty

FEW: Final = 30
"""Labels below which candidates are selected by cross-validation."""

FOLDS: Final = 5

EXAMPLES: Final = "worked examples"
REVISED: Final = "the rules that are not contradicted"

KINDS: Final = ("rules", "strongest rules", CRITERIA, EXAMPLES)
"""Kinds of candidates. An aligned judge adds `REVISED`, on which the others then build."""


def crossfit(
    problem: Problem,
    ask: Ask,
    reflect: Reflect,
    *,
    on_step: OnStep | None = None,
    calls_left: CallsLeft | None = None,
) -> Optimised:
    """Search for better instructions with few labels; there is no dev set.

    Each kind of candidate is made once without each fold and once from all labels. The kind that
    scores highest on the folds that its candidates were made without wins, if it also does better
    than the original on all labels.
    """
    return CrossFit(problem, ask, reflect, on_step=on_step, calls_left=calls_left).run()


class CrossFit(Search):
    def run(self) -> Optimised:
        before = self.judge_original()
        if self.board.is_flawless(self.original):
            return self.result(self.original, "nothing is left to gain on the labelled items")
        kinds = self.affordable_kinds()
        if not kinds:
            return self.result(self.original, "the budget is spent")
        folds = _folds(self.board.items, self.problem.seed)
        try:
            made = self.candidates(kinds, folds)
            self.board.judge(
                (made[kind][k], item)
                for kind in kinds
                for k, fold in enumerate(folds)
                for item in fold
            )
            scores = {kind: self.out_of_fold(made[kind], folds) for kind in kinds}
            for kind, (score, right, n) in scores.items():
                accuracy = right / n if n else math.nan
                self.record(1, made[kind][-1], score, accuracy, best=False)
            kind = max(kinds, key=lambda one: scores[one][0])
            score, right, n = scores[kind]
            best = self.confirmed(made[kind][-1], score, before)
        except (BudgetError, CancelledError) as error:
            return self.result(self.original, stop_reason(error))

        note = self.note(kind, right, n, len(folds))
        if best is None:
            self.report(1, self.original, before)
            found = self.result(self.original, "nothing did better in cross-validation")
            return replace(found, notes=(note,))
        self.rows[1 + kinds.index(kind)]["best"] = True
        self.report(1, best, score)
        found = self.result(best, "one round of cross-validation")
        return replace(found, best_score=score, notes=(note,))

    def affordable_kinds(self) -> list[str]:
        """The kinds of candidates to try, no more than can be scored with the calls left."""
        kinds = [kind for kind in KINDS if self.settings.max_examples or kind != EXAMPLES]
        kinds += [REVISED] if self.original.rules else []
        if not have_rationales(self.board.cases(self.original, self.board.items)[1]):
            kinds.remove(CRITERIA)
        left = self.calls_left()
        while kinds and self.calls_needed(kinds) > left:
            kinds.pop()
        return kinds

    def calls_needed(self, kinds: Sequence[str]) -> int:
        """Calls of both models to try these kinds and confirm the best of them."""
        reflections = (FOLDS + 1) * (1 + (CRITERIA in kinds))
        ablations = min(MAX_BLAMED, len(self.original.rules))
        return (len(kinds) + 1 + ablations) * len(self.board.items) + reflections

    def candidates(
        self, kinds: Sequence[str], folds: Sequence[Sequence[Item]]
    ) -> dict[str, list[Candidate]]:
        """For each kind a candidate made without each fold, and last one made from all items."""
        everything = [item for fold in folds for item in fold]
        seen = [[i for i in everything if i not in fold] for fold in folds] + [everything]
        sides = [self.board.cases(self.original, items) for items in seen]
        bases = self.revised(seen)
        rules, criteria = self.ask_rules(bases, sides, criteria=CRITERIA in kinds)
        limit = self.settings.max_examples
        by_kind = {
            "rules": lambda k: bases[k].with_rules(rules[k], "rules"),
            "strongest rules": lambda k: bases[k].with_rules(
                strongest(rules[k]), "strongest rules"
            ),
            CRITERIA: lambda k: bases[k].with_rules(criteria[k], CRITERIA),
            EXAMPLES: lambda k: self.proposer.by_examples(bases[k], sides[k][0], limit),
            REVISED: lambda k: bases[k],
        }
        return {kind: [by_kind[kind](k) for k in range(len(seen))] for kind in kinds}

    def ask_rules(
        self,
        bases: Sequence[Candidate],
        sides: Sequence[tuple[list[Case], list[Case]]],
        *,
        criteria: bool,
    ) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
        """Ask for rules from each list of items, and for people's criteria if wanted."""
        proposer, n = self.proposer, len(bases)
        both = list(zip(bases, sides, strict=True))
        requests = [
            proposer.request(base, wrong, right, EVERYTHING) for base, (wrong, right) in both
        ]
        if criteria:
            requests += [
                proposer.criteria_request(base, [*wrong, *right]) for base, (wrong, right) in both
            ]
        answers = proposer.ask(requests, 1)
        # What was made from all items is recorded first, since that is what is learned in the end.
        for k in reversed(range(n)):
            for j in range(k, len(requests), n):
                rules = self.original.rewritten(answers[j], "rules").rules
                proposer.record_evidence(rules, requests[j].disagreements)
        return answers[:n], answers[n:]

    def revised(self, seen: Sequence[Sequence[Item]]) -> list[Candidate]:
        """For each list of items the original without the rules that these contradict."""
        if not self.original.rules:
            return [self.original for _ in seen]
        n = len(self.board.items)
        ablations = ablate(self.original, self.board, self.proposer, n, n)
        bases = []
        for items in seen:
            ids = {item.trace_id for item in items}
            harmful = harmful_rules([one for one in ablations if one.item.trace_id in ids])
            bases.append(self.original.without_rules(harmful) if harmful else self.original)
        return bases

    def out_of_fold(
        self, candidates: Sequence[Candidate], folds: Sequence[Sequence[Item]]
    ) -> tuple[float, int, int]:
        """Return (score, right ones of its opinions, opinions) on items not learned from."""
        earned = weights = 0.0
        right = n = 0
        for candidate, fold in zip(candidates, folds, strict=False):
            for item in fold:
                one = self.board.earned(candidate, item)
                if one is None:
                    continue
                earned += self.board.weight(item) * one
                weights += self.board.weight(item)
                opinion = self.board.opinion(candidate, item)
                if opinion is not None:
                    right += opinion.value == item.label
                    n += 1
        if not weights:
            return -math.inf, 0, 0
        return earned / weights - length_penalty(candidates[-1]), right, n

    def confirmed(self, child: Candidate, score: float, before: float) -> Candidate | None:
        """The winner made from all items, if it also does better than the original on these."""
        if score <= before + 1e-9 or child.text == self.original.text:
            return None
        self.board.judge((child, item) for item in self.board.items)
        return child if self.board.score(child)[0] > before else None

    def note(self, kind: str, right: int, n: int, folds: int) -> str:
        interval = wilson(right, n)
        items = [*self.problem.train, *self.problem.dev]
        return (
            f"Learned from {len(items)} labels, selected by cross-validation over "
            f"{folds} folds: accuracy of {kind!r} on items that it was not made from "
            f"{right}/{n}, 95% interval [{interval.low:.2f}, {interval.high:.2f}]. So few labels "
            f"prove nothing; {FEW} or more are needed for a dev set, 50 to 100 are advised."
        )


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
