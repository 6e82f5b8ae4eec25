"""Labelled items, and candidates: instructions with the rules and examples learned from them."""

from __future__ import annotations

import json
import math
import random
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final, TypeVar

import pandas as pd
from mlflow.genai.judges import Judge

from workbench.judging.verdicts import Verdict
from workbench.models.budget import UNPAID, Usage
from workbench.models.cache import question_key
from workbench.store.traces import Example
from workbench.vocabulary import EXAMPLES_HEADING, RULES_HEADING

MAX_FIELD: Final = 1500  # characters shown of an item's field in a worked example

_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_WORD: Final = re.compile(r"\w{3,}")


# -- labelled items -------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """A labelled example. ``weight``, above 0, says how much it counts in scores."""

    example: Example
    label: Any
    rationale: str = ""
    weight: float = 1.0

    @property
    def trace_id(self) -> str:
        return self.example.trace_id

    def values(self, fields: Sequence[str]) -> dict[str, Any]:
        return {name: getattr(self.example, name) for name in fields}


@dataclass(frozen=True)
class Case:
    """An item with the judge's verdict on it."""

    item: Item
    verdict: Verdict


Labelled = TypeVar("Labelled", Item, Case)


def sample(items: Sequence[Labelled], size: int, rng: random.Random) -> list[Labelled]:
    """Draw up to ``size`` items, the labels in turn; items of more weight come first."""
    by_label: dict[Any, list[Labelled]] = defaultdict(list)
    drawn_from = [(one.item if isinstance(one, Case) else one, one) for one in items]
    for item, one in sorted(drawn_from, key=lambda pair: (pair[0].weight, rng.random())):
        by_label[item.label].append(one)
    queues = [by_label[label] for label in sorted(by_label, key=str)]
    drawn: list[Labelled] = []
    while len(drawn) < min(size, len(items)):
        for queue in queues:
            if queue and len(drawn) < size:
                drawn.append(queue.pop())
    return drawn


def judge_fields(judge: Judge) -> tuple[str, ...]:
    """Which of inputs, outputs and expectations the judge's instructions refer to."""
    variables = getattr(judge, "template_variables", {"inputs", "outputs"})
    fields = tuple(f for f in ("inputs", "outputs", "expectations") if f in variables)
    # A judge of whole traces is explained by their inputs and outputs.
    return fields or ("inputs", "outputs")


# -- candidates -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Candidate:
    """One version of the instructions: the original text, rules and worked examples.

    ``examples`` are texts by trace id. With ``rationale_first`` the judge writes its rationale
    before the rating. ``origin`` says how the candidate was made, ``dropped`` which rules were
    removed on the way, and why.
    """

    base: str
    rules: tuple[str, ...] = ()
    examples: Mapping[str, str] = field(default_factory=dict)
    origin: str = "original"
    dropped: Mapping[str, str] = field(default_factory=dict)
    rationale_first: bool = False

    @cached_property
    def text(self) -> str:
        learned = []
        if self.rules:
            learned.append("\n".join([RULES_HEADING, *(f"- {rule}" for rule in self.rules)]))
        if self.examples:
            learned.append("\n\n".join([EXAMPLES_HEADING, *self.examples.values()]))
        return "\n\n".join([self.base, *map(without_variables, learned)])

    @cached_property
    def key(self) -> str:
        return question_key(self.text, *["rationale first"] * self.rationale_first)[:16]

    @property
    def added_words(self) -> int:
        return len(self.text.split()) - len(self.base.split())

    @classmethod
    def from_instructions(cls, text: str) -> Candidate:
        """Split instructions into base and what an earlier alignment added, where that is sure."""
        base, _, shown = text.partition(f"\n\n{EXAMPLES_HEADING}\n\n")
        base, _, stated = base.partition(f"\n\n{RULES_HEADING}\n")
        rules = tuple(line.removeprefix("- ") for line in stated.split("\n") if line)
        blocks = [block for block in shown.split("\n\n") if block]
        candidate = cls(base, rules, {str(n): block for n, block in enumerate(blocks)})
        return candidate if candidate.text == text else cls(text)

    def with_rationale_first(self) -> Candidate:
        """Return a copy whose judge writes its rationale before the rating."""
        if self.rationale_first:
            return self
        return replace(self, rationale_first=True, origin=f"{self.origin}, rationale first")

    def with_rules(self, rules: Sequence[str], origin: str) -> Candidate:
        """Return a copy with these rules appended, without repetitions."""
        kept = list(self.rules)
        known = {words_of(rule) for rule in kept}
        for rule in (one_line(_UNPRINTABLE.sub(" ", one)).lstrip("-*• ") for one in rules):
            if words_of(rule) and words_of(rule) not in known:
                kept.append(rule)
                known.add(words_of(rule))
        dropped = {rule: why for rule, why in self.dropped.items() if rule not in kept}
        return replace(self, rules=tuple(kept), origin=origin, dropped=dropped)

    def rewritten(self, rules: Sequence[str], origin: str) -> Candidate:
        """Return a copy with these rules in place of its own."""
        kept = replace(self, rules=()).with_rules(rules, origin)
        lost = [rule for rule in self.rules if rule not in kept.rules]
        reasons = dict.fromkeys(lost, "left out when the rules were rewritten")
        return replace(kept, dropped={**kept.dropped, **reasons})

    def without_rules(self, reasons: Mapping[int, str]) -> Candidate:
        """Return a copy without the rules at these indices; the values say why."""
        kept = tuple(rule for i, rule in enumerate(self.rules) if i not in reasons)
        lost = {self.rules[i]: reason for i, reason in reasons.items()}
        return replace(self, rules=kept, origin="drop rules", dropped={**self.dropped, **lost})

    def with_examples(self, items: Iterable[Item], fields: Sequence[str], limit: int) -> Candidate:
        """Return a copy that shows these items, too; the newest ``limit`` of all are kept."""
        new = {item.trace_id: _worked_example(item, fields) for item in items}
        shown = {i: text for i, text in self.examples.items() if i not in new} | new
        return replace(self, examples=dict([*shown.items()][-limit:]), origin="worked examples")

    def with_ids(self, items: Iterable[Item], fields: Sequence[str]) -> Candidate:
        """Return a copy whose examples have the ids of the items with the fields that they show."""
        ids = {without_variables(_shown(item, fields)): item.trace_id for item in items}
        heads = {i: "\n".join(text.split("\n")[: len(fields)]) for i, text in self.examples.items()}
        shown = {ids.get(heads[i], i): text for i, text in self.examples.items()}
        return replace(self, examples=shown)

    def shows(self, item: Item) -> bool:
        return item.trace_id in self.examples


def _worked_example(item: Item, fields: Sequence[str]) -> str:
    why = [f"why: {shortened_json(item.rationale)}"] * bool(item.rationale)
    return "\n".join([_shown(item, fields), *why, f"rating: {one_line(str(item.label))}"])


def _shown(item: Item, fields: Sequence[str]) -> str:
    return "\n".join(f"{name}: {shortened_json(v)}" for name, v in item.values(fields).items())


def without_variables(text: str) -> str:
    """Break up ``{{`` and ``}}``, so that learned text adds no template variable."""
    return text.replace("{{", "{ {").replace("}}", "} }")


def shortened_json(value: Any, limit: int = MAX_FIELD) -> str:
    """Serialize to JSON on one line; a longer text is shortened in the middle and says so."""
    text = one_line_json(value)
    if len(text) <= limit:
        return text
    plain = value if isinstance(value, str) else text
    tail = limit // 3
    middle = f" [… {len(plain) - limit} more characters …] "
    return one_line_json(plain[: limit - tail] + middle + plain[len(plain) - tail :])


def one_line_json(value: Any) -> str:
    """Serialize to JSON on one line for every reader, without surrogates, which can't be sent."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    return _UNPRINTABLE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def words_of(text: str) -> str:
    """Return a text's words, by which it is compared: without case and punctuation."""
    return " ".join(re.findall(r"\w+", text.casefold()))


def one_line(text: str) -> str:
    return " ".join(text.split())


def rules_about(rules: Sequence[str], text: str) -> list[int]:
    """Indices of the rules that a rationale shares most words with; one in n rules counts 1/n."""
    words = [set(_WORD.findall(rule.casefold())) for rule in rules]
    said = set(_WORD.findall(text.casefold()))
    shared = [
        # fsum is exact, so the order of a set, which differs between processes, does not matter.
        math.fsum(1 / sum(word in other for other in words) - 1 / len(words) for word in own & said)
        for own in words
    ]
    least = max(shared, default=0.0) / 2
    found = [i for i, share in enumerate(shared) if share > 0 and share >= least]
    return sorted(found, key=lambda i: -shared[i])


@dataclass(frozen=True)
class Learned:
    """What an optimizer proposes, and what it took to find it.

    ``known`` counts answers from the cache, ``usage`` is what was paid to all models, ``stopped``
    says why learning ended, and ``evidence`` maps each rule to the trace ids that it was made from.

    Of SIMBA, ``history`` has a row for each candidate: its ``dev_score`` is nan if it dropped out
    early, ``best`` says whether it took the place of the best one, ``calls`` counts judge calls
    until then, ``dropped`` lists the rules that were dropped and why. ``best`` is the original if
    nothing scored higher.
    """

    judge: Any = None
    judge_calls: int = 0
    reflection_calls: int = 0
    embedding_calls: int = 0
    known: int = 0
    usage: Usage = UNPAID
    stopped: str = ""
    history: pd.DataFrame = field(default_factory=pd.DataFrame)
    evidence: Mapping[str, list[str]] = field(default_factory=dict)
    failures: int = 0
    reflection_failures: int = 0
    notes: tuple[str, ...] = ()
    best: Candidate = Candidate("")
