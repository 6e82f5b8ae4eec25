"""Verdicts as they lie in the store, and which of them are one version of a judge's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.errors import ScaleError
from workbench.judging.judge import fingerprint
from workbench.models.budget import UNPAID, Usage
from workbench.scale import ABSTAIN, Scale, is_missing

if TYPE_CHECKING:
    from mlflow.entities import Trace
    from mlflow.genai.judges import Judge


FINGERPRINT_KEY = "workbench.judge_fingerprint"
"""Metadata key of a logged verdict: the fingerprint of the judge that gave it."""


RECORDED_KEY = "workbench.recorded"
"""Metadata key of a verdict that was given elsewhere and only logged here."""


@dataclass(frozen=True)
class Verdict:
    """What one judge call gave.

    Exactly one of ``value`` and ``error`` is set. ``value`` is canonical on the judge's scale
    where that is known. ``cost`` is in US dollars and None where no price is known; tokens are
    None where the provider does not count them. ``calls`` counts the requests made for it, retries
    included, and ``cached`` tells that nothing was paid. ``usage`` is what the answer has cost at
    whatever time.
    """

    trace_id: str
    value: Any = None
    rationale: str = ""
    error: str | None = None
    fingerprint: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cost: float | None = None
    cached: bool = False
    calls: int = 0
    usage: Usage = field(default=UNPAID, compare=False, repr=False)


@dataclass(frozen=True)
class Recorded:
    """One verdict as it lies in the store."""

    value: Any
    rationale: str
    error: str | None
    source: str
    fingerprint: str
    guideline: str | None
    recorded: bool
    created_ms: int
    order: str

    @property
    def unmarked(self) -> bool:
        """Whether nothing says which version of a judge gave it."""
        return not (self.fingerprint or self.guideline or self.recorded)

    @property
    def usable(self) -> bool:
        """Whether it holds a value at all."""
        return self.error is None and not is_missing(self.value)

    @property
    def version(self) -> str:
        said_by = f"source {self.source}"
        return self.fingerprint or (f"{self.guideline} {said_by}" if self.guideline else said_by)


def recorded_verdicts(trace: Trace, name: str) -> list[Recorded]:
    found = []
    for one in trace.info.assessments or []:
        if one.name != name or one.feedback is None or one.valid is False:
            continue
        if one.source.source_type == "HUMAN":
            continue
        metadata = one.metadata or {}
        error = one.error.error_message or one.error.error_code if one.error else None
        found.append(
            Recorded(
                value=one.feedback.value,
                rationale=one.rationale or "",
                error=error,
                source=one.source.source_id or "",
                fingerprint=metadata.get(FINGERPRINT_KEY, ""),
                guideline=metadata.get("guideline"),
                recorded=metadata.get(RECORDED_KEY) == "true",
                created_ms=one.create_time_ms or 0,
                order=one.assessment_id or "",
            )
        )
    return sorted(found, key=lambda v: (v.created_ms, v.order))


def choose_version(
    judge_or_name: Judge | str, recorded: Mapping[str, Sequence[Recorded]]
) -> tuple[dict[str, list[Recorded]], str, list[str]]:
    """The verdicts of one judge version: (by trace, its fingerprint, notes)."""
    every = [verdict for verdicts in recorded.values() for verdict in verdicts]
    if isinstance(judge_or_name, str):
        if not every:
            return {i: [] for i in recorded}, "", []
        last = max(every, key=lambda v: (v.created_ms, v.order))
        versions = Counter(v.version for v in every)
        notes = []
        if len(versions) > 1:
            notes.append(
                f"{len(versions)} versions of the judge gave verdicts; the one that judged last "
                f"counts ({versions[last.version]} of {len(every)} verdicts)."
            )
        return where(recorded, lambda v: v.version == last.version), last.fingerprint, notes
    mark = fingerprint(judge_or_name)
    texts = _texts(judge_or_name)
    model = getattr(judge_or_name, "model", None)

    def by_mlflow(verdict: Recorded) -> bool:
        # MLflow puts a judge's instructions and model, and nothing else of it, beside its verdict.
        same_model = not model or verdict.source == model
        return not verdict.fingerprint and verdict.guideline in texts and same_model

    chosen = where(recorded, lambda v: v.fingerprint == mark or by_mlflow(v))
    unmarked = [v for v in every if v.unmarked]
    if any(chosen.values()) or not unmarked:
        return chosen, mark, _notes_on_mlflows(chosen)
    # Logged by hand, as MLflow's own examples do. Where there are several sources, they are
    # not mixed: the judge's own model goes first, else the one that judged last.
    own = [v for v in unmarked if v.source == model] or unmarked
    source = max(own, key=lambda v: (v.created_ms, v.order)).source
    chosen = where(recorded, lambda v: v.unmarked and v.source == source)
    count = sum(bool(verdicts) for verdicts in chosen.values())
    note = (
        f"{count} verdicts do not say which version of the judge gave them; they are taken as "
        "this one's. workbench.assess marks each verdict with the judge's version."
    )
    if len({v.source for v in unmarked}) > 1:
        note += f" Those by {source!r} count, those by other sources do not."
    return chosen, mark, [note]


def _notes_on_mlflows(chosen: Mapping[str, Sequence[Recorded]]) -> list[str]:
    """What is not known of verdicts that MLflow logged itself, where they are the ones to count."""
    usable = [[v for v in verdicts if v.usable] for verdicts in chosen.values()]
    count = sum(not verdicts[-1].fingerprint for verdicts in usable if verdicts)
    if not count:
        return []
    return [
        f"{count} verdicts were logged by MLflow with this judge's instructions and model; what "
        "else it was made with (inference parameters, base URL, value type) is not known and "
        "taken to be the same. workbench.assess marks each verdict with the judge's version."
    ]


def _texts(judge: Judge) -> set[str]:
    """The texts by which MLflow's own verdicts of this judge are known."""
    guidelines = getattr(judge, "guidelines", None)
    if isinstance(guidelines, list):
        guidelines = "\n".join(guidelines)
    return {text for text in (getattr(judge, "instructions", None), guidelines) if text}


def where(
    recorded: Mapping[str, Sequence[Recorded]], keep: Callable[[Recorded], bool]
) -> dict[str, list[Recorded]]:
    return {i: [v for v in verdicts if keep(v)] for i, verdicts in recorded.items()}


def read_verdict(
    chosen: Sequence[Recorded], every: Sequence[Recorded], scale: Scale
) -> tuple[tuple[Any, str] | None, str | None]:
    """((canonical value, rationale), None) or (None, why there is none)."""
    if not chosen:
        return None, "verdict of another version of the judge only" if every else "no verdict"
    usable = [v for v in chosen if v.usable]
    if not usable:
        return None, f"the judge failed: {chosen[-1].error or 'empty answer'}"
    latest = usable[-1]
    try:
        value = scale.normalise(latest.value)
    except ScaleError as error:
        return None, f"verdict outside the scale: {error}"
    if value is ABSTAIN:
        return None, "the judge abstained"
    return (value, latest.rationale), None
