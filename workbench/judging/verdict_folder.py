"""A folder of verdicts on a large table: a Parquet file a partition, each there whole or not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import filelock
import pandas as pd

from workbench.errors import ArgumentError, StoreError
from workbench.scale import Scale
from workbench.store.partitions import Record, as_column, column_type, read_about, write_parquet
from workbench.store.traces import Example

if TYPE_CHECKING:
    import pyarrow as pa

COLUMNS: Final = (
    "row", "time", "verdict", "rationale", "error", "fingerprint",
    "input_tokens", "output_tokens", "cost", "calls",
)  # fmt: skip
"""Of every file, beside those kept of the table itself."""

_SAMPLE: Final = "_sample.parquet"  # readers of folders pass over names that begin like this


@dataclass(frozen=True)
class Task:
    """The rows of a partition with what is known of them, and the items to ask about by index."""

    number: int
    rows: list[Record]
    items: dict[int, Example]
    about: dict[str, Any]


@dataclass(frozen=True)
class VerdictFolder:
    """The files ``part-00000.parquet``, ... in a folder; the footer of each says what it holds."""

    path: Path

    def part(self, number: int) -> Path:
        """Return where the verdicts on a partition are, or will be."""
        return self.path / f"part-{number:05}.parquet"

    def parts(self) -> dict[Path, dict[str, Any]]:
        """Return what the footers say, by file: fingerprint, content, counts of rows."""
        return {path: read_about(path) for path in sorted(self.path.glob("part-*.parquet"))}

    @contextmanager
    def writing(self, expected: dict[str, Any]) -> Iterator[None]:
        """Hold the folder, whose files must all be of the ``expected`` judge and partitions.

        Raises
        ------
        ArgumentError
            For a folder of another judge, of partitions of another size, or that is in use.
        StoreError
            When the folder cannot be made.
        """
        lock = filelock.FileLock(self.path / ".lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            raise ArgumentError(
                f"to={str(self.path)!r}: another process scores into this folder. Wait for it, or "
                "name another folder."
            ) from None
        except OSError as error:
            raise StoreError(f"The folder {self.path} cannot be written: {error}.") from error
        try:
            for path, about in self.parts().items():
                self.check(path, about, expected)
            yield
        finally:
            lock.release()

    def check(self, path: Path, about: dict[str, Any], expected: dict[str, Any]) -> None:
        """Raise `ArgumentError` where a file is not what is ``expected``, with what differs."""
        for key, value in expected.items():
            if about.get(key) != value:
                raise ArgumentError(
                    f"to={str(self.path)!r}: {path.name} is of another {_NAMES[key]} "
                    f"({about.get(key)!r}, not {value!r}). Name a new folder, or remove this one "
                    "if its verdicts are not needed; a folder holds one judge's verdicts on one "
                    "table."
                )

    def read(self, chosen: Any = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all rows, or those that an expression of `pyarrow.dataset` chooses."""
        import pyarrow.dataset as ds

        files = [str(path) for path in self.parts()]
        return ds.dataset(files, format="parquet").to_table(filter=chosen, columns=columns)

    def rows(self, numbers: Iterable[int]) -> list[Record]:
        """Return the rows of the given numbers."""
        import pyarrow as pa
        import pyarrow.dataset as ds

        found = self.read(ds.field("row").isin(pa.array(list(numbers), pa.int64())))
        rows: list[Record] = found.to_pylist()
        return rows

    def records(self, number: int) -> list[Record]:
        """Return the rows of a file."""
        import pyarrow.parquet as pq

        rows: list[Record] = pq.read_table(self.part(number)).to_pylist()
        return rows

    def failures(self) -> pd.DataFrame:
        """Return the rows without a usable verdict: ``row``, ``error`` and the kept columns."""
        import pyarrow.dataset as ds

        table: pd.DataFrame = self.read(ds.field("error").is_valid()).to_pandas()
        return table[["row", "error", *(c for c in table.columns if c not in COLUMNS)]]

    def write(
        self, number: int, rows: Sequence[Record], scale: Scale | None, about: dict[str, Any]
    ) -> None:
        """Write the verdicts on a partition, and count them in the file's footer."""
        import pyarrow as pa

        errors = sum(row["error"] is not None for row in rows)
        none = sum(row["verdict"] is None for row in rows)
        kinds = {
            "row": pa.int64(), "time": pa.timestamp("us", "UTC"), "verdict": _verdict_type(scale),
            "input_tokens": pa.int64(), "output_tokens": pa.int64(), "cost": pa.float64(),
            "calls": pa.int64(),
        }  # fmt: skip
        columns = {}
        for name in rows[0]:
            values = [row[name] for row in rows]
            kind = kinds.get(name, pa.string())
            if name not in COLUMNS:
                kind = self._kept_type(name, values)
            try:
                columns[name] = as_column(values, kind)
            except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
                raise ArgumentError(
                    f"keep: column {name!r} begins with values of type {kind}, and rows from "
                    f"{rows[0]['row']} hold another ({error}). Make it text."
                ) from error
        counts = {"rows": len(rows), "failed": errors, "abstained": none - errors}
        write_parquet(self.part(number), pa.table(columns), {**about, **counts})

    def _kept_type(self, name: str, values: Sequence[Any]) -> Any:
        """The type of a kept column: that of the first file, so that all files agree."""
        import pyarrow.parquet as pq

        first = next(iter(sorted(self.path.glob("part-*.parquet"))), None)
        return column_type(values) if first is None else pq.read_schema(first).field(name).type

    # -- the sample ---------------------------------------------------------------------------

    def write_sample(self, sample: pd.DataFrame, about: dict[str, Any]) -> None:
        """Keep which rows were imported as which traces."""
        import pyarrow as pa

        table = pa.Table.from_pandas(sample, preserve_index=False)
        write_parquet(self.path / _SAMPLE, table, about)

    def sample(self) -> pd.DataFrame:
        """Return the rows imported as traces: ``row``, ``trace_id``, ``probability``."""
        path = self.path / _SAMPLE
        if not path.exists():
            return pd.DataFrame(columns=["row", "trace_id", "probability"])
        return pd.read_parquet(path)


_NAMES: Final = {
    "fingerprint": "judge",
    "partition_rows": "size of partitions",
    "keep": "choice of columns to keep",
    "content": "table",
}


def _verdict_type(scale: Scale | None) -> Any:
    import pyarrow as pa

    if scale is None:
        return pa.string()
    if scale.kind == "numeric":
        return pa.int64() if scale.integer else pa.float64()
    return column_type(list(scale.values))
