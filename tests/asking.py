"""Judges of a user's own class, and judges asked with a runner of their own, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from mlflow.genai.judges import Judge

from workbench.judging.requests import judge_examples, judge_many
from workbench.judging.verdicts import Verdict
from workbench.models.runner import Runner
from workbench.store.traces import Example

_OF_RUNNER = ("cache", "budget", "concurrency", "stop", "patience")


class OwnJudge(Judge):
    """What a judge of a user's own class must have but the call."""

    @property
    def instructions(self) -> str:
        return "Look."

    @property
    def feedback_value_type(self) -> Any:
        return Literal["yes", "no"]

    def get_input_fields(self) -> list[Any]:
        return []


def run(judge: Judge, items: Sequence[Example], **options: Any) -> list[Verdict]:
    """`judge_examples` with a new runner; options of both."""
    own = {name: options.pop(name) for name in _OF_RUNNER if name in options}
    with Runner(**own) as runner:
        return judge_examples(judge, items, runner, **options)


def run_many(questions: Sequence[tuple[Judge, Example, int]], **options: Any) -> list[Verdict]:
    """`judge_many` with a new runner; options of both."""
    own = {name: options.pop(name) for name in _OF_RUNNER if name in options}
    with Runner(**own) as runner:
        return judge_many(questions, runner, **options)
