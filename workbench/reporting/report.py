"""The report of an alignment: one HTML file that stands by itself and can be passed on.

No scripts, no links to elsewhere. All that comes from traces, labels and models is untrusted until
jinja2 has escaped it. Header values and credentials are not in it.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import platform
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from workbench import compat
from workbench.alignment.result import Alignment, Certificate
from workbench.credentials import urls_without_credentials, without_credentials
from workbench.errors import ArgumentError, WorkbenchError
from workbench.formatting import counted, html_table, safe_html, write_whole, written
from workbench.metrics.agreement import agreement
from workbench.metrics.alternative import alternative_annotator_test
from workbench.metrics.intervals import Interval, figure
from workbench.metrics.slices import SMALLEST, by_annotator, pooled, short_fields, slice_names
from workbench.models.budget import FREE
from workbench.pairing.pairs import Pairs
from workbench.reporting.drawing import as_svg
from workbench.reporting.matrices import (
    matrix_size,
    plot_annotators,
    plot_confusion,
    title_with_intervals,
)
from workbench.reporting.plots import plot_balance, plot_metrics, plot_slices
from workbench.store.checks import DataCheck

PACKAGES = ("judge-workbench", "mlflow", "dspy", "litellm", "pandas")

LONGEST_TEXT = 400
MOST_FIELDS = 8  # of inputs with more, the beginning of their JSON is shown
MOST_ITEMS, MOST_CASES, MOST_ROWS = 40, 3, 200
MOST_DIVISIONS = 4  # of more ways to divide the items the others are only named


def write_report(
    alignment: Alignment,
    path: str | os.PathLike[str],
    *,
    title: str | None = None,
    checked: DataCheck | None = None,
    certificate: Certificate | None = None,
) -> Path:
    """Write the report of an alignment as one self-contained HTML file.

    The file is written as a whole or not at all, over an earlier one. Missing folders are made.

    Parameters
    ----------
    path
        The file to write, which is also returned.
    title
        The heading; names the judge by default.
    checked, certificate
        What `workbench.check_data` and `workbench.certify` gave, to stand in the report.

    Raises
    ------
    ArgumentError
        For the certificate of another judge.
    WorkbenchError
        When the file cannot be written, with its path and the system's reason.
    """
    target = Path(path).expanduser()
    text = render(alignment, title=title, checked=checked, certificate=certificate)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, text)
    except OSError as error:
        raise WorkbenchError(
            f"The report could not be written to {target}: {error.strerror or error}. Make room or "
            "give another path, and call write_report again; an earlier report is unchanged."
        ) from error
    return target


def render(
    alignment: Alignment,
    *,
    title: str | None = None,
    checked: DataCheck | None = None,
    certificate: Certificate | None = None,
) -> str:
    if certificate and certificate.fingerprint not in ("", alignment.held_out.fingerprint):
        raise ArgumentError(
            f"certificate is one of another judge ({certificate.fingerprint[:8]}) than the one "
            f"that came out of this alignment ({alignment.held_out.fingerprint[:8]}). Give "
            "certificate=workbench.certify(alignment, kappa=0.6)."
        )
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_shown,
    )
    environment.filters["written"] = written
    reasons = alignment.pairs.reasons
    url, *_ = compat.endpoint(alignment.judge)
    content = {
        "alignment": alignment,
        "figure": figure,
        "title": title or f"Alignment of the judge “{alignment.original.name}”",
        "sentence": _sentence(alignment),
        "notes": _notes(alignment),
        "change": _table(alignment.comparison.table.rename_axis("measure").reset_index()),
        "pictures": _pictures(alignment),
        "instructions": _instructions(alignment),
        "evidence": _evidence(alignment),
        "groups": _groups(alignment),
        "certificate": _certified(certificate) if certificate else None,
        "slices": _slices(alignment),
        "alternative": _stand_in(alignment),
        "doubts": checked.doubts if checked else (),
        "excluded": _table(reasons.assign(reason=reasons["reason"].map(urls_without_credentials))),
        "history": None if alignment.history.empty else _table(alignment.history),
        "endpoint": without_credentials(url) if url else None,
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "python": platform.python_version(),
    }
    return safe_html(environment.get_template("report.html").render(content))


def _shown(value: Any) -> Any:
    """What the template writes for a value: figures with three digits, nothing for None."""
    return figure(value) if isinstance(value, float) else "" if value is None else value


def _pictures(alignment: Alignment) -> dict[str, Markup | None]:
    """The pictures as SVG, by name; None where there is nothing to draw."""
    pairs, people = alignment.pairs, alignment.annotators
    metrics = partial(plot_metrics, alignment.comparison, ceiling=people)
    size = (5.2, 2.9 if alignment.before.scale.ordered else 2.3)
    pictures: dict[str, Markup | None] = {"balance": None, "annotators": None}
    pictures["metrics"] = as_svg(metrics, size, "Agreement and its intervals, before and after")
    for when, found in (("before", alignment.before), ("after", alignment.after)):
        draw = partial(plot_confusion, found, title=title_with_intervals(found, when))
        what = f"Confusion matrix of human labels and verdicts {when} the alignment"
        pictures[when] = as_svg(draw, matrix_size(found.confusion.index), what)
    if len(pairs):
        size = (5.2, 1.2 + 0.4 * (len(pairs.scale.values) or 10))
        what = "How often people gave each label, beside how often the judge did"
        pictures["balance"] = as_svg(partial(plot_balance, pairs), size, what)
    if people and len(people.annotators) > 1:
        draw, size = partial(plot_annotators, people), matrix_size(people.annotators)
        pictures["annotators"] = as_svg(draw, size, "Cohen's kappa between each two annotators")
    return pictures


# -- what happened --------------------------------------------------------------------------


def _sentence(alignment: Alignment) -> str:
    """Return what happened, and why; what is missing to be sure stands in a note of its own."""
    compared, reason = alignment.comparison, urls_without_credentials(alignment.reason)
    reason = reason.replace(compared.power_note, "").strip()
    return reason if compared.summary in reason else f"{reason} {compared.summary}".strip()


def _notes(alignment: Alignment) -> list[str]:
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


def _instructions(alignment: Alignment) -> dict[str, Any]:
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


def _evidence(alignment: Alignment) -> list[dict[str, Any]]:
    """Each learned rule with some of the cases that it was made from."""
    rows = _rows(alignment.pairs.table)
    found = []
    for rule, ids in alignment.evidence.items():
        known = [rows[i] for i in ids if i in rows]
        known.sort(key=lambda row: not row["human_rationale"])  # a reason explains most
        shown = [_item(row, alignment) for row in known[:MOST_CASES]]
        found.append({"rule": rule, "count": len(ids), "shown": shown, "traces": ids[:MOST_ROWS]})
    return found


def _groups(alignment: Alignment) -> list[dict[str, Any]]:
    """Items fixed, broken and still wrong, each with what people and both judges said."""
    comparison = alignment.comparison
    before, after = _rows(alignment.test_before.table), _rows(alignment.test_after.table)
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


def _rows(table: pd.DataFrame) -> dict[str, dict[str, Any]]:
    return {row["trace_id"]: row for row in table.to_dict("records")}  # type: ignore[misc]  # column names are text


def _item(row: Mapping[str, Any], alignment: Alignment, **rationales: Any) -> dict[str, Any]:
    """A row of pairs with the item's inputs, outputs and expectations as short texts."""
    example = alignment.examples.get(row["trace_id"])
    parts: dict[str, str] = {}
    for name in ("inputs", "outputs", "expectations"):
        value = getattr(example, name, None)
        if isinstance(value, dict) and len(value) <= MOST_FIELDS:
            parts |= {str(key)[:LONGEST_TEXT]: _short(text) for key, text in value.items()}
        elif value is not None:
            parts[name] = _short(value)
    rationales |= {key: row.get(key) for key in ("human_rationale", "judge_rationale")}
    return {**row, "parts": parts, **{key: _short(text) for key, text in rationales.items()}}


def _short(value: Any) -> str:
    """A value as text that says how much of it is left out."""
    if not isinstance(value, str):
        value = "" if value is None else json.dumps(value, ensure_ascii=False, default=str)
    text, more = value.strip(), len(value.strip()) - LONGEST_TEXT
    return text if more <= 0 else f"{text[:LONGEST_TEXT].rstrip()} … ({more:,} more characters)"


def _table(frame: pd.DataFrame) -> Markup:
    """The first rows of a table, whose columns are named by words."""
    shown = frame.head(MOST_ROWS).rename(columns=lambda name: str(name).replace("_", " "))
    with pd.option_context("display.max_colwidth", None):
        return Markup(f'<div class="wide">{html_table(shown, index=False)}</div>')


# -- how far it can be trusted --------------------------------------------------------------


def _certified(certificate: Certificate) -> dict[str, Any]:
    table = certificate.table.rename(columns={"low": "value_low", "high": "value_high"})
    table["passed"] = table["passed"].map({True: "yes", False: "no"})
    return {
        "headline": certificate.headline,
        "table": _with_intervals(table, "value", "n", "threshold", "passed"),
        "notes": [*map(urls_without_credentials, certificate.notes)],
    }


def _slices(alignment: Alignment) -> dict[str, Any]:
    """Pictures and tables of the agreement by slice; ``why`` there may be none."""
    pairs, names = _divided(alignment)
    shown = []
    for name in names[:MOST_DIVISIONS]:
        found = agreement(pairs, by=name)
        measures = ["accuracy", "kappa"]
        if "mean_distance" in found.table:
            measures = ["mean_distance"]
        table = _with_intervals(found.table, "n", *measures, "p_adjusted", "note")
        size, what = (6.2, 1.3 + 0.34 * len(found.table)), f"Agreement by {name}, with intervals"
        picture = as_svg(partial(plot_slices, found), size, what)
        shown.append({"by": name, "picture": picture, "table": table})
    why = (
        "No tag, input, length, week or annotator divides the "
        f"{counted(len(pairs), 'held-out item')} into several slices of {SMALLEST} or more."
    )
    return {"shown": shown, "others": names[MOST_DIVISIONS:], "why": why}


def _divided(alignment: Alignment) -> tuple[Pairs, list[str]]:
    """The held-out pairs with a column for each field, and what divides them."""
    pairs, examples = _held_out(alignment), alignment.examples
    fields = short_fields(examples[i] for i in pairs.trace_ids if i in examples)
    columns = {
        name: slice_names(map(values.get, pairs.trace_ids))
        for name, values in fields.items()
        if name not in (*pairs.table.columns, "annotator")
    }
    divisions = columns | {"annotator": by_annotator(pairs).table["annotator"]}
    divides = {k: pooled(pd.Series(v, dtype=object)).nunique() > 1 for k, v in divisions.items()}
    table = pairs.table.assign(**columns)
    return replace(pairs, table=table), [name for name in divisions if divides[name]]


def _held_out(alignment: Alignment) -> Pairs:
    """The held-out pairs, which know what was left out before the split: contested items."""
    return replace(alignment.held_out, excluded=alignment.pairs.excluded)


def _stand_in(alignment: Alignment) -> dict[str, Any] | None:
    """The alternative annotator test on held-out items; ``why`` it is not possible."""
    people, pairs = alignment.annotators, _held_out(alignment)
    if not people or len(people.annotators) < 2:
        return None
    score: Any = "neg_rmse" if pairs.scale.kind == "numeric" else "accuracy"
    try:
        found = alternative_annotator_test(pairs, score=score)
    except ArgumentError as error:
        return {"why": str(error)}
    if math.isnan(found.winning_rate):
        return {"why": " ".join(found.notes)}
    names = ["n", "judge_advantage", "annotator_advantage", "p_adjusted", "note"]
    return {"why": "", "found": found, "table": _with_intervals(found.table, *names)}


def _with_intervals(table: pd.DataFrame, *columns: str) -> Markup:
    """Columns that the table has, measures with their intervals; notes where there is any."""
    made = table[[name for name in columns if name in table]].copy()
    for name in columns:
        if f"{name}_low" in table:
            ends = zip(table[name], table[f"{name}_low"], table[f"{name}_high"], strict=True)
            made[name] = [figure(value, Interval(low, high)) for value, low, high in ends]
    if "p_adjusted" in made:
        made["p_adjusted"] = ["below 0.001" if p < 0.001 else p for p in made["p_adjusted"]]
    if "note" in made and not made["note"].any():
        made = made.drop(columns="note")
    return _table(made.reset_index())
