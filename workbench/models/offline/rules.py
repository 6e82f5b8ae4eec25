"""The sentences that the embedded model can read, and what they do to a rating.

A rule is an effect and a condition::

    Raise the rating by one step when the outputs give a number that is also in the inputs.
    Lower the rating by two steps when the outputs mention "contact us".
    Answer "refund" when the inputs mention "money back".
    Start from "fair" and disregard length and friendliness.

Conditions may be joined by "and". A sentence of any other shape is left unread: it moves
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, Literal

from workbench.models.offline.features import TONES, Text, tokens
from workbench.models.offline.learnt import FIELDS, rule_lines

Item = Mapping[str, Text]

_FIELDS = "|".join(FIELDS)

_EMPTY = Text("")


@dataclass(frozen=True)
class Condition:
    """A test of an item, with the words that say it."""

    words: str
    holds: Callable[[Item], bool]

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class Rule:
    """One readable sentence.

    ``step`` moves an ordered rating up or down by so many values; ``answer`` votes for a value;
    ``start`` sets the rating before other rules act and turns the model's own taste off.
    """

    step: int = 0
    answer: str | None = None
    start: str | None = None
    condition: Condition | None = None

    def fires(self, item: Item) -> bool:
        return self.condition is None or self.condition.holds(item)

    def __str__(self) -> str:
        if self.start is not None:
            return f'Start from "{self.start}" and disregard length and friendliness.'
        if self.answer is not None:
            return f'Answer "{self.answer}" when {self.condition}.'
        verb = "Raise" if self.step > 0 else "Lower"
        size = _STEP_WORDS[abs(self.step)]
        return f"{verb} the rating by {size} when {self.condition}."


_STEP_WORDS: Final = {1: "one step", 2: "two steps", 3: "three steps"}

_STEPS: Final = {words: step for step, words in _STEP_WORDS.items()}


_RULE = re.compile(
    r"(?:[-*•]\s*|\d+[.)]\s*)?(?:"
    r'Start from "(?P<start>[^"]+)" and disregard length and friendliness'
    r"|(?P<verb>Raise|Lower) the rating by (?P<size>one step|two steps|three steps) when (?P<if>.+)"
    r'|Answer "(?P<answer>[^"]+)" when (?P<then>.+))\.',
    re.IGNORECASE,
)


def read_rules(text: str) -> list[Rule]:
    """The rules among the lines of a text, in their order; other lines are left out.

    Lines of worked examples are data and state no rule, whatever they say.
    """
    found = []
    for line in rule_lines(text):
        rule = read_rule(line.strip())
        if rule is not None:
            found.append(rule)
    return found


def read_rule(line: str) -> Rule | None:
    """The rule that a line states; None where it states none.

    >>> str(read_rule('- Lower the rating by one step when the outputs have more than 40 words.'))
    'Lower the rating by one step when the outputs have more than 40 words.'
    """
    match = _RULE.fullmatch(line)
    if match is None:
        return None
    if match["start"]:
        return Rule(start=match["start"])
    condition = read_condition(match["if"] or match["then"])
    if condition is None:
        return None
    if match["answer"]:
        return Rule(answer=match["answer"], condition=condition)
    step = _STEPS[match["size"].lower()]
    return Rule(step=step if match["verb"].lower() == "raise" else -step, condition=condition)


def read_condition(text: str) -> Condition | None:
    """The condition that a phrase states, parts joined by "and"; None where it states none."""
    parts = re.split(rf" and (?=the (?:{_FIELDS})|at least|less than)", text.strip())
    conditions = [_read_single(part) for part in parts]
    if any(c is None for c in conditions):
        return None
    known = [c for c in conditions if c is not None]
    if len(known) == 1:
        return known[0]
    return Condition(
        " and ".join(c.words for c in known), lambda item: all(c.holds(item) for c in known)
    )


def both(first: Condition, second: Condition) -> Condition:
    """The condition that both hold."""
    return Condition(f"{first} and {second}", lambda item: first.holds(item) and second.holds(item))


# -- the single conditions: each builder has a pattern that reads back what it wrote ---------

Comparison = Literal["more", "fewer"]


def mentions(field: str, phrase: str, *, present: bool = True) -> Condition:
    needle = " " + " ".join(tokens(phrase)) + " "
    verb = "mention" if present else "do not mention"
    return Condition(
        f'the {field} {verb} "{phrase}"',
        lambda item: (needle in item.get(field, _EMPTY).padded) is present,
    )


def gives_number(field: str, *, present: bool = True) -> Condition:
    return Condition(
        f"the {field} give {'a' if present else 'no'} number",
        lambda item: bool(item.get(field, _EMPTY).numbers) is present,
    )


def number_from(field: str, source: str, *, inside: bool, present: bool = True) -> Condition:
    """The field gives a number that is (not) in the source as well."""

    def holds(item: Item) -> bool:
        mine = item.get(field, _EMPTY).numbers
        there = item.get(source, _EMPTY).numbers
        return bool(mine & there if inside else mine - there) is present

    where = "also in" if inside else "not in"
    article = "a" if present else "no"
    return Condition(f"the {field} give {article} number that is {where} the {source}", holds)


def numbers_shared(field: str, source: str, count: int) -> Condition:
    """The field gives at least ``count`` numbers that are in the source as well."""
    return Condition(
        f"the {field} give at least {count} numbers that are also in the {source}",
        lambda item: (
            len(item.get(field, _EMPTY).numbers & item.get(source, _EMPTY).numbers) >= count
        ),
    )


def opens_with_number(field: str, *, present: bool = True) -> Condition:
    """A number stands among the first ten words."""
    verb = "open" if present else "do not open"
    return Condition(
        f"the {field} {verb} with a number",
        lambda item: any(t[0].isdigit() for t in item.get(field, _EMPTY).opening) is present,
    )


def uses_mark(field: str, mark: str, *, present: bool = True) -> Condition:
    sign = {"exclamation": "!", "question": "?"}[mark]
    article = {"exclamation": "an", "question": "a"}[mark] if present else "no"
    return Condition(
        f"the {field} use {article} {mark} mark",
        lambda item: (sign in item.get(field, _EMPTY).raw) is present,
    )


def has_length(field: str, comparison: Comparison, count: int) -> Condition:
    def holds(item: Item) -> bool:
        length = len(item.get(field, _EMPTY).words)
        return length > count if comparison == "more" else length < count

    return Condition(f"the {field} have {comparison} than {count} words", holds)


def has_tone(field: str, tone: str, *, present: bool = True) -> Condition:
    lexicon = TONES[tone]
    article = "words" if present else "no words"
    return Condition(
        f"the {field} use {article} of {tone}",
        lambda item: (not lexicon.isdisjoint(item.get(field, _EMPTY).words)) is present,
    )


def overlaps(part: str, whole: str, percent: int, *, at_least: bool = True) -> Condition:
    """At least (less than) so many per cent of one field's content words are in another."""

    def holds(item: Item) -> bool:
        share = item.get(part, _EMPTY).share_in(item.get(whole, _EMPTY))
        return (share * 100 >= percent) is at_least

    bound = "at least" if at_least else "less than"
    return Condition(f"{bound} {percent} % of the words of the {part} are in the {whole}", holds)


_SINGLE: Final[list[tuple[re.Pattern[str], Callable[[re.Match[str]], Condition]]]] = [
    (
        re.compile(rf'the ({_FIELDS}) (mention|do not mention) "([^"]+)"', re.IGNORECASE),
        lambda m: mentions(m[1].lower(), m[3], present=m[2].lower() == "mention"),
    ),
    (
        re.compile(rf"the ({_FIELDS}) give (a|no) number", re.IGNORECASE),
        lambda m: gives_number(m[1].lower(), present=m[2].lower() == "a"),
    ),
    (
        re.compile(
            rf"the ({_FIELDS}) give (a|no) number that is (also|not) in the ({_FIELDS})",
            re.IGNORECASE,
        ),
        lambda m: number_from(
            m[1].lower(),
            m[4].lower(),
            inside=m[3].lower() == "also",
            present=m[2].lower() == "a",
        ),
    ),
    (
        re.compile(
            rf"the ({_FIELDS}) give at least (\d{{1,6}}) numbers that are also in the ({_FIELDS})",
            re.IGNORECASE,
        ),
        lambda m: numbers_shared(m[1].lower(), m[3].lower(), int(m[2])),
    ),
    (
        re.compile(rf"the ({_FIELDS}) (open|do not open) with a number", re.IGNORECASE),
        lambda m: opens_with_number(m[1].lower(), present=m[2].lower() == "open"),
    ),
    (
        re.compile(rf"the ({_FIELDS}) use (an?|no) (exclamation|question) mark", re.IGNORECASE),
        lambda m: uses_mark(m[1].lower(), m[3].lower(), present=m[2].lower() != "no"),
    ),
    (
        re.compile(rf"the ({_FIELDS}) have (more|fewer) than (\d{{1,6}}) words", re.IGNORECASE),
        lambda m: has_length(
            m[1].lower(), "more" if m[2].lower() == "more" else "fewer", int(m[3])
        ),
    ),
    (
        re.compile(rf"the ({_FIELDS}) use (words|no words) of ({'|'.join(TONES)})", re.IGNORECASE),
        lambda m: has_tone(m[1].lower(), m[3].lower(), present=m[2].lower() == "words"),
    ),
    (
        re.compile(
            rf"(at least|less than) (\d{{1,6}}) % of the words of the ({_FIELDS}) are in "
            rf"the ({_FIELDS})",
            re.IGNORECASE,
        ),
        lambda m: overlaps(
            m[3].lower(), m[4].lower(), int(m[2]), at_least=m[1].lower() == "at least"
        ),
    ),
]


def _read_single(text: str) -> Condition | None:
    for pattern, build in _SINGLE:
        match = pattern.fullmatch(text.strip())
        if match is not None:
            return build(match)
    return None
