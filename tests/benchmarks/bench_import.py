"""Import of a table beside a loop over `mlflow.start_span`, on the same rows in one run.

    python tests/benchmarks/bench_import.py [--rows 2000]

Each way writes into a fresh SQLite store. The loop exports synchronously, since MLflow's
asynchronous export loses traces of a loop this long. The labelled loop is run on a tenth of
the rows; its time a row is what counts.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
import pandas as pd
from mlflow.entities import AssessmentSource

from workbench import import_traces
from workbench.store.traces import fetch_traces

ANNOTATORS = ("ana", "bo", "cy")


def make_table(rows: int) -> pd.DataFrame:
    """Questions and answers of some hundred characters, rated by three annotators."""
    numbers = range(rows)
    table = pd.DataFrame(
        {
            "question": [f"What becomes of order {i}, and when will it come?" for i in numbers],
            "answer": [f"Order {i} left us. " + "It is on its way. " * 12 for i in numbers],
        }
    )
    for shift, annotator in enumerate(ANNOTATORS):
        table[annotator] = ["good" if (i + shift) % 3 else "poor" for i in range(rows)]
        table[f"{annotator}_why"] = "It says where the order is, but not when it comes."
    return table


def by_import(table: pd.DataFrame, *, labelled: bool) -> None:
    labels = {who: (who, f"{who}_why") for who in ANNOTATORS}
    import_traces(
        table,
        inputs="question",
        outputs="answer",
        labels=labels if labelled else None,
        label_name="quality" if labelled else None,
        progress=False,
    )


def by_loop(table: pd.DataFrame, *, labelled: bool) -> None:
    for row in table.to_dict("records"):
        with mlflow.start_span("imported") as span:
            span.set_inputs({"question": row["question"]})
            span.set_outputs(row["answer"])
        for who in ANNOTATORS if labelled else ():
            mlflow.log_feedback(
                trace_id=span.trace_id,
                name="quality",
                value=row[who],
                rationale=row[f"{who}_why"],
                source=AssessmentSource(source_type="HUMAN", source_id=who),
            )


def measure(write: Callable[..., None], table: pd.DataFrame, *, labelled: bool) -> dict[str, Any]:
    """Seconds to write the table into a fresh store, and what is in it then."""
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{Path(folder) / 'mlflow.db'}")
        mlflow.set_experiment("benchmark")
        write(table[:1], labelled=labelled)  # what is made on first use is not counted
        start = time.perf_counter()
        write(table[1:], labelled=labelled)
        seconds = time.perf_counter() - start
        traces = fetch_traces(spans=False)
    rows = len(table) - 1
    return {
        "rows": rows,
        "seconds": seconds,
        "ms a row": 1000 * seconds / rows,
        "stored": len(traces) - 1,
        "labels": sum(len(t.info.assessments) for t in traces[1:]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=2000)
    rows = parser.parse_args().rows
    table = make_table(rows + 1)
    result = {}
    for labelled in (False, True):
        kind = "with 3 labels a row" if labelled else "no labels"
        fast = measure(by_import, table, labelled=labelled)
        slow = measure(by_loop, table[: rows // 10 + 1] if labelled else table, labelled=labelled)
        result[f"import_traces, {kind}"] = {
            **fast, "times faster": slow["ms a row"] / fast["ms a row"],
        }  # fmt: skip
        result[f"loop, {kind}"] = slow
    frame = pd.DataFrame(result).T
    for column in ("rows", "stored", "labels"):
        frame[column] = frame[column].astype(int)
    print(frame.to_string(float_format="%.2f", na_rep=""))


if __name__ == "__main__":
    main()
