"""The rating scale: many writings, one value; order and distance."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any, Literal, Optional

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workbench.errors import ArgumentError, ScaleError
from workbench.scale import ABSTAIN, Scale, is_abstention
from workbench.vocabulary import fold, is_missing

QUALITY = Scale.from_type(Literal["excellent", "good", "fair", "poor"])
YES_NO = Scale.from_type(Literal["yes", "no"])
STARS = Scale.from_type(Literal[1, 2, 3, 4, 5])
COLOURS = Scale.from_type(Literal["red", "green", "blue"])
TRUTH = Scale.from_type(bool)
WHOLE = Scale.from_type(int)
NUMBER = Scale.from_type(float)
CATEGORIES = [QUALITY, YES_NO, STARS, COLOURS, TRUTH]

some_scale = st.sampled_from(CATEGORIES)
sane = st.floats(-1e6, 1e6).map(lambda x: round(x, 3))


# -- what a type says -----------------------------------------------------------------------


def test_a_type_gives_the_scale() -> None:
    assert (QUALITY.kind, QUALITY.values) == ("ordinal", ("poor", "fair", "good", "excellent"))
    assert (YES_NO.kind, YES_NO.values) == ("binary", ("no", "yes"))
    assert [scale.ordered for scale in (STARS, COLOURS, TRUTH, NUMBER)] == [
        True,
        False,
        False,
        True,
    ]
    assert (STARS.kind, STARS.values) == ("ordinal", (1, 2, 3, 4, 5))
    assert (COLOURS.kind, COLOURS.values) == ("nominal", ("red", "green", "blue"))
    assert (TRUTH.kind, TRUTH.values) == ("binary", (False, True))
    assert (WHOLE.kind, WHOLE.integer) == ("numeric", True)
    assert (NUMBER.kind, NUMBER.integer) == ("numeric", False)
    assert Scale.from_type(str) is None
    assert Scale.from_type(None) is None
    assert Scale.from_type(Optional[bool]) == TRUTH  # noqa: UP045  # both writings of it
    assert Scale.from_type(int | None) == WHOLE


@pytest.mark.parametrize("kind", [list[str], dict[str, int], tuple])
def test_a_type_without_a_single_verdict_is_refused(kind: Any) -> None:
    with pytest.raises(ArgumentError, match="Use bool, int, float, str or a Literal"):
        Scale.from_type(kind)


@pytest.mark.parametrize(
    ("values", "worst_first"),
    [
        (["High", "Low", "Medium"], ("Low", "Medium", "High")),
        (["good", "poor", "excellent", "fair"], QUALITY.values),
        (["agree", "neutral", "disagree"], ("disagree", "neutral", "agree")),
        (["very_good", "good", "bad"], ("bad", "good", "very_good")),
        (["correct", "partially correct", "incorrect"],
         ("incorrect", "partially correct", "correct")),
        (["10", "9", "1"], ("1", "9", "10")),
        ([0.5, 0, 1], (0, 0.5, 1)),
        ([1, -1, 0], (-1, 0, 1)),
    ],
)  # fmt: skip
def test_ladders_and_numbers_are_ordinal(values: list[Any], worst_first: tuple[Any, ...]) -> None:
    scale = Scale.of(values)
    assert (scale.kind, scale.values) == ("ordinal", worst_first)


@pytest.mark.parametrize(
    ("values", "negative_first"),
    [
        (["pass", "fail"], ("fail", "pass")), (["fail", "pass"], ("fail", "pass")),
        (["correct", "incorrect"], ("incorrect", "correct")), ([1, 0], (0, 1)),
        (["good", "bad"], ("bad", "good")), (["helpful", "unhelpful"], ("unhelpful", "helpful")),
        # Of unknown words the first one listed is the positive one.
        (["toxic", "clean"], ("clean", "toxic")), (["spam", "no"], ("no", "spam")),
        (["odd", "good"], ("odd", "good")), (["bad", "odd"], ("bad", "odd")),
    ],
)  # fmt: skip
def test_two_values_are_binary_with_the_negative_first(
    values: list[Any], negative_first: tuple[Any, ...]
) -> None:
    scale = Scale.of(values)
    assert (scale.kind, scale.values) == ("binary", negative_first)
    assert scale.positive == negative_first[1]


@pytest.mark.parametrize("values", [["spam", "ham"], ["ham", "spam"]])
def test_the_positive_one_of_two_values_may_be_named(values: list[str]) -> None:
    for make in (Scale.of, Scale.from_values):
        for positive in values:
            assert make(values, positive=f" {positive.upper()}").positive == positive
    # Also against what the words say: that an answer is unsafe may be what is looked for.
    assert Scale.of(["safe", "unsafe"], positive="unsafe").positive == "unsafe"
    assert Scale.from_values(["ham", "spam"]).positive == "ham"
    assert Scale.from_type(Literal["spam", "ham"]) == Scale.of(["spam", "ham"], positive="spam")


def test_a_positive_value_that_is_none_is_refused() -> None:
    with pytest.raises(ArgumentError, match=r"positive='eggs' is not one of 'spam', 'ham'"):
        Scale.from_values(["ham", "spam"], positive="eggs")
    with pytest.raises(ArgumentError, match="scale of two values; this one is ordinal"):
        Scale.of([1, 2, 3], positive=3)
    with pytest.raises(ArgumentError, match="not one of"):
        Scale.of(["ham", "spam"], positive="N/A")


@pytest.mark.parametrize(
    ("values", "known"),
    [
        (["spam", "ham"], False), (["good", "correct"], False), (["yes", "no"], True),
        (["spam", "no"], True), (["spam", "good"], True), ([False, True], True), ([1, 2], True),
        (["helpful", "unhelpful"], True), (["a", "b", "c"], True),
    ],
)  # fmt: skip
def test_whether_words_tell_the_positive_value(values: list[Any], known: bool) -> None:
    assert Scale.of(values).positive_is_known is known


def test_values_of_a_table_become_plain() -> None:
    """Those of pandas and numpy are stored as Python's are."""
    table = pd.DataFrame({"stars": [3, 1, 2], "ok": [True, False, True], "x": [0.5, 1.0, 1.5]})
    for column, kind in (("stars", int), ("ok", bool), ("x", float)):
        scale = Scale.of(sorted(table[column].unique()))
        assert {type(value) for value in scale.values} == {kind}


def test_the_order_may_be_given() -> None:
    assert Scale.of(["b", "a", "c"], ordered=True).values == ("b", "a", "c")
    assert Scale.of(["b", "a", "b", "c"], ordered=True).values == ("b", "a", "c")
    assert Scale.of(["poor", "good"], ordered=False).kind == "nominal"
    two = Scale.of(["yes", "no"], ordered=True)  # whether there is a fault
    assert (two.kind, two.positive, two.normalise("Yes")) == ("binary", "no", "yes")
    assert Scale.of([1, 2, 3], ordered=False).kind == "nominal"


@pytest.mark.parametrize("values", [[], ["a"], ["a", "a"]])
def test_a_scale_has_at_least_two_values(values: list[Any]) -> None:
    with pytest.raises(ArgumentError, match="at least two"):
        Scale.of(values)


@pytest.mark.parametrize("values", [["a", " A "], [4, "4.0"], ["b", "a", "B"], ["x", "x\u200b"]])
def test_declared_values_that_are_read_as_one_are_refused(values: list[Any]) -> None:
    with pytest.raises(ArgumentError, match="are read as one"):
        Scale.of(values)


@pytest.mark.parametrize("values", [["++", "+", "o", "-", "--"], ["A", "A-", "A+"], ["C", "C++"]])
def test_signs_carry_meaning(values: list[str]) -> None:
    for scale in (Scale.of(values), Scale.from_values(values)):
        assert [scale.normalise(f" {value} ") for value in values] == values


def test_two_values_are_shown_in_the_order_in_which_they_were_declared() -> None:
    scale = Scale.from_type(Literal["Yes", "No"])
    assert scale is not None
    assert (scale.values, scale.shown, scale.positive) == (("No", "Yes"), ("Yes", "No"), "Yes")
    assert scale.describe() == "'Yes', 'No'"
    assert scale.with_positive("No").shown == ("Yes", "No")


# -- writings -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "raw", "value"),
    [
        (QUALITY, " Excellent ", "excellent"), (QUALITY, '"good".', "good"),
        (STARS, "4", 4), (STARS, 4.0, 4), (STARS, "4.0", 4), (STARS, np.int64(4), 4),
        (STARS, "4.", 4), (STARS, "+4", 4),
        (YES_NO, True, "yes"), (YES_NO, "TRUE", "yes"), (YES_NO, 1, "yes"), (YES_NO, "1", "yes"),
        (YES_NO, 1.0, "yes"), (YES_NO, "y", "yes"), (YES_NO, "Pass", "yes"),
        (YES_NO, False, "no"), (YES_NO, 0, "no"), (YES_NO, "n", "no"), (YES_NO, "failed", "no"),
        (YES_NO, np.bool_(True), "yes"), (YES_NO, np.float64(0.0), "no"),
        (TRUTH, "Yes", True), (TRUTH, "no", False), (TRUTH, 1, True), (TRUTH, "0", False),
        (Scale.of([0, 1]), True, 1), (Scale.of([0, 1]), "no", 0),
        (Scale.of(["pass", "fail"]), "yes", "pass"),
        (Scale.of(["very good", "good", "bad"]), "Very_Good", "very good"),
        (Scale.of(["very good", "good", "bad"]), "very-good", "very good"),
        (Scale.of([-1, 0, 1]), "-1.0", -1), (Scale.of([-1, 0, 1]), -1.0, -1),
        (Scale.of([0.5, 5, 7]), ".5", 0.5), (Scale.of([0.5, 5, 7]), "0.50", 0.5),
        (WHOLE, "7", 7), (WHOLE, 7.0, 7), (NUMBER, " 0.25 ", 0.25), (NUMBER, "1e-3", 0.001),
        (STARS, "4,0", 4), (NUMBER, "3,5", 3.5), (NUMBER, "0,125", 0.125),
        (QUALITY, "**good**", "good"), (QUALITY, "Good!", "good"),
        (QUALITY, "Rating: good", "good"),
        (QUALITY, "The final verdict is __poor__.", "poor"), (STARS, "4/5", 4),
        (STARS, "Score: 4 out of 5", 4), (Scale("numeric", low=0, high=10), "7.5/10", 7.5),
        (STARS, "★★★☆☆", 3), (STARS, "4 stars", 4), (Scale("numeric", high=100), "85%", 85.0),
        (COLOURS, "re\u200bd", "red"), (Scale.of(["mäßig", "gut"]), "ma\u0308ßig", "mäßig"),
        (Scale.of(["very good", "good", "bad"]), "very\u00a0good", "very good"),
    ],
)  # fmt: skip
def test_a_writing_is_mapped_to_the_one_value(scale: Scale, raw: Any, value: Any) -> None:
    found = scale.normalise(raw)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("scale", "raw", "allowed"),
    [
        (QUALITY, "superb", "'poor', 'fair', 'good', 'excellent'"),
        (STARS, 6, "1, 2, 3, 4, 5"),
        (STARS, 4.5, "1, 2, 3, 4, 5"),
        (YES_NO, "maybe", "'yes', 'no'"),
        (YES_NO, 2, "'yes', 'no'"),
        (Scale.of(["toxic", "clean"]), "yes", "'toxic', 'clean'"),
        # Whether yes means unsafe depends on the question.
        (Scale.of(["unsafe", "safe"]), "yes", "'unsafe', 'safe'"),
        (Scale.of(["good", "bad"]), True, "'good', 'bad'"),
        (Scale.of(["good", "bad"]), "[1", "'good', 'bad'"),
        (YES_NO, "good", "'yes', 'no'"),
        (YES_NO, "bad", "'yes', 'no'"),
        (WHOLE, 4.5, "whole numbers"),
        (WHOLE, "many", "whole numbers"),
        (NUMBER, True, "numbers"),
        (NUMBER, "inf", "numbers"),
        (NUMBER, "1,000", "numbers"),
        (NUMBER, "1_2", "numbers"),
        (STARS, "4/10", "1, 2, 3, 4, 5"),
        (NUMBER, "85%", "numbers"),
        (COLOURS, ["red"], "A rating is one value, and this is a list"),
        (STARS, '[{"rating": 4}]', "A rating is one value, and this is a list"),
        (COLOURS, {"choices": ["red"]}, "A rating is one value, and this is a dict"),
    ],
)
def test_what_is_not_on_the_scale_is_named_with_what_is(
    scale: Scale, raw: Any, allowed: str
) -> None:
    with pytest.raises(ScaleError) as caught:
        scale.normalise(raw)
    assert str(raw) in str(caught.value)
    assert allowed in str(caught.value)


@pytest.mark.parametrize("raw", [None, "", "  ", float("nan"), pd.NA, pd.NaT, np.nan])
def test_a_missing_value_is_missing_and_no_abstention(raw: Any) -> None:
    assert is_missing(raw)
    with pytest.raises(ScaleError, match="missing"):
        QUALITY.normalise(raw)


@pytest.mark.parametrize("raw", ["N/A", "n/a", " NA ", "not applicable", "Can't judge", "unsure"])
def test_an_abstention_is_a_state_of_its_own(raw: str) -> None:
    for scale in (*CATEGORIES, NUMBER):
        assert scale.normalise(raw) is ABSTAIN
    assert not is_missing(ABSTAIN)
    assert QUALITY.normalise(ABSTAIN) is ABSTAIN


def test_an_abstention_is_the_same_in_a_copy_and_from_a_file() -> None:
    assert copy.deepcopy(ABSTAIN) is ABSTAIN
    assert pickle.loads(pickle.dumps([ABSTAIN]))[0] is ABSTAIN


def test_a_word_for_abstention_that_is_on_the_scale_is_a_value() -> None:
    scale = Scale.of(["relevant", "irrelevant", "unknown"])
    assert scale.normalise("Unknown") == "unknown"
    assert scale.normalise("N/A") is ABSTAIN
    three = Scale.from_type(Literal["yes", "no", "N/A"])
    assert three.normalise(" n/a ") == "N/A"
    assert not is_abstention("N/A", three)
    assert is_abstention("not applicable", three)
    assert is_abstention(ABSTAIN, three)
    assert is_abstention("N/A", YES_NO)
    assert is_abstention("N/A")
    assert not is_abstention("yes")


# -- from what was seen ---------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "kind", "values"),
    [
        (["Good", "good ", "poor", None, "N/A", "fair"], "ordinal", ("poor", "fair", "Good")),
        (["yes", "True", "no", 1], "binary", None),
        ([4, "4.0", 5.0, "1"], "ordinal", (1, 4, 5)),
        (["red", "green", "blue"], "nominal", ("blue", "green", "red")),
        ([True, False, True], "binary", (False, True)),
        (["0", "1", 1, 0], "binary", (0, 1)),
        ([k / 10 for k in range(41)], "numeric", ()),
        (["good", "poor", "nan", "NULL", "#N/A", "-", "?", "\\N", "None", "skip"], "binary", None),
        (["none", "low", "high"], "ordinal", ("none", "low", "high")),
        (["WAHR", "FALSCH"], "binary", ("FALSCH", "WAHR")),
        (["nein", "ja"], "binary", ("nein", "ja")),
        (["👍", "👎"], "binary", ("👎", "👍")),
        ([True, "false", 1], "binary", (False, True)),
        (["mäßig", "ma\u0308ßig", "gut"], "binary", None),
        (["3,5", "4,0", "4"], "binary", (3.5, 4)),
        (["bad", "ok", "good"], "ordinal", ("bad", "ok", "good")),
        (["bad", "acceptable", "good"], "ordinal", ("bad", "acceptable", "good")),
        (["good", "bad", "unacceptable"], "nominal", ("bad", "good", "unacceptable")),
        (["wrong", "incorrect", "correct"], "ordinal", ("incorrect", "wrong", "correct")),
        (["good", "ok"], "binary", None),
        (["4/5", "3/5", 4, "5/5"], "ordinal", (3, 4, 5)),
        (["4/5", " 1 / 5", "**2**"], "ordinal", (1, 2, 4, 5)),
        (["5 stars", "3 Stars", "1 star"], "ordinal", (1, 3, 5)),
        (["★★☆", "★☆☆", "☆☆☆"], "ordinal", (0, 1, 2, 3)),
        (["85%", "60 %", "7,5%"], "ordinal", (7.5, 60, 85, 100)),
        (["\u22121", "0", "+1"], "ordinal", (-1, 0, 1)),
        (["4/5", "3/4"], "binary", ("4/5", "3/4")),
        (["4/5", "6/5", "1"], "nominal", ("1", "4/5", "6/5")),
        (["007", "7", "8"], "binary", (7, 8)),
        (["**good**", "Good!", "good", "poor"], "binary", ("poor", "good")),
        (["A*", "A", "B"], "nominal", ("A", "A*", "B")),
        (["85%", "90%", "7"], "nominal", ("7", "85%", "90%")),
    ],
)
def test_observed_values_give_a_scale(
    seen: list[Any], kind: str, values: tuple[Any, ...] | None
) -> None:
    scale = Scale.from_values(seen)
    assert scale.kind == kind
    assert values is None or scale.values == values


@pytest.mark.parametrize(
    "seen",
    [[], [None, "N/A"], ["good", "Good"], ["yes", "true", 1], [f"text {k}" for k in range(21)]],
)
def test_what_makes_no_scale_says_how_to_get_one(seen: list[Any]) -> None:
    with pytest.raises(ScaleError, match="Give the judge a feedback_value_type"):
        Scale.from_values(seen)


def test_long_texts_that_make_no_scale_are_not_quoted_whole() -> None:
    with pytest.raises(ScaleError) as caught:
        Scale.from_values([f"{k} {'word ' * 1000}" for k in range(30)])
    assert len(str(caught.value)) < 400


@given(
    st.lists(
        st.sampled_from(
            ["good", "Bad", "ok", "correct", "wrong", "pass", "no", "ja", True, 1, "4", "unsafe"]
        ),
        min_size=2,
    )
)
def test_what_was_seen_is_on_the_scale_of_what_was_seen(seen: list[Any]) -> None:
    try:
        scale = Scale.from_values(seen)
    except ScaleError:
        return
    read = [scale.normalise(value) for value in seen]
    words = {str(value).lower() for value in seen}
    assert len(set(map(str, read))) == (
        2 if words <= {"pass", "no", "ja", "true", "1"} else len(words)
    )


@given(
    st.lists(st.sampled_from(["Yes", "yes", "no", "No ", True, 1, "0"]), min_size=2).filter(
        lambda seen: {str(v).strip().lower() in ("yes", "true", "1") for v in seen} == {True, False}
    )
    | st.lists(st.sampled_from(["good", "Good", "fair", "poor"]), min_size=2).filter(
        lambda seen: len({v.lower() for v in seen}) > 1
    ),
    st.randoms(),
)
def test_the_order_in_which_values_were_seen_does_not_matter(seen: list[Any], random: Any) -> None:
    shuffled = list(seen)
    random.shuffle(shuffled)
    assert repr(Scale.from_values(shuffled)) == repr(Scale.from_values(seen))


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("1234567890123456789", "1234567890123456788", False), (2**53, 2**53 + 1, False),
        (1, "1.0", True), ("1.10", 1.1, True), (".50", "0,5", True), ("-0.0", 0, True),
        ("-7", 7, False), ("100", "1", False), (10, "+10", True), ("007", 7, False),
    ],
)  # fmt: skip
def test_numbers_are_compared_digit_by_digit(one: Any, other: Any, same: bool) -> None:
    assert (fold(one) == fold(other)) is same


# -- laws -----------------------------------------------------------------------------------


@given(some_scale, st.data())
def test_each_writing_of_a_value_is_read_back(scale: Scale, data: st.DataObject) -> None:
    value = data.draw(st.sampled_from(scale.values))
    pad = data.draw(st.sampled_from(["", " ", "\n", "\t "]))
    case = data.draw(st.sampled_from([str.upper, str.lower, str.title, str]))
    quote = data.draw(st.sampled_from(["", '"', "'", "`"]))
    assert scale.normalise(f"{pad}{quote}{case(str(value))}{quote}{pad}") == value


@given(some_scale, st.text() | st.integers() | st.floats() | st.booleans() | st.none())
def test_normalising_twice_is_normalising_once(scale: Scale, raw: Any) -> None:
    try:
        once = scale.normalise(raw)
    except ScaleError:
        return
    twice = scale.normalise(once)
    assert twice is once or twice == once


def _values_of(scale: Scale) -> st.SearchStrategy[Any]:
    return sane if scale.kind == "numeric" else st.sampled_from(scale.values)


@given(
    st.sampled_from([*CATEGORIES, NUMBER, Scale("numeric", low=-1e6, high=1e6)]).flatmap(
        lambda scale: st.tuples(st.just(scale), _values_of(scale), _values_of(scale))
    )
)
def test_distance_is_a_measure_in_0_to_1(drawn: tuple[Scale, Any, Any]) -> None:
    scale, a, b = drawn
    there = scale.distance(a, b)
    assert 0.0 <= there <= 1.0
    assert there == scale.distance(b, a)
    assert (there == 0.0) == (a == b)


def test_known_distances() -> None:
    assert QUALITY.distance("poor", "excellent") == 1.0
    assert math.isclose(QUALITY.distance("poor", "fair"), 1 / 3)
    assert STARS.distance(4, 5) == 0.25
    assert YES_NO.distance("no", "yes") == 1.0
    assert Scale.from_values([1, 2, 5]).distance(2, 5) == 0.75
    assert Scale.of(["0.5", "1", "3"]).distance("0.5", "1") == 0.2
    grades = Scale.of([6, 4, 1], ordered=True)  # 6 is the worst
    assert (grades.distance(6, 4), grades.rank(1) - grades.rank(4)) == (0.5, 1)
    assert COLOURS.distance("red", "blue") == 1.0
    assert Scale("numeric", low=0, high=10).distance(2.5, 5) == 0.25
    assert Scale("numeric", low=0, high=10).distance(0, 20) == 1.0
    assert NUMBER.with_range([0, 4]).distance(1, 2) == 0.25
    assert WHOLE.with_range([]) == WHOLE


def test_a_label_schema_has_a_scale(store: str) -> None:
    """Schemas that MLflow's own page labels by give the scale that their labels lie on."""
    from mlflow.genai import label_schemas as schemas

    made = schemas.create_label_schema(
        name="quality",
        type="feedback",
        input=schemas.InputCategorical(options=["poor", "good", "excellent"]),
    )
    scale = Scale.from_schema(made)
    assert scale is not None
    assert (scale.kind, scale.values) == ("ordinal", ("poor", "good", "excellent"))
    assert Scale.from_schema(
        schemas.InputPassFail(positive_label="Right", negative_label="Wrong")
    ) == Scale("binary", (False, True))
    numeric = Scale.from_schema(schemas.InputNumeric(min_value=0, max_value=10))
    assert numeric is not None
    assert numeric.distance(2.0, 7.0) == 0.5
    assert Scale.from_schema(schemas.InputText()) is None
    with pytest.raises(ArgumentError, match="no single rating"):
        Scale.from_schema(schemas.InputCategorical(options=["a", "b"], multi_select=True))
