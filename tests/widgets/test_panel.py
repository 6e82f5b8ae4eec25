"""The label panel without a browser: what it sends, and what stands in its place."""

from __future__ import annotations

import json
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlflow
import nbformat
import pandas as pd
import pytest
from comm import create_comm
from running import active_store

import workbench
from workbench.labeling.questions import LabelQuestion
from workbench.widgets import panels
from workbench.widgets.panels import VIEW, LabelPanel

HOSTILE = "<script>alert(1)</script>"


@pytest.fixture
def trace_ids(store: str) -> list[str]:
    table = pd.DataFrame({"question": ["1 + 1?", "2 + 2?", "3 + 3?"], "answer": ["2", "4", "7"]})
    made = workbench.import_traces(table, inputs="question", outputs="answer", progress=False)
    return made.trace_ids


def panel(**options: object) -> LabelPanel:
    options = {"annotator": "ana", "scale": workbench.Scale.of(["no", "yes"]), **options}
    return workbench.LabelPanel("right", **options)


def rate(panel: LabelPanel, trace_id: str, value: str, rationale: str = "") -> None:
    """What the browser sends when someone rates an item."""
    action = {
        "id": uuid.uuid4().hex,
        "kind": "save",
        "trace_id": trace_id,
        "answers": {"right": {"value": value, "abstain": False}},
        "rationale": {"right": rationale},
    }
    panel._handle_custom_msg({"type": "act", "actions": [action]}, [])
    assert panel.session.flush(30)


def test_what_the_browser_sends_is_written_and_told(trace_ids: list[str]) -> None:
    """Labels reach the store, the tables, the state that the browser sees and the repr."""
    shown = panel()
    rate(shown, trace_ids[0], "yes", "it is")
    (label,) = mlflow.get_trace(trace_ids[0]).info.assessments
    assert (label.name, label.value, label.rationale) == ("right", "yes", "it is")
    assert label.source.source_id == "ana"
    assert shown.state["progress"]["labelled"] == 1
    assert shown.labels[["trace_id", "value"]].values.tolist() == [[trace_ids[0], "yes"]]
    assert repr(shown) == "<LabelPanel 'right' by ana: 1 of 3 labelled>"
    assert shown.unsaved.empty
    assert shown.summary().set_index("value")["labels"].to_dict()["yes"] == 1


def test_a_label_that_cannot_be_saved_is_listed(trace_ids: list[str]) -> None:
    shown = panel()
    mlflow.MlflowClient().delete_traces(
        mlflow.get_experiment_by_name("test").experiment_id, trace_ids=[trace_ids[1]]
    )
    rate(shown, trace_ids[1], "yes")
    assert shown.unsaved["trace_id"].tolist() == [trace_ids[1]]
    assert "1 could not be saved" in repr(shown)


def test_two_folders_with_stores_of_one_name_share_nothing_in_the_browser(
    trace_ids: list[str], store: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What waits in the browser is of the database's file, wherever the notebook lies."""
    keys = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        shutil.copy(store.removeprefix("sqlite:///"), tmp_path / folder / "mlflow.db")
        monkeypatch.chdir(tmp_path / folder)
        with active_store("sqlite:///mlflow.db", "test"):
            keys.append(panel().setup["panel_key"])
    assert len(set(keys)) == 2


def test_new_traces_join_the_queue(trace_ids: list[str]) -> None:
    """`refresh` tells the browser how many there are."""
    shown = panel()
    more = pd.DataFrame({"question": ["4 + 4?"], "answer": ["8"]})
    workbench.import_traces(more, inputs="question", outputs="answer", progress=False)
    shown.refresh()
    assert shown.setup["total"] == 4
    assert shown.state["progress"]["total"] == 4


def test_the_table_in_its_place_has_the_words_of_the_buttons(trace_ids: list[str]) -> None:
    """Not what is stored for them; an abstention is no empty cell."""
    asked = [
        LabelQuestion("right", workbench.Scale.from_type(bool), labels={True: "Right"}),
        LabelQuestion("points", workbench.Scale("numeric"), required=False),
    ]
    given = pd.DataFrame({"trace_id": trace_ids, "v": [True, False, "N/A"], "n": 4.0})
    workbench.log_labels(given, name="right", annotator="ana", value="v", progress=False)
    workbench.log_labels(given, name="points", annotator="ana", value="n", progress=False)
    _, labels = LabelPanel(annotator="ana", questions=asked)._tables()
    found = labels.set_index(["trace_id", "question"])["value"]
    assert [found[i, "right"] for i in trace_ids] == ["Right", "no", "can't judge"]
    assert {found[i, "points"] for i in trace_ids} == {"4"}


def test_the_table_in_its_place_holds_no_html_of_the_labels(trace_ids: list[str]) -> None:
    """Where there is no kernel to ask the bundle holds a table, with everything escaped."""
    shown = panel(title=HOSTILE)
    rate(shown, trace_ids[0], "yes", HOSTILE)
    bundle = shown._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" not in bundle
    assert trace_ids[0] in bundle["text/html"]
    assert HOSTILE not in bundle["text/html"]
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in bundle["text/html"]


def test_a_rating_does_not_wait_for_texts_that_are_made_ready(trace_ids: list[str]) -> None:
    """Markdown of long items takes a while, and ratings come from the kernel's main thread."""
    shown = panel()

    def long_items() -> Iterator[dict[str, Any]]:
        rate(shown, trace_ids[0], "yes")
        yield from ()

    message = {"type": "items", "items": long_items()}
    sender = threading.Thread(target=shown.session.on_message, args=[message], daemon=True)
    sender.start()
    sender.join(20)
    assert not sender.is_alive()


@pytest.mark.parametrize("how", ["papermill", "nbconvert"])
def test_a_notebook_that_is_run_unwatched_shows_the_table(
    how: str, trace_ids: list[str], store: str, tmp_path: Path
) -> None:
    """Neither the executed notebook nor a page made of it needs the widget's scripts."""
    from nbconvert import HTMLExporter
    from nbconvert.preprocessors import ExecutePreprocessor

    code = (
        f"import mlflow, workbench; mlflow.set_tracking_uri({store!r});"
        "mlflow.set_experiment('test');"
        "workbench.LabelPanel('right', annotator='ana', scale=workbench.Scale.of(['no', 'yes']))"
    )
    rate(panel(), trace_ids[0], "yes")
    made = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code)])
    if how == "papermill":
        from workbench.experiments.notebook import run_notebook

        nbformat.write(made, tmp_path / "in.ipynb")
        ran = run_notebook(tmp_path / "in.ipynb", output=tmp_path / "out", progress=False)
        made = nbformat.read(ran.notebook, as_version=4)
    else:
        ExecutePreprocessor(kernel_name="python3").preprocess(made)
    (output,) = [o for cell in made.cells for o in cell.outputs if o.output_type != "stream"]
    assert set(output.data) == {"text/plain", "text/html"}
    assert "widgets" not in made.metadata
    page, _ = HTMLExporter().from_notebook_node(made)
    assert "1 of 3" in page
    assert trace_ids[0] in page
    assert "html-manager" not in page


def test_a_page_made_of_a_saved_notebook_shows_the_table(trace_ids: list[str]) -> None:
    """In a notebook saved by a front end the widget's view stands beside the table."""
    from nbconvert import HTMLExporter

    data = panel()._repr_mimebundle_()
    data["application/vnd.jupyter.widget-view+json"] = {
        "version_major": 2, "version_minor": 1, "model_id": "0" * 32,
    }  # fmt: skip
    output = nbformat.v4.new_output("display_data", data=data)
    cell = nbformat.v4.new_code_cell("panel", outputs=[output])
    page, _ = HTMLExporter().from_notebook_node(nbformat.v4.new_notebook(cells=[cell]))
    assert "0 of 3" in page
    assert "widget-view" not in page


class Page:
    """What a front end stores of what a cell puts out, as it is brought up to date."""

    def __init__(self) -> None:
        self.outputs: list[dict[str, Any]] = []

    def display(self, bundle: dict[str, Any], *, raw: bool, display_id: bool = False) -> Any:
        place = len(self.outputs)
        self.outputs.append(bundle)

        def update(bundle: dict[str, Any], *, raw: bool) -> None:
            self.outputs[place] = bundle

        return SimpleNamespace(update=update)

    def exported(self, *, with_state: bool) -> str:
        """The page that nbconvert makes of the notebook when it is saved now."""
        from nbconvert import HTMLExporter

        made = [nbformat.v4.new_output("display_data", data=data) for data in self.outputs]
        cell = nbformat.v4.new_code_cell("panel", outputs=made)
        notebook = nbformat.v4.new_notebook(cells=[cell])
        if with_state:
            models = [data[VIEW]["model_id"] for data in self.outputs if VIEW in data]
            state = {"model_name": "AnyModel", "model_module": "anywidget", "state": {}}
            notebook.metadata["widgets"] = {
                "application/vnd.jupyter.widget-state+json": {
                    "version_major": 2,
                    "version_minor": 0,
                    "state": {key: {**state, "model_module_version": "*"} for key in models},
                }
            }
        return str(HTMLExporter().from_notebook_node(notebook)[0])


@pytest.mark.parametrize("with_state", [False, True])
def test_a_page_made_later_shows_what_was_labelled_since(
    trace_ids: list[str], with_state: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The view stays as it is, the table follows; also where the widget's state is saved."""
    page, shown = Page(), panel()
    monkeypatch.setattr(panels, "display", page.display)
    monkeypatch.setattr(panels, "SECONDS_UNTIL_SHOWN", 0.05)
    shown.comm = create_comm(target_name="jupyter.widget")
    shown._ipython_display_()
    assert [VIEW in output for output in page.outputs] == [True, False]
    view = dict(page.outputs[0])
    assert "0 of 3" in page.exported(with_state=with_state)
    rate(shown, trace_ids[0], "yes", HOSTILE)
    deadline = time.monotonic() + 20
    while "1 of 3" not in page.exported(with_state=with_state):
        assert time.monotonic() < deadline, "the table was not brought up to date"
        time.sleep(0.05)
    made = page.exported(with_state=with_state)
    assert "0 of 3" not in made
    assert trace_ids[0] in made
    assert HOSTILE not in made
    assert page.outputs[0] == view
    # Shown is it where no kernel has sent the view an item: see the view's `data-trace`.
    epoch = shown.setup["epoch"]
    assert f'body:has(.wb[data-epoch="{epoch}"][data-trace]:not([data-trace=""]))' in made


def test_a_queue_is_labelled_and_its_status_kept_in_step(trace_ids: list[str]) -> None:
    """The annotator's share and the queue's own question; what a second one is to label stays
    open in MLflow until they have, and an undo opens it again."""
    question = LabelQuestion("right", workbench.Scale.of(["no", "yes"]))
    queue = workbench.review_queue("pilot", [question], annotators=["ana", "ben"], each=2)
    queue.add(trace_ids[:2])

    def status() -> dict[str, str]:
        for panel in (ana, ben):
            panel.refresh()
            assert panel.session.flush(30)
        return dict(zip(queue.items["trace_id"], queue.items["status"], strict=True))

    ana, ben = (LabelPanel(traces=queue, annotator=who) for who in ("ana", "ben"))
    assert sorted(ana.session.trace_ids) == sorted(queue.of("ana"))
    assert [q.name for q in ana.session.questions] == ["right"]
    rate(ana, trace_ids[0], "yes")
    assert status() == {trace_ids[0]: "pending", trace_ids[1]: "pending"}
    rate(ben, trace_ids[0], "no")
    assert status() == {trace_ids[0]: "complete", trace_ids[1]: "pending"}
    (own,) = [a for a in mlflow.get_trace(trace_ids[0]).info.assessments if a.value == "no"]
    undo = {"id": "u", "kind": "undo", "trace_id": trace_ids[0]}
    undo["undoes"] = own.metadata["workbench.action"]
    ben._handle_custom_msg({"type": "act", "actions": [undo]}, [])
    assert ben.session.flush(30)
    assert status() == {trace_ids[0]: "pending", trace_ids[1]: "pending"}
    queue.add(trace_ids[2:])
    ana.refresh()
    assert ana.setup["total"] == 3


@pytest.mark.parametrize("order", ["disagreement", "balance", "unlike", "mix"])
def test_nothing_tells_a_verdict_before_a_label(trace_ids: list[str], order: str) -> None:
    """Neither the message of a rule that has nothing to go by nor anything else that the browser
    is given; the questions name the values that there are, whoever has said them."""
    scale = workbench.Scale.of(["kept", "refunded"])
    table = pd.DataFrame({"trace_id": trace_ids, "v": "refunded"})
    workbench.log_verdicts(table, name="right", source="m", value="v", progress=False)
    workbench.log_labels(table, name="right", annotator="ben", value="v")
    shown = panel(order=order, scale=scale, reveal=True)
    assert "refunded" not in shown.session.state()["message"]
    assert order == "unlike" or shown.session.state()["message"]
    given = {"setup": {**shown.setup, "questions": []}, "state": dict(shown.state)}
    assert given["state"]["progress"].pop("balance") == {"kept": 0, "refunded": 0}
    items = shown.session.receive({"type": "want", "start": 0, "count": 3})
    assert "refunded" not in json.dumps([given, items])
    assert "refunded" not in json.dumps(
        {k: v for k, v in shown.get_state().items() if k not in ("setup", "state", "_esm", "_css")},
        default=str,
    )
