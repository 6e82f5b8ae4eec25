"""Run a notebook with parameters by papermill, in a kernel of this Python."""

from __future__ import annotations

import contextlib
import io
import json
import logging
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import papermill
from nbclient.exceptions import CellTimeoutError, DeadKernelError

from workbench import errors
from workbench.credentials import secret_params, withhold
from workbench.errors import NotebookError, WorkbenchError
from workbench.experiments.engine import ENGINE, headings, not_run
from workbench.experiments.parameters import (
    check_parameters,
    find_notebook,
    notebook_parameters,
    read_notebook,
)
from workbench.experiments.progress import without_escapes
from workbench.formatting import counted, write_whole
from workbench.models.recording import Player, Recorder
from workbench.models.recording import variables as recording_variables
from workbench.store.dataset import parse_names, parse_raters
from workbench.store.files import read_table

if TYPE_CHECKING:
    from nbformat import NotebookNode

SUMMARY: Final = "summary.json"
"""What a notebook may write into its ``output_dir`` for the command line to print."""


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
        and `workbench.replaying`). The file also holds the parameters of the recorded run, which
        a replay takes where none are given here.
    progress
        Whether to show progress and the output of the cells on stderr.
    environment
        Variables of the kernel, beside those of this process.
    cwd
        Folder that the kernel runs in; the current one by default.
    cell_timeout
        Seconds that each cell may take; None: as long as it needs.
    ends
        Asked several times a second: once it returns something true, the kernel is killed.

    Raises
    ------
    NotebookError
        For an unknown parameter, before anything runs; for a cell that fails, with the cell, its
        error, and the path of the executed copy; and where a cell was not run.
    ReplayError
        If the file of answers cannot be read, before anything runs.
    KeyboardInterrupt
        If interrupted. The kernel is stopped and the executed copy is kept.
    """
    source, folder = find_notebook(notebook), Path(output).resolve()
    given = {**(Player(replay).head.parameters if replay else {}), **(parameters or {})}
    passed = resolve_parameters(source, given, folder)
    copy = _Copy(folder / source.name, masks_of(passed))
    if copy.target == source:
        raise NotebookError(
            f"output={str(output)!r} is the folder of the notebook itself, which the executed "
            "copy would replace. Choose another folder."
        )
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise NotebookError(
            f"The output folder {folder} cannot be written to: {error.strerror}. Name another "
            "with --output."
        ) from None
    variables = _QUIET | os.environ | _INLINE | recording_variables(record, replay)
    variables |= environment or {}
    kernel = {"environment": variables, "folder": str(cwd or Path.cwd()), "ends": ends}
    summary = folder / SUMMARY
    summary.unlink(missing_ok=True)  # one of an earlier run must not pass for one of this run
    started = time.monotonic()
    try:
        _execute(source, copy, passed, show=progress, cell_timeout=cell_timeout, **kernel)
    finally:
        if record:
            # A replay's own folder and store are no part of the recording.
            kept = {k: v for k, v in given.items() if k not in ("output_dir", "tracking_uri")}
            kept = json.loads(masked(json.dumps(kept), masks_of(given)))
            Recorder(record, notebook=source.stem, parameters=kept).save()
    seconds = time.monotonic() - started
    found = json.loads(summary.read_text("utf-8")) if summary.exists() else {}
    return Ran(copy.target, folder, passed, seconds, found)


def _has_columns(data: Any, encoding: Any, named: Mapping[str, Any]) -> bool:
    """Whether a file has all the columns that the values of parameters name."""
    wanted: set[str] = set()
    try:
        for name, value in named.items():
            if name in ("annotators", "verdicts"):
                pairs = parse_raters(name, value).values()
                wanted |= {column for pair in pairs for column in pair if column}
            else:
                wanted |= set(parse_names(name, value))
        with contextlib.redirect_stdout(io.StringIO()):  # the notebook will say it
            return wanted <= set(read_table(data, encoding).columns)
    except WorkbenchError:  # which the notebook will tell
        return False


COLUMNS: Final = ("inputs", "outputs", "expectations", "annotators", "verdicts", "groups")
"""Parameters that name columns of the data."""


def resolve_parameters(source: Path, given: Mapping[str, Any], output: Path) -> dict[str, Any]:
    """Check the values given and add those that depend on where the notebook runs.

    These are the output folder, and the files that defaults name relative to the notebook. Where
    other ``data`` are given, which lack columns that defaults name, all such defaults are None.
    """
    declared = notebook_parameters(source)
    check_parameters(declared, given)
    values = dict(given)
    columns = {p.name: p.default for p in declared if p.name in COLUMNS and p.name not in given}
    if "data" in given and not _has_columns(given["data"], given.get("encoding"), columns):
        values |= dict.fromkeys(columns)
    for name, default in ((p.name, p.default) for p in declared if p.name not in values):
        if name == "output_dir":
            values[name] = str(output)
        elif isinstance(default, str) and not Path(default).is_absolute():
            file = source.parent / default
            values |= {name: str(file.resolve())} if file.is_file() else {}
    return values


# The environment of the kernel: less noise, for a reader of text.
_QUIET: Final = {
    "WORKBENCH_PROGRESS": "text",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "PYDEVD_DISABLE_FILE_VALIDATION": "1",
    "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
}
_INLINE: Final = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}


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
        raise NotebookError(f"{_failure(error, source)}\n{kept}") from None
    except DeadKernelError as error:
        raise NotebookError(
            f"The kernel of {source.name} died, perhaps for lack of memory.\n{kept}"
        ) from error
    except CellTimeoutError as error:
        raise NotebookError(
            f"A cell of {source.name} ran longer than {options['cell_timeout']} s.\n{kept}"
        ) from error
    except (RuntimeError, TimeoutError) as error:  # as jupyter_client says it
        raise NotebookError(f"The kernel of {source.name} did not start: {error}") from error
    except KeyboardInterrupt:
        # nbclient drops the task of the interrupted cell, of which asyncio complains later.
        logging.getLogger("asyncio").addFilter(lambda one: "never retrieved" not in str(one.msg))
        raise KeyboardInterrupt(
            f"Stopped. {kept}\nWhat was judged is kept: the same command again pays only for "
            "the rest."
        ) from None
    if left := not_run(copy.notebook):
        # papermill takes an exit without an error for the end.
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
    return without_escapes("\n".join(lines))


def masks_of(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Return what is not to be saved of the parameters' values, and what takes its place."""
    found = {str(value): "***" for _, value in secret_params(dict(parameters))}
    for value in parameters.values():
        if isinstance(value, str) and "://" in value:
            clean, withheld, secrets = withhold({"base_url": value})
            if withheld:
                found |= {**dict.fromkeys(secrets, "***"), value: clean["base_url"]}
    # Very short values would blot out ordinary words.
    return {secret: mask for secret, mask in found.items() if len(secret) >= 6}


def masked(text: str, masks: Mapping[str, str]) -> str:
    """Return JSON text without the secrets."""
    for secret in sorted(masks, key=len, reverse=True):
        text = text.replace(json.dumps(secret)[1:-1], masks[secret])
    return text


@dataclass
class _Copy:
    """The executed copy: written whole or not at all, and without secrets."""

    target: Path
    masks: Mapping[str, str]
    notebook: NotebookNode = None  # set by the engine

    def save(self, **_: Any) -> None:
        """Write the notebook as it is now."""
        import nbformat

        write_whole(self.target, masked(nbformat.writes(self.notebook), self.masks))
