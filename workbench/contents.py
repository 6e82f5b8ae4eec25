"""What a person reads of a trace, made fit to be sent: JSON, and not too long."""

from __future__ import annotations

import json
import math
import threading
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

from mlflow.entities import Trace, TraceInfo
from mlflow.tracing.client import TracingClient

from workbench.store import load_spans
from workbench.tables import has_lone_surrogate
from workbench.traces import Example

CUT: Final = 200_000
"""Characters of one text that are sent unless all of it is asked for."""

_DEEPEST = 60
_KEPT = 1_000


def content(example: Example, *, full: bool = False) -> dict[str, Any]:
    """Inputs, outputs and expectations as JSON.

    What is longer than `CUT` is cut, unless ``full``, and told under ``cuts``: path -> length in
    characters. A field that is long as a whole without a long text in it is sent as the
    beginning of its JSON.
    """
    cuts: dict[str, int] = {}
    shown: dict[str, Any] = {}
    for name in ("inputs", "outputs", "expectations"):
        limit = None if full else CUT
        inner: dict[str, int] = {}
        value = _plain(getattr(example, name), limit, inner, name, 0)
        if limit is not None and not isinstance(value, str):
            text = json.dumps(value, ensure_ascii=False)
            if len(text) > 2 * limit:
                value, inner = text[:limit], {name: len(text)}
        shown[name] = value
        cuts |= inner
    return {**shown, "cuts": cuts} if cuts else shown


def _plain(value: Any, limit: int | None, cuts: dict[str, int], path: str, depth: int) -> Any:
    if isinstance(value, str):
        if has_lone_surrogate(value):
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if limit is not None and len(value) > limit:
            cuts[path] = len(value)
            return value[:limit]
        return value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        # A browser would round what is larger.
        return value if abs(value) < 2**53 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth >= _DEEPEST:
        return _plain(json.dumps(value, default=str), limit, cuts, path, depth)
    if isinstance(value, dict):
        return {
            _plain(str(key), limit, {}, path, depth): _plain(
                one, limit, cuts, f"{path}.{key}"[:200], depth + 1
            )
            for key, one in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [_plain(one, limit, cuts, f"{path}[{n}]", depth + 1) for n, one in enumerate(value)]
    return _plain(str(value), limit, cuts, path, depth)


class Contents:
    """Traces with their spans, the last thousand of them kept at hand."""

    def __init__(self, client: TracingClient) -> None:
        self._client = client
        self._lock = threading.Lock()
        self._kept: OrderedDict[str, Trace] = OrderedDict()

    def read(self, infos: Sequence[TraceInfo]) -> dict[str, Trace]:
        """The traces by id, from the store where not at hand; deleted ones are left out."""
        with self._lock:
            lacking = [info for info in infos if info.trace_id not in self._kept]
        loaded = load_spans(self._client, lacking) if lacking else {}
        with self._lock:
            for info in lacking:
                if info.trace_id in loaded:
                    self._kept[info.trace_id] = Trace(info, loaded[info.trace_id])
            found = {i.trace_id: self._kept[i.trace_id] for i in infos if i.trace_id in self._kept}
            for trace_id in found:
                self._kept.move_to_end(trace_id)
            while len(self._kept) > max(_KEPT, len(infos)):
                self._kept.popitem(last=False)
        return found
