"""Notebooks as experiments: run one with parameters by papermill, in this Python environment."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from workbench.errors import NotebookError
from workbench.execution import execute
from workbench.parameters import Parameter, check_parameters, notebook_parameters
from workbench.tape import tape_variables

SUMMARY: Final = "summary.json"
"""What a notebook may write into its ``output_dir`` for the command line to print."""

OUTPUT_PARAMETER: Final = "output_dir"
"""A notebook with a parameter of this name is told where to write."""


@dataclass(frozen=True)
class Ran:
    """A notebook that ran to its end.

    ``summary`` is what the notebook wrote to ``summary.json`` in its output folder; empty where
    it wrote none. ``parameters`` are those that were passed to it.
    """

    notebook: Path
    output: Path
    parameters: dict[str, Any]
    seconds: float
    summary: dict[str, Any]


# -- which notebook -------------------------------------------------------------------------


def find_notebook(name: str | Path) -> Path:
    """The notebook of that path, or of that name in ``notebooks/``.

    ``notebooks/`` is looked for in the current folder and beside the package, where it lies
    when the package is installed from its repository.

    Raises
    ------
    NotebookError
        When there is none; names the known ones.
    """
    given = Path(name)
    file = given if given.suffix == ".ipynb" else given.with_name(given.name + ".ipynb")
    folders = [Path("notebooks"), Path(__file__).resolve().parents[1] / "notebooks"]
    places = [file]
    if given.parent in (Path(), Path("notebooks")):
        places += [folder / file.name for folder in folders]
    for place in places:
        if place.is_file():
            return place.resolve()
    known = sorted({path.stem for folder in folders for path in folder.glob("*.ipynb")})
    raise NotebookError(
        f"There is no notebook {str(name)!r}. Give a path, or one of: "
        f"{', '.join(known) or 'none was found; run from the repository'}."
    )


def _completed(
    notebook: Path, parameters: list[Parameter], values: Mapping[str, Any], output: Path
) -> dict[str, Any]:
    """The values with what the notebook must be told because it does not run in its own folder.

    That is where to write, and where the files are that its defaults name relative to itself.
    """
    complete = dict(values)
    for parameter in parameters:
        name, default = parameter.name, parameter.default
        if name in complete:
            continue
        if name == OUTPUT_PARAMETER:
            complete[name] = str(output)
        elif isinstance(default, str) and ("/" in default or Path(default).suffix):
            file = notebook.parent / default
            if not Path(default).is_absolute() and file.is_file():
                complete[name] = str(file.resolve())
    return complete


# -- running --------------------------------------------------------------------------------


def run_notebook(
    notebook: str | Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    output: str | Path = "output",
    record: str | Path | None = None,
    replay: str | Path | None = None,
    progress: bool = True,
) -> Ran:
    """Execute a notebook with parameters and keep the executed copy.

    It runs in a kernel of this very Python, whatever kernels are registered for the user, and
    in the current folder, so that relative paths among the parameters mean what they say.
    Defaults that name a file relative to the notebook keep their meaning.

    Parameters
    ----------
    notebook
        Path, or name in ``notebooks/``.
    parameters
        Values for the cell tagged ``parameters``. ``output_dir`` is set to ``output`` where the
        notebook has it.
    output
        Folder of the executed copy, which is saved after each cell.
    record, replay
        A file that the run's model answers are written to, or come from (`workbench.recording`,
        `workbench.replaying`); a tape that is active here is the kernel's as well.
    progress
        Show stage, progress and output of the cells on stderr.

    Raises
    ------
    NotebookError
        For an unknown parameter, before anything runs; and for a cell that fails, with the
        cell, its error, and where the notebook lies that ran so far.
    ReplayError
        When the file of answers cannot be read, before anything runs.
    KeyboardInterrupt
        When interrupted; the kernel is ended, and what ran so far is kept.
    """
    source = find_notebook(notebook)
    known = notebook_parameters(source)
    values = dict(parameters or {})
    check_parameters(known, values)
    folder = Path(output).resolve()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotebookError(
            f"The output folder {folder} cannot be made: {error.strerror}. Name another with "
            "--output."
        ) from None
    if not os.access(folder, os.W_OK):
        raise NotebookError(
            f"The output folder {folder} cannot be written to. Name another with --output."
        )
    target = folder / source.name
    if target == source:
        raise NotebookError(
            f"output={str(output)!r} is the folder of the notebook itself, which the executed "
            "copy would replace. Choose another folder."
        )
    environment = tape_variables(record, replay)
    # A summary of an earlier run must not pass for one of this run.
    (folder / SUMMARY).unlink(missing_ok=True)
    passed = _completed(source, known, values, folder)
    started = time.monotonic()
    execute(source, target, passed, progress, environment)
    return Ran(
        notebook=target,
        output=folder,
        parameters=passed,
        seconds=time.monotonic() - started,
        summary=_summary(folder / SUMMARY),
    )


def _summary(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        summary = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise NotebookError(f"{path}, which the notebook wrote, is no JSON: {error}") from error
    return summary if isinstance(summary, dict) else {}
