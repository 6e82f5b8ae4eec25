"""Tables larger than memory: read and written in partitions of Parquet."""

from __future__ import annotations

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

    ``table`` is a Parquet file, or a folder of such files in the order of their names, of which a
    row group is in memory at a time; a frame of Dask, of which a partition is; or anything that
    `workbench.store.files.read_table` reads, as a whole. A file that is missing or damaged is a
    `TableError`; rows before the damage were given.
    """
    try:
        records = _records(table, list(dict.fromkeys(columns)))
        while partition := list(itertools.islice(records, size)):
            yield partition
    except ArgumentError:
        raise
    except (OSError, ValueError) as error:
        raise TableError(f"The table {table} cannot be read: {error}.") from error


def known_length(table: Any) -> int | None:
    """Return how many rows a table has, where that is known without reading it."""
    if isinstance(table, pd.DataFrame):
        return len(table)
    with suppress(OSError, ValueError, ImportError, TypeError):
        return int(_dataset(table).count_rows()) if _is_parquet(table) else None
    return None


def _records(table: Any, columns: list[str]) -> Iterator[Record]:
    if type(table).__module__.startswith("dask"):
        require_columns(table, "table", columns)
        parts = (table.partitions[k].compute() for k in range(table.npartitions))
    elif _is_parquet(table):
        dataset = _dataset(table)
        require_columns(pd.DataFrame(columns=dataset.schema.names), "table", columns)
        # Little is read ahead: the model is what takes long.
        batches = dataset.to_batches(
            columns=columns, batch_size=1000, batch_readahead=1, fragment_readahead=1
        )
        yield from itertools.chain.from_iterable(batch.to_pylist() for batch in batches)
        return
    else:
        parts = iter([read_table(table)])
    for part in parts:
        require_columns(part, "table", columns)
        for row in part[columns].itertuples(index=False, name=None):
            yield dict(zip(columns, row, strict=True))


def _is_parquet(table: Any) -> bool:
    is_path = isinstance(table, (str, os.PathLike))
    return is_path and (Path(table).is_dir() or Path(table).suffix.lower() == ".parquet")


def _dataset(path: Any) -> Any:
    try:
        import pyarrow.dataset
    except ImportError as error:
        raise TableError(
            "Parquet needs pyarrow: pip install 'judge-workbench[parquet]'."
        ) from error
    return pyarrow.dataset.dataset(Path(path).expanduser(), format="parquet")


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
