"""`Scale`: the rating scale of a judge and its labels.

A scale maps the forms in which people, tables and models write a value to one canonical value,
orders the values and measures the distance between two of them.
"""

from __future__ import annotations

import reprlib
import types
import typing
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, Union

from workbench.errors import ArgumentError, ScaleError
from workbench.vocabulary import (
    ABSTENTIONS,
    as_numbers,
    binary_order,
    binary_side,
    fold,
    is_missing,
    ladder_order,
    no_ratings,
    normal_form,
    number,
    scalar,
    truth_side,
    undecorated,
)

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


def scale_of(judge: Judge) -> Scale | None:
    """Return the judge's rating scale; None when its value type is plain str."""
    return Scale.from_type(getattr(judge, "feedback_value_type", None))


Kind = Literal["binary", "nominal", "ordinal", "numeric"]

MOST_CATEGORIES = 20
"""More distinct values than this are numbers, shown in bins, or no scale."""


class Abstention:
    """The state of an item that could not be judged: neither right nor wrong."""

    def __repr__(self) -> str:
        return "N/A"

    def __reduce__(self) -> str:
        return "ABSTAIN"  # the same one again, in a copy and from a file


ABSTAIN: Final = Abstention()
"""The one abstention. Compare with ``is``."""


def no_rating(raw: object, scale: Scale | None) -> bool:
    """Whether a cell holds no rating: nothing, or a word for it that the scale does not have."""
    if is_missing(raw):
        return True
    word = fold(raw)
    return word in no_ratings({word}) and not (scale and word in scale.words)


def is_abstention(value: object, scale: Scale | None = None) -> bool:
    """Whether a value says that an item could not be judged, and is none of the scale's own."""
    if not isinstance(value, str):
        return value is ABSTAIN
    word = fold(value)
    return word in ABSTENTIONS and not (scale and word in scale.words)


@dataclass(frozen=True)
class Scale:
    """A rating scale.

    Parameters
    ----------
    kind
        ``"binary"`` (two values), ``"nominal"`` (categories without an order), ``"ordinal"``
        (categories from worst to best) or ``"numeric"``.
    values
        The canonical values. Binary: negative first. Ordinal: worst first. Numeric: empty.
    low, high
        The ends of a numeric scale where they are known. They set the unit of `distance`; values
        beyond them are read, and no new labels (see `limits`).
    integer
        Whether a numeric scale takes whole numbers only.
    declared
        The two values of a binary scale in the order in which they were declared, see `shown`.
    observed
        Whether ``low`` and ``high`` are only those of values seen, see `limits`.

    Examples
    --------
    >>> scale = Scale.from_type(Literal["excellent", "good", "fair", "poor"])
    >>> scale.kind, scale.values, scale.distance("poor", "fair")
    ('ordinal', ('poor', 'fair', 'good', 'excellent'), 0.3333333333333333)
    >>> scale.normalise(" Excellent "), Scale.from_type(bool).normalise("Yes")
    ('excellent', True)
    """

    kind: Kind
    values: tuple[Any, ...] = ()
    low: float | None = None
    high: float | None = None
    integer: bool = False
    declared: tuple[Any, ...] = field(default=(), compare=False, repr=False)
    observed: bool = field(default=False, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.kind != "numeric" and len(self.words) < 2:
            raise ArgumentError(f"values={self.values!r}: a scale has at least two different ones.")
        if self.kind == "binary" and len(self.values) != 2:
            raise ArgumentError(f"values={self.values!r}: a binary scale has two of them.")

    # -- where a scale comes from -------------------------------------------------------

    @classmethod
    def from_type(cls, feedback_value_type: Any) -> Scale | None:
        """Return the scale of a judge's ``feedback_value_type``; None for plain str.

        Literals are as in `of`; bool is binary; int and float are numeric. Optional types are read
        as the type itself. Lists and dicts, which hold no single verdict, are an `ArgumentError`.
        """
        origin, inner = typing.get_origin(feedback_value_type), typing.get_args(feedback_value_type)
        if origin in (Union, types.UnionType):
            inner = tuple(one for one in inner if one is not type(None))
            return cls.from_type(inner[0]) if len(inner) == 1 else None
        if origin is Literal:
            return cls.of(inner)
        if feedback_value_type is bool:
            return cls("binary", (False, True))
        if feedback_value_type in (int, float):
            return cls("numeric", integer=feedback_value_type is int)
        if feedback_value_type in (None, str):
            return None
        raise ArgumentError(
            f"feedback_value_type={feedback_value_type!r} holds no single verdict, so it cannot "
            "be compared with a label. Use bool, int, float, str or a Literal of the values."
        )

    @classmethod
    def from_schema(cls, schema: Any) -> Scale | None:
        """Return the scale of an MLflow label schema or of its input; None for free text.

        Pass/fail is stored as a bool by MLflow, so its scale is that of bool. Inputs that take
        several values at once are an `ArgumentError`.
        """
        given = getattr(schema, "input", schema)
        match type(given).__name__:
            case "InputPassFail":
                return cls("binary", (False, True))
            case "InputNumeric":
                return cls("numeric", low=given.min_value, high=given.max_value)
            case "InputText":
                return None
            case "InputCategorical" if not given.multi_select:
                return cls.of(given.options)
        raise ArgumentError(
            f"A label schema of {type(given).__name__} holds no single rating. Use pass/fail, one "
            "choice of several, or a number."
        )

    @classmethod
    def of(
        cls, values: Sequence[Any], *, ordered: bool | None = None, positive: Any = None
    ) -> Scale:
        """Return the scale of the given values.

        ``ordered=True`` takes them as worst to best, of two the first as the negative one,
        ``ordered=False`` as categories without an order; None decides by the values: two are
        binary, numbers and graded words ordinal.
        ``positive`` names the positive one of two values; None leaves it to the words (yes is,
        no is not), and where no word is known to the first one listed. Fewer than two values, and
        values that are read as one (``yes`` and ``Yes``), are an `ArgumentError`.
        """
        # What numpy holds is not stored by MLflow.
        unique = list(dict.fromkeys(v.item() if hasattr(v, "item") else v for v in values))
        by_word: dict[str, Any] = {}
        for value in unique:
            if (other := by_word.setdefault(fold(scalar(value)), value)) is not value:
                raise ArgumentError(
                    f"The values {other!r} and {value!r} are read as one, since case, spaces and "
                    "the like do not count. Leave out or rename one of them."
                )
        if len(unique) == 2 and ordered is not False:
            order = tuple(unique) if ordered else binary_order(unique)
            scale = cls("binary", order, declared=tuple(unique))
        else:
            given = tuple(unique) if ordered else None
            ladder = ladder_order(unique) if ordered is None else given
            scale = cls("ordinal", ladder) if ladder else cls("nominal", tuple(unique))
        return scale if positive is None else scale.with_positive(positive)

    @classmethod
    def from_values(
        cls, observed: Iterable[Any], *, positive: Any = None, every: bool = False
    ) -> Scale:
        """Return the scale of observed raw values, for judges whose type is plain str.

        Up to 20 distinct values make categories, as in `of`, but that of two unknown words the
        alphabet decides, and words for yes and for no are one value each, as ``good`` and
        ``**Good!**`` are; more, if all are numbers, a numeric scale. Where all can be read as
        numbers they are, such as 4/5 or ``5 stars``, and the 5 that others are out of is on the
        scale. What stands for a missing rating (``nan``, ``NULL``, ``?``) and abstentions are left
        out, unless ``every`` is true. Fewer than two distinct values, or more than 20 that are not
        all numbers, are a `ScaleError`.
        """
        seen_at_all = (raw for raw in observed if not is_missing(raw))
        given = [scalar(raw) for raw in seen_at_all if every or not is_abstention(raw)]
        times = Counter(map(str, given))
        # The most frequent writing of a value stands for it, whatever the order of arrival.
        writings = sorted(
            given, key=lambda raw: (-times[str(raw)], str(raw), type(raw).__name__), reverse=True
        )
        bools = [raw for raw in writings if type(raw).__name__ in ("bool", "bool_")]
        texts = (str, *map(type, bools))  # True equals 1 in Python
        seen = {
            fold(raw): normal_form(str(raw)) if isinstance(raw, texts) else raw for raw in writings
        }
        for word in () if every else no_ratings(seen):
            del seen[word]
        for word, (text, top) in {word: undecorated(word) for word in seen}.items():
            if word != text and text in seen and top is None and len(text) > 1:  # A* is a grade
                del seen[word]
        distinct = [seen[word] for word in sorted(seen)]
        if numbers := as_numbers(distinct):
            distinct = [int(size) if size.is_integer() else size for size in numbers]
        sides = {truth_side(word): seen[word] for word in sorted(seen, reverse=True)}
        if set(sides) <= {0, 1}:
            # "Yes" and "true" are one value, "good" and "ok" are not; the first writing stays.
            known = [side for side in (0, 1) if side in sides]
            distinct = [bool(side) if bools else sides[side] for side in known]
        if numbers and len(distinct) > MOST_CATEGORIES:
            scale = cls("numeric", low=numbers[0], high=numbers[-1], observed=True)
        elif 2 <= len(distinct) <= MOST_CATEGORIES:
            scale = replace(cls.of(distinct), declared=())
        else:
            shown = ", ".join(map(reprlib.repr, distinct[:5])) + ", …" * (len(distinct) > 5)
            raise ScaleError(
                f"Distinct values seen: {len(distinct)} ({shown or 'none'}). They make no rating "
                "scale. Give the judge a feedback_value_type, for instance Literal['yes', 'no'] or "
                "int."
            )
        return scale if positive is None else scale.with_positive(positive)

    # -- values -------------------------------------------------------------------------

    def normalise(self, raw: Any) -> Any:
        """Return the canonical value of ``raw``, or `ABSTAIN`.

        One that is missing or cannot be mapped is a `ScaleError`, which names the allowed ones.
        """
        if no_rating(raw, self):
            held = "" if is_missing(raw) else f" ({str(raw)!r})"
            raise ScaleError(f"The value is missing{held}. Allowed: {self.describe()}.")
        if is_abstention(raw, self):
            return ABSTAIN
        if (found := self._read(scalar(raw))) is None and isinstance(raw, str):
            # The highest number of the scale, which may stand behind a rating, as in 4/5.
            top = self.high if self.kind == "numeric" else number(self.values[-1])
            text, out_of = undecorated(raw)
            found = self._read(text) if out_of in (None, top) else None
        if found is None:
            raise ScaleError(f"{raw!r} is not on the scale. Allowed: {self.describe()}.")
        return found

    @cached_property
    def words(self) -> dict[str, Any]:
        return {fold(value): value for value in self.values}

    def _read(self, raw: Any) -> Any:
        """Return the canonical value of one writing; None where there is none."""
        if self.kind == "numeric":
            size = None if isinstance(raw, bool) else number(raw)
            if size is None or (self.integer and not size.is_integer()):
                return None
            return int(size) if self.integer else size
        if (word := fold(raw)) in self.words:
            return self.words[word]
        if (size := number(word)) is not None and size in (sizes := list(map(number, self.values))):
            return self.values[sizes.index(size)]
        # Not beside other words: a yes to "Is it unsafe?" does not say safe.
        sides = {truth_side(known): value for known, value in self.words.items()}
        is_known = self.kind == "binary" and set(sides) == {0, 1}
        return sides.get(truth_side(word)) if is_known else None

    def rank(self, value: Any) -> float:
        """Return the position of a canonical value: 0 for the worst; a number is its own rank.

        On a nominal scale the rank is only the position in `values`.
        """
        return float(value) if self.kind == "numeric" else self._ranks[self.values.index(value)]

    @cached_property
    def _ranks(self) -> list[float]:
        sizes = [size for v in self.values if (size := number(v)) is not None]
        are_numbers = self.kind == "ordinal" and len(sizes) == len(self.values)
        if are_numbers and sizes == sorted(sizes):
            return sizes
        return [float(k) for k in range(len(self.values))]

    def distance(self, a: Any, b: Any) -> float:
        """Return how far two canonical values lie apart, in [0, 1].

        0 where they are equal. On nominal and binary scales 1 otherwise; on ordinal scales the
        steps between them over the most steps possible, of numbers their difference over the
        largest one; on numeric scales the difference over ``high - low`` (the larger of the two
        magnitudes where the ends are not known), cut at 1.
        """
        if a == b:
            return 0.0
        if self.kind in ("binary", "nominal"):
            return 1.0
        gap = abs(self.rank(a) - self.rank(b))
        if self.kind == "ordinal":
            return gap / (self._ranks[-1] - self._ranks[0])
        unit = max(abs(self.rank(a)), abs(self.rank(b)), 1.0)
        if self.low is not None and self.high is not None and self.high > self.low:
            unit = self.high - self.low
        return min(1.0, gap / unit)

    @property
    def positive(self) -> Any:
        """The positive value of a binary scale, see `of`; None on other scales."""
        return self.values[1] if self.kind == "binary" else None

    @property
    def positive_is_known(self) -> bool:
        """Whether words tell which of two values is positive; True on other scales."""
        if self.kind != "binary" or ladder_order(self.values):
            return True
        sides = [binary_side(fold(value)) for value in self.values]
        return sides[0] != sides[1]

    def with_positive(self, value: Any) -> Scale:
        """Return the binary scale with another positive value; if it has none, `ArgumentError`."""
        if self.kind != "binary":
            raise ArgumentError(
                f"positive={value!r} is for a scale of two values; this one is {self.kind} "
                f"({self.describe()})."
            )
        if (positive := self._read(scalar(value))) is None:
            raise ArgumentError(f"positive={value!r} is not one of {self.describe()}.")
        return self if positive == self.positive else replace(self, values=self.values[::-1])

    @property
    def shown(self) -> tuple[Any, ...]:
        """The values in the order for readers: as declared on a binary scale, else `values`."""
        return self.declared or self.values

    @property
    def ordered(self) -> bool:
        """Whether near misses exist: ordinal and numeric scales."""
        return self.kind in ("ordinal", "numeric")

    def with_range(self, observed: Iterable[Any]) -> Scale:
        """Return a numeric scale with the ends of the observed values; other scales unchanged."""
        numbers = [float(v) for v in observed] if self.kind == "numeric" else []
        if not numbers or (self.low is not None and self.high is not None):
            return self
        return replace(self, low=min(numbers), high=max(numbers), observed=True)

    @property
    def limits(self) -> tuple[float | None, float | None]:
        """The ends that a new label may not pass; None where they are not known."""
        return (None, None) if self.observed else (self.low, self.high)

    def describe(self) -> str:
        """Return the allowed values as text, for messages."""
        if self.kind != "numeric":
            return ", ".join(repr(value) for value in self.shown)
        return "whole numbers" if self.integer else "numbers"
