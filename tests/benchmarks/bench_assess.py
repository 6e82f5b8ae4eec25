"""How fast `workbench.assess` judges, beside `mlflow.genai.evaluate` in the same run.

    python tests/benchmarks/bench_assess.py [--traces 400] [--latency 0.3] [--concurrency 64]

The model is a simulation on loopback that answers after a fixed latency; the store is a fresh
SQLite file each. All use the same judge and rows of the same kind, and log their verdicts;
what is counted at the end is what the store holds. No answer comes from a cache.

`evaluate` is measured three times, on fewer traces since it is slow: at its first run in a
process, which is what a notebook sees; once more; and tuned, with as many workers as we have
and its limit of calls a second (ten, at first) switched off. Each is given beside ours, and
with them what no program can exceed: concurrency / latency.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("OPENAI_API_KEY", "sk-loopback-0123456789")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
import pandas as pd
import pytest
from loopback import Loopback

import workbench

NAME = "quality"
INSTRUCTIONS = "Does {{ outputs }} answer {{ inputs }}? Rate it excellent, good, fair or poor."


def with_workbench(judge: Any, concurrency: int) -> None:
    workbench.assess(judge, concurrency=concurrency, cache=False, progress=False)


def as_it_comes(judge: Any, concurrency: int) -> None:
    mlflow.genai.evaluate(data=mlflow.search_traces(), scorers=[judge])


def tuned(judge: Any, concurrency: int) -> None:
    with pytest.MonkeyPatch.context() as changed:
        changed.setenv("MLFLOW_GENAI_EVAL_MAX_WORKERS", str(concurrency))
        changed.setenv("MLFLOW_GENAI_EVAL_PREDICT_RATE_LIMIT", "0")
        changed.setenv("MLFLOW_GENAI_EVAL_SCORER_RATE_LIMIT", "0")
        as_it_comes(judge, concurrency)


def measure(
    what: str, work: Callable[[Any, int], None], rows: int, options: argparse.Namespace
) -> dict[str, Any]:
    """Judge ``rows`` new traces in a new store, and count what the store then holds."""
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{folder}/mlflow.db")
        mlflow.set_experiment("benchmark")
        texts = {"q": [f"question {n}?" for n in range(rows)], "a": ["answer " * 20] * rows}
        workbench.import_traces(pd.DataFrame(texts), inputs="q", outputs="a", progress=False)
        with Loopback(latency=options.latency) as server:
            judge = workbench.make_judge(
                NAME,
                INSTRUCTIONS,
                model="openai:/simulated",
                base_url=server.url,
                feedback_value_type=Literal["excellent", "good", "fair", "poor"],
            )
            judge(inputs={"q": "warm"}, outputs="up")
            before = server.requests
            start = time.perf_counter()
            work(judge, options.concurrency)
            seconds = time.perf_counter() - start
            stats = server.stats()
        stored = sum(
            assessment.name == NAME and assessment.error is None
            for trace in mlflow.search_traces(return_type="list", max_results=rows + 1)
            for assessment in trace.info.assessments
        )
    return {
        "what": what,
        "traces": rows,
        "seconds": seconds,
        "traces/s": rows / seconds,
        "stored": stored,
        "lost": rows - stored,
        "requests": stats["requests"] - before,
        "at once": stats["most_at_once"],
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--traces", type=int, default=2000)
    parser.add_argument("--evaluate-traces", type=int, default=50, help="fewer, since it is slow")
    parser.add_argument("--latency", type=float, default=0.3, help="seconds an answer takes")
    parser.add_argument("--concurrency", type=int, default=64)
    options = parser.parse_args()

    few = min(options.evaluate_traces, options.traces)
    with Path(os.devnull).open("w") as nowhere, contextlib.redirect_stdout(nowhere):
        found = [
            measure("evaluate, first run", as_it_comes, few, options),
            measure("workbench.assess", with_workbench, options.traces, options),
            measure("evaluate, again", as_it_comes, few, options),
            measure("evaluate, tuned", tuned, few, options),
        ]
    table = pd.DataFrame(found)
    ours = table.loc[table["what"] == "workbench.assess"].iloc[0]
    table["ours is times"] = ours["traces/s"] / table["traces/s"]
    print(table.to_string(index=False, float_format=lambda number: f"{number:.1f}"))
    if options.latency:
        limit = options.concurrency / options.latency
        print(
            f"physical limit {options.concurrency} / {options.latency} s = {limit:.0f} traces/s, "
            f"of which workbench.assess reaches {ours['traces/s'] / limit:.0%}"
        )
    print(f"{os.cpu_count()} cores, simulated model, {table['lost'].sum()} verdicts lost")
    return 0 if ours["lost"] == 0 and table["ours is times"][0] >= 20 else 1


if __name__ == "__main__":
    sys.exit(main())
