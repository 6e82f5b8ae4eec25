"""Files of tables: read by extension, as they stand, and never by a guess that could be wrong."""

from __future__ import annotations

from pathlib import Path

import dask.dataframe
import pandas as pd
import pytest

from workbench.errors import ArgumentError, TableError
from workbench.store.files import read_partitions, read_table
from workbench.store.tables import plain


def test_csv_cells_are_text_as_they_stand(tmp_path: Path) -> None:
    """Answers that look like missing values, numbers or dates are kept, and so are long ones."""
    path = tmp_path / "a.csv"
    long = "x" * 3_000_000
    path.write_text(f'q,a\nNA,007\nNone,1e3\n"",{long}\n"two\r\nlines, ""quoted""",2024-01-02\n')
    table = read_table(path)
    assert table["q"].tolist() == ["NA", "None", "", 'two\r\nlines, "quoted"']
    assert table["a"].tolist() == ["007", "1e3", long, "2024-01-02"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_csv_may_have_a_byte_order_mark(tmp_path: Path, mark: str) -> None:
    """A byte order mark, as spreadsheets write it, is no part of the first column's name."""
    path = tmp_path / "a.csv"
    path.write_text(mark + "frage,a\nschön,✓\n", encoding="utf-8")
    assert read_table(str(path)).to_dict("list") == {"frage": ["schön"], "a": ["✓"]}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", "a,b\n1,2,3\n", "line 2 has 3 cells, the header has 2"),
        ("a.csv", "a,b\n1,2\n\n3\n", "line 4 has 1 cells, the header has 2"),
        ("a.csv", 'a,b\n1,"2\n', "unexpected end"),
        ("a.csv", 'a,b\n1,2\n3,"x "y" z"\n', "line 3: .*within quotes, a quote is written twice"),
        ("a.csv", '{"a": 1}\n{"a": 2}\n', "it holds JSON: name it .jsonl"),
        ("a.jsonl", "q,a\nx,y\n", "line 1 is no JSON object: .*it may be CSV"),
        ("a.csv", "", "empty"),
        ("a.csv", "q\ntrès\n", r"reads '.*très.*' in cp1252.*encoding='cp1252'.*cp1250"),
        ("a.ndjson", '{"a": 1}\n{"a": 1', "line 2"),
        ("a.jsonl", '{"a": 1}\n[["a", 1]]', "record 2 is no JSON object"),
        ("a.jsonl", '{"q": 1}\n{"q": ' + "[" * 100_000, "line 2 is nested too deeply"),
        ("a.jsonl", "[1, 2]", "record 1 is no JSON object"),
        ("a.csv", "q|a;b\nx|y;z\n", "may be separated by semicolon or pipe"),
        ("a.csv", "q, in short;a\nx, y;z\n", "may be separated by comma or semicolon"),
        ("a.json", '{"q": ["x", "y"], "a": ["u", "v"]}', "no list of rows; df.to_json"),
        ("a.json", '{"q": {"0": "x"}, "a": {"0": "u"}}', "no list of rows; df.to_json"),
        ("a.jsonl", "\n", "empty"),
        ("a.parquet", "no parquet", "cannot be read"),
    ],
)
def test_a_damaged_file_says_where(tmp_path: Path, name: str, content: str, message: str) -> None:
    """Ragged rows, other encodings and bad lines are errors, not shifted or broken cells."""
    path = tmp_path / name
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(TableError, match=message):
        read_table(path)


def test_jsonl_keeps_types(tmp_path: Path) -> None:
    """Values keep their JSON types, also in columns with gaps; blank lines are no rows."""
    path = tmp_path / "a.jsonl"
    path.write_text('{"a": 1, "b": [1, {"c": null}]}\n\n{"b": "\u2028"}\n')
    table = read_table(path)
    assert [plain(cell) for cell in table["a"].tolist()] == [1, None]
    assert type(table["a"].tolist()[0]) is int
    assert table["b"].tolist() == [[1, {"c": None}], "\u2028"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.ndjson", "a.json"])
def test_a_single_row_may_hold_a_list_of_objects(tmp_path: Path, name: str) -> None:
    """The list is a cell of the row, and no table."""
    path = tmp_path / name
    path.write_text('{"q": "q", "a": "a", "context": [{"text": "c1"}, {"text": "c2"}]}\n')
    assert read_table(path).columns.tolist() == ["q", "a", "context"]
    if name != "a.json":
        path.write_text('{"context": [{"text": "c1"}, {"text": "c2"}]}\n')
        assert read_table(path).columns.tolist() == ["context"]


def test_parquet_keeps_whole_numbers(tmp_path: Path) -> None:
    """A whole-number column with gaps does not become one of floats."""
    path = tmp_path / "a.parquet"
    pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": [["x"], ["y", "z"]]}).to_parquet(
        path
    )
    table = read_table(path)
    assert [plain(cell) for cell in table["a"].tolist()] == [1, None]
    assert [plain(cell) for cell in table["b"].tolist()] == [["x"], ["y", "z"]]


def test_what_is_no_table_is_refused(tmp_path: Path) -> None:
    """Unknown extensions, missing files and other objects are errors that say what to do."""
    with pytest.raises(ArgumentError, match="no known extension"):
        read_table("a.xlsx")
    with pytest.raises(TableError, match="no file"):
        read_table(tmp_path / "missing.csv")
    with pytest.raises(ArgumentError, match="pandas DataFrame"):
        read_table([{"a": 1}])  # type: ignore[arg-type]


ROWS = {"q": ["a, b", "c"], "a": ["3,5", "4"]}


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("a.csv", 'q,a\n"a, b","3,5"\nc,4\n', "utf-16"),
        ("a.csv", "q;a\na, b;3,5\nc;4\n", "utf-8"),
        ("a.csv", "q\ta\r\na, b\t3,5\r\nc\t4\r\n", "utf-8"),
        ("a.csv", "q|a\na, b|3,5\nc|4\n", "utf-8"),
        ("a.csv", "sep=;\r\nq;a\r\na, b;3,5\r\nc;4\r\n", "utf-8-sig"),
        ("a.csv", "sep=\t\r\nq\ta\r\na, b\t3,5\r\nc\t4\r\n", "utf-8"),
        ("a.tsv", "q\ta\na, b\t3,5\nc\t4\n", "utf-8"),
        ("a.jsonl", '[{"q": "a, b", "a": "3,5"},\n{"q": "c", "a": "4"}]', "utf-8"),
        ("a.json", '{"rows": [{"q": "a, b", "a": "3,5"}, {"q": "c", "a": "4"}]}', "utf-8"),
        (
            "a.json",
            '{"data": [{"q": "a, b", "a": "3,5"}, {"q": "c", "a": "4"}], "errors": []}',
            "utf-8",
        ),
        ("a.jsonl", '{"q": "a, b", "a": "3,5"}\r\n{"q": "c", "a": "4"}\r\n', "utf-16"),
        ("a.csv", "q;a\na, b;3,5\nc;4\n", "utf-16-le"),
        ("a.csv", "q;a\na, b;3,5\nc;4\n", "utf-16-be"),
        ("a.jsonl", '[{"q": "a, b", "a": "3,5"}]\n[{"q": "c", "a": "4"}]\n', "utf-8"),
    ],
)
def test_other_separators_encodings_and_lists_are_read(
    tmp_path: Path, name: str, text: str, encoding: str
) -> None:
    path = tmp_path / name
    path.write_bytes(text.encode(encoding))
    assert read_table(path).to_dict("list") == ROWS


def test_the_words_that_read_a_file_do(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes("q,a,ana\ntrès,да,no\n".encode("cp1251", "replace"))
    assert read_table(path, "cp1251")["a"].tolist() == ["да"]
    path.write_bytes("q,a\nx,y\n".encode("utf-8-sig"))
    assert read_table(path, "utf-8").columns.tolist() == ["q", "a"]
    with pytest.raises(ArgumentError, match="unknown encoding"):
        read_table(path, "cp12")
    path.write_bytes(b"q,a\nx,\xff\n")
    with pytest.raises(TableError, match="cannot be read"):
        read_table(path, "ascii")


def test_of_a_frame_of_dask_only_the_columns_that_are_asked_for_are_computed() -> None:
    def load(part: int, columns: list[str] | None = None) -> pd.DataFrame:
        frame = pd.DataFrame({"q": [part], "a": [-part], "long": ["x" * 1000]})
        computed.append(set(columns or frame.columns))
        return frame if columns is None else frame[columns]

    computed: list[set[str]] = []
    frame = dask.dataframe.from_map(load, [1, 2], meta=load(1))
    computed.clear()
    rows = [{"q": 1, "a": -1}, {"q": 2, "a": -2}]
    assert list(read_partitions(frame, ["q", "a"], 10)) == [rows]
    assert computed == [{"q", "a"}] * 2
    with pytest.raises(ArgumentError, match="no column 'lang' - did you mean 'long'"):
        list(read_partitions(frame, ["lang"], 10))


def test_columns_are_named_by_text() -> None:
    assert list(read_table(pd.DataFrame([[1, 2]])).columns) == ["0", "1"]
