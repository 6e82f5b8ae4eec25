"""How people, tables and models write rating values: words for yes and no, grades, numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, Final


def _words(text: str) -> frozenset[str]:
    return frozenset(word.strip() for word in text.split(","))


ABSTENTIONS: Final = _words(
    "n/a, na, not applicable, can't judge, cannot judge, cant judge, can not judge, unsure, "
    "abstain, don't know, unknown"
)


# What people write for the two sides of a yes/no question.
_NEGATIVE: Final = _words(
    "no, n, false, f, 0, fail, failed, bad, incorrect, wrong, reject, rejected, negative, "
    "unacceptable, thumbs down, irrelevant, unsafe, not ok"
)
_POSITIVE: Final = _words(
    "yes, y, true, t, 1, pass, passed, good, correct, right, accept, accepted, positive, "
    "acceptable, thumbs up, relevant, safe, ok"
)


# Graded words in common use, worst to best. A scale all of whose words are found in one
# of these, in the same order or its reverse, is ordinal.
_LADDERS: Final = (
    ("terrible", "very poor", "poor", "weak", "fair", "average", "acceptable", "ok", "good",
     "very good", "great", "excellent", "outstanding"),
    ("very bad", "bad", "poor", "fair", "neutral", "mediocre", "ok", "good", "very good",
     "excellent", "perfect"),
    ("none", "very low", "low", "medium", "high", "very high"),
    ("low", "moderate", "high"),
    ("strongly disagree", "disagree", "neutral", "agree", "strongly agree"),
    ("never", "rarely", "sometimes", "often", "always"),
    ("very dissatisfied", "dissatisfied", "neutral", "satisfied", "very satisfied"),
    ("incorrect", "wrong", "partially correct", "partly correct", "mostly correct", "correct"),
    ("no", "partly", "partially", "mostly", "yes"),
    ("not helpful", "unhelpful", "somewhat helpful", "helpful", "very helpful"),
    ("fail", "partial", "pass"),
)  # fmt: skip


_NUMERAL = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)")


def fold(value: object) -> str:
    """Return the form that all writings of a value share.

    Case, space, dashes and quotes do not count, nor do the plus and the zeros of a number: 4.0 is
    4, but 007 is a name.
    """
    text = str(value).strip().strip("\"'`“”").strip()
    if _NUMERAL.fullmatch(text):
        size = float(text)
        return str(int(size)) if size.is_integer() else repr(size)
    text = text.strip("\"'`.“”").strip().casefold().replace("’", "'")
    return re.sub(r"[\s_\-]+", " ", text)


def number(value: object) -> float | None:
    """Return the finite number that a value is or is written as; None for anything else."""
    if isinstance(value, bool):
        return float(value)
    try:
        found = float(str(value).strip())
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def binary_side(folded: str) -> int | None:
    """Return 0 for a known negative word, 1 for a known positive one, None for others."""
    return 0 if folded in _NEGATIVE else 1 if folded in _POSITIVE else None


def binary_order(values: Sequence[Any]) -> tuple[Any, ...]:
    """Return two values, the negative one first. Of unknown words the first is the positive one."""
    if ladder := ladder_order(values):
        return ladder
    first, second = values
    sides = [binary_side(fold(v)) for v in values]
    return (first, second) if sides in ([0, 1], [0, None], [None, 1]) else (second, first)


def ladder_order(values: Sequence[Any]) -> tuple[Any, ...] | None:
    """Return the values worst first where all are numbers or words of one ladder, else None."""
    if not any(number(v) is None or isinstance(v, bool) for v in values):
        return tuple(sorted(values, key=lambda v: number(v) or 0.0))
    folded = {fold(v): v for v in values}
    for ladder in _LADDERS:
        if all(word in ladder for word in folded):
            return tuple(folded[word] for word in ladder if word in folded)
    return None
