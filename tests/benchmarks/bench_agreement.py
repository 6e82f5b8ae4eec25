"""Agreement on 100,000 pairs beside what does the same elsewhere, and `pair` on a local store.

    python tests/benchmarks/bench_agreement.py [--pairs 100000] [--traces 10000]

The peers are scikit-learn's functions for the figures, and a loop that resamples rows for the
intervals, of which a tenth is run and counted ten times.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ["MLFLOW_ENABLE_ASYNC_TRACE_LOGGING"] = "false"
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

import mlflow
import numpy as np
import pandas as pd
from sklearn.metrics import (
    accuracy_score,
    cohen_kappa_score,
    confusion_matrix,
    matthews_corrcoef,
    precision_recall_fscore_support,
)

from workbench import (
    agreement,
    alternative_annotator_test,
    annotator_agreement,
    import_traces,
    log_verdicts,
    pair,
)
from workbench.pairing.pairs import Pairs
from workbench.scale import Scale

DRAWS = 1000
ANNOTATORS = ("ana", "bo", "cy")


def made_pairs(n: int) -> Pairs:
    """Pairs on a binary scale with three annotators, each item with its own text."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, n)
    words = np.array(["no", "yes"])
    votes, judge = (
        words[np.where(rng.random((n, k)) < 0.85, truth[:, None], 1 - truth[:, None])]
        for k in (len(ANNOTATORS), 1)
    )
    table = pd.DataFrame(
        {
            "trace_id": [f"tr-{i}" for i in range(n)],
            "human": pd.Series(words[truth], dtype=object),
            "judge": pd.Series(judge[:, 0], dtype=object),
            "human_rationale": "",
            "judge_rationale": "",
            "votes": [dict(zip(ANNOTATORS, row, strict=True)) for row in votes.tolist()],
            "blind": True,
        }
    )
    texts = {i: (f'{{"question": "{i}"}}', f"answer {i}") for i in table["trace_id"]}
    nothing = pd.DataFrame(columns=["trace_id", "reason"])
    return Pairs("quality", table, nothing, Scale.of(["no", "yes"]), content=texts)


def sklearn_figures(pairs: Pairs) -> None:
    """The figures that scikit-learn has, without intervals."""
    human, judge = pairs.table["human"].to_numpy(str), pairs.table["judge"].to_numpy(str)
    for measure in (accuracy_score, cohen_kappa_score, matthews_corrcoef, confusion_matrix):
        measure(human, judge)
    precision_recall_fscore_support(human, judge)


def resampling_loop(pairs: Pairs) -> None:
    """A tenth of the draws: kappa of resampled rows, one draw after the other."""
    rng = np.random.default_rng(0)
    human, judge = ((pairs.table[side] == "yes").to_numpy(int) for side in ("human", "judge"))
    for _ in range(DRAWS // 10):
        rows = rng.integers(len(pairs), size=len(pairs))
        cohen_kappa_score(human[rows], judge[rows])


def seconds(call: Callable[[], Any]) -> float:
    begin = time.perf_counter()
    call()
    return time.perf_counter() - begin


def time_of_pair(traces: int) -> float:
    """Seconds that `pair` takes on traces with two labels and a verdict each."""
    numbers = range(traces)
    table = pd.DataFrame(
        {
            "question": [f"What becomes of order {i}?" for i in numbers],
            "answer": [f"Order {i} left us. " * 5 for i in numbers],
            **{who: ["yes" if (i + k) % 3 else "no" for i in numbers]
               for k, who in enumerate(ANNOTATORS[:2])},
        }
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        mlflow.set_tracking_uri(f"sqlite:///{Path(folder) / 'mlflow.db'}")
        mlflow.set_experiment("bench")
        labels: Any = {who: who for who in ANNOTATORS[:2]}
        made = import_traces(
            table, inputs="question", outputs="answer", labels=labels, label_name="quality",
            progress=False,
        )  # fmt: skip
        verdicts = pd.DataFrame({"trace_id": made.trace_ids, "judge": table["ana"]})
        log_verdicts(verdicts, name="quality", source="m", value="judge", progress=False)
        return seconds(lambda: pair("quality"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=100_000)
    parser.add_argument("--traces", type=int, default=10_000)
    given = parser.parse_args()
    pairs = made_pairs(given.pairs)
    slice_of = {i: k % 12 for k, i in enumerate(pairs.trace_ids)}
    groups = {i: k // 3 for k, i in enumerate(pairs.trace_ids)}
    plain = replace(pairs, content={})
    rows: dict[str, tuple[float, float | None]] = {
        "figures": (
            seconds(lambda: agreement(plain, resamples=2)), seconds(lambda: sklearn_figures(pairs)),
        ),
        f"figures, {DRAWS} draws": (
            seconds(lambda: agreement(pairs, resamples=DRAWS)),
            10 * seconds(lambda: resampling_loop(pairs)),
        ),
        "the same by groups": (
            seconds(lambda: agreement(pairs, groups=groups, resamples=DRAWS)), None,
        ),
        "12 slices": (seconds(lambda: agreement(pairs, by=slice_of, resamples=DRAWS)), None),
        "annotators": (seconds(lambda: annotator_agreement(pairs, resamples=DRAWS)), None),
        "alternative annotator test": (
            seconds(lambda: alternative_annotator_test(pairs, resamples=DRAWS)), None,
        ),
        f"pair, {given.traces:,} traces": (time_of_pair(given.traces), None),
    }  # fmt: skip
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["seconds", "peer"])
    table["ratio"] = table["peer"] / table["seconds"]
    print(table.to_string(float_format="{:.2f}".format, na_rep=""))


if __name__ == "__main__":
    main()
