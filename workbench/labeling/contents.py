"""Prepare what a trace holds for a view: JSON of bounded size."""

from __future__ import annotations

import json
import math
from typing import Any, Final

from workbench.store.tables import has_lone_surrogate
from workbench.store.traces import Example

CUT: Final = 200_000
"""Characters of one text that are sent unless all of it is asked for."""


_DEEPEST = 60


def content(example: Example, *, full: bool = False) -> dict[str, Any]:
    """Return inputs, outputs and expectations as JSON.

    Texts longer than `CUT` are cut unless ``full``; ``cuts`` then maps the path of each to its
    length in characters. A field that is long without holding a long text is cut as JSON text.
    """
    limit = None if full else CUT
    cuts: dict[str, int] = {}
    shown: dict[str, Any] = {}
    for name in ("inputs", "outputs", "expectations"):
        inner: dict[str, int] = {}
        value = plain(getattr(example, name), limit, inner, name)
        if limit is not None and not isinstance(value, str):
            text = json.dumps(value, ensure_ascii=False)
            if len(text) > 2 * limit:
                value, inner = text[:limit], {name: len(text)}
        shown[name] = value
        cuts |= inner
    return {**shown, "cuts": cuts} if cuts else shown


def plain(
    value: Any,
    limit: int | None = None,
    cuts: dict[str, int] | None = None,
    path: str = "",
    depth: int = 0,
) -> Any:
    """Return a value as JSON that a browser reads without loss.

    Lone surrogates are replaced, integers beyond 2**53 and floats that are not finite become text,
    and so does what lies deeper than 60 levels. Texts are cut at ``limit``, noted in ``cuts``.
    """
    if isinstance(value, str):
        if has_lone_surrogate(value):
            value = value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
        if limit is not None and len(value) > limit:
            if cuts is not None:
                cuts[path] = len(value)
            return value[:limit]
        return value
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, int):
        return value if abs(value) < 2**53 else str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if depth >= _DEEPEST:
        return plain(_as_text(value), limit, cuts, path, depth)
    if isinstance(value, dict):
        return {
            plain(str(key), limit): plain(one, limit, cuts, f"{path}.{key}"[:200], depth + 1)
            for key, one in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [plain(one, limit, cuts, f"{path}[{n}]", depth + 1) for n, one in enumerate(value)]
    return plain(str(value), limit, cuts, path, depth)


def _as_text(value: Any) -> str:
    try:
        return json.dumps(value, default=str)
    except RecursionError:
        return "(too deeply nested to be shown)"
