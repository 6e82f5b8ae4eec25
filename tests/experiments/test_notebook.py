"""Notebooks run with parameters in this very Python, and say what went wrong."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from workbench.errors import NotebookError
from workbench.experiments.notebook import Ran, resolve_parameters, run_notebook, without_secrets
from workbench.experiments.parameters import find_notebook, notebook_parameters

PARAMETERS = 'seed = 0\noutput_dir = "output"\ndata = "data/table.csv"\nother = "no/such.csv"'


def write(path: Path, *sources: str, parameters: str = PARAMETERS) -> Path:
    """A notebook with a heading, a parameters cell, and a second heading above the sources."""
    cells = [
        new_markdown_cell("# A title\n\n## First stage"),
        new_code_cell(parameters, metadata={"tags": ["parameters"]}),
        new_markdown_cell("## Second stage\ntext"),
        *(new_code_cell(source) for source in sources),
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    nbformat.write(new_notebook(cells=cells), path)
    return path


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    return tmp_path


def outputs(ran: Ran) -> str:
    cells = nbformat.read(ran.notebook, as_version=4).cells
    return "".join(
        output.text for cell in cells for output in cell.get("outputs", []) if "text" in output
    )


@pytest.mark.timeout(60)
def test_long_lines_end_a_run_no_later_than_short_ones(folder: Path) -> None:
    """nbclient by itself would look through each of them for minutes."""
    source = write(folder / "n.ipynb", *["print('first\\rlast ' + 'x' * 240_000)"] * 3)
    assert outputs(run_notebook(source, progress=False)).count("last x") == 3


def test_a_notebook_runs_here_with_its_parameters(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """In this interpreter, in the current folder, whatever kernel the home names."""
    wrong = folder / "jupyter" / "kernels" / "python3"
    wrong.mkdir(parents=True)
    spec = {"argv": ["/bin/false", "{connection_file}"], "display_name": "x", "language": "python"}
    (wrong / "kernel.json").write_text(json.dumps(spec))
    monkeypatch.setenv("JUPYTER_PATH", str(folder / "jupyter"))
    (folder / "notebooks" / "data").mkdir(parents=True)
    (folder / "notebooks" / "data" / "table.csv").write_text("a\n1\n")
    source = write(
        folder / "notebooks" / "tiny {a}.ipynb",
        "import json, os, pathlib, sys\nprint(sys.executable)\nprint(os.getcwd(), seed)\n"
        "print(data, other)\nsys.stderr.write('\\r1/2\\r2/2\\n')",
        "pathlib.Path(output_dir, 'summary.json').write_text(json.dumps({'status': 'improved'}))",
    )
    (folder / "out").mkdir()
    (folder / "out" / "summary.json").write_text('{"status": "stale"}')
    ran = run_notebook("tiny {a}", parameters={"seed": 7}, output="out")
    assert ran.notebook == folder / "out" / source.name
    assert ran.summary == {"status": "improved"}
    assert ran.parameters == {
        "seed": 7,
        "output_dir": str(folder / "out"),
        "data": str(folder / "notebooks" / "data" / "table.csv"),
    }
    text = outputs(ran)
    assert sys.executable in text
    assert f"{folder} 7" in text
    assert f"{ran.parameters['data']} no/such.csv" in text
    assert "1/2" not in text  # of a rewritten line the last state is kept
    shown = capfd.readouterr().err
    assert "First stage" not in shown  # in which nothing is printed
    assert shown.index("] Second stage") < shown.index("1/2")
    assert f"{folder} 7" in shown


@pytest.mark.parametrize("content", ['[{"status": "improved"}]', '{"half'])
def test_another_summary_than_ours_is_none(folder: Path, content: str) -> None:
    """A notebook may write a file by this name for itself."""
    write(
        folder / "n.ipynb",
        f"import pathlib\npathlib.Path(output_dir, 'summary.json').write_text({content!r})",
    )
    assert run_notebook("n.ipynb", progress=False).summary == {}


def test_parameters_are_checked_before_anything_runs(folder: Path) -> None:
    source = write(folder / "n.ipynb", "open('ran', 'w')")
    with pytest.raises(NotebookError, match="Did you mean 'seed'"):
        run_notebook(source, parameters={"sead": 1})
    with pytest.raises(NotebookError, match="no whole number"):
        run_notebook(source, parameters={"seed": "many"})
    assert not (folder / "ran").exists()
    assert not (folder / "output").exists()


def test_a_failing_cell_is_named_and_what_ran_is_kept(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write(
        folder / "n.ipynb",
        "print('before')",
        "from workbench.errors import TooFewPairsError\n"
        "raise TooFewPairsError('Only 6 usable pairs.\\nLabel more.')",
        "print('after')",
    )
    (folder / "out").mkdir()
    (folder / "out" / "summary.json").write_text('{"status": "stale"}')
    with pytest.raises(NotebookError) as caught:
        run_notebook(source, output="out")
    message = str(caught.value)
    assert "In [4]" in message
    assert "Second stage" in message
    assert "TooFewPairsError: Only 6 usable pairs.\nLabel more." in message
    assert str(folder / "out" / "n.ipynb") in message
    assert "Traceback" not in message
    kept = (folder / "out" / "n.ipynb").read_text()
    assert "before" in capfd.readouterr().err
    assert '"before\\n"' in kept
    assert '"after\\n"' not in kept
    assert not (folder / "out" / "summary.json").exists()


def test_a_kernel_that_dies_is_told(folder: Path) -> None:
    source = write(folder / "n.ipynb", "import os\nos._exit(9)")
    with pytest.raises(NotebookError, match=r"kernel of n\.ipynb died"):
        run_notebook(source, progress=False)


def test_an_interrupted_run_ends_its_kernel_and_keeps_what_ran(folder: Path) -> None:
    source = write(
        folder / "n.ipynb",
        "import os, time\nprint('early')\nopen('kernel', 'w').write(str(os.getpid()))",
        "try:\n    time.sleep(60)\nfinally:\n    open('put_away', 'w').close()",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", "from workbench.cli import main; main()", "run", str(source)],
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 60
    while not (folder / "kernel").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(0.7)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=30)
    assert process.returncode == 130
    assert f"Stopped. The notebook as far as it ran: {folder / 'output' / 'n.ipynb'}" in said
    assert "pays only for the rest" in said
    assert "Traceback" not in said, said
    assert (folder / "put_away").exists()
    assert "early" in (folder / "output" / "n.ipynb").read_text()
    kernel = int((folder / "kernel").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(kernel, 0)


def test_notebooks_are_found_by_path_and_by_name(folder: Path) -> None:
    near = write(folder / "notebooks" / "mine.ipynb")
    far = write(folder / "elsewhere" / "other.ipynb")
    assert find_notebook("mine") == near
    assert find_notebook("mine.ipynb") == near
    assert find_notebook("notebooks/mine.ipynb") == near
    assert find_notebook(far) == far
    assert find_notebook("elsewhere/other") == far
    with pytest.raises(NotebookError, match=r"'yours'.*mine"):
        find_notebook("yours")


def test_secrets_among_the_parameters_reach_the_cells_but_no_file(folder: Path) -> None:
    source = write(
        folder / "n.ipynb",
        "assert 'hidden' in url and 'hidden' in api_key\nprint(url, api_key, api_kind)\n1 / 0",
        parameters="url = None\napi_key = None\napi_kind = None",
    )
    values = {
        "url": "https://me:hidden-one@host/v1?key=hidden-two",
        "api_key": "hidden-three",
        "api_kind": "ordinary",
    }
    with pytest.raises(NotebookError, match="ZeroDivisionError"):
        run_notebook(source, parameters=values, progress=False)
    files = [path for path in (folder / "output").rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["n.ipynb"]
    text = files[0].read_text()
    assert "hidden-" not in text
    assert "https://host/v1 *** ordinary" in text
    assert "papermill-error-cell" in text


@pytest.mark.parametrize("secret", ["pässwörter1", 'se"cret12\\x', 'it\'s \n"both"', 7654321])
def test_a_secret_is_found_however_it_is_written(folder: Path, secret: str | int) -> None:
    """As a parameter, as a cell shows and prints it, and as JSON."""
    source = write(
        folder / "n.ipynb",
        "import json\nprint(api_key)\nprint(json.dumps(api_key))\napi_key",
        parameters="api_key = None\nfigure = 0.0",
    )
    given = {"api_key": secret, "figure": 0.7654321}
    ran = run_notebook(source, parameters=given, progress=False)
    notebook = nbformat.read(ran.notebook, as_version=4)
    shown = [f"{cell.source}{cell.get('outputs')}" for cell in notebook.cells]
    assert "***" in shown[2]
    assert shown[4].count("***") == 3
    assert notebook.metadata.papermill.parameters.api_key == "***"
    assert notebook.metadata.papermill.parameters.figure == 0.7654321
    parts = re.findall(r"\w{4,}", str(secret))
    assert not [part for part in parts if part in ran.notebook.read_text().replace("0.7654321", "")]


def test_what_is_no_secret_stays() -> None:
    """Texts that quote a URL, and names of fields, also where a secret is the same word."""
    given = {"instructions": "Does it follow https://acme.org/style? Answer Yes or No."}
    assert without_secrets(given, given) == given
    store = {"tracking_uri": "mssql+pyodbc://me:word-of-mine@host/db?driver=ODBC Driver 17"}
    assert "word-of-mine" not in str(without_secrets(store, store))
    data = {"source": "", "cell_type": "code", "tok-1234": 1}
    assert without_secrets(data, {"key": "source"}) == data
    assert "tok-1234" not in without_secrets(data, {"key": "tok-1234"})


def test_defaults_stay_as_they_are(folder: Path) -> None:
    """Texts too long to be a path, and columns unless it is the sample that they belong to."""
    parameters = "data = 'own.csv'\ngroups = 'customer'\ntext = 'long' * 1"
    parameters = parameters.replace("'long' * 1", repr("long" * 100))
    source = write(folder / "n.ipynb", parameters=parameters)
    given = {"data": "other.csv"}
    assert resolve_parameters(source, notebook_parameters(source), given, folder) == given
    sample = write(folder / "n.ipynb", parameters=parameters.replace("own", "../data/shop_answers"))
    assert resolve_parameters(sample, notebook_parameters(sample), given, folder) == {
        **given, "groups": None,
    }  # fmt: skip


def test_the_notebook_itself_is_never_replaced(folder: Path) -> None:
    source = write(folder / "n.ipynb")
    with pytest.raises(NotebookError, match="Choose another folder"):
        run_notebook(source, output=folder)


def test_what_has_no_parameters_takes_none(folder: Path) -> None:
    source = write(folder / "n.ipynb", "print('ran')", parameters="")
    ran: Any = run_notebook(source, progress=False)
    assert ran.parameters == {}
    assert ran.summary == {}
    assert "ran" in outputs(ran)


@pytest.mark.slow
def test_two_runs_may_write_to_one_folder(folder: Path) -> None:
    """Both end well; the executed copy is that of the one that ended last."""
    source = write(folder / "nb.ipynb", *["import time\ntime.sleep(0.2)"] * 5)
    code = (
        "import sys; from workbench.experiments.notebook import run_notebook;"
        "run_notebook(sys.argv[1], parameters={}, output='out', progress=False)"
    )
    runs = [
        subprocess.Popen([sys.executable, "-c", code, str(source)], stderr=subprocess.PIPE)
        for _ in range(2)
    ]
    told = [run.communicate(timeout=120)[1].decode() for run in runs]
    assert [run.returncode for run in runs] == [0, 0], told
    assert [p.name for p in (folder / "out").iterdir()] == ["nb.ipynb"]


def test_a_replay_takes_notebook_and_parameters_from_the_recording(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """What is given counts more; secrets, the output folder and the store are not recorded."""
    from workbench.cli import main

    parameters = f"{PARAMETERS}\nbase_url = None\napi_key = None\ntracking_uri = None"
    write(
        folder / "notebooks" / "asks.ipynb", "print('seed', seed, base_url)", parameters=parameters
    )
    given = {
        "seed": 7,
        "base_url": "http://ana:hunter2hunter2@127.0.0.1:1/v1",
        "api_key": "sk-not-to-be-kept",
        "tracking_uri": "sqlite:///elsewhere.db",
    }
    run_notebook("asks", parameters=given, output="out", record="answers.jsonl")
    head = json.loads((folder / "answers.jsonl").read_text().splitlines()[0])
    assert head["notebook"] == "asks"
    assert head["parameters"] == {
        "seed": 7,
        "base_url": "http://127.0.0.1:1/v1",
        "api_key": "***",
    }
    capfd.readouterr()
    command = ["run", "--replay", "answers.jsonl", "--output", "again"]
    main(command, standalone_mode=False)
    assert "seed 7 http://127.0.0.1:1/v1" in capfd.readouterr().err
    main([*command, "-p", "seed", "8"], standalone_mode=False)
    assert "seed 8 http://127.0.0.1:1/v1" in capfd.readouterr().err


def test_a_recording_names_a_notebook_of_ones_own_by_its_path(
    folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Also where ``notebooks/`` has one of the same name."""
    from workbench.cli import main

    write(folder / "notebooks" / "n.ipynb", "print('that of the project')")
    source = write(folder / "sub" / "n.ipynb", "print('my own')")
    run_notebook(source, output="out", record="answers.jsonl", progress=False)
    main(["run", "--replay", "answers.jsonl", "--output", "again"], standalone_mode=False)
    assert "my own" in capfd.readouterr().err


def test_an_output_folder_that_is_lost_meanwhile_is_told(folder: Path) -> None:
    source = write(
        folder / "n.ipynb", "import shutil\nshutil.rmtree(output_dir)", parameters=PARAMETERS
    )
    with pytest.raises(NotebookError, match="cannot be written to"):
        run_notebook(source, output="out", progress=False)


def test_a_long_line_takes_no_longer_than_short_ones(folder: Path) -> None:
    source = write(folder / "n.ipynb", "print('x' * 200_000, 'a\\rb\\nc', sep='\\n')")
    ran = run_notebook(source, progress=False)
    assert ran.seconds < 20
    text = nbformat.read(ran.notebook, as_version=4).cells[-1].outputs[0].text
    assert text == "x" * 200_000 + "\nb\nc\n"


def test_a_kernel_ends_by_itself(folder: Path) -> None:
    """What a notebook leaves to do at the end, such as sending what waits, is done."""
    source = write(
        folder / "n.ipynb", "import atexit, pathlib\natexit.register(pathlib.Path('ended').touch)"
    )
    run_notebook(source, progress=False)
    assert (folder / "ended").exists()


@pytest.mark.parametrize(("length", "transport"), [(0, "ipc"), (100, "tcp")])
def test_a_kernel_takes_no_port_that_another_may_take_first(
    folder: Path, monkeypatch: pytest.MonkeyPatch, length: int, transport: str
) -> None:
    """It would hang: sockets are files, where their path is not too long, and are deleted."""
    place = folder / ("x" * length)
    place.mkdir(exist_ok=True)
    monkeypatch.setattr("tempfile.tempdir", str(place))
    source = write(
        folder / "n.ipynb",
        "from ipykernel.connect import get_connection_info\n"
        "print(get_connection_info(unpack=True)['transport'])",
    )
    assert outputs(run_notebook(source, progress=False)) == transport + "\n"
    assert not list(place.glob("kernel-*"))


def test_a_kernel_that_finds_no_folder_for_its_sockets_is_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where the disk of temporary files is full; the output folder is not to blame."""
    write(folder / "n.ipynb")
    monkeypatch.setattr("tempfile.tempdir", str(folder / "none"))
    with pytest.raises(NotebookError, match=r"The kernel of n\.ipynb did not start: .*none") as it:
        run_notebook(folder / "n.ipynb", progress=False)
    assert it.value.__cause__ is None
