"""The report of an alignment: one HTML file that stands by itself and can be passed on.

No scripts, no links to elsewhere. All that comes from traces, labels and models is untrusted until
jinja2 has escaped it. Header values and credentials are not in it.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

from workbench import compat
from workbench.credentials import urls_without_credentials, without_credentials
from workbench.errors import ArgumentError, WorkbenchError
from workbench.formatting import safe_html, write_whole
from workbench.metrics.intervals import figure
from workbench.reporting.content import (
    certified,
    evidence,
    grid,
    groups,
    instructions,
    notes,
    pairwise,
    sentence,
    short,
    slices,
    stand_in,
)
from workbench.reporting.drawing import as_svg
from workbench.reporting.matrices import plot_annotators, plot_confusion, title_with_intervals
from workbench.reporting.plots import plot_balance, plot_metrics

if TYPE_CHECKING:
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
    checked, certificate
        What `workbench.check_data` and `workbench.certify` gave, to stand in the report.

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
    reasons = alignment.pairs.reasons
    url, *_ = compat.endpoint(compat.base_judge(alignment.judge) or alignment.judge)
    history = alignment.history.astype(object).map(_cell)
    content = {
        "alignment": alignment,
        "figure": figure,
        "title": title or f"Alignment of the judge “{alignment.original.name}”",
        "sentence": sentence(alignment),
        "notes": notes(alignment),
        "change": grid(alignment.comparison.table.rename_axis("measure").reset_index()),
        "pictures": _pictures(alignment),
        "instructions": instructions(alignment),
        "evidence": evidence(alignment),
        "groups": groups(alignment),
        "certificate": certified(certificate.headline, certificate.table, certificate.notes)
        if certificate
        else None,
        "slices": slices(alignment),
        "alternative": stand_in(alignment),
        "pairwise": pairwise(alignment),
        "doubts": checked.doubts if checked else (),
        "excluded": grid(reasons.assign(reason=reasons["reason"].map(urls_without_credentials))),
        "history": None if history.empty else grid(history),
        "endpoint": without_credentials(url) if url else None,
        "written": datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC"),
        "packages": ", ".join(f"{name} {version(name)}" for name in PACKAGES),
        "python": platform.python_version(),
    }
    return safe_html(environment.get_template("report.html").render(content))


def _shown(value: Any) -> Any:
    """What the template writes for a value: figures with three digits, nothing for None."""
    return figure(value) if isinstance(value, float) else "" if value is None else value


def _cell(value: Any) -> Any:
    return value if isinstance(value, (int, float)) and value == value else short(value)


def _pictures(alignment: Alignment) -> dict[str, Markup | None]:
    """The pictures as SVG, by name; None where there is nothing to draw."""
    pairs, people = alignment.pairs, alignment.annotators
    pictures: dict[str, Markup | None] = dict.fromkeys(("balance", "annotators"))

    def add(name: str, draw: Callable[..., Any], width: float, height: float, what: str) -> None:
        pictures[name] = as_svg(draw, (width, height), what)

    metrics = partial(plot_metrics, alignment.comparison, ceiling=people)
    height = 2.9 if alignment.before.scale.ordered else 2.3
    add(
        "metrics", metrics, 5.2, height, "Accuracy and kappa with their intervals, before and after"
    )
    for when, found in (("before", alignment.before), ("after", alignment.after)):
        side = max(3.6, min(7.0, 1.6 + 0.75 * len(found.confusion)))
        draw = partial(plot_confusion, found, title=title_with_intervals(found, when))
        what = f"Confusion matrix of human labels and verdicts {when} the alignment"
        add(when, draw, side, side, what)
    if len(pairs):
        height = 1.2 + 0.4 * (len(pairs.scale.values) or 10)
        what = "How often people gave each label, beside how often the judge did"
        add("balance", partial(plot_balance, pairs), 5.2, height, what)
    if people and len(people.annotators) > 2:
        side = max(3.8, min(7.0, 2.0 + 0.7 * len(people.annotators)))
        what = "Cohen's kappa between each two annotators"
        add("annotators", partial(plot_annotators, people), side, side, what)
    return pictures
