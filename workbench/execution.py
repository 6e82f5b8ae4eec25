"""A notebook executed by papermill in a kernel of this very Python, watched on a console."""

from __future__ import annotations

import asyncio
import json
import os
import re
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from workbench import errors
from workbench.console import Console
from workbench.credentials import withhold
from workbench.errors import NotebookError
from workbench.parameters import read_notebook

if TYPE_CHECKING:
    from nbformat import NotebookNode


def execute(
    source: Path,
    target: Path,
    parameters: dict[str, Any],
    progress: bool,
    environment: Mapping[str, str] | None = None,
) -> None:
    """Execute ``source`` with parameters; the copy at ``target`` is saved after each cell.

    Credentials in URLs among the parameters are passed to the cells, but not saved.
    ``environment`` is the kernel's beside that of this process; an empty value takes one out.

    Raises
    ------
    NotebookError
        When a cell fails or the kernel dies.
    KeyboardInterrupt
        When interrupted, after the kernel was ended.
    """
    import papermill
    from nbclient.exceptions import DeadKernelError

    stages = _stages(read_notebook(source))
    copy = _Copy(target, _credentials(parameters))
    # What the kernel itself says, not its cells, is of interest only when it dies.
    with tempfile.TemporaryFile() as log:
        try:
            with Console(source.stem, len(stages), show=progress) as console:
                papermill.execute_notebook(
                    _escaped(source),
                    None,  # saved by `copy`
                    parameters,
                    engine_name=_engine(),
                    kernel_name="python3",
                    language="python",
                    progress_bar=False,
                    console=console,
                    copy=copy,
                    log=log,
                    environment=_environment(environment or {}),
                )
        except papermill.PapermillExecutionError as error:
            copy.save()  # now with papermill's mark at the cell that failed
            raise NotebookError(_failure(error, stages, target)) from None
        except DeadKernelError as error:
            log.seek(0)
            said = log.read().decode("utf-8", "replace").splitlines()
            last = "".join(f"\n{line}" for line in said[-6:] if "[IPKernelApp]" not in line)
            raise NotebookError(
                f"The kernel of {source.name} died, perhaps for want of memory.{last}\n"
                f"The notebook as far as it ran: {target}"
            ) from error
        except KeyboardInterrupt:
            raise KeyboardInterrupt(
                f"Stopped. The notebook as far as it ran: {target}\nWhat was judged is kept: "
                "the same command again pays only for the rest."
            ) from None


class _Copy:
    """The executed copy: written whole or not at all, and without the given secrets."""

    def __init__(self, target: Path, secrets: dict[str, str]) -> None:
        self.target, self.secrets = target, secrets
        self.notebook: NotebookNode | None = None

    def save(self) -> None:
        import nbformat

        if self.notebook is None:
            return
        text = nbformat.writes(self.notebook)
        for secret, instead in self.secrets.items():
            text = text.replace(json.dumps(secret)[1:-1], instead)
        # A name of its own: another run may be writing to the same folder.
        beside = self.target.with_name(f".{self.target.name}.{os.getpid()}.part")
        try:
            beside.write_text(text, encoding="utf-8")
            beside.replace(self.target)
        finally:
            beside.unlink(missing_ok=True)


def _credentials(parameters: Mapping[str, Any]) -> dict[str, str]:
    """What must not be saved of URLs among the parameters, the longest first, and its mask."""
    found = {}
    for value in parameters.values():
        if isinstance(value, str) and "://" in value:
            clean, withheld, secrets = withhold({"base_url": value})
            if withheld:
                found[value] = clean["base_url"]
                # Very short values would blot out ordinary words.
                found |= {secret: "***" for secret in secrets if len(secret) >= 6}
    return dict(sorted(found.items(), key=lambda pair: len(pair[0]), reverse=True))


def _escaped(path: Path) -> str:
    # papermill formats paths with the parameters, so that braces in a folder's name are fields.
    return str(path).replace("{", "{{").replace("}", "}}")


def _stages(notebook: NotebookNode) -> list[str]:
    """The heading under which each cell stands; empty above the first one."""
    stages, heading = [], ""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            headings = re.findall(r"^#+\s+(.+?)\s*#*$", cell.source, flags=re.MULTILINE)
            heading = headings[-1] if headings else heading
        stages.append(heading)
    return stages


_OWN_ERRORS: Final = frozenset(
    name
    for name, kind in vars(errors).items()
    if isinstance(kind, type) and issubclass(kind, errors.WorkbenchError)
)


def _failure(error: Any, stages: list[str], target: Path) -> str:
    """What is told of a failed cell. Errors that explain themselves come without a traceback."""
    code = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
    # papermill puts a cell with the parameters among those of the source.
    place = stages[min(max(error.cell_index - 1, 0), len(stages) - 1)] if stages else ""
    lines = [
        f"Cell In [{error.exec_count}] of {target.name}{f' ({place})' if place else ''} failed.",
        code.sub("", f"{error.ename}: {error.evalue}"),
    ]
    if error.ename not in _OWN_ERRORS and error.ename != "MlflowException":
        traceback = code.sub("", "\n".join(error.traceback)).splitlines()
        lines[1:] = ["", *traceback[-15:], ""]
    return "\n".join([*lines, f"The notebook as far as it ran: {target}"])


def _engine() -> str:
    """Register, and name, the papermill engine that runs a notebook in this Python."""
    from jupyter_client.kernelspec import KernelSpec, KernelSpecManager
    from jupyter_client.manager import AsyncKernelManager
    from jupyter_core.utils import run_sync
    from papermill.clientwrap import PapermillNotebookClient
    from papermill.engines import NBClientEngine, papermill_engines

    class ThisPython(KernelSpecManager):
        """Knows one kernel: this interpreter, whatever specs lie in the user's home."""

        def get_kernel_spec(self, kernel_name: str) -> KernelSpec:
            return KernelSpec(
                argv=[sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"],
                display_name="Python 3",
                language="python",
                metadata={"debugger": False},
            )

    class Client(PapermillNotebookClient):  # type: ignore[misc]  # papermill has no types
        console: Console

        def create_kernel_manager(self) -> AsyncKernelManager:
            self.km = AsyncKernelManager(
                kernel_name="python3", kernel_spec_manager=ThisPython(parent=self)
            )
            return self.km

        def papermill_execute_cells(self) -> None:
            try:
                super().papermill_execute_cells()
            except KeyboardInterrupt:
                # The cell gets a moment to put away what it has, as it would in Jupyter.
                run_sync(self._interrupt_cell)()
                raise

        async def _interrupt_cell(self, seconds: float = 5.0) -> None:
            running = [
                task
                for task in asyncio.all_tasks()
                if getattr(task.get_coro(), "__name__", "") == "async_execute_cell"
            ]
            await self.km.interrupt_kernel()
            if running:
                ended, _ = await asyncio.wait(running, timeout=seconds)
                for task in ended:
                    task.exception()  # that it was interrupted is known

        def process_message(self, *args: Any, **kwargs: Any) -> Any:
            output = super().process_message(*args, **kwargs)
            if output and output.output_type == "stream":
                self.console.output(output.name, output.text)
            return output

    class Engine(NBClientEngine):  # type: ignore[misc]  # papermill has no types
        @classmethod
        def execute_managed_notebook(
            cls,
            nb_man: Any,
            kernel_name: str,
            *,
            console: Console,
            copy: _Copy,
            log: Any,
            environment: dict[str, str],
            **_: Any,
        ) -> Any:
            copy.notebook, nb_man.save = nb_man.nb, copy.save
            stages = _stages(nb_man.nb)
            console.total = len(stages)
            start = nb_man.cell_start

            def cell_start(cell: NotebookNode, cell_index: int, **more: Any) -> None:
                console.start(cell_index + 1, stages[cell_index])
                start(cell, cell_index, **more)

            nb_man.cell_start = cell_start
            client = Client(
                nb_man, kernel_name=kernel_name, startup_timeout=120, coalesce_streams=True
            )
            client.console = console
            return client.execute(env=environment, stderr=log)

    papermill_engines.register("workbench", Engine)
    return "workbench"


def _environment(more: Mapping[str, str]) -> dict[str, str]:
    """The kernel's environment: this one and ``more``, with less noise, for a reader of text."""
    quiet = {
        "WORKBENCH_PROGRESS": "text",
        "MLFLOW_LOGGING_LEVEL": "WARNING",
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",
        "PYTHONWARNINGS": "ignore::FutureWarning,ignore::DeprecationWarning",
    }
    inline = {"MPLBACKEND": "module://matplotlib_inline.backend_inline"}
    return {**quiet, **os.environ, **inline, **more}
