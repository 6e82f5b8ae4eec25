"""Judge instructions with what was learned: the original text, rules and worked examples."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Final

import pandas as pd

from workbench.models.budget import UNPAID, Usage
from workbench.models.cache import question_key
from workbench.simba.items import Item
from workbench.vocabulary import EXAMPLES_HEADING, RULES_HEADING

MAX_FIELD: Final = 1500  # characters shown of an item's field in a worked example

_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_WORD: Final = re.compile(r"\w{3,}")


@dataclass(frozen=True)
class WorkedExample:
    """A labelled item as it is written in instructions."""

    trace_id: str
    text: str

    @classmethod
    def of(cls, item: Item, fields: Sequence[str]) -> WorkedExample:
        lines = [_shown(item, fields)]
        if item.rationale:
            lines.append(f"why: {shortened_json(item.rationale)}")
        return cls(item.trace_id, "\n".join([*lines, f"rating: {one_line(str(item.label))}"]))


@dataclass(frozen=True)
class DroppedRule:
    """A rule that a candidate no longer has, and why it was dropped."""

    rule: str
    reason: str

    def __str__(self) -> str:
        return f"{self.rule!r}: {self.reason}"


@dataclass(frozen=True)
class Candidate:
    """One version of the instructions: the original text, rules and worked examples.

    With ``rationale_first`` the judge writes its rationale before the rating. ``origin`` says how
    it was made, and ``dropped`` lists the rules that were removed on the way.
    """

    base: str
    rules: tuple[str, ...] = ()
    examples: tuple[WorkedExample, ...] = ()
    origin: str = "original"
    dropped: tuple[DroppedRule, ...] = ()
    rationale_first: bool = False

    @cached_property
    def text(self) -> str:
        """The instructions that the judge is given."""
        learned = []
        if self.rules:
            learned.append("\n".join([RULES_HEADING, *(f"- {rule}" for rule in self.rules)]))
        if self.examples:
            learned.append("\n\n".join([EXAMPLES_HEADING, *(e.text for e in self.examples)]))
        return "\n\n".join([self.base, *map(without_variables, learned)])

    @cached_property
    def key(self) -> str:
        return question_key(self.text, *["rationale first"] * self.rationale_first)[:16]

    @property
    def added_words(self) -> int:
        """Number of words added to the original instructions."""
        return len(self.text.split()) - len(self.base.split())

    @classmethod
    def from_instructions(cls, text: str) -> Candidate:
        """Split instructions into base text and what an earlier alignment added.

        All of the text is the base if it can't be put together again from the parts. Which traces
        the examples are is not in the text: see `with_ids`.

        >>> Candidate.from_instructions(f"Rate it.\\n\\n{RULES_HEADING}\\n- Be strict.").rules
        ('Be strict.',)
        """
        base, _, shown = text.partition(f"\n\n{EXAMPLES_HEADING}\n\n")
        base, _, stated = base.partition(f"\n\n{RULES_HEADING}\n")
        rules = tuple(line.removeprefix("- ") for line in stated.split("\n") if line)
        blocks = [block for block in shown.split("\n\n") if block]
        examples = tuple(WorkedExample(question_key(block)[:16], block) for block in blocks)
        candidate = cls(base, rules, examples)
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
        for rule in map(_clean_rule, rules):
            if words_of(rule) and words_of(rule) not in known:
                kept.append(rule)
                known.add(words_of(rule))
        dropped = tuple(one for one in self.dropped if one.rule not in kept)
        return replace(self, rules=tuple(kept), origin=origin, dropped=dropped)

    def rewritten(self, rules: Sequence[str], origin: str) -> Candidate:
        """Return a copy with these rules in place of its own."""
        kept = replace(self, rules=()).with_rules(rules, origin)
        reason = "left out when the rules were rewritten"
        lost = [DroppedRule(rule, reason) for rule in self.rules if rule not in kept.rules]
        return replace(kept, dropped=(*kept.dropped, *lost))

    def without_rules(self, reasons: Mapping[int, str]) -> Candidate:
        """Return a copy without the rules at these indices; the values say why."""
        kept = tuple(rule for i, rule in enumerate(self.rules) if i not in reasons)
        lost = [DroppedRule(self.rules[i], reason) for i, reason in reasons.items()]
        origin = "drop a rule" if len(reasons) == 1 else f"drop {len(reasons)} rules"
        return replace(self, rules=kept, origin=origin, dropped=(*self.dropped, *lost))

    def with_examples(self, examples: Sequence[WorkedExample], limit: int) -> Candidate:
        """Return a copy with these examples added; the newest ``limit`` of all are kept."""
        new = {example.trace_id for example in examples}
        shown = [*(e for e in self.examples if e.trace_id not in new), *examples]
        return replace(self, examples=tuple(shown[-limit:]), origin="worked examples")

    def with_ids(self, items: Iterable[Item], fields: Sequence[str]) -> Candidate:
        """Return a copy whose examples have the ids of the items that they show.

        They are known by their fields: label and rationale may have changed since.
        """
        ids = {without_variables(_shown(item, fields)): item.trace_id for item in items}
        examples = [
            replace(e, trace_id=ids.get("\n".join(e.text.split("\n")[: len(fields)]), e.trace_id))
            for e in self.examples
        ]
        return replace(self, examples=tuple(examples))

    def shows(self, item: Item) -> bool:
        """Whether the item is one of the worked examples."""
        return any(example.trace_id == item.trace_id for example in self.examples)


def _shown(item: Item, fields: Sequence[str]) -> str:
    """An item's fields, a line each."""
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


def _clean_rule(rule: str) -> str:
    """Return the rule on one line, without bullets and characters that can't be stored."""
    return one_line(_UNPRINTABLE.sub(" ", rule)).lstrip("-*• ")


def rules_about(rules: Sequence[str], text: str) -> list[int]:
    """Indices of the rules that a rationale is about, those that share most words with it first.

    A word that n rules have counts 1/n. Rules that share less than half as much as the first one
    are left out.
    """
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

    Of SIMBA, ``best`` is the original if nothing scored higher; ``best.dropped`` lists the rules
    that were dropped, with the reasons. ``history`` has a row for each candidate: its ``dev_score``
    is nan if it dropped out early, ``best`` says whether it took the place of the best one,
    ``calls`` counts judge calls until then. ``original_score`` and ``best_score`` are on items that
    the best one does not show.
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
    original_score: float = math.nan
    best_score: float = math.nan
