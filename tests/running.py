"""Runs of the notebooks: the main job as a user starts it, and any notebook in this process."""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workbench.cli import run as run_command
from workbench.experiments.notebook import resolve_parameters
from workbench.experiments.parameters import (
    find_notebook,
    notebook_parameters,
    parse_parameters,
    read_notebook,
)
from workbench.models.recording import Player, replaying

SECRET = "sk-main-run-secret-4711"
"""The value of ``OPENAI_API_KEY`` while the main job runs; it must not be written anywhere."""


@dataclass(frozen=True)
class MainRun:
    """What ``workbench run --record`` left behind, on the sample data with the embedded model.

    Tests read it. One that changes something works on a copy (see ``main_copy``).
    """

    folder: Path
    stdout: str
    stderr: str

    @property
    def output(self) -> Path:
        """Folder of the executed notebook, the report and the store."""
        return self.folder / "output"

    @property
    def answers(self) -> Path:
        """The recording."""
        return self.folder / "answers.jsonl.gz"

    @property
    def cache(self) -> Path:
        """The cache of model answers, made by this run."""
        return self.folder / "cache"

    @property
    def notebook(self) -> Path:
        """The executed notebook."""
        return self.output / "4_align.ipynb"

    @property
    def summary(self) -> dict[str, Any]:
        """What the notebook wrote to ``summary.json``."""
        return summary(self.output)

    @property
    def tracking_uri(self) -> str:
        """Of the store that the run made."""
        return f"sqlite:///{self.output}/mlflow.db"


def summary(folder: Path) -> dict[str, Any]:
    """The summary in an output folder."""
    found: dict[str, Any] = json.loads((folder / "summary.json").read_text("utf-8"))
    return found


def new_user(folder: Path) -> dict[str, str]:
    """The environment of someone who has chosen no model, store or cache; the cache is new."""
    chosen = ("WORKBENCH_", "MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI", "OPENAI_", "MPLBACKEND")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(chosen)}
    return {
        **kept,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "WORKBENCH_CACHE": str(folder / "cache"),
        "DSPY_CACHEDIR": str(folder / "cache" / "dspy"),
    }


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run a command in a folder as a new user does."""
    return subprocess.run(
        ["bash", "-c", line],
        cwd=folder,
        env=new_user(folder),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        stdin=subprocess.DEVNULL,
    )


@contextlib.contextmanager
def active_store(uri: str, experiment: str | None = None) -> Iterator[Any]:
    """Make a store, and an experiment, the active ones, and put back what was active."""
    import mlflow

    before, variable = mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield mlflow.set_experiment(experiment) if experiment else None
    finally:
        mlflow.set_tracking_uri(before)
        mlflow.set_registry_uri(before)
        os.environ.pop("MLFLOW_TRACKING_URI", None)
        if variable is not None:
            os.environ["MLFLOW_TRACKING_URI"] = variable


def run_here(command: str) -> Path:
    """Run what a ``workbench run`` command says in this process; returns its output folder.

    The parameters are read and completed as the command does it, and each cell is executed;
    papermill and a kernel, which take most of the time, are left out.
    """
    words = shlex.split(command)
    assert words[:2] == ["workbench", "run"], command
    asked = run_command.make_context("workbench run", words[2:]).params
    replayed = asked["replay"] and Player(asked["replay"]).head
    source = find_notebook(asked["notebook"] or (replayed and replayed.notebook) or "4_align")
    given = parse_parameters(notebook_parameters(source), asked["given"])
    given = {**(replayed.parameters if replayed else {}), **given}
    folder: Path = asked["output"].resolve()
    folder.mkdir(parents=True, exist_ok=True)
    names: dict[str, Any] = {"display": lambda *_: None}
    with replaying(asked["replay"]) if replayed else contextlib.nullcontext():
        for cell in read_notebook(source).cells:
            if cell.cell_type == "code":
                exec(compile(cell.source, str(source), "exec"), names)
                if "parameters" in cell.metadata.get("tags", []):
                    declared = notebook_parameters(source)
                    names.update(resolve_parameters(source, declared, given, folder))
    import matplotlib.pyplot as plt

    plt.close("all")
    return folder
