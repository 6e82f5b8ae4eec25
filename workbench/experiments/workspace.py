"""Where a notebook puts things: an MLflow store, an experiment, a folder, a summary at the end."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlflow

from workbench.alignment.registry import Registered
from workbench.alignment.result import Alignment
from workbench.credentials import without_credentials
from workbench.errors import StoreError
from workbench.formatting import html_lines
from workbench.metrics.agreement import agreement
from workbench.pairing.pairs import Pairs
from workbench.store.database import find_experiment_id, prepare_database, store_errors

_VARIABLE = "MLFLOW_TRACKING_URI"


@dataclass(frozen=True)
class Workspace:
    """A folder, and the MLflow store and experiment that are active."""

    folder: Path
    tracking_uri: str  # without credentials
    experiment: str
    experiment_id: str

    def write_summary(
        self,
        alignment: Alignment,
        registered: Registered,
        report: str | os.PathLike[str],
        *,
        recorded: Mapping[str, Pairs] | None = None,
    ) -> Path:
        """Write ``summary.json``, which the command line prints when the notebook has ended.

        ``alignment`` and ``registered`` are what `align` and `register` returned, and ``recorded``
        pairs with recorded verdicts of other judges, by their source.
        """
        summary: dict[str, Any] = {
            "table": str(alignment.comparison),
            **{key: getattr(alignment, key) for key in ("status", "headline", "reason", "seed")},
            "judge": {key: getattr(registered, key) for key in ("name", "version", "new")},
            "report": str(Path(report).resolve()),
            "tracking_uri": self.tracking_uri,
            "experiment": self.experiment,
            "model": getattr(alignment.original, "model", None),
            "calls": {"judge": alignment.calls, "reflection": alignment.reflection_calls},
            "comparison": alignment.comparison.to_dict(),
            "annotators": alignment.annotators.to_dict() if alignment.annotators else None,
            "recorded": {k: agreement(pairs).to_dict() for k, pairs in (recorded or {}).items()},
        }
        path = self.folder / "summary.json"
        path.write_text(json.dumps(summary, indent=2, ensure_ascii=False), encoding="utf-8")
        return path

    def _repr_html_(self) -> str:
        store = f"MLflow store: {self.tracking_uri}"
        return html_lines([f"Experiment: {self.experiment}", store, f"Folder: {self.folder}"])


@store_errors()
def use_workspace(
    folder: str | os.PathLike[str], *, experiment: str, tracking_uri: str | None = None
) -> Workspace:
    """Make an MLflow store and experiment the active ones.

    Parameters
    ----------
    folder
        Folder of the store, and of the artifacts of a new experiment; made if missing.
    experiment
        Name of the experiment; made if missing.
    tracking_uri
        Address of the store. None means ``MLFLOW_TRACKING_URI`` where that is set, else an SQLite
        file in the folder.

    Raises
    ------
    StoreError
        If the folder cannot be made or written to, the experiment was deleted, or the file is no
        SQLite database.
    """
    place = Path(folder).expanduser().resolve()
    chosen = os.environ.get(_VARIABLE)
    uri = tracking_uri or chosen or f"sqlite:///{place}/mlflow.db"
    mlflow.set_tracking_uri(uri)
    # MLflow sets the variable, which the next call would take for the user's choice.
    os.environ.pop(_VARIABLE, None)
    if chosen:
        os.environ[_VARIABLE] = chosen
    before = logging.root.manager.disable
    logging.disable(max(before, logging.INFO))  # the forty migrations that make a new database
    try:
        try:
            place.mkdir(parents=True, exist_ok=True)
            prepare_database(uri)
        except OSError as error:
            raise StoreError(
                f"The store {without_credentials(uri)} and its folder {place} cannot be made: "
                f"{error}. Name another folder or tracking_uri."
            ) from error
        if mlflow.get_experiment_by_name(experiment) is None:
            local = not uri.startswith(("http://", "https://", "databricks"))
            mlflow.create_experiment(
                experiment, artifact_location=(place / "artifacts").as_uri() if local else None
            )
        where = find_experiment_id(experiment, create=False)
        mlflow.set_experiment(experiment_id=where)
    finally:
        logging.disable(before)
    return Workspace(place, without_credentials(uri), experiment, where)
