"""Run a notebook with parameters by papermill, in a kernel of this Python."""

from __future__ import annotations

import json
import logging
import os
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import nbformat
import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError
from papermill.translators import PythonTranslator

from workbench import errors
from workbench.credentials import secret_params, withhold
from workbench.errors import NotebookError
from workbench.experiments.engine import ENGINE, headings
from workbench.experiments.parameters import (
    FOLDERS,
    check_parameters,
    find_notebook,
    notebook_parameters,
    read_notebook,
)
from workbench.formatting import counted, write_whole
from workbench.models.recording import Player, Recorder
from workbench.models.recording import variables as recording_variables


@dataclass(frozen=True)
class Ran:
    """A notebook that ran: the executed copy, what was passed, and its ``summary.json``."""

    notebook: Path
    parameters: dict[str, Any]
    seconds: float
    summary: dict[str, Any]


def run_notebook(
    notebook: str | Path,
    *,
    parameters: Mapping[str, Any] | None = None,
    output: str | Path = "output",
    record: str | Path | None = None,
    replay: str | Path | None = None,
    progress: bool = True,
    environment: Mapping[str, str] | None = None,
    cwd: str | Path | None = None,
    cell_timeout: int | None = None,
    ends: Callable[[], object] = lambda: None,
) -> Ran:
    """Execute a notebook with parameters and keep the executed copy in the folder ``output``.

    It runs in a kernel of this Python, in ``cwd`` or the current folder, so that relative paths
    among the parameters mean what they say. A variable that is empty in ``environment`` is not
    set there. ``record`` and ``replay`` are files of model answers;
    a replay takes its parameters from the file where none are given. With ``progress`` the output
    of the cells is shown on stderr. ``ends`` is asked several times a second: once it returns
    something true, the kernel is killed. Secrets among the parameters reach the cells, but no file.
    What goes wrong is a `NotebookError`; after Ctrl-C, too, the executed copy is kept.
    """
    source, folder = find_notebook(notebook), Path(output).expanduser().resolve()
    given = {**(Player(replay).head.parameters if replay else {}), **(parameters or {})}
    passed = resolve_parameters(source, given, folder)
    copy = _Copy(folder / source.name, {**passed, **(environment or {})})
    if copy.target == source:
        raise NotebookError(
            f"output={str(output)!r} is the folder of the notebook itself, which the executed "
            "copy would replace. Choose another folder."
        )
    recorder = None
    if record:
        # A replay's own folder and store are no part of the recording.
        kept = {k: v for k, v in given.items() if k not in ("output_dir", "tracking_uri")}
        told = without_secrets(kept, given)
        is_named = source.parent in map(Path.resolve, FOLDERS)
        name = source.stem if is_named else os.path.relpath(source)
        recorder = Recorder(record, notebook=name, parameters=told)
    summary = folder / "summary.json"
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
        summary.unlink(missing_ok=True)  # one of an earlier run must not pass for one of this run
    own = environment or {}
    variables = _QUIET | os.environ | {"MPLBACKEND": _INLINE}
    variables |= {**recording_variables(record, replay), **own}
    variables = {k: v for k, v in variables.items() if v or k not in own}
    started = time.monotonic()
    try:
        _execute(
            source, copy, passed, show=progress, cell_timeout=cell_timeout, ends=ends,
            environment=variables, folder=str(cwd or Path.cwd()),
        )  # fmt: skip
    finally:
        if recorder is not None:
            recorder.save()
    found = json.loads(summary.read_text("utf-8")) if summary.exists() else {}
    return Ran(copy.target, passed, time.monotonic() - started, found)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Raise what a file system refuses within it as a `NotebookError` that names the folder."""
    try:
        yield
    except OSError as error:
        raise NotebookError(
            f"The output folder {folder} cannot be written to: {error.strerror}. Name another "
            "(output=, --output)."
        ) from error


# -- parameters -----------------------------------------------------------------------------

COLUMNS: Final = ("inputs", "outputs", "expectations", "annotators", "verdicts", "groups")
"""Parameters that name columns of the data."""

SAMPLE: Final = "shop_answers.csv"


def resolve_parameters(source: Path, given: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Check the values given and add those that depend on where the notebook runs.

    These are the output folder, and the files that defaults name relative to the notebook. Where
    ``data`` are given in place of the sample, defaults that name its columns are None.
    """
    declared = notebook_parameters(source)
    check_parameters(declared, given)
    values = dict(given)
    if "data" in given and any(Path(str(p.default)).name == SAMPLE for p in declared):
        values |= {p.name: None for p in declared if p.name in COLUMNS and p.name not in given}
    for name, default in ((p.name, p.default) for p in declared if p.name not in values):
        if name == "output_dir":
            values[name] = str(output)
        elif isinstance(default, str) and not Path(default).is_absolute():
            file = source.parent / default
            with suppress(OSError, ValueError):  # of a text that is too long to be a path
                values |= {name: str(file.resolve())} if file.is_file() else {}
    return values


def without_secrets(data: Any, parameters: Mapping[str, Any]) -> Any:
    """Return plain data, such as a notebook, without the secrets among the parameters."""
    secrets = dict(secret_params(dict(parameters))).values()
    found = {str(value): "***" for value in secrets}
    for value in parameters.values():
        # A text that quotes a URL, such as instructions, does not begin with one.
        if isinstance(value, str) and re.match(r"\s*[a-z][\w+.-]*://", value, re.IGNORECASE):
            clean, withheld, parts = withhold({"base_url": value})
            if withheld:
                found |= {**dict.fromkeys(parts, "***"), value: clean["base_url"]}
    forms: dict[str, str] = {}
    for secret in (each for each in found if len(each) >= 6):  # shorter ones are often words
        quoted = (PythonTranslator.translate(secret), repr(secret), json.dumps(secret))
        forms |= dict.fromkeys([secret, *(each[1:-1] for each in quoted)], found[secret])
    longest_first = sorted(forms, key=len, reverse=True)

    def masked(value: Any) -> Any:
        if isinstance(value, dict):
            # A word is a name, such as that of a cell's field, also where it equals a secret.
            return {
                key if str(key).replace("_", "").isalpha() else masked(key): masked(one)
                for key, one in value.items()
            }
        if isinstance(value, (list, tuple)):
            return [masked(one) for one in value]
        if isinstance(value, str):
            for form in longest_first:
                value = value.replace(form, forms[form])
            return value
        return "***" if value in secrets and str(value) in forms else value

    return masked(data)


# -- execution ------------------------------------------------------------------------------

# The environment of the kernel: less noise, for a reader of text.
_QUIET: Final = {
    "WORKBENCH_PROGRESS": "text",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
}
_INLINE: Final = "module://matplotlib_inline.backend_inline"


@dataclass
class _Copy:
    """The executed copy: written whole or not at all, and without secrets."""

    target: Path
    parameters: Mapping[str, Any]
    notebook: Any = None  # set by the engine

    def save(self, **_: Any) -> None:
        """Write the notebook as it is now."""
        shown = nbformat.from_dict(without_secrets(self.notebook, self.parameters))
        with writable(self.target.parent):
            write_whole(self.target, nbformat.writes(shown))


def _execute(source: Path, copy: _Copy, parameters: dict[str, Any], **options: Any) -> None:
    kept = f"The notebook as far as it ran: {copy.target}"
    try:
        papermill.execute_notebook(
            # papermill formats paths: braces in the name of a folder would be fields.
            str(source).replace("{", "{{").replace("}", "}}"),
            None,  # written by `copy`
            parameters,
            engine_name=ENGINE,
            kernel_name="python3",
            language="python",
            progress_bar=False,
            copy=copy,
            **options,
        )
    except papermill.PapermillExecutionError as error:
        copy.save()  # now with papermill's mark at the cell that failed
        raise NotebookError(f"{_failure(error, source)}\n{kept}") from error
    except (RuntimeError, TimeoutError) as error:  # of jupyter_client, unless it is one of these
        told = f"The kernel of {source.name} did not start: {error}"
        if isinstance(error, DeadKernelError):
            told = f"The kernel of {source.name} died, perhaps for lack of memory."
        elif isinstance(error, CellTimeoutError):
            told = f"A cell of {source.name} ran longer than {options['cell_timeout']} s."
        raise NotebookError(f"{told}\n{kept}") from error
    except KeyboardInterrupt:
        # nbclient drops the task of the interrupted cell, of which asyncio complains later.
        logging.getLogger("asyncio").addFilter(lambda one: "never retrieved" not in str(one.msg))
        raise KeyboardInterrupt(
            f"Stopped. {kept}\nWhat was judged is kept: the same command again pays only for "
            "the rest."
        ) from None
    left = sum(
        cell.cell_type == "code" and cell.execution_count is None and bool(cell.source.strip())
        for cell in copy.notebook.cells
        if "skip-execution" not in cell.metadata.get("tags", [])
    )
    if left:  # papermill takes an exit without an error for the end
        raise NotebookError(
            f"{counted(left, 'cell')} of {source.name} did not run, since one before ended the "
            f"notebook, as exit() does.\n{kept}"
        )


def _failure(error: papermill.PapermillExecutionError, source: Path) -> str:
    """Describe a failed cell: with its traceback, unless the error explains itself."""
    # papermill puts a cell with the parameters among those of the source.
    stage = headings(read_notebook(source))[max(error.cell_index - 1, 0)]
    lines = [
        f"Cell In [{error.exec_count}] of {source.name}{f' ({stage})' if stage else ''} failed.",
        f"{error.ename}: {error.evalue}",
    ]
    if not hasattr(errors, error.ename) and error.ename != "MlflowException":
        lines[1:] = ["", *"\n".join(error.traceback).splitlines()[-15:], ""]
    return re.sub(r"\x1b\[[0-9;]*m", "", "\n".join(lines))  # without colours
