"""What a notebook's text parameters say about a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
import pytest

import workbench
from workbench.errors import ArgumentError, ScaleError, TableError
from workbench.store.tables import columns_by_rater, parts

TABLE = pd.DataFrame(
    {
        "question": ["a?", "b?", "c?"],
        "context": ["x", "y", "z"],
        "answer": ["1", "2", "3"],
        "gold": ["1", "2", "4"],
        "ana": ["good", "poor", "excellent"],
        "why": ["short", "", "clear"],
        "ben": ["good", "", "fair"],
        "topic": ["s", "s", "t"],
    }
)


def read(**parameters: Any) -> workbench.Dataset:
    given = {"inputs": "question", "outputs": "answer", "annotators": "ana", **parameters}
    return workbench.read_dataset(given.pop("data", TABLE), **given)


def test_columns_are_named_in_text() -> None:
    dataset = read(
        inputs="question, context",
        expectations="gold",
        annotators="ana: ana + why, ben",
        verdicts="other judge: ben",
        groups="topic",
    )
    assert dataset.inputs == ["question", "context"]
    assert dataset.outputs == "answer"
    assert dataset.expectations == ["gold"]
    assert dataset.labels == {"ana": ("ana", "why"), "ben": ("ben", None)}
    assert dataset.verdicts == {"other judge": ("ben", None)}
    assert dataset.groups == "topic"
    assert (len(dataset), dataset.source) == (3, "table")


def test_names_that_cannot_be_read_are_named() -> None:
    with pytest.raises(ArgumentError, match="inputs: the table has no column ''"):
        read(inputs="question,")
    with pytest.raises(ArgumentError, match="outputs is not given"):
        read(outputs=None)


@pytest.mark.parametrize(
    ("parameter", "value", "expected"),
    [
        ("inputs", "qestion", "inputs.*'qestion'.*did you mean 'question'.*topic"),
        ("annotators", "ana: ana + reason", "annotators.*'reason'"),
        ("groups", "query_id", "groups.*'query_id'"),
    ],
)
def test_a_missing_column_names_the_parameter_and_the_columns(
    parameter: str, value: str, expected: str
) -> None:
    with pytest.raises(ArgumentError, match=expected):
        read(**{parameter: value})


def test_the_scale_is_that_of_the_labels_or_of_the_values_given() -> None:
    assert read(annotators="ana, ben").value_type == Literal["excellent", "good", "fair", "poor"]
    assert read(values="excellent, good, fair, poor, terrible").scale.kind == "ordinal"
    assert read(values="5, 4, 3, 2, 1").value_type == Literal[5, 4, 3, 2, 1]
    assert read(values="red, green, blue").value_type == Literal["red", "green", "blue"]
    assert read(values="wanted, unwanted").scale.positive == "wanted"
    assert read(annotators=None, values="yes, no").value_type == Literal["yes", "no"]
    assert read(annotators=None, values=[True, False]).value_type is bool
    assert read(values=np.array(["red", "green", "blue"])).scale.values == ("red", "green", "blue")
    assert read(inputs=pd.Index(["question"])).inputs == ["question"]
    for values in ("red, green,", ["red", None], {"": "red"}):
        with pytest.raises(ArgumentError, match="names an empty one"):
            read(values=values)
    with pytest.raises(ArgumentError, match=r"values=.* cannot be read"):
        read(values={"red", "green"})
    translated = read(annotators="ben", values='{"good": true, "fair": false}')
    assert (translated.value_type, translated.scale.positive) == (bool, True)


@pytest.mark.parametrize(
    ("ratings", "value_type"),
    [
        (["Yes", "no", "Yes"], Literal["Yes", "no"]),
        ([True, False, True], bool),
        (["1", "3", "2"], Literal[3, 2, 1]),
        ([str(n) for n in range(40)], int),
        ([n / 40 for n in range(40)], float),
    ],
)
def test_the_value_type_follows_from_the_labels(ratings: list[Any], value_type: Any) -> None:
    table = pd.DataFrame({"question": "q", "answer": "a", "ana": ratings})
    assert read(data=table).value_type == value_type


def test_labels_that_make_no_scale_say_so() -> None:
    with pytest.raises(ScaleError, match="'why'"):
        read(annotators="ana: why", data=TABLE.assign(why=""))
    with pytest.raises(ScaleError, match=r"'topic'.*values"):
        read(annotators="topic", data=TABLE.assign(topic="same"))
    with pytest.raises(ArgumentError, match="values is None and no annotators"):
        read(annotators=None)


def test_instructions_begin_with_the_names_of_the_columns() -> None:
    dataset = read(inputs="question, context", expectations="gold")
    assert dataset.instructions == (
        "Rate how good the answer in {{ outputs }} is, given the question and context in "
        "{{ inputs }} and the gold in {{ expectations }}."
    )
    judge = workbench.make_judge("quality", dataset.instructions, model="openai:/any")
    assert judge.template_variables == {"inputs", "outputs", "expectations"}


def test_the_picture_of_a_dataset_is_its_rows_escaped() -> None:
    html = read(data=TABLE.rename(columns={"context": "<b>"}))._repr_html_()
    assert "&lt;b&gt;" in html
    assert "<b>" not in html
    assert "excellent" in html


@pytest.mark.parametrize(
    ("given", "names"),
    [
        (None, []),
        ("  ", []),
        (" a , b c ", ["a", "b c"]),
        (["a, b", "c"], ["a, b", "c"]),
        ('["a, b", "c"]', ["a, b", "c"]),
        ("[odd] name", ["[odd] name"]),
        (7, ["7"]),
    ],
)
def test_names_are_read_from_text_lists_and_json(given: Any, names: list[str]) -> None:
    assert list(parts("inputs", given)) == names


@pytest.mark.parametrize(
    ("given", "raters"),
    [
        (None, {}),
        ("ana", {"ana": ("ana", None)}),
        ("ana + why", {"ana": ("ana", "why")}),
        ("Ana B.: rating + why, ben: r2", {"Ana B.": ("rating", "why"), "ben": ("r2", None)}),
        ({"ana": "a: b", "ben": ["c, d", "e+f"]}, {"ana": ("a: b", None), "ben": ("c, d", "e+f")}),
        ('{"ana": ["a: b", "c"]}', {"ana": ("a: b", "c")}),
    ],
)
def test_raters_are_read_from_text_dicts_and_json(given: Any, raters: dict[str, Any]) -> None:
    assert columns_by_rater("annotators", given) == raters


@pytest.mark.parametrize(
    "given",
    [
        "ana:",
        ": rating",
        "ana: rating +",
        "ana, ana: other",
        "ana, Ana: other",
        "ana: a + b + c",
        "{broken",
        ",",
    ],
)
def test_raters_that_cannot_be_read_are_named(given: str) -> None:
    with pytest.raises(ArgumentError, match=r"^annotators"):
        columns_by_rater("annotators", given)


LONG = pd.DataFrame(
    {
        "question": ["a?", "a?", "b?", "a?", "a?"],
        "answer": ["1", "1", "2", "1", "1"],
        "who": ["ana", "ben", "Ben ", "ana", "Ana"],
        "rating": ["good", "poor", "poor", "poor", "good"],
        "why": ["x", None, "y", "z", ""],
    }
)


def test_one_row_a_label_becomes_one_row_an_item() -> None:
    """Writings of a name are one person; a second label of equal content begins a second row."""
    dataset = read(data=LONG, annotators="each who: rating + why")
    assert dataset.labels == {
        "ana": ("rating: ana", "why: ana"),
        "ben": ("rating: ben", "why: ben"),
    }
    table = dataset.table.astype(object).where(dataset.table.notna(), None)
    assert table[["question", "rating: ana", "why: ana", "rating: ben"]].values.tolist() == [
        ["a?", "good", "x", "poor"],
        ["b?", None, None, "poor"],
        ["a?", "poor", "z", None],
        ["a?", "good", "", None],
    ]
    assert table.index.tolist() == [0, 2, 3, 4]
    with pytest.raises(ArgumentError, match=r"it is empty in rows \[1\]"):
        read(data=LONG.replace("ben", ""), annotators="each who: rating")


@pytest.mark.filterwarnings("error")
def test_a_hundred_people_and_a_column_of_two_roles_are_read() -> None:
    table = pd.DataFrame(
        {"q": [*"aab"] * 50, "a": "x", "who": map(str, range(150)), "r": [1, 2, 3] * 50}
    )
    roles = {"inputs": "q", "outputs": "a", "groups": "q"}
    data = workbench.read_dataset(table, annotators="each who: r", **roles)
    assert (data.table["q"].tolist(), len(data.labels)) == (["a", "b"], 150)
    assert data.table["r: 0"].tolist()[0] == 1
    assert (data.table.filter(like="r: ").notna().sum(axis=1) == [100, 50]).all()


def test_people_with_long_numbers_for_names_are_not_taken_for_one() -> None:
    who = ["1234567890123456789", "1234567890123456788"]
    table = pd.DataFrame({"q": "a?", "a": "A", "who": who, "r": ["yes", "no"]})
    data = workbench.read_dataset(table, inputs="q", outputs="a", annotators="each who: r")
    assert (len(data), list(data.labels)) == (1, who)


def test_the_words_that_read_one_row_a_label() -> None:
    """The check gives them, be the column taken for a person or left out, and they work."""
    rows = pd.concat([LONG.assign(question=f"{n}?")[:2] for n in range(10)], ignore_index=True)
    found = workbench.check_data(rows, inputs="question", outputs="answer", annotators="rating")
    assert any("annotators='each COLUMN: RATING'" in doubt for doubt in found.doubts)
    found = workbench.check_data(
        rows, inputs="question", outputs="answer", annotators="who: rating"
    )
    advice = next(doubt for doubt in found.doubts if "annotators=" in doubt)
    spec = advice.partition("annotators='")[2].partition("'")[0]
    assert spec == "each who: rating"
    found = workbench.check_data(rows, inputs="question", outputs="answer", annotators=spec)
    assert "10 ratings in column 'rating: ana'" in repr(found)
    assert "10 ratings in column 'rating: ben'" in repr(found)
    assert not [doubt for doubt in found.doubts if "annotators=" in doubt]


def test_rows_of_equal_content_are_one_item_in_whatever_form_they_come(tmp_path: Path) -> None:
    """Null and a missing key are the same, long lists are compared whole."""
    path = tmp_path / "a.jsonl"
    path.write_text(
        '{"q": "a?", "c": null, "a": "x", "who": "ana", "r": "yes"}\n'
        '{"q": "a?", "a": "x", "who": "ben", "r": "no"}\n'
    )
    roles = {"inputs": "q, c", "outputs": "a", "annotators": "each who: r"}
    assert len(read(data=path, **roles)) == 1
    long = [np.array([*range(600), k, *range(600)]) for k in (0, 1)]
    cells: list[Any] = [*long, {"a": 1, 2: 3}]
    table = pd.DataFrame({"q": cells, "c": "", "a": "x", "who": [*"aba"], "r": [*"yny"]})
    assert len(read(data=table, **roles)) == 3


def test_rows_that_were_joined_keep_their_numbers_in_the_import(store: str) -> None:
    """An error names the row of the source, as `check_data` does."""
    table = LONG.assign(answer=["1", "1", b"2", "1", "1"])
    data = read(data=table, annotators="each who: rating")
    with pytest.raises(TableError, match=r"row 2: column 'answer'"):
        workbench.import_traces(data.table, inputs="question", outputs="answer")
