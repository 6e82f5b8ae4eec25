"""What a report holds, as plain data: instructions, learned rules with their cases, verdicts that
changed, texts and tables. The template escapes it.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.credentials import without_credentials
from workbench.formatting import counted

if TYPE_CHECKING:
    from workbench.alignment.result import Alignment
    from workbench.pairing.pairs import Pairs

LONGEST_TEXT = 400
MOST_FIELDS = 8
"""Of inputs with more fields than this the beginning of their JSON is shown."""

MOST_ITEMS = 40
MOST_CASES = 3
MOST_ROWS = 200


def instructions(alignment: Alignment) -> dict[str, Any]:
    """Original and proposed instructions as one list of lines, each kept, added or removed."""
    before, after = alignment.original.instructions, alignment.proposed.instructions
    kinds = {"-": "removed", "+": "added", " ": "kept"}
    lines = [
        {"kind": kinds[line[0]], "sign": line[0].replace("-", "−"), "text": line[2:]}
        for line in difflib.Differ().compare(before.splitlines(), after.splitlines())
        if line[0] in kinds
    ]
    counts = Counter(line["kind"] for line in lines)
    taken = " (not taken)" if alignment.status == "rejected" else ""
    caption = (
        f"From the original to the aligned ones{taken}: {counted(counts['added'], 'line')} added, "
        f"{counts['removed']} removed."
    )
    return {"caption": "They are unchanged." if before == after else caption, "lines": lines}


def evidence(alignment: Alignment) -> list[dict[str, Any]]:
    """Each learned rule with some of the cases whose disagreement it was made from."""
    rows = _rows(alignment.pairs)
    found = []
    for rule, ids in alignment.evidence.items():
        known = [rows[i] for i in ids if i in rows]
        # A case whose label has a reason explains most.
        known.sort(key=lambda row: not short(row.get("human_rationale")))
        shown = [_item(row, alignment) for row in known[:MOST_CASES]]
        found.append({"rule": rule, "count": len(ids), "shown": shown, "traces": ids[:MOST_ROWS]})
    return found


def groups(alignment: Alignment) -> list[dict[str, Any]]:
    """Items fixed, broken and still wrong, each with what people and both judges said."""
    comparison = alignment.comparison
    before, after = _rows(alignment.test_before), _rows(alignment.test_after)
    numeric = comparison.before.scale.kind == "numeric"
    groups = {
        "Nearer to people" if numeric else "Fixed": comparison.fixed,
        "Farther from people" if numeric else "Broken": comparison.broken,
        "Still wrong": comparison.still_wrong,
    }
    found = []
    for name, frame in groups.items():
        shown = [
            _item(before[i] | row, alignment, after_rationale=after[i].get("judge_rationale"))
            for i, row in _rows(frame.head(MOST_ITEMS)).items()
        ]
        found.append({"name": name, "count": len(frame), "shown": shown})
    return found


def _rows(frame: pd.DataFrame | Pairs) -> dict[str, dict[str, Any]]:
    table = frame if isinstance(frame, pd.DataFrame) else frame.table
    return {row["trace_id"]: row for row in table.to_dict("records")}  # type: ignore[misc]  # column names are text


def _item(row: Mapping[str, Any], alignment: Alignment, **rationales: Any) -> dict[str, Any]:
    """A row of pairs with the item's inputs, outputs and expectations as short texts."""
    example = alignment.examples.get(row["trace_id"])
    parts: dict[str, str] = {}
    for name in ("inputs", "outputs", "expectations"):
        value = getattr(example, name, None)
        if value is None or value in ({}, []):
            continue
        texts = value.values() if isinstance(value, dict) else ()
        if 0 < len(texts) <= MOST_FIELDS and all(isinstance(text, str) for text in texts):
            parts |= {str(key)[:LONGEST_TEXT]: short(text) for key, text in value.items()}
        else:
            parts[name] = short(value)
    rationales |= {key: row.get(key) for key in ("human_rationale", "judge_rationale")}
    return {**row, "parts": parts, **{key: short(text) for key, text in rationales.items()}}


def short(value: Any) -> str:
    """A value as text that says how much of it is left out."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, default=str)
    text = str(value).strip()
    if len(text) <= LONGEST_TEXT:
        return text
    return f"{text[:LONGEST_TEXT].rstrip()} … ({len(text) - LONGEST_TEXT:,} more characters)"


def without_secrets(text: str) -> str:
    """Text in which every URL has lost its credentials and query."""
    return re.sub(r"https?://[^\s\"'<>]+", lambda url: without_credentials(url[0]), text)


def grid(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """A table as its columns and rows, the first ones of many."""
    columns = [str(name).replace("_", " ") for name in frame.columns]
    return {"columns": columns, "rows": frame.head(MOST_ROWS).to_numpy(dtype=object).tolist()}
