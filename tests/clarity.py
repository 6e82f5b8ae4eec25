"""Traces whose judge has a bias that instructions cure: people like figures, it likes length."""

from __future__ import annotations

from typing import Any, Literal

import pandas as pd
from mlflow.genai.judges.base import AlignmentOptimizer

import workbench
from workbench.judging.judge import with_instructions
from workbench.models.offline import MODEL

NAME = "clarity"
TEXT = "Rate how good {{ outputs }} answers {{ inputs }}."
CURE = "- Raise the rating by one step when the outputs give a number."
CURED = f'{TEXT}\n- Start from "no" and disregard length and friendliness.\n{CURE}'
WORSE = CURED.replace('"no"', '"yes"').replace("Raise", "Lower")
PADDING = "which is a thing that one may well wish to know about before one goes and buys it"


def table(n: int) -> pd.DataFrame:
    """Answers with a number are good to people, others bad; long ones please the plain judge."""
    good = [i % 2 == 0 for i in range(n)]
    return pd.DataFrame(
        {
            "question": [f"How wide is part {i // 2}?" for i in range(n)],
            "answer": [
                f"It is {10 + i} cm wide."
                if yes
                else f"It is quite wide {PADDING}, so {'no' * (i + 1)}."
                for i, yes in enumerate(good)
            ],
            "part": [str(i // 2) for i in range(n)],
            "ana": ["yes" if yes else "no" for yes in good],
            "why": ["gives the width" if yes else "no figure" for yes in good],
        }
    )


def biased_judge(**options: Any) -> Any:
    """The plain judge, of the embedded model unless ``options`` name another."""
    options = {"model": MODEL, "feedback_value_type": Literal["yes", "no"], **options}
    return workbench.make_judge(NAME, TEXT, **options)


def labelled(n: int, judge: Any) -> list[str]:
    """``n`` imported, labelled and judged traces."""
    imported = workbench.import_traces(
        table(n),
        inputs="question",
        outputs="answer",
        tags=["part"],
        labels={"ana": ("ana", "why")},
        label_name=NAME,
        progress=False,
    )
    workbench.assess(judge, progress=False)
    return imported.trace_ids


class Proposing(AlignmentOptimizer):
    """An optimizer that returns the judge with given instructions, and keeps what it was shown."""

    def __init__(self, instructions: str) -> None:
        self.instructions = instructions
        self.seen: list[Any] = []

    def align(self, judge: Any, traces: list[Any]) -> Any:
        self.seen = traces
        return with_instructions(judge, self.instructions)
