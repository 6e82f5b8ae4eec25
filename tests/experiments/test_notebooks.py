"""The notebooks run as they are, with the embedded model, and keep to their form."""

from __future__ import annotations

import ast
import json
import re
import runpy
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mlflow
import nbformat
import pandas as pd
import pytest
from mlflow.genai.scorers import get_scorer
from PIL import Image

import workbench
from workbench.experiments.notebook import Ran, run_notebook

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
SECRET = "sk-notebook-secret-4711"

# -- form -----------------------------------------------------------------------------------


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_committed_without_outputs_and_with_parameters(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert notebook.metadata.kernelspec.name == "python3"
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.outputs for cell in code] == [[]] * len(code)
    assert {cell.execution_count for cell in code} == {None}
    tagged = [cell for cell in code if "parameters" in cell.metadata.get("tags", [])]
    assert tagged == [code[0]]
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_prose_and_short_calls(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    assert notebook.cells[0].source.startswith("# ")
    code = [cell.source for cell in notebook.cells if cell.cell_type == "code"]
    definitions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
    for source in code:
        assert not [n for n in ast.walk(ast.parse(source)) if isinstance(n, definitions)]
    # The parameters are a list; every other cell is a step.
    assert max(len(ast.parse(source).body) for source in code[1:]) <= 5


# -- runs -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def isolated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder to run in, with a cache of its own, and a secret in the environment."""
    folder = tmp_path_factory.mktemp("notebooks")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WORKBENCH_CACHE", str(folder / "cache"))
        patch.setenv("DSPY_CACHEDIR", str(folder / "cache" / "dspy"))
        patch.setenv("OPENAI_API_KEY", SECRET)
        patch.delenv("WORKBENCH_MODEL", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


@pytest.fixture(scope="module")
def beside() -> set[Path]:
    """What lies beside the notebooks before any of them runs."""
    return set(FOLDER.iterdir())


def ran(name: str, output: Path) -> Ran:
    """Run a notebook with a store of its own, whatever tests before it made the active one.

    MLflow puts the URI of the active store into the environment, which the notebook's kernel
    would inherit, and tests come in any order when several processes share them.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        return run_notebook(name, output=output, progress=False)


@pytest.fixture(scope="module")
def aligned(isolated: Path, beside: set[Path]) -> Ran:
    """4_align on the sample data, with the embedded model."""
    return ran("4_align", isolated / "out")


@pytest.fixture(scope="module")
def walked(isolated: Path, beside: set[Path]) -> Ran:
    """1_quickstart with the embedded model."""
    return ran("1_quickstart", isolated / "quick")


@pytest.fixture(scope="module")
def labelled(isolated: Path, beside: set[Path]) -> Ran:
    """2_label on the sample data, with the embedded model and nobody at the panels."""
    return ran("2_label", isolated / "labelled")


@pytest.fixture(scope="module")
def compared(isolated: Path, beside: set[Path]) -> Ran:
    """5_compare on the sample data, with the embedded model."""
    return ran("5_compare", isolated / "compared")


@pytest.fixture
def open_store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Makes the store and experiment of a run the active ones of this process."""
    before = mlflow.get_tracking_uri()

    def activate(uri: str, experiment: str) -> Any:
        mlflow.set_tracking_uri(uri)
        return mlflow.set_experiment(experiment)

    yield activate
    mlflow.set_tracking_uri(before)


def outputs(ran: Ran, source: str) -> list[Any]:
    """The outputs of the cell that holds ``source``."""
    cells = nbformat.read(ran.notebook, as_version=4).cells
    (found,) = [c for c in cells if c.cell_type == "code" and source in c.source]
    return list(found.outputs)


def printed(ran: Ran, source: str) -> str:
    return "".join(o.text for o in outputs(ran, source) if o.output_type == "stream")


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_alignment_agrees_better_with_people_on_held_out_pairs(aligned: Ran) -> None:
    summary = aligned.summary
    assert summary["status"] == "improved"
    assert summary["seed"] == 0
    assert summary["model"] == "offline:/rubric"
    compared = summary["comparison"]
    assert compared["n"] >= 50
    before, after = (compared[w]["figures"]["accuracy"]["value"] for w in ("before", "after"))
    assert after > before


def test_the_summary_says_where_everything_is(aligned: Ran) -> None:
    summary = aligned.summary
    assert "accuracy" in summary["table"]
    assert Path(summary["report"]).is_file()
    assert summary["tracking_uri"] == f"sqlite:///{aligned.output}/mlflow.db"
    assert summary["experiment"] == "judge-alignment"
    assert summary["judge"] == {"name": "answer_quality", "version": 1, "new": True}
    assert summary["calls"]["judge"] > 100
    assert json.loads((aligned.output / "summary.json").read_text("utf-8")) == summary


def test_the_report_stands_by_itself(aligned: Ran) -> None:
    text = Path(aligned.summary["report"]).read_text("utf-8")
    assert "<svg" in text
    assert "<script" not in text
    assert not re.search(r"""(src|href)\s*=\s*["']?https?:""", text)


def test_no_secret_is_written_anywhere(
    aligned: Ran, walked: Ran, labelled: Ran, compared: Ran
) -> None:
    for path in [p for ran in (aligned, walked, labelled, compared) for p in files(ran.output)]:
        assert SECRET.encode() not in path.read_bytes(), path


def test_nothing_is_written_beside_the_output(
    aligned: Ran, walked: Ran, labelled: Ran, compared: Ran, isolated: Path, beside: set[Path]
) -> None:
    made = {path.name for path in isolated.iterdir()}
    assert made <= {"out", "quick", "labelled", "compared", "cache"}
    assert set(FOLDER.iterdir()) == beside


@pytest.mark.parametrize("name", ["aligned", "walked", "labelled", "compared"])
def test_every_picture_is_shown_and_nothing_is_amiss(
    name: str, request: pytest.FixtureRequest
) -> None:
    ran: Ran = request.getfixturevalue(name)
    cells = [c for c in nbformat.read(ran.notebook, as_version=4).cells if c.cell_type == "code"]
    for cell in cells:
        pictures = sum("image/png" in o.get("data", {}) for o in cell.outputs)
        loop = "for source" in cell.source  # of recorded verdicts, which the sample has none of
        assert pictures == (0 if loop else cell.source.count("workbench.plot_")), cell.source
        for output in cell.outputs:
            assert output.output_type != "error"
            if output.output_type == "stream":
                assert "Warning" not in output.text
                # The one thing to be said there is that no model was named.
                if output.name == "stderr":
                    assert output.text.startswith("workbench: no model was named")
                    assert len(output.text.splitlines()) == 1
            assert "object at 0x" not in str(output)


def test_the_judge_is_registered_for_the_workbench_and_for_mlflow(
    aligned: Ran, open_store: Any
) -> None:
    summary = aligned.summary
    experiment = open_store(summary["tracking_uri"], summary["experiment"])
    judge = workbench.load_judge("answer_quality")
    assert judge.instructions.strip() == printed(aligned, "alignment.proposed").strip()
    mlflows = get_scorer(name="answer_quality", experiment_id=experiment.experiment_id)
    assert mlflows.instructions == judge.instructions
    values = {"excellent", "good", "fair", "poor"}
    shown = {"inputs": {"query": "How heavy is it?"}, "outputs": "It weighs 2 kg."}
    assert judge(**shown).value == mlflows(**shown).value
    assert judge(**shown).value in values


def test_a_second_run_repeats_nothing(aligned: Ran, open_store: Any) -> None:
    open_store(aligned.summary["tracking_uri"], aligned.summary["experiment"])
    before = assessments()
    again = run_notebook("4_align", output=aligned.output, progress=False)
    assert again.summary["judge"] == {"name": "answer_quality", "version": 1, "new": False}
    assert again.summary["calls"] == {"judge": 0, "reflection": 0}
    assert again.summary["comparison"] == aligned.summary["comparison"]
    assert assessments() == before
    assert len(workbench.history("answer_quality")) == 1


def assessments() -> Counter[tuple[str, str]]:
    """How many assessments of each kind the active experiment holds, a trace."""
    found: Counter[tuple[str, str]] = Counter()
    for trace in mlflow.search_traces(return_type="list", include_spans=False, max_results=1000):
        found["traces", ""] += 1
        found.update((a.name, a.source.source_id or "") for a in trace.info.assessments)
    return found


def test_the_picture_of_readme_shows_what_the_main_job_gives(aligned: Ran) -> None:
    docs = FOLDER.parent / "docs"
    pictures = runpy.run_path(str(docs / "pictures.py"))
    said = Image.open(docs / "img" / "before_after.png").info["Description"]
    hint = "the figures have changed: draw the picture anew with `python docs/pictures.py`"
    assert said == pictures["description"](aligned.summary), hint


def test_the_sample_is_stored_whole(aligned: Ran, open_store: Any) -> None:
    open_store(aligned.summary["tracking_uri"], aligned.summary["experiment"])
    name = "answer_quality"
    assert assessments() == {
        ("traces", ""): 153,
        (name, "ana"): 153,
        (name, "ben"): 150,
        (name, "chloe"): 153,
        (name, "offline:/rubric"): 153,
    }


def test_the_comparison_is_logged_with_a_row_for_each_judge(
    compared: Ran, open_store: Any, tmp_path: Path
) -> None:
    """The run of 5_compare holds the table, and its embedded SIMBA beats the original there."""
    open_store(f"sqlite:///{compared.output}/mlflow.db", "compare-optimizers")
    (run,) = mlflow.search_runs(
        filter_string="tags.mlflow.runName LIKE 'compare optimizers%'", output_format="list"
    )
    path = mlflow.artifacts.download_artifacts(
        run_id=run.info.run_id, artifact_path="comparison.csv", dst_path=str(tmp_path)
    )
    table = pd.read_csv(path, index_col="judge")
    assert list(table.index) == [
        "original", "majority label", "few-shot", "workbench SIMBA", "MLflow GEPA",
    ]  # fmt: skip
    assert table["n"].nunique() == 1
    assert table.loc["workbench SIMBA", "accuracy"] > table.loc["original", "accuracy"]
    assert table.loc["MLflow GEPA", "judge calls"] > 0
    assert "failed" not in set(table["status"])


def test_the_quickstart_walks_through_every_step(walked: Ran, open_store: Any) -> None:
    open_store(f"sqlite:///{walked.output}/mlflow.db", "quickstart")
    name = "answer_quality"
    # One verdict was logged by hand and then, marked with the judge's version, by assess.
    counted = {("traces", ""): 55, (name, "ana"): 55, (name, "offline:/rubric"): 56}
    assert assessments() == counted
    assert re.search(r"0\.\d\d before, 0\.\d\d after, on 35 traces", printed(walked, "improvement"))
    assert workbench.load_judge(name).instructions.strip() in printed(walked, "judge.align(")


def test_the_labelling_notebook_decides_and_marks_what_is_earlier(
    labelled: Ran, open_store: Any
) -> None:
    """A table stands for each panel; one item is decided, and its labels stay."""
    open_store(f"sqlite:///{labelled.output}/mlflow.db", "labelling")
    name = "answer_quality"
    for source, said in (("workbench.LabelPanel(", "labelled by"), ("AdjudicationPanel(", "51")):
        (shown,) = outputs(labelled, source)
        assert set(shown.data) == {"text/plain", "text/html"}
        assert said in shown.data["text/html"]
    decisions = workbench.disagreements(name)["decision"]["by"]
    assert decisions.value_counts().to_dict() == {"you": 1}
    assert len(workbench.rubric_history(name)) == 2
    assert len(workbench.earlier_labels(name)) == 456
    queue = workbench.review_queue("pilot")
    assert queue.annotators == ("ana", "ben", "chloe", "you")
    assert queue.items["done"].any()
    assert not queue.items["done"].all()


def test_a_column_that_the_file_lacks_ends_the_run_before_anything_is_stored(
    isolated: Path,
) -> None:
    (isolated / "out").mkdir(exist_ok=True)
    own = isolated / "out" / "own.csv"
    own.write_text("question,reply,rating\nq,r,good\n")
    with pytest.raises(workbench.WorkbenchError, match=r"inputs: .*'query'.*'question'.*'reply'"):
        run_notebook("4_align", parameters={"data": str(own)}, output="out/own", progress=False)
