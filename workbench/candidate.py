"""Candidates: the instructions that SIMBA tries, made of original text, rules and examples."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, replace
from typing import Any

from workbench.cache import question_key
from workbench.offline.learnt import EXAMPLES_HEADING, RULES_HEADING

LONGEST_FIELD = 1500
"""Characters of an item's field in a worked example; longer ones are cut, visibly."""


@dataclass(frozen=True)
class WorkedExample:
    """A human-labelled item as it is shown in instructions."""

    trace_id: str
    fields: tuple[tuple[str, Any], ...]
    rating: str
    rationale: str

    def __str__(self) -> str:
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

    def with_rules(self, rules: list[str], origin: str) -> Candidate:
        """A child with these rules behind its own; repetitions are left out."""
        own = {rule.casefold() for rule in self.rules}
        new = [rule for rule in dict.fromkeys(map(_one_line, rules)) if rule.casefold() not in own]
        return replace(self, rules=(*self.rules, *new), origin=origin, parent=self.key)

    def without_rule(self, index: int) -> Candidate:
        kept = self.rules[:index] + self.rules[index + 1 :]
        return replace(self, rules=kept, origin="drop a rule", parent=self.key)

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


def _one_line(rule: str) -> str:
    return " ".join(rule.split()).lstrip("-*• ")
