"""The command line: what it prints, and what it ends with."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from click.testing import CliRunner, Result
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from workbench.cli import closing_words, main

WRITE_SUMMARY = """
import json, pathlib
from workbench.errors import NoLabelsError
if seed == 13:
    raise NoLabelsError("No label under 'quality'. Log some.")
summary = {"table": "        accuracy\\nbefore  0.31\\nafter   0.81", "status": "improved",
           "report": f"{output_dir}/report.html", "tracking_uri": "sqlite:////tmp/x/mlflow.db",
           "experiment": "shop", "judge": {"name": "quality", "version": 2}}
pathlib.Path(output_dir, "summary.json").write_text(json.dumps(summary))
"""


@pytest.fixture
def notebook(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    parameters = 'seed = 0  # of the split\nmodel = "offline:/rubric"\noutput_dir = "output"'
    cells = [
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        new_markdown_cell("## Align the judge"),
        new_code_cell(WRITE_SUMMARY),
    ]
    path = tmp_path / "notebooks" / "4_align.ipynb"
    path.parent.mkdir()
    nbformat.write(new_notebook(cells=cells), path)
    return path


def call(*arguments: str) -> Result:
    return CliRunner().invoke(main, arguments)


def test_run_ends_with_the_table_and_the_places(notebook: Path, tmp_path: Path) -> None:
    result = call("run", "-p", "model", "007", "--output", "out")
    assert result.exit_code == 0, result.output
    out = tmp_path / "out"
    for line in (
        "before  0.31",
        "after   0.81",
        "status:       improved",
        "judge:        quality version 2",
        f"report:       {out}/report.html",
        f"notebook:     {out}/4_align.ipynb",
        "MLflow store: sqlite:////tmp/x/mlflow.db",
    ):
        assert line in result.stdout.splitlines()
    assert 'model = \\"007\\"' in (out / "4_align.ipynb").read_text()


def test_a_failed_run_says_why_in_a_line_and_shows_no_old_table(
    notebook: Path, tmp_path: Path
) -> None:
    (tmp_path / "output").mkdir()
    (tmp_path / "output" / "summary.json").write_text('{"table": "an old table"}')
    result = call("run", "4_align", "-p", "seed", "13")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "error: Cell In [3] of 4_align.ipynb (Align the judge) failed." in result.stderr
    assert "NoLabelsError: No label under 'quality'. Log some." in result.stderr
    assert "Traceback" not in result.stderr
    assert "old table" not in result.output


def test_unknown_parameters_and_notebooks_end_with_2(notebook: Path) -> None:
    result = call("run", "-p", "sed", "1")
    assert result.exit_code == 2
    assert "Did you mean 'seed'?" in result.stderr
    assert 'model = "offline:/rubric"' in result.stderr
    result = call("run", "5_nothing")
    assert result.exit_code == 2
    assert "4_align" in result.stderr
    assert call("run", "-p", "seed").exit_code == 2


def test_an_output_folder_that_cannot_be_made_is_an_error_in_a_line(notebook: Path) -> None:
    (notebook.parent / "file").write_text("")
    result = call("run", "--output", str(notebook.parent / "file" / "out"))
    assert result.exit_code == 1
    assert "error: The output folder" in result.stderr
    assert "--output" in result.stderr
    assert "Traceback" not in result.stderr


def test_params_lists_defaults_and_comments(notebook: Path) -> None:
    result = call("params")
    assert result.exit_code == 0
    assert [line.rstrip() for line in result.stdout.splitlines()] == [
        "seed = 0                   # of the split",
        'model = "offline:/rubric"',
        'output_dir = "output"',
    ]


def test_a_notebook_without_summary_still_says_where_it_lies() -> None:
    words = closing_words({}, Path("/out/n.ipynb"), 3.2)
    assert words.split("\n") == ["", "notebook:     /out/n.ipynb", "time:         3 s"]


def test_a_summary_may_be_anything() -> None:
    words = closing_words({"judge": "tone", "status": ["fine"], "table": 3}, Path("n"), 1)
    assert words.split("\n")[1:5] == ["3", "", "status:       ['fine']", "judge:        tone"]


def test_a_password_in_the_uri_of_a_store_is_not_shown() -> None:
    words = closing_words({"tracking_uri": "postgresql://me:pass@host/db"}, Path("n"), 1)
    assert "pass" not in words
    assert "postgresql://host/db" in words


def test_help_and_version_import_nothing_heavy() -> None:
    """So they are there at once."""
    code = (
        "import sys, workbench.cli; print([m for m in ('mlflow', 'pandas', 'papermill', "
        "'nbformat', 'matplotlib', 'dspy', 'tqdm') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert call("--version").output.startswith("workbench, version ")
    assert "params" in call("--help").output


def test_the_module_is_the_command_too() -> None:
    """With its exit status, which a check in CI relies on."""
    words = [sys.executable, "-m", "workbench.cli", "run", "no-such"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "There is no notebook 'no-such'" in done.stderr


def test_the_command_is_the_console_script() -> None:
    from importlib.metadata import entry_points

    (script,) = entry_points(group="console_scripts", name="workbench")
    assert script.load() is main
