"""The adjudication panel in a real notebook: real kernel, real browser, real store."""

from __future__ import annotations

import pandas as pd
from hosts import Desk, connected
from playwright.sync_api import expect

import workbench
from workbench.store.labels import decision_records
from workbench.store.traces import fetch_traces

NAME = "quality"
HOSTILE = "<img src=x onerror=alert(1)><script>alert(2)</script>"
PANEL = "panel = workbench.AdjudicationPanel('quality', by='dora')\npanel"


def differing(n: int) -> list[str]:
    """Traces on which two annotators differ by the whole scale, and one on which they do not."""
    table = pd.DataFrame({"question": [f"What is {i} + {i}?" for i in range(n + 1)]})
    table["answer"] = [f"It is **{2 * i}**." for i in range(n + 1)]
    table["ana"] = ["poor"] * n + ["fair"]
    table["ben"] = ["good"] * n + ["fair"]
    table["why"] = [f"{i}: {HOSTILE}" for i in range(n + 1)]
    made = workbench.import_traces(table, inputs="question", outputs="answer", progress=False)
    table["trace_id"] = made.trace_ids
    for who in ("ana", "ben"):
        workbench.log_labels(
            table, name=NAME, annotator=who, value=who, rationale="why", progress=False
        )
    return made.trace_ids


def decisions() -> dict[str, tuple[object, str | None]]:
    """What the store holds, by trace: (value, rationale)."""
    found = decision_records(fetch_traces(None, spans=False), NAME)
    return {one.trace_id: (one.value, one.rationale) for one in found}


def test_what_people_differ_on_is_decided_by_key_and_click(desk: Desk, store: str) -> None:
    """The labels stand side by side, and what is decided is in the store."""
    ids = differing(5)
    with desk.shows([connected(store), PANEL]) as notebook:
        notebook.run(0, 1)
        panel = notebook.new_panel()
        panel.at(0)
        page = notebook.page
        voices = panel.root.locator(".wb-voice")
        expect(voices).to_have_count(2)
        first, second = voices.nth(0).bounding_box(), voices.nth(1).bounding_box()
        assert first is not None
        assert second is not None
        assert (first["y"], first["x"] < second["x"]) == (second["y"], True)  # side by side
        assert voices.all_inner_texts()[0].split("\n")[:2] == ["ana", "poor"]
        assert HOSTILE in voices.nth(0).inner_text()  # as text, and nothing of it has run
        expect(panel.root.locator(".wb-counts")).to_contain_text("0 of 5 decided")

        panel.focus()
        given = {panel.trace_id: ("fair", None)}
        panel.press("2", "Enter")
        panel.at(1)
        given[panel.trace_id] = ("good", "it is so")
        panel.press("3", "r")
        page.keyboard.type("it is so")
        panel.press("Control+Enter")
        panel.at(2)
        trace_id = panel.trace_id  # by click
        panel.root.get_by_role("button", name="poor").click()
        panel.root.get_by_role("button", name="Save and go on").click()
        panel.at(3)
        given[trace_id] = ("poor", None)
        panel.all_saved()
        assert decisions() == given

        panel.press("u")  # taken back: nothing is decided there any more
        panel.at(2)
        panel.all_saved()
        del given[trace_id]
        assert decisions() == given
        expect(panel.root.locator(".wb-where")).not_to_contain_text("decided by")
        panel.press("x", "Enter")
        panel.at(3)
        given[trace_id] = ("N/A", None)

        given |= {trace_id: ("fair", None) for trace_id in ids[:5] if trace_id not in given}
        panel.press("2", "Enter")
        panel.at(4)
        panel.press("2", "Enter")
        panel.at("done")
        panel.all_saved()
        assert decisions() == given
        panel.press("ArrowLeft")
        expect(panel.root.locator(".wb-counts")).to_contain_text("5 of 5 decided")
        expect(panel.root.locator(".wb-where")).to_contain_text("decided by dora")
        assert notebook.dialogs == []
        assert notebook.outside == []
    assert list(workbench.disagreements(NAME)["decision"]["by"]) == ["dora"] * 5
