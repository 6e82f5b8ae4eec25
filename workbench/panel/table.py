"""The table that stands for a panel where no kernel can be asked, kept as it is now.

A front end shows the panel's view and stores what the cell has put out. What is stored must say
how far the labelling is when the notebook is saved, not when the cell was run. Were the view's
own output brought up to date, the front end would make the view anew, under the fingers of whoever
labels. So the table is an output of its own, which is brought up to date as labels are saved, and
hides itself where the panel's view is alive.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any, Final

VIEW: Final = "application/vnd.jupyter.widget-view+json"

_SOONEST: Final = 1.5
_SHARE: Final = 0.05

_log = logging.getLogger(__name__)


class StandingTable:
    """A table in the notebook's output.

    Parameters
    ----------
    table
        Makes the bundle of the table: its ``text/plain`` and ``text/html``.
    epoch
        What the view of this panel is known by in the page: hexadecimal digits.
    """

    def __init__(self, table: Callable[[], dict[str, Any]], epoch: str) -> None:
        self._table = table
        self._hiding = (
            # The view names an item as soon as a kernel has sent it one.
            f'<style>body:has(.wb[data-epoch="{epoch}"][data-trace]:not([data-trace=""])) '
            f".wb-table-{epoch} {{ display: none; }}</style>"
        )
        self._class = f"wb-table-{epoch}"
        self._display_id = f"workbench-{uuid.uuid4().hex}"
        self._shown = False
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None
        self._cost = 0.0

    def show(self) -> None:
        """Put the table out, where the cell stands that is run now."""
        self._shown = True
        self._publish(update=False)

    def changed(self) -> None:
        """Bring it up to date soon; returns at once."""
        if not self._shown:
            return
        with self._lock:
            if self._timer is None:
                wait = max(_SOONEST, self._cost / _SHARE)
                self._timer = threading.Timer(wait, self._renew)
                self._timer.daemon = True
                self._timer.start()

    def _renew(self) -> None:
        with self._lock:
            self._timer = None
        began = time.monotonic()
        try:
            self._publish(update=True)
        except Exception:
            # No front end is left to be told.
            _log.debug("the table could not be brought up to date", exc_info=True)
        self._cost = time.monotonic() - began

    def _publish(self, *, update: bool) -> None:
        bundle = self._table()
        inside = f'{self._hiding}<div class="{self._class}">{bundle["text/html"]}</div>'
        put_out({**bundle, "text/html": inside}, display_id=self._display_id, update=update)


def put_out(bundle: dict[str, Any], **more: Any) -> None:
    """Make a bundle of MIME types an output of the cell that is run."""
    from IPython.display import display

    display(bundle, raw=True, **more)  # type: ignore[no-untyped-call]  # IPython has none
