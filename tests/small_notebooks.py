"""Small notebooks with parameters, as users have them, and the processes that they start."""

from __future__ import annotations

from pathlib import Path

import nbformat
from nbformat.v4 import new_code_cell, new_notebook

# What `workbench.record` publishes, without the import of the workbench, which takes seconds.
RECORD = (
    "from IPython.display import publish_display_data\n"
    "def record(name, value):\n"
    "    data = {'name': name, 'value': value}\n"
    "    publish_display_data({'application/vnd.judge-workbench.record+json': data})\n"
)


def write(path: Path, *sources: str, parameters: str = "seed = 0") -> Path:
    """A notebook with a parameters cell, and ``record`` for the sources."""
    cells = [new_code_cell(parameters, metadata={"tags": ["parameters"]}), new_code_cell(RECORD)]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=[*cells, *map(new_code_cell, sources)]), path)
    return path


def lives(process: int) -> bool:
    """Whether a process runs; one that has ended may still wait for its parent to notice."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False
