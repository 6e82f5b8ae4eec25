"""Where an alignment stands, on disk after each step, for whoever looks at it or takes it up.

Taking up again needs no more than the answer cache: the loop is a function of its items, its
answers and its seed, so the same call comes to the same place and pays for nothing on the way.
The checkpoint says how far that is.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from workbench.cache import cache_directory
from workbench.progress import say

if TYPE_CHECKING:
    from workbench.optimised import Optimised


class Checkpoint:
    """The file ``alignments/<key>.json`` beside the answers.

    Parameters
    ----------
    key
        The same for the same call on the same labels.
    """

    def __init__(self, key: str) -> None:
        self.path: Path = cache_directory() / "alignments" / f"{key[:32]}.json"
        before = self.read()
        if before is not None and not before.get("finished"):
            say(
                f"Taking up an alignment that ended after step {before.get('step')}: what it "
                "paid for is not paid for again."
            )

    def read(self) -> dict[str, Any] | None:
        """What was written last; None where there is nothing that can be read."""
        try:
            found = json.loads(self.path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None
        return found if isinstance(found, dict) else None

    def write(self, state: dict[str, Any], *, finished: bool = False) -> None:
        """Keep the state after a step. It is no reason to fail where that cannot be written."""
        told = {**state, "finished": finished, "at": time.time(), "process": os.getpid()}
        part = self.path.with_suffix(f".{os.getpid()}.part")
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part.write_text(json.dumps(told, default=str), encoding="utf-8")
            part.replace(self.path)
        except OSError as error:
            say(f"The checkpoint {self.path} cannot be written: {error}. Answers are kept still.")

    def finish(self, found: Optimised) -> None:
        """Mark the last state as that of a run that came to its end."""
        if found.stopped != "it was cancelled":
            self.write({**(self.read() or {}), "stopped": found.stopped}, finished=True)
