"""How SIMBA makes new candidates: rules asked for, rewritten or dropped, and worked examples."""

from __future__ import annotations

import math
import random
import re
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from workbench.scale import Scale
from workbench.simba.candidate import Candidate, WorkedExample, one_line_json
from workbench.simba.reflection import Case, Item, Reflection, Request

LARGE = 16
"""Cases of one direction from which they are looked at in parts, by what they have in common."""


MOST_PARTS = 3

SMALLEST = 3

DIMENSIONS = 256


def by_direction(wrong: Sequence[Case], scale: Scale) -> dict[str, list[Case]]:
    """Cases by how the judge errs: too high or too low, or by label where values have no order."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in wrong:
        if scale.kind == "nominal":
            groups[f"people say {case.item.label}"].append(case)
        else:
            high = scale.rank(case.verdict.value) > scale.rank(case.item.label)
            groups["the judge rates too high" if high else "the judge rates too low"].append(case)
    return dict(sorted(groups.items()))


def alike(wrong: Sequence[Case], scale: Scale, seed: int) -> list[tuple[str, list[Case]]]:
    """(focus, cases): by direction, large ones parted by what their texts have in common.

    Groups of a single case are left out: nothing general can be read off one case.
    """
    groups: list[tuple[str, list[Case]]] = []
    for focus, cases in by_direction(wrong, scale).items():
        parts = _parts(cases, seed) if len(cases) >= LARGE else [cases]
        for number, part in enumerate(parts, start=1):
            name = focus if len(parts) == 1 else f"{focus}, like cases {number} of {len(parts)}"
            groups += [(name, part)] if len(part) > 1 else []
    return groups


def _parts(cases: Sequence[Case], seed: int) -> list[list[Case]]:
    """The cases by k-means on their hashed words; groups that came out small stay with all."""
    from scipy.cluster.vq import kmeans2

    vectors = np.array([_vector(_text(case)) for case in cases])
    distinct = len(np.unique(vectors, axis=0))
    wanted = min(MOST_PARTS, len(cases) // (LARGE // 2), distinct)
    if wanted < 2:
        return [list(cases)]
    generator = np.random.default_rng(abs(seed))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a part that came out empty is dealt with below
        _, found = kmeans2(vectors, wanted, minit="++", rng=generator)
    parts = [[c for c, part in zip(cases, found, strict=True) if part == k] for k in range(wanted)]
    if any(len(part) < SMALLEST for part in parts):
        return [list(cases)]
    return parts


def _text(case: Case) -> str:
    """The reasons that people gave; what was rated where they gave none."""
    return case.item.rationale or one_line_json(case.item.example.outputs)


def _vector(text: str) -> Any:
    """Hashed bag of words of length 1."""
    vector = np.zeros(DIMENSIONS)
    for word in set(re.findall(r"\w{3,}", text.casefold())):
        vector[zlib.crc32(word.encode()) % DIMENSIONS] += 1.0
    return vector / (np.linalg.norm(vector) or 1.0)


Reflect = Callable[[Sequence[Request], int], list[Reflection]]
"""Rules for each request; the number tells the round."""


EVERYTHING = "all disagreements"

REWRITE = "rewrite the rules"

CRITERIA = "what people go by"

CRITERIA_TASK = (
    "By which criteria do people go? The cases show labels and reasons of people, whether or not "
    "the judge agrees with them; its verdicts are left out."
)

REWRITE_TASK = (
    "Write the whole list of rules anew, so that it explains all disagreements: keep what holds, "
    "change or leave out what they contradict, put together what says the same. The rules now:"
)


class Moves:
    """Makes candidates from disagreements, and keeps count of what the reflection cost.

    ``failures`` counts requests without a usable answer, which gave no rules.
    ``evidence`` has, for each rule, the ids of the items that it was made from (see `note`).
    """

    def __init__(
        self, reflect: Reflect, scale: Scale, fields: tuple[str, ...], *, seed: int
    ) -> None:
        self.reflect, self.scale, self.fields, self.seed = reflect, scale, fields, seed
        self.rng = random.Random(f"simba-{seed}")
        self.evidence: dict[str, list[str]] = {}
        self.calls = self.known = self.failures = 0
        self.tokens: list[int] = []
        self.costs: list[float] = []

    def reflected(
        self,
        parent: Candidate,
        wrong: Sequence[Case],
        right: Sequence[Case],
        cured: Sequence[Case],
        step: int,
    ) -> list[Candidate]:
        """Children by rules: for all disagreements, of each group, and the whole list anew.

        ``cured`` are the original's verdicts on what the parent's rules have put right.
        """
        groups: list[tuple[str, list[Case]]] = [(EVERYTHING, list(wrong))]
        parts = alike(wrong, self.scale, self.seed + step)
        groups += parts if len(parts) > 1 else []
        requests = [self.request(parent, cases, right, focus) for focus, cases in groups]
        if parent.rules:
            groups.append((REWRITE, [*wrong, *cured]))
            requests.append(self.to_rewrite(parent, [*wrong, *cured], right))
        if step == 1 and have_reasons(right):
            groups.append((CRITERIA, [*wrong, *right]))
            requests.append(self.for_criteria(parent, [*wrong, *right]))
        told = dict(zip([focus for focus, _ in groups], self.asked(requests, step), strict=True))
        for focus, cases in groups:
            self.note(parent.rewritten(told[focus], focus).rules, cases)
        together = [rule for focus, _ in parts for rule in told.get(focus, ())]
        every = told[EVERYTHING]
        children = [
            parent.with_rules(every, f"rules: {EVERYTHING}"),
            parent.with_rules(strongest(every), f"strongest rules: {EVERYTHING}"),
            parent.with_rules(together, "rules of all groups"),
            parent.with_rules(told.get(CRITERIA, ()), f"rules: {CRITERIA}"),
            parent.with_rules(strongest(told.get(CRITERIA, ())), f"strongest rules: {CRITERIA}"),
            parent.rewritten(told.get(REWRITE, parent.rules), REWRITE),
        ]
        return [child for child in children if child.rules and child.rules != parent.rules]

    def request(
        self, parent: Candidate, wrong: Sequence[Case], right: Sequence[Case], focus: str
    ) -> Request:
        return Request(parent.text, tuple(wrong), tuple(right), self.fields, focus)

    def for_criteria(self, parent: Candidate, cases: Sequence[Case]) -> Request:
        """What people say of all items, those included that the judge gets right.

        Where a judge errs by chance, most reasons are given on items that it got right.
        """
        return Request(parent.text, tuple(cases), (), self.fields, CRITERIA_TASK, blind=True)

    def to_rewrite(
        self, parent: Candidate, settle: Sequence[Case], right: Sequence[Case]
    ) -> Request:
        known = {case.item.trace_id for case in settle}
        stay = [case for case in right if case.item.trace_id not in known]
        focus = "\n".join([REWRITE_TASK, *(f"- {rule}" for rule in parent.rules)])
        return self.request(parent.rewritten((), REWRITE), settle, stay, focus)

    def asked(self, requests: Sequence[Request], step: int) -> list[tuple[str, ...]]:
        """The rules that each request gave, all asked in parallel."""
        answers = self.reflect(requests, step)
        for answer in answers:
            self.calls += answer.calls
            self.failures += bool(answer.error)
            self.known += answer.calls == 0 and not answer.error
            self.tokens += [answer.tokens] if answer.tokens else []
            self.costs += [answer.cost] if answer.cost else []
        return [answer.rules for answer in answers]

    def note(self, rules: Sequence[str], cases: Sequence[Case]) -> None:
        """Keep what each rule was made from: the cases in which people's reasons speak of it.

        All that were shown, where no reason does.
        """
        found: list[list[str]] = [[] for _ in rules]
        for case in cases:
            for i in spoken_of(rules, case.item.rationale):
                found[i].append(case.item.trace_id)
        shown = [case.item.trace_id for case in cases]
        for rule, ids in zip(rules, found, strict=True):
            self.evidence.setdefault(rule, ids or shown)

    def with_examples(self, parent: Candidate, wrong: Sequence[Case], most: int) -> Candidate:
        """Two disagreements as worked examples, first those that people gave a reason for."""
        told = sorted(wrong, key=lambda case: (not case.item.rationale, self.rng.random()))
        picked: dict[Any, Case] = {}
        for case in told:
            picked.setdefault(case.item.label, case)
        shown = [self.worked_example(case.item) for case in list(picked.values())[:2]]
        return parent.with_examples(shown, most)

    def worked_example(self, item: Item) -> WorkedExample:
        values = {
            "inputs": item.example.inputs,
            "outputs": item.example.outputs,
            "expectations": item.example.expectations,
        }
        fields = tuple((name, values[name]) for name in self.fields if name in values)
        return WorkedExample(item.trace_id, fields, str(item.label), item.rationale)

    def stratified(self, items: Sequence[Item], size: int) -> list[Item]:
        """Up to ``size`` items, drawn by the seed; labels take turns so that none is missed.

        Items of less weight come after the others.
        """
        by_label: dict[Any, list[Item]] = defaultdict(list)
        for item in sorted(items, key=lambda one: (one.weight, self.rng.random())):
            by_label[item.label].append(item)
        queues = [by_label[label] for label in sorted(by_label, key=str)]
        drawn: list[Item] = []
        while len(drawn) < min(size, len(items)):
            for queue in queues:
                if queue and len(drawn) < size:
                    drawn.append(queue.pop())
        return drawn

    def some(self, cases: Sequence[Case], size: int) -> list[Case]:
        """Up to ``size`` cases, drawn as `stratified` draws items."""
        by_id = {case.item.trace_id: case for case in cases}
        return [by_id[i.trace_id] for i in self.stratified([c.item for c in cases], size)]


def newest(wrong: Sequence[Case], right: Sequence[Case]) -> tuple[list[Case], list[Case]]:
    """Both sides without what weighs less than the weightiest disagreements.

    Where people changed their mind, earlier labels speak against the very rules that newer ones
    ask for. What the earlier ones guard is guarded when candidates are scored.
    """
    top = max((case.item.weight for case in wrong), default=0.0)
    kept = [case for case in wrong if case.item.weight >= top]
    if len(kept) < 2:
        return list(wrong), list(right)
    return kept, [case for case in right if case.item.weight >= top]


def strongest(rules: Sequence[str]) -> Sequence[str]:
    """The first half: rules come strongest first, and what comes last may rest on chance."""
    return rules[: math.ceil(len(rules) / 2)]


def have_reasons(right: Sequence[Case]) -> bool:
    """Whether people gave reasons where the judge is right, so that asking about these tells more
    than asking about disagreements."""
    return sum(bool(case.item.rationale) for case in right) >= LEAST_TOLD


def suspects(rules: Sequence[str], rationale: str, turn: int) -> list[int]:
    """Which rules a verdict's rationale speaks of: the two that share most words with it.

    Where no rule shares a word, two rules by ``turn``, so that over many verdicts each has its
    turn.
    """
    shared = _shared_words(rules, rationale)
    ranked = sorted(range(len(rules)), key=lambda i: -shared[i])
    speaking = [i for i in ranked[:SUSPECTS] if shared[i] > 0]
    every = range(SUSPECTS * turn, SUSPECTS * (turn + 1))
    return speaking or sorted({i % len(rules) for i in every})


def spoken_of(rules: Sequence[str], reason: str) -> list[int]:
    """Which rules a person's reason speaks of; none where it shares no word with any."""
    shared = _shared_words(rules, reason)
    least = max(shared, default=0.0) / 2
    return [i for i, share in enumerate(shared) if share > 0 and share >= least]


def _shared_words(rules: Sequence[str], text: str) -> list[float]:
    """How much of the text each rule has; a word counts the less the more rules have it."""
    words = [set(_WORD.findall(rule.casefold())) for rule in rules]
    said = set(_WORD.findall(text.casefold()))
    return [
        # Of a set in any order, so the sum is exact: the same in every process.
        math.fsum(1 / sum(word in other for other in words) for word in own & said)
        for own in words
    ]


LEAST_TOLD = 2
"""Reasons given on items that the judge gets right from which these are asked about as well."""


SUSPECTS = 2
"""Rules that one verdict may speak of."""


_WORD = re.compile(r"\w{3,}")
