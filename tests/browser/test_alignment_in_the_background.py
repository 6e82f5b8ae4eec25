"""An alignment in the background of a real notebook: real kernel, browser, store and server."""

from __future__ import annotations

import re
from typing import Literal

import pandas as pd
import pytest
from embedded import embedded
from hosts import Desk, connected
from playwright.sync_api import expect

import workbench

NAME = "clarity"
TEXT = "Rate how good {{ outputs }} answers {{ inputs }}."
KEY = "sk-background-123456"
BEGIN = (
    "slow = workbench.SIMBA(concurrency=4)\n"
    "running = workbench.align_in_background(judge, optimizer=slow)\n"
    "running"
)


def setup(store: str, url: str) -> str:
    return (
        f"{connected(store)}\n"
        "from typing import Literal\n"
        f"import os; os.environ['OPENAI_API_KEY'] = {KEY!r}\n"
        f"judge = workbench.make_judge({NAME!r}, {TEXT!r}, model='openai:/any', base_url={url!r},\n"
        "    feedback_value_type=Literal['yes', 'no'])"
    )


def labelled_and_judged(url: str, n: int = 60) -> None:
    """Traces whose answers are good to people where they give a number, with verdicts."""
    good = [i % 2 == 0 for i in range(n)]
    padding = "which is a thing that one may well wish to know about before one goes and buys it"
    table = pd.DataFrame(
        {
            "question": [f"How wide is part {i // 2}?" for i in range(n)],
            "answer": [
                f"It is {10 + i} cm wide." if yes else f"It is wide {padding}, so {'no' * i}."
                for i, yes in enumerate(good)
            ],
            "ana": ["yes" if yes else "no" for yes in good],
            "why": ["gives the width" if yes else "no figure" for yes in good],
        }
    )
    workbench.import_traces(
        table, inputs="question", outputs="answer", labels={"ana": ("ana", "why")},
        label_name=NAME, progress=False,
    )  # fmt: skip
    judge = workbench.make_judge(
        NAME, TEXT, model="openai:/any", base_url=url, feedback_value_type=Literal["yes", "no"]
    )
    workbench.assess(judge, progress=False)


def test_the_notebook_is_usable_while_it_learns(
    desk: Desk, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Figures change while other cells run; Cancel ends it, and the same cell takes it up again."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with embedded() as model:
        labelled_and_judged(model.url)
        model.hold_after(10)
        cells = [setup(store, model.url), BEGIN, "print(6 * 7)", "print(running.result(60).status)"]
        with desk.shows(cells) as notebook:
            notebook.run(0, 1)
            view = notebook.page.locator(".wbp").last
            expect(view).to_have_attribute("data-stage", "learning")
            expect(view).to_have_attribute("data-calls", re.compile("[1-9]"))
            model.wait_until_held()
            before = view.get_attribute("data-calls") or ""
            notebook.run(2)
            assert notebook.output(2) == "42\n"
            expect(view).to_have_attribute("data-stage", "learning")

            model.hold_after(8)
            expect(view).not_to_have_attribute("data-calls", before)
            view.get_by_role("button", name="Cancel").click()
            expect(view).to_contain_text("cancelling")
            model.release()
            expect(view).to_have_attribute("data-stage", "cancelled")
            expect(view).to_contain_text("the same call")
            expect(view.get_by_role("button")).to_be_hidden()

            notebook.run(1)
            expect(view).to_have_attribute("data-stage", "done")
            expect(view).to_contain_text("improved")
            rule = view.locator("ins").filter(has_text="number").first
            expect(rule).to_be_visible()
            notebook.run(3)
            assert notebook.output(3) == "improved\n"
            assert not notebook.outside
