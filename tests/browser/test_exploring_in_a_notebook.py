"""The explorer in a real notebook: real kernel, real browser, real store."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import mlflow
import pandas as pd
from hostile import HARMFUL, HOSTILE, UNSEEN
from hosts import Desk, connected
from playwright.sync_api import Locator, Page, expect

import workbench
from workbench.labeling.annotations import without_spans
from workbench.labeling.exploration import NOTE
from workbench.store.labels import label_records

HUMAN = ["no"] * 4 + ["yes"] * 8
BEFORE = ["yes", "yes", "no", "no", "no", "no", "no", "yes", "yes", "yes", "yes", "yes"]
AFTER = ["no", "yes", "no", "no", "yes", "yes", "no", "yes", "yes", "yes", "yes", "no"]
PAIRS = "before, after = (workbench.pair('quality', source=one) for one in ('before', 'after'))\n"
EXPLORER = f"{PAIRS}panel = workbench.Explorer(before, after, annotator='ben')\npanel"


def judged(texts: list[Any], *, human: list[str], before: list[str], after: list[str]) -> list[str]:
    """Traces with a label and two judges' verdicts, each with a reason."""
    table = pd.DataFrame({"question": texts, "human": human, "before": before, "after": after})
    table["product"] = [("lamp", "desk")[i % 2] for i in range(len(texts))]
    table["answer"] = [f"It is **{i}**." for i in range(len(texts))]
    table["why"] = [str(text)[:20_000] for text in texts]
    made = workbench.import_traces(
        table, inputs=["question", "product"], outputs="answer", progress=False
    )
    table["trace_id"] = made.trace_ids
    workbench.log_labels(
        table, name="quality", annotator="ana", value="human", rationale="why", progress=False
    )
    for who in ("before", "after"):
        workbench.log_verdicts(
            table, name="quality", source=who, value=who, rationale="why", progress=False
        )
    return list(made.trace_ids)


def shown(page: Page) -> Locator:
    """The explorer, once the kernel has sent it something."""
    root = page.locator(".wbx").last
    expect(root).to_have_attribute("data-total", re.compile(r"\d"))
    return root


def cell(root: Locator, human: str, judge: str) -> Locator:
    return root.get_by_role("button", name=re.compile(f"^human {human}, judge.* {judge}:"))


def in_order(root: Locator, order: str) -> None:
    root.get_by_label("Order").select_option(order)
    expect(root.locator(".wbx-items")).to_have_attribute("aria-busy", "false")


def focused(page: Page) -> str:
    """What a screen reader says of what has the focus."""
    return str(
        page.evaluate(
            "document.activeElement.getAttribute('aria-label') || document.activeElement.innerText"
        )
    )


def test_items_are_found_with_the_keyboard_alone(desk: Desk, store: str) -> None:
    """Arrows move in the matrix and the list, Enter opens, Escape goes back, Tab goes on."""
    ids = judged([f"Q{i}" for i in range(12)], human=HUMAN, before=BEFORE, after=AFTER)
    with desk.shows([connected(store), EXPLORER]) as notebook:
        notebook.run(0, 1)
        page, root = notebook.page, shown(notebook.page)
        expect(root.locator("caption")).to_contain_text("judge after on columns")
        before = notebook.shape()
        press: Callable[[str], None] = page.keyboard.press
        cell(root, "no", "no").focus()
        assert focused(page) == "human no, judge after no: 3 items, 75 % of the row"
        press("ArrowDown")
        assert focused(page) == "human yes, judge after no: 2 items, 25 % of the row"
        press("Enter")
        status = root.locator(".wbx-status")
        expect(status).to_have_text("2 items: human yes, judge after no")
        assert cell(root, "yes", "no").get_attribute("aria-pressed") == "true"
        assert focused(page).startswith("human yes")  # the focus stays

        for _ in range(8):
            if page.evaluate("document.activeElement.matches('.wbx-row')"):
                break
            press("Tab")
        rows = root.locator(".wbx-row")
        expect(rows).to_have_count(2)
        press("ArrowDown")
        expect(rows.nth(1)).to_be_focused()
        press("ArrowDown")  # there is no other
        expect(rows.nth(1)).to_be_focused()
        press("Enter")
        detail = root.locator(".wbx-detail")
        expect(detail).to_be_visible()
        assert focused(page) == "Item 2 of 2"
        press("ArrowLeft")
        expect(detail.get_by_role("heading", name="Item 1 of 2")).to_be_focused()
        expect(rows.nth(0)).to_have_attribute("aria-current", "true")
        voices = [voice.split("\n")[:2] for voice in detail.locator(".wb-voice").all_inner_texts()]
        assert [voice[0] for voice in voices] == ["people", "judge before", "judge after"]
        said = {ids[6]: ["yes", "no", "no"], ids[11]: ["yes", "yes", "no"]}
        assert [voice[1] for voice in voices] == said[detail.get_attribute("data-trace") or ""]
        press("Escape")
        expect(detail).to_be_hidden()
        expect(rows.nth(0)).to_be_focused()
        press("Escape")
        expect(cell(root, "yes", "no")).to_be_focused()
        press("Space")  # once more: all items again
        expect(status).to_have_text("12 items")
        press("d")
        press("d")
        assert notebook.shape() == before  # no key reached the notebook
        assert notebook.dialogs == []


def test_judges_changes_slices_and_search_narrow_the_matrix(desk: Desk, store: str) -> None:
    """What is chosen holds together; `shown` in the kernel is what the page shows."""
    ids = judged([f"Q{i}" for i in range(12)], human=HUMAN, before=BEFORE, after=AFTER)
    ask = "print(sorted(panel.shown['trace_id']))"
    with desk.shows([connected(store), EXPLORER, ask]) as notebook:
        notebook.run(0, 1)
        root = shown(notebook.page)
        status = root.locator(".wbx-status")
        root.get_by_role("button", name="broken 1").click()
        expect(status).to_have_text("1 item")
        root.get_by_role("button", name="judge before", exact=True).click()
        expect(cell(root, "yes", "yes")).to_have_text(re.compile("^1"))
        root.get_by_role("button", name="Show all").click()
        expect(status).to_have_text("12 items")
        expect(cell(root, "no", "yes")).to_have_text(re.compile("^2"))
        root.get_by_label("Slice by").select_option("product")
        expect(status).to_have_text("6 items")
        root.get_by_label("Slice", exact=True).select_option("lamp")
        root.get_by_label("Search texts and reasons").fill("q1")
        expect(status).to_have_text("1 item")  # Q10: Q1 and Q11 are about a desk
        notebook.run(2)
        assert notebook.output(2).strip() == str([ids[10]])
        root.get_by_label("Search texts and reasons").fill("nothing like it")
        expect(root.locator(".wbx-items")).to_contain_text("No item is left")


def test_an_open_item_keeps_its_place_in_another_order(desk: Desk, store: str) -> None:
    """Its neighbours are those of the list as it is now, also once filters leave the item out."""
    ids = sorted(judged([f"Q{i}" for i in range(12)], human=HUMAN, before=BEFORE, after=AFTER))
    with desk.shows([connected(store), EXPLORER]) as notebook:
        notebook.run(0, 1)
        page, root = notebook.page, shown(notebook.page)
        rows, heading = root.locator(".wbx-row"), root.locator(".wbx-which").get_by_role("heading")
        first = rows.first.get_attribute("data-trace") or ""
        assert first != ids[0]
        rows.first.click()
        expect(heading).to_have_text("Item 1 of 12")
        in_order(root, "id")
        place = ids.index(first)
        expect(heading).to_have_text(f"Item {place + 1} of 12")
        heading.focus()
        page.keyboard.press("ArrowLeft")
        expect(heading).to_have_text(f"Item {place} of 12")
        expect(heading).to_be_focused()
        expect(root.locator(".wbx-detail")).to_have_attribute("data-trace", ids[place - 1])
        root.get_by_label("Search texts and reasons").fill("nothing like it")
        expect(heading).to_have_text("Item outside the list")
        heading.focus()
        page.keyboard.press("ArrowRight")  # there is none
        root.get_by_role("button", name="Show all").click()
        expect(heading).to_have_text(f"Item {place} of 12")


def test_a_label_a_note_and_the_queue_are_in_the_store(desk: Desk, store: str) -> None:
    """What is said to be in the store is there; a second explorer knows it."""
    ids = judged([f"Q{i}" for i in range(12)], human=HUMAN, before=BEFORE, after=AFTER)
    # A second time without pairing again: the label of Ben's would make a tie.
    cells = [f"{connected(store)}\n{PAIRS}", EXPLORER.replace(PAIRS, "")]
    with desk.shows(cells) as notebook:
        notebook.page.context.grant_permissions(["clipboard-read", "clipboard-write"])
        notebook.run(0, 1)
        page, root = notebook.page, shown(notebook.page)
        root.get_by_role("button", name="broken 1").click()
        expect(root.locator(".wbx-status")).to_have_text("1 item")
        root.locator(".wbx-row").click()
        told = root.locator(".wbx-told")
        root.get_by_role("button", name="Save label").click()
        expect(told).to_have_text("Choose a label first.")
        root.get_by_label("Your label", exact=True).select_option("no")
        root.get_by_label("Reason for your label").fill("half of it")
        root.get_by_label("Note", exact=True).fill("ask Ana")
        root.locator(".wbx-row").click()  # opened anew, with what was typed
        expect(root.get_by_label("Reason for your label")).to_have_value("half of it")
        expect(root.get_by_label("Note", exact=True)).to_have_value("ask Ana")
        root.get_by_role("button", name="Save label").click()
        expect(told).to_contain_text("Your label is in the store")
        assert root.get_by_label("Note", exact=True).input_value() == "ask Ana"  # typed, not saved
        root.get_by_role("button", name="Save note").click()
        expect(told).to_have_text("The note is in the store.")
        root.get_by_role("button", name="Send to the label queue").click()
        expect(told).to_have_text("Now in the queue 'quality'.")
        root.get_by_role("button", name="Copy id").click()
        expect(told).to_have_text("The id is copied.")
        assert page.evaluate("navigator.clipboard.readText()") == ids[11]

        trace = without_spans(mlflow.get_trace(ids[11]).info)
        given = {one.annotator: one for one in label_records([trace], "quality")}
        assert (given["ben"].value, given["ben"].rationale) == ("no", "half of it")
        assert (given["ben"].after_verdict, given["ana"].value) == (True, "yes")
        (note,) = label_records([trace], NOTE)
        assert (note.value, note.annotator) == ("ask Ana", "ben")
        assert workbench.review_queue("quality").trace_ids == [ids[11]]

        notebook.run(1)
        root = shown(page)
        root.get_by_role("button", name="broken 1").click()
        expect(root.locator(".wbx-status")).to_have_text("1 item")
        root.locator(".wbx-row").click()
        expect(root.get_by_label("Note", exact=True)).to_have_value("ask Ana")
        expect(root.locator(".wbx-form")).to_contain_text("Yours so far: no")
        assert root.get_by_label("Your label", exact=True).evaluate(
            "(one) => one.selectedOptions[0].text"
        ) == ("no")


def test_no_trace_runs_anything_in_the_explorer(desk: Desk, store: str) -> None:
    """Whatever texts, reasons, values and names hold is shown as text."""
    texts: list[Any] = [*HOSTILE, {HOSTILE[0]: {HOSTILE[1]: [HOSTILE[2]]}}]
    values = [HOSTILE[0], HOSTILE[1], "\u202eplain\x07"]
    n = len(texts)
    human = [values[i % 3] for i in range(n)]
    judged(texts, human=human, before=human, after=human[::-1])
    scale = f"scale = workbench.Scale.of({values!r}, ordered=False)\n"
    code = EXPLORER.replace("source=one", "source=one, scale=scale")
    with desk.shows([connected(store), scale + code]) as notebook:
        notebook.run(0, 1)
        root = shown(notebook.page)
        expect(root.get_by_label("Slice by")).to_be_visible()
        in_order(root, "id")
        root.locator(".wbx-row").first.click()
        for item in range(n):
            heading = root.get_by_role("heading", name=f"Item {item + 1} of {n}")
            expect(heading).to_be_focused()
            assert root.evaluate(HARMFUL) == []
            assert not UNSEEN.search(root.inner_text())
            notebook.page.keyboard.press("ArrowRight")
        harm = notebook.page.evaluate("[window.harmed, ({}).harmed]")
        assert (harm, notebook.dialogs, notebook.outside) == ([None, None], [], [])


MANY = """
import pandas as pd
from workbench.pairing.pairs import Pairs
n = 10_000
table = pd.DataFrame({"trace_id": [f"t{i:05}" for i in range(n)]})
table["human"] = ["poor", "fair", "good", "great"] * (n // 4)
table["judge"] = ["poor", "good", "good", "poor"] * (n // 4)
table["human_rationale"] = [f"Reason {i}: it tells one of the two things." for i in range(n)]
table["judge_rationale"] = "It tells all that was asked, and in few words. " * 10
table["votes"] = [{"ana": value} for value in table["human"]]
scale = workbench.Scale.of(["poor", "fair", "good", "great"], ordered=True)
texts = {i: (f"Question {i}?", "An answer. " * 60) for i in table["trace_id"]}
pairs = Pairs("quality", table, pd.DataFrame(columns=["trace_id", "reason"]), scale, previews=texts)
panel = workbench.Explorer(pairs)
panel
"""

# From a click on a cell to the frame after which its items stand there.
STOPWATCH = """
(cell) => new Promise((resolve) => {
    const root = cell.closest('.wbx');
    const list = root.querySelector('.wbx-items');
    const from = performance.now();
    const watch = new MutationObserver(() => {
        if (list.getAttribute('aria-busy') !== 'false') return;
        watch.disconnect();
        requestAnimationFrame(() => setTimeout(() => resolve(performance.now() - from), 0));
    });
    watch.observe(list, {attributes: true});
    cell.click();
})
"""


def test_ten_thousand_pairs_come_a_page_at_a_time(
    desk: Desk, store: str, record_property: Callable[[str, object], None]
) -> None:
    """The page holds 50 of them, whatever there are; the next ones come when asked for."""
    with desk.shows([connected(store), MANY]) as notebook:
        notebook.run(0, 1)
        page, root = notebook.page, shown(notebook.page)
        status, rows = root.locator(".wbx-status"), root.locator(".wbx-row")
        expect(status).to_have_text("1 to 50 of 10,000 items")
        expect(rows).to_have_count(50)
        taken = []
        for human, judge in [("fair", "good"), ("great", "poor"), ("poor", "poor")] * 3:
            taken.append(cell(root, human, judge).evaluate(STOPWATCH))
        expect(status).to_have_text("1 to 50 of 2,500 items: human poor, judge poor")
        root.get_by_role("button", name="Next page").click()
        expect(status).to_have_text("51 to 100 of 2,500 items: human poor, judge poor")
        rows.nth(49).click()
        expect(root.locator(".wbx-detail")).to_contain_text("not in the store")  # no store holds it
        page.keyboard.press("ArrowRight")  # on to the next page
        expect(root.get_by_role("heading", name="Item 101 of 2,500")).to_be_focused()
        root.get_by_label("Search texts and reasons").fill("reason 9996:")
        expect(status).to_have_text("1 item: human poor, judge poor")
        told = (
            f"explorer, 10,000 pairs: a cell's items after {sorted(taken)[-2]:.0f} ms (2nd worst)"
        )
        record_property("figure", told)


def test_the_saved_notebook_has_the_matrix_as_a_table(desk: Desk, store: str) -> None:
    """Beside a live view the table is hidden; after the kernel is gone it stands in its place."""
    judged([f"Q{i}" for i in range(12)], human=HUMAN, before=BEFORE, after=AFTER)
    with desk.shows([connected(store), EXPLORER]) as notebook:
        notebook.run(0, 1)
        shown(notebook.page)
        table = notebook.page.locator("[class^=wb-table-]")
        expect(table).to_be_hidden()
        notebook.save()
        notebook.restart()
        notebook.load()
        expect(table).to_be_visible()
        expect(table).to_contain_text("human / after")
        expect(table).to_contain_text("still wrong")
