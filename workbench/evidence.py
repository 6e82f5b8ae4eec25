"""What an order may go by: what the judge and other people say of traces, and their texts.

Nothing of it is ever shown to the annotator whose order it makes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from mlflow.entities import Trace, TraceData, TraceInfo

from workbench.answers import LabelQuestion
from workbench.errors import ScaleError
from workbench.labels import label_records
from workbench.ordering import Known
from workbench.scale import ABSTAIN
from workbench.standing import same_person
from workbench.verdicts import choose_version, recorded_verdicts

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge


def known_of(
    infos: Mapping[str, TraceInfo],
    question: LabelQuestion,
    annotator: str,
    judge: Judge | str | None,
) -> dict[str, Known]:
    """What is known of each trace but for the annotator's own labels, by trace id.

    ``judge`` tells whose verdicts count; None: any under the question's name, of one version.
    """
    verdicts = _verdicts(judge or question.name, question, infos)
    return {
        trace_id: Known(
            trace_id,
            f"{info.request_preview or ''} {info.response_preview or ''}",
            verdicts.get(trace_id, ()),
            tuple(_others(info, question, annotator)),
        )
        for trace_id, info in infos.items()
    }


def canonical(question: LabelQuestion, raw: Any) -> Any:
    """The canonical value; None for abstentions and for what lies off the scale."""
    try:
        value = question.read(raw)
    except ScaleError:
        return None
    return None if value is ABSTAIN else value


def _others(info: TraceInfo, question: LabelQuestion, annotator: str) -> list[Any]:
    return [
        value
        for label in label_records([Trace(info, TraceData(spans=[]))], question.name)
        if not same_person(label.annotator, annotator)
        and (value := canonical(question, label.value)) is not None
    ]


def _verdicts(
    judge_or_name: Judge | str, question: LabelQuestion, infos: Mapping[str, TraceInfo]
) -> dict[str, tuple[Any, ...]]:
    """All samples of one version of the judge, canonical, by trace."""
    recorded = {
        i: recorded_verdicts(Trace(info, TraceData(spans=[])), question.name)
        for i, info in infos.items()
    }
    chosen, _, _ = choose_version(judge_or_name, recorded)
    found: dict[str, list[Any]] = defaultdict(list)
    for trace_id, verdicts in chosen.items():
        for verdict in verdicts:
            if verdict.usable and (value := canonical(question, verdict.value)) is not None:
                found[trace_id].append(value)
    return {i: tuple(values) for i, values in found.items()}
