"""Tables larger than memory: read record by record, and written in partitions of Parquet."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.errors import ArgumentError, StoreError, TableError
from workbench.store.files import read_table
from workbench.store.tables import plain, require_columns

if TYPE_CHECKING:
    import pyarrow as pa

Record = dict[str, Any]
"""Cells by column."""


def read_partitions(table: Any, columns: Sequence[str], size: int) -> Iterator[list[Record]]:
    """Read the given columns of a table in its order, ``size`` rows at a time.

    Parameters
    ----------
    table
        A DataFrame of pandas or Dask; a Parquet file, or a folder of such files, which are read in
        the order of their names; a CSV, TSV or JSONL file in UTF-8. Of Parquet a row group, and of
        a Dask frame a partition is in memory at a time, of other files the rows alone.

    Raises
    ------
    ArgumentError
        For a table of another kind, and for columns that it does not have.
    TableError
        When a file is missing or damaged; rows before the damage were given.
    """
    try:
        records = _records(table, list(dict.fromkeys(columns)))
        while partition := list(itertools.islice(records, size)):
            yield partition
    except (OSError, ValueError, csv.Error) as error:
        if isinstance(error, ArgumentError):
            raise
        raise TableError(f"The table {table} cannot be read: {error}.") from error


def known_length(table: Any) -> int | None:
    """Return how many rows a table has, where that is known without reading it."""
    if isinstance(table, pd.DataFrame):
        return len(table)
    is_path = isinstance(table, (str, os.PathLike))
    if is_path and (Path(table).is_dir() or Path(table).suffix.lower() == ".parquet"):
        with suppress(OSError, ValueError, ImportError):
            return int(_dataset(Path(table)).count_rows())
    return None


def _records(table: Any, columns: list[str]) -> Iterator[Record]:
    if isinstance(table, pd.DataFrame):
        return _of_frame(read_table(table), columns)
    if type(table).__module__.startswith("dask"):
        parts = (table.partitions[k].compute() for k in range(table.npartitions))
        require_columns(table, "table", columns)
        return itertools.chain.from_iterable(_of_frame(part, columns) for part in parts)
    if not isinstance(table, (str, os.PathLike)):
        raise ArgumentError(
            f"table is a {type(table).__name__}. Give a DataFrame of pandas or Dask, a Parquet "
            "file or folder, or a CSV or JSONL file."
        )
    path = Path(table).expanduser()
    if not path.exists():
        raise TableError(f"There is no file or folder {str(path.absolute())!r}.")
    if path.is_dir() or path.suffix.lower() == ".parquet":
        return _of_parquet(path, columns)
    if path.suffix.lower() in (".csv", ".tsv"):
        return _of_csv(path, columns)
    if path.suffix.lower() in (".jsonl", ".ndjson"):
        return _of_jsonl(path, columns)
    return _of_frame(read_table(path), columns)


def _of_frame(frame: pd.DataFrame, columns: list[str]) -> Iterator[Record]:
    require_columns(frame, "table", columns)
    rows = frame[columns].itertuples(index=False, name=None)
    return (dict(zip(columns, row, strict=True)) for row in rows)


def _dataset(path: Path) -> Any:
    try:
        import pyarrow.dataset
    except ImportError as error:
        raise TableError(
            "Parquet needs pyarrow: pip install 'judge-workbench[parquet]'."
        ) from error
    return pyarrow.dataset.dataset(path, format="parquet")


def _of_parquet(path: Path, columns: list[str]) -> Iterator[Record]:
    dataset = _dataset(path)
    require_columns(pd.DataFrame(columns=dataset.schema.names), "table", columns)
    # Little is read ahead: the model is what takes long.
    batches = dataset.to_batches(
        columns=columns, batch_size=1000, batch_readahead=1, fragment_readahead=1
    )
    for batch in batches:
        yield from batch.to_pylist()


def _of_csv(path: Path, columns: list[str]) -> Iterator[Record]:
    """Every cell is text as it is; the separator is the one that gives the columns asked for."""
    csv.field_size_limit(2**31 - 1)
    with path.open(encoding="utf-8-sig", newline="") as file:
        first = file.readline()
        file.seek(0)
        headers = {sep: next(csv.reader([first], delimiter=sep), []) for sep in ",;\t|"}
        fits = (sep for sep, header in headers.items() if set(columns) <= set(header))
        reader = csv.reader(file, delimiter=next(fits, ","), strict=True)
        header = next(reader, [])
        require_columns(pd.DataFrame(columns=header), "table", columns)
        for cells in filter(None, reader):
            if len(cells) != len(header):
                raise ValueError(
                    f"line {reader.line_num} has {len(cells)} cells, the header {len(header)}"
                )
            cell = dict(zip(header, cells, strict=True))
            yield {column: cell[column] for column in columns}


def _of_jsonl(path: Path, columns: list[str]) -> Iterator[Record]:
    records = _lines(path)
    first = list(itertools.islice(records, 1000))  # one record may lack what others have
    known = dict.fromkeys(key for record in first for key in record)
    require_columns(pd.DataFrame(columns=list(known)), "table", columns)
    for record in itertools.chain(first, records):
        yield {column: record.get(column) for column in columns}


def _lines(path: Path) -> Iterator[Record]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, start=1):
            record = json.loads(line) if line.strip() else {}
            if not isinstance(record, dict):
                raise TableError(f"The table {path}: line {number} is no JSON object.")
            if line.strip():
                yield record


def column_type(values: Sequence[Any]) -> pa.DataType:
    """Return the type of a column of plain values: one for all of them, else text."""
    import pyarrow as pa

    kinds = {type(value) for value in values if value is not None}
    types = {bool: pa.bool_(), int: pa.int64(), float: pa.float64()}
    return types.get(kinds.pop(), pa.string()) if len(kinds) == 1 else pa.string()


def as_column(values: Sequence[Any], kind: pa.DataType) -> pa.Array:
    """Return a column of plain values; in one of text, what is no text is written as JSON."""
    import pyarrow as pa

    if pa.types.is_string(kind):
        given = [v if isinstance(v, str) or v is None else json.dumps(plain(v)) for v in values]
        return pa.array(given, kind)
    return pa.array(values, kind)


def write_parquet(path: Path, table: pa.Table, about: Mapping[str, Any]) -> None:
    """Write a Parquet file as a whole or not at all, with plain data ``about`` it in its footer."""
    import pyarrow.parquet as pq

    beside = path.with_name(f".{path.name}.part")
    marked = table.replace_schema_metadata({"workbench": json.dumps(about)})
    try:
        with beside.open("wb") as file:
            pq.write_table(marked, file)
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
    except OSError as error:
        raise StoreError(
            f"{path} cannot be written: {error}. What was written before stays. Make room, or "
            "name another folder, and run the same call again for the rest."
        ) from error
    finally:
        with suppress(OSError):
            beside.unlink(missing_ok=True)


def read_about(path: Path) -> dict[str, Any]:
    """Return what `write_parquet` was told about a file; empty where another program wrote it.

    A file that is no Parquet is a `TableError`.
    """
    import pyarrow.parquet as pq

    try:
        metadata = pq.read_schema(path).metadata or {}
    except (OSError, ValueError) as error:
        raise TableError(f"{path} cannot be read as Parquet: {error}. Remove it.") from error
    found: dict[str, Any] = json.loads(metadata.get(b"workbench", b"{}"))
    return found
