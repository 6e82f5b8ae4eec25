"""The label panel in a real notebook: real kernel, real browser, real store."""

from __future__ import annotations

import json
import os
import re
import sqlite3
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from hosts import LOSING, STOPWATCH, Host, Panel
from large_queue import long_and_short, multiply
from playwright.sync_api import Browser, expect

import workbench
from workbench.store.labels import label_records

VALUES = ["poor", "fair", "good"]
PANEL = "panel = workbench.LabelPanel('quality', annotator='ana', scale=scale)\npanel"


def setup(store: str) -> str:
    return (
        "import mlflow, workbench\n"
        f"mlflow.set_tracking_uri({store!r})\n"
        "mlflow.set_experiment('test')\n"
        f"scale = workbench.Scale.of({VALUES!r})"
    )


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
        self._path = folder / "frozen"
        os.mkfifo(self._path)
        # Opening a pipe that no one writes to waits. Through PyDLL it keeps the interpreter's
        # lock, so that no other thread of the kernel runs either.
        self.cell = (
            f"import ctypes; ctypes.PyDLL(None).open({os.fsencode(self._path)!r}, 0)"
        )  # fmt: skip
        # This one lets them run.
        self.busy_cell = f"open({str(self._path)!r}).read()"

    def release(self) -> None:
        with self._path.open("w"):
            pass


def test_thirty_traces_are_labelled_by_keyboard_alone(
    browser: Browser, host: Host, store: str, tmp_path: Path
) -> None:
    """Over a reload and a restart nothing is lost or doubled, and the notebook sees no key."""
    ids = traces(30)
    told = tmp_path / "labels.json"
    cells = [setup(store), PANEL, f"panel.labels.to_json({str(told)!r}, orient='records')"]
    with host.notebook(browser, cells) as notebook:
        notebook.run(0, 1)
        panel = notebook.new_panel()
        panel.at(0)
        shape = notebook.shape()
        panel.focus()
        # In the notebook's command mode these insert, delete, merge, convert and move cells,
        # restart the kernel and open dialogs.
        panel.press(*"abddmyczvhlo00ijkq", "Shift+M", "Shift+L", "Escape", "Control+s")
        assert notebook.shape() == shape
        assert notebook.page.locator(".jp-Dialog").count() == 0

        given = rate(panel, 5)
        panel.press("f", "r")  # by its letter, with a reason in which keys are letters
        trace_id = panel.trace_id
        notebook.page.keyboard.type("add: u s 1 2 3?")
        panel.press("Control+Enter")
        panel.at(6)
        given[trace_id] = ["fair"]
        reasons = {trace_id: "add: u s 1 2 3?"}
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
        assert all(row["saved"] for row in rows)


def test_ratings_wait_in_the_browser_until_the_kernel_can_write_them(
    browser: Browser, host: Host, store: str, tmp_path: Path
) -> None:
    """They are shown as not saved, written once when the kernel is free, or when a new one is."""
    traces(16)
    freezer = Freezer(tmp_path)
    cells = [setup(store), PANEL, freezer.busy_cell, freezer.cell]
    with host.notebook(browser, cells) as notebook:
        notebook.run(0, 1)
        panel = notebook.new_panel()
        panel.at(0)
        panel.holds(15)

        # While a cell runs they are written at once where the front end uses subshells, else
        # after it.
        notebook.run(2, wait=False)
        panel.focus()
        given = rate(panel, 3)
        freezer.release()
        panel.all_saved()
        assert labelled() == given

        # While it stands still they wait.
        notebook.run(3, wait=False)
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
        expect(panel.root.locator(".wb-counts")).to_contain_text("9 of 16 labelled·1 skipped")
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


def test_the_next_items_of_ten_thousand_come_without_the_kernel(
    browser: Browser, host: Host, store: str, tmp_path: Path, record_property: Any
) -> None:
    """Over two hundred items, long ones among them, are shown each after its key while the kernel
    stands still.

    So nothing is asked of it before the next item is there. How long that takes is measured in
    the page and told in the summary; what is held to the 50 ms of the design is the benchmark.
    """
    database = store.removeprefix("sqlite:///")
    workbench.import_traces(long_and_short(50), inputs="question", outputs="answer", progress=False)
    multiply(database, 10_000)
    freezer = Freezer(tmp_path)
    with host.notebook(browser, [setup(store), PANEL, freezer.cell]) as notebook:
        notebook.run(0, 1)
        panel = notebook.new_panel()
        panel.at(0)
        expect(panel.root.locator(".wb-counts")).to_contain_text("0 of 10,000 labelled")
        panel.holds(219)
        notebook.page.evaluate(STOPWATCH)
        notebook.run(2, wait=False)
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
        f"Enter to the next item painted, {len(taken)} items of 10,000, {host.app}: median "
        f"{taken[len(taken) // 2]:.0f} ms, 95 % within {taken[int(0.95 * len(taken))]:.0f} ms, "
        f"longest {taken[-1]:.0f} ms",
    )


def test_what_is_lost_on_the_way_is_sent_again_and_written_once(
    browser: Browser, lab: Host, store: str
) -> None:
    """A rating that never reaches the kernel, and one of which the page never hears that it is
    saved, are sent again by themselves and are in the store once each."""
    traces(6)
    with lab.notebook(browser, [setup(store), PANEL], script=LOSING) as notebook:
        page = notebook.page
        notebook.run(0, 1)
        panel = notebook.new_panel()
        panel.at(0)
        panel.holds(5)
        panel.focus()
        page.evaluate('losing.sent.push(\'"type": ?"act"\')')
        given = rate(panel, 1)
        page.wait_for_function("losing.lost.length === 1")
        page.evaluate('losing.got.push(\'"type": ?"saved"\')')
        given |= rate(panel, 1)
        page.wait_for_function("losing.lost.length === 2")
        # Both wait still, and neither holds up the others.
        expect(panel.root).to_have_attribute("data-unsaved", "2")
        given |= rate(panel, 2)
        expect(panel.root).to_have_attribute("data-unsaved", "2")
        assert panel.said == "Not saved yet (2)"
        lost, *_ = given
        assert labelled() == {key: value for key, value in given.items() if key != lost}
        panel.all_saved()
        assert labelled() == given
        assert panel.said == "All saved"
        ids = [
            a.assessment_id
            for t in mlflow.search_traces(return_type="list")
            for a in t.info.assessments
        ]
        assert len(ids) == 4


HOSTILE = [
    "<script>window.harmed = 1; alert(1)</script>",
    "<img src=x onerror='window.harmed = 1'><svg onload='window.harmed = 1'></svg>",
    "<iframe src='https://evil.example/'></iframe><style>* {display: none}</style>",
    "<meta http-equiv=refresh content='0; url=https://evil.example/'><base href='//evil.example/'>",
    "[a link](javascript:window.harmed=1) [one](java\nscript:alert(1)) <javascript:alert(1)>",
    "[data](data:text/html,<script>alert(1)</script>) [user](https://bank.example@evil.example/)",
    "![a picture](https://evil.example/seen.png) ![x](x\" onerror=\"window.harmed=1)",
    "file:///etc/passwd https://evil.example/\u202ehtml.exe and \x00\x07\x1b[31m, zero\u200bwidth",
    "\u05e9\u05dc\u05d5\u05dd \u202e reversed \u2066 isolated \U000e0041\U000e0042 hidden",
    "| a | b |\n|---|---|\n| <b onclick='window.harmed=1'>x</b> | `<i>` |\n\n> <u>quoted</u>",
    '{"__proto__": {"harmed": 1}, "constructor": "<script>alert(1)</script>", "toString": null}',
    "[" * 25_000,
    "*" * 25_000 + "a" + "_" * 25_000,
    "> " * 10_000 + "deep",
    "|" * 20_000 + "\n" + "|-" * 10_000,
    "\n".join(f"{' ' * (2 * i)}- {i}" for i in range(300)),
    "e\u0301\u0302\u0303" * 5_000 + "\ud83d",
    "line\n" * 40_000,
]  # fmt: skip


def test_no_trace_runs_anything(browser: Browser, host: Host, store: str) -> None:
    """Whatever a trace holds is shown as text: no script, no dialog, no request to elsewhere."""
    inputs: list[Any] = [{"text": text} for text in HOSTILE]
    roles = [{"role": "<b>user</b>", "content": HOSTILE[0]}, {"role": "user", "content": [
        {"type": "image_url", "image_url": {"url": "https://evil.example/seen.png"}},
        {"type": "text", "text": HOSTILE[1]}, {"<i>": HOSTILE[1]}, None, 3]}]  # fmt: skip
    deep: Any = HOSTILE[0]
    for _ in range(50):
        deep = {"<b>": [deep]}
    inputs += [{"messages": roles}, {HOSTILE[0]: {HOSTILE[1]: [deep] * 3}}]
    made = workbench.import_traces(
        pd.DataFrame({"inputs": inputs, "outputs": "word " * 1_000_000}),
        inputs="inputs", outputs="outputs", progress=False,
    )  # fmt: skip
    workbench.set_rubric("quality", HOSTILE[0] + "\n\n" + HOSTILE[6])
    code = PANEL.replace("scale=scale", f"scale=scale, title={HOSTILE[1]!r}")
    with host.notebook(browser, [setup(store), code]) as notebook:
        notebook.run(0, 1)
        page, panel = notebook.page, notebook.new_panel()
        panel.focus()
        for position in range(len(inputs)):
            panel.at(position)
            shown = panel.root.locator(".wb-reading")
            assert "5,000,000 characters" in shown.inner_text()
            harmful = panel.root.evaluate(
                """(root) => [...root.querySelectorAll('*')].filter((each) =>
                    /^(script|img|iframe|svg|style|meta|base|object|embed|link|form|video|audio)$/i
                        .test(each.tagName)
                    || [...each.attributes].some(({name}) => /^on|^srcdoc|^src$/i.test(name))
                    || (each.hasAttribute('href') && !/^https?:$/.test(each.protocol))
                ).map((each) => each.outerHTML.slice(0, 200))"""
            )
            assert harmful == []
            # Not as it is: these are shown by their number.
            assert not re.search("[\x00\x07\x1b\u202e\u2066\U000e0041]", shown.inner_text())
            panel.press("t")  # as it is
            assert not re.search("[\x00\x07\x1b\u202e\u2066\U000e0041]", shown.inner_text())
            panel.press("t", "2", "Enter" if position % 2 else "ArrowRight")
        page.get_by_role("button", name="Load all of it").click()
        expect(panel.root.locator(".wb-outputs")).to_contain_text("of 5,000,000 characters")
        assert page.evaluate("[window.harmed, ({}).harmed, {}.constructor === Object]") == [
            None, None, True,
        ]  # fmt: skip
        assert notebook.dialogs == []
        assert [url for url in notebook.outside if "evil" in url or "bank" in url] == []
        assert notebook.outside == []
        panel.all_saved()
    assert len(labelled()) == len(inputs) // 2
    assert set(labelled()) <= set(made.trace_ids)


def test_several_questions_and_the_verdict_after_ones_own(
    browser: Browser, lab: Host, store: str
) -> None:
    """Arrows choose the question; verdicts come after one's label, and a change is kept apart."""
    ids = traces(3)
    verdicts = pd.DataFrame({"trace_id": ids, "value": "good", "why": "it **adds** up"})
    workbench.log_verdicts(
        verdicts, name="quality", source="judge", value="value", rationale="why", progress=False
    )
    code = (
        "from workbench import LabelQuestion, Scale\n"
        "questions = [LabelQuestion('quality', scale),"
        " LabelQuestion('safe', Scale.from_type(bool), rubric='Nothing *harmful*.'),"
        " LabelQuestion('stars', Scale('numeric', low=1, high=5, integer=True), required=False),"
        " LabelQuestion('minutes', Scale('numeric', low=0, high=60), required=False),"
        " LabelQuestion('better', None, required=False)]\n"
        "panel = workbench.LabelPanel(annotator='ana', questions=questions, reveal=True)\npanel"
    )
    with lab.notebook(browser, [setup(store), code]) as notebook:
        notebook.page.add_style_tag(content=".wb-frame {width: 400px !important}")
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
