"""MLflow's own web page beside the panel: one queue, and each sees the other's labels."""

from __future__ import annotations

import re

import mlflow
import pandas as pd
from hosts import Desk, Panel, connected
from playwright.sync_api import Browser, Page, expect

import workbench
from workbench.labeling.questions import LabelQuestion

NAME = "quality"
# Without log-in MLflow's page calls whoever reads it so.
VISITOR = "default"


def open_item(page: Page, server: str, queue: workbench.ReviewQueue, trace_id: str) -> None:
    """One item of the queue in MLflow's page, loaded anew."""
    where = f"#/experiments/{queue.experiment_id}/review-queue?workflowType=genai"
    page.goto("about:blank")
    page.goto(f"{server}/{where}&selectedQueueId={queue.queue_id}&selectedItemId={trace_id}")
    expect(page.get_by_text("reviewed", exact=False).first).to_be_visible()


def answer(page: Page, value: str, told: str) -> None:
    """Rate the open item in MLflow's page, until it tells how far it is."""
    page.get_by_text("Select an option").click()
    page.get_by_role("option", name=value).click()
    page.get_by_role("button", name="Submit").click()
    expect(page.get_by_text(re.compile(told))).to_be_visible()


def test_open_panels_see_what_is_labelled_there_and_the_others_get_it_still(
    browser: Browser, desk: Desk, server: str
) -> None:
    """Each item is wanted of two people. One of them labels an item in MLflow's page while both
    have a panel open: after a refresh it is labelled in that person's panel, and open in the
    other's, although MLflow's status, which the team shares, said that it was finished."""
    table = pd.DataFrame({"question": [f"What is {i}?" for i in range(2)], "answer": "So."})
    made = workbench.import_traces(table, inputs="question", outputs="answer", progress=False)
    question = LabelQuestion(NAME, workbench.Scale.of(["poor", "fair", "good"]))
    queue = workbench.review_queue("double", [question], annotators=[VISITOR, "ben"], each=2)
    queue.add(made)
    there, other = made.trace_ids
    cells = [
        connected(server, experiment=mlflow.get_experiment(queue.experiment_id).name),
        "queue = workbench.review_queue('double')\n"
        f"hers = workbench.LabelPanel(traces=queue, annotator={VISITOR!r})\nhers",
        "bens = workbench.LabelPanel(traces=queue, annotator='ben')\nbens",
        "hers.refresh(); bens.refresh()",
    ]
    with desk.shows(cells) as notebook:
        notebook.run(0, 1)
        notebook.new_panel().at(0)
        notebook.run(2)
        hers, bens = (Panel(notebook.page.locator(".wb").nth(n)) for n in range(2))
        bens.at(0)
        expect(hers.root.locator(".wb-counts")).to_contain_text("0 of 2 labelled")

        page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
        page.set_default_timeout(40_000)
        open_item(page, server, queue, there)
        answer(page, "good", "1 of 2 reviewed")
        page.context.close()

        notebook.run(3)
        expect(hers.root.locator(".wb-counts")).to_contain_text("1 of 2 labelled")
        expect(bens.root.locator(".wb-counts")).to_contain_text("0 of 2 labelled")
        hers.focus()
        if hers.trace_id != there:
            hers.press("ArrowLeft" if hers.position == "1" else "ArrowRight")
        expect(hers.root).to_have_attribute("data-trace", there)
        expect(hers.root.locator(".wb-where")).to_contain_text("labelled elsewhere")
        expect(hers.root.locator(".wb-choice[aria-pressed=true]")).to_contain_text("good")

        bens.focus()
        for position in range(2):
            bens.at(position)
            bens.press("1", "Enter")
        bens.at("done")
        bens.all_saved()
    items = queue.items.set_index("trace_id")
    assert {*items["labelled_by"][there]} == {VISITOR, "ben"}
    assert items["done"].to_dict() == {there: True, other: False}
    assert queue.open_for(VISITOR) == [other]
    assert queue.open_for("ben") == []
    verdicts = pd.DataFrame({"trace_id": made.trace_ids, "v": "poor"})
    workbench.log_verdicts(verdicts, name=NAME, source="m", value="v", progress=False)
    pairs = workbench.pair(NAME, ties="latest").table.set_index("trace_id")
    assert pairs["human"].to_dict() == {there: "poor", other: "poor"}

    # What was labelled in the panels stands in MLflow's page, finished.
    page = browser.new_context(viewport={"width": 1400, "height": 900}).new_page()
    page.set_default_timeout(40_000)
    open_item(page, server, queue, there)
    expect(page.get_by_text("good").first).to_be_visible()
    page.context.close()
    said = mlflow.get_trace(there).info.assessments
    assert VISITOR in {one.source.source_id for one in said if one.source.source_type == "HUMAN"}
