"""How fast `workbench.score` judges a large table, by the number of worker processes.

    python tests/benchmarks/bench_score.py [--rows 100000] [--latency 0.1] [--workers 1 2 4]

The model is a simulation on loopback that answers after a fixed latency, in a process of its own on
the same cores. The table is a Parquet folder. Each line is a new Dask cluster, which first scores a
tenth of the table and then all of it: a worker's memory after each, and the second as a multiple of
the first, are given beside the throughput, and with it what no program can exceed: concurrency /
latency.

Then one process without a cluster scores the table, is killed (SIGKILL) after a third and after two
thirds of its calls, and is started again each time: what the folder and the server have counted at
the end.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OPENAI_API_KEY", "sk-loopback-0123456789")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import pandas as pd
from distributed import Client, LocalCluster
from loopback import Loopback

import workbench

PARTITION_ROWS = 1000


def judge_at(url: str) -> Any:
    return workbench.make_judge(
        "quality",
        "Does {{ outputs }} answer {{ inputs }}? Rate it excellent, good, fair or poor.",
        model="openai:/simulated",
        base_url=url,
        feedback_value_type=Literal["excellent", "good", "fair", "poor"],
    )


def write_tables(folder: Path, rows: int) -> dict[int, Path]:
    """The table and a tenth of it, as folders of Parquet files of 10,000 rows."""
    tables = {}
    for count in (rows // 10, rows):
        tables[count] = folder / f"table-{count}"
        tables[count].mkdir()
        for start in range(0, count, 10_000):
            numbers = range(start, min(start + 10_000, count))
            texts = {"q": [f"question {n}?" for n in numbers], "a": ["answer " * 20] * len(numbers)}
            pd.DataFrame(texts).to_parquet(tables[count] / f"{start:08}.parquet")
    return tables


def score(judge: Any, table: Path, to: Path, concurrency: int, client: Any = None) -> Any:
    return workbench.score(
        judge, table, inputs="q", outputs="a", to=to, client=client, concurrency=concurrency,
        partition_rows=PARTITION_ROWS, progress=False,
    )  # fmt: skip


def _most_memory() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def with_workers(
    count: int, tables: dict[int, Path], folder: Path, options: argparse.Namespace
) -> dict[str, Any]:
    """Score a tenth and then all of the table on so many worker processes."""
    few, many = tables
    local = LocalCluster(
        n_workers=count, threads_per_worker=1, processes=True, dashboard_address=None
    )
    with local, Client(local) as client, Loopback(latency=options.latency) as server:
        judge, here = judge_at(server.url), folder / f"verdicts-{count}"
        score(judge, tables[few], Path(f"{here}-few"), options.concurrency, client)
        before = max(client.run(_most_memory).values())
        asked, start = server.requests, time.perf_counter()
        done = score(judge, tables[many], here, options.concurrency, client)
        seconds = time.perf_counter() - start
        after = max(client.run(_most_memory).values())
        stats = server.stats()
    return {
        "workers": count,
        "rows": done.rows,
        "seconds": seconds,
        "rows/s": done.rows / seconds,
        "at once": stats["most_at_once"],
        "calls": stats["requests"] - asked,
        "failed": done.failed,
        f"MB a worker, {few:,} rows": before,
        f"MB a worker, {many:,} rows": after,
        "growth": after / before,
    }


def killed_twice(table: Path, rows: int, folder: Path, options: argparse.Namespace) -> list[int]:
    """(verdicts, different rows, calls) of a run that is killed twice and started three times."""
    with Loopback(latency=options.latency) as server:
        for share in (1 / 3, 2 / 3, None):
            process = subprocess.Popen(
                [sys.executable, __file__, "--score", server.url, table, folder / "killed",
                 "--concurrency", str(options.concurrency)],
            )  # fmt: skip
            while share is not None and server.requests < share * rows:
                if process.poll() is not None:
                    raise RuntimeError("the run ended before it was killed")
                time.sleep(0.02)
            if share is not None:
                process.kill()
            process.wait()
        calls = server.requests
    rows_of = workbench.Scored.open(folder / "killed").table
    return [int(rows_of["verdict"].notna().sum()), int(rows_of["row"].nunique()), calls]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--latency", type=float, default=0.1, help="seconds an answer takes")
    parser.add_argument("--concurrency", type=int, default=64, help="of all workers together")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--score", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.score:
        url, table, to = options.score
        score(judge_at(url), Path(table), Path(to), options.concurrency)
        return 0

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        tables = write_tables(folder, options.rows)
        found = [with_workers(n, tables, folder, options) for n in options.workers]
        table = pd.DataFrame(found)
        print(table.to_string(index=False, float_format=lambda number: f"{number:.2f}"))
        limit = options.concurrency / options.latency
        print(
            f"server's limit {options.concurrency} / {options.latency} s = {limit:.0f} rows/s, of "
            f"which {', '.join(f'{r:.0%}' for r in table['rows/s'] / limit)} are reached; "
            f"{os.cpu_count()} cores, the simulated model among what runs on them"
        )
        verdicts, rows, calls = killed_twice(tables[options.rows], options.rows, folder, options)
        print(
            f"killed twice and resumed: {verdicts:,} verdicts on {rows:,} rows, {calls:,} calls: "
            f"{calls - options.rows:,} more, of at most {2 * PARTITION_ROWS:,}"
        )
    exact = verdicts == rows == options.rows and calls <= options.rows + 2 * PARTITION_ROWS
    return 0 if exact and not table["failed"].any() else 1


if __name__ == "__main__":
    sys.exit(main())
