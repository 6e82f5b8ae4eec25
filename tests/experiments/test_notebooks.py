"""The notebooks run as they are, with the embedded model, and keep to their form."""

from __future__ import annotations

import ast
import json
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import mlflow
import nbformat
import pandas as pd
import pytest
from mlflow.genai.scorers import get_scorer
from running import SECRET, MainRun, active_store, run_here, summary
from small_notebooks import write

import workbench
from workbench.errors import ArgumentError, TableError
from workbench.experiments.notebook import run_notebook
from workbench.experiments.parameters import find_notebook, notebook_parameters

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
OTHERS = ("1_quickstart", "2_label", "3_agreement", "5_compare", "6_experiments")
MODELS = {"model": ["a", "b"], "base_url": ["x", "y"], "n_labels": [10, 20], "seeds": 1}
NAME = "answer_quality"


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
def beside(main_run: MainRun) -> set[Path]:
    """What lies beside the notebooks before any of these tests runs one."""
    return set(FOLDER.iterdir())


@pytest.fixture(scope="module")
def isolated(
    main_run: MainRun, beside: set[Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Path]:
    """A folder to run in, with the answers of the main job, and a secret in the environment."""
    folder = tmp_path_factory.mktemp("notebooks")
    shutil.copytree(main_run.cache, folder / "cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("WORKBENCH_CACHE", str(folder / "cache"))
        patch.setenv("DSPY_CACHEDIR", str(folder / "cache" / "dspy"))
        patch.setenv("OPENAI_API_KEY", SECRET)
        patch.delenv("WORKBENCH_MODEL", raising=False)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        yield folder


@pytest.fixture(scope="module")
def any_grid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A notebook that takes the parameters of a sweep of alignments, and is done at once."""
    return write(
        tmp_path_factory.mktemp("own") / "own.ipynb",
        "for name in ('after', 'after_kappa', 'usd_per_1000'):\n    record(name, 0.5 + seed / 10)",
        parameters="seed = 0\nn_labels = None\nmodel = None\nbase_url = None\nmax_steps = None",
    )


@pytest.fixture(scope="module")
def runs(isolated: Path, main_run: MainRun, any_grid: Path) -> dict[str, Path]:
    """The executed notebooks: the main job's and, at the same time, the others.

    Alignments of a sweep are those of the guide's command, which its tests run.
    """
    less = {"6_experiments": {"notebook": str(any_grid), **MODELS}, "5_compare": {"rows": 90}}
    with pytest.MonkeyPatch.context() as patch:
        # MLflow puts the URI of the active store there, which the kernels would inherit.
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        with ThreadPoolExecutor() as pool:
            run = partial(run_notebook, progress=False)
            others = {
                name: pool.submit(run, name, parameters=less.get(name), output=isolated / name)
                for name in OTHERS
            }
            executed = {name: other.result().notebook for name, other in others.items()}
    return {**executed, "4_align": main_run.notebook}


def outputs(notebook: Path, source: str) -> list[Any]:
    """The outputs of the cell that holds ``source``."""
    cells = nbformat.read(notebook, as_version=4).cells
    (found,) = [c for c in cells if c.cell_type == "code" and source in c.source]
    return list(found.outputs)


def printed(notebook: Path, source: str) -> str:
    return "".join(o.text for o in outputs(notebook, source) if o.output_type == "stream")


def store_of(notebook: Path, experiment: str) -> Any:
    """The store that a notebook made, for the time of a ``with`` block."""
    return active_store(f"sqlite:///{notebook.parent}/mlflow.db", experiment)


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_alignment_agrees_better_with_people_on_held_out_pairs(main_run: MainRun) -> None:
    summary = main_run.summary
    assert summary["status"] == "improved"
    assert summary["seed"] == 0
    assert summary["model"] == "offline:/rubric"
    compared = summary["comparison"]
    assert compared["n"] >= 50
    before, after = (compared[w]["figures"]["accuracy"]["value"] for w in ("before", "after"))
    assert after > before


@pytest.mark.parametrize("name", [*OTHERS, "4_align"])
def test_no_notebook_shows_nan_to_a_person(name: str, runs: dict[str, Path]) -> None:
    """What is not known is an empty cell in tables, and a word elsewhere."""
    for cell in nbformat.read(runs[name], as_version=4).cells:
        for output in cell.get("outputs", []):
            shown = output.get("data", {})
            text = shown.get("text/html") or shown.get("text/plain") or output.get("text", "")
            assert not re.search(r"\bNaN\b|<NA>|&lt;NA&gt;|\bNaT\b", text), (cell.source, text)


def test_the_summary_says_where_everything_is(main_run: MainRun) -> None:
    summary = main_run.summary
    assert "accuracy" in summary["table"]
    assert Path(summary["report"]).is_file()
    assert summary["tracking_uri"] == f"sqlite:///{main_run.output}/mlflow.db"
    assert summary["experiment"] == "judge-alignment"
    assert summary["judge"] == {"name": "answer_quality", "version": 1, "new": True}
    assert summary["calls"]["judge"] > 100
    assert json.loads((main_run.output / "summary.json").read_text("utf-8")) == summary


def test_the_report_stands_by_itself(main_run: MainRun) -> None:
    text = Path(main_run.summary["report"]).read_text("utf-8")
    assert "<svg" in text
    assert "<script" not in text
    assert not re.search(r"""(src|href)\s*=\s*["']?https?:""", text)


def test_no_secret_is_written_anywhere(runs: dict[str, Path], main_run: MainRun) -> None:
    for path in [main_run.answers, *(p for ran in runs.values() for p in files(ran.parent))]:
        assert SECRET.encode() not in path.read_bytes(), path


def test_nothing_is_written_beside_the_output(
    runs: dict[str, Path], isolated: Path, main_run: MainRun, beside: set[Path]
) -> None:
    made = {path.name for path in isolated.iterdir()}
    assert made <= {*OTHERS, "cache"}
    left = {path.name for path in main_run.folder.iterdir()}
    assert left == {"output", "cache", "answers.jsonl.gz", "done.json"}
    assert set(FOLDER.iterdir()) == beside


@pytest.mark.parametrize("name", [path.stem for path in NOTEBOOKS])
def test_every_picture_is_shown_and_nothing_is_amiss(name: str, runs: dict[str, Path]) -> None:
    cells = [c for c in nbformat.read(runs[name], as_version=4).cells if c.cell_type == "code"]
    for cell in cells:
        pictures = sum("image/png" in o.get("data", {}) for o in cell.outputs)
        # Of recorded verdicts, which the sample has none of.
        absent = "for source" in cell.source
        drawn = cell.source.count("workbench.plot_") - cell.source.count(
            "else:"
        )  # one or the other
        assert pictures == (0 if absent else drawn), cell.source
        for output in cell.outputs:
            assert output.output_type != "error"
            if output.output_type == "stream":
                assert "Warning" not in output.text
                # What is said there is that no model was named, and what MLflow's optimizers say.
                if output.name == "stderr" and "compare_optimizers" not in cell.source:
                    assert output.text.startswith("workbench: no model was named")
                    assert len(output.text.splitlines()) == 1
            assert "object at 0x" not in str(output)


def test_the_judge_is_registered_for_the_workbench_and_for_mlflow(
    main_run: MainRun, main_copy: Path
) -> None:
    judge = workbench.load_judge("answer_quality")
    assert judge.instructions.strip() == printed(main_run.notebook, "alignment.proposed").strip()
    mlflows = get_scorer(name="answer_quality")
    assert mlflows.instructions == judge.instructions
    values = {"excellent", "good", "fair", "poor"}
    shown = {"inputs": {"query": "How heavy is it?"}, "outputs": "It weighs 2 kg."}
    assert judge(**shown).value == mlflows(**shown).value
    assert judge(**shown).value in values


def test_a_second_run_repeats_nothing(main_run: MainRun, main_copy: Path) -> None:
    before = assessments()
    assert before == {
        ("traces", ""): 153,
        (NAME, "ana"): 153,
        (NAME, "ben"): 150,
        (NAME, "chloe"): 153,
        (NAME, "offline:/rubric"): 153,
    }
    run_here(f"workbench run --output {main_copy}")
    again = summary(main_copy)
    assert again["judge"] == {"name": "answer_quality", "version": 1, "new": False}
    assert again["calls"] == {"judge": 0, "reflection": 0}
    assert again["comparison"] == main_run.summary["comparison"]
    assert assessments() == before
    assert len(workbench.history("answer_quality")) == 1


def assessments() -> Counter[tuple[str, str]]:
    """How many assessments of each kind the active experiment holds, a trace."""
    found: Counter[tuple[str, str]] = Counter()
    for trace in mlflow.search_traces(return_type="list", include_spans=False, max_results=1000):
        found["traces", ""] += 1
        found.update((a.name, a.source.source_id or "") for a in trace.info.assessments)
    return found


def test_the_comparison_is_logged_with_a_row_for_each_judge(
    runs: dict[str, Path], tmp_path: Path
) -> None:
    """The run of 5_compare holds the table, and its embedded SIMBA beats the original there."""
    with store_of(runs["5_compare"], "compare-optimizers"):
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


def test_the_quickstart_walks_through_every_step(runs: dict[str, Path]) -> None:
    walked = runs["1_quickstart"]
    with store_of(walked, "quickstart"):
        # One verdict was logged by hand and then, marked with the judge's version, by assess.
        counted = {("traces", ""): 55, (NAME, "ana"): 55, (NAME, "offline:/rubric"): 56}
        assert assessments() == counted
        learnt = workbench.load_judge(NAME).instructions.strip()
    assert learnt in printed(walked, "judge.align(")
    assert re.search(r"0\.\d\d before, 0\.\d\d after, on 35 traces", printed(walked, "improvement"))


def test_the_agreement_notebook_walks_through_all_that_can_be_asked(runs: dict[str, Path]) -> None:
    """Each question has an answer on the sample data, where every figure has its interval."""
    said = {
        "agreement = workbench.agreement(pairs)": "kappa (quadratic)",
        'filter(regex="accuracy|baseline': "AC1",
        "per_class.round": "recall_low",
        "plot_ratings": "mean absolute error",
        "annotator_agreement(": "Krippendorff",
        "alternative_annotator_test(": "of 3 annotators, advantage probability",
        "slices = workbench.agreement(pairs, by=": "characters",
        "by=dataset.groups": "other (55 slices)",
        "self_agreement(": "changed by reversed options",
        "labels_needed(": "recall on",
        "certify(": "on 153 labelled items",
        "prevalence(": "prediction-powered",
        "workbench.Explorer(pairs)": "human / judge",
        "compare(pairs": "fixed",
    }
    for source, text in said.items():
        assert text in str(outputs(runs["3_agreement"], source)), source
    assert "by people: 0." in printed(runs["3_agreement"], "prevalence(")


OWN = {
    "one annotator": ({"rating": ["good", "poor", "fair"] * 8}, "ana: rating"),
    "binary": ({"ana": ["yes", "no"] * 12, "bo": ["yes", "no", "no"] * 8}, "ana: ana, bo: bo"),
    "numbers": ({"ana": [k / 7 for k in range(24)]}, "ana: ana"),
}


@pytest.mark.parametrize(("columns", "annotators"), OWN.values(), ids=OWN)
def test_the_agreement_notebook_takes_other_data(
    columns: dict[str, list[Any]], annotators: str, folder: Path
) -> None:
    """Scales without an order or with many numbers, and data that only one person rated."""
    texts = {"q": [f"question {k}" for k in range(24)], "a": ["word " * (k + 1) for k in range(24)]}
    pd.DataFrame({**texts, **columns}).to_csv(folder / "own.csv", index=False)
    given = {"data": "own.csv", "inputs": "q", "outputs": "a", "annotators": annotators}
    words = " ".join(f"-p {name} '{value}'" for name, value in given.items())
    run_here(f"workbench run 3_agreement -p groups None {words}")
    assert assessments()["traces", ""] == 24


def test_the_labelling_notebook_decides_and_marks_what_is_earlier(runs: dict[str, Path]) -> None:
    """A table stands for each panel; one item is decided, and its labels stay."""
    for source, said in (("workbench.LabelPanel(", "0 of "), ("AdjudicationPanel(", "51")):
        (shown,) = outputs(runs["2_label"], source)
        assert set(shown.data) == {"text/plain", "text/html"}
        assert said in shown.data["text/html"]
    with store_of(runs["2_label"], "labelling"):
        decisions = workbench.disagreements(NAME)["decision"]["by"]
        assert decisions.value_counts().to_dict() == {"you": 1}
        assert len(workbench.rubric_history(NAME)) == 2
        assert len(workbench.earlier_labels(NAME)) == 456
        queue = workbench.review_queue("pilot")
        assert queue.annotators == ("ana", "ben", "chloe", "you")
        assert queue.items["done"].any()
        assert not queue.items["done"].all()


def test_a_column_that_the_file_lacks_ends_the_run_before_anything_is_stored(
    main_run: MainRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    Path("own.csv").write_text("question,reply,rating\nq,r,good\n")
    said = r"inputs is not given\. .*own\.csv, which has 'question', 'reply', 'rating'"
    with (
        active_store(main_run.tracking_uri),
        pytest.raises(workbench.WorkbenchError, match=said),
    ):
        run_here("workbench run -p data own.csv")


def test_papermill_in_another_folder_is_told_where_paths_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """papermill itself does not say where the notebook is, so its data cannot be found."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(TableError, match="papermill --cwd notebooks"):
        workbench.read_dataset("../data/shop_answers.csv", inputs="query", outputs="answer")


@pytest.mark.usefixtures("store")
def test_a_sweep_that_failed_shows_why(tmp_path: Path) -> None:
    """The cell with its table passes; the next one says that there is nothing to draw."""
    names = ("seed", "n_labels", "model", "base_url", "max_steps")
    write(tmp_path / "bad.ipynb", "1 / 0", parameters="\n".join(f"{n} = None" for n in names))
    with pytest.raises(ArgumentError, match="after"):
        run_here("workbench run 6_experiments -p notebook bad.ipynb -p seeds 1 -p jobs 1")


@pytest.mark.usefixtures("store")
def test_a_sweep_by_labels_alone_is_a_learning_curve(
    any_grid: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of several models, which `runs` holds, is drawn by both."""
    from matplotlib import pyplot as plt

    labels: list[str] = []

    def close(_: str) -> None:
        labels.extend(plt.figure(n).axes[0].get_xlabel() for n in plt.get_fignums())

    with monkeypatch.context() as patch:
        patch.setattr(plt, "close", close)  # which comes last
        given = f"-p notebook {any_grid} -p n_labels 10,20 -p seeds 1 -p jobs 2"
        run_here(f"workbench run 6_experiments {given} --output {tmp_path / 'out'}")
    plt.close("all")
    assert labels == ["labels", "n_labels"]


def test_what_the_sweep_varies_are_parameters_of_the_alignment() -> None:
    varied = {"seed", "n_labels", "model", "max_steps", "base_url"}
    declared = notebook_parameters(find_notebook("4_align"))
    assert varied <= {parameter.name for parameter in declared}
