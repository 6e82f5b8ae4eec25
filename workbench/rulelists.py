"""Rules as a reflection model states them, whatever form it chose to answer in.

What was asked for is a list under a marker. Models also answer with JSON of another shape, with
a bulleted or numbered list, or in plain sentences; none of that is worth a second request.
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Iterator
from typing import Any

FEWEST_WORDS = 3
"""Shorter lines are titles, closing words and the like."""


def rules_in(text: str) -> list[str] | None:
    """The rules that an answer states, each on a line; None where it states none.

    An empty list that the model wrote is an answer: it found no rule.

    >>> rules_in('```json\\n{"rules": []}\\n```')
    []
    >>> rules_in("These hold:\\n1. Be strict on promises.\\n2. Be kind to jokes.")
    ['Be strict on promises.', 'Be kind to jokes.']
    """
    body = _THOUGHT.sub("", text)
    # From the marker on, since a model may think aloud before it.
    body = _MARKER.split(body, maxsplit=1)[-1]
    body = _OTHER_MARKER.split(body, maxsplit=1)[0].strip()
    value = _written_value(body)
    if value is not None:
        if not (value.get("rules", value) if isinstance(value, dict) else value):
            return []
        stated = [" ".join(one.split()) for one in _strings(value)]
        lines = [one for one in stated if _is_sentence(one)]
    else:
        plain = [line.strip() for line in body.splitlines() if not line.startswith("```")]
        items = [line for line in plain if _BULLET.match(line)]
        if not items and any(map(is_refusal, plain)):
            return None  # what else it says explains why
        cleaned = [" ".join(_BULLET.sub("", line).split()) for line in items or plain]
        lines = [line for line in cleaned if _is_sentence(line)]
    return list(dict.fromkeys(lines)) or None


_THOUGHT = re.compile(r"<think>.*?</think>", re.DOTALL)
_MARKER = re.compile(r"\[\[ ## rules ## \]\]")
_OTHER_MARKER = re.compile(r"\[\[ ## \w+ ## \]\]")
_FENCED = re.compile(r"```\w*\s*\n(.*?)```", re.DOTALL)
_BULLET = re.compile(r"(?:[-*•–]|\(?\d{1,2}[.):])\s+")
_OF_ITSELF = re.compile(r"(?:I|I'm|I’m|Sorry|Sure|As an AI)\b")
_REFUSAL = re.compile(
    r"(?:\w+, (?:but )?)?I(?:(?: am|[’']m) (?:afraid|sorry|unable|not able)"
    r"| (?:can ?not|can[’']t|won[’']t|will not|must decline|apologi[sz]e))\b|(?:Sorry|As an AI)\b",
    re.IGNORECASE,
)


def is_refusal(line: str) -> bool:
    """Whether the model says of itself that it will not or cannot do what was asked.

    >>> is_refusal("Unfortunately, I can't help with that.")
    True
    >>> is_refusal("Rate answers that say \"I can't help with that\" as bad.")
    False
    """
    return bool(_REFUSAL.match(line))


def _is_sentence(line: str) -> bool:
    """Whether a line may be a rule: no title, no opening and nothing on the model itself."""
    if line.endswith(":") or line.startswith("#") or _OF_ITSELF.match(line):
        return False
    return len(re.findall(r"\w+", line)) >= FEWEST_WORDS


def _written_value(text: str) -> list[Any] | dict[str, Any] | None:
    """The JSON list or object, or Python's, that the text is, fences or holds among other words."""
    fenced = _FENCED.search(text)
    for one in (text, fenced[1].strip() if fenced else ""):
        for read in (json.loads, ast.literal_eval):
            try:
                value = read(one)
            except (ValueError, SyntaxError, MemoryError, RecursionError):
                continue
            if isinstance(value, list | dict):
                return value
    decoder = json.JSONDecoder()
    for begin in (found.start() for found in re.finditer(r"[\[{]", text)):
        try:
            value, _ = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError):
            continue
        # A rule may hold brackets; what they hold is no list of rules.
        if isinstance(value, list | dict) and any(map(_is_sentence, _strings(value))):
            return value
    return None


def _strings(value: Any) -> Iterator[str]:
    """The texts in lists and objects; of an object with rules only those, of a rule its text."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        known = [value[name] for name in ("rules", "rule", "text") if name in value]
        for each in known[:1] or value.values():
            yield from _strings(each)
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _strings(each)
