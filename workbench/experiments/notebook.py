"""Run a notebook with parameters and keep the executed copy."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from workbench import errors
from workbench.credentials import secret_params, withhold
from workbench.errors import NotebookError
from workbench.experiments.parameters import (
    Parameter,
    check_parameters,
    notebook_parameters,
    read_notebook,
)
from workbench.models.recording import tape_variables

if TYPE_CHECKING:
    from nbformat import NotebookNode
    from papermill import PapermillExecutionError

SUMMARY: Final = "summary.json"
"""What a notebook may write into its ``output_dir`` for the command line to print."""

OUTPUT_PARAMETER: Final = "output_dir"
"""A notebook with a parameter of this name is told where to write."""


@dataclass(frozen=True)
class Ran:
    """A notebook that ran to its end: the executed copy, its folder, and what was passed to it.

    ``summary`` is what the notebook wrote to ``summary.json`` in that folder; empty if nothing.
    """

    notebook: Path
    output: Path
    parameters: dict[str, Any]
    seconds: float
    summary: dict[str, Any]


def find_notebook(name: str | Path) -> Path:
    """Return the notebook at a path, or of a name in ``notebooks/``.

    ``notebooks/`` is looked for in the current folder, and beside the package when that is
    installed from its repository.

    Raises
    ------
    NotebookError
        If there is none; the message lists the known ones.
    """
    given = Path(name)
    file = given if given.suffix == ".ipynb" else given.with_name(given.name + ".ipynb")
    folders = [Path("notebooks"), Path(__file__).resolve().parents[2] / "notebooks"]
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

    The notebook runs in a kernel of this Python, whatever kernels are registered for the user,
    and in the current folder, so that relative paths among the parameters mean what they say.
    Defaults that name a file relative to the notebook keep their meaning.

    Parameters
    ----------
    notebook
        Path, or name in ``notebooks/``.
    parameters
        Values for the cell tagged ``parameters``. ``output_dir`` is set to ``output`` where the
        notebook has it. Credentials in URLs and values of parameters that are named like keys
        are passed to the cells, but not saved.
    output
        Folder of the executed copy, which is saved after each cell.
    record, replay
        File that the run's model answers are written to or read from (see `workbench.recording`
        and `workbench.replaying`).
    progress
        Whether to show progress and the output of the cells on stderr.

    Raises
    ------
    NotebookError
        For an unknown parameter, before anything runs; and for a cell that fails, with the cell,
        its error, and the path of the executed copy.
    ReplayError
        If the file of answers cannot be read, before anything runs.
    KeyboardInterrupt
        If interrupted. The kernel is stopped and the executed copy is kept.
    """
    source = find_notebook(notebook)
    folder = Path(output).resolve()
    passed = resolve_parameters(source, parameters or {}, folder)
    _check_output(source, folder)
    environment = tape_variables(record, replay)
    # A summary of an earlier run must not pass for one of this run.
    (folder / SUMMARY).unlink(missing_ok=True)
    started = time.monotonic()
    copy = _Copy(folder / source.name, _secrets(passed))
    _execute(source, copy, passed, progress, environment)
    seconds = time.monotonic() - started
    return Ran(copy.target, folder, passed, seconds, _summary(folder / SUMMARY))


def resolve_parameters(source: Path, given: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Check the values given and add those that depend on where the notebook runs.

    These are the output folder, and the files that defaults name relative to the notebook.
    """
    declared = notebook_parameters(source)
    check_parameters(declared, given)
    values = dict(given)
    for parameter in declared:
        if parameter.name in values:
            continue
        file = _default_file(parameter, source.parent)
        if parameter.name == OUTPUT_PARAMETER:
            values[parameter.name] = str(output)
        elif file is not None:
            values[parameter.name] = str(file)
    return values


def _default_file(parameter: Parameter, folder: Path) -> Path | None:
    """The existing file in or near ``folder`` that a default names by a relative path."""
    default = parameter.default
    if not isinstance(default, str) or not ("/" in default or Path(default).suffix):
        return None
    file = folder / default
    return file.resolve() if file.is_file() and not Path(default).is_absolute() else None


def _check_output(source: Path, folder: Path) -> None:
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
    if folder / source.name == source:
        raise NotebookError(
            f"output={str(folder)!r} is the folder of the notebook itself, which the executed "
            "copy would replace. Choose another folder."
        )


def _execute(
    source: Path,
    copy: _Copy,
    parameters: Mapping[str, Any],
    progress: bool,
    environment: Mapping[str, str],
) -> None:
    from papermill import PapermillExecutionError

    from workbench.experiments.kernel import execute

    kept = f"The notebook as far as it ran: {copy.target}"
    try:
        execute(source, parameters, save=copy.save, show=progress, environment=environment)
    except PapermillExecutionError as error:
        copy.save()  # now with papermill's mark at the cell that failed
        raise NotebookError(f"{_failure(error, source)}\n{kept}") from None
    except NotebookError as error:
        raise NotebookError(f"{error}\n{kept}") from error
    except KeyboardInterrupt:
        raise KeyboardInterrupt(
            f"Stopped. {kept}\nWhat was judged is kept: the same command again pays only for the "
            "rest."
        ) from None


class _Copy:
    """The executed copy: written whole or not at all, and without secrets."""

    def __init__(self, target: Path, secrets: dict[str, str]) -> None:
        self.target, self._secrets = target, secrets
        self._notebook: NotebookNode | None = None

    def save(self, notebook: NotebookNode | None = None) -> None:
        """Write the notebook, or the one saved last, which may have changed since."""
        import nbformat

        self._notebook = notebook or self._notebook
        if self._notebook is None:
            return
        text = nbformat.writes(self._notebook)
        for secret, instead in self._secrets.items():
            text = text.replace(json.dumps(secret)[1:-1], instead)
        # A name of its own: another run may be writing to the same folder.
        part = self.target.with_name(f".{self.target.name}.{os.getpid()}.part")
        try:
            part.write_text(text, encoding="utf-8")
            part.replace(self.target)
        finally:
            part.unlink(missing_ok=True)


def _secrets(parameters: Mapping[str, Any]) -> dict[str, str]:
    """What must not be saved and what stands for it, the longest first."""
    values = [str(value) for _, value in secret_params(dict(parameters))]
    found = {}
    for value in parameters.values():
        if isinstance(value, str) and "://" in value:
            clean, withheld, parts = withhold({"base_url": value})
            if withheld:
                found[value] = clean["base_url"]
                values += parts
    # Very short values would blot out ordinary words.
    found |= {value: "***" for value in values if len(value) >= 6}
    return dict(sorted(found.items(), key=lambda pair: len(pair[0]), reverse=True))


def _failure(error: PapermillExecutionError, source: Path) -> str:
    """Describe a failed cell: with its traceback, unless the error explains itself."""
    from workbench.experiments.kernel import ESCAPES, headings

    stages = headings(read_notebook(source))
    # papermill puts a cell with the parameters among those of the source.
    stage = stages[min(max(error.cell_index - 1, 0), len(stages) - 1)]
    lines = [
        f"Cell In [{error.exec_count}] of {source.name}{f' ({stage})' if stage else ''} failed.",
        ESCAPES.sub("", f"{error.ename}: {error.evalue}"),
    ]
    if not _explains_itself(error.ename):
        traceback = ESCAPES.sub("", "\n".join(error.traceback)).splitlines()
        lines[1:] = ["", *traceback[-15:], ""]
    return "\n".join(lines)


def _explains_itself(name: str) -> bool:
    kind = getattr(errors, name, None)
    ours = isinstance(kind, type) and issubclass(kind, errors.WorkbenchError)
    return ours or name == "MlflowException"


def _summary(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        summary = json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise NotebookError(f"{path}, which the notebook wrote, is no JSON: {error}") from error
    return summary if isinstance(summary, dict) else {}
