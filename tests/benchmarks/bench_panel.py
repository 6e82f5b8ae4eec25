"""How soon the label panel shows the next item, in JupyterLab with Chromium.

    python tests/benchmarks/bench_panel.py [--items 200] [--queue 10000]

Items are rated one after another with a number and Enter, in a queue of so many traces: most of
about 2,000 characters, and one of ten long (28,000 of Markdown, or 39,000 of plain text).
Measured in the page: from the time that the browser gives the Enter key to the end of the frame in
which the next item is painted. "Standing still" is a kernel that runs nothing, not even a thread;
the ratings of the other one are written to SQLite meanwhile.

The design asks for 50 ms in 95 of 100 cases: it ends with code 1 where that is not reached.
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
from hosts import STOPWATCH, Notebook, running
from large_queue import long_and_short, multiply
from playwright.sync_api import sync_playwright

import workbench

TARGET = 50  # milliseconds, 95 % of the items


def measure(notebook: Notebook, items: int) -> list[float]:
    panel = notebook.panel
    panel.focus()
    notebook.page.evaluate(STOPWATCH)
    for _ in range(items):
        position = panel.position
        panel.press("2", "Enter")
        notebook.page.wait_for_function(
            "(was) => document.querySelector('.wb').dataset.position !== was", arg=position
        )
        panel.page.wait_for_function("window.taken.length > (window.seen ?? 0)")
        notebook.page.evaluate("window.seen = window.taken.length")
    return list(notebook.page.evaluate("window.taken"))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=200)
    parser.add_argument("--queue", type=int, default=10_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        database = f"{folder}/mlflow.db"
        mlflow.set_tracking_uri(f"sqlite:///{database}")
        mlflow.set_experiment("panel")
        workbench.import_traces(
            long_and_short(50), inputs="question", outputs="answer", progress=False
        )
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
                    notebook.new_panel().holds(min(219, options.queue - 2))
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
    print(
        f"{'kernel':<16}{'items':>6}{'median':>10}{'95 %':>10}{'target':>10}{'longest':>10}"
        f"{'all saved':>12}"
    )
    for kernel, n, *times, seconds in rows:
        told = "".join(f"{each:>7.1f} ms" for each in (times[0], times[1], TARGET, times[2]))
        print(f"{kernel:<16}{n:>6}{told}{seconds:>10.1f} s")
    missed = [kernel for kernel, _, _, last, _, _ in rows if last > TARGET]
    if missed:
        print(f"Above the target with the kernel {' and '.join(missed)}.", file=sys.stderr)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
