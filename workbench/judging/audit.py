"""A random sample of scored rows as traces, so that people can label what the judge has said."""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Mapping
from typing import Final

import pandas as pd
from mlflow.genai.judges import Judge

from workbench.errors import ArgumentError
from workbench.judging.assessment import as_feedback, earlier_verdict
from workbench.judging.judge import fingerprint
from workbench.judging.verdict_folder import VerdictFolder
from workbench.judging.verdicts import Verdict
from workbench.store.assessments import log_assessments
from workbench.store.files import Record
from workbench.store.importing import import_traces
from workbench.store.traces import fetch_traces

PROBABILITY_TAG: Final = "workbench.selection_probability"
"""Tag of an imported trace: the probability with which its row was drawn from the table."""


class Draw:
    """A simple random sample of rows that come one by one: a share of them, or a number.

    Whether a row is drawn follows from the seed and its position, so that a run that is resumed
    draws the same.
    """

    def __init__(self, sample: float, seed: int) -> None:
        number = isinstance(sample, (int, float)) and not isinstance(sample, bool)
        if not number or not (0 < sample < 1 or (sample >= 1 and sample == int(sample))):
            raise ArgumentError(
                f"sample={sample!r} must be a share of the rows in (0, 1), or a whole number."
            )
        self.sample, self.seed, self.offered = sample, seed, 0
        self._drawn: list[tuple[float, int, Record]] = []  # a heap, the first to go on top

    def offer(self, row: int, record: Record) -> None:
        """Draw a row, or pass over it."""
        self.offered += 1
        text = hashlib.sha256(f"{self.seed}:{row}".encode()).digest()
        place = int.from_bytes(text[:8], "big") / 2**64
        if self.sample >= 1 or place < self.sample:
            heapq.heappush(self._drawn, (-place, row, record))
        if self.sample >= 1 and len(self._drawn) > self.sample:
            heapq.heappop(self._drawn)

    @property
    def drawn(self) -> dict[int, Record]:
        """The rows by position, in their order."""
        return dict(sorted((row, record) for _, row, record in self._drawn))

    @property
    def probability(self) -> float:
        """With which each row was drawn."""
        return self.sample if self.sample < 1 else min(1.0, self.sample / max(self.offered, 1))


def import_sample(
    judge: Judge,
    draw: Draw,
    folder: VerdictFolder,
    sides: Mapping[str, Mapping[str, str]],
    *,
    single: bool,
) -> None:
    """Import the drawn rows as traces and log their verdicts, each once."""
    rows = draw.drawn
    if not rows:
        return
    table = pd.DataFrame(list(rows.values()), dtype=object).assign(
        **{PROBABILITY_TAG: str(draw.probability)}
    )
    imported = import_traces(
        table,
        inputs=sides["inputs"],
        outputs=next(iter(sides["outputs"].values())) if single else sides["outputs"],
        expectations=sides["expectations"] or None,
        tags=PROBABILITY_TAG,
        progress=False,
    )
    trace_of = dict(zip(rows, imported.trace_ids, strict=True))
    traces = {trace.info.trace_id: trace for trace in fetch_traces(imported, spans=False)}
    mark, new = fingerprint(judge), []
    for row in folder.rows(trace_of):
        trace = traces[trace_of[row["row"]]]
        verdict = _verdict(row, trace.info.trace_id)
        before = earlier_verdict(trace, judge.name, mark)
        # A row that was asked again may have a verdict in place of an error.
        if before is None or (before.error is not None and before.error != verdict.error):
            new.append(as_feedback(verdict, judge, trace.info))
    log_assessments(new, progress=False)
    columns = {"row": list(trace_of), "trace_id": list(trace_of.values())}
    sample = pd.DataFrame(columns).assign(probability=draw.probability)
    folder.write_sample(sample)


def _verdict(row: Record, trace_id: str) -> Verdict:
    names = ("rationale", "error", "fingerprint", "input_tokens", "output_tokens", "cost")
    known = {name: row[name] for name in names}
    abstained = row["verdict"] is None and row["error"] is None
    return Verdict(trace_id, "N/A" if abstained else row["verdict"], **known)
