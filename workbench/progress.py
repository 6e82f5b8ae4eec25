"""Progress bars: Jupyter's own in a notebook, plain text where ``WORKBENCH_PROGRESS=text``."""

from __future__ import annotations

import os
import sys
from typing import Any


def bar(*, total: int, desc: str | None, disable: bool = False) -> Any:
    """A tqdm bar over ``total`` steps; ``disable`` makes one that shows nothing."""
    if os.environ.get("WORKBENCH_PROGRESS") == "text":
        from tqdm.std import tqdm

        # A log has no cursor: a line now and then rather than one redrawn all the time. On stdout,
        # since saved notebooks show stderr as if something had gone wrong.
        return tqdm(
            total=total, desc=desc, disable=disable, mininterval=1.0, ncols=90, file=sys.stdout
        )
    from tqdm.auto import tqdm as auto_tqdm

    return auto_tqdm(total=total, desc=desc, disable=disable)


def say(text: str) -> None:
    """Print text where a progress bar may be on the screen."""
    from tqdm.std import tqdm

    tqdm.write(text)
