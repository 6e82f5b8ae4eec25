"""The buttons of a question: each answer with its label, the keys that choose it and its colour."""

from __future__ import annotations

import re
import string
from collections.abc import Sequence
from typing import Any, Final

RESERVED: Final = frozenset("usrxt")
"""Letters that are commands at an item (see `keys.js`) and so choose no answer."""

_FIGURE = re.compile(r"(\d)(?!\d|[.,]\d)")
_HUES = (215, 35, 170, 280, 330, 95, 250, 10, 190)


def choices(question: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the answers of a question that have a button; none where one types.

    Parameters
    ----------
    question
        As a session describes it (`LabelQuestion.to_json`).

    Returns
    -------
    list of dict
        ``value``, ``label``, ``keys`` (the first one is shown) and ``hue`` in degrees: worst to
        best on an ordered scale, apart on others.
    """
    values = _numbers(question) if question["kind"] == "numeric" else question.get("values") or []
    labels = [str(one["label"]) for one in values]
    keys = answer_keys(labels, [one["value"] for one in values], question["kind"] == "numeric")
    is_ordered = question["kind"] != "nominal" and len(values) > 1
    return [
        {
            "value": one["value"],
            "label": labels[n],
            "keys": keys[n],
            "hue": round(25 + 150 * n / (len(values) - 1)) if is_ordered else _HUES[n % len(_HUES)],
        }
        for n, one in enumerate(values)
    ]


def _numbers(question: dict[str, Any]) -> list[dict[str, Any]]:
    """The whole numbers of a scale where each has a digit of its own; 10 is the only longer one."""
    low, high = question.get("low"), question.get("high")
    if not question.get("integer") or low is None or high is None:
        return []
    if not 0 <= high <= 10 or high - low > 10 or low % 1 or high % 1:
        return []
    return [{"value": n, "label": str(n)} for n in range(int(low), int(high) + 1)]


def answer_keys(labels: Sequence[str], values: Sequence[Any], is_numeric: bool) -> list[list[str]]:
    """Return the keys of each answer: its digit, its initial where no other has it, else a letter
    that nothing else has."""
    digits = _digits(labels, values, is_numeric)
    initials = [label[:1].lower() for label in labels]
    spare = iter(c for c in string.ascii_lowercase if c not in RESERVED and c not in initials)
    keys = []
    for digit, initial in zip(digits, initials, strict=True):
        own = [digit] if digit else []
        is_letter = len(initial) == 1 and initial in string.ascii_lowercase
        if is_letter and initial not in RESERVED and initials.count(initial) == 1:
            own.append(initial)
        keys.append(own or [letter for letter in [next(spare, "")] if letter])
    return keys


def _digits(labels: Sequence[str], values: Sequence[Any], is_numeric: bool) -> list[str]:
    """The digit that chooses each answer, "" for none: the one that it shows, else its place."""
    if not any(re.match(r"[-+]?\d", label) for label in labels):
        is_figure = [type(value) is int and 0 <= value <= 9 for value in values]
        if values and all(is_figure):
            return _claimed([""] * len(labels), [str(value) for value in values])
        return ["1234567890"[n] if n < 10 else "" for n in range(len(labels))]
    found = [_FIGURE.match(label) for label in labels]
    keys = _claimed([""] * len(labels), [match[1] if match else "" for match in found])
    if "1" in keys:
        # On a scale from 1 to 10, as on the keyboard.
        is_ten = [bool(re.match(r"10(?!\d|[.,]\d)", label)) for label in labels]
        keys = _claimed(keys, ["0" if ten else "" for ten in is_ten])
    if not is_numeric:
        # "10", "20", "30": the first digit, where it stands for nothing else.
        firsts = [label[:1] if label[:1].isdecimal() else "" for label in labels]
        keys = _claimed(
            keys, [first if not key else "" for key, first in zip(keys, firsts, strict=True)]
        )
    return keys


def _claimed(keys: list[str], wanted: Sequence[str]) -> list[str]:
    """The keys, and those wanted by a single answer that has none and are free."""
    return [
        key or (digit if digit not in keys and wanted.count(digit) == 1 else "")
        for key, digit in zip(keys, wanted, strict=True)
    ]
