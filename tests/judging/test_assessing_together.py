"""Runs that assess the same traces at once leave one verdict on each."""

from __future__ import annotations

import threading
from collections.abc import Callable

import mlflow
import pandas as pd
from loopback import Loopback

from workbench import assess, import_traces, make_judge


def test_one_verdict_of_a_version_on_a_trace(store: str, loopback: Callable[..., Loopback]) -> None:
    table = pd.DataFrame({"q": [f"question {n}" for n in range(30)], "a": "an answer"})
    import_traces(table, inputs="q", outputs="a", progress=False)
    server = loopback(latency=0.3)
    judge = make_judge(
        "quality", "Does {{ outputs }} answer {{ inputs }}?", model="openai:/simulated",
        base_url=server.url, feedback_value_type=bool,
    )  # fmt: skip
    failures: list[Exception] = []

    def run() -> None:
        try:
            assert len(assess(judge, cache=False, progress=False).failures) == 0
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    found = mlflow.search_traces(return_type="list", include_spans=False)
    assert [len(trace.info.assessments) for trace in found] == [1] * 30
