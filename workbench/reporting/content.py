"""What a report holds, as plain data: instructions, learned rules with their cases, verdicts that
changed, and how far the judge can be trusted on held-out items. The template escapes it.
"""

from __future__ import annotations

import difflib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.credentials import urls_without_credentials
from workbench.errors import ArgumentError
from workbench.formatting import counted
from workbench.metrics.agreement import agreement
from workbench.metrics.alternative import alternative_annotator_test
from workbench.metrics.intervals import Interval, figure
from workbench.metrics.slices import SMALLEST, by_annotator, pooled, short_fields, slice_names
from workbench.models.budget import FREE
from workbench.reporting.drawing import as_svg
from workbench.reporting.plots import plot_slices

if TYPE_CHECKING:
    from workbench.alignment.result import Alignment
    from workbench.pairing.pairs import Pairs

LONGEST_TEXT = 400
MOST_FIELDS = 8
"""Of inputs with more fields than this the beginning of their JSON is shown."""

MOST_ITEMS = 40
MOST_CASES = 3
MOST_ROWS = 200

MOST_DIVISIONS = 4
"""Of more ways to divide the items than this the others are only named."""


# -- what happened --------------------------------------------------------------------------


def sentence(alignment: Alignment) -> str:
    """Return what happened, and why; what is missing to be sure stands in a note of its own."""
    compared, reason = alignment.comparison, urls_without_credentials(alignment.reason)
    reason = reason.replace(compared.power_note or "\0", "").strip()
    return reason if compared.summary in reason else f"{reason} {compared.summary}".strip()


def notes(alignment: Alignment) -> list[str]:
    """Return what limits the result."""
    models = {str(getattr(j, "model", "")) for j in (alignment.original, alignment.judge)}
    embedded = [
        f"The model is the embedded one ({model}), which is no language model: no figure "
        "obtained with it is a claim about a language model."
        for model in sorted(models)
        if model.startswith(FREE)
    ]
    found = [*alignment.comparison.notes, *embedded, *alignment.notes]
    return list(dict.fromkeys(map(urls_without_credentials, found)))


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
    return {"lines": lines, "added": counts["added"], "removed": counts["removed"]}


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
    names = ("Nearer to people", "Farther from people") if numeric else ("Fixed", "Broken")
    frames = (comparison.fixed, comparison.broken, comparison.still_wrong)
    found = []
    for name, frame in zip((*names, "Still wrong"), frames, strict=True):
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


def grid(frame: pd.DataFrame) -> dict[str, list[Any]]:
    """A table as its columns and rows, the first ones of many."""
    columns = [str(name).replace("_", " ") for name in frame.columns]
    return {"columns": columns, "rows": frame.head(MOST_ROWS).to_numpy(dtype=object).tolist()}


# -- how far it can be trusted --------------------------------------------------------------


def certified(headline: str, figures: pd.DataFrame, notes: Iterable[str]) -> dict[str, Any]:
    """Return what a certificate says."""
    table = figures.rename(columns={"low": "value_low", "high": "value_high"})
    table["passed"] = table["passed"].map({True: "yes", False: "no"})
    return {
        "headline": headline,
        "table": with_intervals(table, ["value"], ["n", "threshold", "passed"]),
        "notes": [*map(urls_without_credentials, notes)],
    }


def slices(alignment: Alignment) -> dict[str, Any]:
    """Return pictures and tables of the agreement by slice; ``why`` there may be none."""
    pairs, names = _divisions(alignment)
    shown = []
    for name in names[:MOST_DIVISIONS]:
        found = agreement(pairs, by=name)
        is_numeric = "mean_distance" in found.table
        measures = ["mean_distance"] if is_numeric else ["accuracy", "kappa"]
        picture = as_svg(
            partial(plot_slices, found),
            (6.2, 1.3 + 0.34 * len(found.table)),
            f"Agreement by {name}, with intervals",
        )
        columns = ["difference", "p_adjusted", "note"]
        table = with_intervals(found.table, measures, columns, first="n")
        shown.append({"by": name, "picture": picture, "table": table})
    held_out = counted(len(pairs), "held-out item")
    return {
        "shown": shown,
        "others": names[MOST_DIVISIONS:],
        "why": f"No tag, input, length, week or annotator divides the {held_out} into several "
        f"slices of {SMALLEST} or more.",
    }


def _divisions(alignment: Alignment) -> tuple[Pairs, list[str]]:
    """The held-out pairs with a column for all that divides them into several slices, and what."""
    pairs, known = _held_out(alignment), alignment.examples
    ids = pairs.trace_ids
    columns: dict[str, Any] = {}
    for name, found in short_fields(known[i] for i in ids if i in known).items():
        if name not in (*pairs.table.columns, "annotator"):
            values = pd.Series(slice_names(map(found.get, ids)), dtype=object)
            if pooled(values).nunique() > 1:
                columns[name] = values.to_numpy()
    names = list(columns)
    if pooled(by_annotator(pairs).table["annotator"]).nunique() > 1:
        names.append("annotator")
    return replace(pairs, table=pairs.table.assign(**columns)), names


def _held_out(alignment: Alignment) -> Pairs:
    """The held-out pairs, which know what was left out before the split: contested items."""
    return replace(alignment.held_out, excluded=alignment.pairs.excluded)


def stand_in(alignment: Alignment) -> dict[str, Any] | None:
    """Return the alternative annotator test on held-out items; ``why`` it is not possible."""
    people, pairs = alignment.annotators, _held_out(alignment)
    if not people or len(people.annotators) < 2:
        return None
    is_numeric = pairs.scale.kind == "numeric"
    try:
        found = alternative_annotator_test(pairs, score="neg_rmse" if is_numeric else "accuracy")
    except ArgumentError as error:
        return {"why": str(error)}
    if math.isnan(found.winning_rate):
        return {"why": " ".join(found.notes)}
    columns = ["annotator_advantage", "p_adjusted", "note"]
    table = with_intervals(found.table, ["judge_advantage"], columns, first="n")
    return {"why": "", "found": found, "table": table}


def pairwise(alignment: Alignment) -> dict[str, list[Any]] | None:
    """Return how well each two annotators agree; None where there are no two."""
    people = alignment.annotators
    if people is None or people.pairwise.empty:
        return None
    measures = [name for name in ("accuracy", "kappa", "weighted_kappa") if name in people.pairwise]
    names = ["annotator_a", "annotator_b"]
    return with_intervals(people.pairwise.set_index(names), measures, [], first="n")


def with_intervals(
    table: pd.DataFrame, measures: list[str], columns: list[str], first: str = ""
) -> dict[str, list[Any]]:
    """A table whose measures stand with their intervals; without the notes where there are none."""
    made = table.copy()
    for name in measures:
        ends = zip(made[name], made[f"{name}_low"], made[f"{name}_high"], strict=True)
        made[name] = [figure(value, Interval(low, high)) for value, low, high in ends]
    if "p_adjusted" in made:
        made["p_adjusted"] = ["below 0.001" if p < 0.001 else p for p in made["p_adjusted"]]
    shown = [name for name in [first, *measures, *columns] if name]
    if "note" in made and not made["note"].any():
        shown.remove("note")
    return grid(made[shown].reset_index())
