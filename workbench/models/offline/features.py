"""What the embedded model sees in a text: words, numbers, tone, overlap. English only."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

BEGINNING: Final = 20_000
"""Characters of a text that are compared with a worked example."""

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)?")
_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_TOKEN = re.compile(f"{_NUMBER.pattern}|{_WORD.pattern}")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


STOP_WORDS: Final = _words(
    "a about all also am an and any are as at be been but by can could did do does for from "
    "get had has have he her him his how i if in into is it it's its just me more my no not "
    "of on or our out she should so some than that the their them then there these they this "
    "those to up us was we were what when where which while who will with would you your"
)

PRAISE: Final = _words(
    "absolute absolutely adore amazing astonishing beautiful best brilliant charming delight "
    "delighted delightful excellent exceptional exciting extraordinary fabulous fantastic "
    "finest flawless gorgeous great ideal incredible love lovely magical magnificent "
    "marvellous marvelous outstanding perfect perfectly premium remarkable sensational simply "
    "splendid star stunning superb superior terrific thrilled top ultimate unbeatable "
    "unbelievable unique unmatched wonderful wonderfully world-class"
)

COURTESY: Final = _words(
    "appreciate apologies apologise apologize glad happy hesitate hope kind please pleased "
    "pleasure sorry thank thanks understand welcome"
)

HEDGES: Final = _words(
    "approximately around believe could generally guess imagine likely may maybe might often "
    "perhaps possibly presumably probably reckon roughly seem seems should somewhat suppose "
    "think typically usually"
)

REFERRAL: Final = _words(
    "agent ask call check consult contact department desk email enquire helpdesk hotline "
    "inquire label manual page phone refer representative see service staff support team "
    "visit website"
)

NEGATIONS: Final = _words(
    "cannot can't couldn't didn't doesn't don't isn't neither never no nor not nothing unable "
    "unfortunately unknown unsure without won't"
)

TONES: Final[Mapping[str, frozenset[str]]] = {
    "praise": PRAISE,
    "courtesy": COURTESY,
    "hedging": HEDGES,
    "referral elsewhere": REFERRAL,
    "negation": NEGATIONS,
}
"""Named word lists of general English; a condition may ask for words of one of them."""


def words(text: str) -> list[str]:
    """Return the words of a text, in lower case."""
    return [word.replace("’", "'") for word in _WORD.findall(text.lower())]


def tokens(text: str) -> list[str]:
    """Return words and numbers of a text, in lower case and in their order."""
    return [token.replace("’", "'") for token in _TOKEN.findall(text.lower())]


def numbers(text: str) -> frozenset[str]:
    """Return the numbers of a text: 1,000 is 1000, 9.50 is 9.5."""
    found = set()
    for raw in _NUMBER.findall(text):
        plain = raw.replace(",", "") if re.fullmatch(r"\d{1,3}(,\d{3})+", raw) else raw
        plain = plain.replace(",", ".")
        if plain.count(".") == 1:
            plain = plain.rstrip("0").rstrip(".")
        found.add(plain)
    return frozenset(found)


def alternatives(value: Any) -> list[str]:
    """Return the single texts of a JSON value, without keys; JSON inside text is opened as well."""
    found: list[str] = []
    left = [value]
    while left:  # no recursion: items may be nested as deeply as JSON can be
        value = left.pop()
        if isinstance(value, str):
            opened = _opened(value)
            if opened is None:
                found.append(value)
            else:
                left.append(opened)
        elif isinstance(value, Mapping):
            left += reversed(list(value.values()))
        elif isinstance(value, (list, tuple)):
            left += reversed(value)
        elif value is not None:
            found.append(str(value))
    return found


def _opened(text: str) -> list[Any] | dict[str, Any] | None:
    """The list or object that is written in a text; None where there is none."""
    if not (text[:1] in ("[", "{") and text[-1:] in ("]", "}")):
        return None
    try:
        parsed = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return parsed if isinstance(parsed, (list, dict)) else None


@dataclass(frozen=True, eq=False)
class Text:
    """One field of an item; each feature is computed once."""

    value: Any

    @functools.cached_property
    def raw(self) -> str:
        return "\n".join(alternatives(self.value))

    @functools.cached_property
    def words(self) -> list[str]:
        return words(self.raw)

    @functools.cached_property
    def tokens(self) -> list[str]:
        return tokens(self.raw)

    @functools.cached_property
    def vocabulary(self) -> frozenset[str]:
        return frozenset(self.tokens)

    @functools.cached_property
    def numbers(self) -> frozenset[str]:
        return numbers(self.raw)

    @functools.cached_property
    def beginning(self) -> frozenset[str]:
        """Words and numbers of a text's beginning, by which it is recognised."""
        begins = self.raw[:BEGINNING]
        return frozenset(words(begins)) | numbers(begins)

    @functools.cached_property
    def options(self) -> list[frozenset[str]]:
        """Content of each alternative text, for fields that list several right answers."""
        found = [tokens(text) for text in alternatives(self.value)]
        return [frozenset(t) - STOP_WORDS or frozenset(t) for t in found if t]

    @functools.cached_property
    def padded(self) -> str:
        """Tokens with a space at both ends, for looking up phrases."""
        return " " + " ".join(self.tokens) + " "

    def share_in(self, other: Text) -> float:
        """Share of this text's content that occurs in ``other``, the best of its alternatives.

        In [0, 1]; 0 where this text has no content.
        """
        there = other.vocabulary
        return max((len(o & there) / len(o) for o in self.options), default=0.0)

    def likeness(self, other: Text) -> float:
        """Jaccard similarity of the texts' beginnings, in [0, 1]; 1 for two empty ones."""
        either = len(self.beginning | other.beginning)
        return len(self.beginning & other.beginning) / either if either else 1.0


Item = Mapping[str, Text]


def as_item(values: Mapping[str, Any]) -> dict[str, Text]:
    """Return an item's fields as texts."""
    return {name: Text(value) for name, value in values.items()}
