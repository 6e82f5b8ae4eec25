"""Proposals: new candidates from disagreements, by learned rules and by worked examples."""

from __future__ import annotations

import math
import random
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from workbench.scale import Scale
from workbench.simba.candidate import Candidate, WorkedExample
from workbench.simba.items import Case, Item
from workbench.simba.reflection import Reflection, Request

Reflect = Callable[[Sequence[Request], int], list[Reflection]]
"""Asks the reflection model for rules; the number is the step."""

Labelled = TypeVar("Labelled", Item, Case)

EVERYTHING: Final = "all disagreements"
REWRITE: Final = "rewrite the rules"
CRITERIA: Final = "what people go by"
EXAMPLES: Final = "worked examples"

CRITERIA_TASK: Final = (
    "By which criteria do people go? The cases show labels and reasons of people, whether or not "
    "the judge agrees with them; its verdicts are left out."
)
REWRITE_TASK: Final = (
    "Write the whole list of rules anew, so that it explains all disagreements: keep what holds, "
    "change or leave out what they contradict, put together what says the same. The rules now:"
)

MIN_RATIONALES: Final = 2
"""Rationales on items the judge gets right from which people's criteria are asked for."""

MAX_BLAMED: Final = 2
"""Rules that one verdict is attributed to at most."""


class Proposer:
    """Proposes candidates. ``evidence`` maps each rule to the trace ids that it was made from."""

    def __init__(
        self, reflect: Reflect, scale: Scale, fields: tuple[str, ...], *, seed: int
    ) -> None:
        self.reflect, self.scale, self.fields = reflect, scale, fields
        self.rng = random.Random(f"simba-{seed}")
        self.evidence: dict[str, list[str]] = {}
        self.calls = self.failures = 0

    def requests(
        self,
        parent: Candidate,
        wrong: Sequence[Case],
        right: Sequence[Case],
        cured: Sequence[Case] = (),
        *,
        criteria: bool = False,
    ) -> dict[str, Request]:
        """What to ask: all disagreements, each direction, rewritten rules, people's criteria.

        ``cured`` are the original judge's verdicts on items that the parent gets right.
        """
        asked = {EVERYTHING: self._request(parent, wrong, right, EVERYTHING)}
        groups = by_direction(wrong, self.scale)
        if len(groups) > 1:
            asked |= {name: self._request(parent, g, right, name) for name, g in groups.items()}
        if parent.rules:
            explained = {case.item.trace_id: case for case in (*wrong, *cured)}
            others = [case for case in right if case.item.trace_id not in explained]
            focus = "\n".join([REWRITE_TASK, *(f"- {rule}" for rule in parent.rules)])
            bare = parent.rewritten((), REWRITE)
            asked[REWRITE] = self._request(bare, [*wrong, *cured], others, focus)
        if criteria and sum(bool(case.item.rationale) for case in right) >= MIN_RATIONALES:
            # Where a judge errs by chance, most rationales are on items that it got right.
            cases = (*wrong, *right)
            asked[CRITERIA] = Request(
                parent.text, cases, (), self.fields, CRITERIA_TASK, blind=True
            )
        return asked

    def _request(
        self, parent: Candidate, wrong: Sequence[Case], right: Sequence[Case], focus: str
    ) -> Request:
        return Request(parent.text, tuple(wrong), tuple(right), self.fields, focus)

    def ask(
        self, asked: Sequence[Mapping[str, Request]], step: int
    ) -> list[dict[str, tuple[str, ...]]]:
        """Ask all requests in parallel; return the rules of each under the name of its request."""
        answers = self.reflect([r for requests in asked for r in requests.values()], step)
        self.calls += sum(answer.calls for answer in answers)
        self.failures += sum(bool(answer.error) for answer in answers)
        rules = iter(answers)
        return [{name: next(rules).rules for name in requests} for requests in asked]

    def children(
        self,
        parent: Candidate,
        asked: Mapping[str, Request],
        answers: Mapping[str, tuple[str, ...]],
    ) -> dict[str, Candidate]:
        """Make candidates from the rules that were answered, by origin."""
        for name, request in asked.items():
            self.record_evidence(parent.rewritten(answers[name], name).rules, request.disagreements)
        sources: dict[str, Sequence[str]] = {
            EVERYTHING: answers[EVERYTHING],
            "all groups": [
                rule
                for name in answers
                if name not in (EVERYTHING, REWRITE, CRITERIA)
                for rule in answers[name]
            ],
            CRITERIA: answers.get(CRITERIA, ()),
        }
        made = []
        for name, rules in sources.items():
            made.append(parent.with_rules(rules, f"rules: {name}"))
            if name != "all groups":
                made.append(parent.with_rules(strongest(rules), f"strongest rules: {name}"))
        made.append(parent.rewritten(answers.get(REWRITE, parent.rules), REWRITE))
        return {child.origin: child for child in made}

    def record_evidence(self, rules: Sequence[str], cases: Sequence[Case]) -> None:
        """Keep which cases each rule was made from: those whose rationale mentions it, else all.

        A rule that is found again keeps its first evidence.
        """
        found: list[list[str]] = [[] for _ in rules]
        for case in cases:
            for i in mentioned(rules, case.item.rationale):
                found[i].append(case.item.trace_id)
        shown = [case.item.trace_id for case in cases]
        for rule, ids in zip(rules, found, strict=True):
            self.evidence.setdefault(rule, ids or shown)

    def with_examples(self, parent: Candidate, wrong: Sequence[Case], limit: int) -> Candidate:
        """A child that shows two disagreements of different labels, if possible with rationale."""
        ranked = sorted(wrong, key=lambda case: (not case.item.rationale, self.rng.random()))
        by_label: dict[Any, Item] = {}
        for case in ranked:
            by_label.setdefault(case.item.label, case.item)
        shown = [
            WorkedExample(
                item.trace_id,
                tuple(item.values(self.fields).items()),
                str(item.label),
                item.rationale,
            )
            for item in list(by_label.values())[:2]
        ]
        return parent.with_examples(shown, limit)

    def sample(self, items: Sequence[Labelled], size: int) -> list[Labelled]:
        """Draw up to ``size`` items, the labels in turn; items of more weight come first."""
        by_label: dict[Any, list[Labelled]] = defaultdict(list)
        for item in sorted(items, key=lambda one: (one.weight, self.rng.random())):
            by_label[item.label].append(item)
        queues = [by_label[label] for label in sorted(by_label, key=str)]
        drawn: list[Labelled] = []
        while len(drawn) < min(size, len(items)):
            for queue in queues:
                if queue and len(drawn) < size:
                    drawn.append(queue.pop())
        return drawn


def by_direction(wrong: Sequence[Case], scale: Scale) -> dict[str, list[Case]]:
    """Group cases by how the judge errs: too high or too low; by label on nominal scales.

    Single cases are left out, since they show nothing general.
    """
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in wrong:
        if scale.kind == "nominal":
            groups[f"people say {case.item.label}"].append(case)
        else:
            high = scale.rank(case.verdict.value) > scale.rank(case.item.label)
            groups["the judge rates too high" if high else "the judge rates too low"].append(case)
    return {name: cases for name, cases in sorted(groups.items()) if len(cases) > 1}


def newest(wrong: Sequence[Case], right: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Leave out cases that weigh less than the heaviest disagreements, if two or more remain.

    Where people have changed their standards, earlier labels contradict the rules that newer ones
    ask for. Earlier labels still count in the score.
    """
    top = max((case.item.weight for case in wrong), default=0.0)
    kept = [case for case in wrong if case.item.weight >= top]
    if len(kept) < 2:
        return list(wrong), list(right)
    return kept, [case for case in right if case.item.weight >= top]


def strongest(rules: Sequence[str]) -> Sequence[str]:
    """The first half of the rules, which are sorted by strength."""
    return rules[: math.ceil(len(rules) / 2)]


def blamed(rules: Sequence[str], rationale: str, turn: int) -> list[int]:
    """Indices of the rules that a verdict may rest on: the two that share most words with it.

    Where no rule shares a word, ``turn`` chooses, so that over many verdicts each rule is tried.
    """
    shared = _shared_words(rules, rationale)
    ranked = sorted(range(len(rules)), key=lambda i: -shared[i])
    best = [i for i in ranked[:MAX_BLAMED] if shared[i] > 0]
    in_turn = range(MAX_BLAMED * turn, MAX_BLAMED * (turn + 1))
    return best or sorted({i % len(rules) for i in in_turn})


def mentioned(rules: Sequence[str], rationale: str) -> list[int]:
    """Indices of the rules that a person's rationale is about; none without a shared word."""
    shared = _shared_words(rules, rationale)
    least = max(shared, default=0.0) / 2
    return [i for i, share in enumerate(shared) if share > 0 and share >= least]


def _shared_words(rules: Sequence[str], text: str) -> list[float]:
    """How many words each rule shares with the text; a word that n rules have counts 1/n."""
    words = [set(_WORD.findall(rule.casefold())) for rule in rules]
    in_text = set(_WORD.findall(text.casefold()))
    return [
        # fsum is exact, so the order of a set, which differs between processes, does not matter.
        math.fsum(1 / sum(word in other for other in words) for word in own & in_text)
        for own in words
    ]


_WORD = re.compile(r"\w{3,}")
