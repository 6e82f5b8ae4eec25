"""The report of an alignment: one HTML file that stands by itself and can be passed on.

No scripts, no links to elsewhere. All that comes from traces, labels and models is untrusted until
jinja2 has escaped it. Header values and credentials are not in it.
"""

from __future__ import annotations

import math
import os
import platform
from contextlib import suppress
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from workbench import compat
from workbench.credentials import without_credentials
from workbench.errors import ArgumentError, WorkbenchError
from workbench.formatting import safe_html, write_whole
from workbench.metrics.annotators import AnnotatorAgreement
from workbench.metrics.intervals import figure
from workbench.models.offline import SCHEME
from workbench.reporting.certainty import certified, divided, stand_in
from workbench.reporting.content import (
    evidence,
    grid,
    groups,
    instructions,
    short,
    without_secrets,
)
from workbench.reporting.drawing import as_svg
from workbench.reporting.plots import (
    plot_annotators,
    plot_balance,
    plot_confusion,
    plot_metrics,
    title_with_intervals,
)

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

    from workbench.alignment.certificate import Certificate
    from workbench.alignment.result import Alignment
    from workbench.store.checks import DataCheck

PACKAGES = ("judge-workbench", "mlflow", "dspy", "litellm", "pandas")


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
    alignment
        What `workbench.align` gave.
    path
        The file to write, which is also returned.
    title
        The heading; names the judge by default.
    checked
        What `workbench.check_data` found in the data, whose doubts then stand in the report.
    certificate
        What `workbench.certify` said of the alignment, which then stands in the report.

    Raises
    ------
    ArgumentError
        For the certificate of another judge.
    WorkbenchError
        When the file cannot be written, with its path and the system's reason.
    """
    target = Path(path)
    text = render(alignment, title=title, checked=checked, certificate=certificate)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        write_whole(target, text)
    except OSError as error:
        raise WorkbenchError(
            f"The report could not be written to {target}: {error.strerror or error}. An earlier "
            "report there is unchanged. Make room or give another path, and call write_report "
            "again; nothing needs to be aligned anew."
        ) from error
    return target


def render(
    alignment: Alignment,
    *,
    title: str | None = None,
    checked: DataCheck | None = None,
    certificate: Certificate | None = None,
) -> str:
    """Return the report as HTML text."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

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
    comparison, people = alignment.comparison, alignment.annotators
    reasons = alignment.pairs.reasons
    history = alignment.history.astype(object).map(_cell)
    content = {
        "title": title or f"Alignment of the judge “{alignment.original.name}”",
        "status": alignment.status,
        "headline": alignment.headline,
        "sentence": _sentence(alignment),
        "notes": _notes(alignment),
        "n": comparison.n,
        "change": grid(comparison.table.rename_axis("measure").reset_index()),
        "pictures": _pictures(alignment),
        "instructions": instructions(alignment),
        "evidence": evidence(alignment),
        "groups": groups(alignment),
        "certificate": certified(certificate) if certificate else None,
        "slices": divided(alignment),
        "alternative": stand_in(alignment),
        "people": grid(people.pairwise) if people and len(people.pairwise) else None,
        "people_sentence": _people_sentence(people) if people else "",
        "doubts": checked.doubts if checked else (),
        "excluded": grid(reasons.assign(reason=reasons["reason"].map(without_secrets))),
        "history": None if history.empty else grid(history),
        "cost": _cost(alignment),
        "provenance": _provenance(alignment),
    }
    return safe_html(environment.get_template("report.html").render(content))


def _shown(value: Any) -> Any:
    """What the template writes for a value: figures with three digits, nothing for None."""
    if isinstance(value, float):
        return "undefined" if math.isnan(value) else f"{value:.3f}"
    return "" if value is None else value


# -- words ----------------------------------------------------------------------------------


def _sentence(alignment: Alignment) -> str:
    """What happened, and why; what is missing to be sure stands in a note of its own."""
    comparison = alignment.comparison
    reason = without_secrets(alignment.reason)
    if comparison.power_note:
        reason = reason.replace(comparison.power_note, "")
    summary = "" if comparison.summary in reason else comparison.summary
    return f"{reason.strip()} {summary}".strip()


def _notes(alignment: Alignment) -> list[str]:
    models = {str(getattr(j, "model", "")) for j in (alignment.original, alignment.judge)}
    embedded = [
        f"The model is the embedded one ({model}), which is no language model: no figure "
        "obtained with it is a claim about a language model."
        for model in sorted(models)
        if model.startswith(SCHEME)
    ]
    notes = [*alignment.comparison.notes, *embedded, *alignment.notes]
    return list(dict.fromkeys(map(without_secrets, notes)))


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


# -- pictures -------------------------------------------------------------------------------


def _pictures(alignment: Alignment) -> dict[str, Markup | None]:
    """The pictures as SVG, by name; None where there is nothing to draw."""
    pairs, people = alignment.pairs, alignment.annotators
    pictures: dict[str, Markup | None] = dict.fromkeys(("balance", "annotators"))
    pictures["metrics"] = as_svg(
        partial(plot_metrics, alignment.comparison, ceiling=people),
        (5.2, 2.9 if alignment.before.scale.ordered else 2.3),
        "Accuracy and kappa with their intervals, before and after",
    )
    for when, found in (("before", alignment.before), ("after", alignment.after)):
        side = max(3.6, min(7.0, 1.6 + 0.75 * len(found.confusion)))
        pictures[when] = as_svg(
            partial(plot_confusion, found, title=title_with_intervals(found, when)),
            (side, side),
            f"Confusion matrix of human labels and verdicts {when} the alignment",
        )
    if len(pairs):
        pictures["balance"] = as_svg(
            partial(plot_balance, pairs),
            (5.2, 1.2 + 0.4 * (len(pairs.scale.values) or 10)),
            "How often people gave each label, beside how often the judge did",
        )
    if people and len(people.annotators) > 2:
        side = max(3.8, min(7.0, 2.0 + 0.7 * len(people.annotators)))
        description = "Cohen's kappa between each two annotators"
        pictures["annotators"] = as_svg(partial(plot_annotators, people), (side, side), description)
    return pictures


# -- tables and lists -----------------------------------------------------------------------


def _cell(value: Any) -> Any:
    return value if isinstance(value, (int, float)) and value == value else short(value)


def _cost(alignment: Alignment) -> dict[str, str]:
    used, cost = alignment.usage, alignment.cost
    parts = {
        "read": used.read,
        "written": used.written,
        "of those read from the server's prompt cache": used.repeated,
    }
    told = [f"{count:,} {what}" for what, count in parts.items() if count is not None]
    return {
        "judge calls": f"{alignment.calls:,}",
        "reflection calls": f"{alignment.reflection_calls:,}",
        "tokens": ", ".join(told) or "not counted by the model",
        "money": "no price is known for the model" if cost is None else f"${cost:,.4f}",
        "time": f"{alignment.seconds:,.1f} s",
    }


def _provenance(alignment: Alignment) -> dict[str, Any]:
    split, judge = alignment.split, alignment.judge
    sizes = ", ".join(f"{part} {len(getattr(split, part))}" for part in ("train", "dev", "test"))
    packages = []
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            packages.append(f"{name} {version(name)}")
    found = {
        "judge": judge.name,
        "model": getattr(judge, "model", None),
        "endpoint": _endpoint(judge),
        "fingerprint of the original": alignment.fingerprints.get("original"),
        "fingerprint of the aligned judge": alignment.fingerprints.get("aligned"),
        "seed": str(alignment.seed),
        "split": f"{sizes}, {split.groups} kept together" if split.groups else sizes,
        "digest of the split": split.digest,
        "digest of the labels": alignment.dataset_digest,
        "optimizer": alignment.optimizer,
        "MLflow run": alignment.run_id,
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "packages": ", ".join([*packages, f"Python {platform.python_version()}"]),
    }
    return {name: value for name, value in found.items() if value is not None}


def _endpoint(judge: Judge) -> str | None:
    """The judge's base URL without what may be a secret; None for the provider's own."""
    try:
        url = compat.options(judge)["base_url"]
    except ArgumentError:  # not made from instructions
        return None
    return without_credentials(url) if url else None
