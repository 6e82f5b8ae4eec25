"""Candidates: the instructions that SIMBA tries, made of original text, rules and examples."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any

from workbench.models.cache import question_key
from workbench.models.offline.learnt import EXAMPLES_HEADING, RULES_HEADING, taken_apart

LONGEST_FIELD = 1500
"""Characters of an item's field in a worked example; longer ones are cut, visibly."""


@dataclass(frozen=True)
class WorkedExample:
    """A human-labelled item as it is shown in instructions."""

    trace_id: str
    fields: tuple[tuple[str, Any], ...]
    rating: str
    rationale: str
    written: str = ""

    def __str__(self) -> str:
        if self.written:  # taken over from instructions that were learned before
            return self.written
        lines = [f"{name}: {shortened_json(value)}" for name, value in self.fields]
        if self.rationale:
            lines.append(f"why: {shortened_json(self.rationale)}")
        return "\n".join([*lines, f"rating: {' '.join(self.rating.split())}"])


@dataclass(frozen=True)
class Candidate:
    """One set of instructions.

    ``origin`` says in a few words how it came to be, ``parent`` is the key of the candidate
    that it was made from.
    """

    base: str
    rules: tuple[str, ...] = ()
    examples: tuple[WorkedExample, ...] = ()
    origin: str = "original"
    parent: str | None = None

    @property
    def text(self) -> str:
        """The instructions as the judge gets them."""
        parts = [self.base]
        if self.rules:
            parts.append("\n".join([RULES_HEADING, *(f"- {rule}" for rule in self.rules)]))
        if self.examples:
            shown = "\n\n".join(map(str, self.examples))
            parts.append(f"{EXAMPLES_HEADING}\n\n{shown}")
        head, *learned = parts
        return "\n\n".join([head, *map(without_variables, learned)])

    @property
    def key(self) -> str:
        return question_key(self.text)[:16]

    @property
    def added_words(self) -> int:
        """Words that a judgement with these instructions reads beyond the original's."""
        return len(self.text.split()) - len(self.base.split())

    @classmethod
    def from_instructions(cls, text: str) -> Candidate:
        """Instructions taken apart where rules and examples were learned before.

        What cannot be taken apart and put together to the same text is all base.
        """
        base, rules, examples = taken_apart(text)
        shown = tuple(WorkedExample(question_key(e)[:16], (), "", "", e) for e in examples)
        parted = cls(base, tuple(rules), shown)
        return parted if parted.text == text else cls(text)

    def with_rules(self, rules: Sequence[str], origin: str) -> Candidate:
        """A child with these rules behind its own; those that say the same are left out."""
        kept = list(self.rules)
        for rule in map(_one_line, rules):
            if _WORD.search(rule) and not any(says_the_same(rule, own) for own in kept):
                kept.append(rule)
        return replace(self, rules=tuple(kept), origin=origin, parent=self.key)

    def rewritten(self, rules: Sequence[str], origin: str) -> Candidate:
        """A child with these rules in place of its own."""
        bare = replace(self, rules=()).with_rules(rules, origin)
        return replace(bare, parent=self.key)

    def without_rules(self, indices: Collection[int]) -> Candidate:
        kept = tuple(rule for i, rule in enumerate(self.rules) if i not in indices)
        origin = "drop a rule" if len(indices) == 1 else f"drop {len(indices)} rules"
        return replace(self, rules=kept, origin=origin, parent=self.key)

    def with_examples(self, examples: list[WorkedExample], most: int) -> Candidate:
        """A child that shows these examples besides its own, the newest ``most`` of all."""
        own = {example.trace_id for example in examples}
        shown = [*(e for e in self.examples if e.trace_id not in own), *examples]
        return replace(
            self, examples=tuple(shown[-most:]), origin="worked examples", parent=self.key
        )


def without_variables(text: str) -> str:
    """The text with ``{{`` and ``}}`` broken up.

    What people and models wrote must not be taken for a template variable of the judge.
    """
    return text.replace("{{", "{ {").replace("}}", "} }")


def shortened_json(value: Any, longest: int = LONGEST_FIELD) -> str:
    """The value as JSON on one line; text that is too long is cut and says so."""
    text = one_line_json(value)
    if len(text) <= longest:
        return text
    plain = value if isinstance(value, str) else text
    return one_line_json(f"{plain[:longest]} [… {len(plain) - longest} more characters]")


def one_line_json(value: Any) -> str:
    """The value as JSON on a line that stays one for every reader.

    Text is shown as it is, but for characters that some readers take for the end of a line and
    for halves of surrogate pairs, which cannot be sent.
    """
    text = json.dumps(value, ensure_ascii=False, default=str)
    return _UNSHOWN.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


# JSON itself escapes those below the space.
_UNSHOWN = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def says_the_same(one: str, other: str) -> bool:
    """Whether two rules are the same words in the same order, whatever case and punctuation."""
    return _WORD.findall(one.casefold()) == _WORD.findall(other.casefold())


_WORD = re.compile(r"\w+")


def _one_line(rule: str) -> str:
    # What cannot be sent or stored, such as half of a surrogate pair, is no part of a rule.
    return " ".join(_UNSTORED.sub(" ", rule).split()).lstrip("-*• ")


_UNSTORED = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
