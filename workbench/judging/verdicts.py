"""Verdicts as they lie in the store, and which of them are one version of a judge's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from workbench.errors import ScaleError
from workbench.formatting import counted
from workbench.models.budget import UNPAID, Usage
from workbench.scale import ABSTAIN, Scale
from workbench.store.tables import digest
from workbench.vocabulary import is_missing

if TYPE_CHECKING:
    from mlflow.entities import Trace
    from mlflow.genai.judges import Judge


# Metadata keys of a logged verdict: its judge's fingerprint, and that it was given elsewhere.
FINGERPRINT_KEY = "workbench.judge_fingerprint"
RECORDED_KEY = "workbench.recorded"


@dataclass(frozen=True)
class Verdict:
    """What one judge call gave: either a ``value`` or an ``error``."""

    trace_id: str
    value: Any = None  # canonical on the judge's scale where that is known
    rationale: str = ""
    error: str | None = None
    fingerprint: str = ""
    cached: bool = False  # nothing was paid
    calls: int = 0  # requests made for it now, retries included
    usage: Usage = field(default=UNPAID, repr=False)  # what the answer has cost, at whatever time
    sample: int = 0  # its number where a judge is asked repeatedly
    unusable: bool = False  # an answer came and was no use, or the provider refused this request

    @property
    def paid(self) -> Usage:
        """What was paid for it now; nothing where the answer was known."""
        return UNPAID if self.cached else self.usage


@dataclass(frozen=True)
class Recorded(Verdict):
    """One verdict as it lies in the store, whoever logged it."""

    source: str = ""
    guideline: str | None = None  # the instructions, which MLflow puts beside what it logs
    recorded: bool = False
    order: tuple[int, str] = (0, "")  # by time
    by_code: bool = False

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
        """What all verdicts of one version have in common, as far as that is known."""
        text = [digest(self.guideline)[:8]] if self.guideline else []
        return self.fingerprint or " ".join([self.source, *text])


def recorded_verdicts(trace: Trace, name: str) -> list[Recorded]:
    """Return the verdicts on a trace under a name, the oldest first."""
    # One that a person overrode, as in MLflow's own page, is still what the judge said.
    found = []
    every = trace.info.assessments or []
    by_people = {one.overrides for one in every if one.source.source_type == "HUMAN"}
    for one in every:
        judged = one.feedback is not None and one.source.source_type != "HUMAN"
        replaced = one.valid is False and one.assessment_id not in by_people
        if one.name != name or not judged or replaced:
            continue
        metadata = one.metadata or {}
        found.append(
            Recorded(
                trace.info.trace_id,
                one.feedback.value,
                one.rationale or "",
                (one.error.error_message or one.error.error_code) if one.error else None,
                metadata.get(FINGERPRINT_KEY, ""),
                cached=True,
                source=one.source.source_id or "",
                guideline=metadata.get("guideline"),
                recorded=metadata.get(RECORDED_KEY) == "true",
                order=(one.create_time_ms or 0, one.assessment_id or ""),
                by_code=one.source.source_type == "CODE",
            )
        )
    return sorted(found, key=lambda v: v.order)


def choose_version(
    judge_or_name: Judge | str,
    recorded: Mapping[str, Sequence[Recorded]],
    fingerprints: tuple[str, str],
) -> tuple[dict[str, list[Recorded]], str, list[str]]:
    """One version's verdicts by trace, its fingerprint, notes; of a name the one that came last."""
    if isinstance(judge_or_name, str):
        return _latest_version(recorded)
    judge, every = judge_or_name, [v for verdicts in recorded.values() for v in verdicts]
    model = getattr(judge, "model", None)
    guidelines = getattr(judge, "guidelines", None)
    texts = [getattr(judge, "instructions", None), guidelines]
    texts += ["\n".join(guidelines)] if isinstance(guidelines, list) else []

    def by_mlflow(verdict: Recorded) -> bool:
        same_text = bool(verdict.guideline) and verdict.guideline in texts
        return not verdict.fingerprint and same_text and (not model or verdict.source == model)

    chosen = where(recorded, lambda v: v.fingerprint in fingerprints or by_mlflow(v))
    unmarked = [v for v in every if v.unmarked]
    if unmarked and not any(chosen.values()):
        # Logged by hand, as MLflow's own examples do: by the judge's model, else by who came last.
        own = [v for v in unmarked if v.source == model] or unmarked
        source = max(own, key=lambda v: v.order).source
        chosen = where(recorded, lambda v: v.unmarked and v.source == source)
    usable = where(chosen, lambda v: v.usable)
    count = sum(not verdicts[-1].fingerprint for verdicts in usable.values() if verdicts)
    note = (
        f"Taken as this version's: {counted(count, 'verdict')} without its mark, logged by MLflow "
        "or by hand. workbench.assess marks its verdicts."
    )
    return chosen, fingerprints[0], [note] if count else []


def _latest_version(
    recorded: Mapping[str, Sequence[Recorded]],
) -> tuple[dict[str, list[Recorded]], str, list[str]]:
    # Feedback of source CODE beside a model's verdicts may be a label without its source.
    models = where(recorded, lambda v: not v.by_code)
    chosen = models if any(models.values()) else where(recorded, lambda v: True)
    every = [verdict for verdicts in chosen.values() for verdict in verdicts]
    if not every:
        return chosen, "", []
    last = max(every, key=lambda v: v.order)
    versions = Counter(v.version for v in every)
    note = (
        f"{len(versions)} versions of the judge gave verdicts; the one that judged last counts "
        f"({versions[last.version]} of {len(every)} verdicts)."
    )
    of_last = where(chosen, lambda v: v.version == last.version)
    return of_last, last.fingerprint, [note] if len(versions) > 1 else []


def where(
    recorded: Mapping[str, Sequence[Recorded]], keep: Callable[[Recorded], bool]
) -> dict[str, list[Recorded]]:
    """Return the verdicts that ``keep`` holds for, by trace."""
    return {i: [v for v in verdicts if keep(v)] for i, verdicts in recorded.items()}


def why_unusable(reason: str) -> str | None:
    """Return the kind of a reason of `Pairs.excluded`; None where it concerns the labels."""
    if reason == "the judge abstained":
        return "abstained"
    if reason.startswith(("the judge failed", "verdict outside", "the judge gave no usable")):
        return "failed"
    not_judged = reason in ("no verdict", "verdict of another version of the judge only")
    return "not judged" if not_judged else None


def read_verdict(
    chosen: Sequence[Recorded], every: Sequence[Recorded], scale: Scale
) -> tuple[tuple[Any, str] | None, str | None]:
    """((canonical value, rationale), None) or (None, why there is none)."""
    if not chosen:
        return None, "verdict of another version of the judge only" if every else "no verdict"
    usable = [verdict for verdict in chosen if verdict.usable]
    if not usable:
        return None, f"the judge failed: {chosen[-1].error or 'empty answer'}"
    try:
        value = scale.normalise(usable[-1].value)
    except ScaleError as error:
        return None, f"verdict outside the scale: {error}"
    if value is ABSTAIN:
        return None, "the judge abstained"
    return (value, usable[-1].rationale), None
