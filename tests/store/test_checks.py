"""`check_data` says what a table holds, what is doubtful about it, and what makes it useless."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import workbench
from workbench.errors import ArgumentError, ScaleError, TableError
from workbench.store.checks import DataCheck


def table(ratings: list[Any], **more: list[Any]) -> pd.DataFrame:
    n = len(ratings)
    questions, answers = [f"Q{i}" for i in range(n)], [f"A{i}" for i in range(n)]
    return pd.DataFrame({"q": questions, "a": answers, "ana": ratings} | more, dtype=object)


def check(frame: pd.DataFrame, **options: Any) -> DataCheck:
    roles: dict[str, Any] = {"inputs": "q", "outputs": "a", "annotators": "ana"}
    return workbench.check_data(frame, **(roles | options))


def test_it_says_what_happened_to_each_cell() -> None:
    ratings = ["good"] * 12 + ["poor"] * 8 + ["Good ", "nan", "", "n/a", "so-so", "ma\u0308ßig"]
    found = check(table(ratings), values="good, poor")
    assert found.table["finding"][1] == "binary: 'good' 13, 'poor' 8."
    assert list(found.rows.itertuples(index=False, name=None)) == [
        (20, "ana", "Good ", "read as 'good'"),
        (21, "ana", "nan", "no rating"),
        (23, "ana", "n/a", "can't judge"),
        (24, "ana", "so-so", "off the scale"),
        (25, "ana", "ma\\u0308ßig", "off the scale"),
    ]
    assert found.errors == ()
    assert "'so-so' (1: row 24)" in repr(found)


def test_translations_that_were_asked_for_are_listed() -> None:
    found = check(table(["good", "bad"] * 10), values={"good": "yes", "Bad": "no"})
    assert "As asked for: 'good' -> 'yes', 'Bad' -> 'no'." in repr(found)
    assert not any("As asked for" in doubt for doubt in found.doubts)


def test_many_different_percentages_are_numbers() -> None:
    """As they are for `pair`, with whatever else is a number."""
    found = check(table([f"{n}%" for n in range(30)] + ["12.5 %"]))
    assert (found.errors, found.scale.kind, found.scale.integer) == ((), "numeric", False)
    assert found.scale.limits == (None, None)
    assert "31 ratings in column 'ana'." in repr(found)


@pytest.mark.parametrize(
    ("ratings", "odd"),
    [
        (["good", "poor"] * 20 + ["so-so"], "'so-so' occurs once, row 40"),
        ([1, 2, 3, 4, 5] * 10 + [6, None], "6 occurs once, row 50"),
        (["good", "poor"] * 200 + ["ok", "ok"], "'ok' occurs 2 times, rows 400, 401"),
        (["good", "bad"] * 146 + ["goood"], "Few ratings of 'goood' 0.34%."),
    ],
)
def test_odd_ratings_are_named_with_their_rows(ratings: list[Any], odd: str) -> None:
    assert any(odd in doubt for doubt in check(table(ratings)).doubts)


def test_few_labels_have_no_odd_ones() -> None:
    assert not any("once" in doubt for doubt in check(table(["a", "b"] * 6 + ["c"])).doubts)


def test_many_numbers_are_shown_by_their_ends() -> None:
    found = check(table([n / 2 for n in range(118)]))
    assert "numeric: lowest 0, median 29.25, highest 58.5." in repr(found)
    assert found.doubts == ()


@pytest.mark.parametrize(
    ("ratings", "options", "message"),
    [
        (
            ["good", "poor"] * 4,
            {},
            "8 rows with a rating on the scale. Alignment needs at least 10",
        ),
        (["good", "bad"] * 20, {"values": "yes, no"}, "0 rows with a rating on the scale"),
        (["good", "bad"] * 20, {"values": "yes, no"}, "off the scale   'bad' (20: row 1, 3, 5, 7"),
        (["good"] * 20 + ["so-so"], {"values": "good, poor"}, "All have the same rating"),
    ],
)
def test_what_makes_the_rest_pointless_is_an_error(
    ratings: list[Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(TableError) as caught:
        check(table(ratings), **options)
    assert message in str(caught.value)
    assert check(table(ratings), **options, strict=False).errors


def test_doubts_about_rows_groups_balance_and_the_positive_side() -> None:
    frame = table(["spam"] * 17 + ["ham"] * 3, g=[1, "1 ", " 1", *range(2, 18), None])
    frame.loc[3, ["q", "a"]] = frame.loc[2, ["q", "a"]]
    frame.loc[5, "q"] = frame.loc[4, "q"]
    frame.loc[19, "a"] = ""
    frame.loc[20] = ["", " ", None, None]
    found = check(frame, groups="g", strict=False)
    text = repr(found)
    for part in (
        "empty           1 row, left out: 20.",
        "1 row without inputs or outputs: 19.",
        "Rows that repeat another one in all that the judge sees: 1.",
        "17 groups by 'g', the largest of 3 rows. 1 row without one: 19.",
        "2 inputs (q) in several groups.",
        "Few ratings of 'ham' 15%.",
        "'ham' is positive; pair(..., positive='spam') takes the other one.",
    ):
        assert part in text
    assert "check_data" not in found._repr_html_()
    assert (len(found.errors), len(found.doubts)) == (1, 6)  # no import takes row 19


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"annotators": "ana: ana, ben: ana"}, "'ana' is named for several annotators"),
        ({"inputs": "q, ana"}, "Column 'ana' holds ratings, and the judge is shown it"),
    ],
)
def test_columns_that_cannot_be_what_they_are_named_for_are_an_error(
    options: dict[str, Any], message: str
) -> None:
    (error,) = check(table([1, 2] * 10), strict=False, **options).errors
    assert re.search(message, error)


def test_a_table_without_rows_says_so() -> None:
    with pytest.raises(TableError, match="table has no rows"):
        check(table(["good"])[:0])


def test_arrays_and_deep_lists_as_ratings_are_named_with_their_row() -> None:
    deep: list[Any] = []
    for _ in range(3000):
        deep = [deep]
    for cell in (np.array(["good"]), deep):
        with pytest.raises(ScaleError, match="Column 'ana', row 1: A rating is one value"):
            check(table(["good", cell]))


def test_what_is_read_as_one_row_a_label_is_not_advised_again() -> None:
    frame = table(["yes", "no"] * 8).assign(q=["a", "b"] * 8, a="x", who="ana")
    advice = "annotators='each COLUMN: RATING'"
    assert advice in repr(check(frame))
    assert advice not in repr(check(frame, annotators="each who: ana"))
    assert "repeat another" in repr(check(frame, annotators="each who: ana"))


def test_clean_data_have_no_doubts() -> None:
    frame = table(["yes", "no"] * 30)
    assert check(frame, labels={"ana": "ana"}, annotators=None).doubts == ()


def test_what_pandas_cannot_hold_is_shown() -> None:
    """Half of a surrogate pair, as JSON of JavaScript may have, and a number of any size."""
    frame = table([1, 2, 3, 4, 10**30] * 4)
    frame["group"] = pd.Series(["cut \ud83d", "b"] * 10, dtype=object)
    found = check(frame, groups="group")
    assert "2 groups" in repr(found)
    assert (
        "cut"
        in workbench.read_dataset(frame, inputs="q", outputs="a", annotators="ana")._repr_html_()
    )
    with pytest.raises(ArgumentError, match=r"annotators: group='cut .* cannot be stored"):
        check(frame, annotators="each group: ana", groups=None)


def test_values_may_translate() -> None:
    found = check(table(["good", "Bad"] * 10), values={"good": "yes", "bad": "no"})
    assert "'yes' 10, 'no' 10" in repr(found)
    assert found.rows.empty


def test_what_decorates_a_rating_is_said() -> None:
    text = repr(found := check(table(["good", "poor"] * 10 + ["**good**", "Poor!", None])))
    assert found.scale.values == ("poor", "good")
    said = "'**good**' read as 'good' (1: row 20), 'Poor!' read as 'poor' (1: row 21) in column"
    assert said in text
    assert "empty (1: row 22) in column 'ana'." in text


def test_verdicts_are_read_as_ratings_are() -> None:
    frame = table(["good", "poor"] * 10).assign(gpt=["great", *["good", "poor"] * 9, ["good"]])
    found = check(frame, verdicts="gpt", strict=False)
    assert any("\"['good']\" (1: row 19), 'great' (1: row 0)" in doubt for doubt in found.doubts)
    assert "18 verdicts in column 'gpt'." in repr(found)


def test_a_list_as_a_rating_is_named_with_column_and_row() -> None:
    with pytest.raises(ScaleError, match="Column 'ana', row 1: A rating is one value"):
        check(table(["good", ["poor"]]))


def test_ordered_categories_keep_their_order(tmp_path: Path) -> None:
    order = ["awful", "so-so", "lovely"]
    frame = table(order * 10)
    frame["ana"] = pd.Categorical(frame["ana"], categories=order, ordered=True)
    found = check(frame)
    assert (found.scale.values, "scale=dataset.scale" in found.doubts[0]) == (tuple(order), True)
    for two, doubts in ((["no", "yes"], 0), (["yes", "no"], 1)):
        frame["ana"] = pd.Categorical(two * 15, categories=two, ordered=True)
        found = check(frame)
        assert found.scale.positive == two[1]
        assert "positive side" in found.table["check"].tolist()
        assert sum("scale=dataset.scale" in doubt for doubt in found.doubts) == doubts
    frame["ana"] = pd.Categorical(order * 10, categories=order, ordered=True)
    beside = frame.assign(ben=[" Lovely", "N/A", None] * 10)
    assert check(beside, annotators="ana, ben").scale == workbench.Scale("ordinal", tuple(order))
    beside["ben"] = "great"
    assert check(beside, annotators="ana, ben").scale.kind == "nominal"
    each = pd.concat([frame.assign(who="ana"), frame[::2].assign(who="ben")])
    assert check(each, annotators="each who: ana").scale == workbench.Scale("ordinal", tuple(order))
    path = tmp_path / "a.parquet"
    frame.to_parquet(path)
    scale = workbench.check_data(path, inputs="q", outputs="a", annotators="ana").scale
    assert (scale.kind, scale.values) == ("ordinal", tuple(order))


def test_long_classes_are_told_apart() -> None:
    words = [f"It is an answer that {how} says what was asked for" for how in ("never", "always")]
    assert all(word in repr(check(table(words * 10))) for word in words)
