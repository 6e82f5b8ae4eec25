"""Proposals: new candidates from disagreements, by learned rules and by worked examples."""

from __future__ import annotations

import math
import random
import re
import warnings
import zlib
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np

from workbench.scale import Scale
from workbench.simba.candidate import Candidate, WorkedExample, one_line_json
from workbench.simba.items import Case, Item
from workbench.simba.reflection import Reflection, Request

Reflect = Callable[[Sequence[Request], int], list[Reflection]]
"""Asks the reflection model for rules; the number is the step."""

EVERYTHING: Final = "all disagreements"
REWRITE: Final = "rewrite the rules"
CRITERIA: Final = "what people go by"

CRITERIA_TASK: Final = (
    "By which criteria do people go? The cases show labels and reasons of people, whether or not "
    "the judge agrees with them; its verdicts are left out."
)
REWRITE_TASK: Final = (
    "Write the whole list of rules anew, so that it explains all disagreements: keep what holds, "
    "change or leave out what they contradict, put together what says the same. The rules now:"
)

CLUSTERED_FROM: Final = 16
"""Number of cases of one direction from which they are split into clusters."""

MAX_CLUSTERS: Final = 3
MIN_CLUSTER: Final = 3
HASH_BUCKETS: Final = 256

MIN_RATIONALES: Final = 2
"""Rationales on items the judge gets right from which people's criteria are asked for."""

MAX_BLAMED: Final = 2
"""Rules that one verdict is attributed to at most."""


class Proposer:
    """Proposes candidates and counts what the reflection model cost.

    ``failures`` counts requests without a usable answer. ``evidence`` maps each rule to the trace
    ids that it was made from.
    """

    def __init__(
        self, reflect: Reflect, scale: Scale, fields: tuple[str, ...], *, seed: int
    ) -> None:
        self.reflect, self.scale, self.fields, self.seed = reflect, scale, fields, seed
        self.rng = random.Random(f"simba-{seed}")
        self.evidence: dict[str, list[str]] = {}
        self.calls = self.cached = self.failures = 0
        self.tokens: list[int] = []
        self.costs: list[float] = []

    # -- rules ----------------------------------------------------------------------------

    def by_reflection(
        self,
        parent: Candidate,
        wrong: Sequence[Case],
        right: Sequence[Case],
        cured: Sequence[Case],
        step: int,
    ) -> list[Candidate]:
        """Children with rules for all disagreements, for each group of them, and rewritten rules.

        ``cured`` are the original judge's verdicts on the items that the parent gets right.
        """
        groups = cluster(wrong, self.scale, self.seed + step)
        requests = {EVERYTHING: self.request(parent, wrong, right, EVERYTHING)}
        if len(groups) > 1:
            for focus, cases in groups:
                requests[focus] = self.request(parent, cases, right, focus)
        if parent.rules:
            requests[REWRITE] = self.rewrite_request(parent, [*wrong, *cured], right)
        if step == 1 and have_rationales(right):
            requests[CRITERIA] = self.criteria_request(parent, [*wrong, *right])
        answers = self.ask(list(requests.values()), step)
        rules = dict(zip(requests, answers, strict=True))
        for focus, request in requests.items():
            self.record_evidence(parent.rewritten(rules[focus], focus).rules, request.disagreements)

        general, criteria = rules[EVERYTHING], rules.get(CRITERIA, ())
        of_groups = [rule for focus, _ in groups for rule in rules.get(focus, ())]
        children = [
            parent.with_rules(general, f"rules: {EVERYTHING}"),
            parent.with_rules(strongest(general), f"strongest rules: {EVERYTHING}"),
            parent.with_rules(of_groups, "rules of all groups"),
            parent.with_rules(criteria, f"rules: {CRITERIA}"),
            parent.with_rules(strongest(criteria), f"strongest rules: {CRITERIA}"),
            parent.rewritten(rules.get(REWRITE, parent.rules), REWRITE),
        ]
        return [child for child in children if child.rules and child.rules != parent.rules]

    def request(
        self, parent: Candidate, wrong: Sequence[Case], right: Sequence[Case], focus: str
    ) -> Request:
        return Request(parent.text, tuple(wrong), tuple(right), self.fields, focus)

    def criteria_request(self, parent: Candidate, cases: Sequence[Case]) -> Request:
        """Ask what people go by on all items, including those that the judge gets right.

        Where a judge errs by chance, most rationales are on items that it got right.
        """
        return Request(parent.text, tuple(cases), (), self.fields, CRITERIA_TASK, blind=True)

    def rewrite_request(
        self, parent: Candidate, cases: Sequence[Case], right: Sequence[Case]
    ) -> Request:
        explained = {case.item.trace_id for case in cases}
        others = [case for case in right if case.item.trace_id not in explained]
        focus = "\n".join([REWRITE_TASK, *(f"- {rule}" for rule in parent.rules)])
        return self.request(parent.rewritten((), REWRITE), cases, others, focus)

    def ask(self, requests: Sequence[Request], step: int) -> list[tuple[str, ...]]:
        """Ask all requests in parallel and return the rules of each."""
        answers = self.reflect(requests, step)
        for answer in answers:
            self.calls += answer.calls
            self.failures += bool(answer.error)
            self.cached += answer.calls == 0 and not answer.error
            self.tokens += [answer.tokens] if answer.tokens else []
            self.costs += [answer.cost] if answer.cost else []
        return [answer.rules for answer in answers]

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

    # -- worked examples ------------------------------------------------------------------

    def by_examples(self, parent: Candidate, wrong: Sequence[Case], limit: int) -> Candidate:
        """A child with two disagreements of different labels, preferably with a rationale."""
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

    # -- sampling -------------------------------------------------------------------------

    def sample(self, items: Sequence[Item], size: int) -> list[Item]:
        """Draw up to ``size`` items, the labels in turn; items of more weight come first."""
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

    def sample_cases(self, cases: Sequence[Case], size: int) -> list[Case]:
        """Draw up to ``size`` cases as `sample` draws items."""
        by_id = {case.item.trace_id: case for case in cases}
        return [by_id[i.trace_id] for i in self.sample([c.item for c in cases], size)]


# -- which cases to show ------------------------------------------------------------------------


def by_direction(wrong: Sequence[Case], scale: Scale) -> dict[str, list[Case]]:
    """Group cases by how the judge errs: too high or too low; by label on nominal scales."""
    groups: dict[str, list[Case]] = defaultdict(list)
    for case in wrong:
        if scale.kind == "nominal":
            groups[f"people say {case.item.label}"].append(case)
        else:
            high = scale.rank(case.verdict.value) > scale.rank(case.item.label)
            groups["the judge rates too high" if high else "the judge rates too low"].append(case)
    return dict(sorted(groups.items()))


def cluster(wrong: Sequence[Case], scale: Scale, seed: int) -> list[tuple[str, list[Case]]]:
    """Group cases by direction, and large groups by their words: (focus, cases).

    Groups of a single case are left out, since a single case shows nothing general.
    """
    groups: list[tuple[str, list[Case]]] = []
    for focus, cases in by_direction(wrong, scale).items():
        clusters = _k_means(cases, seed) if len(cases) >= CLUSTERED_FROM else [cases]
        for number, part in enumerate(clusters, start=1):
            name = f"{focus}, like cases {number} of {len(clusters)}"
            groups += [(name if len(clusters) > 1 else focus, part)] if len(part) > 1 else []
    return groups


def _k_means(cases: Sequence[Case], seed: int) -> list[list[Case]]:
    """Cluster by hashed words; a single cluster if one would be very small."""
    from scipy.cluster.vq import kmeans2

    # The rationale says why; the output is the best guess where there is none.
    texts = [case.item.rationale or one_line_json(case.item.example.outputs) for case in cases]
    vectors = np.array([_hashed_words(text) for text in texts])
    distinct = len(np.unique(vectors, axis=0))
    k = min(MAX_CLUSTERS, len(cases) // (CLUSTERED_FROM // 2), distinct)
    if k < 2:
        return [list(cases)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of empty clusters, which are dealt with below
        _, labels = kmeans2(vectors, k, minit="++", rng=np.random.default_rng(abs(seed)))
    clusters: list[list[Case]] = [[] for _ in range(k)]
    for case, label in zip(cases, labels, strict=True):
        clusters[label].append(case)
    return clusters if min(map(len, clusters)) >= MIN_CLUSTER else [list(cases)]


def _hashed_words(text: str) -> Any:
    """The words of a text as a unit vector."""
    vector = np.zeros(HASH_BUCKETS)
    for word in set(_WORD.findall(text.casefold())):
        vector[zlib.crc32(word.encode()) % HASH_BUCKETS] += 1.0
    return vector / (np.linalg.norm(vector) or 1.0)


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


def have_rationales(right: Sequence[Case]) -> bool:
    """Whether people gave reasons on items that the judge gets right."""
    return sum(bool(case.item.rationale) for case in right) >= MIN_RATIONALES


# -- which rules a text is about ----------------------------------------------------------------


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
    """How many words each rule shares with the text, rare words counting more.

    A word counts 1/n if n rules have it.
    """
    words = [set(_WORD.findall(rule.casefold())) for rule in rules]
    in_text = set(_WORD.findall(text.casefold()))
    return [
        # fsum is exact, so the order of a set, which differs between processes, does not matter.
        math.fsum(1 / sum(word in other for other in words) for word in own & in_text)
        for own in words
    ]


_WORD = re.compile(r"\w{3,}")
