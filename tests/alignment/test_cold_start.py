"""What an alignment need not import is not: litellm takes four seconds, a grammar of IRIs one."""

from __future__ import annotations

import os
import subprocess
import sys

import mlflow
import pandas as pd
from simulation import Simulation, items

import workbench

PROGRAM = """
import sys
from typing import Literal
import mlflow, workbench
mlflow.set_experiment("test")
judge = workbench.make_judge(
    "good_reply", "Is {{ outputs }} a good reply to {{ inputs }}? Answer yes or no",
    model="openai:/simulated", feedback_value_type=Literal["yes", "no"],
)
traces = mlflow.search_traces(return_type="list")
aligned = judge.align(traces, workbench.SIMBA(max_steps=1, progress=False))
heavy = {"litellm", "rfc3987_syntax"}
print(aligned.instructions != judge.instructions, heavy & sys.modules.keys())
embedded = workbench.make_judge("reply", judge.instructions, model="offline:/rubric")
assessed = workbench.assess(embedded, traces[:3], progress=False)
print(len(assessed.failures), heavy & sys.modules.keys())
"""


def test_a_model_on_an_openai_compatible_endpoint_needs_no_litellm(store: str) -> None:
    """Nor do prices, though the endpoint is named by a variable, nor the embedded model."""
    table = pd.DataFrame([vars(item) for item in items(30, seed=0)])
    labels = {"ana": ("label", "rationale")}
    workbench.import_traces(
        table, inputs="question", outputs="answer", labels=labels, label_name="good_reply"
    )
    with Simulation(judge="systematic", seed=0) as server:
        reached = {"OPENAI_API_BASE": server.url, "OPENAI_API_KEY": "sk-simulated-0123"}
        ran = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            env={**os.environ, **reached, "MLFLOW_TRACKING_URI": mlflow.get_tracking_uri()},
            capture_output=True, text=True, check=False, timeout=120,
        )  # fmt: skip
    assert ran.stdout.split() == ["True", "set()", "0", "set()"], ran.stderr
