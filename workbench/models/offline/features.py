"""What the embedded model sees in a text, and the conditions that it can read. English only."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from typing import Any, Final

FIELDS: Final = ("inputs", "outputs", "expectations")

_TOKEN = re.compile(r"\d+(?:,\d{3})*(?:\.\d+)?|[^\W\d_]+(?:['’][^\W\d_]+)?")

_WORD_LISTS: Final = {
    "stop": "a about all also am an and any are as at be been but by can could did do does for "
    "from get had has have he her him his how i if in into is it it's its just me more my no not "
    "of on or our out she should so some than that the their them then there these they this "
    "those to up us was we were what when where which while who will with would you your",
    "praise": "absolute absolutely adore amazing astonishing beautiful best brilliant charming "
    "delight delighted delightful excellent exceptional exciting extraordinary fabulous fantastic "
    "finest flawless gorgeous great ideal incredible love lovely magical magnificent marvellous "
    "marvelous outstanding perfect perfectly premium remarkable sensational simply splendid star "
    "stunning superb superior terrific thrilled top ultimate unbeatable unbelievable unique "
    "unmatched wonderful wonderfully world-class",
    "courtesy": "appreciate apologies apologise apologize glad happy hesitate hope kind please "
    "pleased pleasure sorry thank thanks understand welcome",
    "hedging": "approximately around believe could generally guess imagine likely may maybe might "
    "often perhaps possibly presumably probably reckon roughly seem seems should somewhat suppose "
    "think typically usually",
    "referral elsewhere": "agent ask call check consult contact department desk email enquire "
    "helpdesk hotline inquire label manual page phone refer representative see service staff "
    "support team visit website",
    "negation": "cannot can't couldn't didn't doesn't don't isn't neither never no nor not nothing "
    "unable unfortunately unknown unsure without won't",
}

TONES: Final = {name: frozenset(words.split()) for name, words in _WORD_LISTS.items()}
STOP_WORDS: Final = TONES.pop("stop")


def read_json(text: str) -> Any:
    """Return the JSON value that a text is; the text itself where it is none."""
    try:
        return json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return text


class Text:
    """One field of an item, any JSON value, and what can be seen in it."""

    def __init__(self, value: Any) -> None:
        self.raw = "\n".join(_parts(value))
        self.tokens = _tokens(self.raw)  # words and numbers in lower case
        self.words = [token for token in self.tokens if not token[0].isdigit()]
        self.vocabulary = frozenset(self.tokens)
        self.padded = f" {' '.join(self.tokens)} "  # for looking up phrases
        numbers = (one for one in self.vocabulary if one[0].isdecimal())
        self.numbers = frozenset(float(one.replace(",", "")) for one in numbers)

    def share_in(self, other: Text) -> float:
        """Share of its content that occurs in ``other``, in [0, 1]; 0 without any."""
        content = self.vocabulary - STOP_WORDS or self.vocabulary
        return len(content & other.vocabulary) / len(content) if content else 0.0

    def likeness(self, other: Text) -> float:
        """Jaccard similarity of the vocabularies, in [0, 1]; 1 for two empty ones."""
        either = len(self.vocabulary | other.vocabulary)
        return len(self.vocabulary & other.vocabulary) / either if either else 1.0


def _parts(value: Any) -> list[str]:
    """The single texts of a value, without keys."""
    found, left = list[str](), [value]
    while left:  # no recursion: items may be nested as deeply as JSON can be
        value = left.pop()
        if isinstance(value, (Mapping, list, tuple)):
            left += reversed(list(value.values() if isinstance(value, Mapping) else value))
        elif value is not None:
            found.append(str(value))
    return found


def _tokens(text: str) -> list[str]:
    return [token.replace("’", "'") for token in _TOKEN.findall(text.lower())]


Item = Mapping[str, Text]


def as_item(values: Mapping[str, Any]) -> dict[str, Text]:
    """Return the fields of an item as texts; other keys are left out."""
    return {name: Text(values[name]) for name in FIELDS if name in values}


_ANY_FIELD: Final = "|".join(FIELDS)
_NUMBER: Final = r"\d{1,6}"
_SLOTS: Final = {
    "field": _ANY_FIELD, "source": _ANY_FIELD, "tone": "|".join(TONES), "percent": r"\d{1,3}",
    "words": _NUMBER, "numbers": _NUMBER, "phrase": '[^"]+',
}  # fmt: skip

# Of the text of ``field``, that of ``source``, and the value of the remaining slot.
_Test = Callable[[Text, Text, Any], bool]

# Each kind of condition, with its opposite behind a bar, and its test.
_FORMS: Final[dict[str, _Test]] = {
    "the {field} give [a|no] number": lambda text, *_: bool(text.numbers),
    "the {field} [open|do not open] with a number": lambda text, *_: any(
        token[0].isdigit() for token in text.tokens[:10]
    ),
    "the {field} use [an|no] exclamation mark": lambda text, *_: "!" in text.raw,
    "the {field} use [a|no] question mark": lambda text, *_: "?" in text.raw,
    "the {field} use [|no ]words of {tone}": lambda text, _, tone: (
        not TONES[tone].isdisjoint(text.words)
    ),
    "the {field} have more than {words} words": lambda text, _, n: len(text.words) > n,
    "the {field} have fewer than {words} words": lambda text, _, n: len(text.words) < n,
    "the {field} give [a|no] number that is also in the {source}": lambda text, source, _: bool(
        text.numbers & source.numbers
    ),
    "the {field} give [a|no] number that is not in the {source}": lambda text, source, _: bool(
        text.numbers - source.numbers
    ),
    "the {field} give at least {numbers} numbers that are also in the {source}": (
        lambda text, source, n: len(text.numbers & source.numbers) >= n
    ),
    "[at least|less than] {percent} % of the words of the {field} are in the {source}": (
        lambda text, source, percent: text.share_in(source) * 100 >= percent
    ),
    'the {field} [mention|do not mention] "{phrase}"': lambda text, _, phrase: (
        f" {' '.join(_tokens(phrase))} " in text.padded
    ),
}

# Each sentence that states a condition, with its slots in braces, and what its test must give.
TEMPLATES: Final = {
    re.sub(r"\[(.*?)\|(.*?)\]", which, form): (test, which == r"\1")
    for form, test in _FORMS.items()
    for which in ([r"\1", r"\2"] if "[" in form else [r"\1"])
}


def _pattern(template: str) -> re.Pattern[str]:
    slotted = re.sub(r"\{(\w+)\}", lambda slot: f"(?P<{slot[1]}>{_SLOTS[slot[1]]})", template)
    return re.compile(slotted, re.IGNORECASE)


_PATTERNS: Final = [(_pattern(template), *test) for template, test in TEMPLATES.items()]
_EMPTY: Final = Text("")

Condition = Callable[[Item], bool]


def read_condition(text: str) -> Condition | None:
    """Return the test that a phrase states; None where it states none."""
    for pattern, test, stated in _PATTERNS:
        if match := pattern.fullmatch(text):
            return _condition(test, stated, **match.groupdict())
    return None


def _condition(test: _Test, stated: bool, field: str, source: str = "", **slot: str) -> Condition:
    field, source = field.lower(), source.lower()
    written = next(iter(slot.values()), "").lower()
    value = int(written) if written.isdigit() and "phrase" not in slot else written
    return lambda item: test(item.get(field, _EMPTY), item.get(source, _EMPTY), value) is stated
