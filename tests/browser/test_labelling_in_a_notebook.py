"""The label panel in a real notebook: real kernel, real browser, real store."""

from __future__ import annotations

import json
import os
import sqlite3
import time
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from hosts import STOPWATCH, Desk, Host, Panel, connected
from large_queue import long_and_short, multiply
from playwright.sync_api import Browser, expect

import workbench
from workbench.store.labels import label_records

VALUES = ["poor", "fair", "good"]
PANEL = "panel = workbench.LabelPanel('quality', annotator='ana', scale=scale)\npanel"


def setup(store: str) -> str:
    return connected(store, VALUES)


def traces(n: int) -> list[str]:
    """Short traces in the store."""
    table = pd.DataFrame({"question": [f"What is {i} + {i}?" for i in range(n)]})
    table["answer"] = [f"It is **{2 * i}**." for i in range(n)]
    made = workbench.import_traces(table, inputs="question", outputs="answer", progress=False)
    return made.trace_ids


def stored() -> dict[str, list[tuple[Any, str | None]]]:
    """The labels that count as the store holds them, by trace: (value, rationale)."""
    return {
        trace.info.trace_id: [
            (label.value, label.rationale)
            for label in trace.info.assessments
            if label.name == "quality" and label.valid
        ]
        for trace in mlflow.search_traces(return_type="list", include_spans=False)
    }


def labelled() -> dict[str, list[Any]]:
    """The values of the traces that have a label."""
    return {key: [value for value, _ in given] for key, given in stored().items() if given}


def rate(panel: Panel, n: int) -> dict[str, list[Any]]:
    """Rate the next ``n`` items with the number keys; what was given, by trace."""
    given = {}
    for i in range(n):
        trace_id, position = panel.trace_id, panel.position
        assert trace_id
        panel.press(str(i % 3 + 1), "Enter")
        given[trace_id] = [VALUES[i % 3]]
        # Not waited for: the next item is there when the key has been handled.
        assert panel.position != position
    return given


class Freezer:
    """A cell in which the kernel stands still, until it is released."""

    def __init__(self, folder: Path) -> None:
        self._path, self._marker = folder / "frozen", folder / "freezing"
        os.mkfifo(self._path)
        mark = f"open({str(self._marker)!r}, 'w').close(); "
        # Opening a pipe that no one writes to waits. Through PyDLL it keeps the interpreter's
        # lock, so that no other thread of the kernel runs either.
        self.cell = f"import ctypes; {mark}ctypes.PyDLL(None).open({os.fsencode(self._path)!r}, 0)"
        # This one lets them run.
        self.busy_cell = f"{mark}open({str(self._path)!r}).read()"

    def wait(self, panel: Panel) -> None:
        """Wait until the kernel runs the cell."""
        deadline = time.monotonic() + 40
        while not self._marker.exists():
            assert time.monotonic() < deadline, "the cell was not run"
            panel.page.wait_for_timeout(20)
        panel.page.wait_for_timeout(100)
        self._marker.unlink()

    def release(self) -> None:
        with self._path.open("w"):
            pass


# In the notebook's command mode these keys insert, delete, merge, convert and move cells, restart
# the kernel and open dialogs.
COMMANDS = [*"abddmyczvhlo00ijkq", "Shift+M", "Shift+L", "Escape", "Control+s"]


def test_thirty_traces_are_labelled_by_keyboard_alone(
    browser: Browser, lab: Host, store: str, tmp_path: Path
) -> None:
    """Over a reload and a restart nothing is lost or doubled, and the notebook sees no key."""
    ids = traces(30)
    told = tmp_path / "labels.json"
    cells = [setup(store), PANEL, f"panel.labels.to_json({str(told)!r}, orient='records')"]
    with lab.notebook(browser, cells) as notebook:
        notebook.run(0, 1)
        panel = notebook.new_panel()
        panel.at(0)
        shape = notebook.shape()
        panel.focus()
        panel.press(*COMMANDS)
        assert notebook.shape() == shape
        assert notebook.page.locator(".jp-Dialog").count() == 0

        given = rate(panel, 5)
        panel.press("2", "r")  # with a reason in which keys are letters
        trace_id = panel.trace_id
        notebook.page.keyboard.type("add: u s 1 2 3?")
        panel.press("Shift+Enter")  # a new line; Enter saves
        notebook.page.keyboard.type("and more")
        panel.press("Enter")
        panel.at(6)
        assert notebook.shape() == shape
        given[trace_id] = ["fair"]
        reasons = {trace_id: "add: u s 1 2 3?\nand more"}
        skipped = panel.trace_id
        panel.press("s")
        panel.at(7)
        trace_id = panel.trace_id
        panel.press("1", "Enter")
        panel.at(8)
        panel.press("u")  # a slip: back, and rated anew
        panel.at(7)
        assert panel.trace_id == trace_id
        panel.press("3", "Enter")
        panel.at(8)
        given[trace_id] = ["good"]
        trace_id = panel.trace_id
        panel.press("x", "Enter")
        panel.at(9)
        given[trace_id] = ["N/A"]
        panel.all_saved()
        assert labelled() == given

        # The page is loaded anew while the last rating is under way.
        notebook.save()
        given |= rate(panel, 3)
        notebook.load()
        panel = notebook.panel
        panel.at(12)
        assert panel.trace_id not in given
        panel.all_saved()
        assert labelled() == given
        panel.focus()
        given |= rate(panel, 4)

        # The kernel is restarted while the last rating is under way.
        epoch = panel.epoch
        notebook.restart()
        notebook.run(0, 1)
        panel = notebook.new_panel(epoch)
        expect(panel.root).not_to_have_attribute("data-trace", "")
        panel.all_saved()
        assert labelled() == given
        assert panel.trace_id not in given
        panel.focus()
        given |= rate(panel, 29 - len(given))
        panel.at("done")
        panel.press("Enter")  # the one that was skipped
        expect(panel.root).to_have_attribute("data-trace", skipped)
        given |= rate(panel, 1)
        panel.at("done")
        panel.all_saved()
        assert panel.said == "All saved"
        # The button goes away with the summary; the keys work on.
        panel.root.get_by_role("button", name="Back to the items").click()
        position = panel.position
        panel.press("ArrowLeft")
        panel.at(int(position) - 1)
        assert notebook.shape() == shape

        assert labelled() == given
        assert set(given) == set(ids)
        assert {key: stored()[key][0][1] for key in reasons} == reasons
        notebook.run(2)
        rows = json.loads(told.read_text())
        assert {row["trace_id"]: [row["value"] or "N/A"] for row in rows} == given


def test_ratings_wait_in_the_browser_until_the_kernel_can_write_them(
    browser: Browser, notebook_7: Host, store: str, tmp_path: Path
) -> None:
    """They are shown as not saved, written once when the kernel is free, or when a new one is."""
    traces(16)
    freezer = Freezer(tmp_path)
    cells = [setup(store), PANEL, freezer.busy_cell, freezer.cell]
    with notebook_7.notebook(browser, cells) as notebook:
        notebook.run(0, 1)
        panel = notebook.new_panel()
        panel.at(0)
        panel.holds(15)
        shape = notebook.shape()
        panel.focus()
        panel.press(*COMMANDS)
        assert notebook.shape() == shape

        # While a cell runs they are written at once where the front end uses subshells, else
        # after it.
        notebook.run(2, wait=False)
        freezer.wait(panel)
        panel.focus()
        given = rate(panel, 3)
        freezer.release()
        panel.all_saved()
        assert labelled() == given

        # While it stands still they wait.
        notebook.run(3, wait=False)
        freezer.wait(panel)
        panel.focus()
        waiting = rate(panel, 4)
        assert panel.said == "Not saved yet (4)"
        assert labelled() == given
        panel.press("ArrowLeft")
        expect(panel.root.locator(".wb-where")).to_contain_text("not saved yet")
        panel.press("ArrowRight")
        freezer.release()
        panel.all_saved()
        given |= waiting
        assert labelled() == given
        assert panel.said == "All saved"

        # A kernel that never comes back takes nothing with it.
        notebook.run(3, wait=False)
        freezer.wait(panel)
        panel.focus()
        waiting = rate(panel, 3)
        panel.press("u")
        del waiting[panel.trace_id]
        panel.press("s")
        assert panel.said == "Not saved yet (5)"
        assert labelled() == given
        epoch = panel.epoch
        notebook.restart()
        notebook.run(0, 1)
        panel = notebook.new_panel(epoch)
        panel.all_saved()
        given |= waiting
        assert labelled() == given
        expect(panel.root.locator(".wb-counts")).to_contain_text("9 of 16 labelled · 1 skipped")
        panel.focus()
        expect(panel.root).not_to_have_attribute("data-trace", "")
        given |= rate(panel, 6)
        panel.at("done")
        panel.all_saved()
        assert labelled() == given
        assert len(given) == 15


def written_labels(database: str) -> dict[str, list[Any]]:
    """What `labelled` says, in a moment where there are 10,000 traces."""
    with sqlite3.connect(database) as reading:
        rows = reading.execute("SELECT trace_id, value FROM assessments WHERE valid").fetchall()
    found: dict[str, list[Any]] = {}
    for trace_id, value in rows:
        found.setdefault(trace_id, []).append(json.loads(value))
    return found


def test_the_next_items_of_thousands_come_without_the_kernel(
    browser: Browser, lab: Host, store: str, tmp_path: Path, record_property: Any
) -> None:
    """Over two hundred items, long ones among them, are shown each after its key while the kernel
    stands still.

    So nothing is asked of it before the next item is there. How long that takes is measured in
    the page and told in the summary; what is held to the 50 ms of the design is the benchmark.
    """
    database = store.removeprefix("sqlite:///")
    workbench.import_traces(long_and_short(50), inputs="question", outputs="answer", progress=False)
    multiply(database, 3_000)
    freezer = Freezer(tmp_path)
    with lab.notebook(browser, [setup(store), PANEL, freezer.cell]) as notebook:
        notebook.run(0, 1)
        panel = notebook.new_panel()
        panel.at(0)
        expect(panel.root.locator(".wb-counts")).to_contain_text("0 of 3,000 labelled")
        panel.holds(219)
        notebook.page.evaluate(STOPWATCH)
        notebook.run(2, wait=False)
        freezer.wait(panel)
        panel.focus()
        given = rate(panel, 219)
        notebook.page.wait_for_function("window.taken.length === 219")
        taken = sorted(notebook.page.evaluate("window.taken"))
        # The last one that is here; the one after it is not, and comes with the kernel.
        given |= rate(panel, 1)
        assert len(given) == 220
        assert panel.said == "Not saved yet (220)"
        assert written_labels(database) == {}
        freezer.release()
        # Those beyond come with the kernel, and all is written.
        panel.holds(150)
        panel.all_saved()
        assert written_labels(database) == given
    record_property(
        "figure",
        f"Enter to the next item painted, {len(taken)} items of 3,000, {lab.app}: median "
        f"{taken[len(taken) // 2]:.0f} ms, 95 % within {taken[int(0.95 * len(taken))]:.0f} ms, "
        f"longest {taken[-1]:.0f} ms",
    )


def test_several_questions_and_the_verdict_after_ones_own(desk: Desk, store: str) -> None:
    """Arrows choose the question; verdicts come after one's label, and a change is kept apart."""
    ids = traces(3)
    verdicts = pd.DataFrame({"trace_id": ids, "value": "good", "why": "it **adds** up"})
    workbench.log_verdicts(
        verdicts, name="quality", source="judge", value="value", rationale="why", progress=False
    )
    code = (
        "questions = [LabelQuestion('quality', scale),"
        " LabelQuestion('safe', Scale.from_type(bool), rubric='Nothing *harmful*.'),"
        " LabelQuestion('stars', Scale('numeric', low=1, high=5, integer=True), required=False),"
        " LabelQuestion('minutes', Scale('numeric', low=0, high=60), required=False),"
        " LabelQuestion('better', None, required=False)]\n"
        "panel = workbench.LabelPanel(annotator='ana', questions=questions, reveal=True)\npanel"
    )
    with desk.shows([setup(store), code]) as notebook:
        style = notebook.page.add_style_tag(content=".wb-frame {width: 400px !important}")
        style.evaluate("(style) => { style.id = 'as-wide' }")
        notebook.run(0, 1)
        panel = notebook.new_panel()
        panel.at(0)
        expect(panel.root.locator(".wb-voice")).to_have_count(0)
        panel.focus()
        panel.press("1", "Enter")
        expect(panel.root.locator(".wb-hint")).to_contain_text("Not rated yet")
        panel.press("y", "5", "ArrowDown")
        notebook.page.keyboard.type("12.5")
        panel.press("Escape", "ArrowUp", "ArrowUp", "ArrowUp", "x")
        trace_id = panel.trace_id
        panel.press("Escape", "Enter")
        voice = panel.root.locator(".wb-voice")
        expect(voice).to_contain_text("good")
        expect(voice.locator("strong")).to_have_text("adds")
        panel.at(0)
        labels = stored_labels(trace_id)
        assert labels == {"quality": "N/A", "safe": True, "stars": 5, "minutes": 12.5}
        # A change of mind.
        panel.press("ArrowUp", "ArrowDown", "3", "Enter")
        panel.at(1)
        panel.all_saved()
        assert stored_labels(trace_id)["quality"] == "N/A"
        after = [
            a.value for a in mlflow.get_trace(trace_id, flush=False).info.assessments
            if a.name == "quality" and a.source.source_type == "HUMAN"
        ]  # fmt: skip
        assert sorted(after) == ["N/A", "good"]
        panel.press("ArrowLeft")
        expect(panel.root.locator(".wb-where")).to_contain_text("changed after the verdict")
        # It fits into 400 pixels: nothing is cut off at its side.
        wide = panel.root.evaluate(
            """(root) => [root, ...root.querySelectorAll('*')].filter((each) =>
                !each.closest('.wb-sr') && each.getClientRects().length
                && each.getBoundingClientRect().right > root.getBoundingClientRect().right + 1
            ).map((each) => each.outerHTML.slice(0, 200))"""
        )
        assert wide == []
        # Each control has a name that can be read out.
        nameless = panel.root.evaluate(
            """(root) => [...root.querySelectorAll('button, input, textarea, [tabindex="0"]')]
                .filter((each) => !each.innerText?.trim() && !each.ariaLabel)
                .map((each) => each.outerHTML.slice(0, 200))"""
        )
        assert nameless == []


def stored_labels(trace_id: str) -> dict[str, Any]:
    """What `pair` would count of one trace, by question."""
    trace = mlflow.get_trace(trace_id, flush=False)
    names = {a.name for a in trace.info.assessments}
    return {name: label.value for name in names for label in label_records([trace], name)}
