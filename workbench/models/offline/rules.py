"""The sentences that the embedded model can read, and what they do to a rating.

A rule is an effect and a condition::

    Raise the rating by one step when the outputs give a number that is also in the inputs.
    Lower the rating by two steps when the outputs mention "contact us".
    Answer "refund" when the inputs mention "money back".
    Start from "fair" and disregard length and friendliness.

Conditions may be joined by "and". Sentences of any other form have no effect.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from workbench.models.offline.features import TONES, Item, Text, tokens
from workbench.models.offline.prompts import FIELDS, rule_lines

# -- conditions -----------------------------------------------------------------------------

_SLOTS: Final = {
    "field": "|".join(FIELDS),
    "source": "|".join(FIELDS),
    "phrase": '[^"]+',
    "tone": "|".join(TONES),
    "count": r"\d{1,6}",
}


@dataclass(frozen=True)
class Condition:
    """A test of an item, with the words that state it."""

    words: str
    holds: Callable[[Item], bool]

    def __str__(self) -> str:
        return self.words


@dataclass(frozen=True)
class _Form:
    """A kind of condition: how it is stated, how its opposite is, and its test.

    The same template writes and reads a condition. The test takes the text of ``field``, that of
    ``source`` (None where the template has none) and the value of the remaining slot.
    """

    stated: str
    opposite: str | None
    test: Callable[[Text, Any, Any], bool]


_FORMS: Final = {
    "mentions": _Form(
        'the {field} mention "{phrase}"',
        'the {field} do not mention "{phrase}"',
        lambda text, _, phrase: phrase in text.padded,
    ),
    "gives number": _Form(
        "the {field} give a number",
        "the {field} give no number",
        lambda text, _, __: bool(text.numbers),
    ),
    "gives number of": _Form(
        "the {field} give a number that is also in the {source}",
        "the {field} give no number that is also in the {source}",
        lambda text, source, _: bool(text.numbers & source.numbers),
    ),
    "gives number beyond": _Form(
        "the {field} give a number that is not in the {source}",
        "the {field} give no number that is not in the {source}",
        lambda text, source, _: bool(text.numbers - source.numbers),
    ),
    "gives numbers of": _Form(
        "the {field} give at least {count} numbers that are also in the {source}",
        None,
        lambda text, source, count: len(text.numbers & source.numbers) >= count,
    ),
    "opens with number": _Form(  # among the first ten words
        "the {field} open with a number",
        "the {field} do not open with a number",
        lambda text, _, __: any(token[0].isdigit() for token in text.tokens[:10]),
    ),
    "exclaims": _Form(
        "the {field} use an exclamation mark",
        "the {field} use no exclamation mark",
        lambda text, _, __: "!" in text.raw,
    ),
    "asks": _Form(
        "the {field} use a question mark",
        "the {field} use no question mark",
        lambda text, _, __: "?" in text.raw,
    ),
    "longer": _Form(
        "the {field} have more than {count} words",
        None,
        lambda text, _, count: len(text.words) > count,
    ),
    "shorter": _Form(
        "the {field} have fewer than {count} words",
        None,
        lambda text, _, count: len(text.words) < count,
    ),
    "tone": _Form(
        "the {field} use words of {tone}",
        "the {field} use no words of {tone}",
        lambda text, _, tone: not TONES[tone].isdisjoint(text.words),
    ),
    "overlaps": _Form(
        "at least {count} % of the words of the {field} are in the {source}",
        "less than {count} % of the words of the {field} are in the {source}",
        lambda text, source, percent: text.share_in(source) * 100 >= percent,
    ),
}

_EMPTY = Text("")


def condition(name: str, field: str, *, present: bool = True, **slots: Any) -> Condition:
    """Return a condition of a form, or its opposite where it is not to be ``present``.

    >>> str(condition("mentions", "outputs", phrase="refund", present=False))
    'the outputs do not mention "refund"'
    """
    form, source = _FORMS[name], slots.get("source", "")
    value = slots.get("count", slots.get("tone"))
    if "phrase" in slots:
        value = " " + " ".join(tokens(slots["phrase"])) + " "
    template = form.stated if present or form.opposite is None else form.opposite
    return Condition(
        template.format(field=field, **slots),
        lambda item: form.test(item.get(field, _EMPTY), item.get(source, _EMPTY), value) is present,
    )


def _pattern(template: str) -> re.Pattern[str]:
    slotted = re.sub(r"\{(\w+)\}", lambda slot: f"(?P<{slot[1]}>{_SLOTS[slot[1]]})", template)
    return re.compile(slotted, re.IGNORECASE)


_PATTERNS: Final = [
    (_pattern(template), name, template == form.stated)
    for name, form in _FORMS.items()
    for template in (form.stated, form.opposite)
    if template is not None
]

_JOINED = re.compile(rf" and (?=the (?:{_SLOTS['field']})|at least|less than)")


def read_condition(text: str) -> Condition | None:
    """Return the condition that a phrase states, parts joined by "and"; None without one."""
    parts = [_read_single(part.strip()) for part in _JOINED.split(text.strip())]
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    if len(known) == 1:
        return known[0]
    words = " and ".join(part.words for part in known)
    return Condition(words, lambda item: all(part.holds(item) for part in known))


def _read_single(text: str) -> Condition | None:
    for pattern, name, present in _PATTERNS:
        match = pattern.fullmatch(text)
        if match is not None:
            slots: dict[str, Any] = {
                slot: value if slot == "phrase" else value.lower()
                for slot, value in match.groupdict().items()
            }
            if "count" in slots:
                slots["count"] = int(slots["count"])
            return condition(name, present=present, **slots)
    return None


# -- rules ----------------------------------------------------------------------------------

_STEPS: Final = {"one step": 1, "two steps": 2, "three steps": 3}

_RULE = re.compile(
    r"(?:[-*•]\s*|\d+[.)]\s*)?(?:"
    r'Start from "(?P<start>[^"]+)" and disregard length and friendliness'
    rf"|(?P<verb>Raise|Lower) the rating by (?P<size>{'|'.join(_STEPS)}) when (?P<if>.+)"
    r'|Answer "(?P<answer>[^"]+)" when (?P<then>.+))\.',
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Rule:
    """One readable sentence.

    ``step`` moves an ordered rating up or down by so many values; ``answer`` votes for a value;
    ``start`` sets the rating before other rules act, in place of the model's own impression.
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
        size = next(words for words, step in _STEPS.items() if step == abs(self.step))
        return f"{verb} the rating by {size} when {self.condition}."


def read_rules(text: str) -> list[Rule]:
    """Return the rules among the lines of instructions, in their order.

    Lines of worked examples are data and state no rule.
    """
    rules = (read_rule(line.strip()) for line in rule_lines(text))
    return [rule for rule in rules if rule is not None]


def read_rule(line: str) -> Rule | None:
    """Return the rule that a line states; None where it states none.

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
