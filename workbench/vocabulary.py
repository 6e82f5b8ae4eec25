"""How people, tables and models write rating values: words, numbers, signs, and nothing at all."""

from __future__ import annotations

import json
import math
import re
import reprlib
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache
from typing import Any, Final

from workbench.errors import ArgumentError, ScaleError


def _words(text: str) -> frozenset[str]:
    return frozenset(word.strip() for word in text.split(","))


ABSTENTIONS: Final = _words(
    "n/a, n.a, na, not applicable, can't judge, cannot judge, cant judge, can not judge, unsure, "
    "abstain, don't know, unknown, skip, skipped"
)

# What spreadsheets, databases and programs write into a cell that holds no rating.
_NO_RATING: Final = _words(
    "nan, null, none, nil, \\n, #n/a, #na, #nv, <na>, nat, ?, ??, ???, -, –, —, undefined, "
    "unrated, not rated, tbd, #null!, #value!, #ref!, #name?, #num!, #div/0!, #wert!, #bezug!"
)
_MARKS: Final = _words("+, ++, +++, --, ---, ±, +/-, +-")

# What people write for the two sides of a yes/no question. The first of each stand for the side,
# pass for yes as well; others, such as good and bad, are values of their own, and are not
# translated unasked.
_FALSE: Final = _words("no, n, false, f, 0, fail, failed, falsch, nein, faux, non, falso, nee")
_TRUE: Final = _words(
    "yes, y, true, t, 1, pass, passed, wahr, ja, vrai, oui, verdadero, vero, si, sí, sì, sim"
)
_NEGATIVE: Final = _FALSE | _words(
    "bad, incorrect, wrong, reject, rejected, negative, unacceptable, thumbs down, irrelevant, "
    "unsafe, not ok, 👎, ✗, ✘, ❌"
)
_POSITIVE: Final = _TRUE | _words(
    "good, correct, right, accept, accepted, positive, acceptable, thumbs up, relevant, safe, ok, "
    "👍, ✓, ✔, ✅"
)

# Graded words in common use, worst to best. A scale all of whose words are found in one
# of these, in the same order or its reverse, is ordinal.
_LADDERS: Final = (
    ("terrible", "very poor", "poor", "weak", "fair", "average", "acceptable", "ok", "good",
     "very good", "great", "excellent", "outstanding"),
    ("very bad", "bad", "poor", "fair", "neutral", "mediocre", "acceptable", "ok", "good",
     "very good", "excellent", "perfect"),
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

# What SIMBA writes above learned rules and examples, and the embedded model looks for.
RULES_HEADING: Final = (
    "People who rated items of this kind go by the rules below. Where a rule and the text above "
    "differ, the rule counts."
)
EXAMPLES_HEADING: Final = "Items that people rated, with their reasons:"

_NUMERAL = re.compile(r"[+-]?(?:(?:0|[1-9]\d*)(?:\.\d*)?|\.\d+)")
# With three digits behind it, the comma may as well be one of thousands.
_DECIMAL_COMMA = re.compile(r"[+-]?(?:(?:0|[1-9]\d*),(?:\d{1,2}|\d{4,})|0,\d{3})")
# Zero-width characters, and what makes an emoji of a character or sets its skin's colour.
_INVISIBLE = re.compile("[\u00ad\u200b-\u200f\u2060-\u2064\ufe0e\ufe0f\ufeff\U0001f3fb-\U0001f3ff]")
_BETWEEN_WORDS = re.compile(r"(?<=\w)[\s_\-‐‑–—]+(?=\w)|\s+")


def normal_form(text: str) -> str:
    """Return a text as it is compared: NFC, single spaces, no invisible characters, ASCII minus."""
    text = unicodedata.normalize("NFC", _INVISIBLE.sub("", text.replace("\u2212", "-")))
    return " ".join(text.split())


def folded(name: object) -> str:
    """Return the name of a person, group or slice as it is compared: as text, without case."""
    return normal_form(as_text(name)).casefold()


def group_key(key: object) -> str:
    """Return the key of a group as it is compared: 1.0, which pandas makes of 1, is 1."""
    return re.sub(r"^([+-]?\d+)\.0+$", r"\1", folded(key))


def is_unnamed(key: object) -> bool:
    """Whether the key of a group holds nothing, or a word for it."""
    return is_missing(key) or folded(key) in _NO_RATING | {"n/a"}


def check_people(argument: str, names: Iterable[object]) -> None:
    """Raise `ArgumentError` where two of the names are one person's."""
    times = Counter(map(folded, names := list(names)))
    if twice := [repr(name) for name in names if times[folded(name)] > 1]:
        raise ArgumentError(
            f"{argument} names one person twice: {' and '.join(twice)}, since case and spaces do "
            "not count. Rename one, or put their ratings into one column."
        )


def fold(value: object) -> str:
    """Return the form that all writings of a value share.

    Case, Unicode's form, spaces, dashes between words and quotes do not count, nor do the plus and
    the zeros of a number (4.0 and 4,0 are 4, but 007 a name). The signs in ``--`` and ``A-`` do.
    """
    return _fold(as_text(value))


@lru_cache(4096)
def _fold(text: str) -> str:
    text = normal_form(text).strip("\"'`“”„«»").strip()
    if _DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    if _NUMERAL.fullmatch(text):
        whole, _, decimals = text.lstrip("+-").partition(".")  # a float would round long ones
        size = f"{whole or 0}.{decimals}".rstrip("0").rstrip(".")
        return f"-{size}" if text.startswith("-") and size != "0" else size
    text = text.strip("\"'`.“”„«»").strip() or text
    text = unicodedata.normalize("NFC", text.casefold()).replace("’", "'")
    return _BETWEEN_WORDS.sub(" ", text)


def no_ratings(folded: Collection[str]) -> set[str]:
    """Return those of the folded values seen that stand for a cell without a rating."""
    found = _NO_RATING & set(folded)
    others = set(folded) - found - ABSTENTIONS - {""}
    if others and any(others | {"none"} <= set(ladder) for ladder in _LADDERS):
        found -= {"none"}  # a value beside low and high, as "-" is one beside other signs
    return set(found - {"-"} if others & _MARKS else found)


def number(value: object) -> float | None:
    """Return the finite number that a value is or is written as; None for anything else."""
    if isinstance(value, bool):
        return float(value)
    text = normal_form(str(value))
    if _DECIMAL_COMMA.fullmatch(text):
        text = text.replace(",", ".")
    try:
        found = float(text.replace("_", "?"))  # which Python takes for a separator
    except ValueError:
        return None
    return found if math.isfinite(found) else None


def binary_side(folded: str) -> int | None:
    """Return 0 for a known negative word, 1 for a known positive one, None for others."""
    return 0 if folded in _NEGATIVE else 1 if folded in _POSITIVE else None


def truth_side(folded: str) -> int | None:
    """Return 0 for a word for no, false or fail, 1 for yes, true or pass, None for others."""
    return binary_side(folded) if folded in _FALSE | _TRUE else None


def revealed(text: str) -> str:
    r"""Return a text in which what one can't see is written as codes."""
    return "".join(
        c if c.isprintable() and not unicodedata.combining(c) else f"\\u{ord(c):04x}" for c in text
    )


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


def is_missing(raw: object) -> bool:
    """Whether a cell holds nothing at all: None, nan or blank text."""
    if isinstance(raw, float):
        return math.isnan(raw)
    return raw is None or as_text(raw).strip() in ("", "<NA>", "NaT")


def is_several(raw: object) -> bool:
    """Whether a cell holds a list, a dict or an array, and not one value."""
    if isinstance(raw, (str, int, float)):  # nearly all cells
        return False
    return isinstance(raw, (list, tuple, set, frozenset, Mapping)) or getattr(raw, "ndim", 0) > 0


def as_text(raw: object) -> str:
    """Return the text of a cell; of a list or the like, which may be long or deep, a short one."""
    return reprlib.repr(raw) if is_several(raw) else str(raw)


def scalar(raw: Any, where: str = "") -> Any:
    """Return a rating as it is; lists, arrays and dicts, also as JSON, are a `ScaleError`."""
    found = raw
    if isinstance(raw, str) and raw.lstrip().startswith(("[", "{")):
        with suppress(ValueError, RecursionError):
            found = json.loads(raw)
    if is_several(found):
        raise ScaleError(
            f"{where}A rating is one value, and this is a {type(found).__name__}: "
            f"{as_text(raw)[:80]}. Take the value out of it first."
        )
    return raw


# **good**, _good_, `good`, good!, "Rating: good", "Final answer - good" and 4/5, as models write.
_DECORATION = re.compile(r"^[\s*_`#>\"'(\[]+|[\s*_`!\"')\].]+$")

_NAMED = re.compile(
    r"^(?:(?:my|the|final|overall)\s+)*(?:rating|score|label|verdict|answer|value|result|grade|"
    r"judge?ment|assessment)\W*(?:\s*is\b\s*|[:=–—-])\s*",
    re.IGNORECASE,
)

_OUT_OF = re.compile(r"([+-]?\d+(?:[.,]\d+)?)\s*(?:(?:/|out of)\s*(\d+)|(%)|stars?)", re.IGNORECASE)


def undecorated(raw: str) -> tuple[str, float | None]:
    """Return a rating without emphasis and name, and the highest one: 5 of 4/5, 3 of ★★☆."""
    text = _DECORATION.sub("", _NAMED.sub("", _DECORATION.sub("", normal_form(raw))))
    if text and set(text) <= set("★☆⭐"):
        text = f"{len(text) - text.count('☆')}" + (f"/{len(text)}" if "☆" in text else " stars")
    if not (found := _OUT_OF.fullmatch(text)):
        return text, None
    top = 100.0 if found[3] else float(found[2]) if found[2] else None
    return (text, None) if top is not None and (number(found[1]) or 0) > top else (found[1], top)


def as_numbers(values: Iterable[object]) -> list[float]:
    """Return the numbers that the values are, sorted, with the one they are out of; else none."""
    values = list(values)
    percent = {str(value).rstrip().endswith("%") for value in values}
    read = [undecorated(value) if isinstance(value, str) else (value, None) for value in values]
    tops = {top for _, top in read if top is not None}
    sizes = {number(value) for value, _ in read}
    found = sorted(tops | {size for size in sizes if size is not None})
    is_clear = not tops or (len(tops) == len(percent) == 1 and found[-1] in tops)
    return found if is_clear and None not in sizes else []
