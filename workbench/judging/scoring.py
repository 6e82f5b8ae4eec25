"""`score`: a judge's verdicts on a table of any length, partition by partition, without traces."""

from __future__ import annotations

import itertools
import math
import time as clock
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from numbers import Real
from pathlib import Path
from typing import Any, Final

import numpy as np
import pandas as pd
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from mlflow.genai.judges import Judge

from workbench.errors import ArgumentError, BudgetError, check_whole
from workbench.formatting import bar, counted, say
from workbench.judging.assessment import as_feedback, check_single, earlier_verdict
from workbench.judging.cluster import ask_on_cluster
from workbench.judging.judge import fingerprint
from workbench.judging.requests import Asker, check_budget, judge_examples, say_where
from workbench.judging.verdict_folder import Layout, Scored, Task, VerdictFolder
from workbench.judging.verdicts import Verdict
from workbench.models.budget import UNPAID, Budget, Usage
from workbench.models.runner import Runner
from workbench.scale import Scale, is_abstention, scale_of
from workbench.store.assessments import log_assessments
from workbench.store.files import Reader, Record, known_length, read_partitions
from workbench.store.importing import import_traces
from workbench.store.tables import ColumnSpec, digest
from workbench.store.traces import fetch_traces

PARTITION_ROWS: Final = 1000  # what a killed run may have to pay again


def score(
    judge: Judge,
    table: Any,
    *,
    inputs: ColumnSpec,
    outputs: ColumnSpec,
    expectations: ColumnSpec | None = None,
    keep: Sequence[str] = (),
    time: str | None = None,
    to: str | Path = "verdicts/",
    client: Any = None,
    partition_rows: int = PARTITION_ROWS,
    concurrency: int = 64,
    budget: Budget | int | None = None,
    retry_failed: bool = False,
    sample: float | None = None,
    seed: int = 0,
    encoding: str | None = None,
    progress: bool = True,
) -> Scored:
    """Let the judge rate a table of any length, and write the verdicts to a folder of Parquet.

    A partition of the table is written as a whole or not at all, and is then not asked again, so
    a run that was killed is completed by running it again; it pays at most a partition a worker
    twice. No trace is made but for a ``sample``, and the answer cache is not used.

    Parameters
    ----------
    judge
        Any MLflow judge of single items that needs no ``{{ trace }}``.
    table
        A DataFrame of pandas or Dask, a Parquet file or folder, a CSV or JSONL file.
    inputs, outputs, expectations
        Columns, as `workbench.import_traces` takes them.
    keep
        Columns that are copied beside the verdicts, such as ids; as text where their cells are of
        several types.
    time
        A column of dates, or of texts in ISO 8601 (2026-03-31), by which `workbench.monitor` tells
        weeks; rows without one are dated by when they were judged.
    to
        The folder; it holds one judge's verdicts on one table.
    client
        A ``distributed.Client``: the workers of its cluster judge a partition each at a time. They
        need the judge's keys in their environment, but not the files.
    partition_rows
        Rows of a partition, at least 1.
    concurrency
        Calls under way at the same time, at most, of all workers together. A rate limit that one
        of them meets slows down all.
    budget
        Model calls at most, or a `workbench.Budget`. Partitions are judged as long as they can be
        expected to fit, so that it is kept to within a partition a worker.
    retry_failed
        Ask again about the rows without a usable verdict, of partitions that are there.
    sample
        A share of the rows, in (0, 1), or a number of them: drawn at random by ``seed``, they are
        imported as traces with their verdicts, to be labelled (``LabelPanel(judge, scored, ...)``)
        and monitored. A larger sample by the same seed holds the smaller one.
    encoding
        Of a CSV file that is not UTF-8, such as ``cp1252``.

    Raises
    ------
    ArgumentError
        For a folder that holds verdicts of another judge or table, and a judge of traces.
    TableError, StoreError
        When table or folder cannot be read or written, or a time is no date.
    UnreachableModelError, CredentialError, ModelError
        When no call can be expected to succeed.
    BudgetError
        When the budget is too small for the rest. Partitions that were written stay.
    """
    started = clock.monotonic()
    roles = {"inputs": inputs, "outputs": outputs, "expectations": expectations}
    layout = Layout.of(roles, keep, time)
    check_whole("partition_rows", partition_rows)
    check_whole("concurrency", concurrency)
    check_whole("seed", seed, 0)
    _check(judge, layout, sample)
    limit = Budget.of(budget)
    check_budget(judge, limit)
    folder = VerdictFolder(Path(to).expanduser().resolve())
    given = Path(table).expanduser().resolve() if isinstance(table, (str, Path)) else None
    if given in (folder.path, *folder.path.parents):
        raise ArgumentError(f"to={str(to)!r} is the table itself, or in it. Name another folder.")
    expected = {"fingerprint": fingerprint(judge), "size of partitions": partition_rows}
    expected |= {"choice of columns to keep": list(layout.keep)}
    say_where(judge, wanted=progress)
    shown = bar(total=known_length(table), desc=f"scoring with {judge.name}", disable=not progress)
    with shown, folder.writing(expected) as answered:
        beside = read_partitions(table, layout.beside, partition_rows, encoding)
        types = folder.types(layout.kept(beside if layout.beside else ()), scale_of(judge))
        about = {"judge": judge.name, **expected}
        run = _Run(folder, layout, types, scale_of(judge), limit, about, shown)
        ask = _ask_here if client is None else ask_on_cluster
        read = partial(read_partitions, table, layout.columns, encoding=encoding)
        tasks = run.tasks(read, retry_failed)
        with closing(ask(tasks, judge, client, concurrency, answered)) as asked:
            for task, verdicts in asked:
                run.settle(task, verdicts)
        if run.refused:
            raise BudgetError(
                f"The budget does not allow the next {counted(run.refused, 'row')}: {limit} are "
                f"used. {run.kept} Run again with a larger budget for the rest."
            )
        if sample is not None:
            _import_sample(judge, read, roles, folder, sample, seed)
    seconds, found = clock.monotonic() - started, Scored.open(folder.path)
    return replace(found, asked=run.asked, paid=run.paid, seconds=seconds)


def _ask_here(
    tasks: Iterator[Task], judge: Judge, client: None, concurrency: int, answered: int
) -> Generator[tuple[Task, list[Verdict]]]:
    with Runner(concurrency=concurrency, answered=answered) as runner:
        for task in tasks:
            yield task, judge_examples(judge, list(task.items.values()), runner)


def _check(judge: Judge, layout: Layout, sample: Any) -> None:
    size = float(sample) if isinstance(sample, Real) else math.nan
    if sample is not None and not (0 < size < 1 or (size >= 1 and size.is_integer())):
        raise ArgumentError(
            f"sample={sample!r} must be a share of the rows in (0, 1), or a whole number of them."
        )
    check_single(judge)
    needed = Asker(judge).fields
    if "trace" in needed:
        raise ArgumentError(
            f"Judge {judge.name!r} needs {{{{ trace }}}}, and the rows of a table are no traces. "
            "Import them (workbench.import_traces) and use workbench.assess."
        )
    # A user's own class accepts what all judges may be given, and may do without.
    is_own = not type(judge).__module__.startswith("mlflow.")
    if "expectations" in needed and not (layout.sides["expectations"] or is_own):
        raise ArgumentError(f"Judge {judge.name!r} needs expectations=: columns that hold them.")


# -- partitions -----------------------------------------------------------------------------


@dataclass
class _Run:
    """One `score`: which partitions are open, and what was paid."""

    folder: VerdictFolder
    layout: Layout
    types: dict[str, Any]
    scale: Scale | None
    budget: Budget
    about: dict[str, Any]
    shown: Any
    asked: int = 0
    under_way: int = 0
    paid: Usage = UNPAID
    charged: Budget = field(default_factory=Budget)  # what is known of it
    refused: int = 0
    failed: int = 0

    @property
    def kept(self) -> str:
        return f"{counted(self.asked, 'row')} were judged now and are kept."

    def tasks(self, read: Reader, retry_failed: bool) -> Iterator[Task]:
        """Read the table, and give the partitions of which something is to be asked."""
        size, number = self.about["size of partitions"], -1
        for number, records in enumerate(read(size)):
            task = self._task(number, number * size, records, retry_failed)
            if task is None:
                self.shown.update(len(records))
            elif not task.items:
                self.settle(task, [])
            elif self._affords(len(task.items)):
                self.under_way += len(task.items)
                yield task
            else:
                self.refused += len(task.items)
                return
        if number < 0:
            raise ArgumentError("The table has no rows, so there is nothing to score.")
        if self.folder.part(number + 1).exists():
            raise ArgumentError(
                f"to={str(self.folder.path)!r} holds verdicts on more rows than the table has, "
                "so they are of another table. Name a new folder."
            )

    def _task(
        self, number: int, first: int, records: Sequence[Record], retry_failed: bool
    ) -> Task | None:
        """What is to be asked of a partition; None where all of it is there."""
        read = [self.layout.read(first + k, record) for k, record in enumerate(records)]
        items = {k: item for k, (row, item, _) in enumerate(read) if row["error"] is None}
        about = {**self.about, "table": digest([content for _, _, content in read])}
        path = self.folder.part(number)
        if path.exists():
            failed = self.folder.check(path, {"table": about["table"]})["failed"]
            rows = pq.read_table(path).to_pylist() if retry_failed and failed else []
            items = {k: i for k, i in items.items() if rows and rows[k]["error"] is not None}
            if not items:
                return None
        else:
            rows = [row | {"fingerprint": about["fingerprint"]} for row, _, _ in read]
        return Task(number, rows, items, about)

    def settle(self, task: Task, verdicts: Sequence[Verdict]) -> None:
        """Write a partition, and count what it has cost."""
        now = pd.Timestamp.now(tz="UTC").to_pydatetime()
        for row in task.rows:
            row["time"] = row["time"] or now
        for k, verdict in zip(task.items, verdicts, strict=True):
            row, used = task.rows[k], verdict.paid
            before = Usage(row["calls"], row["input_tokens"], row["output_tokens"], row["cost"])
            every = before + used
            abstained = verdict.value is not None and is_abstention(verdict.value, self.scale)
            row |= {
                "verdict": None if abstained else verdict.value,
                "rationale": verdict.rationale,
                "error": verdict.error,
                "input_tokens": every.read,
                "output_tokens": every.written,
                "cost": every.cost,
                "calls": every.requests,
            }
            self.paid += used
            self.failed += verdict.error is not None
            for budget in (self.budget, self.charged):
                budget.charge(self._assumed(used))
        self.asked += len(verdicts)
        self.under_way -= len(verdicts)
        self.folder.write(task.number, task.rows, self.types, task.about)
        if self.budget.measures and self.charged.spent and not self.charged.spent_tokens:
            raise BudgetError(
                f"The model's server does not say how many tokens it used, so {self.budget!r} "
                f"cannot be kept. {self.kept} Run again with a budget of calls: budget=1000."
            )
        money = f", ${self.paid.cost:.4f}" if self.paid.cost else ""
        self.shown.set_postfix_str(f"{self.failed} failed{money}", refresh=False)
        self.shown.update(len(task.rows))

    def _assumed(self, used: Usage) -> Usage:
        """What a verdict used; where that is not known, as much a request as the others."""
        if used.read is not None or not used.requests:
            return used
        share = used.requests / max(self.charged.spent, 1)
        tokens, usd = share * self.charged.spent_tokens, share * self.charged.spent_usd
        return Usage(used.requests, math.ceil(tokens), 0, usd)

    def _affords(self, rows: int) -> bool:
        """Whether so many rows more can be expected to fit, beside those under way."""
        share = (rows + self.under_way) / max(self.asked, 1)
        spent = self.charged
        calls = max(share * spent.spent, rows + self.under_way)
        expected = (calls, share * spent.spent_tokens, share * spent.spent_usd)
        left = (self.budget.left, self.budget.left_tokens, self.budget.left_usd)
        return min(left) > 0 and all(one <= most for one, most in zip(expected, left, strict=True))


# -- the sample -----------------------------------------------------------------------------

# Tag of an imported trace: the probability with which its row was drawn from the table.
PROBABILITY_TAG: Final = "workbench.selection_probability"


def draw(rows: Sequence[int], sample: float, seed: int) -> tuple[list[int], float]:
    """Draw a share or a number of rows by the seed; return them and the probability of each."""
    # A larger sample by the same seed holds the smaller one.
    places = np.random.default_rng(seed).random(max(rows, default=-1) + 1)[list(rows)]
    number = int((places < sample).sum()) if sample < 1 else int(sample)
    drawn = sorted(rows[k] for k in np.argsort(places)[:number])
    return drawn, sample if sample < 1 else min(1.0, sample / max(len(rows), 1))


def _import_sample(
    judge: Judge,
    read: Reader,
    roles: Mapping[str, Any],
    folder: VerdictFolder,
    sample: float,
    seed: int,
) -> None:
    """Import randomly drawn rows as traces, and log their verdicts, each once."""
    known = folder.read(columns=["row", "error", "calls"]).to_pandas()
    askable = known["row"][known["error"].isna() | (known["calls"] > 0)]
    drawn, probability = draw(askable.tolist(), sample, seed)
    if not drawn:
        say(f"sample={sample} drew none of {counted(len(askable), 'row')}; draw more.")
        return
    wanted, every = set(drawn), enumerate(itertools.chain.from_iterable(read(1000)))
    table = pd.DataFrame([record for row, record in every if row in wanted], dtype=object)
    table[PROBABILITY_TAG] = str(probability)
    imported = import_traces(table, **roles, tags=PROBABILITY_TAG, progress=False)
    traces = fetch_traces(imported, spans=False)
    rows = folder.read(ds.field("row").isin(drawn)).to_pylist()
    new = []
    for trace, row in zip(traces, rows, strict=True):
        used = Usage(row["calls"], row["input_tokens"], row["output_tokens"], row["cost"])
        abstained = row["verdict"] is None and row["error"] is None
        value = "N/A" if abstained else row["verdict"]
        before = earlier_verdict(trace, judge.name, row["fingerprint"])
        # A row that was asked again may have a verdict in place of an error.
        if before is None or before.error not in (None, row["error"]):
            said = value, row["rationale"], row["error"], row["fingerprint"]
            verdict = Verdict(trace.info.trace_id, *said, usage=used)
            new.append(as_feedback(verdict, judge, trace.info))
    log_assessments(new, progress=False)
    now = pd.DataFrame({"row": drawn, "trace_id": imported.trace_ids, "probability": probability})
    folder.write_sample(now)
