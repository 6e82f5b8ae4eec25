"""The embedded model ``offline:/rubric``: deterministic, in-process, no network, no key.

It reads what a judge prompt holds (allowed values, rules in plain sentences, worked examples,
the item) and answers; asked to reflect on cases, it contrasts them and writes rules in the
sentences that it can read. It exists so that the workbench can be tried, taught and tested
anywhere. It is no language model: it understands nothing, and no figure obtained with it is a
claim about a language model.
"""

from __future__ import annotations

from workbench.compat import add_provider
from workbench.models.budget import FREE as SCHEME

__all__ = ["MODEL", "SCHEME", "VERSION", "register"]

MODEL = "offline:/rubric"


def register(model: str) -> None:
    """Make an embedded ``model`` known to litellm, and so to MLflow judges and dspy."""
    if not model.startswith(SCHEME):
        return
    from workbench.models.offline.provider import OfflineModel

    add_provider("offline", OfflineModel())


VERSION = 2
"""Part of the key of every cached answer. Raise it when a change makes answers differ."""
