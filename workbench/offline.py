"""The embedded model ``offline:/rubric``: deterministic, in-process, no network, no key.

It is no language model.
"""

from __future__ import annotations

SCHEME = "offline:/"
MODEL = "offline:/rubric"


def register() -> None:
    """Make ``offline:/...`` known to litellm, and so to MLflow judges and dspy. Idempotent."""
