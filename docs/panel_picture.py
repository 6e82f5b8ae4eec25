"""Take README's picture of the label panel anew: python docs/panel_picture.py [light|dark]

In JupyterLab with Chromium, on the sample data, after some ratings with the keyboard.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent / "tests" / "browser"))

SETUP = """
import mlflow, workbench
mlflow.set_tracking_uri({uri!r})
mlflow.set_experiment("shop")
scale = workbench.Scale.of(["poor", "fair", "good", "excellent"])
"""
PANEL = 'workbench.LabelPanel("answer_quality", annotator="dora", scale=scale, seed={seed})'
RUBRIC = """How well does the answer help the customer?

- **excellent**: all that was asked, right, and to the point
- **good**: right, with something small missing
- **fair**: partly right, or hard to use
- **poor**: wrong, or promises what the shop does not say
"""


def take(target: Path, theme: str, width: int, *, seed: int = 1, rated: int = 23) -> None:
    """Write one picture of the panel in JupyterLab's light or dark theme, ``width`` pixels wide."""
    import mlflow
    from hosts import running
    from PIL import Image
    from playwright.sync_api import expect, sync_playwright

    import workbench

    chosen = {"apputils-extension/themes": {"theme": f"JupyterLab {theme.title()}"}}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WORKBENCH_CACHE"] = f"{folder}/cache"
        uri = f"sqlite:///{folder}/mlflow.db"
        mlflow.set_tracking_uri(uri)
        mlflow.set_registry_uri(uri)
        mlflow.set_experiment("shop")
        inputs = ["query", "product_description"]
        data = HERE.parent / "data" / "shop_answers.csv"
        workbench.import_traces(data, inputs=inputs, outputs="answer", progress=False)
        workbench.set_rubric("answer_quality", RUBRIC)
        cells = [SETUP.format(uri=uri), PANEL.format(seed=seed)]
        with (
            sync_playwright() as playwright,
            running("lab", Path(folder) / "lab", chosen) as lab,
        ):
            path = os.environ.get("WORKBENCH_TEST_BROWSER") or shutil.which("chromium")
            browser = playwright.chromium.launch(
                executable_path=path,
                args=["--no-sandbox", "--disable-gpu", "--disable-background-networking"],
            )
            shown = {"viewport": {"width": 1500, "height": 860}, "device_scale_factor": 1.5}
            with lab.notebook(browser, cells, **shown) as notebook:
                style = f".wb-frame {{ width: {width}px !important }}"
                notebook.page.add_style_tag(content=style)
                notebook.run(0, 1)
                panel = notebook.new_panel()
                panel.at(0)
                panel.focus()
                for n in range(rated):
                    panel.press("1432343"[n % 7], "Enter")
                panel.at(rated)
                panel.all_saved()
                panel.press("1")
                pressed = panel.root.locator('.wb-choice[aria-pressed="true"]')
                expect(pressed).to_have_count(1)
                target.parent.mkdir(exist_ok=True)
                panel.root.screenshot(path=target)
                # As many colours as one byte holds: the text stays smooth, the file small.
                seen = Image.open(target).convert("RGB")
                seen.quantize(256, dither=Image.Dither.NONE).save(target, optimize=True)
            browser.close()


if __name__ == "__main__":
    take(HERE / "img" / "label_panel.png", sys.argv[1] if sys.argv[1:] else "light", 960)
