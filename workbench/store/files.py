"""Files of tables: read without loss, and without a guess that could be wrong; and tables larger
than memory, read and written in partitions of Parquet."""

from __future__ import annotations

import codecs
import csv
import io
import itertools
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from workbench.errors import ArgumentError, StoreError, TableError
from workbench.formatting import write_whole
from workbench.store.tables import plain, require_columns

_EXTENSIONS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".parquet")
_SEPARATORS = {",": "comma", ";": "semicolon", "\t": "tab", "|": "pipe"}


def read_table(
    table: pd.DataFrame | str | os.PathLike[str], encoding: str | None = None
) -> pd.DataFrame:
    """Return the table itself, or the file read by its extension; columns are named by text.

    ``.csv`` and ``.tsv``: every cell is text as it is, so an answer ``NA`` or ``007`` is kept. The
    separator is a comma, semicolon, tab or pipe, whichever splits all rows alike; a first line
    ``sep=;`` names it. ``.jsonl``, ``.ndjson`` and ``.json``: one JSON object a line or a list of
    them. Their values, and those of ``.parquet``, keep their types. Rows keep their order. Text is
    read in ``encoding``; without one it is UTF-8 or UTF-16.

    Raises
    ------
    ArgumentError
        When it is neither a DataFrame nor the path of a file with a known extension, and for an
        encoding that Python does not know.
    TableError
        When the file is missing, damaged or empty, or cannot be read without guessing.
    """
    if isinstance(table, pd.DataFrame):
        named = all(isinstance(column, str) for column in table.columns)
        return table if named else table.set_axis([str(c) for c in table.columns], axis=1)
    if not isinstance(table, (str, os.PathLike)):
        raise ArgumentError(
            f"table is a {type(table).__name__}. Give a pandas DataFrame "
            "(pandas.DataFrame(rows) makes one of a list of dicts) or the path of a file."
        )
    path = Path(table).expanduser()
    kind = path.suffix.lower()
    if kind not in _EXTENSIONS:
        raise ArgumentError(
            f"table={str(table)!r} has no known extension. Known are {', '.join(_EXTENSIONS)}; "
            "read any other file with pandas and give the DataFrame."
        )
    if not path.is_file():
        raise TableError(
            f"There is no file {str(path.absolute())!r}. A relative path starts in the current "
            "folder; `papermill --cwd notebooks` makes that the folder of the notebooks."
        )
    with file_errors(path):
        if kind == ".parquet":
            return pd.read_parquet(path, engine="pyarrow", dtype_backend="numpy_nullable")
        if kind in (".csv", ".tsv"):
            return _read_csv(path, encoding)
        # Without dtype=object a whole number in a column with gaps would become a float.
        return pd.DataFrame(read_records(path, encoding), dtype=object)


@contextmanager
def file_errors(path: object) -> Iterator[None]:
    """Raise what keeps a file from being read as a `TableError` that names it."""
    try:
        yield
    except ArgumentError:
        raise
    except (ValueError, OSError) as error:  # pyarrow's own errors are ValueErrors
        raise TableError(f"{str(path)!r} cannot be read: {error}.") from error


def read_records(path: Path, encoding: str | None = None) -> list[dict[str, Any]]:
    """Return the objects of JSON Lines, a JSON list, or the only list in a ``.json`` object."""
    text = _text(path, encoding)
    try:
        found = json.loads(text) if text.lstrip()[:1] in ("[", "{") else None
    except (ValueError, RecursionError):
        found = None  # one object a line
    if isinstance(found, dict):
        lists = [v for v in found.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
        is_row = path.suffix.lower() != ".json" or any(isinstance(v, str) for v in found.values())
        if not is_row and len(lists) != 1:
            raise ValueError("it has no list of rows; df.to_json(path, orient='records') makes one")
        found = [found] if is_row else lists[0]
    if found is None:
        found = []
        for number, line in enumerate(text.split("\n"), start=1):
            try:
                row = json.loads(line) if line.strip() else []
            except RecursionError:
                raise ValueError(f"line {number} is nested too deeply; flatten it") from None
            except ValueError as error:
                is_csv = number == 1 and "{" not in line
                like = ", so it may be CSV, which workbench.read_dataset reads as .csv" * is_csv
                raise ValueError(f"line {number} is no JSON object: {error}{like}") from None
            found += row if isinstance(row, list) else [row]
    if wrong := [n for n, record in enumerate(found, start=1) if not isinstance(record, dict)]:
        raise ValueError(f"record {wrong[0]} is no JSON object")
    if not found:
        raise ValueError("it is empty")
    return found


def _text(path: Path, encoding: str | None) -> str:
    content = path.read_bytes()
    wide = "utf-16" * content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    even, odd = content[::2].count(0), content[1::2].count(0)
    if not wide and max(even, odd) > len(content) / 8:  # no other text holds NUL
        wide = "utf-16-le" if odd > even else "utf-16-be"
    try:
        return content.decode(encoding or wide or "utf-8").removeprefix("\ufeff")
    except LookupError as error:
        raise ArgumentError(f"encoding: {error}. Python's names are utf-8, cp1252, ...") from None
    except UnicodeDecodeError as error:
        if encoding or wide:
            raise
        near = content[max(0, error.start - 20) : error.start + 20].decode("cp1252", "replace")
        raise ValueError(
            f"it is not UTF-8: what is at byte {error.start} reads {near!r} in cp1252, which "
            "Windows uses in the West. If that is right: encoding='cp1252' in the call, or "
            "`-p encoding cp1252` in the command; else name the one that it was saved in, such as "
            "cp1250, cp1251 or mac_roman"
        ) from None


def _read_csv(path: Path, encoding: str | None) -> pd.DataFrame:
    text = _text(path, encoding)
    first, _, rest = text.lstrip("\r\n").partition("\n")
    if named := re.fullmatch(r"sep=([^\r\n])\s*", first, re.IGNORECASE):  # as Excel writes it
        return _table(rest, named[1])
    if re.match(r'[\[\s]*\{"', first):
        raise ValueError("it holds JSON: name it .jsonl")
    separators = [sep for sep in _SEPARATORS if sep in first] or [","]
    fits: dict[str, pd.DataFrame] = {}
    faults: list[Exception] = []
    for separator in ["\t"] if path.suffix.lower() == ".tsv" else separators:
        try:
            fits[separator] = _table(text, separator)
        except ValueError as error:
            faults.append(error)
    if not fits:
        raise faults[0]
    if len(fits) > 1:
        names = " or ".join(_SEPARATORS[sep] for sep in fits)
        raise ValueError(
            f"its cells may be separated by {names}. Name it in a first line such as sep=; or use "
            "pandas.read_csv(path, sep=..., dtype=str, keep_default_na=False) and give the result"
        )
    return next(iter(fits.values()))


def _table(text: str, separator: str) -> pd.DataFrame:
    # pandas would rename columns, take the first for an index where rows are wider than the
    # header, and fill up those that are shorter.
    csv.field_size_limit(2**31 - 1)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True)
    try:
        rows = [(reader.line_num, cells) for cells in reader if cells]
    except csv.Error as error:
        where = f"line {reader.line_num}: {error}"
        raise ValueError(f"{where} (within quotes, a quote is written twice)") from None
    if not rows:
        raise ValueError("it is empty")
    header = rows[0][1]
    for line, cells in rows:
        if len(cells) != len(header):
            raise ValueError(f"line {line} has {len(cells)} cells, the header has {len(header)}")
    return pd.DataFrame([cells for _, cells in rows[1:]], columns=header, dtype=object)


# -- partitions -----------------------------------------------------------------------------

Record = dict[str, Any]
"""Cells by column."""

Reader = Callable[[int], Iterator[list[Record]]]
"""Reads a table, so many rows at a time."""


def read_partitions(
    table: Any, columns: Sequence[str], size: int, encoding: str | None = None
) -> Iterator[list[Record]]:
    """Read columns of a table in order, ``size`` rows at a time; Parquet and Dask part by part."""
    with file_errors(table):
        records = _rows_of(table, list(dict.fromkeys(columns)), encoding)
        while partition := list(itertools.islice(records, size)):
            yield partition


def known_length(table: Any) -> int | None:
    """Return how many rows a table has, where that is known without reading it."""
    if isinstance(table, pd.DataFrame):
        return len(table)
    with suppress(OSError, ValueError):
        return None if (dataset := _dataset(table)) is None else int(dataset.count_rows())
    return None


def _rows_of(table: Any, columns: list[str], encoding: str | None) -> Iterator[Record]:
    if (dataset := _dataset(table)) is not None:
        files = list(dataset.get_fragments())
        for file in files:
            names = pd.DataFrame(columns=file.physical_schema.names)
            require_columns(names, f"table: in {file.path}", columns)
        for file in files:  # by its own types, into which pyarrow would change those of others
            # Little is read ahead: the model is what takes long.
            for batch in file.to_batches(columns=columns, batch_size=1000, batch_readahead=1):
                yield from batch.to_pylist()
        return
    is_dask = type(table).__module__.startswith("dask")
    whole: Any = table if is_dask else read_table(table, encoding)
    require_columns(whole, "table", columns)
    for part in map(whole.get_partition, range(whole.npartitions)) if is_dask else [whole]:
        chosen = part[columns].compute() if is_dask else part[columns]
        for row in chosen.itertuples(index=False, name=None):
            yield dict(zip(columns, row, strict=True))


def _dataset(table: Any) -> Any:
    """Return the dataset of a Parquet file or folder; None for other tables."""
    path = Path(table).expanduser() if isinstance(table, (str, os.PathLike)) else None
    is_parquet = path is not None and (path.is_dir() or path.suffix.lower() == ".parquet")
    return ds.dataset(path, format="parquet") if is_parquet else None


def column_type(values: Sequence[Any]) -> pa.DataType:
    """Return the type of a column of plain values: one for all of them, else text."""
    kinds = {type(value) for value in values if value is not None}
    types = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return types.get(kinds.pop(), pa.string()) if len(kinds) == 1 else pa.string()


def as_column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return a column of plain values, as JSON in one of text; raise where a value would change."""
    if pa.types.is_string(kind):
        given = [v if isinstance(v, str) or v is None else json.dumps(plain(v)) for v in values]
        return pa.array(given, kind)
    column = pa.array(values, kind)
    if cut := [v for v, kept in zip(values, column.to_pylist(), strict=True) if kept != v == v]:
        raise ValueError(f"the decimal places of {cut[0]!r} would be cut off")
    return column


def write_parquet(path: Path, table: pa.Table, about: Mapping[str, Any]) -> None:
    """Write a Parquet file as a whole or not at all, with plain data ``about`` it in its footer."""
    content = io.BytesIO()
    pq.write_table(table.replace_schema_metadata({"workbench": json.dumps(about)}), content)
    try:
        write_whole(path, content.getvalue())
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error}. What was written before stays. Make room, or "
            "name another folder, and run the same call again for the rest."
        ) from error


def read_about(path: Path) -> dict[str, Any]:
    """Return what `write_parquet` was told about a file; empty where another program wrote it."""
    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, ValueError) as error:
        raise TableError(f"{path} cannot be read as Parquet: {error}. Remove it.") from error
    return dict(json.loads(metadata.get(b"workbench", b"{}")))
