"""Candidates: judge instructions with learned rules and worked examples."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Final

from workbench.models.cache import question_key

RULES_HEADING: Final = (
    "People who rated items of this kind go by the rules below. Where a rule and the text above "
    "differ, the rule counts."
)

EXAMPLES_HEADING: Final = "Items that people rated, with their reasons:"

MAX_FIELD: Final = 1500
"""Characters shown of an item's field in a worked example."""


@dataclass(frozen=True)
class WorkedExample:
    """A human-labelled item as it is shown in instructions.

    ``written`` is the text of an example that was read back from aligned instructions.
    """

    trace_id: str
    fields: tuple[tuple[str, Any], ...]
    rating: str
    rationale: str
    written: str = ""

    def __str__(self) -> str:
        if self.written:
            return self.written
        lines = [f"{name}: {shortened_json(value)}" for name, value in self.fields]
        if self.rationale:
            lines.append(f"why: {shortened_json(self.rationale)}")
        return "\n".join([*lines, f"rating: {' '.join(self.rating.split())}"])


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

    ``origin`` says how it was made, ``parent`` is the key of the candidate it was made from and
    ``dropped`` lists the rules that were removed on the way to it.
    """

    base: str
    rules: tuple[str, ...] = ()
    examples: tuple[WorkedExample, ...] = ()
    origin: str = "original"
    parent: str | None = None
    dropped: tuple[DroppedRule, ...] = ()

    @cached_property
    def text(self) -> str:
        """The instructions that the judge is given."""
        learned = []
        if self.rules:
            learned.append("\n".join([RULES_HEADING, *(f"- {rule}" for rule in self.rules)]))
        if self.examples:
            learned.append("\n\n".join([EXAMPLES_HEADING, *map(str, self.examples)]))
        return "\n\n".join([self.base, *map(without_variables, learned)])

    @cached_property
    def key(self) -> str:
        return question_key(self.text)[:16]

    @property
    def added_words(self) -> int:
        """Number of words added to the original instructions."""
        return len(self.text.split()) - len(self.base.split())

    @classmethod
    def from_instructions(cls, text: str) -> Candidate:
        """Split instructions into base text and what an earlier alignment added.

        All of the text is the base if it can't be put together again from the parts.

        >>> Candidate.from_instructions(f"Rate it.\\n\\n{RULES_HEADING}\\n- Be strict.").rules
        ('Be strict.',)
        """
        base, _, shown = text.partition(f"\n\n{EXAMPLES_HEADING}\n\n")
        base, _, stated = base.partition(f"\n\n{RULES_HEADING}\n")
        rules = tuple(line.removeprefix("- ") for line in stated.split("\n") if line)
        examples = tuple(
            WorkedExample(question_key(block)[:16], (), "", "", written=block)
            for block in shown.split("\n\n")
            if block
        )
        candidate = cls(base, rules, examples)
        return candidate if candidate.text == text else cls(text)

    def with_rules(self, rules: Sequence[str], origin: str) -> Candidate:
        """Return a child with these rules appended, without repetitions."""
        kept = list(self.rules)
        for rule in map(_clean_rule, rules):
            if _WORD.search(rule) and not any(is_same_rule(rule, other) for other in kept):
                kept.append(rule)
        return self._child(origin, kept, self.dropped)

    def rewritten(self, rules: Sequence[str], origin: str) -> Candidate:
        """Return a child with these rules in place of its own."""
        kept = replace(self, rules=()).with_rules(rules, origin).rules
        reason = "left out when the rules were rewritten"
        lost = [DroppedRule(rule, reason) for rule in self.rules]
        return self._child(origin, kept, [*self.dropped, *lost])

    def without_rules(self, reasons: Mapping[int, str]) -> Candidate:
        """Return a child without the rules at these indices; the values say why."""
        kept = [rule for i, rule in enumerate(self.rules) if i not in reasons]
        lost = [DroppedRule(self.rules[i], reason) for i, reason in reasons.items()]
        origin = "drop a rule" if len(reasons) == 1 else f"drop {len(reasons)} rules"
        return self._child(origin, kept, [*self.dropped, *lost])

    def with_examples(self, examples: Sequence[WorkedExample], limit: int) -> Candidate:
        """Return a child with these examples added; the newest ``limit`` of all are kept."""
        new = {example.trace_id for example in examples}
        shown = [*(e for e in self.examples if e.trace_id not in new), *examples]
        return replace(
            self, examples=tuple(shown[-limit:]), origin="worked examples", parent=self.key
        )

    def _child(
        self, origin: str, rules: Sequence[str], dropped: Sequence[DroppedRule]
    ) -> Candidate:
        still_dropped = tuple(one for one in dropped if one.rule not in rules)
        return replace(
            self, rules=tuple(rules), origin=origin, parent=self.key, dropped=still_dropped
        )


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
    """Serialize to JSON on one line.

    Characters that some readers take for a line end, and lone surrogates, which can't be sent, are
    escaped.
    """
    text = json.dumps(value, ensure_ascii=False, default=str)
    return _ESCAPED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


# json.dumps escapes the control characters below U+0020 itself.
_ESCAPED = re.compile("[\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def is_same_rule(one: str, other: str) -> bool:
    """Whether two rules have the same words in the same order, ignoring case and punctuation."""
    return _WORD.findall(one.casefold()) == _WORD.findall(other.casefold())


_WORD = re.compile(r"\w+")


def _clean_rule(rule: str) -> str:
    """Return the rule on one line, without bullets and characters that can't be stored."""
    return " ".join(_UNSTORABLE.sub(" ", rule).split()).lstrip("-*• ")


_UNSTORABLE = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
