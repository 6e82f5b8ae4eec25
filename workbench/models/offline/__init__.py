"""The embedded model ``offline:/rubric``: deterministic, in-process, no network, no key.

It reads what a judge prompt holds (allowed values, rules in plain sentences, worked examples, the
item) and answers; asked to reflect, it contrasts cases and writes rules in sentences that it can
read. It is no language model: no figure obtained with it is a claim about one.
"""

from __future__ import annotations

from workbench.compat import answer_in_process
from workbench.errors import ArgumentError
from workbench.models.budget import FREE

MODEL = "offline:/rubric"
VERSION = 3  # part of the key of every cached answer; raise it when answers differ


def register(model: str) -> None:
    """Make an embedded ``model`` known to MLflow's judges, and to dspy."""
    if not model.startswith(FREE):
        return
    if model != MODEL:
        raise ArgumentError(f"There is no embedded model {model!r}; the only one is {MODEL!r}.")
    from workbench.models.offline.provider import respond

    answer_in_process("offline", respond)
