"""A folder of verdicts on a large table: a Parquet file a partition, each there whole or not."""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

import filelock
import pandas as pd
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq

from workbench.errors import ArgumentError, StoreError, TableError
from workbench.formatting import counted, html_result, write_whole
from workbench.models.budget import UNPAID, Usage
from workbench.scale import Scale
from workbench.store.files import Record, as_column, column_type, read_about, write_parquet
from workbench.store.tables import columns_by_key, plain, read_row
from workbench.store.traces import Example
from workbench.vocabulary import is_missing

# Of every file, beside those kept of the table itself.
COLUMNS: Final = (
    "row", "time", "verdict", "rationale", "error", "fingerprint",
    "input_tokens", "output_tokens", "cost", "calls",
)  # fmt: skip


@dataclass(frozen=True)
class Layout:
    """Which columns of the table hold what."""

    sides: dict[str, dict[str, str]]
    single: bool  # whether the output is a cell, and no dict
    keep: tuple[str, ...]
    time: str | None

    @classmethod
    def of(cls, roles: Mapping[str, Any], keep: Any, time: Any) -> Layout:
        sides = {role: columns_by_key(role, spec) for role, spec in roles.items()} | {"tags": {}}
        keep = (keep,) if isinstance(keep, str) else tuple(keep or ())
        if taken := set(keep) & set(COLUMNS):
            raise ArgumentError(
                f"keep={keep!r}: {', '.join(sorted(taken))} is a column of the verdicts. Rename it."
            )
        single = not isinstance(roles["outputs"], (list, tuple, Mapping))
        return cls(sides, single, keep, time)

    @property
    def beside(self) -> list[str]:
        return [*self.keep, *([self.time] if self.time else [])]

    @property
    def columns(self) -> list[str]:
        return [*(c for by_key in self.sides.values() for c in by_key.values()), *self.beside]

    def kept(self, partitions: Iterable[Sequence[Record]]) -> dict[str, list[Any]]:
        """Look at all that is copied before anything is paid for; return a cell of each type."""
        found: dict[str, dict[type, Any]] = {column: {} for column in self.keep}
        for number, record in enumerate(itertools.chain.from_iterable(partitions)):
            row, _ = self._copied(number, record)
            for column, by_type in found.items():
                by_type[type(row[column])] = row[column]
        return {column: [*by_type.values()] for column, by_type in found.items()}

    def read(self, number: int, record: Record) -> tuple[Record, Example, list[Any]]:
        """What is known of a row before it is judged (an error bars it), item, and content."""
        cells, problems = read_row(number, record, self.sides, {})
        outputs = next(iter(cells.outputs.values()), None) if self.single else cells.outputs
        expected = cells.expectations if self.sides["expectations"] else None
        item = Example(f"row {number}", cells.inputs, outputs, expected)
        row, copied = self._copied(number, record)
        row["error"] = "; ".join(problems) or None
        return row, item, [item.inputs, item.outputs, item.expectations, copied]

    def _copied(self, number: int, record: Record) -> tuple[Record, list[Any]]:
        """A row without a verdict yet, and the plain cells of what is copied, and the time."""
        cells = []
        for column in self.beside:
            try:
                cells.append(plain(record[column]))
            except ValueError as error:
                raise TableError(
                    f"Column {column!r}, row {number}: it holds {error}. Make the column text."
                ) from None
        row: Record = {**dict.fromkeys(COLUMNS), **dict(zip(self.keep, cells, strict=False))}
        row |= {"row": number, "calls": 0}
        row["time"] = self._time(number, cells[-1]) if self.time else None
        return row, cells

    def _time(self, number: int, given: Any) -> datetime | None:
        if is_missing(given):
            return None
        # pandas guesses at others, each cell for itself, and reads "now" as ISO 8601.
        iso = given if re.match(r"\s*\d{4}-\d\d-\d\d", str(given)) else ""
        when = pd.to_datetime(iso, format="ISO8601", utc=True, errors="coerce")
        if pd.isna(when):
            raise TableError(
                f"time={self.time!r}: row {number} holds {given!r}, which is no date of ISO 8601, "
                "such as 2026-03-31. pandas.to_datetime(column, format=...) reads others."
            )
        at: datetime = when.to_pydatetime()
        return at


@dataclass(frozen=True)
class Task:
    """A partition: its rows with what is known of them, and the items to ask about by index."""

    number: int
    rows: list[Record]
    items: dict[int, Example]
    about: dict[str, Any]


@dataclass(frozen=True)
class VerdictFolder:
    """The files ``part-00000.parquet``, ... in a folder; the footer of each says what it holds."""

    path: Path

    def part(self, number: int) -> Path:
        return self.path / f"part-{number:05}.parquet"

    def parts(self) -> list[Path]:
        return sorted(self.path.glob("part-*.parquet"))

    @contextmanager
    def writing(self, expected: dict[str, Any]) -> Iterator[int]:
        """Hold the folder, all of the ``expected`` judge; gives the number of answered rows."""
        lock = filelock.FileLock(self.path / ".lock", timeout=0)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            lock.acquire()
        except filelock.Timeout:
            raise ArgumentError(
                f"to={str(self.path)!r}: another process scores into this folder. Wait for it."
            ) from None
        except OSError as error:
            raise StoreError(f"The folder {self.path} cannot be written: {error}.") from error
        try:
            footers = [self.check(path, expected) for path in self.parts()]
            yield sum(one["rows"] - one["failed"] for one in footers)
        finally:
            lock.release()

    def check(self, path: Path, expected: dict[str, Any]) -> dict[str, Any]:
        """Return a file's footer; `ArgumentError` where it is not what is ``expected``."""
        about = read_about(path)
        for key, value in expected.items():
            if about.get(key) != value:
                what = "judge" if key == "fingerprint" else key
                raise ArgumentError(
                    f"to={str(self.path)!r}: {path.name} is of another {what} "
                    f"({about.get(key)!r}, not {value!r}). Name a new folder: each holds one "
                    "judge's verdicts on one table."
                )
        return about

    def read(self, chosen: Any = None, columns: Sequence[str] | None = None) -> pa.Table:
        """Return all rows, or those that an expression of `pyarrow.dataset` chooses."""
        files = [str(path) for path in self.parts()]
        return ds.dataset(files, format="parquet").to_table(filter=chosen, columns=columns)

    def write(
        self, number: int, rows: Sequence[Record], types: dict[str, Any], about: dict[str, Any]
    ) -> None:
        """Write the verdicts on a partition, and count them in the file's footer."""
        columns = {name: as_column([row[name] for row in rows], types[name]) for name in types}
        failed = sum(row["error"] is not None for row in rows)
        abstained = sum(row["verdict"] is None for row in rows) - failed
        counts = {"rows": len(rows), "failed": failed, "abstained": abstained}
        write_parquet(self.part(number), pa.table(columns), {**about, **counts})

    def types(self, kept: dict[str, list[Any]], scale: Scale | None) -> dict[str, Any]:
        """The types of all columns; of a folder in use those of its files, which must fit."""
        if files := self.parts():
            schema = pq.read_schema(files[0])
            types = dict(zip(schema.names, schema.types, strict=True))
            for name, cells in kept.items():
                fits = {types[name], *[pa.int64()] * (types[name] == pa.float64())}
                wrong = [v for v in cells if v is not None and column_type([v]) not in fits]
                if wrong and types[name] != pa.string():
                    raise ArgumentError(
                        f"keep: column {name!r} now holds {wrong[0]!r}, and is of {types[name]} in "
                        f"{str(self.path)!r}. Make it that again, or name a new folder."
                    )
            return types
        verdict = column_type([] if scale is None else scale.values)
        if scale is not None and scale.kind == "numeric":
            verdict = pa.int64() if scale.integer else pa.float64()
        kinds = {name: column_type(cells) for name, cells in kept.items()}
        kinds |= {"time": pa.timestamp("us", "UTC"), "verdict": verdict, "cost": pa.float64()}
        kinds |= dict.fromkeys(("row", "input_tokens", "output_tokens", "calls"), pa.int64())
        return {name: kinds.get(name, pa.string()) for name in ("row", *kept, *COLUMNS[1:])}

    def write_sample(self, sample: pd.DataFrame) -> None:
        """Keep which rows were imported as which traces."""
        write_whole(self.path / "_sample.json", sample.to_json(orient="records"))


@dataclass(frozen=True)
class Scored:
    """A folder of verdicts, and what `score` did to it.

    Attributes
    ----------
    name, fingerprint, folder
        Of the judge, and where its verdicts are.
    rows, failed, abstained, partitions
        What the folder holds: rows, those without a usable verdict, those on which the judge
        abstained, and files.
    asked, paid
        Rows that the judge was asked about now, and what that took: requests, tokens, US dollars.
    """

    name: str
    fingerprint: str
    folder: Path
    rows: int
    failed: int
    abstained: int
    partitions: int
    asked: int = 0
    paid: Usage = UNPAID
    seconds: float = 0.0

    @classmethod
    def open(cls, folder: str | Path) -> Scored:
        """Open a folder that `score` has written."""
        path = Path(folder).expanduser().absolute()
        parts = [read_about(part) for part in VerdictFolder(path).parts()]
        if not parts or "fingerprint" not in parts[0]:
            raise ArgumentError(f"{str(path)!r} holds no verdicts that workbench.score wrote.")
        counts = {k: sum(one[k] for one in parts) for k in ("rows", "failed", "abstained")}
        name, fingerprint = parts[0]["judge"], parts[0]["fingerprint"]
        return cls(name, fingerprint, path, **counts, partitions=len(parts))

    @property
    def table(self) -> pd.DataFrame:
        """All verdicts, read when asked for. ``dask.dataframe.read_parquet(folder)`` reads lazily.

        One row a row of the table: ``row`` (its position, from 0), the kept columns, ``time``,
        ``verdict`` (None where it failed or the judge abstained), ``rationale``, ``error`` (None
        where the judge answered), ``fingerprint``, ``input_tokens``, ``output_tokens``, ``cost``
        in US dollars (None where they are not known) and ``calls``.
        """
        rows = VerdictFolder(self.folder).read()
        table: pd.DataFrame = rows.to_pandas(integer_object_nulls=True)
        return table

    @property
    def verdicts(self) -> pd.DataFrame:
        """``row``, ``time`` and ``verdict`` alone, of the rows that have one."""
        columns = ["row", "time", "verdict"]
        table: pd.DataFrame = VerdictFolder(self.folder).read(columns=columns).to_pandas()
        return table[table["verdict"].notna()].reset_index(drop=True)

    @property
    def failures(self) -> pd.DataFrame:
        """The rows without a usable verdict: ``row``, ``error`` and the kept columns."""
        rows = VerdictFolder(self.folder).read(ds.field("error").is_valid())
        table: pd.DataFrame = rows.to_pandas()
        return table[["row", "error", *(c for c in table.columns if c not in COLUMNS)]]

    @property
    def sample(self) -> pd.DataFrame:
        """The rows that were imported as traces: ``row``, ``trace_id``, ``probability``."""
        path = self.folder / "_sample.json"
        rows = json.loads(path.read_text("utf-8")) if path.exists() else []
        return pd.DataFrame(rows, columns=["row", "trace_id", "probability"])

    @property
    def trace_ids(self) -> list[str]:
        """Of the sample, as the label panel and `workbench.pair` take them."""
        return list(self.sample["trace_id"])

    def __repr__(self) -> str:
        money = "" if self.paid.cost is None else f", ${self.paid.cost:.4f}"
        return (
            f"<Scored {self.name!r}: {counted(self.rows, 'row')} in {str(self.folder)!r}, "
            f"{counted(self.failed, 'failure')}, {counted(self.abstained, 'abstention')}; now "
            f"{counted(self.asked, 'row')} asked, {counted(self.paid.requests, 'call')}, "
            f"{self.seconds:.1f} s{money}>"
        )

    def _repr_html_(self) -> str:
        return html_result(self, *([self.failures] if self.failed else []))
