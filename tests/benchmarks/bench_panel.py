"""How soon the label panel shows the next item, in JupyterLab with Chromium.

    python tests/benchmarks/bench_panel.py [--items 200] [--queue 10000]

Items are rated one after another with a number and Enter, in a queue of so many traces of about
2,000 characters. Measured in the page: from the time that the browser gives the Enter key to the
end of the frame in which the next item is painted. "Standing still" is a kernel that runs nothing,
not even a thread; the ratings of the other one are written to SQLite meanwhile.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "browser"))

import mlflow
import pandas as pd
from hosts import Notebook, running
from large_queue import multiply
from playwright.sync_api import sync_playwright

import workbench

# After a frame is drawn tasks run again: a message posted within its callback is one of them.
MEASURE = """
window.taken = [];
document.addEventListener('keydown', (event) => {
    if (event.key !== 'Enter') return;
    const root = document.querySelector('.wb'), from = root.dataset.position;
    requestAnimationFrame(() => {
        const {port1, port2} = new MessageChannel();
        port1.onmessage = () => window.taken.push(
            root.dataset.position === from ? null : performance.now() - event.timeStamp);
        port2.postMessage(0);
    });
}, true);
"""

ANSWER = (
    """The **{n}** plan fits you best.

1. Open *Settings* and choose `Billing`
2. Pick the plan, then confirm

| plan | seats | price |
|---|---|---|
| Basic | 1 | 9 |
| Team | {n} | 29 |

"""
    + "It takes effect on the first day of the month that follows, and can be changed. " * 18
)


def measure(notebook: Notebook, items: int) -> list[float]:
    panel = notebook.panel
    panel.focus()
    notebook.page.evaluate(MEASURE)
    for _ in range(items):
        position = panel.position
        panel.press("2", "Enter")
        notebook.page.wait_for_function(
            "(was) => document.querySelector('.wb').dataset.position !== was", arg=position
        )
        panel.page.wait_for_function("window.taken.length > (window.seen ?? 0)")
        notebook.page.evaluate("window.seen = window.taken.length")
    taken = notebook.page.evaluate("window.taken")
    late = sum(each is None for each in taken)
    assert not late, f"{late} items were not there within the frame after their key"
    return list(taken)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--queue", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = f"{folder}/mlflow.db"
        mlflow.set_tracking_uri(f"sqlite:///{database}")
        mlflow.set_experiment("panel")
        table = pd.DataFrame({"n": range(50)})
        table["question"] = [
            f"Which plan do {n} people need, and how do we get it?" for n in table.n
        ]
        table["answer"] = [ANSWER.format(n=n) for n in table.n]
        workbench.import_traces(table, inputs="question", outputs="answer", progress=False)
        multiply(database, options.queue)
        os.mkfifo(f"{folder}/frozen")
        cells = [
            f"import mlflow, workbench; mlflow.set_tracking_uri('sqlite:///{database}');"
            "mlflow.set_experiment('panel')",
            "panel = workbench.LabelPanel('quality', annotator='ana',"
            "scale=workbench.Scale.of(['poor', 'fair', 'good']))\npanel",
            f"import ctypes; ctypes.PyDLL(None).open(b'{folder}/frozen', 0)",
        ]
        browser_path = os.environ.get("WORKBENCH_TEST_BROWSER") or shutil.which("chromium")
        rows = []
        with (
            sync_playwright() as playwright,
            running("lab", Path(folder) / "lab") as lab,
        ):
            browser = playwright.chromium.launch(
                executable_path=browser_path,
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            )
            for kernel in ("free", "standing still"):
                with lab.notebook(browser, cells) as notebook:
                    notebook.run(0, 1)
                    notebook.new_panel().holds(min(199, options.queue - 2))
                    if kernel != "free":
                        notebook.run(2, wait=False)
                    begun = time.monotonic()
                    taken = sorted(measure(notebook, options.items))
                    if kernel != "free":
                        Path(f"{folder}/frozen").write_text("")
                    notebook.panel.all_saved()
                    seconds = time.monotonic() - begun
                    last = taken[max(0, int(0.95 * len(taken)) - 1)]
                    rows.append(
                        (kernel, len(taken), statistics.median(taken), last, taken[-1], seconds)
                    )
            browser.close()
    print(f"Enter to the next item painted, queue of {options.queue:,}, {os.cpu_count()} cores")
    print(f"{'kernel':<16}{'items':>6}{'median':>10}{'95 %':>10}{'longest':>10}{'all saved':>12}")
    for kernel, n, *times, seconds in rows:
        told = "".join(f"{each:>7.1f} ms" for each in times)
        print(f"{kernel:<16}{n:>6}{told}{seconds:>10.1f} s")


if __name__ == "__main__":
    main()
