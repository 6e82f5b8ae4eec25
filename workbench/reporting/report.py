"""The report of an alignment: one HTML file that stands by itself and can be passed on.

No scripts, no links to elsewhere. All that comes from traces, labels and models is hostile until
jinja2 has escaped it. Header values and credentials are not in it.
"""

from __future__ import annotations

import difflib
import json
import math
import os
import platform
import re
import uuid
from collections.abc import Callable, Mapping
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from workbench.credentials import without_credentials
from workbench.metrics.agreement import Agreement
from workbench.metrics.annotators import AnnotatorAgreement
from workbench.metrics.comparison import Comparison
from workbench.metrics.intervals import figure
from workbench.models.offline import SCHEME
from workbench.reporting.plots import (
    as_svg,
    plot_annotators,
    plot_balance,
    plot_confusion,
    plot_metrics,
)

if TYPE_CHECKING:
    from markupsafe import Markup
    from matplotlib.axes import Axes

    from workbench.pairing.pairs import Pairs


_PACKAGES = ("judge-workbench", "mlflow", "dspy", "litellm", "pandas")

_LONGEST_TEXT = 400

_MOST_ITEMS = 40

_MOST_CASES = 3

_MOST_ROWS = 200


_Table = dict[str, list[Any]]


def write_report(alignment: Any, path: str | os.PathLike[str], *, title: str | None = None) -> Path:
    """Write the report of an alignment as one self-contained HTML file.

    The file is there as a whole or not at all: it is written beside its place and then moved
    there, over an earlier one. Missing folders are made.

    Parameters
    ----------
    alignment
        What `workbench.align` gave.
    path
        The file to write.
    title
        The heading; names the judge by default.

    Returns
    -------
    The path of the file.
    """
    target = Path(path)
    text = render(alignment, title=title)
    target.parent.mkdir(parents=True, exist_ok=True)
    beside = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
    try:
        beside.write_text(text, encoding="utf-8")
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
    return target


def render(alignment: Any, *, title: str | None = None) -> str:
    """The report as HTML text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        finalize=_readable,
    )
    template = environment.get_template("report.html")
    return template.render(_content(alignment, title))


def _content(alignment: Any, title: str | None) -> dict[str, Any]:
    """What the template shows, by name; what an alignment does not have is None or empty."""
    get = _Getter(alignment)
    comparison: Comparison | None = get("comparison")
    before = comparison.before if comparison else get("before")
    after = comparison.after if comparison else get("after")
    pairs: Pairs | None = get("pairs")
    people: AnnotatorAgreement | None = get("annotators")
    judge, original = get("judge"), get("original")
    name = getattr(original or judge, "name", "") or ""
    matrices = [
        _matrix(found, when) for when, found in (("before", before), ("after", after)) if found
    ]
    return {
        "title": title or f"Alignment of the judge “{name}”",
        "status": str(get("status") or "unknown"),
        "sentence": _sentence(get, comparison),
        "notes": _notes(get, comparison, pairs),
        "n": comparison.n if comparison else None,
        "change": _table(comparison.table.rename_axis("measure").reset_index())
        if comparison
        else None,
        "matrices": matrices,
        "metrics": _intervals(comparison, people) if comparison else None,
        "instructions": _instructions(get),
        "evidence": _evidence(get),
        "groups": _groups(get, comparison) if comparison else [],
        "balance": _balance(pairs) if pairs is not None else None,
        "people": _table(people.pairwise) if people and len(people.pairwise) else None,
        "people_sentence": _people_sentence(people) if people else "",
        "people_picture": _annotators(people) if people and len(people.annotators) > 2 else None,
        "excluded": _excluded(pairs) if pairs is not None else None,
        "history": _history(get("history")),
        "cost": _cost(get),
        "provenance": _provenance(get),
    }


class _Getter:
    """Attributes of an alignment, None where it has none."""

    def __init__(self, alignment: Any) -> None:
        self._alignment = alignment

    def __call__(self, name: str) -> Any:
        return getattr(self._alignment, name, None)


# -- words ------------------------------------------------------------------------------------


def _sentence(get: _Getter, comparison: Comparison | None) -> str:
    """What happened, and why."""
    said = _without_secrets(str(get("reason") or "")) or {
        "improved": "The aligned judge agrees better with people than the original one.",
        "unchanged": "The judge stays as it was.",
        "rejected": "The aligned judge is not taken; the original one stays.",
    }.get(str(get("status")), "")
    if comparison is None:
        return said
    # What is missing to be sure stands in a note of its own.
    said = said.replace(comparison.power_note, "") if comparison.power_note else said
    summary = "" if comparison.summary in said else comparison.summary
    return f"{said.strip()} {summary}".strip()


def _notes(get: _Getter, comparison: Comparison | None, pairs: Pairs | None) -> list[str]:
    notes = list(comparison.notes) if comparison else []
    if comparison is None and get("before") is None:
        notes.append("No judge was scored on held-out items.")
    models = {str(getattr(j, "model", "") or "") for j in (get("original"), get("judge")) if j}
    embedded = sorted(m for m in models if m.startswith(SCHEME))
    if embedded:
        notes.append(
            f"The model is the embedded one ({embedded[0]}), which is no language model: no figure "
            "obtained with it is a claim about a language model."
        )
    own = get("notes")  # which holds those of the pairs
    notes += own if own is not None else getattr(pairs, "notes", ())
    return list(dict.fromkeys(_without_secrets(str(note)) for note in notes))


def _people_sentence(people: AnnotatorAgreement) -> str:
    if not people.shared_items:
        return "No item was labelled by two people, so how well people agree is not known."
    return (
        f"{len(people.annotators)} people labelled {people.items} items, {people.shared_items} of "
        f"them twice or more. A single label agrees with the majority of the others at "
        f"a rate of {figure(people.ceiling, people.ceiling_interval)}, which is the most that a "
        f"judge can be held to. Krippendorff's alpha ({people.level}) is "
        f"{figure(people.alpha, people.alpha_interval)}."
    )


# -- pictures ---------------------------------------------------------------------------------


def _picture(
    draw: Callable[[Axes], Any], *, width: float, height: float, description: str
) -> Markup:
    from markupsafe import Markup

    return Markup(  # matplotlib's SVG writer escapes all text
        as_svg(draw, width=width, height=height, description=description)
    )


def _matrix(found: Agreement, when: str) -> Markup:
    size = len(found.confusion)
    side = max(3.6, min(7.0, 1.6 + 0.75 * size))
    title = (
        f"{when}\naccuracy {figure(found.accuracy, found.accuracy_interval)}\n"
        f"kappa {figure(found.kappa, found.kappa_interval)}"
    )
    return _picture(
        lambda ax: plot_confusion(found, ax=ax, title=title),
        width=side,
        height=side,
        description=f"Confusion matrix of human labels and verdicts {when} the alignment",
    )


def _intervals(comparison: Comparison, people: AnnotatorAgreement | None) -> Markup:
    ordered = comparison.before.scale.ordered
    return _picture(
        lambda ax: plot_metrics(comparison, ax=ax, ceiling=people),
        width=5.2,
        height=2.9 if ordered else 2.3,
        description="Accuracy and kappa with their intervals, before and after",
    )


def _balance(pairs: Pairs) -> Markup | None:
    if not len(pairs.table):
        return None
    values = len(pairs.scale.values) or 10
    return _picture(
        lambda ax: plot_balance(pairs, ax=ax),
        width=5.2,
        height=1.2 + 0.4 * values,
        description="How often people gave each label, beside how often the judge did",
    )


def _annotators(people: AnnotatorAgreement) -> Markup:
    side = max(3.8, min(7.0, 2.0 + 0.7 * len(people.annotators)))
    return _picture(
        lambda ax: plot_annotators(people, ax=ax),
        width=side,
        height=side,
        description="Cohen's kappa between each two annotators",
    )


# -- tables and lists ---------------------------------------------------------------------------


def _table(frame: pd.DataFrame) -> _Table:
    columns = [str(name).replace("_", " ") for name in frame.columns]
    return {"columns": columns, "rows": frame.head(_MOST_ROWS).to_numpy(dtype=object).tolist()}


def _instructions(get: _Getter) -> dict[str, Any] | None:
    """Original and aligned instructions as one list of lines, each kept, added or removed."""
    before = getattr(get("original"), "instructions", None)
    # A rejected judge is no longer `.judge`, but what it would have said is worth reading.
    after = getattr(get("proposed") or get("judge"), "instructions", None)
    if before is None or after is None:
        return None
    if before == after:
        kept = [{"kind": "kept", "sign": " ", "text": line} for line in before.splitlines()]
        return {"caption": "They are unchanged.", "lines": kept}
    kinds = {"-": "removed", "+": "added", " ": "kept"}
    lines = [
        {"kind": kinds[line[0]], "sign": line[0].replace("-", "−"), "text": line[2:]}
        for line in difflib.Differ().compare(before.splitlines(), after.splitlines())
        if line[0] in kinds
    ]
    added, removed = (sum(x["kind"] == k for x in lines) for k in ("added", "removed"))
    taken = " (not taken)" if get("status") == "rejected" else ""
    return {
        "caption": f"From the original to the aligned ones{taken}: {added} lines added, "
        f"{removed} removed.",
        "lines": lines,
    }


def _evidence(get: _Getter) -> list[dict[str, Any]]:
    """Each learned rule with some of the cases whose disagreement it was made from."""
    evidence: Mapping[str, list[str]] = get("evidence") or {}
    rows, examples = _rows(get("pairs")), get("examples") or {}
    found = []
    for rule, ids in evidence.items():
        known = [i for i in map(str, ids) if i in rows]
        # A case whose label has a reason explains most.
        told = sorted(known, key=lambda i: not _short(rows[i].get("human_rationale")))
        found.append(
            {
                "rule": rule,
                "count": len(ids),
                "shown": [
                    {
                        "trace_id": i,
                        "parts": _parts(examples.get(i)),
                        "human": rows[i]["human"],
                        "human_rationale": _short(rows[i].get("human_rationale")),
                        "judge": rows[i]["judge"],
                        "judge_rationale": _short(rows[i].get("judge_rationale")),
                    }
                    for i in told[:_MOST_CASES]
                ],
                "traces": ids[:_MOST_ROWS],
            }
        )
    return found


def _groups(get: _Getter, comparison: Comparison) -> list[dict[str, Any]]:
    """Items fixed, broken and still wrong, each with what people and both judges said."""
    before, after = _rows(get("test_before")), _rows(get("test_after"))
    examples: Mapping[str, Any] = get("examples") or {}
    numeric = comparison.before.scale.kind == "numeric"
    groups = (
        ("Nearer to people" if numeric else "Fixed", comparison.fixed),
        ("Farther from people" if numeric else "Broken", comparison.broken),
        ("Still wrong", comparison.still_wrong),
    )
    found = []
    for name, frame in groups:
        shown = []
        for row in frame.head(_MOST_ITEMS).to_dict("records"):
            trace_id = str(row["trace_id"])
            old, new = before.get(trace_id, {}), after.get(trace_id, {})
            shown.append(
                {
                    "trace_id": trace_id,
                    "parts": _parts(examples.get(trace_id)),
                    "human": row["human"],
                    "human_rationale": _short(old.get("human_rationale")),
                    "before": row["before"],
                    "before_rationale": _short(old.get("judge_rationale")),
                    "after": row["after"],
                    "after_rationale": _short(new.get("judge_rationale")),
                }
            )
        found.append(
            {
                "name": name,
                "count": len(frame),
                "shown": shown,
                "left_out": len(frame) - len(shown),
                "open": name == "Broken" and 0 < len(frame) <= 10,
            }
        )
    return found


def _rows(pairs: Pairs | None) -> dict[str, dict[str, Any]]:
    if pairs is None:
        return {}
    return {str(row["trace_id"]): dict(row) for row in pairs.table.to_dict("records")}  # type: ignore[arg-type]  # column names are text


def _parts(example: Any) -> list[dict[str, str]]:
    """Inputs, outputs and expectations of an item as short text."""
    found = []
    for name in ("inputs", "outputs", "expectations"):
        value = getattr(example, name, None)
        if value is None or value in ({}, []):
            continue
        if isinstance(value, dict) and all(isinstance(v, str) for v in value.values()):
            found += [{"name": str(key), "text": _short(text)} for key, text in value.items()]
        else:
            found.append({"name": name, "text": _short(value)})
    return found


def _short(value: Any) -> str:
    """A value as text of bearable length, saying how much is left out."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return ""
    if not isinstance(value, str):
        value = json.dumps(value, ensure_ascii=False, default=str)
    text = str(value).strip()
    if len(text) <= _LONGEST_TEXT:
        return text
    return f"{text[:_LONGEST_TEXT].rstrip()} … ({len(text) - _LONGEST_TEXT:,} more characters)"


def _excluded(pairs: Pairs) -> _Table:
    reasons = pairs.reasons.assign(reason=pairs.reasons["reason"].map(_without_secrets))
    return _table(reasons)


def _history(history: Any) -> _Table | None:
    if not isinstance(history, pd.DataFrame) or history.empty:
        return None

    def cell(value: Any) -> Any:
        is_number = isinstance(value, (int, float)) and not math.isnan(value)
        return value if is_number else _short(value)

    return _table(history.astype(object).map(cell))


def _cost(get: _Getter) -> list[tuple[str, str]]:
    calls, reflections = get("calls"), get("reflection_calls")
    tokens, money, seconds = get("tokens"), get("cost"), get("seconds")
    return [
        ("judge calls", _count(calls)),
        ("reflection calls", _count(reflections)),
        ("tokens", _count(tokens, "not counted by the model")),
        ("money", "no price is known for the model" if money is None else f"${money:,.4f}"),
        ("time", "not known" if seconds is None else f"{seconds:,.1f} s"),
    ]


def _count(number: Any, unknown: str = "not known") -> str:
    return unknown if number is None else f"{number:,}"


def _provenance(get: _Getter) -> list[tuple[str, str]]:
    split, judge, original = get("split"), get("judge"), get("original")
    prints = get("fingerprints") or {}
    found: list[tuple[str, Any]] = [
        ("judge", getattr(judge, "name", None)),
        ("model", getattr(judge, "model", None)),
        ("endpoint", _endpoint(judge) or _endpoint(original)),
        ("fingerprint of the original", prints.get("original")),
        ("fingerprint of the aligned judge", prints.get("aligned")),
        ("seed", get("seed")),
    ]
    if split is not None:
        sizes = [f"{p} {len(getattr(split, p).table)}" for p in ("train", "dev", "test")]
        groups = getattr(split, "groups", None)
        together = f", {groups} kept together" if groups else ""
        found += [
            ("split", f"{', '.join(sizes)}{together}"),
            ("digest of the split", split.digest),
        ]
    found += [
        ("digest of the labels", get("dataset_digest")),
        ("optimizer", get("optimizer")),
        ("MLflow run", get("run_id")),
        ("written", datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")),
        ("packages", ", ".join([*filter(None, map(_package, _PACKAGES)), _python()])),
    ]
    return [(name, str(value)) for name, value in found if value is not None]


def _endpoint(judge: Any) -> str | None:
    """The judge's base URL without what may be a secret; MLflow keeps it in a private attribute."""
    url = getattr(judge, "_base_url", None) or getattr(judge, "base_url", None)
    return without_credentials(url) if isinstance(url, str) else None


def _package(name: str) -> str | None:
    try:
        return f"{name} {version(name)}"
    except PackageNotFoundError:
        return None


def _python() -> str:
    return f"Python {platform.python_version()}"


# -- safety -----------------------------------------------------------------------------------


def _without_secrets(text: str) -> str:
    """Text in which every URL has lost its credentials and query."""
    return re.sub(r"https?://[^\s\"'<>]+", lambda url: without_credentials(url[0]), text)


def _readable(value: Any) -> Any:
    """What the template writes for a value: figures with three digits, no control characters."""
    from markupsafe import Markup

    if isinstance(value, Markup):
        return value
    if value is None:
        return ""
    if isinstance(value, float):
        return "undefined" if math.isnan(value) else f"{value:.3f}"
    text = str(value).encode("utf-8", "replace").decode("utf-8")
    return "".join("\ufffd" if ord(c) < 32 and c not in "\n\t" else c for c in text)
