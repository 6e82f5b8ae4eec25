"""The loop of SIMBA, a pure function of its items, its seed and two callables.

What it does, its cost and how it differs from dspy's is told in `workbench.simba`, in the
notation of which the names here speak. It knows neither MLflow nor a model: `Ask` gets verdicts,
`Reflect` gets rules, so that it can be tested and studied by itself.
"""

from __future__ import annotations

import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pandas as pd

from workbench.candidate import Candidate, WorkedExample
from workbench.errors import ArgumentError, BudgetError, ModelError, one_of
from workbench.judge import Verdict
from workbench.reflection import Case, Item, Reflection, Request
from workbench.scale import Scale

Ask = Callable[[Sequence[tuple[Candidate, Item]]], list[Verdict]]
"""Verdicts of candidates on items, in order."""

Reflect = Callable[[Sequence[Request], int], list[Reflection]]
"""Rules for each request; the number tells the round."""


@dataclass(frozen=True)
class Settings:
    """How the loop goes about its work. Every count is at least 1."""

    max_steps: int = 6
    batch_size: int = 40
    patience: int = 2
    max_examples: int = 4
    max_dev: int = 150
    price_of_100_words: float = 0.01
    class_weight: Literal["balanced"] | None = None
    temperature: float = 0.05
    max_failure_share: float = 0.05

    def __post_init__(self) -> None:
        for name in ("max_steps", "batch_size", "patience", "max_dev"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name}={getattr(self, name)} must be at least 1.")
        one_of("class_weight", self.class_weight, [None, "balanced"])


MOST_FAILED = 0.2
"""Share of failed calls on dev above which a candidate's score means nothing."""


@dataclass
class Optimised:
    """What the loop found.

    ``best`` is the winner (the original where nothing was better), ``history`` has a row for
    each candidate that was scored: ``step``, ``origin``, ``rules``, ``examples``, ``dev_score``
    (nan where it was dropped early), ``dev_accuracy``, ``added_words``, ``best`` (whether it
    beat all before its step). ``stopped`` says in words why the loop ended.
    """

    best: Candidate
    original_score: float
    best_score: float
    history: pd.DataFrame
    stopped: str
    judge_calls: int = 0
    reflection_calls: int = 0
    tokens: int | None = None
    cost: float | None = None
    failures: int = 0
    evidence: dict[str, list[str]] = field(default_factory=dict)


def credit(scale: Scale, verdict: Any, label: Any) -> float:
    """What a verdict earns, in [0, 1].

    1 for the label itself; a near miss up to 1/2 on scales of steps, and 1 less its distance on
    continuous ones, where hardly any verdict equals its label.
    """
    if verdict == label:
        return 1.0
    if not scale.ordered:
        return 0.0
    nearness = 1.0 - scale.distance(verdict, label)
    return nearness if _is_continuous(scale) else nearness / 2


TOLERANCE = 0.1
"""Distance up to which a verdict on a continuous scale counts as agreeing with its label."""


def agrees(scale: Scale, verdict: Any, label: Any) -> bool:
    """Whether a verdict needs no explanation: equal, or near enough on a continuous scale."""
    return bool(
        verdict == label or (_is_continuous(scale) and scale.distance(verdict, label) <= TOLERANCE)
    )


def _is_continuous(scale: Scale) -> bool:
    return scale.kind == "numeric" and not scale.integer


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
        Called after each step with ``step``, ``best_score``, ``calls`` and ``best`` (text).
    """
    return _Ascent(
        original, train, dev, scale, fields, ask, reflect, seed, settings or Settings(), on_step
    ).climb()


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
        on_step: Callable[[dict[str, Any]], None] | None,
    ) -> None:
        self.original, self.train, self.dev = original, list(train), list(dev)
        self.scale, self.fields, self.settings = scale, fields, settings
        self.ask, self.reflect, self.on_step = ask, reflect, on_step
        self.rng = random.Random(f"simba-{seed}")
        self.verdicts: dict[tuple[str, str], Verdict] = {}
        self.scores: dict[str, float] = {}
        self.pool: dict[str, Candidate] = {}
        self.rows: list[dict[str, Any]] = []
        self.evidence: dict[str, list[str]] = {}
        self.tally = {"judge": 0, "reflection": 0, "failures": 0, "asked": 0}
        self.tokens: list[int] = []
        self.costs: list[float] = []
        # Beyond some 150 items a larger dev set costs more calls than it adds certainty.
        order = self.stratified(self.dev, self.settings.max_dev)
        self.dev = order
        # A third of the dev set decides which candidates are worth the next third, and so on.
        third = max(1, math.ceil(len(order) / 3))
        self.dev_parts = [order[i : i + third] for i in range(0, len(order), third)]
        self.weights = self.label_weights()

    def climb(self) -> Optimised:
        self.score_all([self.original], 0)
        if self.original.key not in self.scores:
            raise ModelError(
                "The judge gave no usable verdict on the items that candidates are selected on, "
                "so there is nothing to improve on. Look at workbench.assess(judge).failures."
            )
        best, stale, stopped = self.original, 0, "all steps were made"
        for step in range(1, self.settings.max_steps + 1):
            if not self.anything_to_gain(best):
                stopped = "nothing is left to gain on dev"
                break
            try:
                children = self.offspring(best, step)
                if children:
                    self.score_all(children, step, to_beat=self.scores[best.key])
            except BudgetError:
                stopped = "the budget is spent"
                break
            winner = max(self.pool.values(), key=lambda c: (self.scores[c.key], -len(c.text)))
            risen = self.scores[winner.key] > self.scores[best.key] + 1e-9
            best, stale = (winner, 0) if risen else (best, stale + 1)
            if self.on_step is not None:
                self.on_step(
                    {
                        "step": step,
                        "best_score": self.scores[best.key],
                        "calls": self.tally["judge"],
                        "reflections": self.tally["reflection"],
                        "failures": self.tally["failures"],
                        "best": best.text,
                    }
                )
            if stale >= self.settings.patience:
                stopped = f"the dev score has not risen for {stale} steps"
                break
        return Optimised(
            best=best,
            original_score=self.scores[self.original.key],
            best_score=self.scores[best.key],
            history=pd.DataFrame(self.rows),
            stopped=stopped,
            judge_calls=self.tally["judge"],
            reflection_calls=self.tally["reflection"],
            tokens=sum(self.tokens) if self.tokens else None,
            cost=sum(self.costs) if self.costs else None,
            failures=self.tally["failures"],
            evidence={rule: self.evidence.get(rule, []) for rule in best.rules},
        )

    # -- one step -----------------------------------------------------------------------

    def offspring(self, best: Candidate, step: int) -> list[Candidate]:
        parent = self.choose_parent(best, step)
        batch = self.stratified(self.train, self.settings.batch_size)
        self.judge([(parent, item) for item in batch])
        cases = [
            Case(item, v)
            for item in batch
            if (v := self.verdicts[parent.key, item.trace_id]).error is None and v.value != "N/A"
        ]
        right: list[Case] = []
        wrong: list[Case] = []
        for case in cases:
            near = agrees(self.scale, case.verdict.value, case.item.label)
            (right if near else wrong).append(case)
        children: list[Candidate] = []
        if len(wrong) > 1:
            children += self.reflected(parent, wrong, right, step)
            if self.settings.max_examples:
                children.append(self.with_examples(parent, wrong))
        if parent.rules:
            children.append(parent.without_rule(self.rng.randrange(len(parent.rules))))
        if parent.key != best.key and children:
            children.append(best.with_rules(list(children[0].rules), "merge"))
        known = set(self.scores)
        fresh = {c.key: c for c in children if c.key not in known and c.text != self.original.text}
        return list(fresh.values())

    def anything_to_gain(self, best: Candidate) -> bool:
        """Whether the best candidate is wrong anywhere on dev."""
        return self.scores[best.key] < 1.0 - self.price(best) - 1e-9

    def choose_parent(self, best: Candidate, step: int) -> Candidate:
        """The best candidate on odd steps, else one drawn by softmax of the scores."""
        if step % 2 or len(self.pool) < 2:
            return best
        ranked = sorted(self.pool.values(), key=lambda c: c.key)
        top = self.scores[best.key]
        weights = [math.exp((self.scores[c.key] - top) / self.settings.temperature) for c in ranked]
        return self.rng.choices(ranked, weights)[0]

    def stratified(self, items: Sequence[Item], size: int) -> list[Item]:
        """Up to ``size`` items, drawn by the seed; labels take turns so that none is missed."""
        by_label: dict[Any, list[Item]] = defaultdict(list)
        for item in sorted(items, key=lambda one: (self.rng.random(), one.trace_id)):
            by_label[item.label].append(item)
        queues = [by_label[label] for label in sorted(by_label, key=str)]
        drawn: list[Item] = []
        while len(drawn) < min(size, len(items)):
            for queue in queues:
                if queue and len(drawn) < size:
                    drawn.append(queue.pop())
        return drawn

    def reflected(
        self, parent: Candidate, wrong: list[Case], right: list[Case], step: int
    ) -> list[Candidate]:
        groups = self.groups(wrong)
        requests = [
            Request(parent.text, tuple(cases), tuple(right), self.fields, focus)
            for focus, cases in groups
        ]
        answers = self.reflect(requests, step)
        children, every = [], []
        for (focus, cases), answer in zip(groups, answers, strict=True):
            self.tally["reflection"] += answer.calls
            self.tokens += [answer.tokens] if answer.tokens else []
            self.costs += [answer.cost] if answer.cost else []
            rules = list(answer.rules)
            if not rules:
                continue
            child = parent.with_rules(rules, f"rules: {focus}")
            for rule in child.rules[len(parent.rules) :]:
                self.evidence.setdefault(rule, [case.item.trace_id for case in cases])
            children.append(child)
            if len(rules) > 1:
                children.append(parent.with_rules(rules[:1], f"first rule: {focus}"))
            if focus != _EVERYTHING:
                every += rules
        if every and len(children) > 1:
            children.append(parent.with_rules(every, "rules of all groups"))
        return children

    def groups(self, wrong: list[Case]) -> list[tuple[str, list[Case]]]:
        """Disagreements that look alike, and all of them together."""
        by_focus: dict[str, list[Case]] = defaultdict(list)
        for case in wrong:
            if self.scale.kind == "nominal":
                by_focus[f"people say {case.item.label}"].append(case)
            else:
                high = self.scale.rank(case.verdict.value) > self.scale.rank(case.item.label)
                by_focus["the judge rates too high" if high else "the judge rates too low"].append(
                    case
                )
        groups = [(focus, cases) for focus, cases in sorted(by_focus.items()) if len(cases) > 1]
        if len(by_focus) > 1 or not groups:
            groups.insert(0, (_EVERYTHING, wrong))
        return groups

    def with_examples(self, parent: Candidate, wrong: list[Case]) -> Candidate:
        """Two disagreements as worked examples, first those that people gave a reason for."""
        told = sorted(wrong, key=lambda case: (not case.item.rationale, self.rng.random()))
        picked: dict[Any, Case] = {}
        for case in told:
            picked.setdefault(case.item.label, case)
        shown = [self.worked_example(case.item) for case in list(picked.values())[:2]]
        return parent.with_examples(shown, self.settings.max_examples)

    def worked_example(self, item: Item) -> WorkedExample:
        values = {
            "inputs": item.example.inputs,
            "outputs": item.example.outputs,
            "expectations": item.example.expectations,
        }
        fields = tuple((name, values[name]) for name in self.fields if name in values)
        return WorkedExample(item.trace_id, fields, str(item.label), item.rationale)

    # -- scoring ------------------------------------------------------------------------

    def score_all(self, candidates: list[Candidate], step: int, to_beat: float = -math.inf) -> None:
        """Score candidates on dev; those that cannot beat ``to_beat`` are dropped half-way."""
        alive = candidates
        seen: list[Item] = []
        for part in self.dev_parts:
            self.judge([(candidate, item) for candidate in alive for item in part])
            seen += part
            if len(seen) < len(self.dev) and to_beat > -math.inf:
                alive = [c for c in alive if self.at_most(c, seen) > to_beat]
        for candidate in candidates:
            finished = candidate in alive
            score, accuracy = self.score(candidate, self.dev) if finished else (math.nan, math.nan)
            if finished and not math.isnan(score):
                self.scores[candidate.key] = score
                self.pool[candidate.key] = candidate
            self.rows.append(
                {
                    "step": step,
                    "origin": candidate.origin,
                    "rules": len(candidate.rules),
                    "examples": len(candidate.examples),
                    "dev_score": score,
                    "dev_accuracy": accuracy,
                    "added_words": candidate.added_words,
                    "best": score > to_beat + 1e-9 if finished else False,
                    "calls": self.tally["judge"],
                }
            )

    def score(self, candidate: Candidate, items: Sequence[Item]) -> tuple[float, float]:
        """(mean credit less the price of length, accuracy); nan where no verdict is usable."""
        earned, exact, weights = [], [], []
        failed = 0
        for item in items:
            verdict = self.verdicts[candidate.key, item.trace_id]
            if verdict.error is not None:
                failed += 1
                continue
            if verdict.value == "N/A":
                # Abstaining is neither right nor wrong, but it must not pay: where the original
                # judge had an opinion, having none earns nothing.
                if self.has_opinion(self.original, item):
                    weights.append(self.weights.get(item.label, 1.0))
                    earned.append(0.0)
                continue
            weights.append(self.weights.get(item.label, 1.0))
            earned.append(weights[-1] * credit(self.scale, verdict.value, item.label))
            exact.append(verdict.value == item.label)
        if not exact or failed > MOST_FAILED * len(items):
            return math.nan, math.nan
        return sum(earned) / sum(weights) - self.price(candidate), sum(exact) / len(exact)

    def has_opinion(self, candidate: Candidate, item: Item) -> bool:
        verdict = self.verdicts.get((candidate.key, item.trace_id))
        return verdict is not None and verdict.error is None and verdict.value != "N/A"

    def label_weights(self) -> dict[Any, float]:
        """Weight of each label: 1, or such that every label counts the same in all."""
        if self.settings.class_weight is None:
            return {}
        counts = Counter(item.label for item in self.dev)
        return {label: len(self.dev) / (len(counts) * n) for label, n in counts.items()}

    def at_most(self, candidate: Candidate, part: Sequence[Item]) -> float:
        """The score that the candidate would have if all that is left came out right."""
        here, _ = self.score(candidate, part)
        if math.isnan(here):
            return -math.inf
        weight = {item.trace_id: self.weights.get(item.label, 1.0) for item in self.dev}
        known = sum(weight[item.trace_id] for item in part)
        most = (here + self.price(candidate)) * known + (sum(weight.values()) - known)
        return most / sum(weight.values()) - self.price(candidate)

    def price(self, candidate: Candidate) -> float:
        return self.settings.price_of_100_words * max(0, candidate.added_words) / 100

    def judge(self, wanted: Sequence[tuple[Candidate, Item]]) -> None:
        """Get the verdicts that are not known yet, all in parallel."""
        missing = [(c, i) for c, i in wanted if (c.key, i.trace_id) not in self.verdicts]
        for (candidate, item), verdict in zip(missing, self.ask(missing), strict=True):
            self.verdicts[candidate.key, item.trace_id] = verdict
            self.tally["asked"] += 1
            self.tally["judge"] += verdict.calls
            self.tally["failures"] += verdict.error is not None
            self.tokens += [n for n in (verdict.input_tokens, verdict.output_tokens) if n]
            self.costs += [verdict.cost] if verdict.cost else []
        share = self.tally["failures"] / max(20, self.tally["asked"])
        if share > self.settings.max_failure_share:
            failed = next(v for v in self.verdicts.values() if v.error is not None)
            raise ModelError(
                f"{self.tally['failures']} of {self.tally['asked']} judge calls failed, more than "
                f"the {self.settings.max_failure_share:.0%} allowed. One of them: {failed.error}. "
                "Mend the cause and run again: answers that were paid for are kept. Or allow more "
                "with SIMBA(max_failure_share=...)."
            )


_EVERYTHING = "all disagreements"
