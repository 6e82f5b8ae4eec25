"""The MLflow run of an alignment: begun before the held-out test, ended with what came of it.

Which judge is tested on which items is in the store before the first of them is judged, so that
the look counts whatever happens afterwards. Everything else follows when it is known.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pandas as pd
from mlflow.exceptions import MlflowException

from workbench.ancestry import CONTENT_FILE, LABELS_FILE, content_of, labels_of
from workbench.judge import fingerprint
from workbench.looks import JUDGE
from workbench.pairing import Pairs, Split, dataset_digest
from workbench.traces import Example
from workbench.watch import Place, Run

if TYPE_CHECKING:
    from mlflow.genai.judges import Judge

    from workbench.alignment import Alignment


class Logbook:
    """One run; where the store does not take it, the result is kept and says so.

    Parameters
    ----------
    place
        Where the run is made.
    name
        Of the run.
    """

    def __init__(self, place: Place, name: str) -> None:
        self.place, self.name = place, name
        self.run: Run | None = None
        self.fault = ""

    @contextmanager
    def kept(self, begin: Callable[[Run], None]) -> Iterator[None]:
        """Within it the test is made; ``begin`` writes what must be there before.

        What ends it early ends the run as failed, or as killed where somebody interrupted it.
        """
        try:
            self._try(lambda: self._begin(begin))
            yield
        except BaseException as error:
            # What is on its way must not be hidden by a store that does not answer.
            with suppress(Exception):
                if self.run is not None:
                    self.run.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED")
            raise

    def _begin(self, begin: Callable[[Run], None]) -> None:
        self.run = self.place.begin(self.name)
        begin(self.run)

    def _try(self, write: Callable[[], None]) -> None:
        try:
            write()
        except (MlflowException, OSError) as error:
            self.fault = str(error)

    def finish(self, alignment: Alignment) -> Alignment:
        """Write what came of it and end the run; the alignment with the run's id."""
        if not self.fault:
            self._try(lambda: self._finish(alignment))
        if self.fault or self.run is None:
            message = f"The alignment could not be logged as an MLflow run: {self.fault}"
            warnings.warn(message, stacklevel=3)
            return replace(alignment, notes=(*alignment.notes, message))
        return replace(alignment, run_id=self.run.run_id)

    def _finish(self, alignment: Alignment) -> None:
        assert self.run is not None
        write_outcome(self.run, alignment)
        self.run.end()


def write_before_test(
    run: Run,
    original: Judge,
    proposed: Judge,
    pairs: Pairs,
    split: Split,
    items: Mapping[str, Example],
    marks: Mapping[str, str],
    **settings: Any,
) -> None:
    """What is known before the test: judges, data, split, and by ``marks`` the look itself."""
    run.log_dict(split.to_dict(), "split.json")
    run.log_dict(labels_of(split), LABELS_FILE)
    run.log_dict(content_of(split, items), CONTENT_FILE)
    run.set_tags(
        {
            "workbench.fingerprint.original": fingerprint(original),
            JUDGE: fingerprint(proposed),
            "workbench.dataset_digest": dataset_digest(pairs),
            "workbench.split_digest": split.digest,
            **marks,
        }
    )
    run.log_params(
        {
            "judge": original.name,
            "model": getattr(original, "model", ""),
            **settings,
            "pairs": len(pairs),
            "train": len(split.train),
            "dev": len(split.dev),
            "test": len(split.test),
        }
    )
    run.log_text(str(getattr(original, "instructions", "")), "instructions/original.txt")
    run.log_text(str(getattr(proposed, "instructions", "")), "instructions/proposed.txt")


def write_outcome(run: Run, alignment: Alignment) -> None:
    """What is known after the test: status, figures, evidence, and the items that changed."""
    run.set_tags({"workbench.status": alignment.status})
    figures = {
        "calls": float(alignment.calls),
        "reflection_calls": float(alignment.reflection_calls),
        "failures": float(alignment.failures),
        "reflection_failures": float(alignment.reflection_failures),
        "seconds": alignment.seconds,
        "looks_at_test": float(alignment.looks),
    }
    for when, measured in (("before", alignment.before), ("after", alignment.after)):
        figures[f"{when}_accuracy"] = measured.accuracy
        figures[f"{when}_kappa"] = measured.kappa
    # An undefined statistic is no number, and MLflow plots would show it as one.
    run.log_metrics({k: v for k, v in figures.items() if v == v})
    run.log_dict(alignment.comparison.to_dict(), "comparison.json")
    run.log_dict({rule: list(ids) for rule, ids in alignment.evidence.items()}, "evidence.json")
    for name, table in changed_items(alignment).items():
        run.log_text(table.to_csv(index=False), f"items/{name}.csv")
    run.log_text(alignment.preflight.to_csv(index=False), "preflight.csv")
    run.log_text(alignment.history.to_csv(index=False), "history.csv")


def changed_items(alignment: Alignment) -> dict[str, pd.DataFrame]:
    """The held-out items ``fixed``, ``broken`` and ``still_wrong``, with everybody's reasons."""
    said = pd.DataFrame(
        {
            "trace_id": alignment.test_before.table["trace_id"],
            "human_rationale": alignment.test_before.table["human_rationale"],
            "before_rationale": alignment.test_before.table["judge_rationale"],
        }
    ).merge(
        alignment.test_after.table[["trace_id", "judge_rationale"]].rename(
            columns={"judge_rationale": "after_rationale"}
        ),
        on="trace_id",
    )
    comparison = alignment.comparison
    tables = {
        "fixed": comparison.fixed,
        "broken": comparison.broken,
        "still_wrong": comparison.still_wrong,
    }
    return {name: table.merge(said, on="trace_id", how="left") for name, table in tables.items()}
